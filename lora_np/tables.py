"""Tables of text, in the order in which a reader counts."""

from __future__ import annotations

import re


def natural(name: str) -> list[str | int]:
    """Return a key by which layer 2 is sorted before layer 10.

    Parameters
    ----------
    name : str
    """
    parts = re.split(r"(\d+)", name)  # text and digits by turns
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def text_table(columns: dict[str, list[str]]) -> str:
    """Return columns as text: the first to the left, the others to the right, one line a row.

    Parameters
    ----------
    columns : dict of str to list of str
        By their headings.
    """
    cells = [[heading, *column] for heading, column in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    lines = []
    for row in zip(*cells, strict=True):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)
