"""Names, counts and tables: as text, HTML, Markdown, CSV, JSON, and as a pandas DataFrame."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 8  # names that a line lists
NUMBERS = (int, float)


@dataclass(frozen=True)
class Table:
    """Columns of values, which print as text, in a notebook, and in a file.

    Text, HTML and Markdown show values in the form of their column. CSV, JSON and DataFrames hold
    the values themselves.

    Parameters
    ----------
    columns : mapping of str to sequence
        The values of every column, by its heading. None is a cell without a value.
    forms : mapping of str to str, optional
        Format specifications of columns, such as ".3f" or ",".
    title : str
        A line above the table, or "".
    notes : sequence of str
        Lines below it.
    missing : str
        What stands for None.
    headings : bool
        Whether text shows the headings.

    Raises
    ------
    ValueError
        If the columns differ in length.

    Examples
    --------
    >>> from lora_np.tables import Table
    >>> table = Table({"module": ["q_proj", "v_proj"], "rank": [4, None]}, title="ranks")
    >>> print(table)
    ranks
    module  rank
    q_proj     4
    v_proj
    >>> print(table.csv(), end="")
    module,rank
    q_proj,4
    v_proj,
    >>> table.rows()[1]
    {'module': 'v_proj', 'rank': None}
    """

    columns: Mapping[str, Sequence[Any]]
    forms: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    notes: Sequence[str] = ()
    missing: str = ""
    headings: bool = True

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns differ in length: {lengths}")

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict for each row."""
        return [dict(zip(self.columns, row)) for row in zip(*self.columns.values())]

    def cells(self) -> dict[str, list[str]]:
        """Return the columns as they are shown."""
        return {
            name: [self._shown(value, self.forms.get(name, "")) for value in column]
            for name, column in self.columns.items()
        }

    def _shown(self, value: Any, form: str) -> str:
        """Return a value in the form of its column; strings stay as they are."""
        if value is None:
            return self.missing
        return value if isinstance(value, str) else format(value, form)

    def text(self) -> str:
        """Return lines of text: the first column left-aligned, the others right-aligned."""
        lines = text_table(self.cells()).splitlines()
        title = [self.title] if self.title else []
        return "\n".join([*title, *(lines if self.headings else lines[1:]), *self.notes])

    def markdown(self) -> str:
        """Return a Markdown table, with the title above and the notes below."""
        cells = {name: [_escaped(cell) for cell in column] for name, column in self.cells().items()}
        table = markdown_table([list(map(_escaped, cells)), *zip(*cells.values())])
        return "\n\n".join(part for part in (self.title, table, "\n".join(self.notes)) if part)

    def html(self) -> str:
        """Return an HTML table, numbers right-aligned, with the title as its caption."""
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        cells = self.cells()
        lines = [f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>"]
        for i, row in enumerate(zip(*self.columns.values())):
            found = []
            for name, value in zip(self.columns, row):
                right = ' style="text-align: right"' if isinstance(value, NUMBERS) else ""
                found.append(f"<td{right}>{html.escape(cells[name][i])}</td>")
            lines.append(f"<tr>{''.join(found)}</tr>")
        below = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return "\n".join([*lines, f"</tbody></table>{below}"])

    def csv(self) -> str:
        """Return comma-separated values, the headings first; an empty cell for None."""
        content = io.StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(zip(*self.columns.values()))
        return content.getvalue()

    def json(self) -> str:
        """Return a list of rows as JSON; null for None and for numbers that are not finite."""
        rows = [{name: _finite(value) for name, value in row.items()} for row in self.rows()]
        return json.dumps(rows, indent=2)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame; pandas must be installed."""
        import pandas  # pyright: ignore[reportMissingImports]

        return pandas.DataFrame(dict(self.columns))

    def in_format(self, name: str) -> str:
        """Return the table in one of ``FORMATS``.

        Raises
        ------
        ValueError
            If there is no such format; the message names all.
        """
        if name not in FORMATS:
            raise ValueError(f"format {name!r}: expected one of {', '.join(FORMATS)}")
        return FORMATS[name](self)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "table": Table.text,
    "json": Table.json,
    "csv": Table.csv,
    "markdown": Table.markdown,
}


def _escaped(cell: str) -> str:
    """Return a cell that cannot end a column or a row of Markdown."""
    return cell.replace("|", "\\|").replace("\n", " ")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
