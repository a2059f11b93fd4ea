r"""Two small convolutional networks around a frozen denoiser, for what is local in an image.

An MLP or a transformer that knows letters in one style alone has no weights for "the rim of a
stroke": it must learn the rim of each letter anew. A convolution does the same everywhere, so a rim
learned on some letters is a rim on all. With D for the linear map from latents to pixels, and E for
the one from pixels to latents::

    z' = z + E before(z_image, t)                           what the denoiser can read
    v' = denoiser(z', t, words),    x0 = alpha z' - sigma v'
    v = v' + E behind([z_image, x0_image], t)               what the style looks like

The images are z_image = D z + alpha mean and x0_image = D x0 + mean. The networks see the time but
not the words: pixels tell them which letter it is.

Why two networks? At high noise z says little. The denoiser's x0 follows from the prompt, and
``behind`` turns that letter into the new style. At less noise z itself shows the new style, which
the denoiser has never seen: its x0 becomes poor just where the letter is decided. ``before`` turns
z back into a noisy letter of the denoiser's own style. It is trained through the denoiser.

A network is a convolution, blocks that the time steers (adaLN-zero, layers/modulated.py) with two
convolutions each, and a last convolution. The last one starts at zero, so that v = v' at first. The
others are random, and LoRA adapts them without any training before. The gates start at one, since a
gate at zero would hide the frozen convolutions behind it. The receptive field is small on purpose:
networks with a wide one learn the letters that are shown by heart, and fail on all others.

Sources: Peebles and Xie (2022), arXiv:2212.09748, section 3.2 (adaLN-zero).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.images.denoiser import FREQUENCIES, Denoiser, waves
from lora_np.images.latent import SvdCodec
from lora_np.images.pixels import pixel_maps
from lora_np.images.schedule import alpha_sigma
from lora_np.images.training import Base
from lora_np.layers import (
    Chain,
    Conv2d,
    Flops,
    Gelu,
    Layer,
    LayerNorm,
    Linear,
    Modulated,
    Rng,
    rebuild,
)
from lora_np.parameters import Grads, Parameter

REFINER = {"channels": 16, "n_block": 2, "d_c": 32}  # sizes of a Refined
# Settings of a style that is trained on a Refined.
REFINED_STYLE: dict[str, Any] = {"steps": 500, "batch": 32, "weight_decay": 0.01}
# Options of a LoraConfig for both networks: their convolutions and what steers them. The last
# convolutions have one output, and so rank 1.
AROUND: dict[str, Any] = {
    "target_modules": r"(before|behind)\..*",
    "rank_pattern": {"conv_out.group.0": 1},
}


class ConvNet(Layer):
    """Convolutions that a condition steers, from images (n, H, W, c_in) to images (n, H, W, 1).

    Parameters
    ----------
    c_in, channels : int
        Channels of an image, and inside.
    n_block : int
        Blocks of two convolutions.
    d_c : int
        Width of the condition.
    rng : numpy.random.Generator
        Draws the weights; the last convolution's are zero.
    dtype : numpy dtype
    """

    conditioned = True

    def __init__(
        self,
        c_in: int,
        channels: int,
        n_block: int,
        d_c: int,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        def conv(c_in: int, c_out: int) -> Conv2d:
            return Conv2d(c_in, c_out, 3, rng, padding=1, dtype=dtype)

        C = channels
        self.conv_in = conv(c_in, C)
        self.block = [
            Modulated(Chain(conv(C, C), Gelu(), conv(C, C)), C, d_c, rng, dtype)
            for _ in range(n_block)
        ]
        for block in self.block:
            shift_scale_gate: Any = block.mod.b
            shift_scale_gate.value[2 * C :] = 1.0
        self.norm = LayerNorm(C, dtype=dtype)
        self.conv_out = conv(C, 1)
        W = self.conv_out.group[0].W
        W.value = np.zeros_like(W.value)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Array, c: Array, rng: Rng = None
    ) -> tuple[Array, Any]:
        """Return y (n, H, W, 1) and the caches."""
        h, first = self.conv_in.forward(x, rng)  # (n, H, W, C)
        caches = []
        for block in self.block:
            h, cache = block.forward(h, c, rng)
            caches.append(cache)
        h, of_norm = self.norm.forward(h, rng)
        y, last = self.conv_out.forward(h, rng)
        return y, (first, caches, of_norm, last)

    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True
    ) -> tuple[Array | None, Array]:
        """Add the gradients; return (dx, dc)."""
        first, caches, of_norm, last = cache
        dh: Any = self.conv_out.backward(dy, last, grads)  # (n, H, W, C)
        dh = self.norm.backward(dh, of_norm, grads)
        dc: Any = 0.0  # every block reads c
        for block, inner in zip(reversed(self.block), reversed(caches)):
            dh, dc_of_block = block.backward(dh, inner, grads)
            dc = dc + dc_of_block
        return self.conv_in.backward(dh, first, grads, need_dx), dc

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of one pixel."""
        total = self.conv_in.flops(T, need_dx).plus(self.conv_out.flops(T))
        for block in self.block:
            total = total.plus(block.flops(T))
        return total


