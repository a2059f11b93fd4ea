"""Which trials to run next, as a function of those that are done.

Every rank, and full fine-tuning, gets the same search for a learning rate (experiments/search.py),
which looks at the validation loss alone. The test loss is only reported.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lora_np.experiments import search
from lora_np.experiments.search import Contender, Planned


@dataclass(frozen=True)
class Trial:
    """One training run.

    ``str(trial)`` names the file of the trained parameters, and no two trials have the same name.
    The fields are checked, since they may come from a file.

    Attributes
    ----------
    method : str
        What is trained: "lora", "full", or another identifier.
    rank : int or None
        None for a method without a rank, such as "full".
    seed : int
        Draws the batches and, for LoRA, A.
    lr : float

    Raises
    ------
    ValueError
        If a field has another type or is out of range.

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


def check_numbers(settings: Any, counts: tuple[str, ...], rates: tuple[str, ...]) -> None:
    """Raise ValueError unless counts are at least 1, rates are positive, and there is a rank."""
    for name in counts:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} = {getattr(settings, name)}, expected at least 1")
    for name in rates:
        if not 0.0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} = {getattr(settings, name)}, expected a positive number")
    if not settings.ranks:
        raise ValueError("ranks is empty: name at least one")


def contenders(settings: Any) -> list[Contender]:
    """Return what is compared: the method at every rank, and full fine-tuning if it has a rate."""
    full = [] if settings.full_lr is None else [("full", None)]
    return [*full, *((settings.method_name, r) for r in settings.ranks)]


def next_trials(settings: Any, done: Done, base: float) -> list[Trial]:
    """Return the trials that can start now; an empty list means that the sweep is complete.

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
    wanted = search.next_runs(_starts(settings), settings.seeds, _losses(done), base)
    return [Trial(*run.contender, run.seed, run.lr) for run in wanted]


def chosen_trials(settings: Any, done: Done, base: float) -> list[Trial]:
    """Return the trials that make up the curve: every contender at its best rate, all seeds."""
    best = search.best_rates(_starts(settings), _losses(done), base)
    found = {contender: lr for contender, lr in best.items() if lr is not None}
    every = [Trial(*c, seed, lr) for c, lr in found.items() for seed in range(settings.seeds)]
    return [trial for trial in every if trial in done]


def expected_number(settings: Any) -> int:
    """Return how many trials a sweep takes if no search goes beyond its first three rates."""
    return len(contenders(settings)) * (3 + settings.seeds - 1)


def _starts(settings: Any) -> dict[Contender, float]:
    """Return where the search of each contender for a learning rate starts."""
    rates = {"full": settings.full_lr}
    return {c: rates.get(c[0], settings.lora_lr) for c in contenders(settings)}


def _losses(done: Done) -> dict[Planned, float]:
    return {
        Planned((t.method, t.rank), t.seed, t.lr): math.inf if loss is None else loss
        for t, loss in done.items()
    }
