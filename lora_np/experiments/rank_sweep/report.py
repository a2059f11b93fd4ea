"""The table of a finished sweep, and from which rank on its curve is flat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np.experiments.rank_sweep.method import name_in
from lora_np.experiments.search import FACTOR, Contender
from lora_np.tables import plus_minus, text_row
from lora_np.train.equal import SAME, is_gain

FULL: Contender = ("full", None)
ARTICLE = (2e-4, 5e-4)  # the learning rates that the article recommends for LoRA
WIDTHS = (8, 10, 10, 10, 12, 20, 16)  # of the table's columns


def summary(results: dict[str, Any], key: str) -> dict[Contender, tuple[float, float | None, int]]:
    """Return by method and rank the mean of `key` over seeds, its deviation, and the count.

    Runs that diverged are left out. The deviation is that of the sample; None for a single run.
    """
    found: dict[Contender, list[float]] = {}
    for run in results["runs"]:
        if run[key] is not None:
            found.setdefault((run["method"], run["rank"]), []).append(run[key])
    return {
        contender: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else None, len(v))
        for contender, v in found.items()
    }


def trainable_parameters(results: dict[str, Any]) -> dict[Contender, int]:
    """Return by method and rank how many parameters were trained, without runs that diverged."""
    ended = [run for run in results["runs"] if run["test_loss"] is not None]
    return {(run["method"], run["rank"]): run["trainable_parameters"] for run in ended}


def table(results: dict[str, Any]) -> str:
    """Return the curve as a table: means of losses over seeds, with the sample deviation."""
    linear = results["settings"]["task"] == "linear"
    count = trainable_parameters(results)
    rate = {(run["method"], run["rank"]): run["lr"] for run in results["runs"]}
    columns = {k: summary(results, f"{k}_loss") for k in ("train", "validation", "test")}
    base, full = results["base_test_loss"], columns["test"].get(FULL, (math.nan,))[0]
    last = "floor" if linear else "of full's gain"
    validation = f"{results['base_validation_loss']:.4g}"
    lines = [
        text_row(("", "trainable", "lr", "train", "validation", "test", last), WIDTHS),
        text_row(("base", 0, "", "", validation, f"{base:.4g}"), (*WIDTHS[:5], 11)),
    ]
    settings = results["settings"]
    curve: list[Contender] = [(name_in(results), r) for r in settings["ranks"]]
    for contender in [*curve, *([] if settings["full_lr"] is None else [FULL])]:
        rank, label = contender[1], _label(contender)
        if contender not in count:
            lines.append(f"{label:<8}  diverged at every learning rate that was tried")
            continue
        test, deviation, n = columns["test"][contender]
        spread = plus_minus(deviation, ".2g")
        if lost := settings["seeds"] - n:
            others = "other" if lost == 1 else "others"
            spread += f" ({n} of {settings['seeds']} seeds, the {others} diverged)"
        if linear:
            final = "" if rank is None else f"{results['floors'][rank]:.4g}"
        else:
            share = 100 * (base - test) / (base - full) if is_gain(base, full) else None
            final = "" if share is None else f"{share:.0f} %"
        means = (f"{columns[slice_][contender][0]:.4g}" for slice_ in ("train", "validation"))
        trained = label, f"{count[contender]:,}", f"{rate[contender]:.2g}"
        lines.append(text_row((*trained, *means, f"{test:>11.4g}{spread:<9}", final), WIDTHS))
    if not linear:
        lines += flat(results)
    if settings["task"] == "llm":
        lines += best_rates(results)
    return "\n".join(lines)


def best_rates(results: dict[str, Any]) -> list[str]:
    """Return lines that say whether the best rate at each rank lies where the article says."""
    best = {run["rank"]: run["lr"] for run in results["runs"] if run["rank"] is not None}
    if not best:
        return []
    low, high = ARTICLE
    tried = sorted(t["lr"] for t in results["trials"] if t["rank"] is not None)
    rates = ", ".join(f"{lr:.2g} at r = {rank}" for rank, lr in sorted(best.items()))
    inside = [f"r = {rank}" for rank, lr in sorted(best.items()) if low <= lr <= high]
    where = f"inside it at {', '.join(inside)} alone" if inside else "outside it at every rank"
    if len(inside) == len(best):
        where = "inside it at every rank"
    return [
        f"best rates: {rates}",
        f"the article's range, {low:g} to {high:g}: the best rate is {where}",
        f"(tried {tried[0]:.2g} to {tried[-1]:.2g}, neighbours a factor of {FACTOR:g} apart, at a "
        f"scale of 1 and for {results['settings']['steps']} steps)",
    ]


def _label(contender: Contender) -> str:
    method, rank = contender
    return method if rank is None else f"r = {rank}"


def losses_by_seed(results: dict[str, Any]) -> dict[int, dict[int, float]]:
    """Return the test losses of the method by rank and seed, without runs that diverged."""
    loss: dict[int, dict[int, float]] = {}
    for run in results["runs"]:
        if run["rank"] is not None and run["test_loss"] is not None:
            loss.setdefault(run["rank"], {})[run["seed"]] = run["test_loss"]
    return loss


def beats(one: dict[int, float], other: dict[int, float], base: float) -> bool | None:
    """Return whether `one` has lower losses than `other`, beyond the spread over seeds.

    Equal seeds see equal batches, so a gain is the mean of the differences seed by seed; it counts
    beyond two of its standard errors. That is a rule of thumb: with three seeds one in ten such
    gains would be chance. Losses that count as equal (``train.equal.SAME``) are not a
    gain, however small their spread.

    Parameters
    ----------
    one, other : dict of int to float
        Losses by seed.
    base : float
        The loss before training.

    Returns
    -------
    bool or None
        None if they share fewer than two seeds: one difference does not have a spread.
    """
    d = [other[seed] - one[seed] for seed in one if seed in other]
    if len(d) < 2:
        return None
    two_errors = 2.0 * float(np.std(d, ddof=1)) / math.sqrt(len(d))
    return float(np.mean(d)) > max(two_errors, SAME * abs(base))


def flat_ranks(results: dict[str, Any]) -> list[int]:
    """Return the ranks from which on the curve is flat; empty where nothing can be compared."""
    loss = losses_by_seed(results)
    ranks = sorted(loss)
    if len(ranks) < 2 or min(len(seeds) for seeds in loss.values()) < 2:
        return []  # one seed does not have a spread to compare with

    def gains(low: int, high: int) -> bool | None:
        return beats(loss[high], loss[low], results["base_test_loss"])

    rough = [low for i, low in enumerate(ranks) if any(gains(low, q) for q in ranks[i + 1 :])]
    return [r for r in ranks if all(r > low for low in rough)]


def flat(results: dict[str, Any]) -> list[str]:
    """Return a line that says from which rank on the curve is flat, beyond the spread."""
    found, beyond = flat_ranks(results), "beyond two standard errors"
    if not found:
        return []
    if found[0] == max(losses_by_seed(results)):
        return [f"not flat yet: r = {found[0]} still gains {beyond}"]
    return [f"flat from r = {found[0]} on: no further gain {beyond}, seed by seed"]
