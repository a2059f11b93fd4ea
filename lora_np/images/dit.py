r"""A diffusion transformer: the image of a latent as tokens, one for each patch of 4 x 4 pixels.

The codec's basis V turns a latent into an image and back. The image is cut into P = 16 patches of
16 pixels each, and each patch becomes a token, which a learned vector tells its place::

    X = z (scale V)                                     (n, 256), cut into patches (n, P, 16)
    h = X W_in^T + b + place                            (n, P, d)
    h = h + gate(c) * attention(modulated norm of h)    in every block, each of the two lines
    h = h + gate(c) * mlp(modulated norm of h)          with a shift, a scale and a gate of its own
    v = (norm(h) W_out^T + b) V^T / scale               (n, k)

Every token attends to all others. The condition c steers every block (adaLN-zero); the gates and
W_out start at zero, so that v does. Both maps between latent and image are linear layers that the
codec gives and training leaves as they are. The mean image is left out: it only moves `place`.

Attention mixes patches by weights that depend on the image, whereas an MLP on latents has fixed
weights. Attention pays with more tokens and more training than here, where the MLP learns faster
and is the default.

Source: Peebles and Xie (2022), arXiv:2212.09748, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np.backend import Array, ShapeError
from lora_np.images.denoiser import INNER_STD, Denoiser
from lora_np.images.latent import SvdCodec
from lora_np.images.pixels import pixel_maps
from lora_np.layers import MLP, Flops, Layer, LayerNorm, Linear, Modulated, Rng, SelfAttention
from lora_np.parameters import Grads, Parameter

PATCH = 4  # pixels along a patch


class DitBody(Layer):
    """Attention and MLPs over the patches of the image that a latent stands for.

    Parameters
    ----------
    codec : SvdCodec
        Of the latents; the size of its images is a multiple of 4.
    d, n_head, d_hidden, n_block : int
        Width of a token, heads, width inside an MLP, blocks.
    d_c : int
        Width of the condition.
    rng : numpy.random.Generator
        Draws the weights; the last layer's and the gates' are zero, so that v starts at zero.
    dtype : numpy dtype
    """

    conditioned = True

    def __init__(
        self,
        codec: SvdCodec,
        d: int,
        n_head: int,
        d_hidden: int,
        n_block: int,
        d_c: int,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        if codec.size % PATCH:
            raise ShapeError(f"images of {codec.size} pixels do not divide into patches of {PATCH}")
        self.side, inside = codec.size // PATCH, PATCH * PATCH
        self.to_image, self.to_latent = pixel_maps(codec, dtype)
        self.in_proj = Linear(inside, d, rng, std=1 / PATCH, dtype=dtype)
        self.place = Parameter((rng.standard_normal((self.side**2, d)) * INNER_STD).astype(dtype))
        self.block: list[Modulated] = []
        for _ in range(n_block):
            attention = SelfAttention(d, n_head, rng, std_out=INNER_STD, dtype=dtype)
            mlp = MLP(d, d_hidden, rng, std_down=INNER_STD, dtype=dtype)
            self.block += [Modulated(layer, d, d_c, rng, dtype) for layer in (attention, mlp)]
        self.norm = LayerNorm(d, dtype=dtype)
        self.out_proj = Linear(d, inside, rng, std=0.0, dtype=dtype)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Array, c: Array, rng: Rng = None
    ) -> tuple[Array, Any]:
        """Return v (n, k) and the caches."""
        image, of_image = self.to_image.forward(x, rng)  # (n, size^2)
        h, of_in = self.in_proj.forward(patches(image, self.side), rng)  # (n, P, d)
        h = h + self.place.value
        caches = []
        for block in self.block:
            h, cache = block.forward(h, c, rng)
            caches.append(cache)
        h, of_norm = self.norm.forward(h, rng)
        y, of_out = self.out_proj.forward(h, rng)  # (n, P, 16)
        v, of_latent = self.to_latent.forward(unpatched(y, self.side), rng)  # (n, k)
        return v, (of_image, of_in, caches, of_norm, of_out, of_latent)

    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True
    ) -> tuple[Array | None, Array]:
        """Add the gradients; return (dz, dc)."""
        of_image, of_in, caches, of_norm, of_out, of_latent = cache
        dimage: Any = self.to_latent.backward(dy, of_latent, grads)  # (n, size^2)
        dh: Any = self.out_proj.backward(patches(dimage, self.side), of_out, grads)  # (n, P, d)
        dh = self.norm.backward(dh, of_norm, grads)
        dc: Any = 0.0  # every block reads c
        for block, inner in zip(reversed(self.block), reversed(caches)):
            dh, dc_of_block = block.backward(dh, inner, grads)
            dc = dc + dc_of_block
        if self.place.trainable:
            grads.add(self.place, dh.sum(axis=0))
        need_image = need_dx or self.to_image.trainable
        dpatches = self.in_proj.backward(dh, of_in, grads, need_image)  # (n, P, 16)
        if dpatches is None:
            return None, dc
        dimage = unpatched(dpatches, self.side)
        return self.to_image.backward(dimage, of_image, grads, need_dx), dc

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of one latent: that of its tokens."""
        tokens = self.side**2
        total = Flops(0, 0)
        for layer in (self.in_proj, *self.block, self.out_proj):
            one = layer.flops(tokens)
            total = total.plus(Flops(tokens * one.forward, tokens * one.backward))
        return total.plus(self.to_image.flops(T, need_dx)).plus(self.to_latent.flops(T))


