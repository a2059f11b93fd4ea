"""LoRA with an adapter for each row of a batch, as layers.

A layer must know the adapters of its rows, but a model has no state for that. So :func:`with_rows`
makes a new tree of layers for each batch, over the same Parameters, as is done for packed rows
(layers/attention.py). The products are those of ops/many.py.

Source: Sheng et al. (2023), S-LoRA, arXiv:2311.03285, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
    """y_n = x_n W0^T + b + s_a (x_n A_a^T) B_a^T with the adapter a of each row n.

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
    layers = [adapters(other) for other in models]

    def layer_of(path: str, linear: Linear, here: Sequence[int], rows: Rows) -> Layer:
        return RowsLoRA(linear, [layers[a][path] for a in here], rows)

    return route(model, layers, ids, layer_of)


def route(
    model: Any,
    paths: Sequence[Collection[str]],
    ids: Array | Sequence[int],
    make: Callable[[str, Linear, Sequence[int], Rows], Layer],
) -> Any:
    """Return a tree of layers like `model`, with another layer wherever an adapter is.

    Parameters
    ----------
    model : LanguageModel
    paths : sequence of collections of str
        The paths of the layers that each adapter adapts.
    ids : integer array, shape (n,)
        The number of each row's adapter; -1 is the base alone.
    make : callable
        ``make(path, linear, here, rows)`` returns the layer for the place of `linear`. `here` are
        the numbers of the adapters that adapt it, and `rows` numbers these from 0.
    """
    everyone = tuple(range(len(paths)))
    rows_of = {everyone: Rows(ids, len(paths))}  # by `here`: shared by the layers
    adapted = set().union(*paths)

    def replace(path: str, layer: Layer) -> Layer | None:
        if path not in adapted:
            return None
        here = tuple(a for a in everyone if path in paths[a])
        if here not in rows_of:
            numbers = np.full(len(paths) + 1, -1)  # the last one is for the id -1
            numbers[list(here)] = np.arange(len(here))
            rows_of[here] = Rows(numbers[rows_of[everyone].ids], len(here))
        base: Any = layer.base if isinstance(layer, Adapter) else layer
        return make(path, base, here, rows_of[here])

    return rebuild(model, lambda p: p, replace)
