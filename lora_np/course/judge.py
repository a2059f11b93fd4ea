"""Which misconception does a wrong answer have? Compare it with each one's, on every draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.course.sandbox.child import attempt
from lora_np.course.task import TASKS, Draw, Misconception, Outputs, Task

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}  # of an array's largest entry


class WrongAnswer(AssertionError):
    """An answer that is wrong; the message is the diagnosis."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show the diagnosis and no source: a hidden test stays hidden."""
        return str(self).splitlines()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    name : str
        The misconception's, or one of "raises", "limit", "count", "order", "factor", "shape",
        "value", "not finite", "dtype", "writes", "put back inexactly";
        :func:`~lora_np.course.run_isolated` adds "no answer", "left out" and "not graded".
    sentence : str
    """

    name: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """What was found; nothing, if the answer is right.

    Attributes
    ----------
    task : str
    findings : tuple of Finding

    Examples
    --------
    >>> from lora_np.course import diagnose
    >>> report = diagnose("stable_rank", lambda M: (M**2).sum())
    >>> report.passed, len(report.findings)
    (False, 1)
    """

    task: str
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def sentences(self) -> list[str]:
        """The diagnosis, one sentence a finding."""
        return [finding.sentence for finding in self.findings]

    def raise_if_wrong(self) -> None:
        """Raise a WrongAnswer that says what is wrong."""
        if not self.passed:
            raise WrongAnswer(str(self))

    def __str__(self) -> str:
        if self.passed:
            return f"{self.task}: right"
        return "\n".join(
            [
                f"{self.task}: not yet right",
                *(f"  - {s}{'' if s.endswith('?') else '.'}" for s in self.sentences),
            ]
        )


def task_called(name: str) -> Task:
    """Return a task by its name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]


def diagnose(task: str, function: Callable, seed: int = 0) -> Report:
    """Try a function in this process and say what is wrong with it.

    Parameters
    ----------
    task : str
        A key of TASKS.
    function : callable
        Takes the task's arguments by position, returns its outputs.
    seed : int
        Draws the inputs.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If there is no such task.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.course import diagnose
    >>> def stable_rank(M):
    ...     sigma = np.linalg.svd(M, compute_uv=False)
    ...     return (sigma / sigma[0]).sum()
    >>> print(diagnose("stable_rank", stable_rank))
    stable_rank: not yet right
      - Your stable rank has singular values where their squares belong: sum sigma^2 / sigma_1^2.
    """
    found = task_called(task)
    draws = found.draws(seed)
    with np.errstate(all="ignore"):
        return judge(found, draws, [attempt(function, draw) for draw in draws])


def checker(space: Mapping[str, Any]) -> Callable[..., None]:
    """Return ``check(task, seed=0)`` for a notebook, whose functions are in `space`.

    Parameters
    ----------
    space : mapping
        The notebook's ``globals()``.

    Returns
    -------
    callable
        Prints that the function called `task` is right, or raises a WrongAnswer.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.course import checker
    >>> def stable_rank(M):
    ...     sigma = np.linalg.svd(M, compute_uv=False)
    ...     return ((sigma / sigma[0]) ** 2).sum()
    >>> check = checker(globals())
    >>> check("stable_rank")
    stable_rank: right
    """

    def check(task: str, seed: int = 0) -> None:
        if task not in space:
            raise WrongAnswer(f"no function called {task} is defined yet")
        report = diagnose(task, space[task], seed)
        report.raise_if_wrong()
        print(report)

    return check


def judge(task: Task, draws: Sequence[Draw], answers: Sequence[dict[str, Any]]) -> Report:
    """Compare answers with the right ones, and where they differ with the misconceptions'.

    Parameters
    ----------
    task : Task
    draws : sequence of dict
    answers : sequence of dict
        One a draw, as from :func:`lora_np.course.sandbox.child.attempt`.

    Returns
    -------
    Report
    """
    trial = _Trial(task, draws, answers)
    if (found := trial.whole()) is not None:
        return Report(task.name, (found,))
    counts = {len(a["outputs"]) for a in trial.answered}
    if counts - {len(task.outputs)}:
        names = ", ".join(task.outputs)
        sentence = f"Your function returned {min(counts - {len(task.outputs)})} values, expected "
        return Report(task.name, (Finding("count", f"{sentence}{len(task.outputs)}: {names}"),))
    findings = []
    if (order := trial.order()) is not None:
        names = [", ".join(task.outputs[i] for i in order), ", ".join(task.outputs)]
        sentence = f"Your function returns {names[0]}: the order is {names[1]}"
        findings.append(Finding("order", sentence))
        trial = _Trial(task, draws, [reordered(answer, order) for answer in answers])
    findings += [f for i in range(len(task.outputs)) if (f := trial.output(i)) is not None]
    findings += [f for f in (trial.raises(), trial.dtype(), trial.writes()) if f is not None]
    return Report(task.name, tuple(findings))