def patches(image: Array, side: int) -> Array:
    """Cut images (n, size^2) into side x side patches, (n, side^2, pixels of a patch).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.dit import patches, unpatched
    >>> cut = patches(np.arange(16)[None], 2)  # an image of 4 x 4 pixels
    >>> cut.tolist()
    [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    >>> unpatched(cut, 2).tolist() == [list(range(16))]
    True
    """
    n, inside = len(image), math.isqrt(image.shape[1]) // side
    grid = image.reshape(n, side, inside, side, inside).swapaxes(2, 3)
    return grid.reshape(n, side * side, inside * inside)


def unpatched(tokens: Array, side: int) -> Array:
    """Put patches together again: the inverse of :func:`patches`."""
    n, inside = len(tokens), math.isqrt(tokens.shape[2])
    grid = tokens.reshape(n, side, side, inside, inside).swapaxes(2, 3)
    return grid.reshape(n, (side * inside) ** 2)


def dit_denoiser(
    codec: SvdCodec,
    rng: np.random.Generator,
    *,
    d: int = 64,
    n_head: int = 4,
    d_hidden: int = 128,
    n_block: int = 4,
    d_c: int = 128,
    dtype: Any = np.float32,
) -> Denoiser:
    """Return a denoiser whose body is a diffusion transformer.

    Parameters
    ----------
    codec : SvdCodec
        Of the latents.
    rng : numpy.random.Generator
        Draws the weights.
    d, n_head, d_hidden, n_block, d_c : int
        As for :class:`DitBody`.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoraConfig, inject
    >>> from lora_np.images import SvdCodec, dit_denoiser, letters
    >>> rng = np.random.default_rng(0)
    >>> codec = SvdCodec.fit(letters(rng, 200).images, k=8)
    >>> denoiser = dit_denoiser(codec, rng, d=8, n_head=2, d_hidden=16, n_block=1, d_c=8)
    >>> z, t = np.ones((5, 8), np.float32), np.full(5, 0.5, np.float32)
    >>> denoiser.forward(z, t, np.zeros((5, 2), int))[0].shape
    (5, 8)
    >>> adapted = inject(denoiser, LoraConfig(r=2, target_modules=("q_proj", "v_proj")), rng)
    >>> len([p for p in adapted.parameters().values() if p.trainable])
    4
    """
    body = DitBody(codec, d, n_head, d_hidden, n_block, d_c, rng, dtype)
    return Denoiser(body, codec.k, d_c, rng, dtype)
