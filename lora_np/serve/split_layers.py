"""The part of a model, and of its adapters, that one member of a crew has.

serve/split.py says how the products are cut, and what is sent. This file has the two kinds of split
layers, and the cut. :func:`for_batch` makes split layers for the rows of one batch, so that they
have no hidden state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.crew import Exchange
from lora_np.crew.exchange import shares
from lora_np.layers import MLP, CausalSelfAttention, GatedMLP, Layer, Linear, Rng, rebuild
from lora_np.methods.stacked import Factors
from lora_np.ops.fast import linear_forward

BASE, ADAPTERS = "base", "adapters"  # the kinds of numbers sent


class SplitBatch(NamedTuple):
    """What a split layer knows of the rows that it gets."""

    exchange: Exchange
    member: int
    segments: list[tuple[int, int, int]]  # as of Rows: an adapter's number, its first row, its end

    def gather(self, parts: list[np.ndarray], widths: list[int]) -> list[np.ndarray]:
        """Return arrays (..., width) of which each member has its share of the last axis."""
        size = self.exchange.size
        cuts = [[s.stop - s.start for s in shares(width, size)] for width in widths]
        shapes = [  # of what each member has of each array
            [(*part.shape[:-1], cut[m]) for part, cut in zip(parts, cuts)] for m in range(size)
        ]
        lengths = [sum(map(math.prod, of_member)) for of_member in shapes]
        found = self.exchange.all_gather(self.member, end_to_end(parts), lengths, ADAPTERS)
        by_member = [apart(x, of_member) for x, of_member in zip(found, shapes)]
        return [np.concatenate(of_array, axis=-1) for of_array in zip(*by_member)]

    def reduce(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Return the sums of the members' arrays."""
        total = self.exchange.all_reduce(self.member, end_to_end(parts), ADAPTERS)
        return apart(total, [part.shape for part in parts])


def end_to_end(arrays: list[np.ndarray]) -> np.ndarray:
    """Return the numbers of all arrays as one vector."""
    return np.concatenate([x.reshape(-1) for x in arrays])


