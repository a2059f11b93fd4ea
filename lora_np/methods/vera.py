"""VeRA: one random pair A, B for all layers, frozen; each layer trains two vectors.

::

    W = W0 + diag(c) B diag(d) A       A (r, in), B (out, r), d (r,), c (out,)
    y = x W^T + b = x W0^T + b + c * ((d * (x A^T)) B^T)

A is drawn as wide as the widest input, B as tall as the widest output; a layer sees the first `in`
columns of A and the first `out` rows of B. At the start c = 0 and d = d_initial, so W = W0.

Derivation. Entry by entry W_oi = W0_oi + c_o sum_k B_ok d_k A_ki, and dL/dW = dy^T x. With
G = (dy^T x) A^T (out, r)::

    dc = (G * B) d                     dd = c (G * B)
    dB = diag(c) G diag(d)             dA = diag(d) B^T diag(c) dy^T x;  dx = dy W

r is large here (256 by default), so that a product with A can cost as much as one with W0. W is
formed once a step and kept for dx, unless samples are few, as in generation. G is formed in the
cheaper order: dy^T (x A^T), or (dy^T x) A^T if r is large.

Source: Kopiczko, Blankevoort and Asano (2023), arXiv:2310.11454, sections 3.1 and 3.3 (c is its b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, like
from lora_np.layers import Flops, Linear, Rng
from lora_np.methods.contract import Adapter, Fields
from lora_np.methods.options import check_whole
from lora_np.methods.peft import PeftMethod
from lora_np.methods.start import kaiming
from lora_np.ops.contract import Need, wanted
from lora_np.ops.fast.lora import merging_pays
from lora_np.ops.linear import rows, sum_rows
from lora_np.parameters import Grads, Parameter


class VeraCache(NamedTuple):
    """What :func:`vera_backward` reads."""

    x: Array  # (..., in)
    inputs: tuple[Array, ...]  # W0 (out, in), A (r, in), B (out, r), d (r,), c (out,)
    W: Array | None  # (out, in), if it was formed
    has_bias: bool


def vera_weight(W0: Array, A: Array, B: Array, d: Array, c: Array) -> Array:
    """Return W0 + diag(c) B diag(d) A (out, in)."""
    W = (c[:, None] * B * d) @ A
    W += W0
    return W


def vera_forward(x: Array, W0: Array, A: Array, B: Array, d: Array, c: Array, b: Any = None) -> Any:
    """Compute y = x W^T + b with W = W0 + diag(c) B diag(d) A."""
    W, inputs = None, (W0, A, B, d, c)
    if merging_pays(x, W0):
        W = vera_weight(*inputs)
        y = rows(x) @ W.T  # (N, out)
    else:
        y = rows(x) @ W0.T + c * ((d * (rows(x) @ A.T)) @ B.T)
    y = (y if b is None else y + b).reshape(*x.shape[:-1], len(W0))
    return y, VeraCache(x, inputs, W, b is not None)


def vera_backward(dy: Array, cache: VeraCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dx, dW0, dA, dB, dd, dc, db) of :func:`vera_forward`."""
    x, (W0, A, B, d, c), W, has_bias = cache
    need_x, need_W0, need_A, need_B, need_d, need_c, need_b = wanted(need, 7)
    g, X = rows(dy), rows(x)  # (N, out), (N, in)
    dx = dA = dB = dd = dc = None
    if need_x:
        dx = (g @ (vera_weight(*cache.inputs) if W is None else W)).reshape(x.shape)
    if need_A:
        dA = (((c * g) @ B) * d).T @ X  # (r, in)
    if need_B or need_d or need_c:
        (n, d_out), d_in, r = g.shape, W0.shape[1], len(A)
        late = n * r * (d_in + d_out) > d_out * d_in * (n + r)
        G = (g.T @ X) @ A.T if late else g.T @ (X @ A.T)  # (out, r)
        dB = c[:, None] * G * d if need_B else None
        G *= B
        dd, dc = c @ G if need_d else None, G @ d if need_c else None
    dW0 = g.T @ X if need_W0 else None  # (out, in)
    return dx, dW0, dA, dB, dd, dc, sum_rows(dy) if need_b and has_bias else None


