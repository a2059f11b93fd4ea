"""The output head and its cross-entropy, with the gradient of x formed in forward.

ops/head_loss.py computes logits that do not fit in one chunk twice, because backward runs after all
of forward. But a loss is the last thing that is computed: dL/dz does not depend on anything above
it. So forward turns every chunk of logits into its part of dx at once, keeps no logits, and
backward multiplies dx by dy, which is a number. With e = exp(z), its row sums t and the divisor
count, the division is done where the array is narrow::

    dx = (softmax(z) W - W[target]) / count = ((e W) / t - W[target]) / count

If no backward follows, as in evaluation, this product is computed for nothing; and dW takes the
logits once more. So where the head is trainable or dx is not needed, models call the pair at the
end of this file (models/head.py): the textbook's steps, with the products of the fast twins.

What it gains: with the textbook pair, a LoRA step of SmolLM2 on 4 x 64 tokens takes 1.10 times as
long with OpenBLAS's kernels for AVX2, and 1.13 times with those for AVX-512 (2026-11-26).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, matmul
from lora_np.ops import head_loss as textbook
from lora_np.ops.contract import Need, expect_finite, wanted
from lora_np.ops.head_loss import at_places, chunks, exponentials, kept_rows, of_logits
from lora_np.ops.loss import IGNORE_INDEX


class HeadLossCache(NamedTuple):
    """What :func:`head_loss_backward` reads."""

    dx: Array  # (..., d), for dy = 1
    kept: textbook.HeadLossCache | None  # for dW; a layer sets it to None when W is frozen


def head_loss_forward(
    x: Array,
    W: Array,
    targets: Array,
    ignore_index: int = IGNORE_INDEX,
    count: int | None = None,
) -> tuple[Array, HeadLossCache]:
    """Compute :func:`lora_np.ops.head_loss_forward`."""
    kept = kept_rows(x, W, targets, ignore_index, count)
    xp, X, target = get_xp(x), kept.x, kept.target  # (n, d), (n,)
    nll = xp.empty(len(X), dtype=np.result_type(x.dtype, W.dtype))  # (n,)
    dx = xp.empty(X.shape, dtype=nll.dtype)  # (n, d)
    for part in chunks(len(X), len(W)):
        (e, t), nll[part] = exponentials(matmul(X[part], W.T), target[part])
        dx[part] = matmul(e, W) / t
        del e  # the memory, before the next chunk is computed
    loss = nll.sum() / kept.divisor
    expect_finite("the targets' log-probabilities", loss.real)
    dx -= W[target]
    dx /= kept.divisor
    return loss, HeadLossCache(at_places(kept.places, dx, x.shape), kept)


def head_loss_backward(
    dy: Array | float, cache: HeadLossCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dx, dW) of :func:`head_loss_forward`."""
    need_x, need_W = wanted(need, 2)
    dx = (cache.dx * dy).astype(cache.dx.dtype, copy=False) if need_x else None
    dW = None
    if need_W and cache.kept is not None:
        _, dW = trained_backward(dy, cache.kept, (False, True))
    return dx, dW


def trained_forward(
    x: Array,
    W: Array,
    targets: Array,
    ignore_index: int = IGNORE_INDEX,
    count: int | None = None,
) -> tuple[Array, textbook.HeadLossCache]:
    """Compute :func:`lora_np.ops.head_loss_forward` by its own steps, for a W that is trained."""
    kept = kept_rows(x, W, targets, ignore_index, count)
    nll = get_xp(x).empty(len(kept.x), dtype=np.result_type(x.dtype, W.dtype))  # (n,)
    parts, softmax = [*chunks(len(kept.x), len(W))], None
    for part in parts:
        softmax = None  # frees the memory of the chunk before
        z = matmul(kept.x[part], W.T)  # (n, V)
        softmax, nll[part] = exponentials(z, kept.target[part])
    loss = nll.sum() / kept.divisor
    expect_finite("the targets' log-probabilities", loss.real)
    return loss, kept._replace(softmax=softmax if len(parts) == 1 else None)


def trained_backward(
    dy: Array | float, cache: textbook.HeadLossCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dx, dW) of :func:`trained_forward`."""
    x, W, target, places, divisor, shape, softmax = cache
    need_x, need_W = wanted(need, 2)
    xp = get_xp(x)
    dx = xp.empty(x.shape, dtype=x.dtype) if need_x else None  # (n, d)
    dW = xp.zeros(W.shape, dtype=W.dtype) if need_W else None  # (V, d)
    for part in chunks(len(x), len(W)) if need_x or need_W else ():
        again = softmax or exponentials(matmul(x[part], W.T), target[part])[0]
        dz = of_logits(dy / divisor, again, target[part], keep=softmax is not None)  # (n, V)
        if dx is not None:
            dx[part] = matmul(dz, W)
        if dW is not None:
            dW += matmul(dz.T, x[part])
        del again, dz  # the memory, before the next chunk is computed
    return None if dx is None else at_places(places, dx, shape), dW
