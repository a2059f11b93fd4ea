r"""Where does signal end and noise begin?

Let M (m, n), m <= n, beta = m / n, be noise: independent entries, mean 0, standard deviation s. Its
singular values are neither small nor equal. As M grows, the squared singular values of
M / (s sqrt(n)) fill the interval from (1 - sqrt(beta))^2 to (1 + sqrt(beta))^2 with the density::

    f(x) = sqrt((b - x)(x - a)) / (2 pi beta x),   a, b = (1 -+ sqrt(beta))^2

(Marchenko, Pastur 1967). Hence the largest singular value of noise tends to the edge::

    s sqrt(n) (1 + sqrt(beta)) = s (sqrt(m) + sqrt(n)),

and the median singular value tends to s sqrt(n mu), where mu is the median of f. A signal of low
rank hardly moves the median, so s = median / sqrt(n mu) estimates the noise.

The median. With x = 1 + beta + 2 sqrt(beta) cos t, t from 0 (the upper end) to pi, the mass above
x is the integral of (2 / pi) sin^2 t' / x(t') over t' from 0 to t: smooth, and 1 at t = pi.

Singular values above the edge are signal, but noise blurs a direction just above the edge so much
that keeping it does more harm than good. A hard threshold keeps the singular values above it
unchanged. For large matrices the threshold with the least ||signal - kept||_F^2 is (Gavish, Donoho
2014, equation 11)::

    lambda(beta) sqrt(n) s,
    lambda(beta) = sqrt(2 (beta + 1) + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1))),

and for unknown noise omega(beta) times the median singular value, omega = lambda / sqrt(mu). For a
square matrix lambda = 4 / sqrt(3), where the edge is at 2, and omega = 2.858.

If the entries have known standard deviations s_ij that differ, the largest singular value is on
average at most (Bandeira, van Handel 2016)::

    max_i sqrt(sum_j s_ij^2) + max_j sqrt(sum_i s_ij^2),

up to a factor near 1 and a term of order max s_ij sqrt(log m). For equal s_ij this is the edge.

The estimates from the median need every singular value. A product of low rank has exact zeros and
no noise floor: the noise is then not defined, and the functions raise an error.

Gavish, Donoho: The optimal hard threshold for singular values is 4/sqrt(3). IEEE Transactions on
Information Theory 60, 5040 (2014), arXiv:1305.5870. Bandeira, van Handel: Sharp nonasymptotic
bounds on the norm of random matrices with independent entries. Annals of Probability 44, 2479
(2016), arXiv:1408.6185. Marchenko, Pastur: Mat. Sb. 72, 507 (1967).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from lora_np.backend import Array, ShapeError, to_host
from lora_np.rank.inputs import require_descending


def marchenko_pastur_edge(noise: float, shape: tuple[int, int]) -> float:
    """Return the limit of the largest singular value of pure noise, as the matrix grows.

    The largest singular value of a finite matrix differs from this edge by about noise n^(-1/6) and
    is mostly below it: about one square matrix in six has a value above.

    Parameters
    ----------
    noise : float
        Standard deviation of an entry, at least 0.
    shape : (int, int)

    Returns
    -------
    float
        noise (sqrt(out) + sqrt(in)).

    Raises
    ------
    ShapeError, ValueError
        If the shape is not two sizes of at least 1, or `noise` is negative or not finite.

    Examples
    --------
    >>> from lora_np.rank import marchenko_pastur_edge
    >>> marchenko_pastur_edge(0.5, (100, 400))  # 0.5 (10 + 20)
    15.0
    """
    short, long = _sides(shape)
    return _require_noise(noise) * (math.sqrt(short) + math.sqrt(long))


def uneven_noise_edge(deviations: Array) -> float:
    """Return the edge of noise whose entries have different standard deviations.

    Parameters
    ----------
    deviations : array, shape (out, in)
        Standard deviation of each entry, at least 0.

    Returns
    -------
    float
        The largest norm of a row plus the largest norm of a column. For equal deviations this is
        :func:`marchenko_pastur_edge`.

    Raises
    ------
    ShapeError, ValueError
        If `deviations` is not 2-D, or an entry is negative or not finite.

    References
    ----------
    Bandeira, van Handel: arXiv:1408.6185, rectangular matrices.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.rank import uneven_noise_edge
    >>> uneven_noise_edge(np.full((100, 400), 0.5))  # 0.5 (10 + 20)
    15.0
    >>> uneven_noise_edge(np.diag([3.0, 1.0]))  # 3 + 3
    6.0
    """
    s = to_host(deviations).astype(np.float64)  # (out, in)
    if s.ndim != 2:
        raise ShapeError(f"deviations has shape {s.shape}: (out, in) is expected")
    if s.size and not (np.isfinite(s).all() and s.min() >= 0):
        raise ValueError("deviations are standard deviations: finite and at least 0")
    rows, columns = np.linalg.norm(s, axis=1), np.linalg.norm(s, axis=0)  # (out,), (in,)
    return float(rows.max(initial=0.0) + columns.max(initial=0.0))


@lru_cache(maxsize=256)  # a model has few shapes and many matrices
def marchenko_pastur_median(beta: float) -> float:
    """Return the median squared singular value of noise, in units of noise^2 times the longer side.

    Parameters
    ----------
    beta : float
        Shorter side over longer side, in (0, 1].

    Returns
    -------
    float
        Between (1 - sqrt(beta))^2 and (1 + sqrt(beta))^2, accurate to about 1e-12.

    Raises
    ------
    ValueError
        If `beta` is outside (0, 1].

    Examples
    --------
    >>> from lora_np.rank import marchenko_pastur_median
    >>> round(marchenko_pastur_median(1.0), 4)  # a square matrix: values from 0 to 4
    0.6528
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq

    _require_beta(beta)
    root = 2 * math.sqrt(beta)

    def x(t: float) -> float:
        return 1 + beta + root * math.cos(t)

    def mass_above(t: float) -> float:
        integral = quad(lambda u: math.sin(u) ** 2 / x(u), 0, t, epsabs=1e-13, epsrel=1e-13)
        return 2 / math.pi * integral[0]

    # the median is never near the lower end, where for beta = 1 the quotient is 0 / 0
    found: Any = brentq(lambda t: mass_above(t) - 0.5, 0.5, 2.5, xtol=1e-14)
    return x(found)


