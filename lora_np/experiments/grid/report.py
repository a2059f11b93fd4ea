"""The grid as text: losses over rank x lora_alpha, the best rates, the first step, the claims."""

from __future__ import annotations

from collections.abc import Callable

from lora_np.experiments.grid.claims import best_rates, cell
from lora_np.experiments.study.losses import Results, losses, mean_loss
from lora_np.experiments.study.report import head, table, verdicts
from lora_np.tables import text_table


def report(results: Results) -> str:
    """Return complete results as text."""
    s, rates = results["settings"], best_rates(results)
    common = f"learning rate {s['common_lr']:g}"
    parts = [
        head(results),
        table(results),
        "Validation loss, every cell at its best learning rate\n"
        + grid(results, lambda r, a: _loss(results, r, a)),
        f"Validation loss, every cell at {common}\n"
        + grid(results, lambda r, a: _loss(results, r, a, s["common_lr"])),
        "Best learning rate, from a parabola through the losses near it, geometric mean over "
        "seeds\n" + grid(results, lambda r, a: f"{rates[r, a]:.2g}" if (r, a) in rates else "-"),
        first_step_table(results),
        verdicts(results),
    ]
    return "\n\n".join(parts)


def grid(results: Results, shown: Callable[[int, float], str]) -> str:
    """Return a table with a row for each rank and a column for each lora_alpha."""
    s = results["settings"]
    columns = {"": [f"r = {r}" for r in s["ranks"]]}
    for alpha in s["alphas"]:
        columns[f"alpha = {alpha:g}"] = [shown(r, alpha) for r in s["ranks"]]
    return text_table(columns)


def first_step_table(results: Results) -> str:
    """Return how far the first step moves the weights, by the scale s, mean over seeds."""
    s, steps = results["settings"], results["first_step"]
    columns = {"s": [f"{scale:g}" for scale in s["scales"]]}
    for name, heading in (("sgd", "SGD"), ("adam", "Adam")):
        rows = steps[name]["norms"]
        means = [sum(row[i] for row in rows) / len(rows) for i in range(len(s["scales"]))]
        columns[heading] = [f"{mean:.3g}" for mean in means]
    title = f"||Delta W||_F after the first step, r = {s['step_rank']}, learning rate 0.001"
    return f"{title}\n{text_table(columns)}"


def _loss(results: Results, r: int, alpha: float, lr: float | None = None) -> str:
    label = cell(r, alpha)
    if not losses(results, label, lr, "validation_loss"):
        return "-"
    mean = mean_loss(results, label, lr, "validation_loss")
    return "diverged" if mean == float("inf") else f"{mean:.4f}"
