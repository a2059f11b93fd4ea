r"""Which directions does a change use, and does another change use the same ones?

The SVD of a product by its factors. With B = Q_B R_B and A^T = Q_A R_A, both Q with orthonormal
columns, B A = Q_B (R_B R_A^T) Q_A^T. The core in the middle is at most (r, r); with its SVD
X S Y^T, B A = (Q_B X) S (Q_A Y)^T. That is O((out + in) r^2), and no (out, in) array.

Angles. Let the columns of U (n, i) and V (n, j), i >= j, be orthonormal. The cosines of the angles
between the two spaces are the singular values of U^T V, their sines those of (I - U U^T) V. Near
0 the cosine is flat: arccos turns a rounding error of eps into an angle of sqrt(eps). The
sine is not, and near pi/2 it is the other way round. So an angle below pi/4 is taken from its sine
and one above from its cosine (Bjorck, Golub 1973).

Similarity (Hu et al. 2021, section 7.2, equation 4): of the first i directions of one matrix and
the first j of another::

    phi(i, j) = ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j) = mean squared cosine, from 0 to 1.

It has a floor that is not 0. A random unit vector u has E (u^T v)^2 = 1/n for every fixed unit
vector v: by symmetry all n coordinates have equal mean squares, and these add up to 1. So
E ||U^T V||_F^2 = i j / n, and random spaces have E phi(i, j) = max(i, j) / n.

Amplification (section 7.3, table 7): does a change repeat what W0 does already? With the top r
singular directions of the change, U (out, r) and V (r, in), ||U^T W0 V^T||_F is how much of W0 lies
in them, and ||delta||_F over it how far the change amplifies that. Two marks to read it by. W0's
own top directions hold the most: sqrt(sum_{i<=r} sigma_i^2). Random ones hold in root mean square
r ||W0||_F / sqrt(out in): each of the r^2 entries u^T W0 v has the mean square
||W0||_F^2 / (out in), by the symmetry above on either side.

Intruders (Shuttleworth et al. 2024, algorithm 1): singular vectors high up in the changed matrix
that resemble none of the pretrained one.

Bjorck, Golub: Mathematics of Computation 27, 579. Hu et al.: LoRA, arXiv:2106.09685.
Shuttleworth, Andreas, Torralba, Sharma: LoRA vs full fine-tuning: an illusion of equivalence,
arXiv:2410.21228.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lora_np.backend import Array, ShapeError, to_host
from lora_np.rank.inputs import (
    in_range,
    prepare,
    prepare_factors,
    require_pair,
    require_scale,
    spacing,
)
from lora_np.rank.randomised import dense_svd


def svd_of_factors(
    B: Array, A: Array, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin SVD of ``scale * B @ A``, which is never formed.

    Parameters
    ----------
    B : array, shape (out, r)
    A : array, shape (r, in)
        Real numbers. Work is done on the host, in float64.
    scale : float
        For LoRA, lora_alpha / r.

    Returns
    -------
    U : ndarray, shape (out, k), float64
        Orthonormal columns, k = min(out, in, r).
    sigma : ndarray, shape (k,), float64
        Descending. The rounding error is about eps ||B|| ||A||; directions whose value is no
        larger are arbitrary.
    Vt : ndarray, shape (k, in), float64
        Orthonormal rows.

    Raises
    ------
    ShapeError
        If an array is not 2-D, is empty, or the inner sizes differ.
    ValueError
        If an entry or `scale` is not finite, or the singular values leave float64's range.
    TypeError
        If the entries are not real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import svd_of_factors
    >>> rng = np.random.default_rng(0)
    >>> B, A = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    >>> U, sigma, Vt = svd_of_factors(B, A, scale=0.5)
    >>> sigma.shape, np.allclose((U * sigma) @ Vt, 0.5 * B @ A)
    ((2,), True)
    """
    require_scale(scale)
    B64, A64, unit, _ = prepare_factors(to_host(B), to_host(A))
    Q_B, R_B = np.linalg.qr(B64)  # (out, min(out, r)), (min(out, r), r)
    Q_A, R_A = np.linalg.qr(A64.T)  # (in, min(in, r)), (min(in, r), r)
    X, values, Yt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)  # k = min(out, in, r)
    U = Q_B @ X  # (out, k)
    Vt = Yt @ Q_A.T  # (k, in)
    # singular values are not negative: the sign of the scale goes to one side
    return (-U if scale < 0 else U), in_range(values, unit, scale), Vt


