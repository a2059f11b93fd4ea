"""A layer that a condition modulates: adaLN-zero, the block of diffusion transformers.

With a condition c for every sample, such as an embedded time and a label::

    [shift, scale, gate] = mod(c)
    y = x + gate layer((1 + scale) xhat + shift),   xhat = x with mean 0 and variance 1

``mod`` is one linear layer that starts at zero. So the gate is zero at first and the block is the
identity, as LoRA starts with a change of zero because B is zero; training opens the gate.

Backward. All positions of a sample share its shift, scale and gate, so each of their gradients is a
sum over positions; ops/modulated.py derives the first two. With h = layer(...)::

    dgate = sum dy h        dh = gate dy        dx = dy + the normalisation's dx

``mod`` turns [dshift, dscale, dgate] into dc.

Source: Peebles and Xie (2022), arXiv:2212.09748, section 3.2. Their blocks apply a SiLU to c before
``mod``. It is the same in every block, so the caller applies it once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.layers.linear import Linear
from lora_np.ops import modulated_norm_backward, modulated_norm_forward
from lora_np.ops.contract import expect_shape
from lora_np.ops.modulated import sum_shared
from lora_np.parameters import Grads


class ModulatedCache(NamedTuple):
    """Caches of mod, the normalisation and the layer; the layer's output and its gate."""

    mod: Any
    norm: Any
    layer: Any
    h: Array  # (n, ..., d)
    gate: Array  # (n, 1 ..., d)


class Modulated(Layer):
    """y = x + gate * layer(modulated norm of x), with shift, scale and gate from a condition c.

    Inputs are x (n, d) or (n, ..., d), such as n sequences, and c (n, d_c): one condition a sample.

    Parameters
    ----------
    layer : Layer
        Its output has the shape of its input (n, ..., d).
    d, d_c : int
        Lengths of an input and of a condition.
    rng : numpy.random.Generator
        Draws the weights of mod, as for every Linear; std = 0 makes them zero.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, Modulated
    >>> rng = np.random.default_rng(0)
    >>> block = Modulated(MLP(4, 8, rng), 4, 3, rng)
    >>> x, c = np.ones((2, 5, 4), np.float32), np.ones((2, 3), np.float32)
    >>> y, cache = block.forward(x, c)
    >>> bool((y == x).all())  # the gate starts at zero
    True
    >>> {name: p.shape for name, p in block.mod.parameters().items()}
    {'W': (12, 3), 'b': (12,)}
    """

    conditioned = True

    def __init__(
        self, layer: Layer, d: int, d_c: int, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        self.layer, self.d_c = layer, d_c
        self.mod = Linear(d_c, 3 * d, rng, std=0.0, dtype=dtype)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Array, c: Array, rng: Rng = None
    ) -> tuple[Array, Any]:
        """Return y, like x (n, ..., d), for the conditions `c` (n, d_c); and the cache."""
        if not hasattr(c, "shape"):  # a Chain and a Residual pass their rng in the place of c
            raise TypeError(f"{type(self).__name__} needs a condition c: use forward(x, c)")
        expect_shape("c", c, len(x), self.d_c)
        three, mod = self.mod.forward(c, rng)  # (n, 3 d)
        d = three.shape[-1] // 3
        shared = three.reshape(len(x), *[1] * (x.ndim - 2), 3 * d)  # (n, 1 ..., 3 d)
        shift, scale, gate = (shared[..., i * d : (i + 1) * d] for i in range(3))
        normed, norm = modulated_norm_forward(x, shift, scale)  # (n, ..., d)
        h, inner = self.layer.forward(normed, rng)  # (n, ..., d)
        return x + gate * h, ModulatedCache(mod, norm, inner, h, gate)

    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True
    ) -> tuple[Array | None, Array]:
        """Add the gradients of the layer and of mod; return dx and dc (n, d_c)."""
        dgate = sum_shared(dy * cache.h, cache.gate.shape)  # (n, 1 ..., d)
        dnormed: Any = self.layer.backward(cache.gate * dy, cache.layer, grads)  # (n, ..., d)
        dx, dshift, dscale = modulated_norm_backward(dnormed, cache.norm, (need_dx, True, True))
        dshared = get_xp(dy).concatenate([dshift, dscale, dgate], axis=-1)  # (n, 1 ..., 3 d)
        dthree = dshared.reshape(len(dy), dshared.shape[-1])  # (n, 3 d)
        dc: Any = self.mod.backward(dthree, cache.mod, grads)  # (n, d_c)
        return None if dx is None else dy + dx, dc

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the layer's cost, and a token's share of mod's cost: mod runs once a sample."""
        mod = self.mod.flops(1)  # dc is always formed, and so is the layer's dx, which it needs
        share = Flops(round(mod.forward / T), round(mod.backward / T))
        return self.layer.flops(T).plus(share)
