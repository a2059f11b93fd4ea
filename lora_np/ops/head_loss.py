"""The output head and its cross-entropy in one operation, over labelled tokens only.

Shapes: x (..., d), W (V, d), targets (...). With K the n tokens that are kept, those whose target
is not `ignore_index`, this is cross-entropy (loss.py) of the logits z = x W^T (linear.py)::

    z = x_K W^T                                       (n, V)
    L = 1 / count  sum_{i in K} (log sum_j exp(z_ij) - z_i,target(i))
    dz_ij = (softmax(z_i)_j - 1[j = target(i)]) / count
    dx_K = dz W, zero for the other tokens            dW = dz^T x_K

Two things make it more than the two pairs in a row. Tokens that are ignored, such as those of a
prompt, are never multiplied by W. And the logits are worked in chunks of rows: with a vocabulary of
49152 the logits of 512 tokens alone would take 100 MB, several times over. If all fit in one chunk,
backward finds their exponentials in the cache; otherwise it computes each chunk again, which costs
one product more. (The fast twin forms dx in forward and needs neither; it is for a frozen W.)

Source: the derivations of linear.py and loss.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.ops.contract import Need, expect_finite, expect_last, expect_shape, expect_some, wanted
from lora_np.ops.linear import rows, sum_last
from lora_np.ops.loss import IGNORE_INDEX, divisor_of, kept_targets

CHUNK = 128 * 49152  # logits in a chunk: 25 MB in float32


class Softmax(NamedTuple):
    """softmax(z) = e / t for the logits z of a chunk."""

    e: Array  # (n, V), exp(z - largest)
    t: Array  # (n, 1), row sums of e


class HeadLossCache(NamedTuple):
    """What :func:`head_loss_backward` reads."""

    x: Array  # (n, d), the kept rows
    W: Array  # (V, d)
    target: Array  # (n,)
    places: Array | None  # (n,) of the kept rows among all rows; None if all are kept
    divisor: int
    shape: tuple[int, ...]  # of x as it was given
    softmax: Softmax | None  # of all kept rows, if they fit in one chunk


def head_loss_forward(
    x: Array,
    W: Array,
    targets: Array,
    ignore_index: int = IGNORE_INDEX,
    count: int | None = None,
) -> tuple[Array, HeadLossCache]:
    """Compute the cross-entropy of `targets` under softmax(x W^T), in nats per token.

    Parameters
    ----------
    x : array, shape (..., d)
    W : array, shape (V, d)
    targets : integer array, shape (...)
    ignore_index : int
        Tokens with this target are ignored, and never multiplied by W.
    count : int, optional
        Divisor of the sum; by default the number of kept tokens.

    Returns
    -------
    loss : scalar array of the logits' dtype
    cache : HeadLossCache

    Raises
    ------
    ValueError
        If no token is kept and no count is given, or a target lies outside 0 .. V - 1.
    FloatingPointError
        If the logits of a kept token hold inf or nan, or the logit of a target is -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import head_loss_backward, head_loss_forward
    >>> x, W = np.array([[1.0], [1.0]]), np.log(np.array([[1.0], [1.0], [2.0]]))
    >>> loss, cache = head_loss_forward(x, W, np.array([2, -100]))  # one is ignored
    >>> f"{loss:.4f}"  # -log(2/4)
    '0.6931'
    >>> dx, dW = head_loss_backward(1.0, cache)
    >>> dW[:, 0].round(6).tolist(), dx[:, 0].round(4).tolist()  # dz is dW, as x is 1
    ([0.25, 0.25, -0.5], [-0.3466, 0.0])
    """
    cache = kept_rows(x, W, targets, ignore_index, count)
    X, target = cache.x, cache.target  # (n, d), (n,)
    nll = get_xp(x).empty(len(X), dtype=np.result_type(x.dtype, W.dtype))  # (n,)
    parts, softmax = [*chunks(len(X), len(W))], None
    for part in parts:
        softmax = None  # frees the memory of the chunk before
        softmax, nll[part] = exponentials(X[part] @ W.T, target[part])
    loss = nll.sum() / cache.divisor
    expect_finite("the targets' log-probabilities", loss.real)
    return loss, cache._replace(softmax=softmax if len(parts) == 1 else None)


def head_loss_backward(
    dy: Array | float, cache: HeadLossCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dx, dW) of :func:`head_loss_forward`; the targets have no gradient."""
    x, W, target, places, divisor, shape, softmax = cache
    need_x, need_W = wanted(need, 2)
    xp = get_xp(x)
    dx = xp.empty(x.shape, dtype=x.dtype) if need_x else None  # (n, d)
    dW = xp.zeros(W.shape, dtype=W.dtype) if need_W else None  # (V, d)
    for part in chunks(len(x), len(W)) if need_x or need_W else ():
        again = softmax or exponentials(x[part] @ W.T, target[part])[0]
        dz = of_logits(dy / divisor, again, target[part], keep=softmax is not None)  # (n, V)
        if dx is not None:
            dx[part] = dz @ W
        if dW is not None:
            dW += dz.T @ x[part]
        del again, dz  # the memory, before the next chunk is computed
    if dx is not None:
        dx = at_places(places, dx, shape)
    return dx, dW


