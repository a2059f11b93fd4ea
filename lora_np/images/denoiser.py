"""The denoiser: it predicts v from a noisy latent, the time and the words of a prompt.

The condition of an image is one vector, of its time and its words::

    c = gelu(time(t) + E_letter[letter] + E_family[family])          # (n, d_c)

It steers every block (adaLN-zero)::

    h = h + gate(c) * block(modulated_norm(h, shift(c), scale(c)))

A body turns z (n, k) and c into v: ``body.forward(z, c)`` returns v and a cache, ``body.backward``
dz and dc. :class:`MlpBody` is the default; dit.py has another. refiner.py puts networks around it.

Sources: Peebles and Xie (2022), arXiv:2212.09748, section 3.2 (adaLN-zero, patches); Salimans and
Ho (2022), arXiv:2202.00512 (v).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, like, to_host
from lora_np.images.glyphs import NO_FAMILY, NO_LETTER
from lora_np.layers import MLP, Chain, Embedding, Flops, Gelu, Layer, LayerNorm, Linear, Modulated
from lora_np.layers.base import Rng
from lora_np.ops.fast import gelu_backward, gelu_forward
from lora_np.parameters import Grads

FREQUENCIES = 16  # of the waves that encode a time: a sine and a cosine of each
FASTEST = 200.0  # radians per unit of time
INNER_STD = 0.05  # of the weights that write to the residual stream


class DenoiserCache(NamedTuple):
    """Caches of the parts."""

    time: Any
    letter: Any
    family: Any
    gelu: Any
    body: Any


class Denoiser(Layer):
    """Predict v from latents z (n, k), times t (n,) and words (n, 2).

    Parameters
    ----------
    body : Layer
        A conditioned layer: z (n, k) and c (n, d_c) to v (n, k).
    k, d_c : int
        Entries of a latent and of a condition.
    rng : numpy.random.Generator
        Draws the weights.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images import mlp_denoiser
    >>> denoiser = mlp_denoiser(np.random.default_rng(0), k=8, d=16, d_hidden=32, n_block=2)
    >>> z, t = np.ones((5, 8), np.float32), np.full(5, 0.5, np.float32)
    >>> words = np.zeros((5, 2), int)  # five times a sans A
    >>> denoiser.forward(z, t, words)[0].shape
    (5, 8)
    """

    def __init__(
        self, body: Layer, k: int, d_c: int, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        self.k, width = k, 2 * FREQUENCIES
        self.time = Chain(
            Linear(width, d_c, rng, std=1 / math.sqrt(width), dtype=dtype),
            Gelu(),
            Linear(d_c, d_c, rng, std=1 / math.sqrt(d_c), dtype=dtype),
        )
        self.letter = Embedding(NO_LETTER + 1, d_c, rng, std=1.0, dtype=dtype)
        self.family = Embedding(NO_FAMILY + 1, d_c, rng, std=1.0, dtype=dtype)
        self.body: Any = body

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: Array, t: Array, words: Array, rng: Rng = None
    ) -> tuple[Array, DenoiserCache]:
        """Return v (n, k) and the cache."""
        seen, of_time = self.time.forward(waves(t), rng)  # (n, d_c)
        letter, of_letter = self.letter.forward(words[:, 0], rng)
        family, of_family = self.family.forward(words[:, 1], rng)
        c, of_gelu = gelu_forward(seen + letter + family)
        v, of_body = self.body.forward(z, c, rng)
        return v, DenoiserCache(of_time, of_letter, of_family, of_gelu, of_body)

    def backward(
        self, dy: Array, cache: DenoiserCache, grads: Grads, need_dx: bool = True
    ) -> Array | None:
        """Add the gradients; return dz (n, k). Times and words have no gradient."""
        dz, dc = self.body.backward(dy, cache.body, grads, need_dx)  # (n, k), (n, d_c)
        if any(part.trainable for part in (self.time, self.letter, self.family)):
            dsum: Any = gelu_backward(dc, cache.gelu)[0]  # (n, d_c)
            self.time.backward(dsum, cache.time, grads, need_dx=False)
            self.letter.backward(dsum, cache.letter, grads, need_dx=False)
            self.family.backward(dsum, cache.family, grads, need_dx=False)
        return dz

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Raise TypeError: a latent has no newest position."""
        raise TypeError("a Denoiser has no positions: use forward(z, t, words)")

    def flops(self, T: int = 1, need_dx: bool = True) -> Flops:
        """Return the cost of one latent."""
        return self.body.flops(T, need_dx).plus(self.time.flops(T, need_dx=False))


