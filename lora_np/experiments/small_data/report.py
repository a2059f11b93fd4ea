"""Little text, as text: the contenders at their best rates, and at one rate for all lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lora_np.experiments.small_data.claims import NAMES, label
from lora_np.experiments.study.losses import Results, losses
from lora_np.experiments.study.report import LOSS, head, spread, table, verdicts
from lora_np.report import Report
from lora_np.tables import Table


def report(results: Results) -> Report:
    """Return complete results as text."""
    every = replace(table(results), title="Every contender")
    parts = [head(results), every, common_table(results), verdicts(results)]
    return Report(parts)


def common_table(results: Results) -> Table:
    """Return train and validation losses at one rate for all lengths, beside the base's."""
    s, rates = results["settings"], results["settings"]["common_lr"]
    said = ", ".join(f"{name} at {rates[name]:g}" for name in NAMES)
    columns: dict[str, list[Any]] = {"bytes": s["tokens"]}
    columns["base: train"] = [results["base_train_losses"][str(n)] for n in s["tokens"]]
    for name in NAMES:
        for key in ("train", "validation"):
            kind = f"{key}_loss"
            found = (losses(results, label(name, n), rates[name], kind) for n in s["tokens"])
            columns[f"{name}: {key}"] = [spread(list(by.values()), False) for by in found]
    forms = {**dict.fromkeys(columns, LOSS), "bytes": ","}
    return Table(columns, forms, title=f"One rate for all lengths: {said}")
