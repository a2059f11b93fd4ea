"""Prefix tuning: n trainable keys and values stand before the text's own, in every layer.

In layer i, with the rows P_k, P_v (n, d) of its prefix P (n, 2 d)::

    k = [P_k; k_proj(x)]      v = [P_v; v_proj(x)]      (..., n + T, d)
    y = o_proj(attention(q_proj(x), k, v))              every query may look at all of the prefix

The text's positions start at n, as if n tokens stood before it. The gradient of P_k is that of the
first n rows of k, summed over the batch: the pair of virtual.py, for k and for v.

Trained directly, P is sensitive to the learning rate. The paper draws it from an MLP, whose lower
half is the same in all layers; after training only P is kept::

    H = tanh(E W1^T + b1)     P = H W2^T + b2           E (n, d), W1 (h, d), H (n, h), W2 (2 d, h)

Derivation: P is linear in H, and tanh' = 1 - tanh^2::

    dW2 = dP^T H    db2 = sum dP    da = (dP W2) * (1 - H * H)
    dW1 = da^T E    db1 = sum da    dE = da W1

It does not merge: no weight of the base gives attention n more keys. It does not start at the base.

Start: P or E from N(0, 1); W1, b1, W2, b2 from U(-1/sqrt(in), 1/sqrt(in)), as PEFT's.

Source: Li and Liang (2021), arXiv:2101.00190, section 4.3. Names follow PEFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, like
from lora_np.layers import CausalSelfAttention, Layer, TextStart, rebuild
from lora_np.methods.virtual import VirtualAdapter, VirtualTokens, prepend_backward, prepend_forward
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.parameters import Grads, Parameter


class EncoderCache(NamedTuple):
    """What :func:`encoder_backward` reads."""

    E: Array
    W1: Array
    H: Array
    W2: Array


def encoder_forward(E: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> tuple[Array, Any]:
    """Return P = tanh(E W1^T + b1) W2^T + b2 (n, 2 d), and the cache."""
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
        dE = da @ W1 if need_E else None  # (n, d)
        dW1 = da.T @ E if need_W1 else None  # (h, d)
        db1 = da.sum(axis=0) if need_b1 else None  # (h,)
    dW2 = dP.T @ H if need_W2 else None  # (2 d, h)
    db2 = dP.sum(axis=0) if need_b2 else None  # (2 d,)
    return dE, dW1, db1, dW2, db2


class PrefixAttention(CausalSelfAttention, VirtualAdapter):
    """Attention with a prefix: its own Parameters are P, or the MLP's E, W1, b1, W2 and b2."""

    def __init__(self, attention: CausalSelfAttention, **prefix: Parameter) -> None:
        vars(self).update(vars(attention), **prefix)

    @property
    def base(self) -> CausalSelfAttention:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The attention without the prefix, over the same projections."""
        plain = object.__new__(CausalSelfAttention)
        vars(plain).update({k: x for k, x in vars(self).items() if not isinstance(x, Parameter)})
        return plain

    def _prefix(self) -> list[Parameter]:
        return [part for _, part in self.parts() if isinstance(part, Parameter)]

    def virtual_tokens(self) -> tuple[Array, Any]:
        """Return P (n, 2 d), and the cache of the MLP."""
        values = [p.value for p in self._prefix()]
        return encoder_forward(*values) if len(values) > 1 else (values[0], None)

    @property
    def n_before(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of keys before the text's."""
        return len(self._prefix()[0].value)

    def with_keys_before(self, k: Array, v: Array) -> tuple[Array, Array, Any]:
        """Return [P_k; k] and [P_v; v] (..., n + T, d), and the cache."""
        (P, c_P), d = self.virtual_tokens(), k.shape[-1]
        k, c_k = prepend_forward(k, P[:, :d])
        v, c_v = prepend_forward(v, P[:, d:])
        return k, v, (c_P, c_k, c_v)

    def keys_before_backward(
        self, dk: Array | None, dv: Array | None, cache: Any, grads: Grads
    ) -> tuple[Array | None, Array | None]:
        """Add the prefix's gradients; return dk and dv (..., T, d)."""
        if dk is None or dv is None:
            return dk, dv
        c_P, c_k, c_v = cache
        held = self._prefix()
        need = [p.trainable for p in held]
        dk, dP_k = prepend_backward(dk, c_k, (True, any(need)))
        dv, dP_v = prepend_backward(dv, c_v, (True, any(need)))
        if dP_k is not None and dP_v is not None:
            dP = get_xp(dP_k).concatenate((dP_k, dP_v), axis=1)  # (n, 2 d)
            for p, dp in zip(held, (dP,) if c_P is None else encoder_backward(dP, c_P, need)):
                grads.add(p, dp)
        return dk, dv

    def _inward_needs(self, need_dx: bool) -> list[bool]:
        need_q, need_k, need_v = super()._inward_needs(need_dx)
        both = need_k or need_v or any(p.trainable for p in self._prefix())
        return [need_q, both, both]


@dataclass(frozen=True)
class PrefixConfig(VirtualTokens):
    """The options of prefix tuning.

    Parameters
    ----------
    num_virtual_tokens : int
        n, the number of keys and values. A text may be n tokens shorter than the base's block_size.
    prefix_projection : bool
        Train an MLP that returns P. Files hold only P, which is trained directly once loaded.
    encoder_hidden_size : int, optional
        h, the MLP's width inside; by default d.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, PrefixConfig, inject
    >>> rng = np.random.default_rng(0)
    >>> base = GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=2, n_head=2, d_model=4), rng)
    >>> adapted = inject(base, PrefixConfig(num_virtual_tokens=5), rng)
    >>> {name: p.shape for name, p in adapted.parameters().items() if p.trainable}
    {'h.0.attn.P': (5, 8), 'h.1.attn.P': (5, 8)}
    """

    num_virtual_tokens: int = 20
    prefix_projection: bool = False
    encoder_hidden_size: int | None = None

    name = "prefix"
    peft_type = "PREFIX_TUNING"

    def wrap(self, path: str, layer: Any, rng: np.random.Generator) -> Layer:
        """Return the model with a prefix in every attention layer."""
        start, W, n = self.start_of(layer), layer.table().W.value, self.num_virtual_tokens
        d = W.shape[1]
        h = self.encoder_hidden_size or d

        def make(x: np.ndarray) -> Parameter:
            return Parameter(like(x.astype(W.dtype), W))

        def half(i: int, out: int, width: int) -> dict[str, Parameter]:
            W, b = (rng.uniform(-1.0, 1.0, s) / math.sqrt(width) for s in ((out, width), (out,)))
            return {f"W{i}": make(W), f"b{i}": make(b)}

        lower = {}  # the same in every layer
        if self.prefix_projection:
            lower = {"E": make(rng.standard_normal((n, d))), **half(1, h, d)}

        def adapt(_: str, part: Layer) -> Layer | None:
            if part is start:
                return TextStart(start.first + n)
            if not isinstance(part, CausalSelfAttention):
                return None
            if lower:
                return PrefixAttention(part, **lower, **half(2, 2 * d, h))
            return PrefixAttention(part, P=make(rng.standard_normal((n, 2 * d))))

        return rebuild(layer, lambda p: p, adapt)
