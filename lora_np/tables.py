"""Tables of text, in the order in which a reader counts."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

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
    first, *rest = (max(map(len, column)) for column in cells)
    widths = [first, *(width + 2 for width in rest)]  # two spaces between columns
    return "\n".join(text_row(row, widths).rstrip() for row in zip(*cells, strict=True))


def text_row(cells: Sequence[Any], widths: Sequence[int]) -> str:
    """Return one line of a table whose widths are fixed: the first cell to the left, others right.

    Parameters
    ----------
    cells : sequence
        Strings, or whole numbers. One that is wider than its column pushes the others on.
    widths : sequence of int
        Of the columns, with the space before them; a row may have fewer cells.

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
    """Return rows as a table of Markdown; the first are the headings.

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
    """Return a deviation as it follows a mean; empty where there is none.

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
    """Return a number of things: 1 seed, 3 seeds.

    Parameters
    ----------
    number : int
    noun : str
    plural : str, optional
        By default `noun` and an s.

    Examples
    --------
    >>> from lora_np.tables import counted
    >>> counted(1, "seed"), counted(2400, "step"), counted(2, "process", "processes")
    ('1 seed', '2400 steps', '2 processes')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"


def listed(names: Collection[str]) -> str:
    """Return the first names and how many follow: a line is not as long as a model is deep.

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
    """Return the first name, and how many more there are.

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
