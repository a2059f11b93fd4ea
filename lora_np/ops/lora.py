"""LoRA, low-rank adaptation of a linear map: y = x W0^T + b + s ((x * m) A^T) B^T.

Shapes: x (..., in), W0 (out, in), A (r, in), B (out, r), b (out,), m like x, y (..., out). The
scale is s = lora_alpha / r. The dropout mask m acts on the adapter's path only. For one sample
without mask and bias this is y = W0 x + s B A x: W0 stays frozen, and the change s B A has rank at
most r.

Derivation. Let u = (x * m) A^T (N, r). The adapter then adds s u B^T: two linear maps, one after
the other. Differentiate each as in linear.py, from the outside in::

    du = s dy B                        (N, r)
    dB = s dy^T u                      (out, r)
    dA = du^T (x * m)                  (r, in)
    dx = dy W0 + (du A) * m            (N, in)   the sum over both paths from x
    dW0 = dy^T x                       (out, in) not formed if W0 is frozen; dx still is

At B = 0, where training starts, du and dA are zero, but dB is not. Every product of the adapter has
a side of length r.

Source: Hu et al. (2021), arXiv:2106.09685, equation 3.
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import Array
from lora_np.ops.contract import Need, expect_last, expect_same, expect_shape, wanted
from lora_np.ops.linear import rows, sum_rows


class LoRALinearCache(NamedTuple):
    """What :func:`lora_linear_backward` reads."""

    x: Array  # (..., in)
    W0: Array  # (out, in)
    A: Array  # (r, in)
    B: Array  # (out, r)
    u: Array  # (N, r), (x * mask) A^T
    scale: float
    mask: Array | None  # (..., in)
    has_bias: bool


def lora_linear_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    b: Array | None = None,
    *,
    scale: float,
    mask: Array | None = None,
) -> tuple[Array, LoRALinearCache]:
    """Compute y = x W0^T + b + scale ((x * mask) A^T) B^T.

    Parameters
    ----------
    x : array, shape (..., in)
    W0 : array, shape (out, in)
        The pretrained weight.
    A, B : arrays, shapes (r, in) and (out, r)
        The adapter's factors.
    b : array, shape (out,), optional
    scale : float
        lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA.
    mask : array, shape (..., in), optional
        Dropout mask of the adapter's path, with entries 0 or 1 / (1 - p).

    Returns
    -------
    y : array, shape (..., out)
    cache : LoRALinearCache

    Raises
    ------
    ShapeError
        If the shapes do not fit; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import lora_linear_backward, lora_linear_forward
    >>> x, W0, A, B = np.ones((1, 3)), np.eye(3), np.ones((1, 3)), np.zeros((3, 1))
    >>> y, cache = lora_linear_forward(x, W0, A, B, scale=2.0)
    >>> _, _, dA, dB, _ = lora_linear_backward(np.ones((1, 3)), cache)
    >>> y.tolist(), dA.tolist(), dB.T.tolist()  # at B = 0, y = x W0^T and only B learns
    ([[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]], [[6.0, 6.0, 6.0]])
    """
    check_shapes(x, W0, A, B, b, mask)
    scale = float(scale)  # an np.float64 would turn float32 into float64
    u = rows(_masked(x, mask)) @ A.T  # (N, r)
    y = rows(x) @ W0.T  # (N, out)
    y += (scale * u) @ B.T
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], W0.shape[0]), LoRALinearCache(
        x, W0, A, B, u, scale, mask, b is not None
    )


def lora_linear_backward(
    dy: Array, cache: LoRALinearCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None, Array | None, Array | None]:
    """Return (dx, dW0, dA, dB, db) of :func:`lora_linear_forward`."""
    x, W0, A, B, u, scale, mask, has_bias = cache
    need_x, need_W0, need_A, need_B, need_b = wanted(need, 5)
    expect_shape("dy", dy, *x.shape[:-1], W0.shape[0])
    dx = dW0 = dA = dB = db = None
    g = rows(dy)  # (N, out)
    if need_x or need_A:
        du = scale * (g @ B)  # (N, r)
        if need_x:
            dx = (g @ W0).reshape(x.shape)  # (..., in)
            dx += _masked((du @ A).reshape(x.shape), mask)
        if need_A:
            dA = du.T @ rows(_masked(x, mask))  # (r, in)
    if need_W0:
        dW0 = g.T @ rows(x)  # (out, in)
    if need_B:
        dB = scale * (g.T @ u)  # (out, r)
    if need_b and has_bias:
        db = sum_rows(dy)  # (out,)
    return dx, dW0, dA, dB, db


def check_shapes(
    x: Array, W0: Array, A: Array, B: Array, b: Array | None, mask: Array | None
) -> None:
    """Raise unless the arguments of :func:`lora_linear_forward` fit."""
    expect_shape("W0", W0, None, None)
    expect_last("x", x, W0.shape[1])
    expect_shape("A", A, None, W0.shape[1])
    expect_shape("B", B, W0.shape[0], A.shape[0])
    if b is not None:
        expect_shape("b", b, W0.shape[0])
    if mask is not None:
        expect_same("mask", mask, "x", x)


def _masked(x: Array, mask: Array | None) -> Array:
    return x if mask is None else x * mask
