"""Sides that take turns, the seconds of each, and which adapters were in a batch together."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lora_np.serve import Engine, Request

Seconds = dict[str, list[float]]  # of each round, by the clock: "cpu" and "wall"


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 0.0
) -> dict[str, Seconds]:
    """Return the seconds of each side in each round, for one repetition.

    Every round goes through all sides, every second one in the opposite order. A side is repeated
    until it has had its `seconds`; how often is found in a first repetition, which does not count.

    Parameters
    ----------
    sides : mapping of str to callable
    rounds : int
    seconds : float

    Examples
    --------
    >>> from lora_np.experiments.serving.measure import take_turns
    >>> calls = []
    >>> found = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    >>> "".join(calls), list(found), len(found["a"]["cpu"])
    ('ababba', ['a', 'b'], 2)
    """
    counts = {
        name: max(1, math.ceil(seconds / max(_spent(side, 1)[1], 1e-6)))
        for name, side in sides.items()
    }
    found: dict[str, Seconds] = {name: {"cpu": [], "wall": []} for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            cpu, wall = _spent(sides[name], counts[name])
            found[name]["cpu"].append(cpu)
            found[name]["wall"].append(wall)
    return found


def _spent(side: Callable[[], object], count: int) -> tuple[float, float]:
    """Return the mean CPU seconds and seconds by the clock of `count` calls."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(count):
        side()
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


class Spread(NamedTuple):
    """The middle of the rounds, and their quartiles."""

    median: float
    low: float
    high: float


def ratio(of: Seconds, to: Seconds, clock: str = "cpu") -> Spread:
    """Return the ratio of two sides, taken in each round.

    Examples
    --------
    >>> from lora_np.experiments.serving.measure import ratio
    >>> ratio({"cpu": [2.0, 3.0, 4.0]}, {"cpu": [1.0, 2.0, 2.0]})
    Spread(median=2.0, low=1.75, high=2.0)
    """
    ratios = [a / b for a, b in zip(of[clock], to[clock], strict=True)]
    if len(ratios) == 1:
        return Spread(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Spread(median, low, high)


class Asked(NamedTuple):
    """A request to come: an adapter's name, None for the base alone, and a prompt."""

    adapter: str | None
    prompt: Sequence[int]


class InBatch(NamedTuple):
    """How many requests and adapters shared a step of a run.

    Attributes
    ----------
    rows, distinct : int
        Requests that got a token in a step, and distinct adapters among them: the medians over the
        steps.
    most : int
        The most distinct adapters in a step.
    """

    rows: int
    distinct: int
    most: int


def serve(engine: Engine, asked: Sequence[Asked], n: int) -> list[Request]:
    """Serve requests, and return them, each answered with n tokens."""
    requests = [engine.submit(one.adapter, one.prompt, n) for one in asked]
    engine.run()
    expect_done(requests)
    return requests


def watched(engine: Engine, asked: Sequence[Asked], n: int) -> tuple[list[Request], InBatch]:
    """Serve requests as :func:`serve` does, and count what was in the batch at each step."""
    step: list[Any] = []
    seen: list[tuple[int, int]] = []

    def note(adapter: str | None, token: int) -> None:
        step.append(adapter)

    requests = [
        engine.submit(one.adapter, one.prompt, n, on_token=partial(note, one.adapter))
        for one in asked
    ]
    more = True
    while more:
        more = engine.step()
        if step:
            seen.append((len(step), len(set(step) - {None})))
            step.clear()
    expect_done(requests)
    rows, distinct = zip(*seen)
    return requests, InBatch(
        statistics.median_high(rows), statistics.median_high(distinct), max(distinct)
    )


def expect_done(requests: Sequence[Request]) -> None:
    """Raise the error of the first request that was not answered."""
    for request in requests:
        if request.state != "done":
            raise request.error or ValueError(f"a request was {request.state}")
