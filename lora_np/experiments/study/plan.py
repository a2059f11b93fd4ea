"""What a study compares, and which runs remain, as a function of those that are done.

Each contender has its own search for a learning rate (experiments/search.py). A study may also ask
for rates that are not the best: the neighbours of the best rate, to see where the curve of the loss
has its minimum, and rates that several contenders have in common. These runs are made on all seeds.

First come the runs of the first seed, and nothing is asked of the other seeds before the best rate
is known. So the runs that are made do not depend on the order in which they end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lora_np.experiments import search
from lora_np.methods import MethodConfig


@dataclass(frozen=True)
class Contender:
    """One of the things that a study compares.

    Parameters
    ----------
    label : str
        Its name; no two contenders have the same one.
    method : MethodConfig or None
        What is trained; None for full fine-tuning.
    start : float
        Where its search for a learning rate starts.
    rates : tuple of float
        Learning rates to run on all seeds, beside the best one. Its search does not see them,
        unless it reaches them.
    around : int
        How many neighbours of the best rate on either side to run on all seeds.
    tokens : int, optional
        Use so many tokens from the beginning of the text to train on; by default all.
    changes : mapping
        Settings of the text task that differ: ``steps``, ``batch_size``, ``block_size``.

    Examples
    --------
    >>> from lora_np import LoraConfig
    >>> from lora_np.experiments.study import Contender
    >>> Contender("r = 4", LoraConfig(r=4), start=0.02, changes={"steps": 50}).as_dict()["changes"]
    {'steps': 50}
    """

    label: str
    method: MethodConfig | None
    start: float
    rates: tuple[float, ...] = ()
    around: int = 0
    tokens: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what the results of this contender depend on, for ``results.json``."""
        fields = None if self.method is None else dict(self.method.fields())
        return {**vars(self), "method": fields, "changes": dict(self.changes)}


class Run(NamedTuple):
    """One training run of a study."""

    label: str
    seed: int
    lr: float

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}, lr {self.lr:g}"


Losses = Mapping[Run, float]  # validation loss; infinite where training diverged


def next_runs(contenders: Sequence[Contender], seeds: int, done: Losses, base: float) -> list[Run]:
    """Return the runs that can start now; an empty list means that the study is complete.

    Parameters
    ----------
    contenders : sequence of Contender
    seeds : int
        Number of seeds.
    done : mapping of Run to float
        The validation losses of the runs that are done; infinite where training diverged.
    base : float
        The validation loss before training.

    Examples
    --------
    >>> from lora_np.experiments.study import Contender
    >>> from lora_np.experiments.study.plan import next_runs
    >>> contender = Contender("full", None, start=0.02, rates=(0.3,))
    >>> [run.lr for run in next_runs([contender], 3, {}, base=1.0)]
    [0.01, 0.02, 0.04, 0.3]
    """
    wanted: list[Run] = []
    for contender in contenders:
        tried = tried_rates(contender, done)
        missing = _first_seed(contender, tried, base)
        if missing:
            wanted += [Run(contender.label, 0, lr) for lr in missing]
        else:
            rates = rates_on_all_seeds(contender, done, base)
            wanted += [Run(contender.label, seed, lr) for seed in range(1, seeds) for lr in rates]
    return [run for run in wanted if run not in done]


def best_rate(contender: Contender, done: Losses, base: float) -> float | None:
    """Return a contender's best learning rate on the first seed; None where every one diverged."""
    found = searched_rates(contender, tried_rates(contender, done))
    return search.best_rate(contender.start, found, base)


def rates_on_all_seeds(contender: Contender, done: Losses, base: float) -> list[float]:
    """Return the learning rates that a contender runs on all seeds, in ascending order.

    These are the best rate, its neighbours that the contender asks for, and the common rates.
    """
    best = best_rate(contender, done, base)
    found = set(contender.rates)
    if best is not None:
        tried = tried_rates(contender, done)
        found |= {best, *_neighbours(contender, best, tried)} & {*tried}
    return sorted(found)


def tried_rates(contender: Contender, done: Losses) -> dict[float, float]:
    """Return a contender's losses on the first seed, by learning rate."""
    return {run.lr: x for run, x in done.items() if run[:2] == (contender.label, 0)}


def searched_rates(contender: Contender, tried: Mapping[float, float]) -> dict[float, float]:
    """Return the losses at the rates that the search has reached, without gaps from its start on.

    A common rate further away does not take part: between the two, nothing is known.
    """
    found = {lr: tried[lr] for lr in _grid(contender) if lr in tried}
    for sign in (-1, 1):
        lr = search.neighbour(contender.start, sign)
        while lr in tried:
            found[lr] = tried[lr]
            lr = _known(tried, search.neighbour(lr, sign))
    return found


def expected_number(contenders: Sequence[Contender], seeds: int) -> int:
    """Return about how many runs a study takes: searches that go further make more."""
    return sum(_expected(contender, seeds) for contender in contenders)


def _expected(contender: Contender, seeds: int) -> int:
    first = {*_grid(contender)}
    every = 1 + 2 * contender.around
    own = len({*contender.rates} - first)
    return max(3, every) + own + (seeds - 1) * (every + own)


def _first_seed(contender: Contender, tried: Mapping[float, float], base: float) -> list[float]:
    """Return the learning rates that are still to run on the first seed."""
    first = dict.fromkeys((*_grid(contender), *contender.rates))
    if missing := [lr for lr in first if lr not in tried]:
        return missing
    found = searched_rates(contender, tried)
    missing = search.rates_to_try(contender.start, found, base)
    best = search.best_rate(contender.start, found, base)
    if missing or best is None or len(found) >= search.MOST_RATES + 2 * contender.around:
        return missing
    return [lr for lr in _neighbours(contender, best, tried) if lr not in tried]


def _grid(contender: Contender) -> list[float]:
    """Return the rates with which the search begins."""
    return [search.neighbour(contender.start, k) for k in (-1, 0, 1)]


def _neighbours(contender: Contender, best: float, tried: Mapping[float, float]) -> list[float]:
    steps = range(1, contender.around + 1)
    return [_known(tried, search.neighbour(best, sign * k)) for k in steps for sign in (-1, 1)]


def _known(tried: Mapping[float, float], lr: float) -> float:
    """Return the tried rate that differs from `lr` by rounding to 4 digits, else `lr` itself."""
    return min(
        (known for known in tried if abs(known / lr - 1) < 1e-2),
        key=lambda x: abs(x - lr),
        default=lr,
    )


def as_losses(trials: Sequence[Mapping[str, Any]]) -> dict[Run, float]:
    """Return the validation losses of the runs in some results."""
    return {
        Run(t["label"], t["seed"], t["lr"]): math.inf
        if t["validation_loss"] is None
        else t["validation_loss"]
        for t in trials
    }
