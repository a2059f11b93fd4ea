"""Self-attention as a layer, causal or not: four projections, and the attention of each head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np import ops
from lora_np.backend import Array, ShapeError
from lora_np.layers.base import Flops, Layer, Rng
from lora_np.layers.linear import Linear
from lora_np.layers.memory import KeyMemory, Lengths
from lora_np.layers.packing import Packing
from lora_np.layers.tree import rebuild
from lora_np.ops.fast import attention_backward, attention_forward
from lora_np.parameters import Grads


class AttentionLayerCache(NamedTuple):
    """Caches of the projections, the positions, the keys before the text, and the attention."""

    q: Any
    k: Any
    v: Any
    place: Any
    before: Any
    attention: Any
    o: Any


class CausalSelfAttention(Layer):
    """Every position attends to the positions at or before it, with n_head heads of width d_head.

    y = o_proj(concat over heads of attention(q, k, v)), where q, k, v = q_proj(x), k_proj(x),
    v_proj(x) are cut into heads, and d_head = d / n_head.

    Parameters
    ----------
    d : int
        Width, a multiple of n_head.
    n_head : int
    rng : numpy.random.Generator
        Draws the weights.
    std_out : float
        Standard deviation of o_proj's weights; the other projections have 0.02.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import CausalSelfAttention
    >>> rng = np.random.default_rng(0)
    >>> layer = CausalSelfAttention(8, 2, rng, dtype=np.float64)
    >>> x = rng.standard_normal((1, 5, 8))
    >>> later = x.copy()
    >>> later[:, 3:] += 1.0  # outputs before position 3 do not change
    >>> same = np.isclose(layer.forward(x)[0], layer.forward(later)[0]).all(axis=2)
    >>> same.tolist()
    [[True, True, True, False, False]]
    """

    def __init__(
        self,
        d: int,
        n_head: int,
        rng: np.random.Generator,
        *,
        std_out: float = 0.02,
        dtype: Any = np.float32,
    ) -> None:
        if n_head < 1 or d % n_head:
            raise ShapeError(f"d_model = {d} does not divide into n_head = {n_head} equal heads")
        self.n_head = n_head
        self.q_proj = Linear(d, d, rng, dtype=dtype)
        self.k_proj = Linear(d, d, rng, dtype=dtype)
        self.v_proj = Linear(d, d, rng, dtype=dtype)
        self.o_proj = Linear(d, d, rng, std=std_out, dtype=dtype)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., T, d) and the cache."""
        q, q_cache = self.q_proj.forward(x, rng)  # (..., T, d)
        k, k_cache = self.k_proj.forward(x, rng)
        v, v_cache = self.v_proj.forward(x, rng)
        q, k, place = self.placed(q, k, self._positions(x))
        k, v, before = self.with_keys_before(k, v)  # (..., n + T, d), here n = 0
        heads, attention = self._attend(self._queries(q), self._keys(k), self._keys(v))
        y, o_cache = self.o_proj.forward(join_heads(heads), rng)  # (..., T, d)
        return y, AttentionLayerCache(q_cache, k_cache, v_cache, place, before, attention, o_cache)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Go back through o_proj, the attention and q_proj, k_proj, v_proj, whose dx add up."""
        inward = [self.q_proj, self.k_proj, self.v_proj]
        needs = self._inward_needs(need_dx)
        dheads = self.o_proj.backward(dy, cache.o, grads, any(needs))  # (..., T, d)
        if dheads is None:
            return None
        split = self._attend_backward(self._queries(dheads), cache.attention, needs)
        dq, dk, dv = (None if d is None else join_heads(d) for d in split)  # (..., n + T, d)
        dk, dv = self.keys_before_backward(dk, dv, cache.before, grads)  # (..., T, d)
        dq, dk = self.placed_backward(dq, dk, cache.place)
        dx = None
        for proj, inner, d in zip(inward, (cache.q, cache.k, cache.v), (dq, dk, dv)):
            if d is not None:
                part = proj.backward(d, inner, grads, need_dx)  # (..., T, d)
                dx = part if dx is None else dx + part
        return dx

    def extend(self, x: Array, memory: KeyMemory | None = None) -> tuple[Array, KeyMemory]:
        """Return y for the newest positions `x` (..., T, d), and all keys and values so far."""
        flat = x.reshape(-1, *x.shape[-2:])  # (rows, T, d)
        q, k, v = (
            proj.forward(flat)[0] for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (rows, T, d)
        q, k, _ = self.placed(q, k, self._positions(flat, memory))
        if memory is None:
            k, v, _ = self.with_keys_before(k, v)  # (rows, n + T, d)
            memory = KeyMemory(self._keys(k), self._keys(v))
        else:
            memory = memory.extended(self._keys(k), self._keys(v))
        y = memory.attend(self._queries(q), lambda *qkv: self.attention(*qkv)[0])
        return self.o_proj.forward(join_heads(y))[0].reshape(x.shape), memory

    # ---------------------------------- what a subclass may change: positions, heads, keys before

    @staticmethod
    def attention(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        """Return the attention (..., n_head, T, d_head) of all heads, and the cache."""
        return attention_forward(q, k, v)

    @staticmethod
    def attention_backward(dy: Array, cache: Any, need: Sequence[bool]) -> tuple:
        """Return (dq, dk, dv) of :meth:`attention`."""
        return attention_backward(dy, cache, need)

    def placed(self, q: Array, k: Array, positions: Array) -> tuple[Array, Array, Any]:
        """Return queries and keys (..., T, d) that know their positions, and a cache.

        Positions are (T,), or (B, T) if each row has its own. Here x knows them already.
        """
        return q, k, None

    def placed_backward(
        self, dq: Array | None, dk: Array | None, cache: Any
    ) -> tuple[Array | None, Array | None]:
        """Return dq and dk (..., T, d) before they were placed."""
        return dq, dk

    n_before: int = 0  # the number of keys before the text's

    def with_keys_before(self, k: Array, v: Array) -> tuple[Array, Array, Any]:
        """Return all keys and values (..., n_before + T, d) for those of the text, and a cache."""
        return k, v, None

    def keys_before_backward(
        self, dk: Array | None, dv: Array | None, cache: Any, grads: Grads
    ) -> tuple[Array | None, Array | None]:
        """Add the gradients of what stands before the text; return dk and dv (..., T, d)."""
        return dk, dv

    def _queries(self, q: Array) -> Array:
        """Return q (..., T, d) in heads, (..., n_head, T, d_head)."""
        return split_heads(q, self.n_head)

    def _keys(self, k: Array) -> Array:
        """Return k or v (..., T, d) in heads, (..., n_head, T, d_head)."""
        return split_heads(k, self.n_head)

    # ------------------------------------------------------------------------------ packed rows

    packing: Packing | None = None

    def with_packing(self, packing: Packing) -> CausalSelfAttention:
        """Return this layer, over the same parts, for rows with these samples."""
        if self.n_before:
            raise ValueError("packed rows have no room for a prefix before each sample: pad them")
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), packing=packing)
        return twin

    def _attend(self, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        if self.packing is None:
            return self.attention(q, k, v)
        return self.packing.forward(self.attention, q, k, v)

    def _attend_backward(self, dy: Array, cache: Any, needs: list[bool]) -> tuple:
        if self.packing is None:
            return self.attention_backward(dy, cache, needs)
        return self.packing.backward(self.attention_backward, dy, cache, needs)

    def _positions(self, x: Array, memory: KeyMemory | None = None) -> Array:
        """Return the positions of the newest rows x (..., T, d): (T,), or (rows, T)."""
        if self.packing is not None:
            return self.packing.positions
        T = x.shape[-2]
        if memory is None:
            return np.arange(self.n_before, self.n_before + T)
        return positions_after(memory.lengths, T)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of the projections and of the products with the keys, 2 d for each."""
        needs = self._inward_needs(need_dx)
        need_q, need_k, need_v = needs
        product = 2 * (self.n_before + T) * self.q_proj.d_out
        scores = (need_q or need_k) + need_q + need_k + need_v
        total = Flops(2 * product, scores * product).plus(self.o_proj.flops(T, any(needs)))
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            total = total.plus(proj.flops(T, need_dx))
        return total

    def _inward_needs(self, need_dx: bool) -> list[bool]:
        return [need_dx or p.trainable for p in (self.q_proj, self.k_proj, self.v_proj)]


