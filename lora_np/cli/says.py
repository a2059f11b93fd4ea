"""What a command says: its report, in the form asked for, and notes through a logger.

Everything that is not a result goes through the logger ``lora_np``: progress to standard
error, and notes, such as the names of the files that were written, below the result. ``--quiet``
turns both off. With a ``--format`` for programs, standard output has the tables alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lora_np.progress import log, shows_bars
from lora_np.reading import printable
from lora_np.report import Report
from lora_np.tables import FORMATS, Table

notes = log.getChild("notes")
QUIET = "print results alone: no progress, and no note of the files that are written"


def add_format(parser: Any) -> None:
    """Add ``--format``: the form of the tables on standard output."""
    said = "form of the tables; default: table. With another, all else goes to standard error"
    parser.output.add_argument("--format", choices=tuple(FORMATS), default="table", help=said)


def add_quiet(parser: Any) -> None:
    """Add ``--quiet``."""
    parser.output.add_argument("--quiet", action="store_true", help=QUIET)


def report(arguments: argparse.Namespace, *parts: Table | str) -> None:
    """Print tables and the words between them; words are notes where a program reads the tables."""
    if arguments.format == "table":
        print("\n".join(map(str, parts)))
        return
    whole = Report(parts)
    print(in_format(whole.tables, arguments.format))
    for part in whole.parts:
        if isinstance(part, str):
            note(part.strip("\n"))
        elif arguments.format != "markdown":  # which has the title and the notes of a table
            for line in filter(None, (part.title, *part.notes)):
                note(line)


def in_format(tables: Sequence[Table], name: str) -> str:
    """Return tables in one of ``FORMATS``.

    In JSON several tables are a list of objects, each with its title and its rows; in the other
    forms an empty line stands between them.
    """
    if name != "json" or len(tables) == 1:
        return "\n\n".join(table.in_format(name).rstrip("\n") for table in tables)
    whole = [{"title": table.title, "rows": json.loads(table.json())} for table in tables]
    return json.dumps(whole, indent=2)


def note(line: str) -> None:
    """Say something about a result, such as where it was written."""
    notes.info(line)


def listen(what: str) -> None:
    """Say what begins, on a screen."""
    if shows_bars():
        log.info(f"{what} ...")


@contextmanager
def heard(arguments: argparse.Namespace) -> Iterator[None]:
    """Show what is logged while a command runs, unless it is to be quiet."""
    handler, before = _Terminal(getattr(arguments, "format", "table")), log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if getattr(arguments, "quiet", False) else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _Terminal(logging.Handler):
    """Prints what is logged: notes beside the tables that people read, all else to stderr."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, a warning as such."""
        line = record.getMessage()
        if record.levelno >= logging.WARNING:
            kind = record.levelname.lower()
            line = f"lora-np: {kind}: {printable(' '.join(line.split()))}"
        beside = record.name == notes.name and self.form == "table"
        print(line, file=sys.stdout if beside else sys.stderr)
