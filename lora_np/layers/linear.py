"""The linear layer, y = x W^T + b."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.ops.fast import linear_backward, linear_forward
from lora_np.ops.linear import LinearCache
from lora_np.parameters import Grads, Parameter


class Linear(Layer):
    """y = x W^T + b, W (out, in).

    Parameters
    ----------
    d_in, d_out : int
        Lengths of an input and an output.
    rng : numpy.random.Generator
        Draws the weights.
    bias : bool
        Whether there is a bias b, which starts at zero.
    std : float
        Standard deviation of the entries of W.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Grads, Linear
    >>> layer, grads = Linear(3, 2, np.random.default_rng(0)), Grads()
    >>> y, cache = layer.forward(np.ones((5, 3), np.float32))
    >>> dx = layer.backward(np.ones_like(y), cache, grads)
    >>> y.shape, dx.shape, grads[layer.W].shape, grads[layer.b].tolist()
    ((5, 2), (5, 3), (2, 3), [5.0, 5.0])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        rng: np.random.Generator,
        *,
        bias: bool = True,
        std: float = 0.02,
        dtype: Any = np.float32,
    ) -> None:
        self.W = Parameter(normal(rng, (d_out, d_in), std, dtype))
        self.b = Parameter(np.zeros(d_out, dtype)) if bias else None

    @classmethod
    def over(cls, W: Parameter, b: Parameter | None) -> Linear:
        """Return a linear layer that holds these Parameters, (out, in) and (out,)."""
        linear = cls.__new__(cls)
        linear.W, linear.b = W, b
        return linear

    @property
    def d_in(self) -> int:
        """The length of an input."""
        return self.W.shape[1]

    @property
    def d_out(self) -> int:
        """The length of an output."""
        return self.W.shape[0]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out) and the cache."""
        y, cache = linear_forward(x, self.W.value, None if self.b is None else self.b.value)
        return y, lean(cache, self.W)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dW and db; return dx."""
        need_b = self.b is not None and self.b.trainable
        dx, dW, db = linear_backward(dy, cache, (need_dx, self.W.trainable, need_b))
        grads.add(self.W, dW)
        if self.b is not None:
            grads.add(self.b, db)
        return dx

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return 2 in out for y, and as much for each of dx and dW that is formed."""
        return product_flops(self.W, need_dx)


def normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, dtype: Any) -> np.ndarray:
    """Draw normal numbers with mean 0 and standard deviation `std`."""
    return (rng.standard_normal(shape) * std).astype(dtype)


def lean(cache: LinearCache, W: Parameter) -> LinearCache:
    """Drop x from the cache if W is frozen: only dW needs x."""
    return cache if W.trainable else cache._replace(x=None)


def product_flops(W: Parameter, need_dx: bool) -> Flops:
    """Return the cost of y = x W^T for one token: 2 in out, and as much for each of dx and dW."""
    product = 2 * W.size
    return Flops(product, product * (need_dx + W.trainable))
