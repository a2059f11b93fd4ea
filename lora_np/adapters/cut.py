r"""Truncate a change to fewer directions, and measure the error.

The best approximation of rank k keeps the k largest singular values (Eckart, Young 1936); its error
is sqrt(sum_{i>k} sigma_i^2). It is written as two factors that share the singular values evenly,
B = U sqrt(S) and A = sqrt(S) V^T, so that neither factor is too large or too small for a narrow
type.

A file rounds its numbers to its type. Two errors are therefore reported: the error of the
truncation, from the singular values, and the error as written, measured from the rounded factors.
The distance between two products is the norm of one product, which is never formed::

    s B A - t C D = [s B, -t C] [A; D],   ||.||_F from the singular values of its small core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.files import CheckpointError, float_dtype
from lora_np.rank import Spectrum, smallest_rank, spectrum
from lora_np.tables import Table, listed, natural

EPS = float(np.finfo(np.float64).eps)


@contextmanager
def naming(module: str) -> Iterator[None]:
    """Add the name of the module to the errors raised in the block.

    Parameters
    ----------
    module : str
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused when written
            yield
    except CheckpointError:
        raise  # it names the tensor already
    except ValueError as error:
        raise CheckpointError(f"{module!r}: {error}") from None


@dataclass(frozen=True)
class Keep:
    """How many directions of each module to keep, by one of three rules.

    Parameters
    ----------
    rank : int, optional
        This many directions, at least 1, even if some of them are noise.
    energy : float, optional
        The fewest directions that hold this share of the squared Frobenius norm, in (0, 1]. If two
        files are compared, only directions above the rounding of their numbers count.
    error : float, optional
        The fewest directions that leave at most this relative Frobenius error, in [0, 1). It bounds
        the distance from the whole change, rounding included: an error below the rounding needs
        nearly every direction.

    Raises
    ------
    ValueError
        If not exactly one of them is given, or its value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Keep
    >>> sigma = np.array([12.0, 4.0, 3.0])
    >>> [keep.of(sigma, (8, 8)) for keep in (Keep(rank=2), Keep(energy=0.9), Keep(error=0.1))]
    [2, 2, 3]
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if [self.rank, self.energy, self.error].count(None) != 2:
            raise ValueError("give one of rank, energy and error")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank}: expected at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy {self.energy}: expected more than 0 and at most 1")
        if self.error is not None and not 0 <= self.error < 1:
            raise ValueError(f"error {self.error}: expected at least 0 and less than 1")

    @property
    def missed_share(self) -> float:
        """The share of the squared norm that `energy` or `error` allows to drop."""
        return 1 - self.energy if self.energy is not None else (self.error or 0.0) ** 2

    def of(self, sigma: np.ndarray, shape: tuple[int, int], floor: float = 0.0) -> int:
        """Return how many directions of a matrix to keep: at least 1, at most all.

        Parameters
        ----------
        sigma : ndarray, shape (k,)
            The singular values, descending; any others are zero.
        shape : (int, int)
        floor : float
            Singular values below it are rounding, and do not count as energy.
        """
        if self.rank is not None:
            found = self.rank
        elif self.energy is not None:
            found = Spectrum(sigma, shape, EPS).energy_rank(self.energy, floor)
        else:
            found = smallest_rank(sigma, self.error or 0.0)
        return min(max(found, 1), len(sigma))  # a file has no adapter of rank 0


def factors_of(
    U: np.ndarray, sigma: np.ndarray, Vt: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return B (out, k) and A (k, in), whose product has the k largest singular values.

    For a singular value of zero, only the column of B is zero. If the row of A were zero too, both
    gradients would be zero and training could not change them.
    """
    root = np.sqrt(sigma[:k])  # (k,)
    return U[:, :k] * root, np.where(root > 0, root, 1.0)[:, None] * Vt[:k]


def rounded(x: np.ndarray, dtype: Any) -> np.ndarray:
    """Return x in a type of the files; numbers too large for it become infinite."""
    with np.errstate(over="ignore"):
        return x.astype(float_dtype(dtype))


Term = tuple[float, np.ndarray, np.ndarray]  # (s, B, A) stands for s B A


def norm_of_sum(terms: Sequence[Term]) -> float:
    """Return || sum s B A ||_F, without forming a product.

    Parameters
    ----------
    terms : sequence of (float, ndarray, ndarray)
        All of the same shape (out, in), of any ranks. If the terms cancel, an error of about 1e-16
        of their own norms remains.
    """
    B, A = stacked(terms)
    return float(np.linalg.norm(spectrum((B, A)).singular_values))


