"""IA3: trained gains on keys, on values and inside the MLP, and nothing else.

::

    y = g * (x W0^T + b)               g (out,)   behind a layer: the bias is multiplied too
    y = (g * x) W0^T + b               g (in,)    in front of a feedforward module

Both are a linear layer and a :func:`gain <gain_forward>` z = g * x, which at g = 1 changes nothing.
Entry by entry z_ni = g_i x_ni, so::

    dx = g * dz                        (N, d)
    dg = sum over samples of dz * x    (d,)

A gain merges: one behind a layer into the rows of W0 and into b, one in front into the columns of
W0. In a file that stacks layers in one matrix, their gains are stacked too, with 1 for the rows of
a layer without an adapter.

Source: Liu et al. (2022), arXiv:2205.05638, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, to_host
from lora_np.layers import Layer, Linear, Rng
from lora_np.methods.contract import Adapter, Fields, NoPeftForm, Places, Tensors, adapters, name_in
from lora_np.methods.peft import Group, PeftMethod, by_module
from lora_np.methods.stacked import homes_of
from lora_np.methods.targets import matches, no_match
from lora_np.ops.contract import Need, expect_last, wanted
from lora_np.ops.linear import sum_rows
from lora_np.parameters import Grads, Parameter


class GainCache(NamedTuple):
    """What :func:`gain_backward` reads."""

    x: Array  # (..., d); a layer sets it to None if g is frozen
    g: Array  # (d, 1) or (1, d)


def gain_forward(x: Array, g: Array) -> tuple[Array, GainCache]:
    """Compute z = g * x, x (..., d), with the gains as PEFT keeps them: (d, 1) or (1, d)."""
    expect_last("x", x, g.size)
    return x * g.reshape(-1), GainCache(x, g)


def gain_backward(dz: Array, cache: GainCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dx, dg) of :func:`gain_forward`."""
    x, g = cache
    need_x, need_g = wanted(need, 2)
    dx = dz * g.reshape(-1) if need_x else None  # (..., d)
    return dx, sum_rows(dz * x).reshape(g.shape) if need_g else None


class IA3Linear(Adapter):
    """A linear layer with gains g behind it, or in front of a feedforward module."""

    def __init__(self, base: Linear, g: Parameter, feedforward: bool) -> None:
        self.base, self.g, self.feedforward = base, g, feedforward

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out) and the caches of the gain and of the linear layer."""
        if self.feedforward:
            z, c_gain = gain_forward(x, self.g.value)
            y, c_base = self.base.forward(z, rng)
        else:
            z, c_base = self.base.forward(x, rng)
            y, c_gain = gain_forward(z, self.g.value)
        return y, (c_gain if self.g.trainable else c_gain._replace(x=None), c_base)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dg, and dW0 and db if they are trained; return dx."""
        c_gain, c_base = cache
        if self.feedforward:
            reached = need_dx or self.g.trainable
            dz: Any = self.base.backward(dy, c_base, grads, reached)
            if not reached:
                return None
            dx, dg = gain_backward(dz, c_gain, (need_dx, self.g.trainable))
            grads.add(self.g, dg)
            return dx
        reached = need_dx or self.base.trainable
        dz, dg = gain_backward(dy, c_gain, (reached, self.g.trainable))
        grads.add(self.g, dg)
        return self.base.backward(dz, c_base, grads, need_dx) if reached else None

    def merged(self) -> Linear:
        """Return the plain linear layer with the gains in W0, and in b if they are behind it."""
        W0, b, g = self.base.W, self.base.b, self.g.value
        if b is not None and not self.feedforward:
            b = Parameter(b.value * g.reshape(-1))
        return Linear.over(Parameter(W0.value * g), b)  # g is a column, or a row in front

    def tensors(self) -> dict[str, Parameter]:
        """Return g by PEFT's name."""
        return {"ia3_l": self.g}


@dataclass(frozen=True)
class IA3Config(PeftMethod):
    """IA3: which modules get gains, and which of them in front (`feedforward_modules`).

    `feedforward_modules` are targets too, given in the same ways; () means none.
    """

    target_modules: Sequence[str] | str = ("k_proj", "v_proj", "down_proj")
    feedforward_modules: Sequence[str] | str = ("down_proj",)
    layers_to_transform: int | Sequence[int] | None = None

    name = "ia3"
    peft_type = "IA3"
    peft_defaults = {"init_ia3_weights": True}  # noqa: RUF012

    def places(self, model: Layer) -> list[str]:
        """Return the targeted paths; every feedforward module must be one of them."""
        chosen, names = super().places(model), self.feedforward_modules
        for name in [names] if isinstance(names, str) else names:
            one = name if isinstance(names, str) else [name]
            if not any(matches(one, path) for path in chosen):
                raise no_match(name, chosen, "target module", "feedforward module")
        return chosen

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> IA3Linear:
        """Return `layer` with gains of 1."""
        W0, feedforward = layer.W.value, matches(self.feedforward_modules, path)
        shape = (1, W0.shape[1]) if feedforward else (W0.shape[0], 1)
        return IA3Linear(layer, Parameter(get_xp(W0).ones(shape, W0.dtype)), feedforward)

    def to_peft(self, adapted: Layer, places: Places) -> Any:
        """Return PEFT's fields and tensors; it names the feedforward modules as in the file."""
        fields, tensors = super().to_peft(adapted, places)
        inward = [path for path, layer in adapters(adapted).items() if layer.feedforward]
        names = [name_in(path, places) for path in inward]
        return {**fields, "feedforward_modules": names}, tensors

    def stack(self, name: str, group: Group) -> dict[str, np.ndarray]:
        """Return the gains of the module `name` of a file; rows without an adapter have 1."""
        parts: Any = group
        (place, first), *_ = parts
        if place.total == first.d_out:
            return super().stack(name, group)
        if any(layer.feedforward for _, layer in parts):
            raise NoPeftForm(f"PEFT has one gain in front of {name!r}: ours are of its parts")
        g = np.ones((place.total, 1), first.g.dtype)
        for place, layer in parts:
            g[place.start : place.start + layer.d_out] = to_host(layer.g.value)
        return {"ia3_l": g}

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the gains of a PEFT file."""
        homes, names = homes_of(base, places), saved.get("feedforward_modules") or ()
        inward = [
            path
            for name in by_module(tensors, homes)
            for path, *_ in homes[name]
            if (matches(names, name) if isinstance(names, str) else name.endswith(tuple(names)))
        ]
        return super().of_peft({**saved, "feedforward_modules": inward}, tensors, base, places)

    @classmethod
    def split(cls, name: str, tensors: Any, homes: Any) -> dict[str, dict[str, np.ndarray]]:
        """Return the gains of each layer in a module; a layer whose gains are all 1 has none."""
        g, total = tensors.get("ia3_l"), homes[0][1].total
        if len(homes) == 1 or g is None or g.shape != (total, 1):
            return {path: tensors for path, *_ in homes}  # one gain in front serves all parts
        parts = {path: g[at.start : at.start + layer.d_out] for path, at, layer in homes}
        moved = {path: own for path, own in parts.items() if (own != 1.0).any()} or parts
        return {path: {**tensors, "ia3_l": own} for path, own in moved.items()}  # others: refused
