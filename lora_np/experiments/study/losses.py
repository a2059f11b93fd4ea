"""Losses of a study's results: by seed, at a learning rate, along the curve of learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Any]


def losses(
    results: Results, label: str, lr: float | None = None, key: str = "test_loss"
) -> dict[int, float]:
    """Return a contender's losses by seed; infinite where training diverged.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    label : str
        The contender.
    lr : float, optional
        By default its best learning rate. If every rate diverged, the losses are infinite.
    key : str
        What to read of the runs.

    Examples
    --------
    >>> from lora_np.experiments.study.losses import losses
    >>> run = {"label": "full", "seed": 0, "lr": 0.1, "test_loss": 2.0}
    >>> losses({"trials": [run], "best": {"full": 0.1}}, "full")
    {0: 2.0}
    """
    lr = results["best"][label] if lr is None else lr
    runs = [t for t in results["trials"] if t["label"] == label]
    if lr is None:
        return {t["seed"]: math.inf for t in runs}
    return {t["seed"]: _loss(t, key) for t in runs if t["lr"] == lr}


def mean_loss(
    results: Results, label: str, lr: float | None = None, key: str = "test_loss"
) -> float:
    """Return the mean over seeds; infinite if a seed diverged, or if there is no run."""
    found = losses(results, label, lr, key)
    return sum(found.values()) / len(found) if found else math.inf


def curve(
    results: Results, label: str, key: str = "validation_loss"
) -> dict[float, dict[int, float]]:
    """Return a contender's losses by learning rate, ascending, and by seed."""
    rates = sorted({t["lr"] for t in results["trials"] if t["label"] == label})
    return {lr: losses(results, label, lr, key) for lr in rates}


def minima(results: Results, label: str) -> dict[int, float]:
    """Return for each seed the learning rate at which the curve has its minimum.

    The parabola through the best rate of the study and its two neighbours is taken, over the
    logarithm of the rate; the neighbours must have been run on the same seeds
    (``Contender.around``). A minimum that would lie beyond a neighbour is put at the neighbour.

    Examples
    --------
    >>> from lora_np.experiments.study.losses import minima
    >>> parabola = {0.1: 2.0, 0.2: 1.0, 0.4: 2.0}  # the same on both sides
    >>> runs = [
    ...     {"label": "full", "seed": 0, "lr": lr, "validation_loss": loss}
    ...     for lr, loss in parabola.items()
    ... ]
    >>> round(minima({"trials": runs, "best": {"full": 0.2}}, "full")[0], 12)
    0.2
    """
    best, found = results["best"][label], curve(results, label)
    if best is None:
        return {}
    rates = sorted(found)
    i = rates.index(best)
    near = rates[max(0, i - 1) : i + 2]
    return {
        seed: lowest_point({lr: found[lr][seed] for lr in near if seed in found[lr]})
        for seed in found[best]
    }


def lowest_point(tried: Mapping[float, float]) -> float:
    """Return where a parabola through the losses at three rates has its minimum.

    Where there are fewer finite losses, or where the parabola has its lowest point outside, the
    best rate among them is returned.
    """
    finite = {lr: loss for lr, loss in sorted(tried.items()) if loss < math.inf}
    if not finite:
        return math.nan
    best = min(finite, key=lambda lr: (finite[lr], lr))
    if len(finite) < 3:
        return best
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(lr), loss) for lr, loss in finite.items())
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    if right <= left:
        return best  # not convex
    # The slope is `left` midway between the first two points and `right` between the last two.
    middle = (x0 + x1) / 2 - left * (x2 - x0) / 2 / (right - left)
    return best if not x0 < middle < x2 else math.exp(middle)


def _loss(trial: Mapping[str, Any], key: str) -> float:
    if "diverged" in trial:  # it may lack what the study measures further
        return math.inf
    return math.inf if trial[key] is None else trial[key]
