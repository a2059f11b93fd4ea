"""SwiGLU, the gated activation of a Llama's MLP: y = silu(gate) * up.

Shapes: gate, up, y and their gradients are alike. With s the sigmoid of the gate, entry by entry::

    a = silu(gate) = gate s        y = a up
    dup = dy a
    dgate = dy up (s + a (1 - s))  (the slope of silu, s + gate s', with s' = s (1 - s))

Source: Shazeer (2020), arXiv:2002.05202, equation 6; its two matrices are the layer's.
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import Array
from lora_np.ops.activation import sigmoid
from lora_np.ops.contract import Need, expect_same, expect_shape, wanted


class SwigluCache(NamedTuple):
    """What :func:`swiglu_backward` reads."""

    up: Array
    s: Array  # the sigmoid of the gate
    a: Array  # silu of the gate


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, SwigluCache]:
    """Compute silu(gate) * up, entry by entry.

    Parameters
    ----------
    gate, up : arrays, shape (...)

    Returns
    -------
    y : array, shape (...)
    cache : SwigluCache

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import swiglu_backward, swiglu_forward
    >>> y, cache = swiglu_forward(np.array([0.0, 2.0]), np.array([5.0, 10.0]))
    >>> y.round(2).tolist()  # a gate of 0 lets nothing through; silu(2) = 1.762
    [0.0, 17.62]
    >>> dgate, dup = swiglu_backward(np.ones(2), cache)
    >>> dgate.round(2).tolist(), dup.round(2).tolist()
    ([2.5, 10.91], [0.0, 1.76])
    """
    expect_same("up", up, "gate", gate)
    s = sigmoid(gate)
    a = gate * s
    return a * up, SwigluCache(up, s, a)


def swiglu_backward(
    dy: Array, cache: SwigluCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dgate, dup) of :func:`swiglu_forward`."""
    up, s, a = cache
    need_gate, need_up = wanted(need, 2)
    expect_shape("dy", dy, *up.shape)
    dgate = None
    if need_gate:
        dgate = 1.0 - s
        dgate *= a
        dgate += s  # the slope of silu
        dgate *= up
        dgate *= dy
    return dgate, dy * a if need_up else None
