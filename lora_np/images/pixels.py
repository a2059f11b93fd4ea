"""The maps between a latent and its image, as linear layers, for networks that look at pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.images.latent import SvdCodec
from lora_np.layers import Linear
from lora_np.parameters import Parameter


def pixel_maps(codec: SvdCodec, dtype: Any = np.float32) -> tuple[Linear, Linear]:
    """Return the maps from latents (n, k) to pixels (n, size^2), and back, both frozen.

    With the codec's basis V, whose rows are orthonormal, they map z to z (scale V) and an image x
    to x V^T / scale. The mean image is left out, since a change, such as a velocity, has none.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images import SvdCodec, letters
    >>> from lora_np.images.pixels import pixel_maps
    >>> codec = SvdCodec.fit(letters(np.random.default_rng(0), 200).images, k=8)
    >>> to_image, to_latent = pixel_maps(codec, np.float64)
    >>> z = np.ones((5, 8))
    >>> image = to_image.forward(z)[0]
    >>> image.shape, np.allclose(to_latent.forward(image)[0], z, atol=1e-5)
    ((5, 256), True)
    """
    V = codec.basis.astype(dtype)  # (k, size^2)
    to_image = Linear.over(Parameter(V.T * codec.scale, trainable=False), None)
    to_latent = Linear.over(Parameter(V / codec.scale, trainable=False), None)
    return to_image, to_latent