class _Trial:
    """Answers beside the right ones."""

    def __init__(
        self, task: Task, draws: Sequence[Draw], answers: Sequence[dict[str, Any]]
    ) -> None:
        self.task, self.draws, self.answers = task, draws, answers
        self.right = [task.right(draw) for draw in draws]
        self.known = [task.known(draw, right) for draw, right in zip(draws, self.right)]
        self.answered = [a for a in answers if "outputs" in a]
        self.explained: set[int] = set()  # draws on which a matched misconception raises too

    def whole(self) -> Finding | None:
        """Return the misconception that explains the whole answer, if there is one."""
        entries = [m for m in self.task.misconceptions if m.output is None]
        return self._match(entries, None)

    def order(self) -> tuple[int, ...] | None:
        """Return which outputs were returned in turn, if all are there in another order.

        Shapes show it where the answer's fit in one order alone; else all values must be right.
        """
        own = tuple(range(len(self.task.outputs)))
        fitting = [p for p in itertools.permutations(own) if self._fits(p, own)]
        if not self.answered or not fitting:
            return None
        best = max(fitting, key=lambda order: sum(self._fits(order, (i,), True) for i in own))
        if best == own or (own in fitting and not self._fits(best, own, True)):
            return None
        return best

    def _fits(self, order: Sequence[int], which: Sequence[int], values: bool = False) -> bool:
        """Return whether the answer's outputs `which` are the right outputs ``order[which]``."""
        for draw, right, answer in zip(self.draws, self.right, self.answers):
            for i in which if "outputs" in answer else ():
                got, wanted = answer["outputs"][i], right[order[i]]
                if got.shape != wanted.shape:
                    return False
                if values and not same(got, wanted, tolerance(draw)):
                    return False
        return True

    def output(self, i: int) -> Finding | None:
        """Return what is wrong with output `i`, if anything is."""
        wrong = [
            n
            for n, answer in enumerate(self.answers)
            if "outputs" in answer
            and not same(answer["outputs"][i], self.right[n][i], tolerance(self.draws[n]))
        ]
        if not wrong:
            return None
        name = self.task.outputs[i]
        entries = [m for m in self.task.misconceptions if m.output == name]
        return self._match(entries, i) or self._factor(i) or self._describe(name, i, wrong[0])

    def _match(self, entries: Sequence[Misconception], i: int | None) -> Finding | None:
        """Return the entry that agrees on every draw, and raises only where the answer did."""
        best: tuple[int, Misconception, set[int]] | None = None
        for entry in entries:
            raising = self._agreement(entry, i)
            if raising is not None and (best is None or len(raising) > best[0]):
                best = len(raising), entry, raising
        if best is None:
            return None
        self.explained |= best[2]
        return Finding(best[1].name, best[1].sentence)

    def _agreement(self, entry: Misconception, i: int | None) -> set[int] | None:
        """Return the draws on which both raise; None if the two disagree, or are both right."""
        raising, differs = set(), False
        for n, answer in enumerate(self.answers):
            expected, got = entry.outputs(self.known[n]), answer.get("outputs")
            if isinstance(expected, str) or got is None:
                if got is not None or (i is None and not isinstance(expected, str)):
                    return None  # of a whole answer all must fit, also where it raises
                if isinstance(expected, str):
                    if answer["raised"][0] != expected:
                        return None  # a wrong name, say, is no wrong shape
                    raising.add(n)
                    differs = True
                continue
            right: Sequence[np.ndarray] = self.right[n]
            if i is not None:
                got, right = [got[i]], [right[i]]
            limit = tolerance(self.draws[n])
            if not all_same(got, expected, limit):
                return None
            differs = differs or not all_same(got, right, limit)
        return raising if differs else None

    def _factor(self, i: int) -> Finding | None:
        """Say that an output, or the scaled part of it, is a number times the right one."""
        name, factors, rows = self.task.outputs[i], [], []
        fixed, scaled = self.task.parts.get(name, (None, name))
        for draw, known, answer in zip(self.draws, self.known, self.answers):
            if "outputs" not in answer:
                continue
            base, right = (known[fixed] if fixed else 0.0), known[scaled]
            got = answer["outputs"][i]
            c = factor(got, base, right, tolerance(draw))
            if c is None:
                return None
            factors.append(c)
            rows.append((draw, known, right.size))
        if all(abs(c - 1) < 1e-5 for c in factors):
            return None  # right, but for rounding
        part = f"has the {scaled}'s part of" if fixed else "equals"
        sentence = f"Your {name} {part} the right one times "
        numbers = [{k: v for k, v in known.items() if is_number(v)} for _, known, _ in rows]
        limits = [10 * tolerance(draw) for draw, _, _ in rows]
        if (spelled := spell_factor(factors, numbers, limits)) is not None:
            return Finding("factor", f"{sentence}{spelled}")
        if max(size for *_, size in rows) == 1:
            return None  # one number is always another's multiple
        return Finding("factor", f"{sentence}{factors[0]:.4g}, where {spell_draw(rows[0][0])}")

    def _describe(self, name: str, i: int, n: int) -> Finding:
        """Say how an output differs where no misconception fits."""
        got, right = self.answers[n]["outputs"][i], self.right[n][i]
        where = f"where {spell_draw(self.draws[n])}"
        if got.shape != right.shape:
            sentence = f"Your {name} has shape {got.shape}, expected {right.shape}, {where}"
            return Finding("shape", sentence)
        if not np.isfinite(got).all():
            return Finding("not finite", f"Your {name} holds nan or inf, {where}")
        error, largest = float(np.abs(got - right).max()), float(np.abs(right).max())
        if error < 1e-5 * largest:
            sentence = f"Your {name} agrees to the first digits only: it is off by {error:.1g} of "
            reason = "is a small constant or a narrower dtype in it that should not be?"
            return Finding("value", f"{sentence}{largest:.3g}, {where}; {reason}")
        return Finding(
            "value",
            f"Your {name} differs from the right one by up to {error:.3g}, whose largest entry is "
            f"{largest:.3g}, {where}; no known misconception fits: check it numerically, entry by "
            f"entry, on the smallest input",
        )

    def raises(self) -> Finding | None:
        """Return the first exception that no misconception explains."""
        for n, answer in enumerate(self.answers):
            if "raised" in answer and n not in self.explained:
                kind, message = answer["raised"]
                if kind == "MemoryError":
                    return Finding("limit", "Your code needs more memory than it may use")
                if kind == "OutputLimit":
                    return Finding("limit", "Your code prints or returns too much")
                if kind in ("SystemExit", "KeyboardInterrupt"):
                    return Finding("raises", "Your code calls exit: return a result instead")
                if kind == "NotImplementedError":
                    return Finding(
                        "raises", "Your code still raises NotImplementedError: no answer"
                    )
                where = f", where {spell_draw(self.draws[n])}" if self.answered else ""
                return Finding("raises", f"Your code raises {kind}: {message}{where}")
        return None

    def dtype(self) -> Finding | None:
        """Return whether an output has another dtype than the inputs."""
        if not self.task.keeps_dtype:
            return None
        for draw, answer in zip(self.draws, self.answers):
            expected = dtype_of(draw)
            for name, got in zip(self.task.outputs, answer.get("outputs", ())):
                if got.dtype != expected:
                    return Finding(
                        "dtype",
                        f"Your {name} is {got.dtype} where the inputs are {expected}: {why(got)}",
                    )
        return None

    def writes(self) -> Finding | None:
        """Return whether an input was written to, and if so how much is left of that."""
        changed = [
            (name, math.isfinite(by) and by <= 16 * np.finfo(dtype_of(draw)).eps * size(draw[name]))
            for draw, answer in zip(self.draws, self.answers)
            for name, by in answer.get("changed", {}).items()
            if name in draw
        ]
        if not changed:
            return None
        name, in_the_last_digit = min(changed, key=lambda pair: pair[1])
        if in_the_last_digit:
            return Finding(
                "put back inexactly",
                f"Your function leaves its input {name} changed in the last digit, as x + h - h is "
                f"not x in floating point: save the value before, and put it back",
            )
        return Finding("writes", f"Your function writes to its input {name}: work on a copy")


