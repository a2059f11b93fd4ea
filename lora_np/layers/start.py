"""What a language model puts before its text: nothing, unless a method replaces this layer."""

from __future__ import annotations

from typing import Any

from lora_np.backend import Array
from lora_np.layers.base import Layer, Rng
from lora_np.parameters import Grads


class TextStart(Layer):
    """The start of a text: y = x, as no row stands before it.

    A layer in its place may put rows before the embedded text: forward then returns [rows; x].

    Parameters
    ----------
    first : int
        The position of the first row of y: the number of keys that attention puts before the
        text's (prefix tuning), by default 0.

    Attributes
    ----------
    rows : int
        How many rows forward adds.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig
    >>> model = GPT(GPTConfig(9, 4, 1, 2, 8), np.random.default_rng(0))
    >>> model.start.rows, model.start.first
    (0, 0)
    """

    rows: int = 0

    def __init__(self, first: int = 0) -> None:
        self.first = first

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
