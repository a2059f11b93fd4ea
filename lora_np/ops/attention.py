"""Causal scaled dot-product attention.

Shapes: q (..., Tq, d_head), k (..., Tk, d_head), v (..., Tk, d_v), y (..., Tq, d_v), Tq <= Tk.
Queries align to the last key: query i may look at keys 0 .. i + Tk - Tq. During training Tq = Tk;
with a KV cache the queries are the newest Tq positions and the keys all of them::

    S = (q / sqrt(d_head)) k^T + M      M is 0 where looking is allowed, else -inf
    P = softmax(S)                      rows sum to one
    y = P v

Derivation, from the outside in, with dS from softmax_backward::

    dv = P^T dy     dP = dy v^T     dq = dS k / sqrt(d_head)     dk = dS^T q / sqrt(d_head)

A constant added to all entries of a row of S changes nothing, so a bias of k, which adds q . b to
a whole row, has a gradient that is identically zero.

Source: Vaswani et al. (2017), arXiv:1706.03762, equation 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.activation import SoftmaxCache, softmax_backward, softmax_forward
from lora_np.ops.contract import Need, expect_shape, wanted


class AttentionCache(NamedTuple):
    """What :func:`attention_backward` reads."""

    q: Array  # (..., Tq, d_head)
    k: Array  # (..., Tk, d_head)
    v: Array  # (..., Tk, d_v)
    p: SoftmaxCache  # (..., Tq, Tk)


def causal_mask(Tq: int, Tk: int, dtype: Any, xp: Any) -> Array:
    """Return M (Tq, Tk): 0 where query i may look at key j <= i + Tk - Tq, -inf elsewhere."""
    future = xp.arange(Tk) > xp.arange(Tk - Tq, Tk)[:, None]  # (Tq, Tk)
    mask = xp.zeros((Tq, Tk), dtype=dtype)
    mask[future] = -math.inf
    return mask


def attention_forward(q: Array, k: Array, v: Array) -> tuple[Array, AttentionCache]:
    """Let every query read the values of the keys at or before its own position.

    Parameters
    ----------
    q : array, shape (..., Tq, d_head)
    k : array, shape (..., Tk, d_head)
    v : array, shape (..., Tk, d_v)

    Returns
    -------
    y : array, shape (..., Tq, d_v)
    cache : AttentionCache

    Raises
    ------
    ShapeError
        If the shapes do not fit, or there are more queries than keys.
    """
    expect_shape("k", k, *q.shape[:-2], None, q.shape[-1])
    expect_shape("v", v, *k.shape[:-1], None)
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk:
        raise ShapeError(f"q has shape {q.shape}, expected at most {Tk} queries, one for each key")
    # Scale before masking: a complex -inf times a number has a NaN in it.
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.swapaxes(-1, -2)  # (..., Tq, Tk)
    if Tq > 1:
        scores += causal_mask(Tq, Tk, q.real.dtype, get_xp(q))
    p, p_cache = softmax_forward(scores)  # (..., Tq, Tk)
    return p @ v, AttentionCache(q, k, v, p_cache)


def attention_backward(
    dy: Array, cache: AttentionCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dq, dk, dv) of :func:`attention_forward`."""
    q, k, v, p_cache = cache
    need_q, need_k, need_v = wanted(need, 3)
    expect_shape("dy", dy, *q.shape[:-1], v.shape[-1])
    scale = 1.0 / math.sqrt(q.shape[-1])
    dq = dk = dv = None
    if need_v:
        dv = p_cache.y.swapaxes(-1, -2) @ dy  # (..., Tk, d_v)
    if need_q or need_k:
        ds: Any = softmax_backward(dy @ v.swapaxes(-1, -2), p_cache)[0]  # (..., Tq, Tk)
        dq = (ds @ k) * scale if need_q else None  # (..., Tq, d_head)
        dk = (ds.swapaxes(-1, -2) @ q) * scale if need_k else None  # (..., Tk, d_head)
    return dq, dk, dv
