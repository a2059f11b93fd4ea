"""LoRA with an adapter for each row of a batch, as layers.

A layer must know its rows' adapters, but it has no state for that: :func:`with_rows` makes a tree
of layers for the ids of a batch, over the same Parameters, as for packed rows
(layers/attention.py).
The products are those of ops/many.py.

Source: Sheng et al. (2023), S-LoRA, arXiv:2311.03285, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Flops, Layer, Linear, Rng, rebuild
from lora_np.methods.contract import Adapter, adapters
from lora_np.methods.lora import LoRALinear
from lora_np.ops import Rows
from lora_np.ops.fast import lora_rows_backward, lora_rows_forward
from lora_np.parameters import Grads, Parameter


class RowsLoRA(Layer):
    """A linear layer with the adapter of each row.

    Parameters
    ----------
    linear : Linear
    adapters : list of LoRALinear
        Their A, B and scale are used; dropout is not applied.
    rows : Rows
        The adapter of each row of x (n, ..., in), as its number in `adapters`.
    """

    def __init__(self, linear: Linear, adapters: Sequence[LoRALinear], rows: Rows) -> None:
        self.linear, self.adapters, self.rows = linear, list(adapters), rows

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (n, ..., out) and the cache."""
        W0, b = self.linear.W.value, self.linear.b
        scales = np.array([adapter.scale for adapter in self.adapters])
        pairs = [adapter.pair() for adapter in self.adapters]
        bias = None if b is None else b.value
        return lora_rows_forward(x, W0, pairs, self.rows, bias, scale=scales)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dA and dB of the adapters that have a row, dW0 and db if trained; return dx."""
        held, factors = (self.linear.W, self.linear.b), self._factors()
        need_W0, need_b = (p is not None and p.trainable for p in held)
        need_A, need_B = (any(p.trainable for p in of) for of in factors)
        need = (need_dx, need_W0, need_A, need_B, need_b)
        dx, dW0, dA, dB, db = lora_rows_backward(dy, cache, need)
        grads.add_all(held, (dW0, db))
        for of, found in zip(factors, (dA, dB)):
            for p, d in zip(of, found or ()):
                grads.add(p, d if p.trainable else None)
        return dx

    def _factors(self) -> tuple[list[Parameter], list[Parameter]]:
        """Return all A and all B."""
        return [adapter.A for adapter in self.adapters], [adapter.B for adapter in self.adapters]

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of W0, and the mean over the rows of their adapters' thin products."""
        base, n = self.linear.flops(T, need_dx), max(len(self.rows), 1)
        forward = backward = 0
        for a, start, end in self.rows.segments:
            own = self.adapters[a].flops(T, need_dx)
            forward += (end - start) * (own.forward - base.forward)
            backward += (end - start) * (own.backward - base.backward)
        return base.plus(Flops(forward // n, backward // n))


def with_rows(model: Any, models: Sequence[Any], ids: Array | Sequence[int]) -> Any:
    """Return a tree of layers like `model` in which row n has the adapter of ``models[ids[n]]``.

    All Parameters are used, not copied; -1 is the base alone. A model that does not adapt a layer
    leaves its rows to the base there.
    """
    number = len(models)
    whole = Rows(ids, number)
    of_path: dict[str, dict[int, LoRALinear]] = {}
    for a, other in enumerate(models):
        for path, layer in adapters(other).items():
            of_path.setdefault(path, {})[a] = layer
    made: dict[tuple[int, ...], Rows] = {tuple(range(number)): whole}  # shared by the layers

    def place(path: str, layer: Layer) -> Layer | None:
        if path not in of_path:
            return None
        present = tuple(of_path[path])
        if present not in made:
            numbers = np.full(number + 1, -1)  # the last one is for the id -1
            numbers[list(present)] = np.arange(len(present))
            made[present] = Rows(numbers[whole.ids], len(present))
        base: Any = layer.base if isinstance(layer, Adapter) else layer
        return RowsLoRA(base, list(of_path[path].values()), made[present])

    return rebuild(model, lambda p: p, place)
