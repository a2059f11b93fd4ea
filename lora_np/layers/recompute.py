"""A layer that keeps its input alone, and computes everything else again in backward.

A layer's cache holds what its backward reads: for a transformer block of width d at T positions, an
order of magnitude more than the block's input (T, d). With recomputation a deep model keeps one
input a block, and the whole cache of one block at a time; a step costs one more forward.

Source: Chen, Xu, Zhang and Guestrin (2016), arXiv:1604.06174 ("gradient checkpointing").
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from lora_np.backend import Array
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.parameters import Grads


class RecomputeCache(NamedTuple):
    """The input, and the generator as it was before forward drew from it."""

    x: Array
    rng: Any


class Recompute(Layer):
    """The layer itself, with a cache of only its input.

    Forward and backward both draw from copies of one generator state, so that dropout has the same
    masks in the second forward, and backward may be called twice.

    Parameters
    ----------
    layer : Layer

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, Grads, Recompute
    >>> mlp, x = MLP(2, 4, np.random.default_rng(0)), np.ones((1, 2), np.float32)
    >>> dx = []
    >>> for layer in (mlp, Recompute(mlp)):
    ...     y, cache = layer.forward(x)
    ...     dx.append(layer.backward(y, cache, Grads()))
    >>> np.array_equal(*dx)
    True
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return the layer's y, and x with the state of the generator."""
        before = copy.deepcopy(rng)
        y, _ = self.layer.forward(x, rng)
        return y, RecomputeCache(x, before)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Run forward again, then the layer's backward."""
        _, inner = self.layer.forward(cache.x, copy.deepcopy(cache.rng))
        return self.layer.backward(dy, inner, grads, need_dx)

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Extend the layer."""
        return self.layer.extend(x, memory)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the layer's cost, with a second forward in backward if backward is called."""
        cost = self.layer.flops(T, need_dx)
        called = need_dx or self.layer.trainable
        return Flops(cost.forward, cost.backward + (cost.forward if called else 0))
