"""Time the notebooks of a built course in Chromium: ``python -m tests.lite.times SITE [NAME ...]``.

The table goes into docs/guides/browser.md. Run it on a quiet machine.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from lora_np.tables import Table
from tests.browsing import Quiet, browsing, served
from tests.docs.filling import marks
from tests.lite.notebooks import CHAPTERS, MORE, open_notebook, run_all

PAGE = Path(__file__).parents[2] / "docs/guides/browser.md"


class Counting(Quiet):
    """A server of files that counts the bytes it sends."""

    sent = 0

    def copyfile(self, source, outputfile):
        """Send a file, and count it."""
        content = source.read()
        Counting.sent += len(content)
        outputfile.write(content)


def timed(browser, address: str, name: str) -> tuple[float, float, float]:
    """Return the seconds until Python is there, and until the last cell; the megabytes fetched."""
    Counting.sent = 0
    start = perf_counter()
    with open_notebook(browser, address, name) as tab:
        started = perf_counter() - start
        over = run_all(tab)
        whole = perf_counter() - start
    if over != "whole":
        raise SystemExit(f"{name} stopped at an error: {over}")
    return started, whole, Counting.sent / 1e6


def main() -> None:
    """Time the notebooks (all, if none is named), and write the table into the page."""
    site, *names = sys.argv[1:]
    rows = []
    with served(Path(site), Counting) as address, browsing() as browser:
        for name in names or (*CHAPTERS, *MORE):
            rows.append((name.removesuffix(".ipynb"), *timed(browser, address, name)))
            print(*rows[-1], flush=True)
            write(rows)


def write(rows: list[tuple[str, float, float, float]]) -> None:
    """Write the rows that are there into the page."""
    names = ("notebook", "s until Python has started", "s until the last cell", "MB fetched")
    forms = dict(zip(names[1:], (".0f", ".0f", ".0f")))
    table = Table(dict(zip(names, zip(*sorted(rows)))), forms=forms).markdown()
    dated = f"Run on {datetime.now(UTC):%Y-%m-%d}:\n\n{table}\n"
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(marks("browser").sub(rf"\g<1>{dated}\g<3>", text), encoding="utf-8")


if __name__ == "__main__":
    main()
