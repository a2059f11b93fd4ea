"""Small codecs and denoisers, with random Parameters and in float64."""

import numpy as np

from lora_np.images import SvdCodec, mlp_denoiser

K = 6


def codec(rng, k=K, size=8):
    """A codec of random directions."""
    basis = np.linalg.qr(rng.standard_normal((size * size, k)))[0].T
    return SvdCodec(rng.standard_normal((size, size)), basis, 0.7, np.empty((0, size * size)))


def denoiser(rng, k=K):
    return mlp_denoiser(rng, k=k, d=8, d_hidden=8, n_block=2, d_c=4, dtype=np.float64)


def batch(rng, n=3, k=K):
    """z, t and words; the last prompt is empty."""
    words = np.stack([rng.integers(0, 26, n), rng.integers(0, 3, n)], axis=1)
    words[-1] = 26, 3
    return rng.standard_normal((n, k)), rng.random(n), words
