"""The tables of the study of precision, as text."""

from __future__ import annotations

from typing import Any

from lora_np.report import Report
from lora_np.tables import Table, counted


def report(results: dict[str, Any]) -> Report:
    """Return all tables as text.

    Parameters
    ----------
    results : dict
        What :func:`lora_np.experiments.precision.precision_study` returns.
    """
    tables = (storage_table, merging_table, sizes_table, scaling_table)
    return Report([table(results) for table in tables])


def storage_table(results: dict[str, Any]) -> Table:
    """Return what a base takes in each form, and the losses before and after training."""
    s, whole = results["settings"], results["storage"][0]["bytes"]
    rows = [
        {
            "base": row["form"],
            "bytes": row["bytes"],
            "share": row["bytes"] / whole,
            "error of logits": row["error"],
            "loss before": row["before"],
            "loss after": row["after"],
        }
        for row in results["storage"]
    ]
    forms = {"bytes": ",", "share": ".1f %", "error of logits": ".1e"}
    losses = dict.fromkeys(("loss before", "loss after"), ".4f")
    title = (
        f"a base of {results['parameters']:,} parameters; LoRA, r = {s['r']}, lr {s['lr']:g}, "
        f"{counted(s['steps'], 'step')}"
    )
    return Table.of_rows(rows, {**forms, **losses}, title)


def merging_table(results: dict[str, Any]) -> Table:
    """Return what becomes of the trained change when it is merged into each form."""
    rows = [
        {
            "merged in": row["form"],
            "|dW| / |W0|": row["size"],
            "unchanged": row["unchanged"],
            "rounding / |dW|": row["rounding"],
            "not restored": row["not_restored"],
        }
        for row in results["merging"]
    ]
    forms = {"|dW| / |W0|": ".3f", "rounding / |dW|": ".1e"}
    shares = {"unchanged": ".1f %", "not restored": ".1f %"}
    return Table.of_rows(rows, {**forms, **shares}, "the trained change, merged")


def sizes_table(results: dict[str, Any]) -> Table:
    """Return the share of entries that a random change leaves as they are, by its size."""
    sizes, found = results["settings"]["sizes"], results["sizes"]
    columns: dict[str, list[Any]] = {"merged in": list(found)}
    for i, size in enumerate(sizes):
        columns[f"{size:g}"] = [shares[i] for shares in found.values()]
    title = "entries that a random change leaves unchanged, by |dW| / |W0|"
    return Table(columns, dict.fromkeys(columns, ".1f %"), title)


def scaling_table(results: dict[str, Any]) -> Table:
    """Return which gradients float16 loses, with and without a loss scale."""
    rows = [
        {
            "gradients times": f"2^{row['power']}",
            "loss scale": "none" if row["scale"] is None else row["scale"],
            "lost": row["lost"],
            "loss after": "diverged" if row["loss"] is None else row["loss"],
        }
        for row in results["scaling"]
    ]
    steps = counted(results["settings"]["scaling_steps"], "step")
    title = f"gradients made small and passed back in float16; {steps}"
    return Table.of_rows(rows, {"loss scale": "g", "lost": ".1f %", "loss after": ".4f"}, title)
