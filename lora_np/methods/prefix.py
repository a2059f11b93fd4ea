"""Prefix tuning: n trainable keys and values stand before the text's own, in every layer.

In layer i, with keys of width c = n_kv_head d_head, and the rows P_k, P_v (n, c) of its prefix
P (n, 2 c)::

    k = [P_k; k_proj(x)]      v = [P_v; v_proj(x)]      (..., n + T, c)
    y = o_proj(attention(q_proj(x), k, v))              every query may look at all of the prefix

The text's positions start at n, as if n tokens stood before it. Rotary attention turns the text's
keys alone: a prefix is trained as attention reads it. The gradient of P_k is that of the first n
rows of k, summed over the batch: the pair of virtual.py, for k and for v.

Trained directly, P is sensitive to the learning rate. So the paper computes P by an MLP, whose E,
W1 and b1 all layers share (encoder.py), and keeps only P after training.

It does not merge: no weight of the base gives attention n more keys. It does not start at the base:
P or E is drawn from N(0, 1), and W1, b1, W2, b2 from U(-1/sqrt(in), 1/sqrt(in)), as in PEFT.

Source: Li and Liang (2021), arXiv:2101.00190, section 4.3. Names follow PEFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp, like
from lora_np.layers import CausalSelfAttention, Layer, RotaryAttention, TextStart, rebuild
from lora_np.methods.encoder import encoder_backward, encoder_forward
from lora_np.methods.virtual import VirtualAdapter, VirtualTokens, prepend_backward, prepend_forward
from lora_np.parameters import Grads, Parameter


class PrefixAttention(CausalSelfAttention, VirtualAdapter):
    """Attention with a prefix: its own Parameters are P, or the MLP's E, W1, b1, W2 and b2."""

    kind: type[CausalSelfAttention] = CausalSelfAttention

    def __init__(self, attention: CausalSelfAttention, **prefix: Parameter) -> None:
        vars(self).update(vars(attention), **prefix)

    @property
    def base(self) -> CausalSelfAttention:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The attention without the prefix, over the same projections."""
        plain = object.__new__(self.kind)
        vars(plain).update({k: x for k, x in vars(self).items() if not isinstance(x, Parameter)})
        return plain

    def _prefix(self) -> list[Parameter]:
        return [part for _, part in self.parts() if isinstance(part, Parameter)]

    def virtual_tokens(self) -> tuple[Array, Any]:
        """Return P (n, 2 c), and the cache of the MLP."""
        values = [p.value for p in self._prefix()]
        return encoder_forward(*values) if len(values) > 1 else (values[0], None)

    @property
    def n_before(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of keys before the text's."""
        return len(self._prefix()[0].value)

    def with_keys_before(self, k: Array, v: Array) -> tuple[Array, Array, Any]:
        """Return [P_k; k] and [P_v; v] (..., n + T, c), and the cache."""
        (P, c_P), c = self.virtual_tokens(), k.shape[-1]
        k, c_k = prepend_forward(k, P[:, :c])
        v, c_v = prepend_forward(v, P[:, c:])
        return k, v, (c_P, c_k, c_v)

    def keys_before_backward(
        self, dk: Array | None, dv: Array | None, cache: Any, grads: Grads
    ) -> tuple[Array | None, Array | None]:
        """Add the prefix's gradients; return dk and dv (..., T, c)."""
        if dk is None or dv is None:
            return dk, dv
        c_P, c_k, c_v = cache
        held = self._prefix()
        need = [p.trainable for p in held]
        dk, dP_k = prepend_backward(dk, c_k, (True, any(need)))
        dv, dP_v = prepend_backward(dv, c_v, (True, any(need)))
        if dP_k is not None and dP_v is not None:
            dP = get_xp(dP_k).concatenate((dP_k, dP_v), axis=1)  # (n, 2 c)
            grads.add_all(held, (dP,) if c_P is None else encoder_backward(dP, c_P, need))
        return dk, dv

    def _inward_needs(self, need_dx: bool) -> list[bool]:
        need_q, need_k, need_v = super()._inward_needs(need_dx)
        both = need_k or need_v or any(p.trainable for p in self._prefix())
        return [need_q, both, both]


class PrefixRotaryAttention(  # pyright: ignore[reportIncompatibleVariableOverride]
    PrefixAttention, RotaryAttention
):
    """Rotary attention with a prefix, whose keys are not turned."""

    kind = RotaryAttention


WITH_PREFIX = {each.kind: each for each in (PrefixAttention, PrefixRotaryAttention)}


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
        h, the MLP's width inside; by default c, the width of the keys.

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

    def places(self, model: Any) -> list[str]:
        """Return the root, after a check that every attention of the model takes a prefix."""
        root = super().places(model)
        found = [x for x in model.modules().values() if isinstance(x, CausalSelfAttention)]
        if not found:
            raise ValueError(f"{type(model).__name__} has no attention layer to give a prefix to")
        for layer in found:
            if type(layer) not in WITH_PREFIX:
                raise ValueError(f"{type(layer).__name__} has no form with a prefix")
        return root

    def wrap(self, path: str, layer: Any, rng: np.random.Generator) -> Layer:
        """Return the model with a prefix in every attention layer."""
        start, W, n = self.start_of(layer), layer.table().W.value, self.num_virtual_tokens
        parts = layer.modules().values()
        c = next(part.k_proj.d_out for part in parts if isinstance(part, CausalSelfAttention))
        h = self.encoder_hidden_size or c

        def make(x: np.ndarray) -> Parameter:
            return Parameter(like(x.astype(W.dtype), W))

        def half(i: int, out: int, d_in: int) -> dict[str, Parameter]:
            shapes = {f"W{i}": (out, d_in), f"b{i}": (out,)}
            return {k: make(rng.uniform(-1.0, 1.0, s) / math.sqrt(d_in)) for k, s in shapes.items()}

        mlp = self.prefix_projection
        lower = {"E": make(rng.standard_normal((n, c))), **half(1, h, c)} if mlp else {}

        def adapt(_: str, part: Layer) -> Layer | None:
            if part is start:
                return TextStart(start.first + n)
            if not isinstance(part, CausalSelfAttention):
                return None
            own = half(2, 2 * c, h) if mlp else {"P": make(rng.standard_normal((n, 2 * c)))}
            return WITH_PREFIX[type(part)](part, **lower, **own)

        return rebuild(layer, lambda p: p, adapt)
