"""The dimension d90: the smallest d that is enough.

Li et al. (2018) call d90 the smallest d whose solution reaches 90 % of the performance of full
training. Their performance is an accuracy, which counts from zero. A cross-entropy does not have
such a zero, so the gain is counted here from where training starts::

    target = base - 0.9 (base - full)           d90 = the smallest d with loss(d) <= target

base is the loss at theta0, and full the loss after training all D parameters, both on the
validation slice.

At d = D every direction can be reached, and yet training there is not full training: Adam adapts
its steps to each coordinate, and the coordinates of z are not the parameters. So d90 is also given
against training with the square P, the plain variant at d = D: that asks how many directions are
enough where the basis is random in any case.

A learning rate that suits one d does not suit another. Adam moves each of d numbers by about lr,
and P z by about lr sqrt(d), whereas full training moves theta by lr sqrt(D). The search at d
therefore starts at lr sqrt(D / d); experiments/search.py describes the rest of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lora_np.crew import one_blas_thread
from lora_np.experiments import search
from lora_np.experiments.runner import run_all
from lora_np.experiments.search import Contender, Planned
from lora_np.layers import Layer
from lora_np.methods.intrinsic import IntrinsicModel
from lora_np.methods.subspace import layers_of
from lora_np.train import Batch, Diverged, fit
from lora_np.train.equal import is_gain

SHARE = 0.9  # of full training's gain
VARIANTS = ("plain", "structured")


class Problem(NamedTuple):
    """A fresh model with memory of its own, its batches, and its loss on held-out data."""

    model: Layer
    sample: Callable[[], Batch]
    validate: Callable[[Any], float]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes
    ----------
    variant : {"full", "plain", "structured"}
    d : int or None
        None for full training.
    seed : int
        Draws the batches, and P.
    lr : float
    """

    variant: str
    d: int | None
    seed: int
    lr: float


Done = Mapping[Run, float]  # validation loss; infinite where training diverged


def target_loss(base: float, full: float) -> float:
    """Return the loss that is 90 % of the way from `base` to `full`."""
    return base - SHARE * (base - full)


def d90(losses: Mapping[int, float], base: float, full: float) -> int | None:
    """Return the smallest d that gets 90 % of the way from `base` to `full`, or None.

    Parameters
    ----------
    losses : mapping of int to float
        The validation loss by d.
    base, full : float
        The loss at theta0, and after full training.

    Raises
    ------
    ValueError
        If full training did not gain.

    Examples
    --------
    >>> from lora_np.experiments.intrinsic import d90
    >>> d90({10: 4.0, 100: 2.05, 1000: 2.0}, base=5.0, full=2.0)  # at most 2.3
    100
    """
    if not is_gain(base, full):
        raise ValueError(
            f"full training went from {base:.4g} to {full:.4g}: there is no gain to share"
        )
    target = target_loss(base, full)
    return min((d for d, loss in losses.items() if loss <= target), default=None)


def intrinsic_dimension(
    make_problem: Callable[[int], Problem],
    ds: Sequence[int],
    *,
    lr: float,
    fit_options: Mapping[str, Any],
    seeds: int = 1,
    executor: Executor | None = None,
    listen: Callable[[Run, float], None] | None = None,
    done: Mapping[Run, float] | None = None,
) -> dict[str, Any]:
    """Train at every d, plain and structured, and in full; find d90.

    Parameters
    ----------
    make_problem : callable
        ``make_problem(seed) -> Problem``: equal models, batches by the seed. Workers call it.
    ds : sequence of int
        The structured variant leaves out a d that its scales would use up.
    lr : float
        Where the search of full training for a learning rate starts.
    fit_options : mapping
        For :func:`lora_np.fit`: ``steps`` and the recipe.
    seeds : int
        The search uses the first seed; the best rate is run on the others.
    executor : concurrent.futures.Executor, optional
        Carries out the runs; by default this process.
    listen : callable, optional
        Called with every run that ends, and its loss: infinite if it diverged.
    done : mapping of Run to float, optional
        Runs that are not run again, with the losses that `listen` was called with.

    Returns
    -------
    dict
        ``D``, ``layers`` (m), ``base``, ``full`` (mean over seeds), ``target``, ``d90`` by variant,
        and ``rows``: for full training and for each variant and d, ``lr``, ``losses`` by seed and
        their mean ``loss``, None where any seed diverged. ``square`` is the plain loss at d = D and
        ``d90_square`` is d90 against it; None unless D is in `ds` and training gained there.

    Raises
    ------
    ValueError
        If a d does not fit, or full training gains nothing or diverges.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, evaluate, intrinsic_dimension
    >>> from lora_np.experiments.intrinsic import Problem
    >>> def problem(seed, x=np.array([[0, 1, 2]])):  # learn to count, with 280 parameters
    ...     model = GPT(GPTConfig(4, 3, 1, 1, 4), np.random.default_rng(0))
    ...     return Problem(model, lambda: (x, x + 1), lambda trained: evaluate(trained, x, x + 1))
    >>> intrinsic_dimension(problem, [2, 64], lr=0.05, fit_options={"steps": 30})["d90"]["plain"]
    64
    """
    D, m, starts, base = _begin(make_problem(0), ds, seeds, lr)
    ended = _run_all(make_problem, fit_options, starts, seeds, base, done, executor, listen)
    rows = _rows(starts, seeds, ended, base)
    return {"D": D, "layers": m, "base": base, **_compare(rows, base, D), "rows": rows}


