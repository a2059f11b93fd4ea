"""The rows of the table that are parts of image models: bodies, and networks around a denoiser."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import like
from lora_np.gradcheck import Case
from lora_np.images import ConvNet, DitBody, Refined, SvdCodec, mlp_denoiser
from lora_np.layers import as_pair
from lora_np.selfcheck.layers import at_random, layer_case

K, D_C = 3, 2  # latents, entries of a condition


def of_images(rng: np.random.Generator) -> list[Case]:
    """Return the parts whose gradients the layers above do not check already."""
    f64, n = np.float64, 2
    draw = rng.standard_normal
    z, c, image = draw((n, K)), draw((n, D_C)), draw((n, 4, 3, 2))
    body = DitBody(_codec(rng, 8), 4, 2, 6, 2, D_C, rng, f64)
    net = ConvNet(2, 6, 2, D_C, rng, f64)
    inner = mlp_denoiser(rng, k=K, d=4, d_hidden=5, n_block=1, d_c=3, dtype=f64)
    refined = Refined(inner, _codec(rng, 3), rng, channels=6, n_block=1, d_c=3, dtype=f64)
    at_random(refined, rng, 0.5)
    t, words = np.array([0.3, 0.8]), np.array([[1, 2], [26, 3]])

    def run(model: Any, z: Any) -> tuple[Any, Any]:
        at = (like(x[: len(z)], z) for x in (t, words))  # where z is, and no more rows
        return model.forward(z, *at)

    forward, backward, inputs = as_pair(refined, run)
    return [
        layer_case("DitBody", body, z, rng, c),
        layer_case("ConvNet", net, image, rng, c),
        Case("Refined", forward, backward, inputs(z), {}),
    ]


def _codec(rng: np.random.Generator, size: int) -> SvdCodec:
    """Return a codec of random directions, with orthonormal rows."""
    basis = np.linalg.qr(rng.standard_normal((size * size, K)))[0].T  # (K, size^2)
    mean = rng.standard_normal((size, size))
    return SvdCodec(mean, basis, 0.7, np.empty((0, size * size)))
