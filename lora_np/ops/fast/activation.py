"""GELU with its slope, in few passes over memory.

As in ops/activation.py, y = x g with g = (1 + tanh(u)) / 2 and y' = g + y (1 - g) 2 u'. Forward
computes the slope y' too and caches it in place of x and g, so backward is one product. Where
possible, forward works in place on arrays that it has made.

NumPy's loops for CPUs compute tanh faster than exp. Those for Pyodide take eight times as long for
tanh, so g is computed as a logistic function there.

What it gains: with the textbook pair a full step takes 1.08 / 1.05 / 1.01 times as long, and a LoRA
step 1.06 / 1.04 / 1.02 (tiny / small / medium; 2026-11-26; ``python -m tests.benchmarks --only
twins``).
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import IN_BROWSER, Array, get_xp
from lora_np.ops.activation import GELU_C, GELU_FLAT, GELU_K
from lora_np.ops.contract import Need, expect_shape, wanted


class GeluCache(NamedTuple):
    """What :func:`gelu_backward` reads."""

    slope: Array  # y', like x


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """Compute :func:`lora_np.ops.gelu_forward`, and the slope for backward."""
    near = x.clip(-GELU_FLAT, GELU_FLAT)
    w = near * near
    w *= GELU_C * GELU_K
    g = w + GELU_C
    g *= near  # u
    g = gate(g)
    y = x * g
    slope = w  # from here on: 2 u' = 6 w + 2 c, then y' = 2 u' (1 - g) y + g
    slope *= 6.0
    slope += 2.0 * GELU_C
    slope *= 1.0 - g  # 0 where x is large, so that the product with y cannot overflow
    slope *= y
    slope += g
    return y, GeluCache(slope)


def gelu_backward(dy: Array, cache: GeluCache, need: Need = None) -> tuple[Array | None]:
    """Return (dx,) of :func:`gelu_forward`."""
    if not wanted(need, 1)[0]:
        return (None,)
    expect_shape("dy", dy, *cache.slope.shape)
    return (dy * cache.slope,)


def gate_by_tanh(u: Array) -> Array:
    """Return g = (1 + tanh(u)) / 2, in the memory of `u`."""
    g = get_xp(u).tanh(u, out=u if u.ndim else None)  # a scalar has no memory to write to
    g += 1.0
    g *= 0.5
    return g


def gate_by_exp(u: Array) -> Array:
    """Return g = 1 / (1 + exp(-2 u)), which is the same; `u` is written over."""
    u *= -2.0
    g = get_xp(u).exp(u, out=u if u.ndim else None)
    g += 1.0
    return 1.0 / g


gate = gate_by_exp if IN_BROWSER else gate_by_tanh
