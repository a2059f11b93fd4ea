"""LoRA with an adapter for each row, by segments: the rows sorted by adapter.

The textbook copies A and B for every row. Here the rows of one adapter lie side by side, and one
thin product with A and one with B serve all of them (Punica's segmented gather matrix-vector
product, SGMV). A and B are not copied, nothing is padded, and x is not copied either if the rows
are already sorted. The large product is that of ops/fast/linear.py.

If the dtypes of x, W0 and the adapters differ, the textbook pair is called.

What it gains: with in = out = 576 and r = 8, the textbook form takes 1.18 times as long for 64 rows
with 62 adapters, and 1.96 times for 1024 rows with 100 (2026-11-26; ``python -m tests.benchmarks
--only many``). The more rows, the more the textbook copies: with 1024 rows, 38 MB of factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lora_np.backend import Array, get_xp, matmul
from lora_np.ops import many as textbook
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.fast.linear import linear_forward
from lora_np.ops.linear import rows, sum_rows
from lora_np.ops.many import (
    Adapters,
    Gradients,
    LoRARowsCache,
    Rows,
    by_row,
    none_yet,
    on_device,
    scale_of,
)


class SegmentsCache(NamedTuple):
    """What :func:`lora_rows_backward` reads."""

    x: Array  # (n, ..., in)
    W0: Array  # (out, in)
    adapters: Adapters
    rows: Rows
    scale: float | Array  # (k, 1, 1), of the sorted rows
    us: list[Array]  # x A^T of each segment, (N_a, r_a), or (r_a,) if all have one sample
    has_bias: bool


def lora_rows_forward(
    x: Array,
    W0: Array,
    adapters: Adapters,
    ids: Rows | Array | Sequence[int],
    b: Array | None = None,
    *,
    scale: float | Sequence[float] | Array,
) -> tuple[Array, LoRARowsCache | SegmentsCache]:
    """Compute :func:`lora_np.ops.lora_rows_forward`."""
    which, scale = textbook.check_ids(x, W0, adapters, ids, b, scale)
    y, _ = linear_forward(x, W0, b)  # (n, ..., out)
    y_rows = by_row(y)  # (n, m, out)
    xs, spans = _sorted(x, which), which.spans(y_rows.shape[1])  # (N, in)
    change = get_xp(x).empty((len(xs), len(W0)), y.dtype)
    try:
        own = [adapters[a] for a, _, _ in which.segments]
        if len(own) == len(xs):  # one sample each: products with vectors cost less ado
            us = [A.dot(sample) for (A, _), sample in zip(own, xs)]  # (r_a,)
            for u, (_, B), y_own in zip(us, own, change):
                B.dot(u, y_own)  # (out,)
        else:
            us = _products(xs, spans, [A.T for A, _ in own])  # (N_a, r_a)
            for u, (_, B), span in zip(us, own, spans):
                u.dot(B.T, change[span])  # (N_a, out)
    except ValueError:  # a shape does not fit, or dtypes differ
        return textbook.lora_rows_forward(x, W0, adapters, which, b, scale=scale)
    s = scale_of(scale, which.sorted, y)
    _add_to(y_rows, change, which, s)
    return y, SegmentsCache(x, W0, adapters, which, s, us, b is not None)


def lora_rows_backward(
    dy: Array, cache: LoRARowsCache | SegmentsCache, need: Need = None
) -> Gradients:
    """Return (dx, dW0, dA, dB, db) of :func:`lora_rows_forward`."""
    if isinstance(cache, LoRARowsCache):
        return textbook.lora_rows_backward(dy, cache, need)
    x, W0, adapters, which, scale, us, has_bias = cache
    need_x, need_W0, need_A, need_B, need_b = wanted(need, 5)
    expect_shape("dy", dy, *x.shape[:-1], len(W0))
    segments, spans = which.segments, which.spans(by_row(x).shape[1])
    dx = matmul(rows(dy), W0).reshape(x.shape) if need_x else None  # (n, ..., in)
    dA = none_yet(adapters, need_A)
    dB = none_yet(adapters, need_B)
    g, xs = _sorted(dy, which, scale), _sorted(x, which)  # s dy (N, out), (N, in)
    if dB is not None:
        for u, span, (a, _, _) in zip(us, spans, segments):
            dB[a] = matmul(g[span].T, rows(u))  # (out, r_a)
    if need_x or need_A:
        dus = _products(g, spans, [adapters[a][1] for a, _, _ in segments])  # (N_a, r_a)
        if dA is not None:
            for du, span, (a, _, _) in zip(dus, spans, segments):
                dA[a] = matmul(du.T, xs[span])  # (r_a, in)
        if dx is not None:
            change = get_xp(x).empty(xs.shape, dx.dtype)  # (N, in)
            for du, span, (a, _, _) in zip(dus, spans, segments):
                change[span] = matmul(du, adapters[a][0])
            _add_to(by_row(dx), change, which)
    dW0 = matmul(rows(dy).T, rows(x)) if need_W0 else None  # (out, in)
    return dx, dW0, dA, dB, sum_rows(dy) if need_b and has_bias else None


def _sorted(x: Array, which: Rows, scale: float | Array | None = None) -> Array:
    """Return the sorted samples (N, d) of rows that have an adapter, times `scale` if given."""
    xs = by_row(x)[on_device(which.here, x)]  # (k, m, d)
    if scale is not None:
        xs = scale * xs
    return rows(xs)


def _products(x: Array, spans: list[slice], matrices: list[Array]) -> list[Array]:
    """Return the product of each segment of x (N, d) with its own matrix (d, r_a)."""
    return [matmul(x[span], M) for span, M in zip(spans, matrices)]


def _add_to(y: Array, change: Array, which: Rows, scale: float | Array | None = None) -> None:
    """Add the sorted changes (N, d), times `scale` if given, to their rows of y (n, m, d).

    Both y and `change` are written to.
    """
    changes = change.reshape(len(which.sorted), *y.shape[1:])  # (k, m, d)
    if scale is not None:
        changes *= scale
    y[on_device(which.here, y)] += changes
