"""Recurrent layers: two linear layers and a cell, run through time and back.

The linear layers are ``x_proj``, from an input to the gates, and ``h_proj``, from the hidden state
to the gates. Methods such as LoRA adapt them unchanged. ops/recurrent.py derives the cells and
backpropagation through time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.layers.linear import Linear
from lora_np.layers.memory import StateMemory
from lora_np.ops import (
    gru_cell_backward,
    gru_cell_forward,
    rnn_cell_backward,
    rnn_cell_forward,
)
from lora_np.ops.contract import expect_shape
from lora_np.parameters import Grads


class RecurrentCache(NamedTuple):
    """Caches of x_proj, and of h_proj and the cell at every step."""

    x: Any
    steps: list[tuple[Any, Any]]  # (h_proj's, the cell's)
    shape: tuple[int, ...]  # of y


class RNN(Layer):
    """h_t = tanh(x_proj(x_t) + h_proj(h_(t-1))), and y_t = h_t; PyTorch's RNN of one layer.

    Parameters
    ----------
    d, d_hidden : int
        Lengths of an input and of the hidden state.
    rng : numpy.random.Generator
        Draws the weights, from a normal distribution of variance 1 / (3 d_hidden).
    bias : bool
        Whether both linear layers have a bias, which starts at zero.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import RNN
    >>> rnn = RNN(3, 5, np.random.default_rng(0))
    >>> {name: p.shape for name, p in rnn.parameters().items()}
    {'x_proj.W': (5, 3), 'x_proj.b': (5,), 'h_proj.W': (5, 5), 'h_proj.b': (5,)}
    >>> rnn.forward(np.ones((2, 7, 3), np.float32))[0].shape
    (2, 7, 5)
    """

    gates = 1  # parts of a projection, each of the state's length

    def __init__(
        self,
        d: int,
        d_hidden: int,
        rng: np.random.Generator,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        std, width = 1.0 / math.sqrt(3.0 * d_hidden), self.gates * d_hidden
        self.d_hidden = d_hidden
        self.x_proj = Linear(d, width, rng, bias=bias, std=std, dtype=dtype)
        self.h_proj = Linear(d_hidden, width, rng, bias=bias, std=std, dtype=dtype)

    def cell(self, gx: Array, gh: Array, h: Array) -> tuple[Array, Any]:
        """Return the state after a step and the cell's cache."""
        return rnn_cell_forward(gx, gh)

    def cell_backward(
        self, dy: Array, cache: Any, need_gx: bool
    ) -> tuple[Array | None, Array, Array | float]:
        """Return dgx, dgh, and dh along the cell's direct path, 0 if it has none."""
        dgx, dgh = rnn_cell_backward(dy, cache, (need_gx, True))
        assert dgh is not None, "asked for above"
        return dgx, dgh, 0.0

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return the states y (..., T, d_hidden), from a state of zeros, and the cache."""
        return self.unroll(x, None, rng)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Go back through time; return dx."""
        if not (need_dx or self.trainable):
            return None
        return self.unroll_backward(dy, cache, grads, need_dx)[0]

    def unroll(self, x: Array, h0: Array | None = None, rng: Rng = None) -> tuple[Array, Any]:
        """Run through time from a state.

        Parameters
        ----------
        x : array, shape (..., T, d)
            T is at least 1.
        h0 : array, shape (..., d_hidden), optional
            The state before the first step; by default zeros.
        rng : numpy.random.Generator, optional
            Turns dropout on, with a new mask at every step.

        Returns
        -------
        y : array, shape (..., T, d_hidden)
            The state after every step.
        cache : RecurrentCache
        """
        if x.ndim < 2 or x.shape[-2] == 0:
            raise ShapeError(f"x has shape {tuple(x.shape)}, expected (..., T, d), T at least 1")
        *lead, T, _ = x.shape
        xp = get_xp(x)
        h = xp.zeros((*lead, self.d_hidden), dtype=x.dtype) if h0 is None else h0
        expect_shape("h0", h, *lead, self.d_hidden)
        gx, x_cache = self.x_proj.forward(x, rng)  # (..., T, gates d_hidden): all steps at once
        states, steps = [], []
        for t in range(T):
            gh, h_cache = self.h_proj.forward(h, rng)  # (..., gates d_hidden)
            h, cell = self.cell(gx[..., t, :], gh, h)  # (..., d_hidden)
            states.append(h[..., None, :])
            steps.append((h_cache, cell))
        y = xp.concatenate(states, axis=-2)  # (..., T, d_hidden)
        return y, RecurrentCache(x_cache, steps, y.shape)

    def unroll_backward(
        self, dy: Array, cache: RecurrentCache, grads: Grads, need_dx: bool = True
    ) -> tuple[Array | None, Array]:
        """Go back through time; return dx (None if not needed) and dh0."""
        expect_shape("dy", dy, *cache.shape)
        need_gx = need_dx or self.x_proj.trainable
        xp = get_xp(dy)
        dh: Any = xp.zeros((*dy.shape[:-2], self.d_hidden), dtype=dy.dtype)  # from later steps
        dgx: list[Any] = []
        for t in reversed(range(len(cache.steps))):
            h_cache, cell = cache.steps[t]
            dgx_t, dgh, direct = self.cell_backward(dh + dy[..., t, :], cell, need_gx)
            through_h: Any = self.h_proj.backward(dgh, h_cache, grads)
            dh = direct + through_h  # (..., d_hidden)
            dgx.append(None if dgx_t is None else dgx_t[..., None, :])
        if not need_gx:
            return None, dh
        of_steps = xp.concatenate(dgx[::-1], axis=-2)  # (..., T, gates d_hidden)
        return self.x_proj.backward(of_steps, cache.x, grads, need_dx), dh

    def extend(self, x: Array, memory: StateMemory | None = None) -> tuple[Array, StateMemory]:
        """Return y for the newest positions `x` (..., T, d), and the state after them."""
        flat = x.reshape(-1, *x.shape[-2:])  # (rows, T, d)
        y, _ = self.unroll(flat, None if memory is None else memory.state())
        known = (0,) * len(flat) if memory is None else memory.lengths
        return y.reshape(*x.shape[:-1], self.d_hidden), StateMemory(y, known)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of the two linear layers for one step."""
        if not (need_dx or self.trainable):
            return Flops(self.x_proj.flops(T).forward + self.h_proj.flops(T).forward, 0)
        return self.x_proj.flops(T, need_dx).plus(self.h_proj.flops(T, True))


class GRU(RNN):
    """The gated recurrent unit, h_t = (1 - z) n + z h_(t-1), and y_t = h_t; PyTorch's, one layer.

    The gates r, z and n stand one after the other in both projections, (3 d_hidden, d) and
    (3 d_hidden, d_hidden), as in PyTorch's ``weight_ih_l0`` and ``weight_hh_l0``. So LoRA on a
    projection has one A for its three gates.

    Parameters
    ----------
    d, d_hidden : int
        Lengths of an input and of the hidden state.
    rng : numpy.random.Generator
        Draws the weights, from a normal distribution of variance 1 / (3 d_hidden).
    bias : bool
        Whether both linear layers have a bias, which starts at zero.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GRU, LoraConfig, inject
    >>> rng = np.random.default_rng(0)
    >>> gru = inject(GRU(3, 8, rng), LoraConfig(r=2, target_modules=["x_proj", "h_proj"]), rng)
    >>> {name: p.shape for name, p in gru.parameters().items() if p.trainable}
    {'x_proj.A': (2, 3), 'x_proj.B': (24, 2), 'h_proj.A': (2, 8), 'h_proj.B': (24, 2)}
    >>> x = rng.standard_normal((5, 3)).astype(np.float32)
    >>> y, _ = gru.forward(x)
    >>> _, memory = gru.extend(x[:4])  # four positions, then the fifth from the state after them
    >>> bool(np.allclose(gru.extend(x[4:], memory)[0], y[4:], atol=1e-6))
    True
    """

    gates = 3

    def cell(self, gx: Array, gh: Array, h: Array) -> tuple[Array, Any]:
        """Return the state after a step and the cell's cache."""
        return gru_cell_forward(gx, gh, h)

    def cell_backward(
        self, dy: Array, cache: Any, need_gx: bool
    ) -> tuple[Array | None, Array, Array | float]:
        """Return dgx, dgh, and dh along the direct path, z h."""
        dgx, dgh, dh = gru_cell_backward(dy, cache, (need_gx, True, True))
        assert dgh is not None and dh is not None, "asked for above"
        return dgx, dgh, dh
