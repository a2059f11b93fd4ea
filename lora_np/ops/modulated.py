"""Modulated layer normalisation: a condition says how each sample is scaled and shifted (adaLN).

Layer normalisation (norm.py) has one gain and one bias for all samples. Here every sample has its
own, which some other layer computes from a condition: a time, a class, a text. Shapes: x (..., d);
shift and scale have the shape of x, or size 1 in some of its leading axes: with (n, 1, d) against
x (n, T, d) the T positions of a sample share them. With xhat and rstd of norm.py::

    y = (1 + scale) xhat + shift

Scale is what is added to one, so that shift = scale = 0 is the plain normalisation.

Derivation. y is linear in shift and in scale, entry by entry. An entry that several positions share
collects a gradient from each of them, because paths add::

    dshift = sum dy        dscale = sum dy xhat        (over the axes where shift has size 1)

For x, let g = dy (1 + scale) = dL/dxhat; from there on the derivation is that of norm.py::

    dx = rstd (g - mean(g) - xhat mean(g xhat))

Sources: Perez et al. (2017), arXiv:1709.07871, for a scale and a shift that depend on a condition
(FiLM); Peebles and Xie (2022), arXiv:2212.09748, section 3.2, for the normalisation above (adaLN).
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import Array, ShapeError
from lora_np.ops.contract import Need, expect_same, expect_shape, expect_some, wanted
from lora_np.ops.norm import standardised, standardised_backward


class ModulatedNormCache(NamedTuple):
    """What :func:`modulated_norm_backward` reads."""

    xhat: Array  # (..., d)
    rstd: Array  # (..., 1)
    scale: Array  # (..., d), size 1 in axes that are shared


def modulated_norm_forward(
    x: Array, shift: Array, scale: Array, eps: float = 1e-6
) -> tuple[Array, ModulatedNormCache]:
    """Normalise the last axis of `x`, then scale by 1 + scale and shift.

    Parameters
    ----------
    x : array, shape (..., d)
    shift, scale : arrays, shape (..., d)
        Leading axes are those of `x`, or of size 1; both have the same shape.
    eps : float
        Added to the variance.

    Returns
    -------
    y : array, shape (..., d)
    cache : ModulatedNormCache

    Raises
    ------
    ShapeError
        If the shapes do not fit; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import modulated_norm_backward, modulated_norm_forward
    >>> x = np.array([[[1.0, 3.0], [7.0, 5.0]]])  # one sample of two positions
    >>> y, cache = modulated_norm_forward(x, np.full((1, 1, 2), 10.0), np.ones((1, 1, 2)))
    >>> y.round(3).tolist()  # xhat is (-1, 1) and (1, -1); twice that, plus 10
    [[[8.0, 12.0], [12.0, 8.0]]]
    >>> dx, dshift, dscale = modulated_norm_backward(np.ones((1, 2, 2)), cache)
    >>> dshift.tolist(), dscale.round(3).tolist()  # sums over the two positions
    ([[[2.0, 2.0]]], [[[0.0, 0.0]]])
    """
    expect_some("x", x)
    expect_shared("shift", shift, x)
    expect_same("scale", scale, "shift", shift)
    xhat, rstd = standardised(x, eps)
    return (1.0 + scale) * xhat + shift, ModulatedNormCache(xhat, rstd, scale)


def modulated_norm_backward(
    dy: Array, cache: ModulatedNormCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dx, dshift, dscale) of :func:`modulated_norm_forward`."""
    xhat, rstd, scale = cache
    need_x, need_shift, need_scale = wanted(need, 3)
    expect_shape("dy", dy, *xhat.shape)
    dx = standardised_backward(dy * (1.0 + scale), xhat, rstd) if need_x else None  # (..., d)
    dshift = sum_shared(dy, scale.shape) if need_shift else None  # the shape of shift
    dscale = sum_shared(dy * xhat, scale.shape) if need_scale else None  # the shape of scale
    return dx, dshift, dscale


def expect_shared(name: str, part: Array, x: Array) -> None:
    """Raise unless `part` has the shape of `x`, or size 1 in some of its leading axes."""
    lead = zip(part.shape[:-1], x.shape[:-1])
    fits = part.ndim == x.ndim and part.shape[-1] == x.shape[-1]
    if not (fits and all(size in (1, whole) for size, whole in lead)):
        raise ShapeError(
            f"{name} has shape {tuple(part.shape)}, expected {tuple(x.shape)}, the shape of x, or "
            "1 in leading axes"
        )


def sum_shared(g: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum of `g` over the axes where `shape` has size 1: a new array of this shape."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return g.sum(axis=axes, keepdims=True) if axes else g.copy()
