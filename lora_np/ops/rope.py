"""Rotary positions: each pair of entries of a query or key is turned by an angle of its position.

Shapes: x and y (..., T, d) with d even; cos and sin (..., T, d/2) broadcast against the leading
axes of x. Entry i is paired with entry i + d/2: x1 = x[..., :d/2], x2 = x[..., d/2:]. At position t
pair i turns by the angle a = t base^(-2i/d)::

    y1 = x1 cos(a) - x2 sin(a)
    y2 = x2 cos(a) + x1 sin(a)

A query at position t and a key at position s then have a product that depends on t - s alone.

Derivation. Each pair is multiplied by a rotation matrix, so its gradient is multiplied by the
transpose, the rotation back::

    dx1 = dy1 cos(a) + dy2 sin(a)
    dx2 = dy2 cos(a) - dy1 sin(a)

The angles are constants and have no gradient.

Llama 3 stretches the slow rotations, so that a model trained on `original_max_position_embeddings`
positions reads `factor` times as many. A pair that turns more than `high_freq_factor` times within
the original positions keeps its frequency, one that turns less than `low_freq_factor` times has it
divided by `factor`, and in between the two are mixed linearly.

Sources: Su et al. (2021), arXiv:2104.09864, equation 34; the pairing of the halves and the rule of
Llama 3 are those of Hugging Face's transformers (`rotate_half`, `rope_type` "llama3").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.contract import Need, expect_same, expect_shape, expect_some, wanted


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3 stretches the slow rotations; the fields have the names of a Hugging Face config.

    Attributes
    ----------
    factor, low_freq_factor, high_freq_factor : float
    original_max_position_embeddings : int
        How many positions the model saw before its rotations were stretched.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if not (self.factor > 0 and self.original_max_position_embeddings > 0):
            raise ValueError(f"{self}: factor and original_max_position_embeddings must be above 0")
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(f"{self}: low_freq_factor must be below high_freq_factor")

    def stretched(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the frequencies, in radians a position, with the slow ones divided by factor."""
        turns = frequencies * (self.original_max_position_embeddings / (2.0 * math.pi))
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = ((turns - low) / (high - low)).clip(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)


def rope_angles(
    length: int,
    d: int,
    base: float = 10000.0,
    dtype: Any = np.float32,
    scaling: Llama3Scaling | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines of the angles at positions 0 .. length - 1.

    Both are computed in float64 and rounded once.

    Parameters
    ----------
    length : int
    d : int
        Entries of a query or key; even.
    base : float
    dtype : dtype
    scaling : Llama3Scaling, optional

    Returns
    -------
    cos, sin : arrays, shape (length, d/2)

    Raises
    ------
    ValueError
        If d is not even.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rope_angles
    >>> cos, sin = rope_angles(3, 4, base=100.0, dtype=np.float64)
    >>> sin.round(3).tolist()  # the sines of t and of t / 10
    [[0.0, 0.0], [0.841, 0.1], [0.909, 0.199]]
    """
    if d < 2 or d % 2:
        raise ValueError(f"d = {d}: rotary positions turn pairs of entries, so d must be even")
    frequencies = float(base) ** (-np.arange(0, d, 2) / d)  # (d/2,), radians a position
    if scaling is not None:
        frequencies = scaling.stretched(frequencies)
    angles = np.arange(length)[:, None] * frequencies  # (length, d/2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


class RopeCache(NamedTuple):
    """What :func:`rope_backward` reads."""

    cos: Array  # (..., T, d/2)
    sin: Array  # (..., T, d/2)
    shape: tuple[int, ...]  # of x


def rope_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, RopeCache]:
    """Turn every pair (x[..., i], x[..., i + d/2]) by its angle.

    Parameters
    ----------
    x : array, shape (..., T, d)
    cos, sin : arrays, shape (..., T, d/2)
        Rows of :func:`lora_np.ops.rope_angles`, one for each position; they broadcast against the
        leading axes of `x`, e.g. (B, 1, T, d/2) if each text has positions of its own.

    Returns
    -------
    y : array, shape (..., T, d)
    cache : RopeCache

    Raises
    ------
    ShapeError
        If d is not even, or the angles do not broadcast against x.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rope_angles, rope_backward, rope_forward
    >>> cos, sin = rope_angles(2, 2, dtype=np.float64)
    >>> y, cache = rope_forward(np.array([[1.0, 0.0], [1.0, 0.0]]), cos, sin)
    >>> y.round(3).tolist()  # position 0 does not turn, position 1 turns by one radian
    [[1.0, 0.0], [0.54, 0.841]]
    >>> rope_backward(y, cache)[0].round(3).tolist()  # the rotation back
    [[1.0, 0.0], [1.0, 0.0]]
    """
    _check_angles(x, cos, sin)
    return _rotated(x, cos, sin), RopeCache(cos, sin, x.shape)


def rope_backward(dy: Array, cache: RopeCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`rope_forward`; the angles have no gradient."""
    if not wanted(need, 1)[0]:
        return (None,)
    cos, sin, shape = cache
    expect_shape("dy", dy, *shape)
    return (_rotated(dy, cos, -sin),)  # cos(-a) = cos(a), sin(-a) = -sin(a)


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Return y of the module's docstring, with the memory layout of x."""
    xp, half = get_xp(x), x.shape[-1] // 2
    y = xp.empty_like(x)
    x1, x2, y1, y2 = x[..., :half], x[..., half:], y[..., :half], y[..., half:]
    xp.multiply(x1, cos, out=y1)
    y1 -= x2 * sin
    xp.multiply(x2, cos, out=y2)
    y2 += x1 * sin
    return y


def _check_angles(x: Array, cos: Array, sin: Array) -> None:
    """Raise unless the arguments of :func:`rope_forward` fit."""
    expect_some("x", x)
    if x.shape[-1] % 2:
        raise ShapeError(f"x has shape {tuple(x.shape)}, expected an even last axis")
    expect_same("sin", sin, "cos", cos)
    half = (*x.shape[:-1], x.shape[-1] // 2)
    fits = 0 < cos.ndim <= x.ndim and cos.shape[-1] == half[-1]
    for length, expected in zip(cos.shape[::-1], half[::-1]):
        fits = fits and length in (1, expected)
    if not fits:
        raise ShapeError(f"cos has shape {tuple(cos.shape)}, expected to broadcast against {half}")
