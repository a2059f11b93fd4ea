"""One step of a recurrent network: the hidden state from its two projections, without Parameters.

Shapes: h (..., H), the state before the step; the projections of the input and of the state, with
the gates one after the other::

    gx = x W_ih^T + b_ih,  gh = h W_hh^T + b_hh         (..., H) for the RNN, (..., 3 H) for the GRU

    rnn_cell   h' = tanh(gx + gh)
    gru_cell   r = sigma(gx_r + gh_r)                   reset
               z = sigma(gx_z + gh_z)                   update
               n = tanh(gx_n + r * gh_n)                candidate; r acts on W_hn h + b_hn
               h' = (1 - z) * n + z * h

Both projections are linear maps (linear.py), so LoRA adapts them as it adapts any other.

Derivation. With tanh' = 1 - tanh^2 and sigma' = sigma (1 - sigma), entry by entry::

    rnn_cell   dgx = dgh = dy (1 - h'^2)
    gru_cell   dn = dy (1 - z),  dz = dy (h - n),  dh = dy z       the direct path to h
               du = dn (1 - n^2),  dr = du gh_n                    u = gx_n + r gh_n
               dgx = [dr r (1 - r), dz z (1 - z), du]
               dgh = [dr r (1 - r), dz z (1 - z), du r]

Through time. h_t = cell(gx_t, gh_t, h_(t-1)) for t = 1 .. T, and each y_t = h_t is also an output.
So h_t reaches the loss by y_t, by the next cell's gh and by the next cell's direct path, and the
three gradients add up::

    dh_t = dy_t + dgh_(t+1) W_hh + dh of cell t+1       from t = T, where the last two are zero
    dW_hh = sum_t dgh_t^T h_(t-1),  dW_ih = sum_t dgx_t^T x_t,  dx_t = dgx_t W_ih

W_hh is one matrix that is used T times, so its gradient is a sum over time.

Sources: backpropagation through time, Werbos (1990), Proc. IEEE 78, 1550; the GRU, Cho et al.
(2014), arXiv:1406.1078; this placement of r is that of cuDNN and PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import Array, get_xp
from lora_np.ops.activation import sigmoid
from lora_np.ops.contract import Need, expect_same, expect_shape, wanted


class RnnCellCache(NamedTuple):
    """What :func:`rnn_cell_backward` reads."""

    y: Array  # (..., H), the state after the step


def rnn_cell_forward(gx: Array, gh: Array) -> tuple[Array, RnnCellCache]:
    """Compute the next hidden state tanh(gx + gh).

    Parameters
    ----------
    gx, gh : arrays, shape (..., H)
        The projections of the input and of the state before the step.

    Returns
    -------
    y : array, shape (..., H)
        The state after the step.
    cache : RnnCellCache

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rnn_cell_backward, rnn_cell_forward
    >>> y, cache = rnn_cell_forward(np.array([0.5, 3.0]), np.array([-0.5, 3.0]))
    >>> y.round(4).tolist()
    [0.0, 1.0]
    >>> rnn_cell_backward(np.ones(2), cache)[0].round(4).tolist()  # a saturated unit learns little
    [1.0, 0.0]
    """
    expect_same("gh", gh, "gx", gx)
    y = get_xp(gx).tanh(gx + gh)
    return y, RnnCellCache(y)


def rnn_cell_backward(
    dy: Array, cache: RnnCellCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dgx, dgh) of :func:`rnn_cell_forward`; the two are equal."""
    need_gx, need_gh = wanted(need, 2)
    expect_shape("dy", dy, *cache.y.shape)
    if not (need_gx or need_gh):
        return None, None
    du = dy * (1.0 - cache.y * cache.y)
    return du if need_gx else None, du.copy() if need_gh else None


class GruCellCache(NamedTuple):
    """What :func:`gru_cell_backward` reads; all (..., H)."""

    r: Array
    z: Array
    n: Array
    gh_n: Array
    h: Array


def gru_cell_forward(gx: Array, gh: Array, h: Array) -> tuple[Array, GruCellCache]:
    """Compute the next hidden state of a GRU.

    Parameters
    ----------
    gx, gh : arrays, shape (..., 3 * H)
        The projections of the input and of `h`: the parts for r, z and n, in this order.
    h : array, shape (..., H)
        The state before the step.

    Returns
    -------
    y : array, shape (..., H)
        The state after the step.
    cache : GruCellCache

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import gru_cell_backward, gru_cell_forward
    >>> gx, gh, h = np.array([0.0, 0.0, 0.0]), np.zeros(3), np.array([0.8])
    >>> y, cache = gru_cell_forward(gx, gh, h)  # r = z = 1/2 and n = 0
    >>> y.tolist()
    [0.4]
    >>> dgx, dgh, dh = gru_cell_backward(np.ones(1), cache)
    >>> dgx.tolist(), dgh.tolist(), dh.tolist()
    ([0.0, 0.2, 0.5], [0.0, 0.2, 0.25], [0.5])
    """
    H = h.shape[-1]
    expect_shape("gx", gx, *h.shape[:-1], 3 * H)
    expect_same("gh", gh, "gx", gx)
    r = sigmoid(gx[..., :H] + gh[..., :H])  # (..., H)
    z = sigmoid(gx[..., H : 2 * H] + gh[..., H : 2 * H])
    gh_n = gh[..., 2 * H :]
    n = get_xp(h).tanh(gx[..., 2 * H :] + r * gh_n)
    return (1.0 - z) * n + z * h, GruCellCache(r, z, n, gh_n, h)


def gru_cell_backward(
    dy: Array, cache: GruCellCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dgx, dgh, dh) of :func:`gru_cell_forward`; dh is the direct path's alone."""
    r, z, n, gh_n, h = cache
    need_gx, need_gh, need_h = wanted(need, 3)
    expect_shape("dy", dy, *h.shape)
    dgx = dgh = None
    if need_gx or need_gh:
        du = dy * (1.0 - z) * (1.0 - n * n)  # (..., H)
        da_r = du * gh_n * r * (1.0 - r)
        da_z = dy * (h - n) * z * (1.0 - z)
        join = get_xp(dy).concatenate
        dgx = join([da_r, da_z, du], axis=-1) if need_gx else None  # (..., 3 H)
        dgh = join([da_r, da_z, du * r], axis=-1) if need_gh else None
    return dgx, dgh, dy * z if need_h else None
