"""What the pages share that a run fills: the marks, what is kept of a run, and how it is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def marks(name: str) -> re.Pattern[str]:
    """Return what finds ``<!-- name: block -->`` to ``<!-- end -->``: start, block and end."""
    return re.compile(rf"(<!-- {name}: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kept_in(source: Path) -> dict[str, Any]:
    """Return what a file holds of runs; an empty mapping before the first one."""
    return json.loads(source.read_text(encoding="utf-8")) if source.exists() else {}


def keep_in(source: Path, content: Mapping[str, Any]) -> None:
    """Write what a page needs of runs."""
    source.write_text(f"{json.dumps(content)}\n", encoding="utf-8")


def complete_run(run: Path) -> tuple[dict[str, Any], str]:
    """Return the results in the folder of a run, and their date; end if it is not complete."""
    path = run / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    if not results["complete"]:
        raise SystemExit(f"{run} is not complete: run the same command to continue")
    return results, f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d}"