def _begin(
    problem: Problem, ds: Sequence[int], seeds: int, lr: float
) -> tuple[int, int, dict[Contender, float], float]:
    """Return D, m, where each search starts, and the loss at theta0."""
    chosen = {name: p for name, p in problem.model.parameters().items() if p.trainable}
    D, m = sum(p.size for p in chosen.values()), len(layers_of(chosen))
    starts = _starts(ds, seeds, D, m, lr)
    with one_blas_thread():
        return D, m, starts, problem.validate(problem.model)


def _starts(ds: Sequence[int], seeds: int, D: int, m: int, lr: float) -> dict[Contender, float]:
    """Return by variant and d where the search for a learning rate starts."""
    if not ds or min(ds) < 1 or max(ds) > D or seeds < 1:
        raise ValueError(f"ds = {tuple(ds)}, seeds = {seeds}: expected 1 <= d <= D = {D}, a seed")
    starts: dict[Contender, float] = {("full", None): lr}
    for variant in VARIANTS:
        for d in sorted(set(ds)):
            if variant == "plain" or d > m:
                starts[variant, d] = lr * math.sqrt(D / d)
    return starts


def _compare(rows: Sequence[Mapping[str, Any]], base: float, D: int) -> dict[str, Any]:
    """Return what full training, and training with the square P, reach, and d90 against each."""
    losses = {variant: losses_of(rows, variant) for variant in ("full", *VARIANTS)}
    full, square = losses["full"].get(None), losses["plain"].get(D)
    if full is None:
        raise ValueError("full training diverged at every learning rate: try a lower lr")

    def against(goal: float) -> dict[str, int | None]:
        return {variant: d90(losses[variant], base, goal) for variant in VARIANTS}

    return {
        "full": full,
        "target": target_loss(base, full),
        "d90": against(full),
        "square": square,
        "d90_square": None if square is None or not is_gain(base, square) else against(square),
    }


def losses_of(rows: Sequence[Mapping[str, Any]], variant: str) -> dict[Any, float]:
    """Return a variant's mean loss by d (None: full); a d where a seed diverged is left out."""
    return {r["d"]: r["loss"] for r in rows if r["variant"] == variant and r["loss"] is not None}


def next_runs(starts: Mapping[Contender, float], seeds: int, done: Done, base: float) -> list[Run]:
    """Return the runs that can start now; an empty list means that all are done.

    Parameters
    ----------
    starts : mapping
        By (variant, d), where the search for its learning rate starts.
    seeds : int
    done : mapping of Run to float
    base : float
        The loss at theta0.
    """
    wanted = search.next_runs(starts, seeds, _losses(done), base)
    return [Run(*run.contender, run.seed, run.lr) for run in wanted]


def train_once(
    make_problem: Callable[[int], Problem], fit_options: Mapping[str, Any], run: Run
) -> float:
    """Return a run's validation loss, infinite if it diverged. Runs in any process."""
    with one_blas_thread():
        model, sample, validate = make_problem(run.seed)
        if run.d is not None:
            rng = np.random.default_rng([run.seed, 2])
            model = IntrinsicModel(model, run.d, rng, run.variant == "structured")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                fit(model, sample, lr=run.lr, **fit_options)
                loss = validate(model)
        except Diverged:
            return math.inf
    return loss if math.isfinite(loss) else math.inf


def _run_all(
    make_problem: Callable[[int], Problem],
    fit_options: Mapping[str, Any],
    starts: Mapping[Contender, float],
    seeds: int,
    base: float,
    done: Done | None,
    executor: Executor | None,
    listen: Callable[[Run, float], None] | None,
) -> Done:
    """Carry out the runs that `done` lacks; return all."""
    ended = dict(done or {})

    def keep(run: Run, loss: float, running: int) -> None:
        ended[run] = loss
        if listen is not None:
            listen(run, loss)

    work = partial(train_once, make_problem, fit_options)
    run_all(lambda: next_runs(starts, seeds, ended, base), work, keep, executor)
    return ended


def _losses(done: Done) -> dict[Planned, float]:
    return {Planned((run.variant, run.d), run.seed, run.lr): loss for run, loss in done.items()}


def _rows(
    starts: Mapping[Contender, float], seeds: int, done: Done, base: float
) -> list[dict[str, Any]]:
    """Return a row for full training, and for each variant and d."""
    best = search.best_rates(starts, _losses(done), base)
    return [_row(*contender, lr, seeds, done) for contender, lr in best.items()]


def _row(variant: str, d: int | None, lr: float | None, seeds: int, done: Done) -> dict[str, Any]:
    """Return the losses at the best learning rate, None where all diverged."""
    if lr is None:
        return {"variant": variant, "d": d, "lr": None, "losses": [], "loss": None}
    losses = [done[Run(variant, d, seed, lr)] for seed in range(seeds)]
    mean = math.fsum(losses) / seeds
    kept = [loss if math.isfinite(loss) else None for loss in losses]
    loss = mean if math.isfinite(mean) else None
    return {"variant": variant, "d": d, "lr": lr, "losses": kept, "loss": loss}
