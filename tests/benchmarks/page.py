"""``python -m tests.benchmarks.page``: put the figures of docs/benchmarks.json into the pages.

A page marks their places, and what stands between the marks is written anew::

    <!-- benchmarks: steps -->
    <!-- end -->

A test holds that nothing would change, so no figure in a page was typed by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.measure import Result, Row, Spread
from tests.benchmarks.report import figure, machine_text, table

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "benchmarks.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
PLACE = re.compile(r"(<!-- benchmarks: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

# In the README: what a row says, and the row of the results that it is.
SHORT = {
    "training step, full / PyTorch eager": "full: lora_np / PyTorch eager",
    "training step, LoRA / PyTorch eager + PEFT": "LoRA: lora_np / PyTorch eager",
    "tokens a second / transformers (above 1 is faster)": "tokens a second, lora_np / transformers",
    "within lora_np: LoRA step / full step": "LoRA / full step, lora_np",
    "within lora_np: peak memory, LoRA / full": "LoRA / full, peak memory",
}


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return a page's text with the figures of `content`, which ``benchmarks.json`` held."""
    return PLACE.sub(lambda m: f"{m[1]}{block(m[2], content)}\n{m[3]}", text)


def block(name: str, content: Mapping[str, Any]) -> str:
    """Return what stands at a mark: "machine", "short", or a benchmark's table."""
    if name == "short":
        return short(content)
    if name == "machine":
        return f"```\n{machine_text(content['machine'])}\n```"
    rows = [row_of(row) for row in content["rows"] if row["benchmark"] == name]
    return f"```\n{table(BENCHMARKS[name][0], Result(rows))}\n```"


def row_of(row: Mapping[str, Any]) -> Row:
    """Return a row from its JSON."""
    measured, kind = Spread(tuple(row["rounds"])), row["reference_is"] or "at most"
    return Row(row["what"], row["case"], measured, row["reference"], kind, row["unit"])


def short(content: Mapping[str, Any]) -> str:
    """Return the README's table, in Markdown."""
    cases = [size["name"] for size in content["settings"]["sizes"]]
    found = {(row["what"], row["case"]): figure(row["median"]) for row in content["rows"]}
    lines = [f"| | {' | '.join(cases)} |", f"|---|{'---|' * len(cases)}"]
    for label, what in SHORT.items():
        lines.append(f"| {label} | {' | '.join(found[what, case] for case in cases)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the figures into the pages."""
    content = json.loads(SOURCE.read_text(encoding="utf-8"))
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()
