"""The grid as text: losses over rank x lora_alpha, the best rates, the first step, the claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lora_np.experiments.grid.claims import best_rates, cell
from lora_np.experiments.study.losses import Results, losses, mean_loss
from lora_np.experiments.study.report import head, table, verdicts
from lora_np.report import Report
from lora_np.tables import Table


def report(results: Results) -> Report:
    """Return complete results as text."""
    s, rates = results["settings"], best_rates(results)
    parabola = (
        "Best learning rate, from a parabola through the losses near it, geometric mean over seeds"
    )
    parts = [
        head(results),
        replace(table(results), title="Every contender"),
        grid(
            results,
            "Validation loss, every cell at its best learning rate",
            lambda r, a: _loss(results, r, a),
        ),
        grid(
            results,
            f"Validation loss, every cell at learning rate {s['common_lr']:g}",
            lambda r, a: _loss(results, r, a, s["common_lr"]),
        ),
        grid(results, parabola, lambda r, a: rates.get((r, a)), ".2g"),
        first_step_table(results),
        verdicts(results),
    ]
    return Report(parts)


def grid(
    results: Results,
    title: str,
    value: Callable[[int, float], float | str | None],
    form: str = ".4f",
) -> Table:
    """Return a table with a row for each rank and a column for each lora_alpha."""
    s = results["settings"]
    columns: dict[str, list[Any]] = {"": [f"r = {r}" for r in s["ranks"]]}
    for alpha in s["alphas"]:
        columns[f"alpha = {alpha:g}"] = [value(r, alpha) for r in s["ranks"]]
    return Table(columns, dict.fromkeys(columns, form), title, missing="-")


def first_step_table(results: Results) -> Table:
    """Return how far the first step moves the weights, by the scale s, mean over seeds."""
    s, steps = results["settings"], results["first_step"]
    columns = {"s": s["scales"]}
    for name, heading in (("sgd", "SGD"), ("adam", "Adam")):
        rows = steps[name]["norms"]
        means = [sum(row[i] for row in rows) / len(rows) for i in range(len(s["scales"]))]
        columns[heading] = means
    title = f"||Delta W||_F after the first step, r = {s['step_rank']}, learning rate 0.001"
    return Table(columns, {"s": "g", "SGD": ".3g", "Adam": ".3g"}, title)


def _loss(results: Results, r: int, alpha: float, lr: float | None = None) -> float | str | None:
    label = cell(r, alpha)
    if not losses(results, label, lr, "validation_loss"):
        return None
    mean = mean_loss(results, label, lr, "validation_loss")
    return "diverged" if mean == float("inf") else mean
