"""Names, counts and tables: as text, HTML, Markdown, CSV, JSON, and as a pandas DataFrame."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 8  # names that a line lists


@dataclass(frozen=True, repr=False)
class Table:
    """Columns of values, which print as text, in a notebook, and in a file.

    Text, HTML and Markdown show values in the form of their column. CSV, JSON and DataFrames hold
    the values themselves, and the deviation of a :class:`Mean` in a column of its own.

    Parameters
    ----------
    columns : mapping of str to sequence
        The values of every column, by its heading. None is a cell without a value.
    forms : mapping of str to str, optional
        Format specifications of columns, such as ".3f" or ",". ".1f %" shows a share in percent.
        "<" aligns a column of text to the left, as the first column always is.
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

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], *how: Any, **named: Any) -> Table:
        """Return the table of rows with equal keys; the other arguments are those of Table."""
        headings = rows[0] if rows else ()
        return cls({name: [row[name] for row in rows] for name in headings}, *how, **named)

    def data(self) -> dict[str, list[Any]]:
        """Return the columns as files hold them: all with a heading, deviations beside means."""
        found: dict[str, list[Any]] = {}
        for i, (heading, column) in enumerate(self.columns.items()):
            name = heading or ("note" if i else "name")
            found[name] = list(column)
            beside = [getattr(value, "beside", {}) for value in column]
            for what in dict.fromkeys(key for each in beside for key in each):
                found[f"{name} {what}"] = [each.get(what) for each in beside]
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict for each row."""
        data = self.data()
        return [dict(zip(data, row)) for row in zip(*data.values())]

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
        if isinstance(value, str):
            return value
        return f"{100 * value:{form[:-2]}} %" if form.endswith(" %") else format(value, form)

    def _left(self) -> list[bool]:
        """Return for each column whether it is aligned to the left."""
        forms = [self.forms.get(name, "") for name in self.columns]
        return [i == 0 or form.startswith("<") for i, form in enumerate(forms)]

    def text(self) -> str:
        """Return lines of text; unprintable characters, such as line ends, are escaped."""
        columns = []
        for (name, cells), left in zip(self.cells().items(), self._left()):
            shown = [_line(cell) for cell in (name, *cells)]
            width = max(map(_width, shown))
            gaps = [" " * (width - _width(cell)) for cell in shown]
            columns.append([cell + gap if left else gap + cell for cell, gap in zip(shown, gaps)])
        lines = ["  ".join(row).rstrip() for row in zip(*columns)]
        above, below = ([_lines(text) for text in texts] for texts in ([self.title], self.notes))
        rows = lines if self.headings else lines[1:]
        return "\n".join([*(above if self.title else []), *rows, *below])

    def markdown(self) -> str:
        """Return a Markdown table, with the title above and the notes below."""
        cells = self.cells()
        rows = [list(cells), ["---"] * len(cells), *zip(*cells.values())]
        lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
        table = "\n".join(lines) if cells else ""
        notes = "\n".join(note for note in self.notes if note)
        return "\n\n".join(part for part in (self.title, table, notes) if part)

    def html(self) -> str:
        """Return an HTML table, aligned as the text is, with the title as its caption."""
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        aligned = [f'style="text-align: {"left" if left else "right"}"' for left in self._left()]

        def row(tag: str, cells: Iterable[str]) -> str:
            shown = [f"<{tag} {style}>{html.escape(cell)}" for style, cell in zip(aligned, cells)]
            return f"<tr>{''.join(f'{cell}</{tag}>' for cell in shown)}</tr>"

        cells = self.cells()
        lines = [f"<table>{caption}<thead>{row('th', cells)}</thead><tbody>"]
        lines += [row("td", each) for each in zip(*cells.values())]
        below = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes if note)
        return "\n".join([*lines, f"</tbody></table>{below}"])

    def csv(self) -> str:
        """Return comma-separated values, the headings first; an empty cell for None."""
        content, data = io.StringIO(), self.data()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(data)
        writer.writerows(zip(*data.values()))
        return content.getvalue()

    def json(self) -> str:
        """Return a list of rows as JSON; null for None and for numbers that are not finite."""
        rows = [{name: _plain(value) for name, value in row.items()} for row in self.rows()]
        return json.dumps(rows, indent=2)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame; pandas must be installed."""
        import pandas  # pyright: ignore[reportMissingImports]

        return pandas.DataFrame(self.data())

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

    def __repr__(self) -> str:
        rows = counted(max(map(len, self.columns.values()), default=0), "row")
        return f"<Table of {rows}: {listed(self.columns)}>"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()


class Tabular:
    """A result that shows itself as its table: printed, and in a notebook.

    Examples
    --------
    >>> from lora_np.tables import Table, Tabular
    >>> class Score(Tabular):
    ...     def table(self):
    ...         return Table({"team": ["a", "b"], "goals": [2, 10]})
    >>> print(Score())
    team  goals
    a         2
    b        10
    """

    def table(self) -> Table:
        """Return the result as a table."""
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "table": Table.text,
    "json": Table.json,
    "csv": Table.csv,
    "markdown": Table.markdown,
}


def _line(text: str) -> str:
    """Return a text that stays on one line of a terminal."""
    return text if text.isprintable() else repr(text)


def _lines(text: str) -> str:
    """Return a title or a note, whose lines stay as they are, for a terminal."""
    return "\n".join(map(_line, text.split("\n")))


def _width(text: str) -> int:
    """Return the columns of a terminal that a text takes: two for a letter of Chinese."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _escaped(cell: str) -> str:
    """Return a cell that cannot end a column or a row of Markdown."""
    return cell.replace("|", "\\|").replace("\n", " ")


def _plain(value: Any) -> Any:
    """Return a value that JSON has: NumPy's scalars as Python's, and None for inf and nan."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Mean(float):
    """A mean with its deviation: a table shows both, and a file has a column for each.

    Parameters
    ----------
    value : float
    deviation : float, optional
        None for the mean of a single number.
    form : str
        Format specification of the deviation.
    note : str
        Text to follow.

    Examples
    --------
    >>> from lora_np.tables import Mean, Table
    >>> loss = Mean(2.9371, 0.0123)
    >>> f"{loss:.4g}", loss + 1
    ('2.937 +- 0.012', 3.9371)
    >>> Table({"loss": [loss]}).rows()
    [{'loss': 2.9371, 'loss +-': 0.0123}]
    """

    deviation: float | None
    form: str
    note: str
    beside: dict[str, float]

    def __new__(
        cls, value: float, deviation: float | None = None, form: str = ".2g", note: str = ""
    ) -> Mean:
        """Return a float that knows its deviation."""
        made = super().__new__(cls, value)
        made.deviation, made.form, made.note = deviation, form, note
        made.beside = {} if deviation is None else {"+-": deviation}
        return made

    def __format__(self, form: str) -> str:
        return f"{super().__format__(form)}{plus_minus(self.deviation, self.form)}{self.note}"


def natural(name: str) -> list[str | int]:
    """Return a sort key that puts layer 2 before layer 10.

    Parameters
    ----------
    name : str
    """
    parts = re.split(r"(\d+)", name)  # text and digits alternate
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


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
    first = map(_line, list(names)[:MOST])
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