def stacked(terms: Sequence[Term]) -> tuple[np.ndarray, np.ndarray]:
    """Return one B (out, sum of ranks) and A (sum of ranks, in) whose product is sum s B A."""
    B = np.hstack([s * B.astype(np.float64) for s, B, _ in terms])
    A = np.vstack([A.astype(np.float64) for _, _, A in terms])
    return B, A


def distance(B: np.ndarray, A: np.ndarray, terms: Sequence[Term]) -> float:
    """Return || B A - sum s B A ||_F, forming no product; infinite if B or A is not finite."""
    if not (np.isfinite(B).all() and np.isfinite(A).all()):
        return math.inf
    return norm_of_sum([(-1.0, B, A), *terms])


@dataclass(frozen=True)
class Truncation:
    """The result for one module, with its errors.

    Parameters
    ----------
    name : str
    shape : (int, int)
        (out, in).
    before : int or None
        Rank before; None for a change that had no factors.
    r : int
        Rank of the factors that were written.
    norm : float
        Frobenius norm of the exact change.
    missed : float
        Frobenius norm of the error before rounding: of the truncation, or of the method.
    written : float
        Frobenius norm of the error of the rounded factors in the file.
    """

    name: str
    shape: tuple[int, int]
    before: int | None
    r: int
    norm: float
    missed: float
    written: float


def total_errors(fits: Sequence[Truncation]) -> tuple[float, float]:
    """Return the relative Frobenius errors of all modules together: before rounding, as written."""
    norm, missed, written = (
        math.hypot(*(getattr(fit, name) for fit in fits)) for name in ("norm", "missed", "written")
    )
    return _over(missed, norm), _over(written, norm)


class Cut(int):
    """A rank, and the one before: a table shows both, and a file has a column for each.

    Parameters
    ----------
    r : int
    before : int, optional
        None for a rank that stands for no cut.

    Examples
    --------
    >>> from lora_np.adapters.cut import Cut
    >>> from lora_np.tables import Table
    >>> ranks = [Cut(4, 8), Cut(2, 2)]
    >>> [f"{rank}" for rank in ranks], Table({"r": ranks}).rows()[0]
    (['8 -> 4', '2 -> 2'], {'r': 4, 'r before': 8})
    """

    beside: dict[str, int]  # what a file holds in a column of its own

    def __new__(cls, r: int, before: int | None = None) -> Cut:
        """Return an int that knows what it was before."""
        made = super().__new__(cls, r)
        made.beside = {} if before is None else {"before": before}
        return made

    def __format__(self, form: str) -> str:
        return " -> ".join(format(r, form) for r in (*self.beside.values(), int(self)))


def fit_table(fits: Sequence[Truncation]) -> Table:
    """Return a table: a line for each module with its relative Frobenius errors, and one for all.

    Examples
    --------
    >>> from lora_np.adapters import Truncation, fit_table
    >>> one = Truncation("q", (64, 64), before=8, r=4, norm=2.0, missed=0.1, written=0.1)
    >>> print(fit_table([one]))
    module    shape       r  norm     error  as written
    q       64 x 64  8 -> 4     2  5.00e-02    5.00e-02
    all                         2  5.00e-02    5.00e-02
    """
    missed, written = total_errors(fits)
    fits = sorted(fits, key=lambda fit: natural(fit.name))
    columns = {
        "module": [*(fit.name for fit in fits), "all"],
        "shape": [*(f"{fit.shape[0]} x {fit.shape[1]}" for fit in fits), None],
        "r": [*(Cut(fit.r, fit.before) for fit in fits), None],
        "norm": [*(fit.norm for fit in fits), math.hypot(*(fit.norm for fit in fits))],
        "error": [*(_over(fit.missed, fit.norm) for fit in fits), missed],
        "as written": [*(_over(fit.written, fit.norm) for fit in fits), written],
    }
    forms = {"norm": ".4g", "error": ".2e", "as written": ".2e"}
    return Table(columns, forms, notes=_cancelled(fits))


def _cancelled(fits: Sequence[Truncation]) -> list[str]:
    """Return a line that lists modules whose exact sum is zero, and whose factors are not."""
    found = [fit for fit in fits if fit.norm == 0 < fit.written]
    written = math.hypot(*(fit.written for fit in found))
    names = listed([fit.name for fit in found])
    return [f"the sum is zero in {names}; the factors have norm {written:.2e}"] if found else []


def _over(error: float, norm: float) -> float:
    if norm > 0:
        return error / norm
    return math.inf if error > 0 else 0.0  # the exact sum is zero
