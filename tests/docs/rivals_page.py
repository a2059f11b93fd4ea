"""``python -m tests.docs.rivals_page RUN``: put a run of ``lora-np compare`` into docs/rivals.md.

RUN is the folder of ``lora-np compare --preset hour --out RUN`` and, if the matrix is wanted, of
``lora-np compare --task linear --out RUN``. Their numbers are kept in docs/rivals.json, and the
pictures beside it. Without RUN, the page is filled from what is kept. A page marks the places::

    <!-- compare: losses -->
    <!-- end -->

A test holds that nothing would change. So no figure and no sentence about one was typed by hand.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH
from lora_np.experiments.compare.order import UNDECIDED, is_separated, orders, pairs_note
from lora_np.experiments.compare.reach import REACHED, reach_table
from lora_np.experiments.compare.report import (
    HERE,
    costs_note,
    costs_table,
    elsewhere,
    head,
    losses_table,
    over,
)
from lora_np.experiments.search import SAME
from lora_np.experiments.study.losses import losses, mean_loss
from lora_np.experiments.study.report import verdicts
from lora_np.tables import Table
from tests.docs.filling import complete_run, keep_in, kept_in, marks

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = ROOT / "docs" / "rivals.json", ROOT / "docs" / "rivals.md"
PICTURES = {
    "compare_losses.png": "Test loss of every method against its trainable numbers",
    "compare_latency.png": "Test loss of every method against its latency at batch 1",
}
PLACE = marks("compare")
MISSING = "The run of this page has not been made yet."


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return the page's text with the figures of `content`, which ``rivals.json`` held."""
    return PLACE.sub(lambda m: f"{m[1]}{block(m[2], content)}\n{m[3]}", text)


def block(name: str, content: Mapping[str, Any]) -> str:
    """Return what stands at a mark."""
    results, reach = content.get("results"), content.get("reach")
    if name == "reach":
        return MISSING if reach is None else "\n".join([_text(reach_table(reach)), *reached(reach)])
    return MISSING if results is None else BLOCKS[name](results, content["date"])


def _run(results: Mapping[str, Any], date: str) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return _text(f"{head(results)}\n\n{date}; {versions}")


def _losses(results: Mapping[str, Any], date: str) -> str:
    table = _text(f"{losses_table(results)}\n\n{fill(pairs_note(results), WIDTH)}")
    return f"{table}\n\n{_picture('compare_losses.png')}"


def _costs(results: Mapping[str, Any], date: str) -> str:
    table = _text(f"{costs_table(results)}\n\n{fill(costs_note(results), WIDTH)}")
    return f"{table}\n\n{_picture('compare_latency.png')}"


def _claims(results: Mapping[str, Any], date: str) -> str:
    said = f"{verdicts(results)}\n\n{elsewhere()}"
    return f"{fill(HERE, WIDTH)}\n\n{_text(said)}"


def _findings(results: Mapping[str, Any], date: str) -> str:
    return "\n".join(f"- {sentence}" for sentence in findings(results))


BLOCKS = {
    "run": _run,
    "losses": _losses,
    "costs": _costs,
    "claims": _claims,
    "findings": _findings,
}


def findings(results: Mapping[str, Any]) -> list[str]:
    """Return what the run shows, in sentences whose every figure is computed."""
    tests = {label: losses(results, label) for label in results["best"]}
    equal = SAME * results["base_test_loss"]
    pairs = list(combinations(tests, 2))
    apart = [(a, b) for a, b in pairs if is_separated(tests[a], tests[b], equal)]
    said = [f"The seeds separate {len(apart)} of {len(pairs)} pairs of contenders."]
    rates = {label: lr for label, lr in results["best"].items() if lr is not None}
    low, high = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    said.append(
        f"Best learning rates lie between {rates[low]:.2g} ({low}) and {rates[high]:.2g} ({high}), "
        f"a factor of {rates[high] / rates[low]:.0f}."
    )
    for reference in ("full", "lora"):
        others = [name for name in tests if name != reference]
        if reference in tests and UNDECIDED not in orders(results).values():
            said.append(_beside(results, reference, others, apart))
    slow = {
        name: ratio
        for name in tests
        if not results["measured"][name]["merges"]
        and name != "full"
        and (ratio := over(results, name, "full", "latency_1")) is not None
    }
    if slow:
        shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in slow.items())
        said.append(
            f"What does not merge, over the latency of the plain model at batch 1: {shown}."
        )
    return said


def _beside(
    results: Mapping[str, Any], reference: str, others: list[str], apart: list[tuple[str, str]]
) -> str:
    """Return which contenders have a lower loss than one of them, and which are not separated."""
    known = {frozenset(pair) for pair in apart}
    mean = mean_loss(results, reference)
    better = [
        name
        for name in others
        if frozenset((name, reference)) in known and mean_loss(results, name) < mean
    ]
    same = [name for name in others if frozenset((name, reference)) not in known]
    return (
        f"A lower loss than {reference}: {', '.join(better) or 'none'}. Not separated from "
        f"{reference}: {', '.join(same) or 'none'}."
    )


def reached(reach: Mapping[str, Any]) -> list[str]:
    """Return for every change which methods reach it."""
    said = ["", "Reached, by change:", ""]
    for i, change in enumerate(reach["changes"]):
        rows = {label: x[i] for label, x in reach["residual"].items() if x is not None}
        names = [label for label, residual in rows.items() if residual < REACHED]
        said.append(f"- {change}: {', '.join(names) or 'none'}.")
    return said


def _text(table: Table | str) -> str:
    return f"```\n{table}\n```"


def _picture(name: str) -> str:
    return f"![{PICTURES[name]}]({name})"


def kept() -> dict[str, Any]:
    """Return what docs/rivals.json holds; an empty mapping before the first run."""
    return kept_in(SOURCE)


def take(run: Path) -> None:
    """Keep the results of a run, and its pictures."""
    results, date = complete_run(run)
    content = {"date": date, "results": results}
    if (run / "reach.json").exists():
        content["reach"] = json.loads((run / "reach.json").read_text(encoding="utf-8"))
    assert all(math.isfinite(results[f"base_{name}_loss"]) for name in ("test", "pretrain"))
    keep_in(SOURCE, content)
    for name in PICTURES:
        shutil.copyfile(run / name, SOURCE.parent / name)


def main(arguments: list[str]) -> None:
    """Take a run, if one is named, and write its figures into the page."""
    if arguments:
        take(Path(arguments[0]))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text, kept()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
