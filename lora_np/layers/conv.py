"""Convolutions as linear layers over patches, so that methods such as LoRA adapt them unchanged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.layers.linear import Linear
from lora_np.ops import im2col_backward, im2col_forward
from lora_np.ops.conv import Pair
from lora_np.parameters import Grads


class Conv2d(Layer):
    """A convolution over H and W: the patches of x (..., H, W, c_in) through a linear layer.

    Channels stand last, as features do in all layers. With groups, the channels are cut into equal
    parts, and each part has a linear layer of its own: ``group.0``, ``group.1`` and so on. The
    weight of a group is (c_out / groups, c_in / groups * kh * kw): PyTorch's kernel of the group,
    with the last three axes as one.

    Parameters
    ----------
    c_in, c_out : int
        Channels of an input and an output, multiples of `groups`.
    kernel : int or (int, int)
        Along H and along W.
    rng : numpy.random.Generator
        Draws the weights, from a normal distribution of variance 1 / (3 fan_in).
    stride, padding, dilation : int or (int, int)
        Padding is with zeros, on both sides.
    groups : int
    bias : bool
        Whether there is a bias, which starts at zero.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Conv2d, LoraConfig, inject
    >>> rng = np.random.default_rng(0)
    >>> conv = Conv2d(4, 6, 3, rng, stride=2, padding=1, groups=2)
    >>> conv.forward(np.ones((5, 8, 8, 4), np.float32))[0].shape
    (5, 4, 4, 6)
    >>> adapted = inject(conv, LoraConfig(r=2, target_modules="all-linear"), rng)
    >>> {name: p.shape for name, p in adapted.parameters().items() if p.trainable}
    {'group.0.A': (2, 18), 'group.0.B': (3, 2), 'group.1.A': (2, 18), 'group.1.B': (3, 2)}
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int | Pair,
        rng: np.random.Generator,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        if groups < 1 or c_in % groups or c_out % groups:
            raise ShapeError(
                f"c_in = {c_in}, c_out = {c_out} do not divide into groups = {groups} equal parts"
            )
        self.kernel, self.stride = _pair(kernel), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        fan_in = c_in // groups * self.kernel[0] * self.kernel[1]
        std = 1.0 / math.sqrt(3.0 * fan_in)
        self.group = [
            Linear(fan_in, c_out // groups, rng, bias=bias, std=std, dtype=dtype)
            for _ in range(groups)
        ]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., Ho, Wo, c_out) and the cache."""
        patches, of_patches = im2col_forward(
            x,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )  # (..., Ho, Wo, c_in kh kw)
        parts = _parts(patches, len(self.group))
        done = [linear.forward(part, rng) for linear, part in zip(self.group, parts)]
        return _joined([y for y, _ in done]), (of_patches, [cache for _, cache in done])

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Go back through the linear layers, then from the patches to x."""
        of_patches, caches = cache
        parts = _parts(dy, len(self.group))
        found = [
            linear.backward(part, inner, grads, need_dx)
            for linear, part, inner in zip(self.group, parts, caches)
        ]
        return im2col_backward(_joined(found), of_patches)[0] if need_dx else None

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Raise TypeError: a patch holds positions on both sides, so there is no newest one."""
        raise TypeError(f"{type(self).__name__} reads positions after its own: use forward")

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of one output position, whatever T is: that of the linear layers.

        An image costs this times Ho Wo. Taking patches multiplies nothing.
        """
        total = Flops(0, 0)
        for linear in self.group:
            total = total.plus(linear.flops(T, need_dx))
        return total


class Conv1d(Conv2d):
    """A convolution over T: :class:`Conv2d` with a kernel of 1 x k, for x (..., T, c_in).

    Parameters
    ----------
    c_in, c_out, kernel : int
    rng : numpy.random.Generator
        Draws the weights.
    stride, padding, dilation, groups : int
    bias : bool
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Conv1d
    >>> conv = Conv1d(1, 1, 3, np.random.default_rng(0), padding=1, dtype=np.float64)
    >>> conv.group[0].W.value = np.ones((1, 3))  # each position and its two neighbours
    >>> conv.forward(np.array([[1.0], [2.0], [4.0]]))[0].ravel().tolist()
    [3.0, 7.0, 6.0]
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        rng: np.random.Generator,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(
            c_in,
            c_out,
            (1, kernel),
            rng,
            stride=(1, stride),
            padding=(0, padding),
            dilation=(1, dilation),
            groups=groups,
            bias=bias,
            dtype=dtype,
        )

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., To, c_out) and the cache."""
        y, cache = super().forward(x[..., None, :, :], rng)
        return y[..., 0, :, :], cache

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of the linear layers; return dx."""
        dx = super().backward(dy[..., None, :, :], cache, grads, need_dx)
        return None if dx is None else dx[..., 0, :, :]


def _pair(size: int | Pair) -> Pair:
    """Return a size along H and along W."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _parts(x: Array, n: int) -> list[Array]:
    """Cut the last axis into `n` equal parts."""
    width = x.shape[-1] // n
    return [x[..., i * width : (i + 1) * width] for i in range(n)]


def _joined(parts: list[Any]) -> Array:
    """Undo :func:`_parts`."""
    return parts[0] if len(parts) == 1 else get_xp(parts[0]).concatenate(parts, axis=-1)
