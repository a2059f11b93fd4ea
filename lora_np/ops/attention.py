"""Scaled dot-product attention, causal or over all keys.

Shapes: q (..., Tq, d_head), k (..., Tk, d_head), v (..., Tk, d_v), y (..., Tq, d_v)::

    S = q k^T / sqrt(d_head) + M        M is 0 where the query may look, else -inf
    P = softmax(S)                      (..., Tq, Tk), row by row
    y = P v

Causal attention, for text that is written from left to right, has Tq <= Tk, and the last query is
aligned with the last key: query i may look at keys 0 .. i + Tk - Tq. In training Tq = Tk; with a KV
cache the queries are the newest Tq positions and the keys are all positions. Otherwise, as for the
parts of an image, every query may look at all keys: M = 0, and Tq may be larger than Tk.

Derivation, from the outside in: a product, softmax (activation.py), a product::

    dv = P^T dy        dP = dy v^T
    dS = P * (dP - rowsum(P * dP))
    dq = dS k / sqrt(d_head)            dk = dS^T q / sqrt(d_head)

Where M is -inf, P = 0 and so dS = 0. Adding a constant to a row of S does not change P. A bias b of
k adds q . b to a whole row, so its gradient is identically zero.

Source: Vaswani et al. (2017), arXiv:1706.03762, equation 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.activation import softmax_forward
from lora_np.ops.contract import Need, expect_shape, expect_some, wanted
from lora_np.ops.linear import sum_last


class AttentionCache(NamedTuple):
    """What :func:`attention_backward` reads."""

    q: Array  # (..., Tq, d_head)
    k: Array  # (..., Tk, d_head)
    v: Array  # (..., Tk, d_v)
    P: Array  # (..., Tq, Tk), the weights of the values for each query


def causal_mask(Tq: int, Tk: int, dtype: Any, xp: Any) -> Array:
    """Return M (Tq, Tk): 0 where query i may look at key j <= i + Tk - Tq, -inf elsewhere."""
    future = xp.arange(Tk) > xp.arange(Tk - Tq, Tk)[:, None]  # (Tq, Tk)
    mask = xp.zeros((Tq, Tk), dtype=dtype)
    mask[future] = -math.inf
    return mask


def attention_forward(
    q: Array, k: Array, v: Array, causal: bool = True
) -> tuple[Array, AttentionCache]:
    """Compute for each query a weighted mean of the values that it may look at.

    Parameters
    ----------
    q : array, shape (..., Tq, d_head)
    k : array, shape (..., Tk, d_head)
    v : array, shape (..., Tk, d_v)
    causal : bool
        Whether a query may look only at the values at or before its position, or at all values.

    Returns
    -------
    y : array, shape (..., Tq, d_v)
    cache : AttentionCache

    Raises
    ------
    ShapeError
        If the shapes do not fit, or causal attention has more queries than keys.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import attention_backward, attention_forward
    >>> q = k = np.zeros((3, 2))  # equal scores: y is the plain mean of the values seen
    >>> y, cache = attention_forward(q, k, np.array([[6.0], [2.0], [1.0]]))
    >>> y[:, 0].tolist()
    [6.0, 4.0, 3.0]
    >>> dq, dk, dv = attention_backward(np.ones((3, 1)), cache)
    >>> dv[:, 0].round(3).tolist()  # value 0 is in all three means, value 2 only in the last
    [1.833, 0.833, 0.333]
    >>> y, cache = attention_forward(q, k, np.array([[6.0], [2.0], [1.0]]), causal=False)
    >>> y[:, 0].tolist()  # every query sees all three
    [3.0, 3.0, 3.0]
    """
    check_shapes(q, k, v, causal)
    root = math.sqrt(q.shape[-1])
    S = (q @ k.swapaxes(-1, -2)) / root  # (..., Tq, Tk)
    if causal:
        S += causal_mask(q.shape[-2], k.shape[-2], q.real.dtype, get_xp(q))
    P, _ = softmax_forward(S)  # (..., Tq, Tk)
    return P @ v, AttentionCache(q, k, v, P)


def attention_backward(
    dy: Array, cache: AttentionCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dq, dk, dv) of :func:`attention_forward`."""
    q, k, v, P = cache
    need_q, need_k, need_v = wanted(need, 3)
    expect_shape("dy", dy, *q.shape[:-1], v.shape[-1])
    dq = dk = dv = None
    if need_q or need_k:
        dP = dy @ v.swapaxes(-1, -2)  # (..., Tq, Tk)
        dS = P * (dP - sum_last(P * dP))  # (..., Tq, Tk), as softmax_backward does
        dS /= math.sqrt(q.shape[-1])
        dq = dS @ k if need_q else None  # (..., Tq, d_head)
        dk = dS.swapaxes(-1, -2) @ q if need_k else None  # (..., Tk, d_head)
    if need_v:
        dv = P.swapaxes(-1, -2) @ dy  # (..., Tk, d_v)
    return dq, dk, dv


def check_shapes(q: Array, k: Array, v: Array, causal: bool = True) -> None:
    """Raise unless the arguments of :func:`attention_forward` fit."""
    expect_some("q", q)
    expect_shape("k", k, *q.shape[:-2], None, q.shape[-1])
    expect_shape("v", v, *k.shape[:-1], None)
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk and (causal or Tk == 0):
        raise ShapeError(f"q has shape {q.shape}, expected at most {Tk} queries for {Tk} keys")
