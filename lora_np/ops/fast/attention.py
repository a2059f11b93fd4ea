"""Causal attention as grouped attention with one query a group.

ops/fast/grouped.py says why it is faster: it works in blocks of queries and never forms P.

What it gains: with the textbook pair a full step takes 1.08 / 1.04 / 1.14 times as long, and a LoRA
step 1.09 / 1.05 / 1.21 (tiny / small / medium; 2026-11-26; ``python -m tests.benchmarks --only
twins``).
"""

from __future__ import annotations

from lora_np.backend import Array
from lora_np.ops.attention import check_shapes
from lora_np.ops.contract import Need
from lora_np.ops.fast.grouped import GqaCache, gqa_backward, gqa_forward


def attention_forward(q: Array, k: Array, v: Array) -> tuple[Array, GqaCache]:
    """Compute :func:`lora_np.ops.attention_forward`; y has the memory layout of q."""
    check_shapes(q, k, v)
    y, cache = gqa_forward(_alone(q), k, v)
    return y[..., 0, :, :], cache


def attention_backward(
    dy: Array, cache: GqaCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dq, dk, dv) of :func:`attention_forward`."""
    dq, dk, dv = gqa_backward(_alone(dy), cache, need)
    return None if dq is None else dq[..., 0, :, :], dk, dv


def _alone(x: Array) -> Array:
    """Return `x` (..., T, n) as (..., 1, T, n): each head is the only one of its group."""
    return x[..., None, :, :]