def principal_angles(U: Array, V: Array) -> np.ndarray:
    """Return the principal angles between the spaces spanned by the columns of two matrices.

    Parameters
    ----------
    U : array, shape (n, i)
    V : array, shape (n, j)
        Columns need not be orthonormal. What they span is decided as the numerical rank is:
        directions below max(n, i) eps sigma_1 are rounding and do not count.

    Returns
    -------
    ndarray, shape (min(rank U, rank V),), float64
        In radians, from 0 to pi/2, ascending. Rounding is a few eps over the whole range.

    Raises
    ------
    ShapeError
        If a matrix is not 2-D or is empty, or the numbers of rows differ.
    ValueError
        If an entry is not finite.
    TypeError
        If the entries are not real numbers.

    References
    ----------
    Bjorck, Golub: Numerical methods for computing angles between linear subspaces. Mathematics of
    Computation 27 (1973).

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from lora_np import principal_angles
    >>> U = np.eye(3)[:, :2]  # the plane of x and y
    >>> V = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # holds x, and leans by 45 degrees
    >>> [round(math.degrees(angle), 6) for angle in principal_angles(U, V)]
    [0.0, 45.0]
    """
    _require_equal_rows("U", U, "V", V)
    one, other = _basis("U", U), _basis("V", V)
    large, small = (one, other) if one.shape[1] >= other.shape[1] else (other, one)
    overlap = large.T @ small  # (i, j), i >= j
    cosines = np.linalg.svd(overlap, compute_uv=False)  # (j,) descending
    sines = np.linalg.svd(small - large @ overlap, compute_uv=False)[::-1]  # (j,) ascending
    steep = cosines**2 > 0.5  # where the sine is the steeper of the two
    return np.where(steep, np.arcsin(np.minimum(sines, 1)), np.arccos(np.minimum(cosines, 1)))


def subspace_similarity(U1: Array, U2: Array) -> np.ndarray:
    """Return phi(i, j), how much the first i columns of one share with the first j of the other.

    Parameters
    ----------
    U1 : array, shape (n, i_max)
    U2 : array, shape (n, j_max)
        Orthonormal columns, the most important first: left singular vectors, or right ones.

    Returns
    -------
    ndarray, shape (i_max, j_max), float64
        ``grid[i - 1, j - 1]`` is ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j): 1 where one space
        holds the other, 0 where they are orthogonal. Chance is :func:`random_similarity`.

    Raises
    ------
    ShapeError
        If a matrix is not 2-D or is empty, or the numbers of rows differ.
    ValueError
        If columns are not orthonormal or not finite.
    TypeError
        If the entries are not real numbers.

    References
    ----------
    Hu et al.: LoRA. arXiv:2106.09685, section 7.2, equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import subspace_similarity
    >>> one, other = np.eye(4)[:, [0, 1]], np.eye(4)[:, [1, 2]]  # they share the second direction
    >>> subspace_similarity(one, other).tolist()
    [[0.0, 0.0], [1.0, 0.5]]
    """
    _require_equal_rows("U1", U1, "U2", U2)
    one, other = _orthonormal("U1", U1), _orthonormal("U2", U2)
    squares = (one.T @ other) ** 2  # (i_max, j_max)
    # the squared norm of a corner is a sum over it: all corners at once by running sums
    corners = squares.cumsum(axis=0).cumsum(axis=1)  # (i_max, j_max)
    i = np.arange(1, squares.shape[0] + 1)[:, None]
    j = np.arange(1, squares.shape[1] + 1)[None, :]
    return corners / np.minimum(i, j)


def random_similarity(n: int, i: int, j: int) -> float:
    """Return what phi(i, j) is on average for random subspaces: max(i, j) / n.

    Parameters
    ----------
    n : int
        Dimensions of the whole space.
    i, j : int
        Dimensions of the two subspaces, from 1 to n.

    Raises
    ------
    ValueError
        If `i` or `j` is outside that range.

    Examples
    --------
    >>> from lora_np import random_similarity
    >>> random_similarity(n=64, i=4, j=8)
    0.125
    """
    for name, size in (("i", i), ("j", j)):
        if not 1 <= size <= n:
            raise ValueError(f"{name} is {size}: it must be from 1 to n = {n}")
    return max(i, j) / n


