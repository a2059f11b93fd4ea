"""The tables and claims of section 7 as text, our numbers beside those of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np

from lora_np.experiments.claims import claims_text
from lora_np.experiments.search import lowest
from lora_np.report import Report
from lora_np.tables import Mean, Table, counted

WIDTH = 100  # characters of a line
LOSS = ".4f"
FORMS = {"lr": ".2g", "test loss": LOSS}
PAPER = ("paper: r", "WikiSQL", "MultiNLI")  # columns of what the paper has


def report(content: Mapping[str, Any]) -> Report:
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
    return Report([fill(head, WIDTH), *tables, claims(content["claims"])])


def table5(table: Mapping[str, Any], base: float) -> Table:
    """Return table 5; `base` is the loss without an adapter."""
    rows = [
        {
            "matrices": row["targets"],
            "r": row["rank"],
            "trainable": row["trainable_parameters"],
            **_ours(row),
            **_paper(row),
        }
        for row in table["rows"]
    ]
    means = {
        r["targets"]: float(np.mean(list(r["losses"].values())))
        for r in table["rows"]
        if r["losses"]
    }
    title = f"Table 5. A budget of {table['budget']:,} trainable parameters on different matrices"
    notes = [f"lowest of all: {'; '.join(lowest(means, base))}"] if means else []
    return Table.of_rows(rows, {"trainable": ",", **FORMS}, title, notes, missing="-")


def table6(table: Mapping[str, Any]) -> Table:
    """Return table 6."""
    rows = [
        {"matrices": row["targets"], "r": row["rank"], **_ours(row), **_paper(row)}
        for row in table["rows"]
    ]
    notes = [f"{targets}: {line}" for targets, found in table["flat"].items() for line in found]
    return Table.of_rows(rows, FORMS, "Table 6. Rank", notes, missing="-")


def table7(table: Mapping[str, Any]) -> Table:
    """Return table 7."""
    columns = ("in_delta", "in_W0", "in_random", "norm_W0", "norm_delta", "factor")
    names = ("delta's", "W0's own", "random", "||W0||", "||delta||", "factor")
    paper = [
        {"path": "paper: q, layer 48", "rank": r, **row, "factor": _factor(row)}
        for r, row in table["paper"].items()
    ]
    rows = [
        {
            "matrix": row["path"],
            "r": row["rank"],
            **{name: row[key] for name, key in zip(names, columns)},
        }
        for row in (*table["rows"], *paper)
    ]
    title = (
        "Table 7. ||U^T W0 V^T||_F in the top r directions of the change, of W0, and random ones"
    )
    return Table.of_rows(rows, dict.fromkeys(names, ".2f"), title)


def claims(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the claims of the paper, and whether our numbers support them, as text."""
    verdicts = {True: "agrees", False: "does not agree", None: "cannot tell"}
    return f"What the paper says, and whether ours agrees\n{claims_text(found, verdicts)}"


def _ours(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the learning rate and the test loss."""
    values = list(row["losses"].values())
    if not values:
        return {"lr": "", "test loss": "diverged"}
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"lr": row["lr"], "test loss": Mean(float(np.mean(values)), deviation, LOSS)}


def _paper(row: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(PAPER, row["paper"] or (None, None, None)))


def _factor(row: Mapping[str, float]) -> float:
    return row["norm_delta"] / row["in_delta"]
