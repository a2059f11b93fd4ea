"""Loss at every rank, and seconds of a training, as text; then the claims."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.dylora.claims import at, lora, speed_ups
from lora_np.experiments.study.losses import Results
from lora_np.experiments.study.report import LOSS, head, spread, table, verdicts
from lora_np.report import Report
from lora_np.tables import Mean, Table


def report(results: Results) -> Report:
    """Return complete results as text."""
    s = results["settings"]
    note = (
        "Every contender. Validation and test loss of a DyLoRA are means over the ranks 1 .. "
        f"{s['r_max']}, and its learning rate was chosen by this mean; the rest is at r = "
        f"{s['r_max']}."
    )
    parts = [
        head(results),
        by_rank(results),
        replace(table(results), title=fill(note, WIDTH)),
        seconds_table(results),
        verdicts(results),
    ]
    return Report(parts)


def by_rank(results: Results) -> Table:
    """Return the test losses as a table with a row for each rank."""
    s, ranks = results["settings"], range(1, results["settings"]["r_max"] + 1)
    columns: dict[str, list[Any]] = {"r": list(ranks)}
    for label in s["dylora"]:
        heading = label.removeprefix("DyLoRA ")
        columns[heading] = [_mean(results, label, r) for r in ranks]
    columns["LoRA"] = [
        spread(list(at(results, "LoRA", r).values())) if r in s["ranks"] else None for r in ranks
    ]
    for cut in ("svd", "naive"):
        columns[cut] = [_mean(results, cut, r) for r in ranks]
    title = (
        "Test loss by rank: of DyLoRA with an update rule and a scale, of LoRA trained at the "
        f"rank,\nand of cuts of {lora(s['r_max'])}"
    )
    return Table(columns, {**dict.fromkeys(columns, LOSS), "r": ""}, title)


def seconds_table(results: Results) -> Table:
    """Return how long one training takes, and against LoRA of the largest rank."""
    s, seconds = results["settings"], results["training_seconds"]
    largest = mean(seconds[lora(s["r_max"])])
    ranks = [lora(r) for r in s["ranks"]]
    rows = {label: mean(seconds[label]) for label in (*s["dylora"], *ranks)}
    rows["LoRA of all these ranks"] = sum(rows[label] for label in ranks)
    columns = {
        "": list(rows),
        "seconds": list(rows.values()),
        f"/ {lora(s['r_max'])}": [x / largest for x in rows.values()],
    }
    one, search = (mean(ratio) for ratio in speed_ups(results))
    return Table(
        columns,
        dict.fromkeys(columns, ".2f"),
        "CPU seconds of one training, mean over seeds",
        [f"Over the mean of the DyLoRAs: one LoRA {one:.2f}, LoRA of all ranks {search:.2f}"],
    )


def _mean(results: Results, label: str, r: int) -> Mean | str:
    return spread(list(at(results, label, r).values()), False)
