"""Losses: cross-entropy from logits, and the mean squared error.

Cross-entropy over the set K of kept tokens, whose target is not `ignore_index`; z (..., V) are the
logits and n is a token::

    L = 1 / count  sum_{n in K} (log sum_j exp(z_nj) - z_n,target(n))        in nats
    dL/dz_nj = (softmax(z_n)_j - 1[j = target(n)]) / count,   zero for ignored tokens

By default `count` is the number of kept tokens, so that L is their mean. If a batch is split, by
gradient accumulation or over threads, each part gets the count of the whole batch: the losses and
gradients of the parts then add up to those of the batch. The mean of the parts' means would not.

Mean squared error over all N entries: L = 1 / N sum (y - target)^2, dL/dy = 2 (y - target) / N.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.contract import Need, expect_finite, expect_same, expect_some, wanted
from lora_np.ops.linear import rows, sum_last

IGNORE_INDEX = -100  # the target of an ignored token, as in PyTorch


class CrossEntropyCache(NamedTuple):
    """What :func:`cross_entropy_backward` reads."""

    p: Array  # (N, V), softmax of the logits
    targets: Array  # (N,), 0 where ignored
    kept: Array  # (N,), bool
    divisor: int
    shape: tuple[int, ...]  # of the logits


def cross_entropy_forward(
    logits: Array, targets: Array, ignore_index: int = IGNORE_INDEX, count: int | None = None
) -> tuple[Array, CrossEntropyCache]:
    """Compute the cross-entropy of `targets` under softmax(logits), in nats per token.

    Parameters
    ----------
    logits : array, shape (..., V)
    targets : integer array, shape (...)
    ignore_index : int
        Tokens with this target are ignored.
    count : int, optional
        Divisor of the sum; by default the number of kept tokens.

    Returns
    -------
    loss : scalar array of the logits' dtype
    cache : CrossEntropyCache

    Raises
    ------
    ValueError
        If no token is kept and no count is given, or a target lies outside 0 .. V - 1.
    FloatingPointError
        If a row of the logits holds inf or nan, or the logit of a target is -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import cross_entropy_backward, cross_entropy_forward
    >>> logits = np.log(np.array([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]))
    >>> loss, cache = cross_entropy_forward(logits, np.array([2, -100]))  # one is ignored
    >>> f"{loss:.4f}"  # -log(2/4)
    '0.6931'
    >>> cross_entropy_backward(1.0, cache)[0].round(6).tolist()  # probabilities - one-hot target
    [[0.25, 0.25, -0.5], [0.0, 0.0, 0.0]]
    """
    if targets.shape != logits.shape[:-1]:
        raise ShapeError(
            f"targets has shape {tuple(targets.shape)}, expected {tuple(logits.shape[:-1])}, "
            f"as logits has shape {tuple(logits.shape)}"
        )
    expect_some("logits", logits)
    xp = get_xp(logits)
    z = rows(logits)  # (N, V)
    kept, target = kept_targets(targets.reshape(-1), ignore_index, z.shape[1])  # (N,), (N,)
    count = divisor_of(kept, ignore_index, count)
    z = _shifted(z)  # (N, V)
    e = xp.exp(z)  # (N, V)
    t = sum_last(e)  # (N, 1)
    nll = xp.log(t[:, 0]) - z[xp.arange(len(z)), target]  # (N,)
    loss = nll[kept].sum() / count
    expect_finite("the targets' log-probabilities", loss.real)
    return loss, CrossEntropyCache(e / t, target, kept, count, logits.shape)


def cross_entropy_backward(
    dy: Array | float, cache: CrossEntropyCache, need: Need = None
) -> tuple[Array | None]:
    """Return (dlogits,) of :func:`cross_entropy_forward`; the targets have no gradient."""
    if not wanted(need, 1)[0]:
        return (None,)
    p, target, kept, divisor, shape = cache
    weight = (kept * (dy / divisor)).astype(p.dtype)  # (N,), zero for ignored tokens
    dz = weight[:, None] * p  # (N, V)
    dz[get_xp(p).arange(len(p)), target] -= weight
    return (dz.reshape(shape),)


def _shifted(z: Array) -> Array:
    """Return z (N, V) minus the largest number of each row, so that no exponent is above 0."""
    largest = z.real.max(axis=1, keepdims=True)  # (N, 1)
    expect_finite("logits", largest)
    with np.errstate(over="ignore"):  # a difference that overflows to -inf has probability 0
        return z - largest


def kept_targets(targets: Array, ignore_index: int, vocab_size: int) -> tuple[Array, Array]:
    """Return which tokens are kept, and the targets with 0 for ignored tokens."""
    kept = targets != ignore_index  # (N,)
    target = targets * kept  # (N,)
    if target.size and (int(target.min()) < 0 or int(target.max()) >= vocab_size):
        raise ValueError(
            f"targets lie in {int(target.min())} .. {int(target.max())}, "
            f"expected 0 .. {vocab_size - 1} or ignore_index = {ignore_index}"
        )
    return kept, target


def divisor_of(kept: Array, ignore_index: int, count: int | None) -> int:
    """Return the count that is given, or the number of kept tokens; raise if there is none."""
    if count is None:
        count = int(kept.sum())
    if count < 1:
        raise ValueError(f"no token is kept: every target is ignore_index = {ignore_index}")
    return count


class MseCache(NamedTuple):
    """What :func:`mse_backward` reads."""

    error: Array  # y - target


def mse_forward(y: Array, target: Array) -> tuple[Array, MseCache]:
    """Compute the mean of (y - target)^2 over all entries of two arrays of one shape.

    Parameters
    ----------
    y, target : arrays, shape (...)

    Raises
    ------
    ValueError
        If the arrays are empty: there is nothing to average.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import mse_backward, mse_forward
    >>> loss, cache = mse_forward(np.array([1.0, 4.0]), np.array([1.0, 2.0]))
    >>> float(loss)
    2.0
    >>> mse_backward(1.0, cache)[0].tolist()
    [0.0, 2.0]
    """
    expect_same("target", target, "y", y)
    error = y - target
    if error.size == 0:
        raise ValueError(f"y has shape {tuple(y.shape)}, expected at least one entry to average")
    return (error * error).mean(), MseCache(error)


def mse_backward(
    dy: Array | float, cache: MseCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dy_in, dtarget) of :func:`mse_forward`."""
    need_y, need_target = wanted(need, 2)
    if not (need_y or need_target):
        return None, None
    e = cache.error
    g = (e * (dy * (2.0 / e.size))).astype(e.dtype)
    return (g if need_y else None), (-g if need_target else None)
