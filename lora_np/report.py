"""A report: tables and the words between them, as one text that keeps its tables."""

from __future__ import annotations

from collections.abc import Sequence

from lora_np.tables import Table


class Report(str):
    """Tables and the words between them: a text that keeps its tables.

    Parameters
    ----------
    parts : sequence of Table or str
        Those of another report become this report's; empty ones are left out.
    gap : str
        What stands between them.

    Attributes
    ----------
    parts : tuple of Table or str
    tables : tuple of Table

    Examples
    --------
    >>> from lora_np.report import Report
    >>> from lora_np.tables import Table
    >>> report = Report(["Two runs.", Table({"loss": [2.5, 2.25]})])
    >>> print(report)
    Two runs.
    <BLANKLINE>
    loss
    2.5
    2.25
    >>> report.tables[0].columns
    {'loss': [2.5, 2.25]}
    """

    parts: tuple[Table | str, ...]

    def __new__(cls, parts: Sequence[Table | str], gap: str = "\n\n") -> Report:
        """Return the text of the parts."""
        found = [part for part in parts if str(part)]
        made = super().__new__(cls, gap.join(map(str, found)))
        nested = [part.parts if isinstance(part, Report) else (part,) for part in found]
        made.parts = tuple(part for several in nested for part in several)
        return made

    def __getnewargs__(self) -> tuple:
        return ([str(self)],)  # of a copy, whose parts are then set to these

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables, in their order."""
        return tuple(part for part in self.parts if isinstance(part, Table))