def kept_rows(
    x: Array, W: Array, targets: Array, ignore_index: int, count: int | None
) -> HeadLossCache:
    """Check the arguments of :func:`head_loss_forward`; return what is kept of x and targets."""
    _check_shapes(x, W, targets)
    kept, target = kept_targets(targets.reshape(-1), ignore_index, len(W))  # (N,), (N,)
    divisor = divisor_of(kept, ignore_index, count)
    X, places = rows(x), None if kept.all() else get_xp(x).flatnonzero(kept)  # (N, d), (n,)
    if places is not None:
        X, target = X[places], target[places]  # (n, d), (n,)
    return HeadLossCache(X, W, target, places, divisor, x.shape, None)


def of_logits(weight: Array | float, softmax: Softmax, target: Array, keep: bool) -> Array:
    """Return the gradient dz (n, V) of a chunk's logits, in softmax's memory unless `keep`."""
    xp, (e, t) = get_xp(target), softmax
    dz = xp.multiply(e, (weight / t).astype(e.dtype), out=None if keep else e)  # (n, V)
    dz[xp.arange(len(dz)), target] -= weight
    return dz


def exponentials(z: Array, target: Array) -> tuple[Softmax, Array]:
    """Return the softmax of the logits z (n, V), in their memory, and the targets' losses (n,)."""
    xp = get_xp(z)
    largest = z.real.max(axis=1, keepdims=True)  # (n, 1)
    expect_finite("logits", largest)
    with np.errstate(over="ignore"):  # a difference that overflows to -inf has probability 0
        z -= largest
    of_target = z[xp.arange(len(z)), target]  # (n,)
    e = xp.exp(z, out=z)
    t = sum_last(e)  # (n, 1)
    return Softmax(e, t), xp.log(t[:, 0]) - of_target


def chunks(n: int, V: int) -> Iterator[slice]:
    """Yield the rows of each chunk of at most CHUNK logits."""
    step = max(1, CHUNK // V)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def at_places(places: Array | None, dx: Array, shape: tuple[int, ...]) -> Array:
    """Return the gradient of all rows: dx (n, d) at its places, zero elsewhere."""
    if places is None:
        return dx.reshape(shape)
    whole = get_xp(dx).zeros(shape, dtype=dx.dtype)
    rows(whole)[places] = dx
    return whole


def _check_shapes(x: Array, W: Array, targets: Array) -> None:
    """Raise unless the arguments of :func:`head_loss_forward` fit."""
    expect_some("x", x)
    expect_shape("W", W, None, None)
    expect_last("x", x, W.shape[1])
    if len(W) == 0:
        raise ShapeError(f"W has shape {tuple(W.shape)}, expected at least 1 row")
    if targets.shape != x.shape[:-1]:
        raise ShapeError(
            f"targets has shape {tuple(targets.shape)}, expected {tuple(x.shape[:-1])}, "
            f"as x has shape {tuple(x.shape)}"
        )
