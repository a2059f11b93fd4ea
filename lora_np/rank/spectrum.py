r"""How many directions does a matrix use? Its singular values, and measures of rank from them.

Let sigma_1 >= ... >= sigma_n >= 0 be the singular values of M (out, in), n = min(out, in), and let
p_i = sigma_i^2 / sum_j sigma_j^2 be the energy in direction i, q_i = sigma_i / sum_j sigma_j::

    numerical rank       #{i : sigma_i > max(out, in) eps sigma_1}
        How many directions exceed the rounding of the numbers?           (NumPy's matrix_rank)
    stable rank          ||M||_F^2 / ||M||_2^2 = sum sigma_i^2 / sigma_1^2 = 1 / max_i p_i
        How large is the total energy relative to the largest direction?  (Rudelson, Vershynin 2007)
    participation ratio  (sum sigma_i^2)^2 / sum sigma_i^4 = 1 / sum p_i^2
        Over how many equal directions is the energy spread?              (Bell, Dean 1970)
    effective rank       exp(-sum q_i log q_i)
        The same by entropy, of sigma instead of sigma^2: sees the tail.  (Roy, Vetterli 2007)
    energy rank          least k with sum_{i<=k} sigma_i^2 >= fraction sum sigma_i^2
        How large must r be to keep that fraction of ||M||_F^2?           (Jolliffe 2002, 6.1.1)

All are 1 for a matrix of rank one and do not change when M is scaled or rotated. A zero matrix has
0 for each; an orthogonal matrix has n, and energy rank ceil(fraction n). For M != 0::

    1 <= stable rank <= participation ratio <= effective rank <= #{i : sigma_i > 0}
    energy rank(fraction) >= fraction * stable rank

The first line: max_i p_i >= sum p_i^2 because the p_i are weights; the exponentials of the Renyi
entropies of p of order 2, 1 and 0 ascend; and exp H(p) <= exp H(q), because for p_i(b) ~ sigma_i^b
we have dH/db = -b Var(log sigma) <= 0, with p at b = 2 and q at b = 1. The second line: k
directions hold at most k sigma_1^2. The NUMERICAL rank has no such order: a thousand values just
below its tolerance do not count, but they raise the effective rank.

Bell, Dean: Discuss. Faraday Soc. 50, 55. Jolliffe: Principal
Component Analysis, 2nd ed. Roy, Vetterli: EUSIPCO 2007, 606. Rudelson, Vershynin: J. ACM 54(4), 21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np.backend import Array, get_xp, to_host
from lora_np.rank.floor import EPS, least_rank
from lora_np.rank.inputs import (
    in_range,
    prepare,
    prepare_factors,
    require_pair,
    require_scale,
)
from lora_np.rank.noise import (
    estimate_noise,
    gavish_donoho_threshold,
    has_noise_floor,
    marchenko_pastur_edge,
)
from lora_np.tables import Table, Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)  # eq would compare arrays, which have no single answer
class Spectrum(Tabular):
    """The singular values of a matrix, and the measures of rank that this module defines.

    Parameters
    ----------
    singular_values : ndarray, shape (k,), float64
        Descending. The other singular values of the matrix are exactly zero.
    shape : (int, int)
        The matrix's (out, in).
    eps : float
        Relative spacing of the numbers that the matrix was given in: 1.2e-7 for float32.
    of_factors : bool
        Whether the matrix was given as a product, which has no noise floor.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import spectrum
    >>> found = spectrum(np.diag([3.0, 3.0, 3.0, 0.0]))
    >>> found.numerical_rank, round(found.stable_rank, 6), round(found.effective_rank, 6)
    (3, 3.0, 3.0)
    >>> found.energy_rank(0.5)  # two of three directions hold 67 %
    2
    """

    singular_values: np.ndarray
    shape: tuple[int, int]
    eps: float
    of_factors: bool = False

    @property
    def numerical_rank(self) -> int:
        """The number of singular values above max(out, in) eps sigma_1.

        The tolerance bounds the largest possible rounding error, so it is too large to be useful in
        coarse dtypes: in float16 (eps = 1e-3), at a side of 1024, it reaches sigma_1 and the rank
        is 0.
        """
        # sigma / sigma_1 instead of sigma: the tolerance of a tiny matrix would underflow
        return int(np.sum(self._relative > max(self.shape) * self.eps))

    @property
    def stable_rank(self) -> float:
        """||M||_F^2 / ||M||_2^2; 0 for a zero matrix."""
        return float(np.sum(self._relative**2))  # sigma_1 is 1 here

    @property
    def participation_ratio(self) -> float:
        """(sum sigma^2)^2 / sum sigma^4; 0 for a zero matrix."""
        energy = self._relative**2
        return float(energy.sum() ** 2 / np.sum(energy**2)) if energy.size else 0.0

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of sigma_i / sum sigma; 0 for a zero matrix."""
        share = self._relative / self._relative.sum()
        share = share[share > 0]  # a direction without weight adds 0 log 0 = 0
        return float(np.exp(-np.sum(share * np.log(share)))) if share.size else 0.0

    @property
    def energy_ranks(self) -> dict[float, int]:
        """The energy ranks at 90, 95 and 99 percent of the sum of squares."""
        return {fraction: self.energy_rank(fraction) for fraction in (0.90, 0.95, 0.99)}

    def energy_rank(self, fraction: float, floor: float = 0.0) -> int:
        """Return the least k whose first k squared singular values hold `fraction` of their sum.

        Parameters
        ----------
        fraction : float
            More than 0, at most 1.
        floor : float
            Smaller singular values are noise and count as zero.

        Returns
        -------
        int
            0 if no value counts.

        Raises
        ------
        ValueError
            If `fraction` is outside (0, 1].
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}: it must be more than 0 and at most 1")
        sigma = self._relative
        sigma = sigma[: int(np.sum(self.singular_values >= floor))]
        if sigma.size == 0:
            return 0
        # Nine of ten equal values hold 90 %, even if rounding makes their sum slightly smaller.
        return max(1, least_rank(sigma, 1 - fraction + sigma.size * EPS))

    @property
    def noise(self) -> float | None:
        """Standard deviation of the noise in an entry, from the median singular value (noise.py).

        None if it is not defined: for factors, whose product has no noise floor, and if the median
        does not exceed rounding (see `numerical_rank`).
        """
        floor = has_noise_floor(self.singular_values, self.shape, self.eps)
        if self.of_factors or not floor:
            return None
        return estimate_noise(self.singular_values, self.shape)

    @property
    def bulk_rank(self) -> int | None:
        """The number of singular values above the Marchenko-Pastur edge; None if `noise` is."""
        if (noise := self.noise) is None:
            return None
        return int(np.sum(self.singular_values > marchenko_pastur_edge(noise, self.shape)))

    @property
    def hard_threshold_rank(self) -> int | None:
        """The number of values above Gavish and Donoho's threshold; None if `noise` is."""
        if (noise := self.noise) is None:
            return None
        return int(np.sum(self.singular_values > gavish_donoho_threshold(self.shape, noise)))

    @property
    def _relative(self) -> np.ndarray:
        """The values over the largest one, so that no square overflows; empty for a zero matrix."""
        sigma = self.singular_values
        return sigma / sigma[0] if sigma[0] > 0 else sigma[:0]  # (k,) or (0,)

    def as_dict(self) -> dict[str, Any]:
        """Return the shape, the singular values to 6 digits and four measures, ready for JSON."""
        return {
            "shape": list(self.shape),
            "singular_values": [float(f"{s:.6g}") for s in self.singular_values],
            "stable_rank": self.stable_rank,
            "effective_rank": self.effective_rank,
            "participation_ratio": self.participation_ratio,
            "energy_ranks": {f"{f:.2f}": k for f, k in self.energy_ranks.items()},
        }

    def table(self) -> Table:
        """Return the ranks as a table."""
        ranks = {
            "numerical rank": self.numerical_rank,
            "stable rank": f"{self.stable_rank:.2f}",
            "participation ratio": f"{self.participation_ratio:.2f}",
            "effective rank": f"{self.effective_rank:.2f}",
            **{f"{f:.0%} energy rank": k for f, k in self.energy_ranks.items()},
        }
        out, in_ = self.shape
        title = f"{out} x {in_} matrix, sigma_1 = {self.singular_values[0]:.3g}"
        columns = {"measure": list(ranks), "rank": list(ranks.values())}
        return Table(columns, title=title, headings=False)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the singular values; see :func:`lora_np.rank.picture.plot_singular_values`.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw. By default, in a new figure.

        Returns
        -------
        Axes
        """
        from lora_np.rank.picture import plot_singular_values

        return plot_singular_values(self, ax=ax)

    def __str__(self) -> str:
        title, *lines = self.table().text().splitlines()
        return "\n".join([title, *(f"  {line}" for line in lines)])


def spectrum(M: Array | tuple[Array, Array], scale: float = 1.0) -> Spectrum:
    """Return the singular values of a matrix, or of a product given by its two factors.

    Parameters
    ----------
    M : array, shape (out, in), or a tuple (B, A) of shapes (out, r) and (r, in)
        Real numbers, on the host or on a GPU. A tuple stands for the product B A, which is never
        formed: with B = Q_B R_B and A^T = Q_A R_A, B A = Q_B (R_B R_A^T) Q_A^T has the singular
        values of the small matrix R_B R_A^T.
    scale : float
        Multiplies the matrix: for LoRA, lora_alpha / r.

    Returns
    -------
    Spectrum
        It has min(out, in) singular values, or min(out, in, r) for factors, whose other values are
        exactly zero. The values for factors have a rounding error of about eps ||B|| ||A||: if the
        product cancels to 0, they are of that size instead of 0.

    Raises
    ------
    ShapeError
        If an array is not 2-D, is empty, or the inner sizes of B and A differ.
    ValueError
        If an entry or `scale` is not finite, or the singular values leave float64's range.
    TypeError
        If the entries are not real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import spectrum
    >>> B, A = np.diag([3.0, 2.0])[:, ::-1], np.eye(2, 1000)  # B A is 2 x 1000
    >>> spectrum((B, A), scale=10.0).singular_values.round(6).tolist()
    [30.0, 20.0]
    """
    require_scale(scale)
    svd = _svd_of_factors(*require_pair("M", M)) if isinstance(M, tuple) else _svd_of_matrix(M)
    values, unit, shape, eps = svd
    return Spectrum(in_range(values, unit, scale), shape, eps, of_factors=isinstance(M, tuple))


def _svd_of_matrix(M: Array) -> tuple[np.ndarray, float, tuple[int, int], float]:
    """Return (values, unit, shape, eps): M has the singular values ``values * unit``."""
    matrix, unit, eps = prepare("M", M)
    return _svd_values(matrix), unit, matrix.shape, eps


def _svd_of_factors(B: Array, A: Array) -> tuple[np.ndarray, float, tuple[int, int], float]:
    """Return (values, unit, shape, eps) of B A, in O((out + in) r^2) operations."""
    B64, A64, unit, eps = prepare_factors(B, A)  # (out, r), (r, in)
    xp = get_xp(B64)
    # Q has orthonormal columns, so it does not change the singular values
    R_B = xp.linalg.qr(B64, mode="r")  # (min(out, r), r)
    R_A = xp.linalg.qr(A64.T, mode="r")  # (min(in, r), r)
    values = _svd_values(R_B @ R_A.T)  # (min(out, in, r),)
    return values, unit, (B64.shape[0], A64.shape[1]), eps


def _svd_values(matrix: Array) -> np.ndarray:
    """Return the singular values, descending, on the host."""
    return to_host(get_xp(matrix).linalg.svd(matrix, compute_uv=False))  # (min of the sides,)
