"""The linear map of a few rows, in blocks of its outputs.

OpenBLAS copies the matrix W into another order before it multiplies. That pays for many rows; for
the 2 to 16 rows of a step of generation, the copy takes longer than the product. Its kernels for
AVX-512 leave the copy out if a product is small, so y is formed in blocks of columns, each of them
a small product. (For one row NumPy calls a kernel that never copies.) Backward is the textbook's.

What it gains: with the textbook form, greedy generation with SmolLM2 at batch 4 takes GAIN times as
long; with OpenBLAS's kernels for AVX2, as long. Training has more rows.
"""

from __future__ import annotations

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.ops import linear as textbook
from lora_np.ops.contract import expect_last, expect_shape
from lora_np.ops.linear import LinearCache, linear_backward, rows

__all__ = ["linear_backward", "linear_forward"]

MOST_ROWS = 16
SMALL = 100**3  # multiplications of a product that OpenBLAS calls small


def linear_forward(x: Array, W: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """Compute :func:`lora_np.ops.linear_forward`."""
    expect_shape("W", W, None, None)
    expect_last("x", x, W.shape[1])
    x_rows = rows(x)  # (N, in)
    block = SMALL // max(x.size, 1)  # columns of y
    if not (1 < len(x_rows) <= MOST_ROWS and 0 < block < len(W)) or get_xp(x) is not np:
        return textbook.linear_forward(x, W, b)
    y = np.empty((len(x_rows), len(W)), np.result_type(x, W))  # (N, out)
    for start in range(0, len(W), block):
        part = slice(start, start + block)
        np.matmul(x_rows, W[part].T, out=y[:, part])
    if b is not None:
        expect_shape("b", b, len(W))
        y += b
    shape = (*x.shape[:-1], len(W))
    return y.reshape(shape), LinearCache(x, W, b is not None, shape)