def estimate_noise(singular_values: Array, shape: tuple[int, int]) -> float:
    """Return the standard deviation of the noise in a matrix, from its median singular value.

    Parameters
    ----------
    singular_values : array, shape (min(out, in),)
        All singular values of the matrix, descending.
    shape : (int, int)
        The matrix's (out, in).

    Returns
    -------
    float
        Too high if the signal occupies more than a small part of the directions.

    Raises
    ------
    ShapeError
        If `singular_values` is not 1-D, or `shape` is not two sizes of at least 1.
    ValueError
        If the values do not descend, some are left out, or their median is zero to rounding: a
        matrix of low rank has no noise floor.

    References
    ----------
    Gavish, Donoho: arXiv:1305.5870, section III.E.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import estimate_noise, spectrum
    >>> M = 0.3 * np.random.default_rng(0).standard_normal((80, 120))
    >>> M[0] += 20.0  # a signal of rank one, which the median hardly notices
    >>> round(estimate_noise(spectrum(M).singular_values, M.shape), 1)
    0.3
    """
    short, long = _sides(shape)
    sigma = require_descending(singular_values)  # (short,)
    if sigma.size != short:
        raise ValueError(
            f"{sigma.size} singular values of a {shape[0]} x {shape[1]} matrix, expected all "
            f"{short} to estimate the noise; a product of low rank has no noise floor"
        )
    if not has_noise_floor(sigma, shape):
        raise ValueError("the median singular value is zero to rounding: there is no noise floor")
    return float(np.median(sigma)) / math.sqrt(long * marchenko_pastur_median(short / long))


def has_noise_floor(
    singular_values: np.ndarray, shape: tuple[int, int], eps: float = float(np.finfo(float).eps)
) -> bool:
    """Return whether all singular values are given and their median exceeds rounding.

    Parameters
    ----------
    singular_values : ndarray, shape (k,)
        Descending.
    shape : (int, int)
    eps : float
        Relative spacing of the numbers that the matrix was given in.
    """
    if len(singular_values) != min(shape):
        return False
    return bool(np.median(singular_values) > max(shape) * eps * singular_values[0])


def gavish_donoho_threshold(
    shape: tuple[int, int], noise: float | None = None, singular_values: Array | None = None
) -> float:
    """Return the threshold above which a singular value is worth keeping.

    Parameters
    ----------
    shape : (int, int)
        The matrix's (out, in).
    noise : float, optional
        Standard deviation of the noise in an entry, if known.
    singular_values : array, shape (min(out, in),), optional
        All singular values, descending, from which to estimate unknown noise. Pass either `noise`
        or `singular_values`.

    Returns
    -------
    float
        In the units of the singular values.

    Raises
    ------
    ShapeError, ValueError
        As :func:`estimate_noise`; if `noise` is negative or not finite; if both or neither of
        `noise` and `singular_values` are given.

    References
    ----------
    Gavish, Donoho: arXiv:1305.5870, equations 10 and 11 and section III.E.

    Examples
    --------
    >>> from lora_np import gavish_donoho_threshold
    >>> round(gavish_donoho_threshold((100, 100), noise=0.3), 3)  # 4 / sqrt(3) x 10 x 0.3
    6.928
    """
    if noise is None and singular_values is not None:
        noise = estimate_noise(singular_values, shape)  # omega times the median, in two steps
    elif noise is None or singular_values is not None:
        raise ValueError("pass either noise, or singular_values to estimate the noise from")
    short, long = _sides(shape)
    return optimal_coefficient(short / long) * math.sqrt(long) * _require_noise(noise)


def optimal_coefficient(beta: float) -> float:
    """Return lambda(beta), the optimal threshold in units of noise times sqrt(longer side).

    Parameters
    ----------
    beta : float
        Shorter side over longer side, in (0, 1].

    Raises
    ------
    ValueError
        If `beta` is outside (0, 1].
    """
    _require_beta(beta)
    inner = (beta + 1) + math.sqrt(beta**2 + 14 * beta + 1)
    return math.sqrt(2 * (beta + 1) + 8 * beta / inner)


def _sides(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shorter and the longer side."""
    if len(shape) != 2 or min(shape) < 1:
        raise ShapeError(f"shape is {tuple(shape)}: two sizes of at least 1 are expected")
    return min(shape), max(shape)


def _require_noise(noise: float) -> float:
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is {noise}: a standard deviation is finite and at least 0")
    return float(noise)


def _require_beta(beta: float) -> None:
    if not 0 < beta <= 1:
        raise ValueError(f"beta is {beta}: shorter side over longer side lies in (0, 1]")
