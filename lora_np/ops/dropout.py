"""Dropout with the mask as an input: y = x * mask, dx = dy * mask.

An entry of the mask is 0 with probability p and 1 / (1 - p) otherwise, so that the mean of y is x.
The caller draws the mask (:func:`dropout_mask`), so the operation itself is a pure function.

Source: Srivastava et al. (2014), JMLR 15, pages 1929 to 1958, in its "inverted" scaling.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lora_np.backend import Array, like
from lora_np.ops.contract import Need, expect_same, expect_shape, wanted


class DropoutCache(NamedTuple):
    """What :func:`dropout_backward` reads."""

    mask: Array


def dropout_mask(x: Array, p: float, rng: np.random.Generator) -> Array:
    """Draw a mask like `x`, with real entries: 0 with probability p, else 1 / (1 - p).

    The first axis of `x` is the batch: training in parts gives each part its rows of the mask.

    Parameters
    ----------
    x : array, shape (...)
    p : float
        Probability of a zero, at least 0 and below 1.
    rng : numpy.random.Generator

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import dropout_mask
    >>> mask = dropout_mask(np.zeros((100, 100)), 0.75, np.random.default_rng(0))
    >>> np.unique(mask).tolist()  # dropped, or kept and multiplied by 1 / (1 - p)
    [0.0, 4.0]
    >>> abs(float(mask.mean()) - 1.0) < 0.1
    True
    """
    keep = rng.random(x.shape, dtype=np.float32) >= p
    return like(keep.astype(x.real.dtype) * (1.0 / (1.0 - p)), x)


def dropout_forward(x: Array, mask: Array) -> tuple[Array, DropoutCache]:
    """Multiply `x` by `mask`, which has the same shape.

    Parameters
    ----------
    x : array, shape (...)
    mask : array, shape (...)
        From :func:`dropout_mask`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import dropout_backward, dropout_forward
    >>> y, cache = dropout_forward(np.array([1.0, 2.0]), mask=np.array([0.0, 4.0]))
    >>> y.tolist(), dropout_backward(np.ones(2), cache)[0].tolist()
    ([0.0, 8.0], [0.0, 4.0])
    """
    expect_same("mask", mask, "x", x)
    return x * mask, DropoutCache(mask)


def dropout_backward(dy: Array, cache: DropoutCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`dropout_forward`; the mask has no gradient."""
    expect_shape("dy", dy, *cache.mask.shape)
    return (dy * cache.mask if wanted(need, 1)[0] else None,)
