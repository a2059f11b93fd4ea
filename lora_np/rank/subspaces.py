r"""Which directions does a change use, and does another change use the same ones?

Angles. Let the columns of U (n, i) and V (n, j), i >= j, be orthonormal. The cosines of the angles
between the two spaces are the singular values of U^T V, and the sines those of (I - U U^T) V. Near
angle 0 the cosine is flat: arccos turns a rounding error of eps into an angle of sqrt(eps). Near
pi/2 the sine is flat. So an angle below pi/4 is computed from its sine, and a larger angle from its
cosine (Bjorck, Golub 1973).

Similarity (Hu et al. 2021, section 7.2, equation 4) of the first i directions of one matrix and
the first j directions of another::

    phi(i, j) = ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j) = mean squared cosine, from 0 to 1.

Random spaces have a similarity above 0. A random unit vector u has E (u^T v)^2 = 1/n for every
fixed unit vector v: by symmetry all n coordinates have equal mean squares, which add up to 1. So
E ||U^T V||_F^2 = i j / n, and E phi(i, j) = max(i, j) / n.

Bjorck, Golub: Mathematics of Computation 27, 579. Hu et al.: LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import math

import numpy as np

from lora_np.backend import Array, ShapeError, to_host
from lora_np.rank.inputs import prepare


def principal_angles(U: Array, V: Array) -> np.ndarray:
    """Return the principal angles between the spaces spanned by the columns of two matrices.

    Parameters
    ----------
    U : array, shape (n, i)
    V : array, shape (n, j)
        The columns need not be orthonormal. Directions with singular values up to
        max(n, i) eps sigma_1 (max(n, j) for V) are rounding and do not count, as in the numerical
        rank.

    Returns
    -------
    ndarray, shape (min(rank U, rank V),), float64
        In radians, from 0 to pi/2, ascending. The rounding error is a few eps at all angles.

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
    >>> V = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # holds x, tilted by 45 degrees
    >>> [round(math.degrees(angle), 6) for angle in principal_angles(U, V)]
    [0.0, 45.0]
    """
    _require_equal_rows("U", U, "V", V)
    one, other = _basis("U", U), _basis("V", V)
    large, small = (one, other) if one.shape[1] >= other.shape[1] else (other, one)
    overlap = large.T @ small  # (i, j), i >= j
    cosines = np.linalg.svd(overlap, compute_uv=False)  # (j,) descending
    sines = np.linalg.svd(small - large @ overlap, compute_uv=False)[::-1]  # (j,) ascending
    steep = cosines**2 > 0.5  # where the sine is steeper than the cosine
    return np.where(steep, np.arcsin(np.minimum(sines, 1)), np.arccos(np.minimum(cosines, 1)))


def subspace_similarity(U1: Array, U2: Array) -> np.ndarray:
    """Return phi(i, j), the similarity of the first i columns of U1 and the first j of U2.

    Parameters
    ----------
    U1 : array, shape (n, i_max)
    U2 : array, shape (n, j_max)
        Orthonormal columns, the most important first: left or right singular vectors.

    Returns
    -------
    ndarray, shape (i_max, j_max), float64
        Entry [i - 1, j - 1] is ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j): 1 if one space contains
        the other, 0 if they are orthogonal, :func:`random_similarity` on average by chance.

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
    # the squared norm of a corner is the sum over it: cumulative sums give all corners at once
    corners = squares.cumsum(axis=0).cumsum(axis=1)  # (i_max, j_max)
    i = np.arange(1, squares.shape[0] + 1)[:, None]
    j = np.arange(1, squares.shape[1] + 1)[None, :]
    return corners / np.minimum(i, j)


def random_similarity(n: int, i: int, j: int) -> float:
    """Return the mean of phi(i, j) over random subspaces: max(i, j) / n.

    Parameters
    ----------
    n : int
        Dimension of the whole space.
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


def _require_equal_rows(name1: str, M1: Array, name2: str, M2: Array) -> None:
    shape1, shape2 = np.shape(M1), np.shape(M2)
    if shape1[:1] != shape2[:1]:
        raise ShapeError(f"{name2} has shape {shape2}, expected as many rows as {name1} {shape1}")


def _basis(name: str, M: Array) -> np.ndarray:
    """Return orthonormal columns (n, rank) that span the columns of M (n, i)."""
    matrix, _, eps = prepare(name, to_host(M))
    U, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return U[:, values > max(matrix.shape) * eps * values[0]]


def _orthonormal(name: str, U: Array) -> np.ndarray:
    """Return U in float64 if its columns are orthonormal to half of its digits, else raise."""
    matrix, unit, eps = prepare(name, to_host(U))
    matrix = matrix * unit
    error = float(np.abs(matrix.T @ matrix - np.eye(matrix.shape[1])).max())
    if error > math.sqrt(eps):
        raise ValueError(
            f"the columns of {name} are not orthonormal (off by {error:.1e}): pass singular vectors"
        )
    return matrix
