"""Grouped causal attention in blocks of queries, each with the keys up to its last query.

Later keys would get weight zero: long sequences skip almost half of the products. P of
ops/grouped.py is never formed. With E = exp(S) and its row sums t, P = E / t, and the division is
done where the array is narrow: y = (E v) / t. Backward needs delta_i = sum_j P_ij dP_ij. As
dP = dy v^T, delta_i = sum_j P_ij dy_i . v_j = dy_i . y_i, again narrow. Let h = dy / t, so that
P * dP = E * (h v^T)::

    dv = P^T dy = E^T h          dS = E * (h v^T - rowsum(h * y))

The queries of a block are scaled and folded into rows in one pass. ops/fast/attention.py is this
pair with one query a group.

What it gains: with the textbook pair, a LoRA step of a Llama of SmolLM2's shapes takes 1.00 / 0.99
/ 1.05 times as long (1 x 64 / 4 x 64 / 4 x 128 tokens; two rounds on a busy machine, in CPU
seconds; 2026-11-26; ``python -m tests.benchmarks --only llama-twins --rounds 2``).

Source: delta_i = dy_i . y_i: Dao et al. (2022), arXiv:2205.14135, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, matmul
from lora_np.ops.attention import causal_mask
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.grouped import check_groups, fold
from lora_np.ops.linear import sum_last

ROWS = 64  # of a block; small blocks skip more keys, large blocks make faster products
FEWEST = 32  # queries of a block, however many heads a group has
SAFE = 40.0  # exp(40) times any number of keys is far from float32's largest, 3e38


class BlockCache(NamedTuple):
    """The scores of a block of n queries a head with the keys up to its last query."""

    q: Array  # (..., G, g n, d_head), divided by sqrt(d_head)
    e: Array  # (..., G, g n, keys), exp of the scores
    t: Array  # (..., G, g n, 1), row sums of e


class GqaCache(NamedTuple):
    """What :func:`gqa_backward` reads."""

    k: Array  # (..., G, Tk, d_head)
    v: Array  # (..., G, Tk, d_v)
    y: Array  # (..., G, g, Tq, d_v)
    blocks: list[BlockCache]


def gqa_forward(q: Array, k: Array, v: Array) -> tuple[Array, GqaCache]:
    """Compute :func:`lora_np.ops.gqa_forward`; y has the memory layout of q."""
    check_groups(q, k, v)
    xp, (Tq, Tk) = get_xp(q), (q.shape[-2], k.shape[-2])
    n = min(Tq, _block(q.shape[-3]))
    mask = causal_mask(n, n, q.real.dtype, xp) if n > 1 else None  # the newest query sees all keys
    dtype = np.result_type(q.dtype, k.dtype, v.dtype)  # complex if one of them is
    y = xp.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]), dtype=dtype)
    blocks = []
    for queries, keys in _blocks(q.shape[-3], Tq, Tk):
        rows = _scaled_rows(q[..., queries, :], 1.0 / math.sqrt(q.shape[-1]))  # (..., G, g n, d)
        s: Array = matmul(rows, k[..., :keys, :].swapaxes(-1, -2))  # (..., G, g n, keys)
        shift = Tq == 1 or not _is_safe(s)  # for single rows the two cost the same
        if mask is not None:
            n = queries.stop - queries.start
            s.reshape(*q.shape[:-2], n, keys)[..., keys - n :] += mask[:n, :n]
        if shift:
            s -= s.real.max(axis=-1, keepdims=True)
        e = xp.exp(s, out=s)
        t = sum_last(e)  # (..., G, g n, 1)
        part = y[..., queries, :]  # (..., G, g, n, d_v)
        part[...] = (matmul(e, v[..., :keys, :]) / t).reshape(part.shape)
        blocks.append(BlockCache(rows, e, t))
    return y, GqaCache(k, v, y, blocks)


def gqa_backward(
    dy: Array, cache: GqaCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dq, dk, dv) of :func:`gqa_forward`."""
    k, v, y, blocks = cache
    need_q, need_k, need_v = wanted(need, 3)
    expect_shape("dy", dy, *y.shape)
    xp, root, shape = get_xp(dy), math.sqrt(k.shape[-1]), (*y.shape[:-1], k.shape[-1])
    dq = xp.empty_like(y, shape=shape) if need_q else None  # (..., G, g, Tq, d_head)
    dk = xp.empty_like(k) if need_k else None  # (..., G, Tk, d_head)
    dv = xp.empty_like(v) if need_v else None  # (..., G, Tk, d_v)
    put = _set  # the last block sees all keys and comes first; the other blocks add to its result
    places = _blocks(y.shape[-3], y.shape[-2], k.shape[-2])
    for (queries, keys), (q, e, t) in reversed([*zip(places, blocks)]):
        part = dy[..., queries, :]  # (..., G, g, n, d_v)
        h = _scaled_rows(part, 1.0 / t.reshape(*part.shape[:-1], 1))  # (..., G, g n, d_v)
        if dv is not None:
            put(dv[..., :keys, :], matmul(e.swapaxes(-1, -2), h))
        if dq is not None or dk is not None:
            ds = matmul(h, v[..., :keys, :].swapaxes(-1, -2))  # (..., G, g n, keys)
            ds -= fold(sum_last(h.reshape(part.shape) * y[..., queries, :]))
            ds *= e
            if dq is not None:
                part = dq[..., queries, :]  # (..., G, g, n, d_head)
                back = matmul(ds, k[..., :keys, :]).reshape(part.shape)
                xp.multiply(back, 1.0 / root, out=part)
            if dk is not None:
                put(dk[..., :keys, :], matmul(ds.swapaxes(-1, -2), q))
        put = _add
    return dq, dk, dv


def _set(part: Array, x: Array) -> None:
    """Set `part`, a view, to x."""
    part[...] = x


def _add(part: Array, x: Array) -> None:
    """Add x to `part`, a view."""
    part += x


def _block(g: int) -> int:
    """Return how many queries of each of a group's g heads make a block."""
    return max(ROWS // max(g, 1), FEWEST)


def _blocks(g: int, Tq: int, Tk: int) -> Iterator[tuple[slice, int]]:
    """Yield the queries of each block, and how many keys its last query may look at."""
    n = _block(g)
    for start in range(0, max(Tq, 1), n):  # no queries make one empty block
        stop = min(start + n, Tq)
        yield slice(start, stop), stop + Tk - Tq


def _scaled_rows(x: Array, scale: Array | float) -> Array:
    """Return `x` (..., g, n, d) times `scale` as contiguous rows (..., g n, d)."""
    xp = get_xp(x)
    return fold(xp.multiply(x, scale, out=xp.empty(x.shape, dtype=x.dtype)))


def _is_safe(s: Array) -> bool:
    """Return whether exp can take the scores as they are.

    Softmax subtracts each row's largest score so that exp cannot overflow, nor a whole row vanish.
    If all scores are small, that pass is not needed. float16 ends at exp(11), and nan is not safe.
    """
    s = s.real
    if s.size == 0 or s.dtype.itemsize < 4:
        return False
    return float(s.min()) >= -SAFE and float(s.max()) <= SAFE
