"""The linear map of a few rows, in blocks of its outputs.

OpenBLAS copies the matrix W into another order before it multiplies. That pays for many rows; for
the 2 to 8 rows of a step of generation, the copy takes longer than the product. Its kernels for
AVX-512 leave the copy out if a product is small, so W is cut into blocks of rows, each of which
makes a small product. (For one row NumPy calls a kernel that never copies.) Backward is the
textbook's.

What it gains: with the textbook form, greedy generation with SmolLM2 at batch 4 takes 1.95 times as
long with OpenBLAS's kernels for AVX-512, and 1.01 times with those for AVX2 (2026-11-26). Training
has more rows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lora_np.backend import Array, get_xp, matmul
from lora_np.ops.contract import Need, expect_last, expect_shape, wanted
from lora_np.ops.linear import LinearCache, rows, sum_rows

MOST_ROWS = 8
SMALL = 700_000  # multiplications of a product that OpenBLAS takes for small
NARROWEST = 32  # rows of W in a block; narrower ones cost more calls than they save


def linear_forward(x: Array, W: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """Compute :func:`lora_np.ops.linear_forward`."""
    expect_shape("W", W, None, None)
    expect_last("x", x, W.shape[1])
    shape = (*x.shape[:-1], len(W))
    y = _product(rows(x), W).reshape(shape)  # (..., out)
    if b is not None:
        expect_shape("b", b, len(W))
        y += b
    return y, LinearCache(x, W, b is not None, shape)


def linear_backward(
    dy: Array, cache: LinearCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dx, dW, db) of :func:`linear_forward`, as the textbook does."""
    need_x, need_W, need_b = wanted(need, 3)
    expect_shape("dy", dy, *cache.shape)
    g, W = rows(dy), cache.W  # (N, out)
    dx = matmul(g, W).reshape(*dy.shape[:-1], W.shape[1]) if need_x else None  # (..., in)
    dW = matmul(g.T, rows(cache.x)) if need_W else None  # (out, in)
    db = sum_rows(dy) if need_b and cache.has_bias else None  # (out,)
    return dx, dW, db


def _product(x: Array, W: Array) -> Array:
    """Return x W^T for x (N, in): (N, out)."""
    if 1 < len(x) <= MOST_ROWS and get_xp(x) is np:
        block = _block(len(W), SMALL // max(x.size, 1))
        if NARROWEST <= block < len(W):
            parts = matmul(x, W.reshape(-1, block, W.shape[1]).swapaxes(1, 2))
            return parts.swapaxes(0, 1).reshape(len(x), len(W))  # of (out / block, N, block)
    return matmul(x, W.T)


@lru_cache(maxsize=64)
def _block(out: int, most: int) -> int:
    """Return the largest divisor of `out` that is at most `most`, or 0."""
    return next((n for n in range(min(out, most), 0, -1) if out % n == 0), 0)
