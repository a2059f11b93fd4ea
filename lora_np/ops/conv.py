"""im2col: the patches that a convolution multiplies by its kernel, one row for each position.

Shapes: x (..., H, W, C), a kernel of kh x kw, patches (..., Ho, Wo, C kh kw). With stride s,
padding p and dilation d, each a pair, the patch at output position (a, b) holds::

    patches[a, b, (c, i, j)] = xp[a s0 + i d0, b s1 + j d1, c]
    Ho = (H + 2 p0 - d0 (kh - 1) - 1) // s0 + 1,  and so for Wo

where xp is x with p rows and columns of zeros on each side. A convolution is then one linear map of
the patches, y = patches K^T + b, with the kernel K (out, C kh kw) in PyTorch's order of entries: a
layer needs no other operation, and neither does LoRA. A kernel of 1 x k is a convolution over one
axis.

Derivation. patches = S(x) only copies entries, so S is linear, and dx = S^T dy: each entry of x
receives the sum of dy over the patches that hold it (col2im)::

    dxp[a s0 + i d0, b s1 + j d1, c] += dy[a, b, (c, i, j)]    for all a, b, c, i, j

For one entry (i, j) of the kernel, the places on the left are all different: a slice with steps.
Forward reads that slice, and backward adds to it. The padding of dxp is cut off.

Source: Chellapilla, Puri and Simard (2006), High performance convolutional neural networks for
document processing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.contract import Need, expect_shape, wanted

Pair = tuple[int, int]  # along H and along W


class Im2colCache(NamedTuple):
    """What :func:`im2col_backward` reads: sizes alone."""

    shape: tuple[int, ...]  # of x
    out: Pair  # (Ho, Wo)
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


def im2col_forward(
    x: Array,
    *,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> tuple[Array, Im2colCache]:
    """Return the patch of `x` at every output position.

    Parameters
    ----------
    x : array, shape (..., H, W, C)
    kernel, stride, padding, dilation : (int, int)
        Along H and along W.

    Returns
    -------
    patches : array, shape (..., Ho, Wo, C * kh * kw)
        The entries of a patch are in the order (C, kh, kw).
    cache : Im2colCache

    Raises
    ------
    ShapeError
        If x has fewer than three axes, or the kernel is larger than the padded x.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import im2col_backward, im2col_forward
    >>> x = np.arange(4.0).reshape(1, 4, 1)  # one row of four pixels
    >>> patches, cache = im2col_forward(x, kernel=(1, 3))
    >>> patches.tolist()
    [[[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]]
    >>> (dx,) = im2col_backward(np.ones((1, 2, 3)), cache)
    >>> dx.ravel().tolist()  # in how many patches each pixel lies
    [1.0, 2.0, 2.0, 1.0]
    """
    out = output_size(x.shape, kernel, stride, padding, dilation)
    cache = Im2colCache(x.shape, out, kernel, stride, padding, dilation)
    *lead, H, W, C = x.shape
    (p0, p1), xp = padding, get_xp(x)
    padded = x
    if p0 or p1:
        padded = xp.zeros((*lead, H + 2 * p0, W + 2 * p1, C), dtype=x.dtype)
        padded[..., p0 : p0 + H, p1 : p1 + W, :] = x
    patches = xp.zeros((*lead, *out, C, *kernel), dtype=x.dtype)
    for i, j, seen in _slices(cache):
        patches[..., i, j] = padded[seen]  # (..., Ho, Wo, C)
    return patches.reshape(*lead, *out, C * kernel[0] * kernel[1]), cache


def im2col_backward(dy: Array, cache: Im2colCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`im2col_forward`: col2im."""
    if not wanted(need, 1)[0]:
        return (None,)
    (*lead, H, W, C), out, (kh, kw), _, (p0, p1), _ = cache
    expect_shape("dy", dy, *lead, *out, C * kh * kw)
    dpatches = dy.reshape(*lead, *out, C, kh, kw)
    dx = get_xp(dy).zeros((*lead, H + 2 * p0, W + 2 * p1, C), dtype=dy.dtype)
    for i, j, seen in _slices(cache):
        dx[seen] += dpatches[..., i, j]  # (..., Ho, Wo, C)
    return (dx[..., p0 : p0 + H, p1 : p1 + W, :],)


def _slices(cache: Im2colCache) -> Iterator[tuple[int, int, tuple]]:
    """Yield each entry (i, j) of the kernel with the places of the padded x that it meets."""
    _, (Ho, Wo), (kh, kw), (s0, s1), _, (d0, d1) = cache
    for i in range(kh):
        for j in range(kw):
            down, right = i * d0, j * d1
            rows = slice(down, down + (Ho - 1) * s0 + 1, s0)
            columns = slice(right, right + (Wo - 1) * s1 + 1, s1)
            yield i, j, (..., rows, columns, slice(None))


def output_size(
    shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    """Return (Ho, Wo) for an x of this shape (..., H, W, C).

    Examples
    --------
    >>> from lora_np.ops.conv import output_size
    >>> output_size((28, 28, 1), (3, 3), (2, 2), (1, 1), (1, 1))
    (14, 14)
    """
    if len(shape) < 3:
        raise ShapeError(f"x has shape {shape}, expected (..., H, W, C)")
    sizes = []
    for n, k, s, p, d in zip(shape[-3:-1], kernel, stride, padding, dilation):
        if k < 1 or s < 1 or d < 1 or p < 0:
            raise ValueError(
                f"kernel {kernel}, stride {stride}, dilation {dilation} must be at least 1, "
                f"and padding {padding} at least 0"
            )
        extent = d * (k - 1) + 1
        if n + 2 * p < extent:
            raise ShapeError(
                f"x has shape {shape}: its {n} places with padding {p} are fewer than the {extent} "
                f"that a kernel of {k} with dilation {d} spans"
            )
        sizes.append((n + 2 * p - extent) // s + 1)
    return sizes[0], sizes[1]
