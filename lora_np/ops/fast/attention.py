"""Causal attention in blocks of queries, each with the keys up to its last query.

Later keys would get weight zero: long sequences skip almost half of the products. P of
ops/attention.py is never formed. With E = exp(S) and its row sums t, P = E / t, and the division is
done where the array is narrow: y = (E v) / t. Backward needs delta_i = sum_j P_ij dP_ij. As
dP = dy v^T, delta_i = sum_j P_ij dy_i . v_j = dy_i . y_i, again narrow. Let g = dy / t, so that
P * dP = E * (g v^T)::

    dv = P^T dy = E^T g          dS = E * (g v^T - rowsum(g * y))

What it gains: with the textbook pair a full step takes 1.07 / 1.05 / 1.16 times as long, and a LoRA
step 1.08 / 1.06 / 1.20 (tiny / small / medium; 2026-11-26; ``python -m tests.benchmarks --only
twins``).

Source: delta_i = dy_i . y_i: Dao et al. (2022), arXiv:2205.14135, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.ops.attention import causal_mask, check_shapes
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.linear import sum_last

BLOCK = 64  # queries; small blocks skip more keys, large blocks make faster products
SAFE = 40.0  # exp(40) times any number of keys is far from float32's largest, 3e38


class BlockCache(NamedTuple):
    """The scores of a block of n queries with the keys up to its last query."""

    e: Array  # (..., n, keys), exp of the scores
    t: Array  # (..., n, 1), row sums of e


class AttentionCache(NamedTuple):
    """What :func:`attention_backward` reads."""

    q: Array  # (..., Tq, d_head), divided by sqrt(d_head)
    k: Array  # (..., Tk, d_head)
    v: Array  # (..., Tk, d_v)
    y: Array  # (..., Tq, d_v)
    blocks: list[BlockCache]


def attention_forward(q: Array, k: Array, v: Array) -> tuple[Array, AttentionCache]:
    """Compute :func:`lora_np.ops.attention_forward`; y has the memory layout of q."""
    check_shapes(q, k, v)
    Tq, Tk = q.shape[-2], k.shape[-2]
    xp = get_xp(q)
    q = q * (1.0 / math.sqrt(q.shape[-1]))
    n = min(Tq, BLOCK)
    mask = causal_mask(n, n, q.real.dtype, xp) if n > 1 else None  # the newest query sees all keys
    # The maximum of a single row costs nothing, float16 ends at exp(11), and nan is not safe.
    narrow = q.real.dtype.itemsize < 4
    shift = Tq == 1 or narrow or not _largest_score(q, k) <= SAFE
    dtype = np.result_type(q.dtype, k.dtype, v.dtype)  # complex if one of them is
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
    dq = xp.empty_like(q) if need_q else None  # (..., Tq, d_head)
    dk = xp.empty_like(k) if need_k else None  # (..., Tk, d_head)
    dv = xp.empty_like(v) if need_v else None  # (..., Tk, d_v)
    put = _set  # the last block sees all keys and comes first; the other blocks add to its result
    for (queries, keys), (e, t) in reversed([*zip(_blocks(q.shape[-2], k.shape[-2]), blocks)]):
        g = dy[..., queries, :] / t  # (..., n, d_v)
        if dv is not None:
            put(dv[..., :keys, :], e.swapaxes(-1, -2), g)
        if dq is not None or dk is not None:
            ds = g @ v[..., :keys, :].swapaxes(-1, -2)  # (..., n, keys)
            ds -= sum_last(g * y[..., queries, :])
            ds *= e
            if dq is not None:
                _set(dq[..., queries, :], ds, k[..., :keys, :])
            if dk is not None:
                put(dk[..., :keys, :], ds.swapaxes(-1, -2), q[..., queries, :])
        put = _add
    if dq is not None:
        dq *= 1.0 / math.sqrt(q.shape[-1])
    return dq, dk, dv


def _set(part: Array, a: Array, b: Array) -> None:
    """Set `part`, a view, to the product a b."""
    part[...] = a @ b


def _add(part: Array, a: Array, b: Array) -> None:
    """Add the product a b to `part`, a view."""
    part += a @ b


def _blocks(Tq: int, Tk: int) -> Iterator[tuple[slice, int]]:
    """Yield the queries of each block, and how many keys its last query may look at."""
    for start in range(0, max(Tq, 1), BLOCK):  # no queries make one empty block
        stop = min(start + BLOCK, Tq)
        yield slice(start, stop), stop + Tk - Tq


def _largest_score(q: Array, k: Array) -> float:
    """Return an upper bound of all scores: |q . k| <= |q| |k|, by Cauchy-Schwarz.

    Softmax subtracts each row's largest score so that exp cannot overflow. If no score can be
    large, that pass over the scores is not needed.
    """
    if q.size == 0:
        return 0.0
    q, k = q.real, k.real
    return math.sqrt(float(sum_last(q * q).max()) * float(sum_last(k * k).max()))
