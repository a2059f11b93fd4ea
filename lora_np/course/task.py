"""A task that is graded: its reference, the inputs it is tried on, and the known ways to miss it.

A misconception is a function that computes what somebody with that misconception would return. It
names what it reads: inputs of the task, outputs of the reference, and the task's quantities (the
number of samples N, the scale, ...). Its docstring is the sentence that the student is told::

    @LORA_BACKWARD.mistake("dA")
    def dA_over_scale(dA, scale):
        '''Your dA equals the right one times 1/scale: the scale belongs to du as well.'''
        return dA / scale

A submission has a misconception when the two agree on every draw, so the draws must tell all of a
task's misconceptions apart: square shapes, where a transpose is no error, and others, where it is;
r, alpha and N that are no powers of one another.
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
    """One known way to be wrong.

    Attributes
    ----------
    name : str
    output : str or None
        The output that comes out wrong; None where the whole answer does.
    sentence : str
        What the student is told.
    answer : callable
        Computes the wrong output, or the tuple of all outputs.
    """

    name: str
    output: str | None
    sentence: str
    answer: Callable[..., Any]

    def outputs(self, known: Mapping[str, Any]) -> Outputs | str:
        """Return what it computes, as a tuple; where that raises, the exception's name."""
        try:
            with np.errstate(all="ignore"):
                found = _call(self.answer, known)
        except (ValueError, IndexError, TypeError) as error:
            return type(error).__name__  # shapes that do not fit
        return as_outputs(found)


class Task:
    """A function that students write, and what is known about it.

    Parameters
    ----------
    name : str
        Of the student's function.
    outputs : sequence of str
        What it returns, in order.
    reference : callable
        Takes the student's arguments; returns one array, or a tuple of them.
    draws : callable
        ``draws(rng)`` returns a list of dicts of arguments, in float64.
    quantities : callable, optional
        Reads inputs by name and returns a dict of what else misconceptions may name.
    parts : mapping, optional
        For an output that is a sum of two quantities, one of them scaled: their names, that last.
    keeps_dtype : bool
        Whether float32 inputs must give float32 outputs; a float32 draw is then added.
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
        """Return the inputs to try: a list of dicts of arguments."""
        found = self._draws(np.random.default_rng(seed))
        return [*found, in_float32(found[0])] if self.keeps_dtype else found

    def right(self, draw: Draw) -> Outputs:
        """Return the reference's outputs, computed in float64 whatever the draw's dtype."""
        exact = {name: in_float64(value) for name, value in draw.items()}
        return as_outputs(self.reference(**prepared(exact)))

    def known(self, draw: Draw, right: Outputs) -> dict[str, Any]:
        """Return what misconceptions may name: inputs, right outputs, quantities."""
        exact = prepared({name: in_float64(value) for name, value in draw.items()})
        more = _call(self._quantities, exact) if self._quantities else {}
        return {**exact, **dict(zip(self.outputs, right)), **more}

    def mistake(self, output: str | None = None) -> Callable[[Callable], Callable]:
        """Put the decorated function into the catalogue; its docstring is the sentence."""
        if output is not None and output not in self.outputs:
            raise ValueError(f"{self.name} has no output {output!r}: choose from {self.outputs}")

        def add(answer: Callable) -> Callable:
            sentence = " ".join((answer.__doc__ or "").split()).rstrip(".")
            name = answer.__name__.strip("_").replace("_", " ")
            self.misconceptions.append(Misconception(name, output, sentence, answer))
            return answer

        return add

    def usual_mistakes(self, but: Sequence[str] = ()) -> None:
        """Add, for every output, the mistakes that any gradient can have, `but` for some."""
        for output in self.outputs:
            for what, why, change in USUAL:
                name = f"{output} {what}"
                if what in but or name in but:
                    continue
                sentence = f"Your {output} {why}"
                answer = _of(output, change)
                self.misconceptions.append(Misconception(name, output, sentence, answer))


USUAL: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("negated", "has the wrong sign: it equals the right one times -1", lambda g: -g),
    ("zero", "is zero everywhere: is it filled, and at the right place?", lambda g: 0.0 * g),
    ("doubled", "equals the right one times 2: is a term added twice?", lambda g: 2.0 * g),
    ("halved", "equals the right one times 1/2: no factor 1/2 belongs here", lambda g: 0.5 * g),
    (
        "transposed",
        "is the transpose of the right one: a gradient has the shape of what it belongs to",
        lambda g: g.swapaxes(-1, -2) if g.ndim > 1 else g,
    ),
]


def _of(output: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Return an answer that changes the right output `output`."""

    def answer(**known: Any) -> np.ndarray:
        return change(known[output])

    return answer


def _call(function: Callable, known: Mapping[str, Any]) -> Any:
    """Call with those of the known values that the function names."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**known)
    return function(**{p.name: known[p.name] for p in parameters})


def as_outputs(found: Any) -> Outputs:
    """Return one array or a tuple of arrays as a tuple of arrays."""
    several = isinstance(found, tuple | list)
    return tuple(np.asarray(a) for a in (found if several else (found,)))


def in_float64(value: Any) -> Any:
    """Return a floating-point array in float64, anything else as it is."""
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
