"""Which trials to run next, as a function of those that are done.

A learning rate that suits one rank does not suit another, so a curve at one fixed rate compares
rates and not ranks. Here every rank, and full fine-tuning, gets the same search: three rates a
factor of two apart on the first seed, and one more beyond the best while the best lies at an end
and still gains more than a thousandth on its neighbour.
The rate with the lowest validation loss is then run on the other seeds. Test loss is only reported.

The last bits of a loss differ from processor to processor, and must decide nothing. So losses that
differ by less than a millionth of the loss before training count as equal, and of equally good
rates the one nearest to the start of the search is taken. (A share of the loss itself would not do:
where training ends at zero, all that is left of the loss is rounding.)

Nothing is remembered but the trials themselves: an interrupted sweep asks again and goes on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

FACTOR = 2.0  # between neighbouring learning rates
MOST_RATES = 7  # a search that has tried so many stops where it is
WORTH = 1e-3  # relative gain at an end below which the search stops
SAME = 1e-6  # of the loss before training: losses no further apart count as equal

Key = TypeVar("Key")


@dataclass(frozen=True)
class Trial:
    """One training run.

    Its text names the file of what was trained, and no two trials share it. The fields are checked,
    since they may come from a file.

    Attributes
    ----------
    method : str
        What is trained: "lora", "full", or another identifier.
    rank : int or None
        None for a method without a rank, as "full" is.
    seed : int
        Of the batches and, for LoRA, of A.
    lr : float

    Raises
    ------
    ValueError
        If a field is not of this kind.

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

    def __post_init__(self) -> None:
        method, rank, seed, lr = self.method, self.rank, self.seed, self.lr
        if not (isinstance(method, str) and method.isascii() and method.isidentifier()):
            raise ValueError(f"method = {method!r}, expected a plain name, as in 'lora'")
        if rank is not None and not _is_whole(rank, least=1):
            raise ValueError(f"rank = {rank!r}, expected a whole number of at least 1, or None")
        if method == "full" and rank is not None:
            raise ValueError(f"rank = {rank!r}, expected None: full fine-tuning has no rank")
        if not _is_whole(seed, least=0):
            raise ValueError(f"seed = {seed!r}, expected a whole number of at least 0")
        number = isinstance(lr, (int, float)) and not isinstance(lr, bool)
        if not number or not 0.0 < lr <= sys.float_info.max:
            raise ValueError(f"lr = {lr!r}, expected a positive float64")

    def __str__(self) -> str:
        rank = "" if self.rank is None else f"-r{self.rank}"
        lr = f"{self.lr:g}"
        if float(lr) != self.lr:  # six digits do not tell it from its neighbours
            lr = repr(float(self.lr))
        return f"{self.method}{rank}-seed{self.seed}-lr{lr}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


Done = Mapping[Trial, float | None]  # validation loss; None where training diverged


def _is_whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def lowest(losses: Mapping[Key, float], base: float) -> list[Key]:
    """Return the keys whose losses count as the lowest: no rounding decides between them.

    Parameters
    ----------
    losses : mapping to float
    base : float
        The loss before training, which says what is small.

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep.plan import lowest
    >>> lowest({0.1: 2e-16, 0.2: 1e-16, 0.4: 1e-3}, base=3.0)
    [0.1, 0.2]
    """
    least = min(losses.values(), default=0.0)
    return [key for key, loss in losses.items() if loss <= least + SAME * abs(base)]


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
    """Return what is compared: the method at every rank, and full fine-tuning if it has a rate."""
    full = [] if settings.full_lr is None else [("full", None)]
    return [*full, *((settings.method_name, r) for r in settings.ranks)]


def is_gain(base: float, loss: float) -> bool:
    """Return whether a loss is below the loss before training by more than counts as equal."""
    return base - loss > SAME * abs(base)


