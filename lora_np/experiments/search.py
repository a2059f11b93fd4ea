"""Which learning rate to try next, and which one is best: the search that every experiment makes.

A learning rate that suits one rank, or one dimension, does not suit another, so a curve at one
fixed rate would compare rates. Here every contender gets the same search: three rates a factor of
two apart on the first seed, and one more beyond the best rate while that lies at an end and still
gains more than a thousandth on its neighbour. The rate with the lowest validation loss is then run
on the other seeds.

The last bits of a loss must decide nothing. Of rates whose losses count as equal
(:func:`lora_np.train.equal.lowest`) the search takes the one nearest to its start.

The search remembers nothing but the runs themselves: after an interruption it continues from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from lora_np.train.equal import SAME, lowest

FACTOR = 2.0  # between neighbouring learning rates
MOST_RATES = 7  # a search stops after so many
WORTH = 1e-3  # relative gain at an end below which the search stops

Contender = tuple[str, int | None]  # what is compared: a method at a rank, a variant at a d


class Planned(NamedTuple):
    """A run of the search: what is trained, on which seed, at which learning rate."""

    contender: Contender
    seed: int
    lr: float


Losses = Mapping[Planned, float]  # validation loss; infinite where training diverged


def next_runs(
    starts: Mapping[Contender, float], seeds: int, done: Losses, base: float
) -> list[Planned]:
    """Return the runs that can start now; an empty list means that all are done.

    Parameters
    ----------
    starts : mapping
        The contenders, and where the search of each for a learning rate starts.
    seeds : int
        Number of seeds.
    done : mapping of Planned to float
        The validation losses of the runs that are done; infinite where training diverged.
    base : float
        The validation loss before training.

    Examples
    --------
    >>> from lora_np.experiments.search import next_runs
    >>> [run.lr for run in next_runs({("lora", 8): 0.02}, 3, {}, base=1.0)]
    [0.01, 0.02, 0.04]
    """
    wanted = []
    for contender, start in starts.items():
        tried = tried_rates(contender, done)
        missing, best = rates_to_try(start, tried, base), best_rate(start, tried, base)
        if missing:
            wanted += [Planned(contender, 0, lr) for lr in missing]
        elif best is not None:
            wanted += [Planned(contender, seed, best) for seed in range(1, seeds)]
    return [run for run in wanted if run not in done]


def best_rates(
    starts: Mapping[Contender, float], done: Losses, base: float
) -> dict[Contender, float | None]:
    """Return each contender's best learning rate; None where every rate diverged."""
    return {c: best_rate(start, tried_rates(c, done), base) for c, start in starts.items()}


def tried_rates(contender: Contender, done: Losses) -> dict[float, float]:
    """Return a contender's losses on the first seed, by learning rate."""
    return {run.lr: loss for run, loss in done.items() if run[:2] == (contender, 0)}


def best_rate(start: float, tried: Mapping[float, float], base: float) -> float | None:
    """Return the learning rate with the lowest loss; None if no loss is finite.

    Among equal losses the rate nearest to `start` on a log scale wins, and of two
    that are equally near the lower one. The arguments are those of :func:`rates_to_try`.
    """
    finite = {lr: loss for lr, loss in tried.items() if loss < math.inf}

    def order(lr: float) -> tuple[int, float]:
        return abs(round(math.log(lr / start, FACTOR))), lr  # whole factors: logarithms round too

    return min(lowest(finite, base), key=order, default=None)


def rates_to_try(start: float, tried: Mapping[float, float], base: float) -> list[float]:
    """Return the learning rates that a search still needs; an empty list means that it is done.

    Parameters
    ----------
    start : float
        Where the search starts: the middle of its first three rates.
    tried : mapping of float to float
        The loss by learning rate; infinite where training diverged.
    base : float
        The loss before training.
    """
    grid = [neighbour(start, k) for k in (-1, 0, 1)]
    missing = [lr for lr in grid if lr not in tried]
    if not missing and len(tried) < MOST_RATES:
        missing = _beyond(start, tried, base)
    return missing


def _beyond(start: float, tried: Mapping[float, float], base: float) -> list[float]:
    """Return the rate past the end where the best one lies, if the end still gains enough."""
    rates, best = sorted(tried), best_rate(start, tried, base)
    if best is None:
        return [neighbour(rates[0], -1)]  # all diverged: go lower
    inner = {rates[0]: rates[1], rates[-1]: rates[-2]}.get(best)
    if inner is None:
        return []
    gain = tried[inner] - tried[best]
    if gain < WORTH * tried[inner] or gain <= SAME * abs(base):
        return []
    return [neighbour(best, -1 if best == rates[0] else 1)]


def neighbour(lr: float, steps: int) -> float:
    """Return the rate so many factors away, to 4 digits so that equal rates compare equal.

    Examples
    --------
    >>> from lora_np.experiments.search import neighbour
    >>> neighbour(0.02, -3)
    0.0025
    """
    return float(f"{lr * FACTOR**steps:.4g}")
