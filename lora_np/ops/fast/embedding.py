"""The embedding's gradient from sorted tokens.

dW = H^T dy adds up the rows of dy that belong to one token. Once the tokens are sorted these rows
stand together, and one pass adds up each run of them; adding row after row to its place in dW, as
the textbook form does, takes several times as long.

What it gains: with the textbook pair a full step takes 1.00 / 1.00 / 1.00 times as long (tiny /
small / medium; 2026-11-26; ``python -m tests.benchmarks --only twins``). In a LoRA step the table
is frozen.
"""

from __future__ import annotations

from lora_np.backend import Array, get_xp
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.embedding import EmbeddingCache, embedding_forward

__all__ = ["embedding_backward", "embedding_forward"]


def embedding_backward(dy: Array, cache: EmbeddingCache, need: Need = None) -> tuple[Array | None]:
    """Return (dW,) of :func:`lora_np.ops.embedding_forward`, shape (V, d)."""
    if not wanted(need, 1)[0]:
        return (None,)
    expect_shape("dy", dy, *cache.tokens.shape, cache.table[1])
    xp, tokens = get_xp(dy), cache.tokens.reshape(-1)  # (N,)
    order = tokens.argsort()
    tokens = tokens[order]
    starts = xp.flatnonzero(xp.diff(tokens, prepend=-1))  # of the runs of one token
    dW = xp.zeros(cache.table, dtype=dy.dtype)  # (V, d)
    g = dy.reshape(len(tokens), cache.table[1])  # (N, d)
    dW[tokens[starts]] = xp.add.reduceat(g[order], starts, 0)
    return (dW,)