def reordered(answer: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return an answer with output k where it belongs, at ``order[k]``."""
    if "outputs" not in answer:
        return answer
    outputs = [answer["outputs"][order.index(i)] for i in range(len(order))]
    return {**answer, "outputs": outputs}


def is_number(value: Any) -> bool:
    """Return whether a quantity is a positive number, which a factor may be made of."""
    return isinstance(value, int | float) and value > 0


def factor(got: np.ndarray, base: Any, right: np.ndarray, limit: float) -> float | None:
    """Return c such that got = base + c right; None if there is none."""
    norm = float((right * right).sum())
    if got.shape != right.shape or got.dtype.kind not in "iuf" or norm == 0.0:
        return None
    if not np.isfinite(got).all():
        return None
    c = float(((got - base) * right).sum()) / norm
    return c if same(got, base + c * right, limit) else None


def spell_factor(
    factors: Sequence[float], numbers: Sequence[Mapping[str, float]], limits: Sequence[float]
) -> str | None:
    """Return what the factors are on all draws: a number, a power of a quantity, or two."""

    def agree(values: Sequence[float]) -> bool:
        triples = zip(factors, values, limits)
        return all(abs(c - value) <= limit * abs(value) for c, value, limit in triples)

    if agree([factors[0]] * len(factors)):
        return f"{factors[0]:.6g}, on every input"
    powers = [(name, power) for name in numbers[0] for power in (1, -1, 0.5, -0.5, 2, -2)]
    for few in [*itertools.combinations(powers, 1), *itertools.combinations(powers, 2)]:
        if agree([math.prod(known[name] ** power for name, power in few) for known in numbers]):
            return spell_powers(few)
    return None


def spell_powers(powers: Sequence[tuple[str, float]]) -> str:
    """Return a product of powers as a formula, as in "r / sqrt(N)"."""
    words = {0.5: "sqrt({})", 1: "{}", 2: "{}^2"}
    above = [words[p].format(name) for name, p in powers if p > 0]
    below = [words[-p].format(name) for name, p in powers if p < 0]
    bottom = " * ".join(below) if len(below) < 2 else f"({' * '.join(below)})"
    return (" * ".join(above) or "1") + (f" / {bottom}" if below else "")


def why(got: np.ndarray) -> str:
    """Return how an output may have come by another dtype than the inputs'."""
    if got.dtype == np.float64:
        return (
            "a number of NumPy's, as of np.sqrt(2) or mask.sum(), makes float32 wider: take math, "
            "float() or int() for numbers, and np.zeros_like for arrays"
        )
    return "keep the inputs' dtype, as np.zeros_like does"


def same(got: np.ndarray, wanted: np.ndarray, limit: float) -> bool:
    """Return whether two arrays agree, to `limit` of the largest entry, nan and inf alike."""
    if got.shape != wanted.shape:
        return False
    finite = np.isfinite(wanted)
    if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True):
        return False
    got, wanted = got[finite], wanted[finite]
    if wanted.size == 0:
        return True
    size = float(np.abs(wanted).max())
    error = float(np.abs(got - wanted).max())
    return math.isfinite(error) and error <= limit * (size or 1.0)


def size(x: np.ndarray) -> float:
    """Return the largest entry's absolute value."""
    return float(np.abs(x).max(initial=0.0))


def all_same(got: Sequence[np.ndarray], wanted: Outputs | Sequence, limit: float) -> bool:
    """Return whether two answers have as many outputs, and the same."""
    return len(got) == len(wanted) and all(same(a, b, limit) for a, b in zip(got, wanted))


def dtype_of(draw: Draw) -> np.dtype:
    """Return the dtype of a draw's floating-point arrays."""
    return next(v.dtype for v in draw.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f")


def tolerance(draw: Draw) -> float:
    """Return how far an answer may be off, as a part of its largest entry."""
    return TOLERANCE[dtype_of(draw).name]


def spell_draw(draw: Draw) -> str:
    """Return the shapes and numbers of a draw, as in "x is (4, 3), alpha = 5"."""
    parts = [
        f"{name} is {value.shape}" if isinstance(value, np.ndarray) else f"{name} = {value}"
        for name, value in draw.items()
        if name != "f"
    ]
    return ", ".join(parts)
