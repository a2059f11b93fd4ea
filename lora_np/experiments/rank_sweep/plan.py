"""Which trials to run next, as a function of those that are done.

A learning rate that suits one rank does not suit another, so a curve at one fixed rate compares
rates and not ranks. Here every rank, and full fine-tuning, gets the same search: three rates a
factor of two apart on the first seed, and one more beyond the best while the best lies at an end
and still gains more than a thousandth on its neighbour.
The rate with the lowest validation loss is then run on the other seeds. Test loss is only reported.

Nothing is remembered but the trials themselves: an interrupted sweep asks again and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FACTOR = 2.0  # between neighbouring learning rates
MOST_RATES = 7  # a search that has tried so many stops where it is
WORTH = 1e-3  # relative gain at an end below which the search stops


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes
    ----------
    method : {"lora", "full"}
    rank : int or None
        None for full fine-tuning.
    seed : int
        Of the batches and, for LoRA, of A.
    lr : float

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep import Trial
    >>> str(Trial("lora", 8, 0, 0.02)), str(Trial("full", None, 1, 0.004))
    ('lora-r8-seed0-lr0.02', 'full-seed1-lr0.004')
    """

    method: str
    rank: int | None
    seed: int
    lr: float

    def __str__(self) -> str:
        name = "full" if self.rank is None else f"{self.method}-r{self.rank}"
        return f"{name}-seed{self.seed}-lr{self.lr:g}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


Done = Mapping[Trial, float | None]  # validation loss; None where training diverged


def check_numbers(settings: Any, counts: tuple[str, ...], rates: tuple[str, ...]) -> None:
    """Raise ValueError unless these counts are at least 1, these rates positive, and ranks some."""
    for name in counts:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} = {getattr(settings, name)}, expected at least 1")
    for name in rates:
        if not 0.0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} = {getattr(settings, name)}, expected a positive number")
    if not settings.ranks:
        raise ValueError("ranks is empty: name at least one")


def contenders(settings: Any) -> list[tuple[str, int | None]]:
    """Return what the sweep compares: LoRA at every rank, and full fine-tuning if it has a rate."""
    full = [] if settings.full_lr is None else [("full", None)]
    return [*full, *(("lora", r) for r in settings.ranks)]


def next_trials(settings: Any, done: Done) -> list[Trial]:
    """Return the trials that can start now: none means that the sweep is complete.

    Parameters
    ----------
    settings : settings of a task
        Has ``ranks``, ``seeds`` (a number), and where searches start: ``lora_lr``, ``full_lr``;
        where ``full_lr`` is None, full fine-tuning is left out.
    done : mapping of Trial to float or None

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> from lora_np.experiments.rank_sweep.plan import next_trials
    >>> settings = LinearSettings(ranks=(1,), seeds=1, lora_lr=0.1, full_lr=0.4)
    >>> [(trial.rank, trial.lr) for trial in next_trials(settings, {})]
    [(None, 0.2), (None, 0.4), (None, 0.8), (1, 0.05), (1, 0.1), (1, 0.2)]
    """
    wanted = []
    for method, rank in contenders(settings):
        search = _search(settings, method, rank, done)
        lr = best_lr(settings, method, rank, done)
        if search:
            wanted += search
        elif lr is not None:
            wanted += [Trial(method, rank, seed, lr) for seed in range(1, settings.seeds)]
    return [trial for trial in wanted if trial not in done]


def best_lr(settings: Any, method: str, rank: int | None, done: Done) -> float | None:
    """Return the learning rate with the lowest validation loss on the first seed."""
    return best_rate(_tried(method, rank, done))


def best_rate(tried: Mapping[float, float]) -> float | None:
    """Return the learning rate with the lowest loss; None if none is finite."""
    finite = {lr: loss for lr, loss in tried.items() if loss < math.inf}
    # Sorted: of equal losses the lowest rate wins, in whatever order trials ended.
    return min(sorted(finite), key=lambda lr: finite[lr]) if finite else None


def chosen_trials(settings: Any, done: Done) -> list[Trial]:
    """Return the trials that make up the curve: every contender at its best rate, all seeds."""
    chosen = []
    for method, rank in contenders(settings):
        lr = best_lr(settings, method, rank, done)
        if lr is not None:
            trials = [Trial(method, rank, seed, lr) for seed in range(settings.seeds)]
            chosen += [trial for trial in trials if trial in done]
    return chosen


def expected_number(settings: Any) -> int:
    """Return how many trials a sweep takes when no search has to go beyond its three rates."""
    return len(contenders(settings)) * (3 + settings.seeds - 1)


def _tried(method: str, rank: int | None, done: Done) -> dict[float, float]:
    return {
        t.lr: math.inf if loss is None else loss
        for t, loss in done.items()
        if (t.method, t.rank, t.seed) == (method, rank, 0)
    }


def _search(settings: Any, method: str, rank: int | None, done: Done) -> list[Trial]:
    """Return the trials that the search for a learning rate still needs."""
    start = settings.full_lr if method == "full" else settings.lora_lr
    missing = rates_to_try(start, _tried(method, rank, done))
    return [Trial(method, rank, 0, lr) for lr in missing]


def rates_to_try(start: float, tried: Mapping[float, float]) -> list[float]:
    """Return the learning rates that a search still needs; none means that it is done.

    Parameters
    ----------
    start : float
        Where the search starts: the middle of its first three rates.
    tried : mapping of float to float
        The loss by learning rate; infinite where training diverged.
    """
    grid = [_neighbour(start, k) for k in (-1, 0, 1)]
    missing = [lr for lr in grid if lr not in tried]
    if not missing and len(tried) < MOST_RATES:
        missing = _beyond(tried)
    return missing


def _beyond(tried: Mapping[float, float]) -> list[float]:
    """Return the rate past the end where the best one lies, if the end still gains enough."""
    rates = sorted(tried)
    best = min(rates, key=lambda lr: tried[lr])
    if tried[best] == math.inf:
        return [_neighbour(rates[0], -1)]  # all diverged: go lower
    inner = {rates[0]: rates[1], rates[-1]: rates[-2]}.get(best)
    if inner is None or tried[best] > (1.0 - WORTH) * tried[inner]:
        return []
    return [_neighbour(best, -1 if best == rates[0] else 1)]


def _neighbour(lr: float, steps: int) -> float:
    """Return the rate so many factors away, to 4 digits so that equal rates compare equal."""
    return float(f"{lr * FACTOR**steps:.4g}")
