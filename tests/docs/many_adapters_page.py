"""``python -m tests.docs.many_adapters_page [--personal RUN] [--instructions RUN]``: fill the page.

RUN is the folder of a complete ``lora-np personal`` or ``lora-np instructions``. What the page
needs of it is kept in docs/many_adapters.json, and the picture beside it. Without RUN, the page is
filled from what is kept. A page marks the places::

    <!-- run: matrix -->
    <!-- end -->

A test holds that nothing would change. So no figure was typed by hand.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_np.experiments.instructions import report
from lora_np.experiments.instructions.judge import guessed, rate
from lora_np.experiments.personal import matrix_of, run_text
from lora_np.tables import counted, listed
from tests.docs.filling import complete_run, keep_in, kept_in, marks

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = ROOT / "docs" / "many_adapters.json", ROOT / "docs" / "many_adapters.md"
PICTURE = "personal_matrix.png"
PLACE = marks("run")
MISSING = "The run of this section has not been made yet."


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return the page's text with the figures of `content`, which ``many_adapters.json`` held."""
    return PLACE.sub(lambda m: f"{m[1]}{block(m[2], content)}\n{m[3]}", text)


def block(name: str, content: Mapping[str, Any]) -> str:
    """Return what stands at a mark."""
    of, write = BLOCKS[name]
    return MISSING if of not in content else write(content[of])


def _matrix(run: Mapping[str, Any]) -> str:
    alt = "Loss and exact answers of every adapter on the held-out samples of every pair"
    return f"{_text(run_text(run['results']), run)}\n\n![{alt}]({PICTURE})"


def _personal_findings(run: Mapping[str, Any]) -> str:
    matrix = matrix_of(run["results"])
    margins = matrix.margins()
    beaten = sum(margin.beats for margin in margins)
    exact = 100 * matrix.exact.mean(axis=2)  # (adapters, pairs)
    own = [exact[list(matrix.adapters).index(pair), j] for j, pair in enumerate(matrix.pairs)]
    others = [
        exact[i, j]
        for i, name in enumerate(matrix.adapters)
        for j, pair in enumerate(matrix.pairs)
        if name != pair
    ]
    lost = [f"{m.pair} over {m.other}" for m in margins if not m.beats]
    most = f"at most {max(others):.0f} %" if max(others) > 0 else "none of them"
    return (
        f"An adapter answers {min(own):.0f} to {max(own):.0f} % of its own pair's samples exactly; "
        f"the base and the other adapters answer {most}. {beaten} of "
        f"{counted(len(margins), 'margin')} of the loss exceed two standard errors"
        f"{f'; not {listed(lost)}' if lost else ''}."
    )


def _report(run: Mapping[str, Any]) -> str:
    return _text(report(run["results"]), run)


def _instruction_findings(run: Mapping[str, Any]) -> str:
    sides = [
        [row for trial in run["results"]["trials"] for row in trial[side]]
        for side in ("before", "after")
    ]
    said = []
    for split, name in (
        ("values", "new values"),
        ("phrasing", "unseen phrasing"),
        ("formats", "unseen formats"),
    ):
        before, after = (
            100 * rate(row["exact"] for row in side if row["split"] == split).share
            for side in sides
        )
        said.append(f"{before:.0f} to {after:.0f} % ({name})")
    before, after = (100 * guessed(side).share for side in sides)
    return (
        f"Exact match changes from {listed(said)}. Where the text does not hold the answer, the "
        f"model guesses {before:.0f} % of the time before and {after:.0f} % after."
    )


BLOCKS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "matrix": ("personal", _matrix),
    "personal": ("personal", _personal_findings),
    "report": ("instructions", _report),
    "instructions": ("instructions", _instruction_findings),
}


def _text(text: str, run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["results"]["versions"].items())
    return f"```\n{text}\n\n{run['date']}; {versions}\n```"


def kept() -> dict[str, Any]:
    """Return what docs/many_adapters.json holds; an empty mapping before the first run."""
    return kept_in(SOURCE)


def take(name: str, run: Path) -> None:
    """Keep the results of a run of one of the commands, and its picture."""
    results, date = complete_run(run)
    for trial in results["trials"]:
        for row in (*trial.get("before", ()), *trial.get("after", ())):
            row.pop("answer")  # most of the bytes, and no table shows it
    content = {**kept(), name: {"date": date, "results": results}}
    keep_in(SOURCE, content)
    if name == "personal":
        shutil.copyfile(run / "matrix.png", SOURCE.parent / PICTURE)


def main() -> None:
    """Take the runs that are named, and write their figures into the page."""
    parser = argparse.ArgumentParser()
    for name in ("personal", "instructions"):
        parser.add_argument(f"--{name}", type=Path)
    for name, run in vars(parser.parse_args()).items():
        if run is not None:
            take(name, run)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text, kept()), encoding="utf-8")


if __name__ == "__main__":
    main()
