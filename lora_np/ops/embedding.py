"""Embedding: for every token, the row of a table with that number.

Shapes: tokens (...) integers, N in all, W (V, d), y (..., d). With the one-hot matrix H (N, V),
whose row n has a single 1 in column tokens[n], the lookup is the linear map y = H W. So
dW = H^T dy: row v of dW is the sum of dy over the positions with token v. H is nearly all zeros and
is never formed.
"""

from __future__ import annotations

from typing import NamedTuple

from lora_np.backend import Array, get_xp
from lora_np.ops.contract import Need, expect_shape, wanted


class EmbeddingCache(NamedTuple):
    """What :func:`embedding_backward` reads."""

    tokens: Array  # (...)
    table: tuple[int, int]  # the shape (V, d) of W


def embedding_forward(tokens: Array, W: Array) -> tuple[Array, EmbeddingCache]:
    """Look up `tokens` (...) in the table `W` (V, d).

    Parameters
    ----------
    tokens : integer array, shape (...)
        Numbers from 0 to V - 1.
    W : array, shape (V, d)

    Returns
    -------
    y : array, shape (..., d)
    cache : EmbeddingCache

    Raises
    ------
    IndexError
        If a token lies outside 0 .. V - 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import embedding_backward, embedding_forward
    >>> W = np.array([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1]])
    >>> y, cache = embedding_forward(np.array([2, 0, 2]), W)
    >>> y.tolist()
    [[2.0, 2.1], [0.0, 0.1], [2.0, 2.1]]
    >>> (dW,) = embedding_backward(np.ones((3, 2)), cache)
    >>> dW.tolist()  # token 2 occurs twice, token 1 does not occur
    [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]
    """
    expect_shape("W", W, None, None)
    check_tokens(tokens, W.shape[0])
    return W[tokens], EmbeddingCache(tokens, W.shape)


def embedding_backward(dy: Array, cache: EmbeddingCache, need: Need = None) -> tuple[Array | None]:
    """Return (dW,) of :func:`embedding_forward`, shape (V, d)."""
    if not wanted(need, 1)[0]:
        return (None,)
    expect_shape("dy", dy, *cache.tokens.shape, cache.table[1])
    xp = get_xp(dy)
    dW = xp.zeros(cache.table, dtype=dy.dtype)  # (V, d)
    xp.add.at(dW, cache.tokens, dy)  # dW[tokens] += dy would count a repeated token once
    return (dW,)


def check_tokens(tokens: Array, vocab_size: int) -> None:
    """Raise IndexError unless all tokens lie in 0 .. vocab_size - 1."""
    if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocab_size):
        raise IndexError(
            f"tokens lie in {int(tokens.min())} .. {int(tokens.max())}, "
            f"expected 0 .. {vocab_size - 1}: the table W has {vocab_size} rows"
        )
