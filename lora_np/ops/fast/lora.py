"""LoRA with the merged weight of the step.

Without a mask the two paths of ops/lora.py are one linear map with the weight W = W0 + s B A. If
there are more samples than the harmonic mean of in and out, forming W costs less than sending every
sample through A and B: then y = x W^T + b and dx = dy W; dA, dB and dW0 are computed as before. W
is used for one product and is not cached. With a mask, or with few samples, as in generation, the
textbook pair is called.

What it gains: with the textbook pair a LoRA step on q, k, v and o takes 1.03 / 1.02 / 1.01 times as
long (tiny / small / medium; 2026-11-26; ``python -m tests.benchmarks --only twins``), and longer if
the layers of the MLP are adapted too.
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import Array, matmul
from lora_np.ops import lora as textbook
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.linear import rows, sum_rows
from lora_np.ops.lora import LoRALinearCache


class MergedCache(NamedTuple):
    """What :func:`lora_linear_backward` reads if forward formed W."""

    x: Array  # (..., in)
    W0: Array  # (out, in)
    A: Array  # (r, in)
    B: Array  # (out, r)
    scale: float
    has_bias: bool


def lora_linear_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    b: Array | None = None,
    *,
    scale: float,
    mask: Array | None = None,
) -> tuple[Array, LoRALinearCache | MergedCache]:
    """Compute :func:`lora_np.ops.lora_linear_forward`."""
    if mask is not None or not merging_pays(x, W0):
        return textbook.lora_linear_forward(x, W0, A, B, b, scale=scale, mask=mask)
    textbook.check_shapes(x, W0, A, B, b, mask)
    scale = float(scale)  # an np.float64 would turn float32 into float64
    y = matmul(rows(x), _merged(W0, A, B, scale).T)  # (N, out)
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], W0.shape[0]), MergedCache(x, W0, A, B, scale, b is not None)


def lora_linear_backward(
    dy: Array, cache: LoRALinearCache | MergedCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None, Array | None, Array | None]:
    """Return (dx, dW0, dA, dB, db) of :func:`lora_linear_forward`."""
    if isinstance(cache, LoRALinearCache):
        return textbook.lora_linear_backward(dy, cache, need)
    x, W0, A, B, scale, has_bias = cache
    need_x, need_W0, need_A, need_B, need_b = wanted(need, 5)
    expect_shape("dy", dy, *x.shape[:-1], W0.shape[0])
    dx = dW0 = dA = dB = db = None
    g, x_rows = rows(dy), rows(x)  # (N, out), (N, in)
    if need_x:
        dx = matmul(g, _merged(W0, A, B, scale)).reshape(x.shape)  # (..., in)
    if need_W0:
        dW0 = matmul(g.T, x_rows)  # (out, in)
    if need_A:
        dA = matmul((scale * matmul(g, B)).T, x_rows)  # (r, in)
    if need_B:
        dB = matmul(g.T, scale * matmul(x_rows, A.T))  # (out, r)
    if need_b and has_bias:
        db = sum_rows(dy)  # (out,)
    return dx, dW0, dA, dB, db


def merging_pays(x: Array, W0: Array) -> bool:
    """Return whether forming W twice, forward and backward, costs less than the thin products."""
    d_out, d_in = W0.shape[0], W0.shape[-1]
    samples = x.size // max(d_in, 1)
    return samples * (d_in + d_out) > 2 * d_in * d_out


def _merged(W0: Array, A: Array, B: Array, scale: float) -> Array:
    """Return W0 + scale B A (out, in)."""
    W = matmul(scale * B, A)
    W += W0
    return W
