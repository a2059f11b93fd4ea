"""``python -m tests.benchmarks.page``: put the figures of a run, kept in docs/, into the pages.

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
RIVALS = ROOT / "docs" / "rivals_benchmarks.json"
LLAMA = ROOT / "docs" / "llama_benchmarks.json"
ROWS = ROOT / "docs" / "serving_benchmarks.json"
PAGES = {  # and the run whose figures they show
    ROOT / "README.md": SOURCE,
    ROOT / "README.zh-CN.md": SOURCE,
    ROOT / "docs" / "performance.md": SOURCE,
    ROOT / "docs" / "llama_performance.md": LLAMA,
    ROOT / "docs" / "rivals.md": RIVALS,
    ROOT / "docs" / "serving.md": ROWS,
}
PLACE = re.compile(r"(<!-- benchmarks: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

# In the READMEs: a row of the results, and what it is called there, in English and in Chinese.
SHORT = {
    "full: lora_np / PyTorch eager": (
        "training step, full / PyTorch eager",
        "训练一步，全量 / PyTorch eager",
    ),
    "LoRA: lora_np / PyTorch eager": (
        "training step, LoRA / PyTorch eager + PEFT",
        "训练一步，LoRA / PyTorch eager + PEFT",
    ),
    "tokens a second, lora_np / transformers": (
        "tokens a second / transformers (above 1 is faster)",
        "每秒 token 数 / transformers（高于 1 表示更快）",
    ),
    "LoRA / full step, lora_np": (
        "within lora_np: LoRA step / full step",
        "lora_np 内部：LoRA 一步 / 全量一步",
    ),
    "LoRA / full, peak memory": (
        "within lora_np: peak memory, LoRA / full",
        "lora_np 内部：峰值内存，LoRA / 全量",
    ),
}
SHORT_LANGUAGES = {"short": 0, "short-zh": 1}  # which of the two


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return a page's text with the figures of `content`, which a run's JSON held."""
    return PLACE.sub(lambda m: f"{m[1]}{block(m[2], content)}\n{m[3]}", text)


def block(name: str, content: Mapping[str, Any]) -> str:
    """Return what stands at a mark: "machine", "left-out", or a table of a README or benchmark."""
    if name in SHORT_LANGUAGES:
        return short(content, SHORT_LANGUAGES[name])
    if name == "machine":
        return f"```\n{machine_text(content['machine'])}\n```"
    if name == "left-out":
        return "```\n" + "\n".join(content["left_out"] or ["nothing was left out"]) + "\n```"
    rows = [row_of(row) for row in content["rows"] if row["benchmark"] == name]
    return f"```\n{table(BENCHMARKS[name][0], Result(rows))}\n```"


def row_of(row: Mapping[str, Any]) -> Row:
    """Return a row from its JSON."""
    measured, kind = Spread(tuple(row["rounds"])), row["reference_is"] or "at most"
    return Row(row["what"], row["case"], measured, row["reference"], kind, row["unit"])


def short(content: Mapping[str, Any], language: int) -> str:
    """Return a README's table, in Markdown."""
    cases = [size["name"] for size in content["settings"]["sizes"]]
    found = {(row["what"], row["case"]): figure(row["median"]) for row in content["rows"]}
    lines = [f"| | {' | '.join(cases)} |", f"|---|{'---|' * len(cases)}"]
    for what, labels in SHORT.items():
        lines.append(f"| {labels[language]} | {' | '.join(found[what, case] for case in cases)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the figures into the pages."""
    for page, source in PAGES.items():
        content = json.loads(source.read_text(encoding="utf-8"))
        page.write_text(filled(page.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()
