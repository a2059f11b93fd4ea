"""The report on images as text: the claims, then every measurement behind them as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from textwrap import fill
from typing import Any

import numpy as np

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.runner import Progress
from lora_np.experiments.terminal import Terminal
from lora_np.files import load_json
from lora_np.images.claims import (
    Results,
    chosen_pair,
    claims_table,
    of_training,
    pair_text,
    ranged,
    ratios,
    rows_of,
    scores,
)
from lora_np.images.plan import (
    BASE,
    CHANGES,
    CHOSEN,
    JUDGE,
    LCM,
    LCM_FULL,
    LCM_SMALL,
    OUTLINE,
    REFINED,
    SPEED,
    STYLE,
    STYLE_FULL,
    SUM,
    SUM_BARS,
)
from lora_np.report import Report
from lora_np.tables import Table, counted

SAMPLER_NAMES = {
    "ddim": "DDIM",
    "dpm_solver": "DPM-Solver",
    "ddpm": "DDPM",
    "consistency": "consistency",
}
NOTE = (
    "FD is the Fréchet distance of the judge's features to real images of the same prompts. It "
    "depends on the number of images, so beside it stand its floor, the FD of other real images, "
    "and KID, the kernel distance, which hardly depends on it. Spread says how much images of one "
    "prompt differ. The letter of a blurred mean is nearly always read right: trust no share of "
    "letters without FD and spread."
)
RULE = (
    "A bar is reached if every seed reaches it, and missed if none does; if some seeds do, the "
    "claim is within the spread. A difference of two contenders, taken seed by seed, counts if its "
    "mean exceeds its range. Ratios are taken seed by seed too."
)
NOT_MEASURED = Table({}, notes=["not measured"])


class Listener(Terminal):
    """Shows every piece of work that ends."""

    def __call__(self, progress: Progress) -> None:
        """Show what has ended."""
        self.show(str(progress.trial), progress.done, progress.expected)

    def _kept(self) -> int:
        path = self.out / "results.json"
        return len(load_json(path).get("done", ())) if path.exists() else 0


def images_report(results: Results) -> Report:
    """Return everything as text.

    Parameters
    ----------
    results : mapping
        What :func:`lora_np.images.study.run_images` returns.
    """
    parts = (
        (fill(RULE, WIDTH), claims_table(results)),
        (f"regular letters against steps\n{fill(NOTE, WIDTH)}", steps_table(results)),
        ("the style, on letters that it was shown", style_table(results, "seen")),
        ("the style, on letters that it was never shown", style_table(results, "unseen")),
        ("the style's weight, DDIM in 20 steps", weight_table(results)),
        (pairs_head(results), pairs_table(results)),
        ("guidance, the base, DDIM in 20 steps", guidance_table(results)),
        ("outlines, DDIM in 20 steps", outline_table(results)),
        ("what training cost", costs_table(results)),
    )
    tables = [replace(table, title=head) for head, table in parts]
    return Report([head_text(results), *tables, fill(further_text(results), WIDTH)])


def head_text(results: Results) -> str:
    """Return how much was drawn, and on how many seeds."""
    s = results["settings"]
    return fill(
        f"{counted(s['seeds'], 'seed')}, {s['n']:,} images in every set, one judge for all. Every "
        f"score is a mean over seeds, with the range in brackets.",
        WIDTH,
    )


# ------------------------------------------------------------------------- scores of drawn sets


def score_table(rows: Sequence[dict[str, Any]], first: Mapping[str, Sequence[Any]]) -> Table:
    """Return scores over seeds as a table.

    Parameters
    ----------
    rows : sequence of dict
        For each row of the table, the values over seeds by the name of a score; "floor" among them.
    first : dict
        The columns before the scores.
    """
    shares = {"KID": "kid", "letter": "letter", "style": "style", "spread": "spread"}
    columns = {
        **first,
        "FD": [ranged(row["fd"]) for row in rows],
        "FD / floor": [mean(ratios(row["fd"], row["floor"])) for row in rows],
        **{heading: [mean(row[key]) for row in rows] for heading, key in shares.items()},
    }
    return Table(columns, {"FD / floor": ".2f", "weight": "g", **dict.fromkeys(shares, ".3f")})


def drawn_sets(results: Results, work: str, part: str) -> list[dict[str, Any]]:
    """Return each set that was drawn, in order: how, and the scores over seeds."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (row for row in rows_of(results, work) if row["set"] == part):
        how = {name: row.get(name) for name in ("model", "sampler", "steps", "guidance", "weight")}
        how["weights"] = tuple(row.get("weights") or ())
        one = found.setdefault(tuple(how.values()), dict(how))
        for key in ("fd", "kid", "letter", "family", "style", "spread"):
            one.setdefault(key, []).append(row[key])
    floor = scores(results, work, part, "real")
    return [{**one, "floor": floor} for one in found.values()]


