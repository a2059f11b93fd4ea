"""The four questions of "LoRA Without Regret" as text: a table of each, then the claims."""

from __future__ import annotations

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
from lora_np.experiments.study.report import head, spread, table, verdicts
from lora_np.tables import text_table


def report(results: Results) -> str:
    """Return complete results as text."""
    s = results["settings"]
    bytes_a_step = s["batch_size"] * s["block_size"]
    parts = [
        head(results),
        f"Learning rates. lora_alpha is {s['alpha']:g} at every rank\n{rates_table(results)}",
        "Layers, at about equal trainable parameters\n"
        + table(results, [layer_label(results, where) for where in LAYERS]),
        "Capacity. Test loss after so many steps, on fresh data\n"
        + _losses_table(results, {f"{n} ({n * bytes_a_step:,} B)": n for n in s["capacity_steps"]}),
        "Batch size. Test loss after the same amount of data\n"
        + _losses_table(results, {f"batch {n}": n for n in s["batch_sizes"]}, batch=True),
        f"Every contender\n{table(results)}",
        verdicts(results),
    ]
    return "\n\n".join(parts)


def rates_table(results: Results) -> str:
    """Return the best learning rates, means over seeds, and how far above full's they lie."""
    s, ratios = results["settings"], rate_ratios(results)
    names = {FULL: None, **{lora(r): r for r in s["rate_ranks"]}}
    columns: dict[str, list[str]] = {"": list(names), "best lr": [], "/ full's": [], "test": []}
    for name, r in names.items():
        found = list(minima(results, name).values())
        columns["best lr"].append(f"{sum(found) / len(found):.3g}" if found else "diverged")
        ratio = ratios[r] if r is not None else [1.0]
        columns["/ full's"].append(f"{sum(ratio) / len(ratio):.2f}" if ratio else "")
        columns["test"].append(spread(list(at_steps(results, name, s["steps"]).values())))
    return text_table(columns)


def _losses_table(results: Results, headings: dict[str, int], batch: bool = False) -> str:
    names = [FULL, *(lora(r) for r in results["settings"]["ranks"])]
    read = at_batch if batch else at_steps
    columns = {"": names}
    for heading, value in headings.items():
        columns[heading] = [spread(list(read(results, n, value).values())) for n in names]
    return text_table(columns)
