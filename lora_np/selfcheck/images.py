"""The rows of the table that are parts of image models: bodies, and networks around a denoiser."""

from __future__ import annotations

import numpy as np

from lora_np.gradcheck import Case
from lora_np.images import ConvNet, DitBody, Refined, SvdCodec, mlp_denoiser
from lora_np.layers import as_pair
from lora_np.selfcheck.layers import at_random, layer_case

SIZE, K, D_C = 8, 3, 2  # pixels along an image, latents, entries of a condition


def of_images(rng: np.random.Generator) -> list[Case]:
    """Return the parts whose gradients the layers above do not check already."""
    f64, n = np.float64, 2
    draw = rng.standard_normal
    basis = np.linalg.qr(draw((SIZE * SIZE, K)))[0].T  # orthonormal rows
    codec = SvdCodec(draw((SIZE, SIZE)), basis, 0.7, np.empty((0, SIZE * SIZE)))
    z, c, image = draw((n, K)), draw((n, D_C)), draw((n, 4, 3, 2))
    body = DitBody(codec, 4, 2, 6, 1, D_C, rng, f64)
    net = ConvNet(2, 6, 1, D_C, rng, f64)
    inner = mlp_denoiser(rng, k=K, d=4, d_hidden=5, n_block=1, d_c=3, dtype=f64)
    refined = Refined(inner, codec, rng, channels=6, n_block=1, d_c=3, dtype=f64)
    at_random(refined, rng, 0.5)
    t, words = np.array([0.3, 0.8]), np.array([[1, 2], [26, 3]])
    forward, backward, inputs = as_pair(refined, lambda model, z: model.forward(z, t, words))
    return [
        layer_case("DitBody", body, z, rng, c),
        layer_case("ConvNet", net, image, rng, c),
        Case("Refined", forward, backward, inputs(z), {}),
    ]
