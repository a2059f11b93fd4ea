r"""Activations: GELU, ReLU and SiLU entry by entry, and softmax over the last axis.

Shapes: x, y, dy and dx are alike. An entry-by-entry y = f(x) has dx = dy f'(x)::

    gelu    y = x g,  g = (1 + tanh(u)) / 2,  u = c (x + k x^3),  c = sqrt(2 / pi),  k = 0.044715
            y' = g + x g',  g' = g (1 - g) 2 u',  u' = c (1 + 3 k x^2)
    relu    y = max(x, 0),  y' = 1 where x > 0, else 0 (also at the kink x = 0)
    silu    y = x s,  s = 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2,  y' = s (1 + x (1 - s))

    softmax y_i = exp(x_i) / sum_j exp(x_j),  dy_i/dx_j = y_i (1[i = j] - y_j),  so
            dx = dy * y - y sum_j dy_j y_j

Sources: GELU in its tanh form, Hendrycks and Gimpel (2016), arXiv:1606.08415, section 2; SiLU,
Elfwing, Uchibe and Doya (2017), arXiv:1702.03118.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lora_np.backend import Array, get_xp
from lora_np.ops.contract import Need, expect_finite, expect_shape, expect_some, wanted
from lora_np.ops.linear import sum_last

GELU_C = math.sqrt(2.0 / math.pi)  # a Python float: an np.float64 would turn float32 into float64
GELU_K = 0.044715
GELU_FLAT = 10.0  # for larger |x|, g is exactly 0 or 1 in floating point


class GeluCache(NamedTuple):
    """What :func:`gelu_backward` reads."""

    x: Array  # clipped to -GELU_FLAT .. GELU_FLAT
    g: Array  # like x


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """Compute GELU in its tanh form, entry by entry.

    Parameters
    ----------
    x : array, shape (...)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import gelu_backward, gelu_forward
    >>> y, cache = gelu_forward(np.array([0.0, 1.0, 10.0]))
    >>> y.round(3).tolist()  # for large x, y = x
    [0.0, 0.841, 10.0]
    >>> (dx,) = gelu_backward(np.ones(3), cache)
    >>> dx.round(3).tolist()  # the slope at 0 is 1/2
    [0.5, 1.083, 1.0]
    """
    near = x.clip(-GELU_FLAT, GELU_FLAT)  # so that x^3 cannot overflow
    u = GELU_C * (near + GELU_K * near * near * near)
    g = 0.5 * (1.0 + get_xp(x).tanh(u))
    return x * g, GeluCache(near, g)


def gelu_backward(dy: Array, cache: GeluCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`gelu_forward`."""
    if not wanted(need, 1)[0]:
        return (None,)
    x, g = cache
    expect_shape("dy", dy, *x.shape)
    two_du = (2.0 * GELU_C) * (1.0 + 3.0 * GELU_K * x * x)
    return (dy * (g + x * g * (1.0 - g) * two_du),)


class ReluCache(NamedTuple):
    """What :func:`relu_backward` reads."""

    positive: Array  # bool, like x


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """Compute max(x, 0) entry by entry.

    Parameters
    ----------
    x : array, shape (...)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import relu_backward, relu_forward
    >>> y, cache = relu_forward(np.array([-2.0, 0.0, 3.0]))
    >>> np.array_equal(y, [0.0, 0.0, 3.0])
    True
    >>> relu_backward(np.ones(3), cache)[0].tolist()
    [0.0, 0.0, 1.0]
    """
    positive = x.real > 0  # in a complex step the imaginary part carries the derivative
    return x * positive, ReluCache(positive)


def relu_backward(dy: Array, cache: ReluCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`relu_forward`."""
    expect_shape("dy", dy, *cache.positive.shape)
    return (dy * cache.positive if wanted(need, 1)[0] else None,)


class SiluCache(NamedTuple):
    """What :func:`silu_backward` reads."""

    x: Array
    s: Array  # the sigmoid of x


def silu_forward(x: Array) -> tuple[Array, SiluCache]:
    """Compute x times its sigmoid, entry by entry.

    Parameters
    ----------
    x : array, shape (...)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import silu_backward, silu_forward
    >>> y, cache = silu_forward(np.array([0.0, 2.0]))
    >>> y.round(3).tolist()  # 2 / (1 + exp(-2)) = 1.762
    [0.0, 1.762]
    >>> silu_backward(np.ones(2), cache)[0].round(3).tolist()
    [0.5, 1.091]
    """
    s = sigmoid(x)
    return x * s, SiluCache(x, s)


def silu_backward(dy: Array, cache: SiluCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`silu_forward`."""
    if not wanted(need, 1)[0]:
        return (None,)
    x, s = cache
    expect_shape("dy", dy, *x.shape)
    return (dy * (s * (1.0 + x * (1.0 - s))),)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), entry by entry."""
    return 0.5 * (1.0 + get_xp(x).tanh(0.5 * x))  # exp(-x) could overflow, tanh cannot


class SoftmaxCache(NamedTuple):
    """What :func:`softmax_backward` reads."""

    y: Array  # (..., n), the probabilities


def softmax_forward(x: Array) -> tuple[Array, SoftmaxCache]:
    """Compute exp(x) / sum exp(x) over the last axis of `x` (..., n).

    Parameters
    ----------
    x : array, shape (..., n)
        An entry of -inf gets probability 0.

    Raises
    ------
    FloatingPointError
        If a row holds inf or nan, or only -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import softmax_backward, softmax_forward
    >>> y, cache = softmax_forward(np.log([1.0, 2.0, 5.0]))
    >>> y.round(6).tolist()
    [0.125, 0.25, 0.625]
    >>> (dx,) = softmax_backward(np.array([8.0, 0.0, 0.0]), cache)
    >>> dx.round(6).tolist()  # the sum is 0: adding a constant to x does not change y
    [0.875, -0.25, -0.625]
    """
    expect_some("x", x)
    largest = x.real.max(axis=-1, keepdims=True)  # (..., 1)
    expect_finite("x", largest)
    y = get_xp(x).exp(x - largest)  # the largest exponent is 0
    y /= sum_last(y)
    return y, SoftmaxCache(y)


def softmax_backward(dy: Array, cache: SoftmaxCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`softmax_forward`."""
    if not wanted(need, 1)[0]:
        return (None,)
    expect_shape("dy", dy, *cache.y.shape)
    dx = dy * cache.y
    dx -= cache.y * sum_last(dx)
    return (dx,)
