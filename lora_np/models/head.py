"""The loss at a model's output head: the textbook pair if the head is trained, else its twin."""

from __future__ import annotations

from typing import Any

from lora_np import ops
from lora_np.backend import Array
from lora_np.ops import fast
from lora_np.parameters import Grads, Parameter


def head_loss(
    head: Parameter, y: Array, targets: Array, ignore_index: int, count: int | None
) -> tuple[Array, Any]:
    """Return the loss at the body's outputs y (..., T, d), and the cache."""
    if head.trainable:
        return ops.head_loss_forward(y, head.value, targets, ignore_index, count)
    loss, cache = fast.head_loss_forward(y, head.value, targets, ignore_index, count)
    return loss, cache._replace(kept=None)  # only dW reads it


def head_loss_backward(
    head: Parameter, dy: Array, cache: Any, grads: Grads, need_dx: bool
) -> Array | None:
    """Add the gradient of the head; return dx (..., T, d)."""
    pair = ops if head.trainable else fast
    dx, dW = pair.head_loss_backward(dy, cache, (need_dx, head.trainable))
    grads.add(head, dW)
    return dx
