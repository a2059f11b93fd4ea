"""Grouped-query attention: g queries share each key and value.

Shapes: q (..., G, g, Tq, d_head), k (..., G, Tk, d_head), v (..., G, Tk, d_v),
y (..., G, g, Tq, d_v), Tq <= Tk. There are G groups, each with one head of keys and values and g
heads of queries. Query i may look at keys 0 .. i + Tk - Tq, as in attention.py.

The g heads of a group meet the same keys, so they are folded into rows: with q as a matrix of
g Tq rows, the equations are those of attention, and keys are never copied::

    S = q k^T / sqrt(d_head) + M        (..., G, g Tq, Tk); M repeats the causal mask g times
    P = softmax(S)                      row by row
    y = P v

Derivation. As in attention.py, with g Tq rows in the place of Tq::

    dv = P^T dy        dP = dy v^T        dS = P * (dP - rowsum(P * dP))
    dq = dS k / sqrt(d_head)              dk = dS^T q / sqrt(d_head)

A key is used by all g heads, so its gradient is the sum of g gradients: the products dS^T q and
P^T dy run over all g Tq rows, which is this sum. With g = 1 this is plain attention, and with G = 1
all heads share one key (multi-query attention).

Source: Ainslie et al. (2023), arXiv:2305.13245, section 2.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.activation import softmax_forward
from lora_np.ops.attention import causal_mask
from lora_np.ops.contract import Need, expect_shape, expect_some, wanted
from lora_np.ops.linear import sum_last


class GqaCache(NamedTuple):
    """What :func:`gqa_backward` reads."""

    q: Array  # (..., G, g, Tq, d_head)
    k: Array  # (..., G, Tk, d_head)
    v: Array  # (..., G, Tk, d_v)
    P: Array  # (..., G, g Tq, Tk)


def gqa_forward(q: Array, k: Array, v: Array) -> tuple[Array, GqaCache]:
    """Compute causal attention in which the g heads of a group share keys and values.

    Parameters
    ----------
    q : array, shape (..., G, g, Tq, d_head)
    k : array, shape (..., G, Tk, d_head)
    v : array, shape (..., G, Tk, d_v)

    Returns
    -------
    y : array, shape (..., G, g, Tq, d_v)
    cache : GqaCache

    Raises
    ------
    ShapeError
        If the shapes do not fit, or there are more queries than keys.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import gqa_backward, gqa_forward
    >>> q, k = np.zeros((1, 2, 3, 4)), np.zeros((1, 3, 4))  # two heads with one set of keys
    >>> y, cache = gqa_forward(q, k, np.array([[[6.0], [2.0], [1.0]]]))
    >>> y[0, :, :, 0].tolist()  # equal scores: the plain mean of the values seen
    [[6.0, 4.0, 3.0], [6.0, 4.0, 3.0]]
    >>> dq, dk, dv = gqa_backward(np.ones((1, 2, 3, 1)), cache)
    >>> dv[0, :, 0].round(3).tolist()  # the sum of both heads' gradients
    [3.667, 1.667, 0.667]
    """
    check_groups(q, k, v)
    mask = causal_mask(q.shape[-2], k.shape[-2], q.real.dtype, get_xp(q))  # (Tq, Tk)
    S = fold(q) @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (..., G, g Tq, Tk)
    S = S.reshape(*q.shape[:-1], k.shape[-2]) + mask  # (..., G, g, Tq, Tk)
    P, _ = softmax_forward(fold(S))  # (..., G, g Tq, Tk)
    y = (P @ v).reshape(*q.shape[:-1], v.shape[-1])
    return y, GqaCache(q, k, v, P)


def gqa_backward(
    dy: Array, cache: GqaCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dq, dk, dv) of :func:`gqa_forward`."""
    q, k, v, P = cache
    need_q, need_k, need_v = wanted(need, 3)
    expect_shape("dy", dy, *q.shape[:-1], v.shape[-1])
    dq = dk = dv = None
    g = fold(dy)  # (..., G, g Tq, d_v)
    if need_q or need_k:
        dP = g @ v.swapaxes(-1, -2)  # (..., G, g Tq, Tk)
        dS = P * (dP - sum_last(P * dP))  # (..., G, g Tq, Tk), as softmax_backward does
        dS /= math.sqrt(q.shape[-1])
        dq = (dS @ k).reshape(q.shape) if need_q else None
        dk = dS.swapaxes(-1, -2) @ fold(q) if need_k else None  # (..., G, Tk, d_head)
    if need_v:
        dv = P.swapaxes(-1, -2) @ g  # (..., G, Tk, d_v)
    return dq, dk, dv


def fold(x: Array) -> Array:
    """Return `x` (..., g, T, n) as (..., g T, n): the heads of a group, one below the other."""
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def check_groups(q: Array, k: Array, v: Array) -> None:
    """Raise unless the arguments of :func:`gqa_forward` fit."""
    expect_some("q", q)
    if q.ndim < 3:
        raise ShapeError(f"q has shape {tuple(q.shape)}, expected (..., g, Tq, d_head)")
    expect_shape("k", k, *q.shape[:-3], None, q.shape[-1])
    expect_shape("v", v, *k.shape[:-1], None)
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk:
        raise ShapeError(f"q has shape {q.shape}, expected at most {Tk} queries for {Tk} keys")
