"""Causal scaled dot-product attention.

Shapes: q (..., Tq, d_head), k (..., Tk, d_head), v (..., Tk, d_v), y (..., Tq, d_v), Tq <= Tk.
Queries align to the last key: query i may look at keys 0 .. i + Tk - Tq. During training Tq = Tk;
with a KV cache the queries are the newest Tq positions and the keys all of them::

    S = (q / sqrt(d_head)) k^T + M      M is 0 where looking is allowed, else -inf
    P = softmax(S) = E / t              E = exp(S), t its row sums
    y = P v = (E v) / t                 divided last: y is narrower than P

Derivation, from the outside in. Softmax's Jacobian gives dS = P * (dP - delta) with delta_i =
sum_j P_ij dP_ij, and as dP = dy v^T, delta_i = sum_j P_ij dy_i . v_j = dy_i . y_i: narrow again.
With g = dy / t, so that P * dP = E * (g v^T)::

    dv = P^T dy = E^T g          dS = E * (g v^T - rowsum(g * y))
    dq = dS k / sqrt(d_head)     dk = dS^T q / sqrt(d_head)

Queries are worked through in blocks, each with the keys up to its last query: the others would
get weight zero. A constant added to all entries of a row of S changes nothing, so a bias of k,
which adds q . b to a whole row, has a gradient that is identically zero.

Source: Vaswani et al. (2017), arXiv:1706.03762, equation 1; delta_i = dy_i . y_i: Dao et al.
(2022), arXiv:2205.14135, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.contract import Need, expect_shape, expect_some, wanted
from lora_np.ops.linear import sum_last

BLOCK = 64  # queries; smaller ones skip more future keys, larger ones make better products
SAFE = 40.0  # exp(40) times any number of keys is far from float32's largest, 3e38


class BlockCache(NamedTuple):
    """How a block of n queries looks at the keys up to its last query."""

    e: Array  # (..., n, keys), exp of the scores
    t: Array  # (..., n, 1), row sums of e


class AttentionCache(NamedTuple):
    """What :func:`attention_backward` reads."""

    q: Array  # (..., Tq, d_head), divided by sqrt(d_head)
    k: Array  # (..., Tk, d_head)
    v: Array  # (..., Tk, d_v)
    y: Array  # (..., Tq, d_v)
    blocks: list[BlockCache]


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
        In memory its axes lie as q's do, so that joining heads again needs no copy.
    cache : AttentionCache

    Raises
    ------
    ShapeError
        If the shapes do not fit, or there are more queries than keys.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import attention_backward, attention_forward
    >>> q = k = np.zeros((3, 2))  # no preference: the mean of what may be seen
    >>> y, cache = attention_forward(q, k, np.array([[6.0], [2.0], [1.0]]))
    >>> y[:, 0].tolist()
    [6.0, 4.0, 3.0]
    >>> dq, dk, dv = attention_backward(np.ones((3, 1)), cache)
    >>> dv[:, 0].round(3).tolist()  # value 0 is in all three means, value 2 in the last
    [1.833, 0.833, 0.333]
    """
    expect_some("q", q)
    expect_shape("k", k, *q.shape[:-2], None, q.shape[-1])
    expect_shape("v", v, *k.shape[:-1], None)
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk:
        raise ShapeError(f"q has shape {q.shape}, expected at most {Tk} queries, one for each key")
    xp = get_xp(q)
    q = q * (1.0 / math.sqrt(q.shape[-1]))
    n = min(Tq, BLOCK)
    mask = causal_mask(n, n, q.real.dtype, xp) if n > 1 else None  # the newest query sees all keys
    # Of one row the maximum costs nothing. A bound that overflowed to nan is not safe either.
    shift = Tq == 1 or not _largest_score(q, k) <= SAFE
    dtype = np.result_type(q.dtype, k.dtype, v.dtype)  # complex, where one of them is
    y = xp.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]), dtype=dtype)
    blocks = []
    for queries, keys in _blocks(Tq, Tk):
        s: Array = q[..., queries, :] @ k[..., :keys, :].swapaxes(-1, -2)  # (..., n, keys)
        if mask is not None:
            n = s.shape[-2]
            s[..., keys - n :] += mask[:n, :n]
        if shift:
            s -= s.real.max(axis=-1, keepdims=True)
        e = xp.exp(s, out=s)
        t = sum_last(e)  # (..., n, 1)
        y[..., queries, :] = (e @ v[..., :keys, :]) / t
        blocks.append(BlockCache(e, t))
    return y, AttentionCache(q, k, v, y, blocks)


def attention_backward(
    dy: Array, cache: AttentionCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dq, dk, dv) of :func:`attention_forward`."""
    q, k, v, y, blocks = cache
    need_q, need_k, need_v = wanted(need, 3)
    expect_shape("dy", dy, *y.shape)
    xp = get_xp(dy)
    dq = xp.zeros_like(q) if need_q else None  # (..., Tq, d_head)
    dk = xp.zeros_like(k) if need_k else None  # (..., Tk, d_head)
    dv = xp.zeros_like(v) if need_v else None  # (..., Tk, d_v)
    for (queries, keys), (e, t) in zip(_blocks(q.shape[-2], k.shape[-2]), blocks):
        g = dy[..., queries, :] / t  # (..., n, d_v)
        if dv is not None:
            dv[..., :keys, :] += e.swapaxes(-1, -2) @ g
        if dq is None and dk is None:
            continue
        ds = g @ v[..., :keys, :].swapaxes(-1, -2)  # (..., n, keys)
        ds -= sum_last(g * y[..., queries, :])
        ds *= e
        if dq is not None:
            dq[..., queries, :] = ds @ k[..., :keys, :]
        if dk is not None:
            dk[..., :keys, :] += ds.swapaxes(-1, -2) @ q[..., queries, :]
    if dq is not None:
        dq *= 1.0 / math.sqrt(q.shape[-1])
    return dq, dk, dv


def _blocks(Tq: int, Tk: int) -> Iterator[tuple[slice, int]]:
    """Yield some queries, and how many keys the last of them may look at."""
    for start in range(0, Tq, BLOCK):
        stop = min(start + BLOCK, Tq)
        yield slice(start, stop), stop + Tk - Tq


def _largest_score(q: Array, k: Array) -> float:
    """Return what no score exceeds: |q . k| <= |q| |k|, the inequality of Cauchy and Schwarz.

    Softmax subtracts each row's largest score so that exp cannot overflow. Where no score can be
    large, that pass over all of them is not needed.
    """
    if q.size == 0:
        return 0.0
    q, k = q.real, k.real
    return math.sqrt(float(sum_last(q * q).max()) * float(sum_last(k * k).max()))
