"""A method in a reader's own file: LoRA with a trainable gain for each direction, in 40 lines."""

from dataclasses import dataclass

import numpy as np

from lora_np import Linear, MethodConfig, Parameter
from lora_np.methods import Adapter


class GainLinear(Adapter):
    """y = base(x) + ((x A^T) * g) B^T."""

    def __init__(self, base, A, g, B):
        self.base, self.A, self.g, self.B = base, A, g, B

    def forward(self, x, rng=None):
        y, c_base = self.base.forward(x, rng)
        u = x @ self.A.value.T  # (..., r)
        return y + (u * self.g.value) @ self.B.value.T, (c_base, x, u)

    def backward(self, dy, cache, grads, need_dx=True):
        c_base, x, u = cache
        dx = self.base.backward(dy, c_base, grads, need_dx)
        dv = dy @ self.B.value  # (..., r)
        du = dv * self.g.value
        x, u, d, dv, flat = (a.reshape(-1, a.shape[-1]) for a in (x, u, dy, dv, du))
        found = {self.A: flat.T @ x, self.g: (dv * u).sum(axis=0), self.B: d.T @ (u * self.g.value)}
        for parameter, gradient in found.items():
            grads.add(parameter, gradient if parameter.trainable else None)
        return dx + du @ self.A.value if need_dx else None

    def merged(self):
        W = self.base.W.value + (self.B.value * self.g.value) @ self.A.value
        return Linear.over(Parameter(W), self.base.b)


@dataclass(frozen=True)
class GainConfig(MethodConfig):
    """Where the gains go, and their rank."""

    r: int = 4
    target_modules: tuple[str, ...] | str = "all-linear"
    name = "own_gains"

    def wrap(self, path, layer, rng):
        """Start at the base: B = 0, g = 1."""
        (d_out, d_in), dtype = layer.W.shape, layer.W.dtype
        A = rng.standard_normal((self.r, d_in)).astype(dtype) / d_in**0.5
        g, B = np.ones(self.r, dtype), np.zeros((d_out, self.r), dtype)
        return GainLinear(layer, *(Parameter(value) for value in (A, g, B)))
