"""A linear layer that a method computes with a pair of its own, from x to y.

The pair takes x, W0, the method's Parameters and b, and computes their gradients more cheaply than
by dW = dy^T x (reweighted.py)::

    y, cache = pair_forward(x, W0, *parameters, b, **options)
    dx, dW0, *gradients, db = pair_backward(dy, cache, need)

A Parameter that a layer does not have is None, as b may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from lora_np.backend import Array, get_xp
from lora_np.layers import Linear, Rng
from lora_np.methods.contract import Adapter
from lora_np.parameters import Grads, Parameter


class PairedLinear(Adapter):
    """y = pair_forward(x, W0, ..., b).

    A subclass sets the pair as static methods, and counts the products that it adds in flops().

    Parameters
    ----------
    base : Linear
    parameters : mapping of str to Parameter or None
        The method's Parameters in the pair's order, by the names of the layer's attributes.
    options : mapping of str to any, optional
        Arguments of pair_forward without a gradient.
    """

    pair_forward: ClassVar[Callable[..., tuple[Array, Any]]]
    pair_backward: ClassVar[Callable[..., tuple[Array | None, ...]]]
    base: Linear

    def __init__(
        self,
        base: Linear,
        parameters: Mapping[str, Parameter | None],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.base, self.names, self.options = base, tuple(parameters), dict(options or {})
        vars(self).update(parameters)

    def held(self) -> list[Parameter | None]:
        """Return W0, the method's Parameters in the pair's order, and b."""
        return [self.base.W, *(getattr(self, name) for name in self.names), self.base.b]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out) and the cache."""
        values = [None if p is None else p.value for p in self.held()]
        return self.pair_forward(x, *values, **self.options)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of the method's Parameters, and dW0 and db if trained; return dx."""
        held = self.held()
        need = (need_dx, *(p is not None and p.trainable for p in held))
        dx, *gradients = self.pair_backward(dy, cache, need)
        grads.add_all(held, gradients)
        return dx

    def merged(self) -> Linear:
        """Return the plain linear layer with the weight W: the outputs of the unit vectors."""
        W0, *values, _ = [None if p is None else p.value for p in self.held()]
        units = get_xp(W0).eye(self.base.W.shape[1], dtype=self.base.W.dtype)
        y, _ = self.pair_forward(units, W0, *values, None, **self.options)  # (in, out)
        return Linear.over(Parameter(y.T.copy()), self.base.b)
