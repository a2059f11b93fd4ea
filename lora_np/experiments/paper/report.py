"""The tables and claims of section 7 as text, our numbers beside those of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np

from lora_np.experiments.claims import claims_text
from lora_np.experiments.search import lowest
from lora_np.tables import counted, plus_minus, text_row

WIDTH = 100  # characters of a line
PAPER = ("| paper: r", "WikiSQL", "MultiNLI")
LOSSES = (8, 21, 12, 9, 10)  # widths: our learning rate and loss, and what the paper has


def report(content: Mapping[str, Any]) -> str:
    """Return the content of ``paper.json`` as text."""
    s = content["settings"]["text"]
    head = (
        f"Section 7 of Hu et al. (2021), arXiv:2106.09685, on a GPT of d = {s['d_model']}, "
        f"{counted(s['n_layer'], 'layer')}: {counted(s['seeds'], 'seed')}, "
        f"{counted(s['steps'], 'step')}. Losses are on the test "
        f"slice, in nats a byte, +- the deviation over seeds; the base's is "
        f"{content['base_test_loss']:.4f}. The paper: GPT-3, d = 12288, accuracy in percent."
    )
    base = content["base_test_loss"]
    tables = (table5(content["table5"], base), table6(content["table6"]), table7(content["table7"]))
    return "\n\n".join([fill(head, WIDTH), *tables, claims(content["claims"])])


def table5(table: Mapping[str, Any], base: float) -> str:
    """Return table 5 as text; `base` is the loss without an adapter."""
    lines = [
        f"Table 5. A budget of {table['budget']:,} trainable parameters on different matrices",
        text_row(("matrices", "r", "trainable", "lr", "test loss", *PAPER), (10, 4, 11, *LOSSES)),
    ]
    for row in table["rows"]:
        cells = row["targets"], row["rank"], f"{row['trainable_parameters']:,}"
        lines.append(text_row((*cells, *_ours(row), *_paper(row)), (10, 4, 11, *LOSSES)))
    means = {
        r["targets"]: float(np.mean(list(r["losses"].values())))
        for r in table["rows"]
        if r["losses"]
    }
    if means:
        lines.append(f"lowest of all: {'; '.join(lowest(means, base))}")
    return "\n".join(lines)


def table6(table: Mapping[str, Any]) -> str:
    """Return table 6 as text."""
    lines = [
        "Table 6. Rank",
        text_row(("matrices", "r", "lr", "test loss", *PAPER), (10, 4, *LOSSES)),
    ]
    for row in table["rows"]:
        cells = (row["targets"], row["rank"], *_ours(row), *_paper(row))
        lines.append(text_row(cells, (10, 4, *LOSSES)))
    said = [f"{targets}: {line}" for targets, found in table["flat"].items() for line in found]
    return "\n".join([*lines, *said])


def table7(table: Mapping[str, Any]) -> str:
    """Return table 7 as text."""
    columns = ("in_delta", "in_W0", "in_random", "norm_W0", "norm_delta", "factor")
    names = ("delta's", "W0's own", "random", "||W0||", "||delta||", "factor")
    widths = (20, 4, *(11 for _ in names))
    lines = [
        "Table 7. ||U^T W0 V^T||_F in the top r directions of the change, of W0, and random ones",
        text_row(("matrix", "r", *names), widths),
    ]
    paper = [
        {"path": "paper: q, layer 48", "rank": r, **row, "factor": _factor(row)}
        for r, row in table["paper"].items()
    ]
    for row in (*table["rows"], *paper):
        numbers = (f"{row[column]:.2f}" for column in columns)
        lines.append(text_row((row["path"], row["rank"], *numbers), widths))
    return "\n".join(lines)


def claims(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the claims of the paper, and whether our numbers support them, as text."""
    verdicts = {True: "agrees", False: "does not agree", None: "cannot tell"}
    return f"What the paper says, and whether ours agrees\n{claims_text(found, verdicts)}"


def _ours(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the learning rate and the test loss."""
    values = list(row["losses"].values())
    if not values:
        return "", "diverged"
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return f"{row['lr']:.2g}", f"{np.mean(values):.4f}{plus_minus(deviation, '.4f')}"


def _paper(row: Mapping[str, Any]) -> tuple[str, ...]:
    r, *accuracies = row["paper"] or ("-",)
    return (f"| {r}", *map(str, accuracies))


def _factor(row: Mapping[str, float]) -> float:
    return row["norm_delta"] / row["in_delta"]
