"""Gradients that are small on purpose, and layers that pass them back in float16.

Our models train in float32, where no gradient underflows. A :class:`Planted` model multiplies the
gradient of its loss by a factor, and rounds what reaches each adapter to float16, as a network does
that keeps activations and their gradients in float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Layer, rebuild
from lora_np.layers.base import Rng
from lora_np.methods.contract import Adapter
from lora_np.parameters import Grads


class HalfGradients(Layer):
    """A layer whose dy is rounded to float16 before its backward.

    Parameters
    ----------
    inner : Layer

    Attributes
    ----------
    seen, lost : int
        Entries of dy other than zero so far, and those that float16 made zero.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Grads, Linear
    >>> from lora_np.experiments.precision.planted import HalfGradients
    >>> layer = HalfGradients(Linear(2, 2, np.random.default_rng(0)))
    >>> y, cache = layer.forward(np.ones((1, 2), np.float32))
    >>> dx = layer.backward(np.array([[1.0, 1e-9]], np.float32), cache, Grads())
    >>> layer.seen, layer.lost
    (2, 1)
    """

    def __init__(self, inner: Layer) -> None:
        self.inner = inner
        self.seen = self.lost = 0

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return what the inner layer returns."""
        return self.inner.forward(x, rng)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Return the inner layer's dx for the rounded dy."""
        with np.errstate(over="ignore", under="ignore"):
            half = dy.astype(np.float16)
        self.seen += int((dy != 0).sum())
        self.lost += int(((dy != 0) & (half == 0)).sum())
        return self.inner.backward(half.astype(dy.dtype), cache, grads, need_dx)


class Planted:
    """A model whose gradient is multiplied by a factor and reaches the adapters in float16.

    Parameters
    ----------
    adapted : Layer
        A model with adapters, and with a loss.
    factor : float
    """

    def __init__(self, adapted: Any, factor: float) -> None:
        def halved(path: str, layer: Layer) -> Layer | None:
            return HalfGradients(layer) if isinstance(layer, Adapter) else None

        self.model, self.factor = rebuild(adapted, lambda p: p, halved), factor
        self.loss, self.number = self.model.loss, self.model.number
        self.parameters = self.model.parameters

    def backward(self, dy: Any, cache: Any, grads: Grads) -> None:
        """Add the gradients of `factor` times the loss."""
        self.model.backward(dy * self.factor, cache, grads)

    def lost(self) -> float:
        """Return the share of the gradients passed back so far that float16 made zero."""
        layers = [m for m in self.model.modules().values() if isinstance(m, HalfGradients)]
        return sum(m.lost for m in layers) / sum(m.seen for m in layers)