def model_name(results: Results, model: str, weights: Sequence[float] = ()) -> str:
    """Return what a reader calls a model of the report."""
    s = results["settings"]
    return {
        "real": "real images, other draws",
        BASE: "base",
        LCM: f"LCM-LoRA, r = {s['r_lcm']}",
        LCM_SMALL: f"LCM-LoRA, r = {s['r_small']}",
        LCM_FULL: "LCM, all weights",
        STYLE: f"style, LoRA r = {s['r']}",
        STYLE_FULL: "style, all weights",
        SUM: f"style + LCM-LoRA {pair_text(weights)}",
        OUTLINE: f"MLP, LoRA r = {s['r']}",
        REFINED: "with a refiner",
    }[model]


def _sampled(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = [SAMPLER_NAMES.get(row["sampler"], "") for row in rows]
    return {"sampler": names, "steps": [row["steps"] or None for row in rows]}


def steps_table(results: Results) -> Table:
    """Return scores of regular letters: a row for each model, sampler and number of steps."""
    rows = [r for r in drawn_sets(results, "regular", "all") if r["guidance"] in (None, 1.0)]
    names = [model_name(results, row["model"]) for row in rows]
    return score_table(rows, {"": names, **_sampled(rows)})


def style_table(results: Results, part: str) -> Table:
    """Return scores of styled letters, those of every control among them."""
    rows = drawn_sets(results, "styled", part)
    control = {(STYLE, "consistency"): ", no LCM-LoRA", (BASE, "ddim"): ", no style"}
    names = [
        model_name(results, row["model"], row["weights"])
        + control.get((row["model"], row["sampler"]), "")
        for row in rows
    ]
    return score_table(rows, {"": names, **_sampled(rows)})


def weight_table(results: Results) -> Table:
    """Return scores of styled letters: a row for each weight of the style, seen and unseen."""
    rows = [
        {**row, "part": part}
        for part in ("seen", "unseen")
        for row in drawn_sets(results, "weighed", part)
        if row["weight"] is not None
    ]
    weights = [row["weight"] for row in rows]
    return score_table(rows, {"letters": [row["part"] for row in rows], "weight": weights})


def guidance_table(results: Results) -> Table:
    """Return scores of regular letters: a row for each weight of guidance."""
    rows = [
        row
        for row in drawn_sets(results, "regular", "all")
        if (row["model"], row["sampler"], row["steps"]) == (BASE, "ddim", 20)
    ]
    rows.sort(key=lambda row: row["guidance"])
    return score_table(rows, {"guidance": [f"{row['guidance']:g}" for row in rows]})


def outline_table(results: Results) -> Table:
    """Return scores of outlines, or that there are none."""
    rows = [
        {**row, "part": part.removeprefix("outline-")}
        for part in ("outline-seen", "outline-unseen")
        for row in drawn_sets(results, "outlined", part)
    ]
    names = [model_name(results, row["model"]) for row in rows]
    first = {"": names, "letters": [row["part"] for row in rows]}
    return score_table(rows, first) if rows else NOT_MEASURED


# ----------------------------------------------------------------------------------- the rest


def sum_ratios(results: Results) -> dict[str, tuple[list[float], list[float], np.ndarray]]:
    """Return, for both sets of letters, the FD of each pair of weights over that of the style.

    Returns
    -------
    dict
        By "seen" and "unseen": the style's weights, those of LCM-LoRA, and the FD of each pair
        over that of the style's 2 DDIM steps (seen) or 50 (unseen).
    """
    found = {}
    rows = results["done"].get(CHOSEN, {}).get("rows", ())
    for part, (steps, _) in SUM_BARS.items():
        here = [row for row in rows if row["set"] == part]
        bars = [r["fd"] for r in here if r["model"] == STYLE and r["steps"] == steps]
        fds = {tuple(row["weights"]): row["fd"] for row in here if row["model"] == SUM}
        if not bars or not fds:
            continue
        styles, lcms = (sorted({pair[i] for pair in fds}) for i in range(2))
        cells = np.array([[fds[l1, l2] / bars[0] for l2 in lcms] for l1 in styles])
        found[part] = styles, lcms, cells
    return found


def pairs_head(results: Results) -> str:
    """Return which pair of weights was chosen, and how."""
    pair = chosen_pair(results)
    said = "weights of a sum, on a style of the other letters, one seed; 2 steps"
    return said if pair is None else f"{said}; chosen: {pair_text(pair)}"


def pairs_table(results: Results) -> Table:
    """Return the ratio of every pair of weights to the style alone: a row for each pair."""
    found = sum_ratios(results)
    if not found:
        return NOT_MEASURED
    styles, lcms, _ = next(iter(found.values()))
    pairs = [(i, j) for i in range(len(styles)) for j in range(len(lcms))]
    columns: dict[str, list[Any]] = {
        "(style, LCM)": [pair_text((styles[i], lcms[j])) for i, j in pairs]
    }
    for part, (steps, _) in SUM_BARS.items():
        if part in found:
            cells = found[part][2]
            heading = f"{part}: FD / style DDIM-{steps}'s"
            columns[heading] = [float(cells[i, j]) for i, j in pairs]
    return Table(columns, dict.fromkeys(columns, ".2f"))


def costs_table(results: Results) -> Table:
    """Return what each training took, and what it trained."""
    tried = {what: of_training(results, what, "cpu_seconds") for what in (BASE, *CHANGES)}
    cpu = {what: seconds for what, seconds in tried.items() if seconds}
    trained = {what: of_training(results, what, "parameters") for what in cpu}
    names = [
        f"{'outline, ' * (what in (OUTLINE, REFINED))}{model_name(results, what)}" for what in cpu
    ]
    judge = results["done"].get(JUDGE)
    columns: dict[str, list[Any]] = {
        "": names,
        "trained numbers": [round(mean(trained[what])) for what in cpu],
        "CPU seconds": [ranged(seconds, ".1f") for seconds in cpu.values()],
    }
    if judge is not None:
        first = ("judge, all seeds", None, judge["cpu_seconds"])
        columns = {name: [cell, *columns[name]] for name, cell in zip(columns, first)}
    return Table(columns, {"trained numbers": ",", "CPU seconds": ".1f"})


def further_text(results: Results) -> str:
    """Return what needs no table: without a prompt, copies, the time of a step."""
    said = []
    sure, near = (of_training(results, "regular", key) for key in ("sure", "nearness"))
    if sure:
        share = ranged(sure)
        said.append(f"Without a prompt, the judge is sure of a letter in {share} of the images.")
        drawn, fresh = ([one[key] for one in near] for key in ("drawn", "fresh"))
        said.append(
            f"The median distance to the nearest training image is {ranged(drawn)} for drawn "
            f"images and {ranged(fresh)} for fresh ones: a model that copies would draw nearer."
        )
    if SPEED in results["done"]:
        ratio = results["done"][SPEED]["ratio"]
        said.append(f"50 steps of DDIM take {ratio:.1f} times as long as one of LCM-LoRA.")
    return " ".join(said)