@dataclass(frozen=True)
class Amplification:
    """How a change lies to the matrix that it changes (LoRA's table 7).

    Attributes
    ----------
    r : int
        How many directions each figure takes.
    in_delta, in_W0, in_random : float
        ||U^T W0 V^T||_F for the top r singular directions of the change, for those of W0 (the most
        there can be), and for random ones (root mean square, in closed form).
    norm_W0, norm_delta : float
        ||W0||_F and ||delta||_F.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import amplification
    >>> found = amplification(np.diag([8.0, 4.0, 1.0]), np.diag([0.0, 0.0, 5.0]), r=1)
    >>> round(found.factor, 6), round(found.in_random, 6)  # 5 / 1; 9 / 3, by chance
    (5.0, 3.0)
    """

    r: int
    in_delta: float
    in_W0: float
    in_random: float
    norm_W0: float
    norm_delta: float

    @property
    def factor(self) -> float:
        """||delta||_F / ||U^T W0 V^T||_F; inf where W0 has nothing in the change's directions."""
        return self.norm_delta / self.in_delta if self.in_delta > 0 else math.inf


def amplification(
    W0: Array, delta: Array | tuple[Array, Array], r: int, scale: float = 1.0
) -> Amplification:
    """Return how much of W0 lies in the top r directions of a change, and how the change compares.

    Parameters
    ----------
    W0 : array, shape (out, in)
    delta : array, shape (out, in), or a tuple (B, A) of shapes (out, r') and (r', in)
        The change; a tuple stands for B A, which is never formed.
    r : int
        From 1 to the numerical rank of the change: beyond it, directions are arbitrary.
    scale : float
        Multiplies `delta`.

    Returns
    -------
    Amplification

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    ValueError
        If `r` is outside its range, or an entry or `scale` is not finite.
    TypeError
        If the entries are not real numbers.

    References
    ----------
    Hu et al.: LoRA. arXiv:2106.09685, section 7.3, table 7.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import amplification
    >>> W0, delta = np.diag([8.0, 4.0, 1.0]), np.diag([0.0, 0.0, 5.0])
    >>> found = amplification(W0, delta, r=1)  # the change lies where W0 has little
    >>> round(found.in_delta, 6), round(found.in_W0, 6), round(found.factor, 6)
    (1.0, 8.0, 5.0)
    """
    W, unit, _ = prepare("W0", to_host(W0))
    U, sigma, Vt = _svd_of_change("delta", delta, scale)
    _require_shape("delta", (U.shape[0], Vt.shape[1]), W.shape)
    rank = int(np.sum(sigma > max(W.shape) * _spacing_of(delta) * sigma[0]))
    if not 1 <= r <= rank:
        raise ValueError(f"r is {r}: it must be from 1 to the numerical rank of delta, {rank}")
    own = np.linalg.svd(W, compute_uv=False)  # (min(out, in),)
    norm_W0 = unit * float(np.linalg.norm(own))
    return Amplification(
        r=r,
        in_delta=unit * float(np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T)),
        in_W0=unit * float(np.linalg.norm(own[:r])),
        in_random=r * norm_W0 / math.sqrt(W.size),
        norm_W0=norm_W0,
        norm_delta=float(np.linalg.norm(sigma)),
    )


@dataclass(frozen=True, eq=False)
class Intruders:
    """The top singular vectors of a changed matrix, and how nearly W0 has each of them.

    Attributes
    ----------
    cosines : ndarray, shape (k,)
        Of each left singular vector of the changed matrix, in descending order of its singular
        value: the largest ``|cosine|`` with a left singular vector of W0.
    threshold : float
        Below which it is an intruder.
    """

    cosines: np.ndarray
    threshold: float

    @property
    def indices(self) -> list[int]:
        """Which of the k are intruders, counted from 0."""
        return [int(i) for i in np.flatnonzero(self.cosines < self.threshold)]

    @property
    def count(self) -> int:
        """How many of the k are intruders."""
        return len(self.indices)


