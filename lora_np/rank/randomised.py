r"""Singular vectors of a large matrix: the dense SVD, and a few directions by random probing.

The product of M with a few random vectors points mostly along the large directions of M. With a
Gaussian G (in, l), l = k + oversample::

    Q = orth(M G);  power times: Q = orth(M^T Q), Q = orth(M Q)       (Halko et al., algorithm 4.4)
    Q^T M = X S V^T, a small SVD;  U = Q X                            (algorithm 5.1)

Each round through M M^T multiplies the ratio of two directions by (sigma_i / sigma_j)^2; orth after
each product keeps small directions from being lost to rounding. Only the products M @ X and M.T @ Y
are needed, so M may be the difference of two files that is never held in memory.

The error. U diag(sigma) V^T = U U^T M, so its error is R = (I - U U^T) M. For ten new Gaussian
vectors w_i, independent of U, with probability at least 1 - 10^-10::

    ||R||_2 <= 10 sqrt(2 / pi) max_i ||R w_i||

(Halko et al., lemma 4.1 and equation 4.3). This is a bound, not an estimate: it is about 15 times
the error if the values left out fall fast, and more if they are equal. It costs ten products of M
with a vector.

Halko, Martinsson, Tropp: Finding structure with randomness. SIAM Review 53 (2011), arXiv:0909.4061.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, to_host
from lora_np.rank.inputs import in_range, prepare

PROBES = 10  # each probe divides the probability that the bound fails by ten


class ResidualBound(NamedTuple):
    """The error of a low-rank approximation of a matrix.

    Attributes
    ----------
    spectral : float
        An upper bound of ||M - U diag(sigma) Vt||_2, with probability at least 1 - 10^-10 over the
        probes.
    frobenius : float or None
        ||M - U diag(sigma) Vt||_F itself; None if M is an operator, whose entries are not known.
    """

    spectral: float
    frobenius: float | None


def dense_svd(M: Array, name: str = "M") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin SVD of a matrix, in float64.

    LAPACK's divide and conquer (gesdd) is tried first; if that does not converge, the slower QR
    iteration (gesvd) is used.

    Parameters
    ----------
    M : array, shape (out, in)
    name : str
        The name of the matrix in errors.

    Returns
    -------
    U : ndarray, shape (out, k)
    sigma : ndarray, shape (k,)
        Descending, k = min(out, in).
    Vt : ndarray, shape (k, in)

    Raises
    ------
    ShapeError
        If `M` is not 2-D or is empty.
    ValueError
        If an entry is not finite, or the singular values leave float64's range.
    TypeError
        If the entries are not real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.rank import dense_svd
    >>> U, sigma, Vt = dense_svd(np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]))
    >>> U.shape, sigma.tolist(), Vt.shape
    ((3, 2), [2.0, 1.0], (2, 2))
    """
    import scipy.linalg

    matrix, unit, _ = prepare(name, to_host(M))
    try:
        U, values, Vt = scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesdd")
    except np.linalg.LinAlgError:
        U, values, Vt = scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")
    return U, in_range(values, unit, 1.0), Vt


def randomised_svd(
    M: Any, k: int, rng: np.random.Generator, oversample: int = 10, power: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray, ResidualBound]:
    """Return approximate top k singular values and vectors of a matrix, and a bound on the error.

    Parameters
    ----------
    M : array of shape (out, in), or an operator
        An operator has ``shape``, ``M @ X`` and ``M.T @ Y`` for 2-D X and Y.
    k : int
        From 1 to min(out, in).
    rng : numpy.random.Generator
    oversample : int
        Number of further directions that are probed and then dropped; at least 0.
    power : int
        Number of rounds through M M^T; at least 0, which suffices if singular values fall fast.

    Returns
    -------
    U : ndarray, shape (out, k), float64
    sigma : ndarray, shape (k,)
        Each is at most the true value, because they are singular values of a projection of M.
    Vt : ndarray, shape (k, in)
    bound : ResidualBound
        The error of ``(U * sigma) @ Vt``. No approximation of rank k has a spectral error below
        sigma_{k+1}.

    Raises
    ------
    ShapeError
        If `M` is not 2-D or is empty.
    ValueError
        If an entry or a product is not finite, or a number is outside its range.
    TypeError
        If the entries of an array are not real numbers.

    References
    ----------
    Halko, Martinsson, Tropp: arXiv:0909.4061, algorithms 4.4 and 5.1, equation 4.3.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import randomised_svd
    >>> M = np.diag([9.0, 4.0, 0.1, 0.0])
    >>> U, sigma, Vt, bound = randomised_svd(M, 2, np.random.default_rng(0))
    >>> sigma.round(6).tolist(), bound.spectral >= 0.1
    ([9.0, 4.0], True)
    """
    unit, dense = 1.0, isinstance(M, np.ndarray)
    if dense:
        M, unit, _ = prepare("M", M)
    _require_sizes(M, k, oversample, power)
    probes = rng.standard_normal((M.shape[1], min(k + oversample, *M.shape)))  # (in, l)
    Q = _leading_space(M, probes, power)  # (out, l)
    X, values, Vt = np.linalg.svd(np.asarray(M.T @ Q).T, full_matrices=False)  # of Q^T M (l, in)
    U, Vt = Q @ X[:, :k], Vt[:k]
    sigma = in_range(values[:k], unit, 1.0)
    frobenius = unit * float(np.linalg.norm(M - U @ (U.T @ M))) if dense else None
    return U, sigma, Vt, ResidualBound(unit * _spectral_bound(M, U, rng), frobenius)


def _require_sizes(M: Any, k: int, oversample: int, power: int) -> None:
    if len(M.shape) != 2 or min(M.shape) < 1:
        raise ShapeError(f"M has shape {tuple(M.shape)}: 2-D is expected, no side of 0")
    if not 1 <= k <= min(M.shape):
        raise ValueError(f"k is {k}: it must be from 1 to {min(M.shape)}, the shorter side of M")
    for name, number in (("oversample", oversample), ("power", power)):
        if number < 0:
            raise ValueError(f"{name} is {number}: it must be at least 0")


def _leading_space(M: Any, probes: np.ndarray, power: int) -> np.ndarray:
    """Return Q (out, l), whose columns nearly span the large directions of M; algorithm 4.4."""
    Q = _orthonormal_columns(M @ probes)  # (out, l)
    for _ in range(power):
        Q = _orthonormal_columns(M.T @ Q)  # (in, l)
        Q = _orthonormal_columns(M @ Q)  # (out, l)
    return Q


def _orthonormal_columns(Y: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (n, l) of the columns of a product (n, l)."""
    if not np.all(np.isfinite(Y)):
        raise ValueError("a product with M is not finite: M holds nan or inf, or overflows")
    return np.linalg.qr(Y)[0]


def _spectral_bound(M: Any, U: np.ndarray, rng: np.random.Generator) -> float:
    """Return 10 sqrt(2/pi) max ||(I - U U^T) M w|| over new probes w."""
    Y = M @ rng.standard_normal((M.shape[1], PROBES))  # (out, probes)
    missed = np.linalg.norm(Y - U @ (U.T @ Y), axis=0)  # (probes,)
    return 10 * math.sqrt(2 / math.pi) * float(missed.max())