class VeraLinear(Adapter):
    """y = x W^T + b over a linear layer; A (r, >= in) and B (>= out, r) are shared by layers."""

    def __init__(self, base: Linear, A: Parameter, B: Parameter, d: Parameter, c: Parameter):
        self.base, self.A, self.B, self.d, self.c = base, A, B, d, c

    def values(self) -> tuple[Array, ...]:
        """Return W0 (out, in), this layer's parts of A (r, in) and B (out, r), d and c."""
        W0 = self.base.W.value
        d_out, d_in = W0.shape
        return W0, self.A.value[:, :d_in], self.B.value[:d_out], self.d.value, self.c.value

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, VeraCache]:
        """Return y (..., out) and the cache."""
        b = None if self.base.b is None else self.base.b.value
        return vera_forward(x, *self.values(), b=b)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dd and dc, and the gradients of what else is trained; return dx."""
        held = [self.base.W, self.A, self.B, self.d, self.c, self.base.b]
        need = [need_dx, *(p is not None and p.trainable for p in held)]
        dx, *gradients = vera_backward(dy, cache, need)
        for p, part in zip(held, gradients):
            if p is not None and part is not None:
                whole = get_xp(part).zeros(p.shape, part.dtype)
                whole[tuple(map(slice, part.shape))] = part  # the layer sees a part of A and B
                grads.add(p, whole)
        return dx

    def merged(self) -> Linear:
        """Return the plain linear layer with the weight W."""
        return Linear.over(Parameter(vera_weight(*self.values())), self.base.b)

    def tensors(self) -> dict[str, Parameter]:
        """Return the Parameters by PEFT's names."""
        shared = {"vera_A": self.A, "vera_B": self.B}
        return {**shared, "vera_lambda_d": self.d, "vera_lambda_b": self.c}

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the base's cost and that of sending every sample through A and B."""
        d_out, d_in = self.base.W.shape
        thin = 2 * len(self.d.value) * (d_in + d_out)  # x A^T and u B^T; G; du and dx
        return self.base.flops(T, need_dx).plus(Flops(thin, thin * (1 + need_dx)))


@dataclass(frozen=True)
class VeraConfig(PeftMethod):
    """VeRA: the rank of the shared pair, which may be above min(in, out), and the start of d."""

    r: int = 256
    d_initial: float = 0.1
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None

    name = "vera"
    peft_type = "VERA"
    peft_defaults = {"save_projection": True}  # noqa: RUF012
    of_model = ("base_model.vera_A", "base_model.vera_B")

    def __post_init__(self) -> None:
        check_whole("r", self.r)

    def wrapper(self, layers: Mapping[str, Any], rng: np.random.Generator) -> Any:
        """Draw A and B for the widest input and output; every layer holds them."""
        d_out, d_in = (max(layer.W.shape[i] for layer in layers.values()) for i in (0, 1))
        W0 = next(iter(layers.values())).W.value

        def held(x: np.ndarray, trainable: bool = True) -> Parameter:
            return Parameter(like(x.astype(W0.dtype), W0), trainable)

        gain = math.sqrt(6.0)  # kaiming-uniform with gain sqrt(2), as PEFT draws both
        A = held(gain * kaiming(rng, (self.r, d_in)), trainable=False)
        B = held(gain * kaiming(rng, (d_out, self.r)), trainable=False)

        def wrap(path: str, layer: Linear) -> VeraLinear:
            d, c = np.full(self.r, self.d_initial), np.zeros(layer.d_out)
            return VeraLinear(layer, A, B, held(d), held(c))

        return wrap

    @classmethod
    def of_fields(cls, saved: Fields) -> Any:
        """Return the configuration in the fields of a file of PEFT's type, or of our own."""
        if saved.get("peft_type") == cls.peft_type and saved.get("save_projection") is False:
            reason = "torch draws A and B, which the file lacks: save it with save_projection=True"
            raise ValueError(f"save_projection = false: {reason}")
        return super().of_fields({k: x for k, x in saved.items() if k != "projection_prng_key"})