def intruder_dimensions(
    W0: Array,
    W: Array | tuple[Array, Array],
    k: int = 10,
    threshold: float = 0.5,
    scale: float = 1.0,
) -> Intruders:
    """Return which top singular vectors of a changed matrix resemble none of the pretrained one's.

    Of the k left singular vectors of W with the largest singular values, an intruder is one whose
    ``|cosine|`` with EVERY left singular vector of W0 is below the threshold. Those of W0 are the
    ones whose singular value is above its rounding (max(out, in) eps sigma_1): the rest are
    arbitrary. So in a tall matrix, or a W0 of low rank, a vector may lie outside of all of them.

    Parameters
    ----------
    W0 : array, shape (out, in)
    W : array, shape (out, in), or a tuple (B, A) of shapes (out, r) and (r, in)
        The changed matrix; a tuple stands for W0 + scale B A.
    k : int
        From 1 to min(out, in). The paper takes 10.
    threshold : float
        Its epsilon, from 0 to 1; the paper mostly takes 0.5.
    scale : float
        Multiplies a change given as factors; 1 for a matrix.

    Returns
    -------
    Intruders

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    ValueError
        If an argument is outside its range, or an entry is not finite.
    TypeError
        If the entries are not real numbers.

    References
    ----------
    Shuttleworth et al.: arXiv:2410.21228, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import intruder_dimensions
    >>> W0, BA = np.diag(np.arange(9.0, 0.0, -1.0)), (np.ones((9, 1)), np.ones((1, 9)))
    >>> [intruder_dimensions(W0, BA, k=1, scale=s).count for s in (0.001, 100.0)]
    [0, 1]
    """
    base, unit, eps = prepare("W0", to_host(W0))
    _check_intruders(base.shape, k, threshold)
    W = _changed(base * unit, W, scale)  # (out, in)
    before, sigma, _ = dense_svd(base)
    before = before[:, sigma > max(base.shape) * eps * sigma[0]]  # (out, rank)
    after = dense_svd(W, "W")[0][:, :k]  # (out, k)
    cosines = np.abs(before.T @ after).max(axis=0, initial=0.0)  # (k,)
    return Intruders(np.minimum(cosines, 1.0), threshold)


def _check_intruders(shape: tuple[int, ...], k: int, threshold: float) -> None:
    if not 1 <= k <= min(shape):
        raise ValueError(f"k is {k}: it must be from 1 to {min(shape)}, W0's shorter side")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}: a cosine from 0 to 1 is expected")


def _changed(base: np.ndarray, W: Array | tuple[Array, Array], scale: float) -> Array:
    """Return the changed matrix: W itself, or base + scale B A."""
    if isinstance(W, tuple):
        B, A, unit, _ = prepare_factors(*(to_host(x) for x in require_pair("W", W)))
        require_scale(scale)
        _require_shape("B A", (B.shape[0], A.shape[1]), base.shape)
        return base + (scale * unit) * (B @ A)  # (out, in)
    if scale != 1:
        raise ValueError(f"scale is {scale}: it belongs to factors, a matrix W is taken as it is")
    _require_shape("W", np.shape(W), base.shape)
    return W


def _svd_of_change(
    name: str, delta: Array | tuple[Array, Array], scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin SVD of ``scale`` times a matrix or a product."""
    if isinstance(delta, tuple):
        return svd_of_factors(*require_pair(name, delta), scale)
    require_scale(scale)
    U, sigma, Vt = dense_svd(delta, name)
    return (-U if scale < 0 else U), in_range(sigma, 1.0, scale), Vt


def _spacing_of(matrix: Array | tuple[Array, Array]) -> float:
    """Return the relative spacing of the numbers that a matrix or its factors are given in."""
    arrays = matrix if isinstance(matrix, tuple) else (matrix,)
    return max(spacing(to_host(x).dtype) for x in arrays)


def _require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(expected):
        raise ShapeError(f"{name} has shape {tuple(shape)}: {expected} is expected, as W0's")


def _require_equal_rows(name1: str, M1: Array, name2: str, M2: Array) -> None:
    shape1, shape2 = np.shape(M1), np.shape(M2)
    if shape1[:1] != shape2[:1]:
        raise ShapeError(f"{name2} has shape {shape2}: as many rows as {name1} {shape1} has")


def _basis(name: str, M: Array) -> np.ndarray:
    """Return orthonormal columns (n, rank) that span the columns of M (n, i)."""
    matrix, _, eps = prepare(name, to_host(M))
    U, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return U[:, values > max(matrix.shape) * eps * values[0]]


def _orthonormal(name: str, U: Array) -> np.ndarray:
    """Return U in float64 if its columns are orthonormal to half of the digits that it has."""
    matrix, unit, eps = prepare(name, to_host(U))
    matrix = matrix * unit
    error = float(np.abs(matrix.T @ matrix - np.eye(matrix.shape[1])).max())
    if error > math.sqrt(eps):
        raise ValueError(
            f"the columns of {name} are not orthonormal (off by {error:.1e}): pass singular vectors"
        )
    return matrix
