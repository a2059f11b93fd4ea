"""A linear layer whose weight a method makes: y = x W^T + b with W = f(W0, its Parameters).

A method gives f as a pair::

    W, cache = weight_forward(W0, *parameters, **options)
    dW0, *gradients = weight_backward(dW, cache, need)

and this layer does the rest: forward forms W, which is the merged weight too, and backward forms
dW = dy^T x as full fine-tuning does. So such a method makes the optimizer's memory and the files
small, but a step costs no less than full fine-tuning's. Where dW can be avoided, see paired.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from lora_np.backend import Array
from lora_np.layers import Flops, Linear, Rng, product_flops
from lora_np.methods.contract import Adapter
from lora_np.ops import linear_backward, linear_forward
from lora_np.parameters import Grads, Parameter


class ReweightedCache(NamedTuple):
    """What backward reads."""

    linear: Any
    weight: Any


class Reweighted(Adapter):
    """y = x W^T + b with W = weight_forward(W0, ...).

    A subclass sets the pair as static methods.

    Parameters
    ----------
    base : Linear
    parameters : mapping of str to Parameter
        The method's Parameters in the pair's order, by the names of the layer's attributes.
    options : mapping of str to any, optional
        Arguments of weight_forward without a gradient.
    """

    weight_forward: ClassVar[Callable[..., tuple[Array, Any]]]
    weight_backward: ClassVar[Callable[..., tuple[Array | None, ...]]]

    def __init__(
        self,
        base: Linear,
        parameters: Mapping[str, Parameter],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.base, self.names, self.options = base, tuple(parameters), dict(options or {})
        vars(self).update(parameters)

    def held(self) -> list[Parameter]:
        """Return W0 and the method's Parameters in the pair's order."""
        return [self.base.W, *(getattr(self, name) for name in self.names)]

    def weight(self) -> tuple[Array, Any]:
        """Return W (out, in) and the pair's cache."""
        return self.weight_forward(*(p.value for p in self.held()), **self.options)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, ReweightedCache]:
        """Return y (..., out) and the cache."""
        W, c_weight = self.weight()
        y, c_linear = linear_forward(x, W, None if self.base.b is None else self.base.b.value)
        return y, ReweightedCache(c_linear, c_weight)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of the method's Parameters, and dW0 and db if trained; return dx."""
        held, b = self.held(), self.base.b
        need = [p.trainable for p in held]
        need_b = b is not None and b.trainable
        dx, dW, db = linear_backward(dy, cache.linear, (need_dx, any(need), need_b))
        if dW is not None:
            grads.add_all(held, self.weight_backward(dW, cache.weight, need))
        if b is not None:
            grads.add(b, db)
        return dx

    def merged(self) -> Linear:
        """Return the plain linear layer with the weight W."""
        return Linear.over(Parameter(self.weight()[0]), self.base.b)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of the products with x; making W is not counted, nor is its backward."""
        return product_flops(self.base.W, need_dx).plus(Flops(0, 2 * self.base.W.size))
