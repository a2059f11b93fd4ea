"""The MLP that computes the rows P of a prefix while it is trained; afterwards only P is kept.

::

    H = tanh(E W1^T + b1)     P = H W2^T + b2           E (n, c), W1 (h, c), H (n, h), W2 (2 c, h)

Derivation. P is linear in H, and tanh' = 1 - tanh^2. With a = E W1^T + b1 (n, h)::

    dW2 = dP^T H    db2 = sum dP    da = (dP W2) * (1 - H * H)
    dW1 = da^T E    db1 = sum da    dE = da W1

Source: Li and Liang (2021), arXiv:2101.00190, section 4.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lora_np.backend import Array, get_xp
from lora_np.ops.contract import Need, expect_shape, wanted


class EncoderCache(NamedTuple):
    """What :func:`encoder_backward` reads."""

    E: Array
    W1: Array
    H: Array
    W2: Array


def encoder_forward(E: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> tuple[Array, Any]:
    """Return P = tanh(E W1^T + b1) W2^T + b2 (n, 2 c), and the cache."""
    H = get_xp(E).tanh(E @ W1.T + b1)  # (n, h)
    return H @ W2.T + b2, EncoderCache(E, W1, H, W2)


def encoder_backward(dP: Array, cache: EncoderCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dE, dW1, db1, dW2, db2) of :func:`encoder_forward`."""
    E, W1, H, W2 = cache
    need_E, need_W1, need_b1, need_W2, need_b2 = wanted(need, 5)
    expect_shape("dP", dP, len(H), len(W2))
    dE = dW1 = db1 = None
    if need_E or need_W1 or need_b1:
        da = (dP @ W2) * (1.0 - H * H)  # (n, h)
        dE = da @ W1 if need_E else None  # (n, c)
        dW1 = da.T @ E if need_W1 else None  # (h, d)
        db1 = da.sum(axis=0) if need_b1 else None  # (h,)
    dW2 = dP.T @ H if need_W2 else None  # (2 c, h)
    db2 = dP.sum(axis=0) if need_b2 else None  # (2 c,)
    return dE, dW1, db1, dW2, db2
