"""The table of a finished sweep, and from which rank on its curve is flat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_np.experiments.rank_sweep.method import name_in
from lora_np.experiments.search import FACTOR, Contender
from lora_np.tables import Mean, Table
from lora_np.train.equal import SAME, is_gain

Results = Mapping[str, Any]  # the content of results.json
FULL: Contender = ("full", None)
ARTICLE = (2e-4, 5e-4)  # the learning rates that the article recommends for LoRA


def summary(results: Results, key: str) -> dict[Contender, tuple[float, float | None, int]]:
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


def trainable_parameters(results: Results) -> dict[Contender, int]:
    """Return by method and rank how many parameters were trained, without runs that diverged."""
    ended = [run for run in results["runs"] if run["test_loss"] is not None]
    return {(run["method"], run["rank"]): run["trainable_parameters"] for run in ended}


def table(results: Results) -> Table:
    """Return the curve as a table: means of losses over seeds, with the sample deviation."""
    settings, base = results["settings"], results["base_test_loss"]
    validation = results["base_validation_loss"]
    rows = [{"": "base", "trainable": 0, "validation": validation, "test": base}]
    curve: list[Contender] = [(name_in(results), r) for r in settings["ranks"]]
    for contender in [*curve, *([] if settings["full_lr"] is None else [FULL])]:
        rows.append({"": _label(contender), **_row(results, contender)})
    linear = settings["task"] == "linear"
    headings = ("", "trainable", "lr", "train", "validation", "test")
    headings += ("floor" if linear else "of full's gain",)
    columns = {heading: [row.get(heading) for row in rows] for heading in headings}
    forms = {"trainable": ",", "lr": ".2g", "of full's gain": ".0f %"}
    losses = dict.fromkeys(("train", "validation", "test", "floor"), ".4g")
    notes = [*([] if linear else flat(results))]
    notes += best_rates(results) if settings["task"] == "llm" else []
    return Table(columns, {**forms, **losses}, notes=notes)


def _row(results: Results, contender: Contender) -> dict[str, Any]:
    """Return what a contender trained and how far it came; that it diverged if no run ended."""
    runs = [r for r in results["runs"] if (r["method"], r["rank"]) == contender]
    if contender not in (count := trainable_parameters(results)):
        return {"lr": "diverged"}  # at every rate that was tried
    means = {key: summary(results, f"{key}_loss") for key in ("train", "validation", "test")}
    test, deviation, n = means["test"][contender]
    note = ""
    if lost := results["settings"]["seeds"] - n:
        others = "other" if lost == 1 else "others"
        note = f" ({n} of {results['settings']['seeds']} seeds, the {others} diverged)"
    row = {
        "trainable": count[contender],
        "lr": runs[-1]["lr"],
        "train": means["train"][contender][0],
        "validation": means["validation"][contender][0],
        "test": Mean(test, deviation, note=note),
    }
    base, full = results["base_test_loss"], means["test"].get(FULL, (math.nan,))[0]
    if is_gain(base, full):
        row["of full's gain"] = (base - test) / (base - full)
    if contender[1] is not None and results["settings"]["task"] == "linear":
        row["floor"] = results["floors"][contender[1]]
    return row


def best_rates(results: Results) -> list[str]:
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


def losses_by_seed(results: Results) -> dict[int, dict[int, float]]:
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


def flat_ranks(results: Results) -> list[int]:
    """Return the ranks from which on the curve is flat; empty where nothing can be compared."""
    loss = losses_by_seed(results)
    ranks = sorted(loss)
    if len(ranks) < 2 or min(len(seeds) for seeds in loss.values()) < 2:
        return []  # one seed does not have a spread to compare with

    def gains(low: int, high: int) -> bool | None:
        return beats(loss[high], loss[low], results["base_test_loss"])

    rough = [low for i, low in enumerate(ranks) if any(gains(low, q) for q in ranks[i + 1 :])]
    return [r for r in ranks if all(r > low for low in rough)]


def flat(results: Results) -> list[str]:
    """Return a line that says from which rank on the curve is flat, beyond the spread."""
    found, beyond = flat_ranks(results), "beyond two standard errors"
    if not found:
        return []
    if found[0] == max(losses_by_seed(results)):
        return [f"not flat yet: r = {found[0]} still gains {beyond}"]
    return [f"flat from r = {found[0]} on: no further gain {beyond}, seed by seed"]
