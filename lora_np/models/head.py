"""The loss at a model's output head.

The fast twin forms dx in forward, so it is called where dx alone is needed: the head is frozen and
something below it is trained. Otherwise the pair for a trained head is called.
"""

from __future__ import annotations

from typing import Any

from lora_np.backend import Array
from lora_np.ops import fast
from lora_np.ops.fast.head_loss import HeadLossCache, trained_backward, trained_forward
from lora_np.parameters import Grads, Parameter


def head_loss(
    head: Parameter,
    y: Array,
    targets: Array,
    ignore_index: int,
    count: int | None,
    need_dx: bool,
) -> tuple[Array, Any]:
    """Return the loss at the body's outputs y (..., T, d), and the cache."""
    if head.trainable or not need_dx:
        return trained_forward(y, head.value, targets, ignore_index, count)
    loss, cache = fast.head_loss_forward(y, head.value, targets, ignore_index, count)
    return loss, cache._replace(kept=None)  # only dW reads it


def head_loss_backward(
    head: Parameter, dy: Array, cache: Any, grads: Grads, need_dx: bool
) -> Array | None:
    """Add the gradient of the head; return dx (..., T, d)."""
    backward: Any = trained_backward
    if isinstance(cache, HeadLossCache):
        backward = fast.head_loss_backward
    dx, dW = backward(dy, cache, (need_dx, head.trainable))
    grads.add(head, dW)
    return dx
