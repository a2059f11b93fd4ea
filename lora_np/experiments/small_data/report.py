"""Little text, as text: the contenders at their best rates, and at one rate for all lengths."""

from __future__ import annotations

from lora_np.experiments.small_data.claims import NAMES, label
from lora_np.experiments.study.losses import Results, losses
from lora_np.experiments.study.report import head, spread, table, verdicts
from lora_np.tables import text_table


def report(results: Results) -> str:
    """Return complete results as text."""
    rates = results["settings"]["common_lr"]
    said = ", ".join(f"{name} at {rates[name]:g}" for name in NAMES)
    common = f"One rate for all lengths: {said}\n{common_table(results)}"
    return "\n\n".join([head(results), table(results), common, verdicts(results)])


def common_table(results: Results) -> str:
    """Return train and validation losses at one rate for all lengths, beside the base's."""
    s, columns = results["settings"], {}
    columns["bytes"] = [f"{n:,}" for n in s["tokens"]]
    columns["base: train"] = [f"{results['base_train_losses'][str(n)]:.4f}" for n in s["tokens"]]
    for name in NAMES:
        for key in ("train", "validation"):
            lr = s["common_lr"][name]
            found = (losses(results, label(name, n), lr, f"{key}_loss") for n in s["tokens"])
            columns[f"{name}: {key}"] = [spread(list(by.values()), None) for by in found]
    return text_table(columns)
