r"""How well can a matrix of rank r approximate M?

The best approximation of rank r keeps the r largest directions of M. Its error is the floor under
every rank-versus-loss curve (Eckart, Young 1936): the minimum over rank(N) <= r of
1/2 ||M - N||_F^2 is 1/2 sum_{i>r} sigma_i^2.

Eckart, Young: Psychometrika 1, 211.
"""

from __future__ import annotations

import numpy as np

from lora_np.backend import Array
from lora_np.rank.inputs import require_descending

EPS = float(np.finfo(np.float64).eps)


def eckart_young_floor(singular_values: Array, r: int) -> float:
    """Return the least 1/2 ||M - N||_F^2 over all N of rank at most `r`: 1/2 sum_{i>r} sigma_i^2.

    Parameters
    ----------
    singular_values : array, shape (k,)
        Those of M, descending.
    r : int
        At least 0. At r = 0 the floor is 1/2 ||M||_F^2; for r >= k it is 0.

    Returns
    -------
    float
        In units of M squared.

    Raises
    ------
    ShapeError
        If `singular_values` is not 1-D.
    ValueError
        If they do not descend, or `r` is negative.

    References
    ----------
    Eckart, Young: The approximation of one matrix by another of lower rank. Psychometrika 1 (1936).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.rank import eckart_young_floor
    >>> [eckart_young_floor(np.array([3.0, 2.0, 1.0]), r) for r in range(4)]
    [7.0, 2.5, 0.5, 0.0]
    """
    sigma = _require_rank(singular_values, r)
    return 0.5 * float(np.sum(sigma[r:] ** 2))


def best_rank_error(singular_values: Array, r: int, relative: bool = True) -> float:
    """Return the least ||M - N||_F over all N of rank at most `r`: sqrt(sum_{i>r} sigma_i^2).

    Parameters
    ----------
    singular_values : array, shape (k,)
        Those of M, descending.
    r : int
        At least 0.
    relative : bool
        Whether to divide by ||M||_F. The relative error falls from 1 at r = 0 to 0; for a zero
        matrix it is 0.

    Returns
    -------
    float

    Raises
    ------
    ShapeError, ValueError
        As :func:`lora_np.rank.eckart_young_floor`, which returns half the square of this error.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import best_rank_error
    >>> best_rank_error(np.array([12.0, 4.0, 3.0]), 1, relative=False)  # 5 = sqrt(16 + 9)
    5.0
    >>> round(best_rank_error(np.array([12.0, 4.0, 3.0]), 1), 4)  # 5 / 13
    0.3846
    """
    sigma = _require_rank(singular_values, r)
    unit = float(sigma[0]) if sigma.size and sigma[0] > 0 else 1.0  # so that no square overflows
    missed = float(np.linalg.norm(sigma[r:] / unit))
    whole = float(np.linalg.norm(sigma / unit))
    return missed / (whole or 1.0) if relative else missed * unit


def smallest_rank(singular_values: Array, error: float) -> int:
    """Return the least r with ``best_rank_error(singular_values, r) <= error``.

    Parameters
    ----------
    singular_values : array, shape (k,)
        Those of M, descending.
    error : float
        The largest ||M - N||_F / ||M||_F allowed, from 0 to 1. The energy rank at `fraction` is the
        rank for the error sqrt(1 - fraction): 99 % of the energy means an error of 0.1.

    Returns
    -------
    int
        From 0 to k.

    Raises
    ------
    ShapeError
        If `singular_values` is not 1-D.
    ValueError
        If they do not descend, or `error` is outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import smallest_rank
    >>> [smallest_rank(np.array([12.0, 4.0, 3.0]), error) for error in (0.5, 0.3, 0.1)]
    [1, 2, 3]
    """
    if not 0 <= error <= 1:
        raise ValueError(f"error is {error}: it must be from 0 to 1, as it is relative to ||M||_F")
    sigma = _require_rank(singular_values, 0)
    if sigma.size == 0 or sigma[0] == 0:
        return 0
    return least_rank(sigma / sigma[0], error**2)


def _require_rank(singular_values: Array, r: int) -> np.ndarray:
    if r < 0:
        raise ValueError(f"r is {r}: it must be at least 0")
    return require_descending(singular_values)


def least_rank(sigma: np.ndarray, missed: float) -> int:
    """Return the least k such that the values after the k-th hold at most a share `missed`.

    The share is one of sum sigma^2. The sums start at the small end, so that tiny terms are not
    lost beside a large sum.
    """
    tails = np.append(np.cumsum(sigma[::-1] ** 2)[::-1], 0.0)  # (k + 1,) beyond 0, 1, ..., k
    return int(np.argmax(tails <= missed * (1 + sigma.size * EPS) * tails[0]))
