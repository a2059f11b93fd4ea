"""Rounds in which sides take turns, and what is made of them: ratios, spreads, exponents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.workers import Worker

LEAST_REPETITIONS, MOST_REPETITIONS = 3, 200  # in a slice, whose figure is their median


@dataclass(frozen=True)
class Spread:
    """A figure of every round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        """The lower quartile."""
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """The upper quartile."""
        return self._quartiles()[2]

    def _quartiles(self) -> list[float]:
        if len(self.rounds) == 1:
            return [self.rounds[0]] * 3
        return statistics.quantiles(self.rounds, n=4, method="inclusive")

    def over(self, other: Spread) -> Spread:
        """Return the ratio of the two in every round."""
        return Spread(tuple(a / b for a, b in zip(self.rounds, other.rounds, strict=True)))

    def times(self, factor: float) -> Spread:
        """Return every round multiplied by `factor`."""
        return Spread(tuple(factor * x for x in self.rounds))


@dataclass(frozen=True)
class Row:
    """One measured figure, and what it is held against.

    Parameters
    ----------
    what, case : str
        What was measured, and of which size.
    measured : Spread
    reference : float, optional
        A goal or a prediction.
    reference_is : {"at most", "at least", "predicted"}
    unit : str
        "" for a ratio.
    """

    what: str
    case: str
    measured: Spread
    reference: float | None = None
    reference_is: str = "at most"
    unit: str = ""

    def verdict(self) -> str:
        """Say whether the goal is reached, "" where there is none."""
        if self.reference is None or self.reference_is == "predicted":
            return ""
        # Seen as costs: what should be at least so much counts inversely.
        sign = 1 if self.reference_is == "at most" else -1
        nearest = self.measured.low if sign == 1 else self.measured.high
        if sign * round(self.measured.median - self.reference, 2) <= 0:  # as it is printed
            return "reached"
        if sign * (nearest - self.reference) <= 0:
            return "within the spread"
        return f"missed by {100 * abs(self.measured.median / self.reference - 1):.0f} %"


@dataclass
class Result:
    """What a benchmark found.

    Attributes
    ----------
    rows : list of Row
    seconds : dict of str to float
        Median seconds of each side.
    left_out : list of str
    idle_cpu : dict of str to float
        CPU seconds for each second of waiting, by side.
    """

    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    idle_cpu: dict[str, float] = field(default_factory=dict)

    def add(self, *rows: Row) -> None:
        """Add rows."""
        self.rows += rows

    def note(self, times: Mapping[str, Spread], case: str = "") -> None:
        """Keep the median seconds of each side."""
        for name, spread in times.items():
            self.seconds[f"{name}, {case}" if case else name] = spread.median

    def waited(self, workers: Mapping[str, Worker | None]) -> None:
        """Keep how idle the workers were while they waited."""
        for label, worker in workers.items():
            if worker is not None:
                self.idle_cpu[label] = worker.call("idle_cpu")

    def grouped(self) -> list[Row]:
        """Return the rows with equal `what` together, in the order of their first appearance."""
        order = list(dict.fromkeys(row.what for row in self.rows))
        return sorted(self.rows, key=lambda row: order.index(row.what))


Turn = tuple[Worker, str]  # a worker, and the name of its action


def take_turns(turns: Mapping[str, Turn], rounds: int, slice_seconds: float) -> dict[str, Spread]:
    """Return the median seconds of every side in every round.

    Parameters
    ----------
    turns : mapping of str to (Worker, str)
        The sides by label.
    rounds : int
    slice_seconds : float
        What each side gets in a round, at least three repetitions.
    """
    counts = {label: repetitions(turn, slice_seconds) for label, turn in turns.items()}
    found: dict[str, list[float]] = {label: [] for label in turns}
    for number in range(rounds):
        order = list(turns) if number % 2 == 0 else list(reversed(turns))
        for label in order:
            found[label].append(statistics.median(slice_of(turns[label], counts[label])))
    return {label: Spread(tuple(medians)) for label, medians in found.items()}


def repetitions(turn: Turn, slice_seconds: float) -> int:
    """Return how many repetitions of an action fill a slice."""
    once = slice_of(turn, 1)[0]
    count = math.ceil(slice_seconds / max(once, 1e-9))
    return min(MOST_REPETITIONS, max(LEAST_REPETITIONS, count))


def slice_of(turn: Turn, count: int) -> list[float]:
    """Run an action `count` times in its worker; return the seconds of each."""
    worker, action = turn
    return worker.call("run", action, count)


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of log y over log x: y grows like x to this power."""
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_u, mean_v = statistics.fmean(u), statistics.fmean(v)
    products = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v))
    return products / sum((a - mean_u) ** 2 for a in u)


def as_dict(name: str, row: Row) -> dict[str, Any]:
    """Return a row as JSON holds it; `name` is its benchmark's."""
    found = row.measured
    return {
        "benchmark": name,
        "what": row.what,
        "case": row.case,
        "unit": row.unit,
        "median": found.median,
        "low": found.low,
        "high": found.high,
        "rounds": list(found.rounds),
        "reference": row.reference,
        "reference_is": None if row.reference is None else row.reference_is,
        "verdict": row.verdict(),
    }
