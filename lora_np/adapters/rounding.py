r"""Estimate the part of the difference of two files that is rounding.

A file holds numbers on the grid of its type. All numbers that round to x form its cell, of width
w(x): in bfloat16, between abs(x) / 256 and abs(x) / 128. We assume that exact numbers are spread
evenly over their cell, so that the rounding error has variance w^2 / 12. The difference of two
files, D = W - W0, is the change by training plus up to three errors::

    the end    the result of training was rounded to W           w_tuned(W)^2 / 12   where W != W0
    the start  training in the tuned file's type began at W0     w_tuned(W0)^2 / 12  where W0 is
               rounded to that type                                 not a number of that type
    the base   W0 is a narrow copy of the weights that           w_base(W0)^2 / 12   where W != W0
               training began from

The end is part of every difference: its cells are tiny in float32, but not in bfloat16. An entry
that is equal in both files has no error. The start is counted wherever it is possible, because the
files do not say in which type the model was trained. If the base is in bfloat16 and the tuned file
in float32, there is no error of the start: every number of bfloat16 is also a number of float32.

The base is usually exact: training began from the numbers in the file, and any difference from
them, however small, is due to training. Sometimes the file is a narrow copy of the numbers that
training began from. A tensor that was not trained reveals this: rounded to the base's type it
equals the base's bit for bit, and its errors fill the cells evenly (:func:`is_rounded_copy`).
Training does not produce this pattern: it would have to change every number in proportion to its
size.

The errors of the entries are independent, with known deviations s_ij. The largest singular value of
such noise is at most about (``rank/noise.py``)::

    edge = max_i sqrt(sum_j s_ij^2) + max_j sqrt(sum_i s_ij^2)

and directions above it are due to training. If both files have the same type, no matrix that
training changed is missed. An entry that differs then differs by at least 2/3 of its cell (at a
power of two the gap below is half the gap above), so D has a row or a column whose norm is at least
(2/3) sqrt(12) / 2 = 1.15 times the edge, and the largest singular value is at least this norm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lora_np.adapters.cut import rounded
from lora_np.files import float_dtype

ENOUGH = 1000  # entries: they determine the mean squared error to about 3 %
NEAR = 0.1  # relative deviation of that mean: more than three standard errors


def cell_width(x: np.ndarray, dtype: Any) -> np.ndarray:
    """Return the width of the cell around each number: the numbers that round to it.

    Parameters
    ----------
    x : ndarray, float64
        Numbers of the type, or close to one.
    dtype : str or dtype
        A type of the files.

    Returns
    -------
    ndarray, as x
        Half the gap to the next number below plus half the gap to the next above.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.adapters.rounding import cell_width
    >>> cell_width(np.array([1.5, 1.0]), "float16") * 1024  # below 1 the grid is twice as fine
    array([1.  , 0.75])
    """
    info = _grid(dtype)
    fraction, exponent = np.frexp(np.abs(x))  # |x| = fraction 2^exponent, from 1/2 to 1
    smallest = int(info.minexp)  # below it, and at 0, the grid is even
    power = np.where(fraction > 0, np.maximum(exponent - 1, smallest), smallest)
    gap = np.ldexp(1.0, power - int(info.nmant))  # above |x|
    return np.where((fraction == 0.5) & (power > smallest), 0.75 * gap, gap)


def rounding_noise(
    W0: np.ndarray, W: np.ndarray, types: tuple[str, str], base_is_rounded: bool = False
) -> np.ndarray:
    """Return the standard deviation of the rounding in each entry of W - W0.

    Parameters
    ----------
    W0, W : ndarray, float64
        The numbers in the files.
    types : (str, str)
        The types of the base and of the tuned file.
    base_is_rounded : bool
        Whether the base is a narrow copy of the weights that training began from.

    Returns
    -------
    ndarray, as W

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.adapters.rounding import rounding_noise
    >>> W0, W = np.array([1.25, 1.25]), np.array([1.5, 1.25])  # equal entries: no rounding
    >>> rounding_noise(W0, W, ("float32", "float16")) * 1024 * 12**0.5
    array([1., 0.])
    """
    base, tuned = types
    squares = np.zeros(W.shape)
    differs, start = W != W0, rounded(W0, tuned) != W0
    squares[differs] += cell_width(W[differs], tuned) ** 2
    squares[start] += cell_width(W0[start], tuned) ** 2
    if base_is_rounded:
        squares[differs] += cell_width(W0[differs], base) ** 2
    return np.sqrt(squares / 12)


def is_rounded_copy(W0: np.ndarray, W: np.ndarray, base: str) -> bool:
    """Whether W0 is W rounded to the base's type, with errors that fill the cells evenly.

    Parameters
    ----------
    W0, W : ndarray, float64
    base : str
        The type of the base's file.

    Returns
    -------
    bool
        Also False if fewer than a thousand entries differ, which could be chance.
    """
    differs = W != W0
    if np.count_nonzero(differs) < ENOUGH or not np.array_equal(rounded(W, base), W0):
        return False
    errors = (W - W0)[differs] / cell_width(W0[differs], base)  # from -1/2 to 1/2, if so
    return abs(12 * float(np.mean(errors**2)) - 1) < NEAR


def equal_when_rounded(
    W0: np.ndarray, W: np.ndarray, types: tuple[str, str], base_is_rounded: bool = False
) -> bool:
    """Whether two tensors differ only because one of them was rounded.

    This decides for vectors. For matrices, singular values are compared with the rounding noise.

    Parameters
    ----------
    W0, W, types, base_is_rounded
        As for :func:`rounding_noise`, of any shape.
    """
    base, tuned = types
    copied = base_is_rounded and np.array_equal(rounded(W, base), W0)
    return copied or np.array_equal(rounded(W0, tuned), W)


def is_narrower(one: str, other: str) -> bool:
    """Whether a type has fewer digits than another."""
    return int(_grid(one).nmant) < int(_grid(other).nmant)


class _Bfloat16(NamedTuple):
    """What NumPy's finfo would say of bfloat16: digits after the first, smallest normal power."""

    nmant: int = 7
    minexp: int = -126


def _grid(dtype: Any) -> Any:
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    return _Bfloat16() if name == "bfloat16" else np.finfo(float_dtype(name))
