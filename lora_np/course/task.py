"""A graded task: its reference, the inputs that it is tried on, and its known misconceptions.

A misconception is a function that computes what a student with that misconception would return.
It names what it reads: inputs of the task, outputs of the reference, and quantities of the task
(the number of samples N, the scale, ...). Its docstring is the sentence that the student reads::

    @BACKWARD.mistake("dA")
    def _dA_over_scale(dA, scale):
        '''Your dA equals the correct dA times 1/scale: the scale is missing in du = scale dy B.'''
        return dA / scale

A submission has a misconception when the two return the same on every draw. Therefore the draws
must tell all misconceptions of a task apart: some shapes are square, so that a transpose raises no
error, and others are not; none of r, alpha and N is a power of another.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.course.sandbox.child import prepared

Draw = dict[str, Any]  # arguments by name: arrays and numbers
Outputs = tuple[np.ndarray, ...]

TASKS: dict[str, Task] = {}


@dataclass(frozen=True)
class Misconception:
    """One known way to get a task wrong.

    Attributes
    ----------
    name : str
    output : str or None
        The output that is wrong, or None if the misconception concerns the whole answer.
    sentence : str
        What the student reads.
    answer : callable
        Computes the wrong output, or the tuple of all outputs.
    """

    name: str
    output: str | None
    sentence: str
    answer: Callable[..., Any]

    def outputs(self, known: Mapping[str, Any]) -> Outputs | str:
        """Return its outputs as a tuple, or the name of the exception that it raises."""
        try:
            with np.errstate(all="ignore"):
                found = _call(self.answer, known)
        except (ValueError, IndexError, TypeError) as error:
            return type(error).__name__  # shapes that do not fit
        return as_outputs(found)


class Task:
    """A function that students write, and everything that is known about it.

    Parameters
    ----------
    name : str
        The name of the student's function.
    outputs : sequence of str
        The names of what it returns, in order.
    reference : callable
        The correct function. It returns one array or a tuple of arrays.
    draws : callable
        ``draws(rng)`` returns a list of dicts of arguments, in float64.
    quantities : callable, optional
        Takes inputs by name, and returns a dict of what else misconceptions may read.
    parts : mapping, optional
        For each output that is the sum of a fixed and a scaled quantity, the names of the two.
    keeps_dtype : bool
        Whether float32 inputs must give float32 outputs. If so, a float32 draw is added.
    """

    def __init__(
        self,
        name: str,
        outputs: Sequence[str],
        reference: Callable[..., Any],
        draws: Callable[[np.random.Generator], list[Draw]],
        quantities: Callable[..., dict[str, Any]] | None = None,
        parts: Mapping[str, tuple[str, str]] | None = None,
        keeps_dtype: bool = True,
    ) -> None:
        self.name, self.outputs, self.reference = name, tuple(outputs), reference
        self.arguments = tuple(inspect.signature(reference).parameters)
        self.parts, self.keeps_dtype = dict(parts or {}), keeps_dtype
        self.misconceptions: list[Misconception] = []
        self._draws, self._quantities = draws, quantities
        TASKS[name] = self

    def draws(self, seed: int) -> list[Draw]:
        """Return the inputs that the function is tried on: a list of dicts of arguments."""
        found = self._draws(np.random.default_rng(seed))
        return [*found, in_float32(found[0])] if self.keeps_dtype else found

    def right(self, draw: Draw) -> Outputs:
        """Return the outputs of the reference, computed in float64 for any dtype of the draw."""
        exact = {name: in_float64(value) for name, value in draw.items()}
        return as_outputs(self.reference(**prepared(exact)))

    def known(self, draw: Draw, right: Outputs) -> dict[str, Any]:
        """Return what misconceptions may read: inputs, correct outputs, quantities."""
        exact = prepared({name: in_float64(value) for name, value in draw.items()})
        more = _call(self._quantities, exact) if self._quantities else {}
        return {**exact, **dict(zip(self.outputs, right)), **more}

    def mistake(self, output: str | None = None) -> Callable[[Callable], Callable]:
        """Register the decorated function as a misconception; its docstring is the sentence.

        Parameters
        ----------
        output : str, optional
            The output that the function returns. By default it returns a tuple of all outputs.
        """
        if output is not None and output not in self.outputs:
            raise ValueError(f"{self.name} has no output {output!r}: choose from {self.outputs}")

        def add(answer: Callable) -> Callable:
            sentence = " ".join((answer.__doc__ or "").split()).rstrip(".")
            name = answer.__name__.strip("_").replace("_", " ")
            self.misconceptions.append(Misconception(name, output, sentence, answer))
            return answer

        return add

    def usual_mistakes(self, but: Sequence[str] = ()) -> None:
        """Register the mistakes that any gradient can have, for every output.

        Parameters
        ----------
        but : sequence of str
            What to leave out: "transposed", say, or "db transposed" for one output.
        """
        for output in self.outputs:
            for what, why, change in USUAL:
                name = f"{output} {what}"
                if what in but or name in but:
                    continue
                sentence = f"Your {output} {why.format(output)}"
                answer = _of(output, change)
                self.misconceptions.append(Misconception(name, output, sentence, answer))


USUAL: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("negated", "has the wrong sign: it equals the correct {} times -1", lambda g: -g),
    ("zero", "is zero everywhere: do you fill it, and in the right place?", lambda g: 0.0 * g),
    ("doubled", "equals the correct {} times 2: do you add a term twice?", lambda g: 2.0 * g),
    ("halved", "equals the correct {} times 1/2: remove the factor 1/2", lambda g: 0.5 * g),
    (
        "transposed",
        "is the transpose of the correct {}: a gradient has the shape of its variable",
        lambda g: g.swapaxes(-1, -2) if g.ndim > 1 else g,
    ),
]


def _of(output: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Return a misconception's answer: the correct output, changed."""

    def answer(**known: Any) -> np.ndarray:
        return change(known[output])

    return answer


def _call(function: Callable, known: Mapping[str, Any]) -> Any:
    """Call a function with the known values that it names."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**known)
    return function(**{p.name: known[p.name] for p in parameters})


def task_called(name: str) -> Task:
    """Return a task by its name.

    Raises
    ------
    ValueError
        If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]


def spell_draw(draw: Draw) -> str:
    """Return the shapes and numbers of a draw, as in "x is (4, 3), alpha = 5"."""
    parts = [
        f"{name} is {value.shape}" if isinstance(value, np.ndarray) else f"{name} = {value}"
        for name, value in draw.items()
        if name != "f"
    ]
    return ", ".join(parts)


def as_outputs(found: Any) -> Outputs:
    """Return one array or a tuple of arrays as a tuple of arrays."""
    several = isinstance(found, tuple | list)
    return tuple(np.asarray(a) for a in (found if several else (found,)))


def in_float64(value: Any) -> Any:
    """Return a floating-point array in float64, and any other value unchanged."""
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(np.float64) if is_float else value


def in_float32(draw: Draw) -> Draw:
    """Return a draw whose floating-point arrays are float32."""
    return {
        name: value.astype(np.float32)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else value
        for name, value in draw.items()
    }


def samples(x: np.ndarray) -> np.ndarray:
    """Return `x` (..., d) as a matrix (N, d)."""
    return x.reshape(-1, x.shape[-1])


def count(x: np.ndarray) -> int:
    """Return how many samples `x` (..., d) holds."""
    return math.prod(x.shape[:-1])
