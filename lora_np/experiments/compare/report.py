"""The comparison as text and as a CSV file: losses, costs, order, claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.compare.claims import ELSEWHERE, entering, ratios, share
from lora_np.experiments.compare.measure import LATENCIES, TIMES
from lora_np.experiments.compare.order import UNDECIDED, orders, pairs_note
from lora_np.experiments.search import MOST_RATES
from lora_np.experiments.study.losses import Results, losses
from lora_np.experiments.study.report import FORMS, row, verdicts
from lora_np.report import Report
from lora_np.tables import Table, counted

COLUMNS = (
    *("label", "family", "method", "base", "trainable", "share", "optimizer_bytes", "peak_bytes"),
    *("peak_over_full", "step_seconds", "step_over_lora", "step_over_full"),
    *("latency_1_over_full", "latency_32_over_full", "merges", "file_bytes", "lr", "train_loss"),
    *("validation_loss", "test_loss", "test_sd", "forgetting", "order"),
)
HERE = (
    "What articles claim is tested here, on a small model and one text: losses seed by seed, times "
    "round by round. Numbers and bytes are counted, and need no interval. A verdict says whether a "
    "claim holds here; no table of one model shows that it holds of all."
)
LOSSES = ("train_loss", "validation_loss", "test_loss", "pretrain_loss")


def report(results: Results) -> Report:
    """Return complete results as text."""
    parts = [
        head(results),
        replace(losses_table(results), title="What every row learned"),
        fill(pairs_note(results), WIDTH),
        replace(costs_table(results), title="What it cost"),
        fill(costs_note(results), WIDTH),
        fill(HERE, WIDTH),
        verdicts(results),
        elsewhere(),
    ]
    return Report(parts)


def elsewhere() -> str:
    """Return the claims that the table cannot decide, and where they are decided."""
    lines = (f"    {says}: {where}" for says, where in ELSEWHERE.items())
    return "\n".join(["Claims that no row of this table decides, and what does", *lines])


def head(results: Results) -> str:
    """Say what was trained, for how long, on how many seeds, and what the losses are."""
    s = results["settings"]
    said = (
        f"A GPT of d = {s['d_model']}, {counted(s['n_layer'], 'layer')} and a context of "
        f"{s['block_size']} bytes, pretrained in {counted(s['pretrain_steps'], 'step')} and "
        f"adapted in {counted(s['steps'], 'step')} of {s['batch_size']} x "
        f"{s['changes']['block_size']} bytes; {counted(s['seeds'], 'seed')}. Losses are in nats a "
        "byte, the mean over seeds +- the deviation, at the best learning rate of each row; "
        "forgetting is the rise of the loss on the pretraining text, "
        f"{results['base_pretrain_loss']:.4f} before training. Before "
        f"training the validation loss is {results['base_validation_loss']:.4f} and the test loss "
        f"{results['base_test_loss']:.4f}."
    )
    return fill(said, WIDTH)


def losses_table(results: Results) -> Table:
    """Return what the contenders learned; rows stand in the order of rows.py."""
    order, rows, notes = orders(results), [], []
    for label in results["best"]:
        cells = row(results, label)
        cells.pop("trainable")
        if at_limit(results, label):
            cells["lr"] = f"{cells['lr']:.2g}*"
            notes = [f"* the best of {MOST_RATES} rates is an end, where the search stopped"]
        rows.append({**cells, "order": order[label]})
    return Table.of_rows(rows, FORMS, notes=notes)


def at_limit(results: Results, label: str) -> bool:
    """Return whether a search ended at its limit while it still gained."""
    rates = sorted({t["lr"] for t in results["trials"] if t["label"] == label})
    return len(rates) >= MOST_RATES and results["best"][label] in (rates[0], rates[-1])


def costs_table(results: Results) -> Table:
    """Return what the contenders cost."""
    latencies = {f"lat {size}": f"latency_{size}" for size in LATENCIES}
    rows = [
        {
            "": label,
            "numbers": results["measured"][label]["trainable"],
            "share": share(results, label),
            "Adam B": results["measured"][label]["optimizer_bytes"],
            "file B": results["measured"][label]["file_bytes"],
            "peak": over(results, label, "full", "peak_bytes"),
            "step/lora": over(results, label, "lora", "step_seconds"),
            "step": over(results, label, "full", "step_seconds"),
            **{heading: over(results, label, "full", key) for heading, key in latencies.items()},
        }
        for label in results["best"]
    ]
    counts = dict.fromkeys(("numbers", "Adam B", "file B"), ",")
    ratios_of = dict.fromkeys(("peak", "step/lora", "step", *latencies), ".2f")
    return Table.of_rows(rows, {**counts, **ratios_of, "share": ".2f %"}, missing="-")


def over(results: Results, label: str, role: str, key: str) -> float | None:
    """Return a cost over that of the row of a role: of times, the median over rounds."""
    reference = entering(results, role)
    if not reference:
        return None
    if key in TIMES:
        return statistics.median(ratios(results, label, reference[0], key))
    costs = results["measured"]
    return costs[label][key] / costs[reference[0]][key]


def costs_note(results: Results) -> str:
    """Say how costs were measured, and how far times spread over the rounds."""
    s, spreads = results["settings"], []
    without = [role for role in ("full", "lora") if not entering(results, role)]
    dashes = f" A dash: there is no row of {' and '.join(without)} here." if without else ""
    for label in results["best"]:
        for key in TIMES:
            for other in entering(results, "full"):
                found = ratios(results, label, other, key)
                spreads.append((max(found) - min(found)) / statistics.median(found))
    spread = ""
    if spreads:
        spread = (
            "; over the rounds a ratio spreads by "
            f"{100 * statistics.median(spreads):.0f} % (median of all ratios; at most "
            f"{100 * max(spreads):.0f} %)"
        )
    merged = [label for label in results["best"] if results["measured"][label]["merges"]]
    return (
        "Peak, step and lat are over those of full fine-tuning, step/lora is over LoRA's step. "
        "Peak is the most memory that a step holds, and Adam the optimizer's part of it. "
        f"Times are medians over {counted(s['rounds'], 'round')} in which all take turns, in one "
        f"process with one thread{spread}. Latencies are of a "
        f"forward of {s['changes']['block_size']} bytes at batch 1 and 32, of the merged model "
        f"where there is one ({len(merged)} of {len(results['best'])}).{dashes} Files are in "
        "PEFT's form where there is one: it stacks q, k and v of a GPT-2, and the B of a LoRA then "
        "holds zeros beside the blocks of the three."
    )


def table(results: Results) -> Table:
    """Return all numbers of the contenders, with the columns of the CSV file."""
    order = orders(results)
    return Table.of_rows([_record(results, label, order[label]) for label in results["best"]])


def _record(results: Results, label: str, order: str) -> dict[str, Any]:
    costs, about = results["measured"][label], results["settings"]["rows"][label]
    means = {key: _mean(list(losses(results, label, key=key).values())) for key in LOSSES}
    tests = [loss for loss in losses(results, label).values() if math.isfinite(loss)]
    after = means.pop("pretrain_loss")
    latencies = {f"{key}_over_full": over(results, label, "full", key) for key in TIMES[1:]}
    found = {
        "label": label,
        "family": about["family"],
        "method": about["method"] or "",
        **{key: costs[key] for key in ("base", "trainable", "optimizer_bytes", "peak_bytes")},
        "share": share(results, label),
        "peak_over_full": over(results, label, "full", "peak_bytes"),
        "step_seconds": statistics.median(costs["step_seconds"]),
        "step_over_lora": over(results, label, "lora", "step_seconds"),
        "step_over_full": over(results, label, "full", "step_seconds"),
        **latencies,
        "merges": costs["merges"],
        "file_bytes": costs["file_bytes"],
        "lr": results["best"][label],
        **means,
        "test_sd": statistics.stdev(tests) if len(tests) > 1 else None,
        "forgetting": None if after is None else after - results["base_pretrain_loss"],
        "order": "" if order == UNDECIDED else order,
    }
    return {column: found[column] for column in COLUMNS}


def write_csv(results: Results, path: str | Path) -> None:
    """Write the table as CSV: plain numbers, a cell is empty where there is none.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    path : str or Path
    """
    from lora_np.files import save_text

    save_text(path, table(results).csv())


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean; None where a seed diverged, or there is no run."""
    return statistics.mean(values) if values and all(map(math.isfinite, values)) else None
