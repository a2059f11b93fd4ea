"""Every adapter on the held-out samples of every pair: does each beat every other on its own?

Two adapters are compared on the same samples, so that hard and easy samples cancel: the margin is
the mean of the paired differences d_i, and its standard error is

    sd(d) / sqrt(n)

An adapter beats another on its own pair if the margin of the loss exceeds two standard errors. The
claim is that ALL margins do; it becomes harder, not easier, with the number of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_np.report import Report
from lora_np.tables import Table, counted

BASE = "base"
ERRORS = 2.0  # standard errors by which a margin must exceed 0


class Margin(NamedTuple):
    """By how much a pair's own adapter is better than another on the pair's held-out samples.

    Attributes
    ----------
    pair, other : str
    loss, loss_error : float
        The other's loss minus its own, in nats a token, and the standard error.
    exact, exact_error : float
        Its own share of exact answers minus the other's, and the standard error.
    """

    pair: str
    other: str
    loss: float
    loss_error: float
    exact: float
    exact_error: float

    @property
    def beats(self) -> bool:
        """Whether the loss is lower by more than two standard errors."""
        return self.loss > ERRORS * self.loss_error


@dataclass(frozen=True)
class Matrix:
    """What every adapter reaches on the held-out samples of every pair.

    Parameters
    ----------
    adapters : sequence of str
        The rows: "base", and the pairs.
    pairs : sequence of str
        The columns.
    losses : array, shape (adapters, pairs, samples)
        Mean loss of each sample's answer, in nats a token.
    exact : bool array, shape (adapters, pairs, samples)
        Whether the answer was exactly right.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.experiments.personal import Matrix
    >>> losses = np.array([[[2.0, 2.2]], [[0.1, 0.2]]])  # 2 adapters, 1 pair, 2 samples
    >>> matrix = Matrix(("base", "anna/who"), ("anna/who",), losses, losses < 1)
    >>> margin = matrix.margins()[0]
    >>> margin.other, round(margin.loss, 3), round(margin.loss_error, 3), margin.beats
    ('base', 1.95, 0.05, True)
    """

    adapters: Sequence[str]
    pairs: Sequence[str]
    losses: np.ndarray
    exact: np.ndarray

    def __post_init__(self) -> None:
        expected = (len(self.adapters), len(self.pairs))
        for name in ("losses", "exact"):
            shape = getattr(self, name).shape
            if len(shape) != 3 or shape[:2] != expected or shape[2] < 2:
                raise ValueError(f"{name} has shape {shape}, expected {expected} and 2 samples")
        for i, j in np.argwhere(~np.isfinite(self.losses).all(axis=2)):
            raise ValueError(f"{self.adapters[i]} has a loss on {self.pairs[j]} that is not finite")

    def margins(self) -> list[Margin]:
        """Return the margin of every pair's own adapter over every other, and over the base."""
        return [
            self._margin(j, i)
            for j, pair in enumerate(self.pairs)
            for i, other in enumerate(self.adapters)
            if other != pair
        ]

    def _margin(self, j: int, i: int) -> Margin:
        own = list(self.adapters).index(self.pairs[j])
        loss = paired(self.losses[i, j], self.losses[own, j])
        exact = paired(self.exact[own, j], self.exact[i, j])
        return Margin(self.pairs[j], self.adapters[i], *loss, *exact)


def paired(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the mean of one - other over samples (n,), and its standard error.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.experiments.personal.matrix import paired
    >>> paired(np.array([3.0, 5.0]), np.array([1.0, 1.0]))
    (3.0, 1.0)
    """
    d = one.astype(np.float64) - other
    return float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d))


def matrix_text(matrix: Matrix) -> Report:
    """Return the matrix as text: losses, exact answers, the narrowest margins, the verdict."""
    n = matrix.losses.shape[2]
    numbers = {pair: str(i) for i, pair in enumerate(matrix.pairs, 1)}
    rows = [f"{numbers.get(name, '')} {name}".strip() for name in matrix.adapters]

    def table(title: str, cells: np.ndarray, form: str) -> Table:
        columns = {f"on {i}": cells[:, i - 1].tolist() for i in _from_1(matrix)}
        return Table({"": rows, **columns}, dict.fromkeys(columns, form), title)

    loss = f"Loss on the held-out samples of each pair, in nats a token (n = {n})"
    parts = [
        table(loss, matrix.losses.mean(axis=2), ".3f"),
        table("Exact answers to them, in %", 100 * matrix.exact.mean(axis=2), ".1f"),
        _nearest(matrix),
        verdict(matrix),
    ]
    return Report(parts)


def verdict(matrix: Matrix) -> str:
    """Return whether every adapter beats every other on its own pair; else which do not."""
    margins = matrix.margins()
    lost = [f"{m.pair} over {m.other}" for m in margins if not m.beats]
    rule = f"by {ERRORS:g} standard errors of the loss"
    if not lost:
        return f"Each adapter beats every other on its own pair {rule}: {len(margins)} comparisons."
    compared = counted(len(margins), "comparison")
    return f"Not every adapter beats every other {rule}: not {', '.join(lost)}, of {compared}."


def _nearest(matrix: Matrix) -> Table:
    """Return, for each pair, the margin that is the fewest standard errors."""
    rows = []
    for pair in matrix.pairs:
        margins = [m for m in matrix.margins() if m.pair == pair]
        rows.append(min(margins, key=lambda m: m.loss - ERRORS * m.loss_error))
    return Table(
        {
            "": [m.pair for m in rows],
            "rival": [m.other for m in rows],
            "loss": [f"{m.loss:+.3f} +- {m.loss_error:.3f}" for m in rows],
            "exact [%]": [f"{100 * m.exact:+.1f} +- {100 * m.exact_error:.1f}" for m in rows],
            "beaten": ["yes" if m.beats else "no" for m in rows],
        },
        title="The rival that comes nearest to each pair's own adapter",
    )


def _from_1(matrix: Matrix) -> range:
    return range(1, len(matrix.pairs) + 1)