class RefinedCache(NamedTuple):
    """Weights of picture and noise, and the caches of the parts, in the order of forward."""

    alpha: Array  # (n, 1)
    sigma: Array  # (n, 1)
    time: Any
    of_z: Any
    before: Any
    change: Any
    denoiser: Any
    of_x0: Any
    behind: Any
    correction: Any


class Refined(Denoiser):
    """A denoiser between two convolutional networks.

    Parameters
    ----------
    denoiser : Denoiser
        Its Parameters are shared and frozen here.
    codec : SvdCodec
        Of its latents.
    rng : numpy.random.Generator
        Draws the weights; v is the denoiser's at first.
    channels, n_block, d_c : int
        As for :class:`ConvNet`.
    dtype : numpy dtype
        That of the denoiser.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images import Refined, SvdCodec, letters, mlp_denoiser
    >>> rng = np.random.default_rng(0)
    >>> codec = SvdCodec.fit(letters(rng, 200).images, k=8)
    >>> denoiser = mlp_denoiser(rng, k=8, d=16, d_hidden=32, n_block=2)
    >>> refined = Refined(denoiser, codec, rng, channels=4)
    >>> z, t = np.ones((5, 8), np.float32), np.full(5, 0.5, np.float32)
    >>> words = np.zeros((5, 2), int)
    >>> before, after = (model.forward(z, t, words)[0] for model in (denoiser, refined))
    >>> np.array_equal(before, after)
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        codec: SvdCodec,
        rng: np.random.Generator,
        *,
        channels: int = 16,
        n_block: int = 2,
        d_c: int = 32,
        dtype: Any = np.float32,
    ) -> None:
        self.k, self.size = denoiser.k, codec.size
        self.denoiser: Denoiser = rebuild(denoiser, Parameter.share)
        self.to_image, self.to_latent = pixel_maps(codec, dtype)
        self.mean = Parameter(codec.mean.reshape(-1).astype(dtype), trainable=False)
        width = 2 * FREQUENCIES
        self.time = Chain(
            Linear(width, d_c, rng, std=1 / math.sqrt(width), dtype=dtype),
            Gelu(),
            Linear(d_c, d_c, rng, std=1 / math.sqrt(d_c), dtype=dtype),
            Gelu(),
        )
        self.before = ConvNet(1, channels, n_block, d_c, rng, dtype)
        self.behind = ConvNet(2, channels, n_block, d_c, rng, dtype)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: Array, t: Array, words: Array, rng: Rng = None
    ) -> tuple[Array, RefinedCache]:
        """Return v (n, k) and the cache."""
        alpha, sigma = alpha_sigma(t)
        c, of_time = self.time.forward(waves(t), rng)  # (n, d_c)
        z_image, of_z = self.to_image.forward(z, rng)  # (n, size^2)
        z_image = self._seen(z_image + alpha * self.mean.value)  # (n, size, size)
        y, of_before = self.before.forward(z_image[..., None], c, rng)
        change, of_change = self.to_latent.forward(y.reshape(len(z), self.size**2), rng)  # (n, k)
        readable = z + change
        v, of_denoiser = self.denoiser.forward(readable, t, words, rng)
        x0_image, of_x0 = self.to_image.forward(alpha * readable - sigma * v, rng)
        both = [x[..., None] for x in (z_image, self._seen(x0_image + self.mean.value))]
        both = get_xp(z).concatenate(both, axis=-1)  # (n, size, size, 2)
        y, of_behind = self.behind.forward(both, c, rng)  # (n, size, size, 1)
        correction, of_correction = self.to_latent.forward(y.reshape(len(z), self.size**2), rng)
        caches = of_before, of_change, of_denoiser, of_x0, of_behind, of_correction
        return v + correction, RefinedCache(alpha, sigma, of_time, of_z, *caches)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients; return dz (n, k)."""
        alpha, sigma, n = cache.alpha, cache.sigma, len(dy)
        need_z = need_dx or self.to_image.trainable or self.mean.trainable
        d: Any = self.to_latent.backward(dy, cache.correction, grads)  # (n, size^2)
        d, dc = self.behind.backward(self._seen(d)[..., None], cache.behind, grads)
        dz_image, dx0_image = (d[..., i].reshape(n, self.size**2) for i in range(2))  # (n, size^2)
        dx0: Any = self.to_image.backward(dx0_image, cache.of_x0, grads)  # (n, k)
        d = self.denoiser.backward(dy - sigma * dx0, cache.denoiser, grads)
        dreadable = d + alpha * dx0
        d = self.to_latent.backward(dreadable, cache.change, grads)
        d = self.before.backward(self._seen(d)[..., None], cache.before, grads, need_z)
        if self.time.trainable:
            self.time.backward(dc + d[1], cache.time, grads, need_dx=False)
        if not need_z:
            return None
        dz_image = dz_image + d[0].reshape(n, self.size**2)
        if self.mean.trainable:
            grads.add(self.mean, (alpha * dz_image + dx0_image).sum(axis=0))
        dz = self.to_image.backward(dz_image, cache.of_z, grads, need_dx)
        return dreadable + dz if need_dx else None

    def _seen(self, x: Array) -> Array:
        """Return pixels (n, size^2) as images (n, size, size)."""
        return x.reshape(-1, self.size, self.size)

    def flops(self, T: int = 1, need_dx: bool = True) -> Flops:
        """Return the cost of one latent."""
        total = self.denoiser.flops(T).plus(self.time.flops(T, need_dx=False))
        for maps in (self.to_image, self.to_latent) * 2:
            total = total.plus(maps.flops(T))
        pixels = self.size**2
        for net, need in ((self.before, need_dx), (self.behind, True)):
            one = net.flops(pixels, need)
            total = total.plus(Flops(pixels * one.forward, pixels * one.backward))
        return total


def refine(base: Base, rng: np.random.Generator, **sizes: int) -> Base:
    """Return the base with convolutional networks around its denoiser, ready to be adapted.

    Parameters
    ----------
    base : Base
        It stays as it was: its Parameters are shared, and frozen here.
    rng : numpy.random.Generator
        Draws the weights.
    **sizes : int
        `channels`, `n_block` and `d_c` of :class:`Refined`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoraConfig
    >>> from lora_np.images import AROUND, BaseSettings, StyleSettings, refine
    >>> from lora_np.images import train_base, train_style
    >>> rng = np.random.default_rng(0)
    >>> tiny = BaseSettings(images=400, k=112, d=16, d_hidden=16, n_block=1, steps=2, batch=8)
    >>> base = refine(train_base(rng, tiny), rng, channels=4)
    >>> few = StyleSettings(style="outline", steps=2, batch=8)
    >>> train_style(base, LoraConfig(r=2, **AROUND), rng, few).k
    112
    """
    return Base(Refined(base.denoiser, base.codec, rng, **sizes), base.codec)
