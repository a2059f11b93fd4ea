"""Names, counts and tables as text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

MOST = 8  # names that a line lists


def natural(name: str) -> list[str | int]:
    """Return a sort key that puts layer 2 before layer 10.

    Parameters
    ----------
    name : str
    """
    parts = re.split(r"(\d+)", name)  # text and digits alternate
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def text_table(columns: dict[str, list[str]]) -> str:
    """Return columns as text, one line per row: the first left-aligned, the others right-aligned.

    Parameters
    ----------
    columns : dict of str to list of str
        The columns by their headings.
    """
    cells = [[heading, *column] for heading, column in columns.items()]
    first, *rest = (max(map(len, column)) for column in cells)
    widths = [first, *(width + 2 for width in rest)]  # two spaces between columns
    return "\n".join(text_row(row, widths).rstrip() for row in zip(*cells, strict=True))


def text_row(cells: Sequence[Any], widths: Sequence[int]) -> str:
    """Return one line of a table: the first cell left-aligned, the others right-aligned.

    Parameters
    ----------
    cells : sequence
        Strings or whole numbers. A cell wider than its column moves the others to the right.
    widths : sequence of int
        Widths of the columns, including the space before each; a row may have fewer cells.

    Examples
    --------
    >>> from lora_np.tables import text_row
    >>> for row in (("", "trainable", "loss"), ("r = 1", 2304, "2.937")):
    ...     print(text_row(row, (8, 10, 8)))
             trainable    loss
    r = 1         2304   2.937
    """
    first, *rest = (str(cell) for cell in cells)
    line = first.ljust(widths[0])
    return line + "".join(cell.rjust(width) for cell, width in zip(rest, widths[1:]))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table; the first row holds the headings.

    Parameters
    ----------
    rows : sequence of sequence of str

    Examples
    --------
    >>> from lora_np.tables import markdown_table
    >>> print(markdown_table([["measure", "1"], ["stable rank", "9.7"]]))
    | measure | 1 |
    | --- | --- |
    | stable rank | 9.7 |
    """
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))


def plus_minus(deviation: float | None, form: str) -> str:
    """Return a deviation as text to follow a mean, or "" for None.

    Parameters
    ----------
    deviation : float or None
    form : str
        A format specification.

    Examples
    --------
    >>> from lora_np.tables import plus_minus
    >>> "2.937" + plus_minus(0.0123, ".2g"), "2.937" + plus_minus(None, ".2g")
    ('2.937 +- 0.012', '2.937')
    """
    return "" if deviation is None else f" +- {deviation:{form}}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun: 1 seed, 3 seeds.

    Parameters
    ----------
    number : int
    noun : str
    plural : str, optional
        By default `noun` with an s.

    Examples
    --------
    >>> from lora_np.tables import counted
    >>> counted(1, "seed"), counted(2400, "step"), counted(2, "process", "processes")
    ('1 seed', '2400 steps', '2 processes')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"


def rounded(number: int) -> str:
    """Return a count in three digits, in thousands (k), millions (M) or billions (G).

    Parameters
    ----------
    number : int
        At least 0.

    Examples
    --------
    >>> from lora_np.tables import rounded
    >>> rounded(960), rounded(61056), rounded(21240576), rounded(6738415616)
    ('960', '61.1k', '21.2M', '6.74G')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:  # 999,500 has four digits of thousands once it is rounded
            return f"{number / unit:.3g}{letter}"
    return str(number)


def listed(names: Collection[str]) -> str:
    """Return the first names and the number of the others, to keep a line short.

    Parameters
    ----------
    names : collection of str

    Examples
    --------
    >>> from lora_np.tables import listed
    >>> listed(["q", "k"]), listed([f"h.{i}" for i in range(12)])[-14:]
    ('q, k', 'h.7 and 4 more')
    """
    first = (name if name.isprintable() else repr(name) for name in list(names)[:MOST])
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(first) + more


def first_of(names: Sequence[str]) -> str:
    """Return the first name and the number of the others.

    Parameters
    ----------
    names : sequence of str

    Examples
    --------
    >>> from lora_np.tables import first_of
    >>> first_of(["q", "k", "v"]), first_of(["q"])
    ('q and 2 more', 'q')
    """
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def unmatched_lines(unmatched: Sequence[str]) -> list[str]:
    """Return a line for each reason why tensors of two files could not be compared, at most 9.

    Parameters
    ----------
    unmatched : sequence of str
        Lines "name: reason", as :class:`lora_np.adapters.weights.CheckpointPair` keeps them.

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
    return [*lines[:MOST], f"and {counted(rest, 'other reason')}"] if rest > 0 else lines
