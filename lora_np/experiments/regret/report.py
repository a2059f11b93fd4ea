"""The four questions of "LoRA Without Regret" as text: a table of each, then the claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_np.experiments.regret.claims import (
    FULL,
    LAYERS,
    at_batch,
    at_steps,
    layer_label,
    lora,
    rate_ratios,
)
from lora_np.experiments.study.losses import Results, minima
from lora_np.experiments.study.report import LOSS, head, spread, table, verdicts
from lora_np.report import Report
from lora_np.tables import Table


def report(results: Results) -> Report:
    """Return complete results as text."""
    s = results["settings"]
    names = [FULL, *map(lora, s["ranks"])]
    bytes_a_step = s["batch_size"] * s["block_size"]
    parts = [
        head(results),
        rates_table(results),
        replace(
            table(results, [layer_label(results, where) for where in LAYERS]),
            title="Layers, at about equal trainable parameters",
        ),
        _losses_table(
            "Capacity. Test loss after so many steps, on fresh data",
            {f"{n} ({n * bytes_a_step:,} B)": n for n in s["capacity_steps"]},
            lambda name, n: at_steps(results, name, n),
            names,
        ),
        _losses_table(
            "Batch size. Test loss after the same amount of data",
            {f"batch {n}": n for n in s["batch_sizes"]},
            lambda name, n: at_batch(results, name, n),
            names,
        ),
        replace(table(results), title="Every contender"),
        verdicts(results),
    ]
    return Report(parts)


def rates_table(results: Results) -> Table:
    """Return the best learning rates, means over seeds, and how far above full's they lie."""
    s, ratios = results["settings"], rate_ratios(results)
    names = {FULL: None, **{lora(r): r for r in s["rate_ranks"]}}
    columns: dict[str, list[Any]] = {"": list(names), "best lr": [], "/ full's": [], "test": []}
    for name, r in names.items():
        found = list(minima(results, name).values())
        columns["best lr"].append(sum(found) / len(found) if found else "diverged")
        ratio = ratios[r] if r is not None else [1.0]
        columns["/ full's"].append(sum(ratio) / len(ratio) if ratio else None)
        columns["test"].append(spread(list(at_steps(results, name, s["steps"]).values())))
    title = f"Learning rates. lora_alpha is {s['alpha']:g} at every rank"
    return Table(columns, {"best lr": ".3g", "/ full's": ".2f", "test": LOSS}, title)


def _losses_table(
    title: str,
    headings: Mapping[str, int],
    read: Callable[[str, int], Mapping[int, float]],
    names: Sequence[str],
) -> Table:
    """Return losses: a row for each name, and a column for each value that `read` takes."""
    columns: dict[str, Sequence[Any]] = {"": names}
    for heading, value in headings.items():
        columns[heading] = [spread(list(read(name, value).values())) for name in names]
    return Table(columns, dict.fromkeys(columns, LOSS), title)
