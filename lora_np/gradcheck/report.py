"""The result of a gradient check: one row per input, and the error for a wrong gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_np.tables import Table, Tabular


class GradientError(AssertionError):
    """A gradient is wrong; the message says which gradient, at which entry, and by how much."""


@dataclass(frozen=True)
class GradientRow:
    """The verdict on one input's gradient."""

    name: str
    shape: tuple[int, ...]
    error: float
    index: tuple[int, ...] | None  # the entry with the largest error; None for "directional"
    analytic: float
    numeric: float
    note: str = ""


@dataclass(frozen=True)
class GradientReport(Tabular):
    """The result of :func:`lora_np.check_gradients`: one row per input.

    Attributes
    ----------
    rows : tuple of GradientRow
    method : str
    tolerance : float
        The largest error that passes.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import check_gradients
    >>> def square(x):
    ...     return x * x, x
    >>> def backward(dy, x, need=None):
    ...     return (dy * x,)  # the 2 is missing
    >>> report = check_gradients(square, backward, [np.array([1.0, 2.0])])
    >>> report.ok, report.rows[0].note
    (False, 'it is 0.5 times the numeric gradient')
    """

    rows: tuple[GradientRow, ...]
    method: str
    tolerance: float

    @property
    def max_error(self) -> float:
        """The largest error of all rows."""
        return max(row.error for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether every error is within the tolerance."""
        return self.max_error <= self.tolerance

    def raise_if_wrong(self) -> None:
        """Raise a GradientError that names every wrong gradient."""
        wrong = [row for row in self.rows if not row.error <= self.tolerance]
        if wrong:
            title = (
                f"{len(wrong)} of {len(self.rows)} gradients are wrong "
                f"({self.method}, tolerance {self.tolerance:.0e}):"
            )
            raise GradientError(str(_table(wrong, title)))

    def table(self) -> Table:
        """Return a row for each gradient; the title says whether all are right."""
        verdict = "ok" if self.ok else "WRONG"
        return _table(self.rows, f"{verdict}: {self.method}, tolerance {self.tolerance:.0e}")


def _table(rows: Sequence[GradientRow], title: str) -> Table:
    columns = {
        "input": [row.name for row in rows],
        "shape": [str(row.shape) for row in rows],
        "error": [row.error for row in rows],
        "analytic": [row.analytic for row in rows],
        "numeric": [row.numeric for row in rows],
        "at": [None if row.index is None else str(list(row.index)) for row in rows],
        "note": [row.note or None for row in rows],
    }
    forms = {"error": ".1e", "analytic": "+.6e", "numeric": "+.6e", "at": "<", "note": "<"}
    return Table(columns, forms, title)
