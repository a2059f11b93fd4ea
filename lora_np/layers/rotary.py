"""Attention of Llama-type models: rotary positions, and groups of queries that share keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.backend import Array, ShapeError, like
from lora_np.layers.attention import CausalSelfAttention, split_heads
from lora_np.layers.linear import Linear
from lora_np.ops import rope_angles, rope_backward, rope_forward
from lora_np.ops.fast import gqa_backward, gqa_forward


class Angles:
    """The cosines and sines of a model's positions, computed once for all of its layers.

    Parameters
    ----------
    d_head : int
        Width of a head, an even number.
    base : float
        The base of the wavelengths (``rope_theta``).
    scaling : lora_np.ops.rope.Llama3Scaling, optional
        The change of the wavelengths for long texts.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.layers.rotary import Angles
    >>> cos, sin = Angles(4, 10000.0).at(np.array([0, 2]), np.dtype(np.float64))
    >>> cos.round(2).tolist()  # of positions 0 and 2, at wavelengths 2 pi and 200 pi
    [[1.0, 1.0], [-0.42, 1.0]]
    """

    def __init__(self, d_head: int, base: float, scaling: Any = None) -> None:
        self.d_head, self.base, self.scaling = d_head, base, scaling
        self._tables: dict[Any, tuple[np.ndarray, np.ndarray]] = {}  # by dtype; grown when needed

    def at(self, positions: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return cos and sin (..., d_head / 2) of host positions (...)."""
        length = int(positions.max(initial=0)) + 1
        table = self._tables.get(dtype)
        if table is None or len(table[0]) < length:
            table = rope_angles(2 * length, self.d_head, self.base, dtype, self.scaling)
            self._tables[dtype] = table
        return table[0][positions], table[1][positions]


class RotaryAttention(CausalSelfAttention):
    """Causal attention with rotary positions; n_head / n_kv_head queries share a key.

    y = o_proj(concat over heads of attention(rope(q), rope(k), v)); head h reads the keys and
    values of group h // (n_head / n_kv_head).

    Parameters
    ----------
    q_proj, k_proj, v_proj, o_proj : Linear
        To n_head d_head, n_kv_head d_head twice, and back to d.
    n_head, n_kv_head : int
        The second divides the first.
    angles : Angles
        Shared by the layers of a model.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, RotaryAttention
    >>> from lora_np.layers.rotary import Angles
    >>> rng = np.random.default_rng(0)
    >>> shapes = [(8, 8), (8, 4), (8, 4), (8, 8)]  # 2 heads of width 4, and 1 of keys
    >>> projections = [Linear(*shape, rng, bias=False) for shape in shapes]
    >>> layer = RotaryAttention(*projections, n_head=2, n_kv_head=1, angles=Angles(4, 10000.0))
    >>> layer.forward(np.ones((1, 5, 8), np.float32))[0].shape
    (1, 5, 8)
    """

    def __init__(
        self,
        q_proj: Linear,
        k_proj: Linear,
        v_proj: Linear,
        o_proj: Linear,
        *,
        n_head: int,
        n_kv_head: int,
        angles: Angles,
    ) -> None:
        if n_kv_head < 1 or n_head % n_kv_head:
            raise ShapeError(f"n_head = {n_head} is not a multiple of n_kv_head = {n_kv_head}")
        self.n_head, self.n_kv_head, self.angles = n_head, n_kv_head, angles
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj

    def placed(self, q: Array, k: Array, positions: np.ndarray) -> tuple[Array, Array, Any]:
        """Return queries and keys (..., T, heads d_head), each turned by its position's angles."""
        dtype = q.real.dtype
        cos, sin = self.angles.at(positions, dtype)  # (T, d_head / 2) or (B, T, d_head / 2)
        cos, sin = like(cos[..., None, :], q), like(sin[..., None, :], q)  # alike in all heads
        turned_q, c_q = rope_forward(self._by_head(q), cos, sin)  # (..., T, n_head, d_head)
        turned_k, c_k = rope_forward(self._by_head(k), cos, sin)  # (..., T, n_kv_head, d_head)
        return turned_q.reshape(q.shape), turned_k.reshape(k.shape), (c_q, c_k)

    def placed_backward(
        self, dq: Array | None, dk: Array | None, cache: Any
    ) -> tuple[Array | None, Array | None]:
        """Turn dq and dk (..., T, heads d_head) back."""
        turned = []
        for d, inner in zip((dq, dk), cache):
            if d is not None:
                back: Any = rope_backward(self._by_head(d), inner)[0]
                d = back.reshape(d.shape)
            turned.append(d)
        return turned[0], turned[1]

    def _by_head(self, x: Array) -> Array:
        heads = x.shape[-1] // self.angles.d_head
        return x.reshape(*x.shape[:-1], heads, self.angles.d_head)  # (..., T, heads, d_head)

    def _keys(self, k: Array) -> Array:
        return split_heads(k, self.n_kv_head)  # (..., n_kv_head, T, d_head)

    @staticmethod
    def attention(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        """Return the attention (..., n_head, T, d_head) of all heads, and the cache."""
        y, cache = gqa_forward(_in_groups(q, k.shape[-3]), k, v)  # (..., G, g, T, d_head)
        return y.reshape(q.shape), cache

    @staticmethod
    def attention_backward(dy: Array, cache: Any, need: Sequence[bool]) -> tuple:
        """Return (dq, dk, dv) of :meth:`attention`."""
        dq, dk, dv = gqa_backward(_in_groups(dy, cache.k.shape[-3]), cache, need)
        return (None if dq is None else dq.reshape(dy.shape)), dk, dv


def _in_groups(q: Array, G: int) -> Array:
    """Return q (..., G g, T, d_head) as (..., G, g, T, d_head)."""
    *batch, heads, T, d = q.shape
    return q.reshape(*batch, G, heads // G, T, d)