class SelfAttention(CausalSelfAttention):
    """Every position attends to all positions, as the parts of an image do.

    The parameters are those of :class:`CausalSelfAttention`. There is no newest position.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import SelfAttention
    >>> rng = np.random.default_rng(0)
    >>> layer, x = SelfAttention(8, 2, rng, dtype=np.float64), rng.standard_normal((1, 5, 8))
    >>> y, backwards = layer.forward(x)[0], layer.forward(x[:, ::-1])[0]
    >>> bool(np.allclose(y, backwards[:, ::-1]))  # no order: the output follows its input
    True
    """

    @staticmethod
    def attention(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        """Return the attention (..., n_head, T, d_head) of all heads, and the cache."""
        return ops.attention_forward(q, k, v, causal=False)  # faster than its twin at few tokens

    @staticmethod
    def attention_backward(dy: Array, cache: Any, need: Sequence[bool]) -> tuple:
        """Return (dq, dk, dv) of :meth:`attention`."""
        return ops.attention_backward(dy, cache, need)

    def extend(self, x: Array, memory: Any = None) -> tuple[Array, Any]:
        """Raise TypeError: every position also reads the positions after it."""
        raise TypeError(f"{type(self).__name__} reads positions after its own: use forward")


def split_heads(x: Array, n_head: int) -> Array:
    """Return x (..., T, d) in heads, (..., n_head, T, d / n_head): a view."""
    heads = x.reshape(*x.shape[:-1], n_head, x.shape[-1] // n_head)  # (..., T, n_head, d_head)
    return heads.swapaxes(-2, -3)


def join_heads(heads: Array) -> Array:
    """Return heads (..., n_head, T, d_head) side by side, (..., T, n_head d_head)."""
    x = heads.swapaxes(-2, -3)  # (..., T, n_head, d_head)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def positions_after(lengths: Lengths, T: int) -> np.ndarray:
    """Return the positions of T more tokens in each row: (T,) if all rows agree, else (rows, T)."""
    first = lengths[0]
    if all(n == first for n in lengths):
        return np.arange(first, first + T)
    return np.array(lengths)[:, None] + np.arange(T)


def for_packed_rows(layer: Layer, packing: Packing) -> Any:
    """Return a tree of layers over the same Parameters whose attention is that of packed rows."""

    def place(_: str, part: Layer) -> Layer | None:
        return part.with_packing(packing) if isinstance(part, CausalSelfAttention) else None

    return rebuild(layer, lambda p: p, place)
