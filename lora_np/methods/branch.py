"""A branch beside a layer: y = base(x) + branch(x), so dx is the sum over both.

Serial adapters, which stand behind a layer, are not branches: see bottleneck.py.
"""

from __future__ import annotations

from typing import Any

from lora_np.backend import Array, get_xp
from lora_np.layers import Dropout, Flops, Layer, Linear, Rng
from lora_np.methods.contract import Adapter
from lora_np.parameters import Grads, Parameter


class Branch(Adapter):
    """y = base(x) + branch(x), with dropout on the branch's input alone.

    Parameters
    ----------
    base : Layer
    branch : Layer
        Its output has the shape of the base's.
    dropout : float
    """

    def __init__(self, base: Layer, branch: Layer, dropout: float = 0.0) -> None:
        self.base, self.drop, self.branch = base, Dropout(dropout), branch

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out) and the caches."""
        y, c_base = self.base.forward(x, rng)
        x, c_drop = self.drop.forward(x, rng)
        z, c_branch = self.branch.forward(x, rng)
        return y + z, (c_base, c_drop, c_branch)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Go back through both; return the sum of their dx."""
        c_base, c_drop, c_branch = cache
        dx = self.base.backward(dy, c_base, grads, need_dx)
        dz: Any = self.branch.backward(dy, c_branch, grads, need_dx)
        return dx + self.drop.backward(dz, c_drop, grads) if need_dx else None

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the sum of both costs."""
        return self.base.flops(T, need_dx).plus(self.branch.flops(T, need_dx))


class LinearBranch(Branch):
    """A branch that is a linear map, and therefore merges into a linear base."""

    base: Linear

    def delta(self) -> Array:
        """Return the matrix (out, in) of the branch: its output for the unit vectors."""
        W0 = self.base.W.value
        return self.branch.forward(get_xp(W0).eye(W0.shape[1], dtype=W0.dtype))[0].T

    def merged(self) -> Linear:
        """Return the plain linear layer with W = W0 + delta."""
        return Linear.over(Parameter(self.base.W.value + self.delta()), self.base.b)
