"""An adapter over a whole model, which is still a model: it trains, generates, and merges.

At every call, the adapter makes a plain model of its base: the model at the current point. A
subclass defines how (`at_point`), and how the gradients go back to what it trains (`backward`).
"""

from __future__ import annotations

from typing import Any

from lora_np.backend import Array
from lora_np.layers import Flops, Rng
from lora_np.methods.contract import Adapter


class WholeModel(Adapter):
    """An adapter over a model; a subclass defines `at_point` and backward."""

    def at_point(self) -> tuple[Any, Any]:
        """Return the plain model that computes the same now, and the cache of its making."""
        raise TypeError(f"{type(self).__name__} has no at_point of its own")

    def point(self) -> Any:
        """Return the plain model that computes the same now."""
        return self.at_point()[0]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return the output at the point, and the cache."""
        point, cache = self.at_point()
        y, inner = point.forward(x, rng)
        return y, (point, inner, cache)

    def loss(self, *batch: Array, rng: Any = None, **options: Any) -> tuple[Array, Any]:
        """Return the loss at the point, and the cache; the arguments are the model's."""
        point, cache = self.at_point()
        loss, inner = point.loss(*batch, rng=rng, **options)
        return loss, (point, inner, cache)

    def merged(self) -> Any:
        """Return the plain model that computes the same."""
        return self.point()

    def delta(self) -> Array:
        """Raise ValueError: the change is not that of one weight."""
        raise ValueError(
            "the method changes the whole model: its old values are in the base that it was "
            "injected into, which is as it was"
        )

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Return the model's output at the newest positions, and its memory."""
        return self.point().extend(x, memory)

    def generate(self, *args: Any, **options: Any) -> Any:
        """Continue texts as the model does."""
        return self.point().generate(*args, **options)

    @property
    def number(self) -> Any:
        """The base's function of how many things its loss averages over."""
        return self.base.number

    @property
    def block_size(self) -> int:
        """The base's longest sequence."""
        return self.base.block_size

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of the plain model, where all that moves is trained."""
        return self.point().flops(T, need_dx)
