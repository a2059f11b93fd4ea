"""Attention as grouped attention, in which the heads of a group share keys and values.

Causal attention is grouped attention with one head a group. The newest query of a head sees all
keys; so attention without the mask is grouped attention with a group of Tq heads, each with one
query. ops/fast/grouped.py says why it is faster: it works in blocks of queries, each with the keys
that it needs, and never forms P.

What it gains: with the textbook pair a full step takes 1.08 / 1.04 / 1.14 times as long, and a LoRA
step 1.09 / 1.05 / 1.21 (tiny / small / medium; 2026-11-26; ``python -m tests.benchmarks --only
twins``).
"""

from __future__ import annotations

import numpy as np

from lora_np.backend import Array
from lora_np.ops.attention import check_shapes
from lora_np.ops.contract import Need
from lora_np.ops.fast.grouped import GqaCache, gqa_backward, gqa_forward

# How to add an axis of length 1 to (..., Tq, d), and how to take it away again.
ONE_HEAD = np.s_[..., None, :, :], np.s_[..., 0, :, :]
ONE_QUERY = np.s_[..., :, None, :], np.s_[..., 0, :]


def attention_forward(q: Array, k: Array, v: Array, causal: bool = True) -> tuple[Array, GqaCache]:
    """Compute :func:`lora_np.ops.attention_forward`; y has the memory layout of q."""
    check_shapes(q, k, v, causal)
    grouped, alone = ONE_HEAD if causal else ONE_QUERY
    y, cache = gqa_forward(q[grouped], k, v)
    return y[alone], cache


def attention_backward(
    dy: Array, cache: GqaCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dq, dk, dv) of :func:`attention_forward`."""
    grouped, alone = ONE_QUERY if cache.y.shape[-2] == 1 else ONE_HEAD
    dq, dk, dv = gqa_backward(dy[grouped], cache, need)
    return None if dq is None else dq[alone], dk, dv