def digest_of(denoiser: Layer) -> str:
    """Return 16 hexadecimal digits that identify a denoiser: a hash of all its Parameters.

    Those of the convolutions around a denoiser count too, which have random weights and, before
    they are trained, the same gains.
    """
    digest = hashlib.sha256()
    for name, p in sorted(denoiser.parameters().items()):
        digest.update(f"{name} {p.shape} ".encode())
        digest.update(to_host(p.value).astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def waves(t: Array) -> Array:
    """Return sines and cosines of the times t (n,) at rising frequencies, (n, 2 FREQUENCIES)."""
    xp = get_xp(t)
    powers = np.arange(FREQUENCIES, dtype=np.float64) / (FREQUENCIES - 1)
    frequencies = like((FASTEST**powers).astype(t.dtype), t)
    angles = t[:, None] * frequencies  # (n, FREQUENCIES)
    return xp.concatenate([xp.sin(angles), xp.cos(angles)], axis=-1)


class MlpBody(Layer):
    """Residual MLPs on the whole latent, each steered by the condition.

    Parameters
    ----------
    k, d, d_hidden : int
        Entries of a latent, width of the residual stream, width inside a block.
    n_block : int
    d_c : int
        Width of the condition.
    rng : numpy.random.Generator
        Draws the weights; the last layer's and the gates' are zero, so that v starts at zero.
    dtype : numpy dtype
    """

    conditioned = True

    def __init__(
        self,
        k: int,
        d: int,
        d_hidden: int,
        n_block: int,
        d_c: int,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        self.in_proj = Linear(k, d, rng, std=1 / math.sqrt(k), dtype=dtype)
        self.block = [
            Modulated(
                MLP(d, d_hidden, rng, std_down=INNER_STD, dtype=dtype), d, d_c, rng, dtype=dtype
            )
            for _ in range(n_block)
        ]
        self.norm = LayerNorm(d, dtype=dtype)
        self.out_proj = Linear(d, k, rng, std=0.0, dtype=dtype)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Array, c: Array, rng: Rng = None
    ) -> tuple[Array, Any]:
        """Return v (n, k) and the caches."""
        h, first = self.in_proj.forward(x, rng)  # (n, d)
        caches = []
        for block in self.block:
            h, cache = block.forward(h, c, rng)
            caches.append(cache)
        h, of_norm = self.norm.forward(h, rng)
        v, last = self.out_proj.forward(h, rng)  # (n, k)
        return v, (first, caches, of_norm, last)

    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True
    ) -> tuple[Array | None, Array]:
        """Add the gradients; return (dz, dc)."""
        first, caches, of_norm, last = cache
        dh: Any = self.out_proj.backward(dy, last, grads)  # (n, d)
        dh = self.norm.backward(dh, of_norm, grads)
        dc: Any = 0.0  # every block reads c
        for block, inner in zip(reversed(self.block), reversed(caches)):
            dh, dc_of_block = block.backward(dh, inner, grads)
            dc = dc + dc_of_block
        return self.in_proj.backward(dh, first, grads, need_dx), dc

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of one latent."""
        total = self.in_proj.flops(T, need_dx).plus(self.out_proj.flops(T))
        for block in self.block:
            total = total.plus(block.flops(T))
        return total


def mlp_denoiser(
    rng: np.random.Generator,
    *,
    k: int = 112,
    d: int = 144,
    d_hidden: int = 288,
    n_block: int = 5,
    d_c: int = 128,
    dtype: Any = np.float32,
) -> Denoiser:
    """Return the default denoiser: residual MLPs on latents.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the weights.
    k, d, d_hidden, n_block, d_c : int
        As for :class:`MlpBody`.
    dtype : numpy dtype
    """
    return Denoiser(MlpBody(k, d, d_hidden, n_block, d_c, rng, dtype), k, d_c, rng, dtype)
