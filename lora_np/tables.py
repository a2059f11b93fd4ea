"""Tables of text, in the order in which a reader counts."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST = 8  # names that a line lists


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


def counted(number: int, noun: str) -> str:
    """Return a number of things: 1 seed, 3 seeds.

    Parameters
    ----------
    number : int
    noun : str
        Whose plural is in s.

    Examples
    --------
    >>> from lora_np.tables import counted
    >>> counted(1, "seed"), counted(2400, "step")
    ('1 seed', '2400 steps')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many follow: a line is not as long as a model is deep.

    Parameters
    ----------
    names : sequence of str

    Examples
    --------
    >>> from lora_np.tables import listed
    >>> listed(["q", "k"]), listed([f"h.{i}" for i in range(12)])[-16:]
    ('q, k', 'h.7 and 4 others')
    """
    shown, rest = ", ".join(names[:MOST]), len(names) - MOST
    return f"{shown} and {counted(rest, 'other')}" if rest > 0 else shown


def unmatched_lines(unmatched: Sequence[str]) -> list[str]:
    """Return one line for each reason why tensors of two files could not be compared.

    Parameters
    ----------
    unmatched : sequence of str
        "name: reason", as :class:`lora_np.adapters.weights.CheckpointPair` keeps them.

    Examples
    --------
    >>> from lora_np.tables import unmatched_lines
    >>> unmatched_lines(["q: only in a", "x: of shapes (2,) and (3,)", "k: only in a"])
    ['only in a: q, k', 'of shapes (2,) and (3,): x']
    """
    names: dict[str, list[str]] = {}
    for line in unmatched:
        name, reason = line.split(": ", 1)
        names.setdefault(reason, []).append(name)
    lines = [f"{reason}: {listed(found)}" for reason, found in names.items()]
    rest = len(lines) - MOST
    return [*lines[:MOST], f"and for {rest} other reasons"] if rest > 0 else lines
