"""What a language model puts before its text: nothing, unless a method replaces this layer."""

from __future__ import annotations

from typing import Any

from lora_np.backend import Array
from lora_np.layers.base import Layer, Rng
from lora_np.parameters import Grads


class TextStart(Layer):
    """The start of a text: y = x, as nothing stands before it.

    A layer in its place may put rows before the embedded text: forward then returns them above x.
    It may also let the positions begin later, as a layer that puts keys before the text's does.

    Attributes
    ----------
    rows : int
        How many rows forward adds.
    first : int
        The position of the first row of y.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig
    >>> model = GPT(GPTConfig(9, 4, 1, 2, 8), np.random.default_rng(0))
    >>> model.start.rows, model.start.first
    (0, 0)
    """

    rows: int = 0
    first: int = 0

    @property
    def length(self) -> int:
        """The position of the text's first token."""
        return self.first + self.rows

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., rows + T, d), here x (..., T, d) itself."""
        return x, None

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Return dx (..., T, d), here dy itself."""
        return dy if need_dx else None


def start_of(model: Layer) -> tuple[str, TextStart]:
    """Return the path and the layer of what a model puts before its text.

    Raises
    ------
    ValueError
        If the model has no such layer.
    """
    for path, layer in model.modules().items():
        if isinstance(layer, TextStart):
            return path, layer
    raise ValueError(
        f"{type(model).__name__} has no place before a text: this method needs a language model"
    )
