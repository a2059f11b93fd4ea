"""``python -m tests.docs.serving_page [--small RUN] [--real RUN]``: fill docs/serving.md.

RUN is the folder of ``lora-np serve-bench --out RUN``: of the small model, and of a real one. Their
results are kept in docs/serving.json, and the picture beside it. Without RUN, the page is filled
from what is kept. A page marks the places::

    <!-- run: pool -->
    <!-- end -->

A test holds that nothing would change. So no figure was typed by hand.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_np.experiments.serving.report import alone_text, head, note, tables_of
from tests.docs.filling import complete_run, keep_in, kept_in, marks

ROOT = Path(__file__).parents[2]
SOURCE, PAGE = ROOT / "docs" / "serving.json", ROOT / "docs" / "serving.md"
PICTURE = "serving.png"
PLACE = marks("run")
MISSING = "The run of this section has not been made yet."
ALT = "Tokens a second by the number of distinct adapters in the batch, on a logarithmic axis"
BLOCKS = {  # the run, and its measurements
    "pool": ("small", ("pool",)),
    "distinct": ("small", ("distinct",)),
    "disk": ("small", ("disk",)),
    "wide": ("small", ("wide",)),
    "alone": ("small", ("distinct",)),
    "real": ("real", ("real", "long")),
}


def filled(text: str, content: Mapping[str, Any]) -> str:
    """Return the page's text with the figures of `content`, which ``serving.json`` holds."""
    return PLACE.sub(lambda m: f"{m[1]}{block(m[2], content)}\n{m[3]}", text)


def block(name: str, content: Mapping[str, Any]) -> str:
    """Return what stands at a mark."""
    of, parts = BLOCKS[name]
    if of not in content or any(part not in content[of]["results"]["measured"] for part in parts):
        return MISSING
    results = content[of]["results"]
    tables = [str(table) for part in parts for table in tables_of(results, part)]
    if name == "alone":
        tables = [alone_text(results)]
    said = (head(results), *tables, f"{note(results)} {content[of]['date']}.")
    picture = f"\n\n![{ALT}]({PICTURE})" if name == "distinct" else ""
    body = "\n\n".join(said)
    return f"```\n{body}\n```{picture}"


def kept() -> dict[str, Any]:
    """Return what docs/serving.json holds; an empty mapping before the first run."""
    return kept_in(SOURCE)


def take(name: str, run: Path) -> None:
    """Keep the results of a run, and its picture."""
    results, date = complete_run(run)
    settings = results["settings"]
    settings["model"] = Path(settings["model"]).stem  # no path of a machine
    content = {**kept(), name: {"date": date, "results": results}}
    keep_in(SOURCE, content)
    if name == "small" and "distinct" in results["measured"]:
        shutil.copyfile(run / "serve.png", SOURCE.parent / PICTURE)


def main() -> None:
    """Take the runs that are named, and write their figures into the page."""
    parser = argparse.ArgumentParser()
    for name in ("small", "real"):
        parser.add_argument(f"--{name}", type=Path)
    for name, run in vars(parser.parse_args()).items():
        if run is not None:
            take(name, run)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text, kept()), encoding="utf-8")


if __name__ == "__main__":
    main()