def apart(vector: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return the arrays of these shapes that lie end to end in a vector."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [x.reshape(shape) for x, shape in zip(np.split(vector, ends[:-1]), shapes)]


class SplitLinear(Layer):
    """A member's part of a linear layer, and of each adapter that this layer has.

    Parameters
    ----------
    W, b : array, array or None
        A part of the weight, and of the bias.
    pairs : mapping of int to (B, A, scale)
        The parts of the adapters' factors, by the adapter's number.
    """

    batch: SplitBatch

    def __init__(self, W: np.ndarray, b: np.ndarray | None, pairs: Mapping[int, Factors]) -> None:
        self.W, self.b, self.pairs = W, b, pairs

    def of(self, batch: SplitBatch) -> SplitLinear:
        """Return this layer for the rows of a batch."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), batch=batch)
        return twin

    def segments(self) -> list[tuple[int, slice]]:
        """Return the adapters that this layer has in the batch, and their rows."""
        return [(i, slice(a, b)) for i, a, b in self.batch.segments if i in self.pairs]

    def inner(self, x: np.ndarray) -> list[np.ndarray]:
        """Return x A^T with the member's part of A, for each of the segments."""
        return [x[rows] @ self.pairs[i][1].T for i, rows in self.segments()]

    def change(self, i: int, u: np.ndarray) -> np.ndarray:
        """Return scale u B^T with the member's part of B, for u (rows, T, r)."""
        B, _, scale = self.pairs[i]
        return scale * (u @ B.T)


class SplitOutputs(SplitLinear):
    """The first of two products, W1: a member has some of the outputs."""

    def forward(self, x: np.ndarray, rng: Rng = None) -> tuple[np.ndarray, Any]:
        """Return the member's outputs (n, T, out / p) of x (n, T, in)."""
        y, _ = linear_forward(x, self.W, self.b)  # (n, T, out / p)
        held = self.segments()
        if held:
            ranks = [self.pairs[i][0].shape[1] for i, _ in held]
            inner = self.batch.gather(self.inner(x), ranks)  # each (rows, T, r)
            for (i, rows), u in zip(held, inner):
                y[rows] += self.change(i, u)
        return y, None

    @classmethod
    def cut(
        cls, layer: Linear, own: slice, pairs: Mapping[int, Factors], member: int, size: int
    ) -> SplitOutputs:
        """Return the part of a member that has the outputs `own`."""
        parts = {
            i: (B[own], A[shares(len(A), size)[member]], scale)
            for i, (B, A, scale) in pairs.items()
        }
        return cls(layer.W.take(own), None if layer.b is None else layer.b.take(own), parts)


class SplitInputs(SplitLinear):
    """The second of two products, W2: a member has some of the inputs."""

    def forward(self, x: np.ndarray, rng: Rng = None) -> tuple[np.ndarray, Any]:
        """Return the outputs (n, T, out), to which the member's inputs x are (n, T, in / p)."""
        batch = self.batch
        y, _ = linear_forward(x, self.W)  # (n, T, out), a term of the sum
        own = shares(len(self.W), batch.exchange.size)[batch.member]
        if self.b is not None:
            y[..., own] += self.b  # (out / p,)
        held = self.segments()
        if held:
            inner = batch.reduce(self.inner(x))  # each (rows, T, r)
            for (i, rows), u in zip(held, inner):
                y[rows, :, own] += self.change(i, u)
        return batch.exchange.all_reduce(batch.member, y, BASE), None

    @classmethod
    def cut(
        cls, layer: Linear, own: slice, pairs: Mapping[int, Factors], member: int, size: int
    ) -> SplitInputs:
        """Return the part of a member that has the inputs `own`."""
        out = shares(layer.d_out, size)[member]
        parts = {i: (B[out], A[:, own], scale) for i, (B, A, scale) in pairs.items()}
        b = None if layer.b is None else layer.b.take(out)
        return cls(layer.W.value[:, own], b, parts)


class Cut:
    """The part of a model that one member has.

    Parameters
    ----------
    adapters : sequence of mappings of str to (B, A, scale)
        The factors of each adapter, by the path of the layer.
    member, size : int
    """

    def __init__(self, adapters: Sequence[Mapping[str, Factors]], member: int, size: int) -> None:
        self.adapters, self.member, self.size = adapters, member, size

    def of(self, model: Layer) -> Any:
        """Return a model whose blocks are the member's part; all else is that of `model`."""
        return rebuild(model, lambda p: p, self.part)

    def part(self, path: str, layer: Layer) -> Layer | None:
        """Return the member's part of an attention or an MLP; None for another layer."""
        if isinstance(layer, CausalSelfAttention):
            return self._attention(path, layer)
        if isinstance(layer, MLP | GatedMLP):
            hidden = shares(layer.up_proj.d_out, self.size)[self.member]
            first = ("gate_proj", "up_proj") if isinstance(layer, GatedMLP) else ("up_proj",)
            return self._with(path, layer, dict.fromkeys(first, hidden), "down_proj", {})
        return None

    def _attention(self, path: str, layer: CausalSelfAttention) -> Layer:
        """Return an attention with the member's heads of keys, and the queries that read them."""
        n_keys = key_heads(layer)
        group, d_head = layer.n_head // n_keys, layer.q_proj.d_out // layer.n_head
        heads = shares(n_keys, self.size)[self.member]
        keys = slice(heads.start * d_head, heads.stop * d_head)
        queries = slice(keys.start * group, keys.stop * group)
        n = heads.stop - heads.start
        sizes = {"n_head": n * group, "n_kv_head": n}
        outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        return self._with(path, layer, outputs, "o_proj", sizes)

    def _with(
        self, path: str, layer: Any, outputs: Mapping[str, slice], last: str, sizes: Mapping
    ) -> Layer:
        """Return `layer` with its linear layers cut, and with `sizes`, the new numbers of heads."""
        cut: dict[str, Any] = {}
        for name, own in outputs.items():
            linear, pairs = getattr(layer, name), self._pairs(f"{path}.{name}")
            cut[name] = SplitOutputs.cut(linear, own, pairs, self.member, self.size)
        own, pairs = next(iter(outputs.values())), self._pairs(f"{path}.{last}")
        cut[last] = SplitInputs.cut(getattr(layer, last), own, pairs, self.member, self.size)
        twin = object.__new__(type(layer))
        vars(twin).update(vars(layer), **cut, **sizes)
        return twin

    def _pairs(self, path: str) -> dict[int, Factors]:
        return {i: held[path] for i, held in enumerate(self.adapters) if path in held}


def key_heads(layer: CausalSelfAttention) -> int:
    """Return the number of heads of keys; it is that of queries unless several share a head."""
    return getattr(layer, "n_kv_head", layer.n_head)


def for_batch(tree: Any, batch: SplitBatch) -> Any:
    """Return a member's model for the rows of a batch."""
    return rebuild(
        tree, lambda p: p, lambda _, part: part.of(batch) if isinstance(part, SplitLinear) else None
    )