def next_trials(settings: Any, done: Done, base: float) -> list[Trial]:
    """Return the trials that can start now: none means that the sweep is complete.

    Parameters
    ----------
    settings : settings of a task
        Has ``ranks``, ``seeds`` (a number), and where searches start: ``lora_lr``, ``full_lr``;
        where ``full_lr`` is None, full fine-tuning is left out.
    done : mapping of Trial to float or None
    base : float
        The validation loss before training.

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> from lora_np.experiments.rank_sweep.plan import next_trials
    >>> settings = LinearSettings(ranks=(1,), seeds=1, lora_lr=0.1, full_lr=0.4)
    >>> [(trial.rank, trial.lr) for trial in next_trials(settings, {}, base=1.0)]
    [(None, 0.2), (None, 0.4), (None, 0.8), (1, 0.05), (1, 0.1), (1, 0.2)]
    """
    wanted = []
    for method, rank in contenders(settings):
        search = _search(settings, method, rank, done, base)
        lr = best_lr(settings, method, rank, done, base)
        if search:
            wanted += search
        elif lr is not None:
            wanted += [Trial(method, rank, seed, lr) for seed in range(1, settings.seeds)]
    return [trial for trial in wanted if trial not in done]


def best_lr(settings: Any, method: str, rank: int | None, done: Done, base: float) -> float | None:
    """Return the learning rate with the lowest validation loss on the first seed."""
    return best_rate(_start(settings, method), _tried(method, rank, done), base)


def best_rate(start: float, tried: Mapping[float, float], base: float) -> float | None:
    """Return the learning rate with the lowest loss; None if none is finite.

    Of equal losses (:func:`lowest`) the rate nearest to `start` on a log scale wins, and of two
    equally near the lower one. The other arguments are those of :func:`rates_to_try`.
    """
    finite = {lr: loss for lr, loss in tried.items() if loss < math.inf}

    def order(lr: float) -> tuple[int, float]:
        return abs(round(math.log(lr / start, FACTOR))), lr  # whole factors: logarithms round too

    return min(lowest(finite, base), key=order, default=None)


def chosen_trials(settings: Any, done: Done, base: float) -> list[Trial]:
    """Return the trials that make up the curve: every contender at its best rate, all seeds."""
    chosen = []
    for method, rank in contenders(settings):
        lr = best_lr(settings, method, rank, done, base)
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


def _start(settings: Any, method: str) -> float:
    return settings.full_lr if method == "full" else settings.lora_lr


def _search(settings: Any, method: str, rank: int | None, done: Done, base: float) -> list[Trial]:
    """Return the trials that the search for a learning rate still needs."""
    missing = rates_to_try(_start(settings, method), _tried(method, rank, done), base)
    return [Trial(method, rank, 0, lr) for lr in missing]


def rates_to_try(start: float, tried: Mapping[float, float], base: float) -> list[float]:
    """Return the learning rates that a search still needs; none means that it is done.

    Parameters
    ----------
    start : float
        Where the search starts: the middle of its first three rates.
    tried : mapping of float to float
        The loss by learning rate; infinite where training diverged.
    base : float
        The loss before training.
    """
    grid = [_neighbour(start, k) for k in (-1, 0, 1)]
    missing = [lr for lr in grid if lr not in tried]
    if not missing and len(tried) < MOST_RATES:
        missing = _beyond(start, tried, base)
    return missing


def _beyond(start: float, tried: Mapping[float, float], base: float) -> list[float]:
    """Return the rate past the end where the best one lies, if the end still gains enough."""
    rates, best = sorted(tried), best_rate(start, tried, base)
    if best is None:
        return [_neighbour(rates[0], -1)]  # all diverged: go lower
    inner = {rates[0]: rates[1], rates[-1]: rates[-2]}.get(best)
    if inner is None:
        return []
    gain = tried[inner] - tried[best]
    if gain < WORTH * tried[inner] or gain <= SAME * abs(base):
        return []
    return [_neighbour(best, -1 if best == rates[0] else 1)]


def _neighbour(lr: float, steps: int) -> float:
    """Return the rate so many factors away, to 4 digits so that equal rates compare equal."""
    return float(f"{lr * FACTOR**steps:.4g}")
