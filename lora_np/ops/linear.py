"""The linear map: y = x W^T + b.

Shapes: x (..., in), W (out, in), b (out,), y (..., out). The N rows of x are the samples.

Derivation. Let L be the scalar loss and dy = dL/dy. Entry by entry, y_no = sum_i x_ni W_oi + b_o,
so::

    dL/dx_ni = sum_o dy_no W_oi        dx = dy W
    dL/dW_oi = sum_n dy_no x_ni        dW = dy^T x      (a sum over samples)
    dL/db_o  = sum_n dy_no             db = 1^T dy

Source: any text on backpropagation, e.g. Rumelhart, Hinton and Williams (1986).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lora_np.backend import IN_BROWSER, Array, get_xp
from lora_np.ops.contract import Need, expect_last, expect_shape, wanted

FEW = math.inf if IN_BROWSER else 1024  # entries of x; a training batch has many more


class LinearCache(NamedTuple):
    """What :func:`linear_backward` reads; a layer sets x to None when W is frozen."""

    x: Array  # (..., in)
    W: Array  # (out, in)
    has_bias: bool
    shape: tuple[int, ...]  # of y


def linear_forward(x: Array, W: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """Compute y = x W^T + b.

    Parameters
    ----------
    x : array, shape (..., in)
    W : array, shape (out, in)
    b : array, shape (out,), optional

    Returns
    -------
    y : array, shape (..., out)
    cache : LinearCache

    Raises
    ------
    ShapeError
        If the shapes do not fit; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import linear_backward, linear_forward
    >>> x, W = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
    >>> y, cache = linear_forward(x, W)
    >>> y.tolist()
    [[11.0, 17.0]]
    >>> dx, dW, db = linear_backward(np.array([[1.0, 0.0]]), cache)
    >>> dx.tolist(), dW.tolist(), db
    ([[3.0, 4.0]], [[1.0, 2.0], [0.0, 0.0]], None)
    """
    expect_shape("W", W, None, None)
    expect_last("x", x, W.shape[1])
    y = rows(x) @ W.T  # (N, out)
    if b is not None:
        expect_shape("b", b, W.shape[0])
        y += b
    shape = (*x.shape[:-1], W.shape[0])
    return y.reshape(shape), LinearCache(x, W, b is not None, shape)


def linear_backward(
    dy: Array, cache: LinearCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dx, dW, db) of :func:`linear_forward`; db is None if there is no bias."""
    need_x, need_W, need_b = wanted(need, 3)
    expect_shape("dy", dy, *cache.shape)
    g = rows(dy)  # (N, out)
    dx = (g @ cache.W).reshape(*dy.shape[:-1], cache.W.shape[1]) if need_x else None  # (..., in)
    dW = g.T @ rows(cache.x) if need_W else None  # (out, in)
    db = sum_rows(dy) if need_b and cache.has_bias else None  # (out,)
    return dx, dW, db


def rows(x: Array) -> Array:
    """Return `x` (..., d) as a matrix (N, d) whose rows are the samples.

    NumPy computes a product with several leading axes as many small products; with a matrix it
    computes one large product, which is faster.
    """
    return x.reshape(-1, x.shape[-1])


def sum_rows(x: Array) -> Array:
    """Return the sum (d,) of all samples in `x` (..., d) as the product 1^T x, faster than sum."""
    matrix = rows(x)
    return get_xp(x).ones(len(matrix), dtype=x.dtype) @ matrix


def row_lengths(V: Array) -> Array:
    """Return the lengths (out,) of the rows of V (out, in)."""
    return get_xp(V).sqrt((V * V).sum(axis=1))


def sum_last(x: Array) -> Array:
    """Return the sums (..., 1) over the last axis of `x` (..., d).

    For many rows the product x 1 is several times faster than a sum, with BLAS; for few, a sum is
    faster, because the product must first make the ones.
    """
    if x.size <= FEW:
        return x.sum(axis=-1, keepdims=True)
    return x @ get_xp(x).ones((x.shape[-1], 1), dtype=x.dtype)


def mean_last(x: Array) -> Array:
    """Return the means (..., 1) over the last axis of `x` (..., d)."""
    return sum_last(x) / x.shape[-1]
