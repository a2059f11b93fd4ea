"""The memory of an attention layer: keys and values of earlier positions (a KV cache).

``y, memory = layer.extend(x, memory)`` computes the newest positions only. Most layers need no
memory; an attention layer keeps its keys and values here, in arrays with free space. Each row of
the batch has its own length, so that texts of different lengths can continue in one batch.

A memory does not change when it is extended. The old and the new memory share arrays: the new one
writes after the end of the old one. If another memory has written there, the arrays are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from lora_np.backend import Array, get_xp

Lengths = tuple[int, ...]  # one per row


class _Room:
    """Arrays with free space for more positions.

    Attributes
    ----------
    k, v : arrays, shapes (rows, n_head, size, d_head)
    filled : tuple of int
        The number of positions written in each row, by any memory.
    """

    def __init__(self, k: Array, v: Array, filled: Lengths) -> None:
        self.k, self.v, self.filled = k, v, filled

    @property
    def size(self) -> int:
        """The number of positions that fit."""
        return self.k.shape[2]

    def moved(self, size: int, lengths: Lengths) -> _Room:
        """Return a copy with room for `size` positions and the first `lengths` of each row."""
        known = max(lengths)

        def grown(old: Array) -> Array:
            rows, heads, _, d = old.shape
            new = get_xp(old).zeros((rows, heads, size, d), old.dtype)
            new[:, :, :known] = old[:, :, :known]
            return new

        return _Room(grown(self.k), grown(self.v), lengths)


class KeyMemory:
    """Keys and values of earlier positions.

    Parameters
    ----------
    k, v : arrays, shapes (rows, n_head, T, d_head)
        Keys and values of the first T positions.

    Attributes
    ----------
    lengths : tuple of int
        The number of positions remembered for each row.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.layers.memory import KeyMemory
    >>> one = np.ones((2, 1, 3, 4))
    >>> memory = KeyMemory(one, one).extended(one, one)
    >>> memory.lengths, memory.keys(0).shape
    ((6, 6), (1, 1, 6, 4))
    """

    def __init__(self, k: Array, v: Array) -> None:
        self.lengths = (k.shape[2],) * len(k)
        self._room = _Room(k, v, self.lengths)

    @classmethod
    def _over(cls, room: _Room, lengths: Lengths) -> KeyMemory:
        memory = cls.__new__(cls)
        memory._room, memory.lengths = room, lengths
        return memory

    def extended(self, k: Array, v: Array) -> KeyMemory:
        """Return a memory with T more positions in every row: k, v (rows, n_head, T, d_head)."""
        room, starts, T = self._room, self.lengths, k.shape[2]
        ends, longest = tuple(n + T for n in starts), max(starts) + T
        if longest > room.size:
            room = room.moved(2 * longest, starts)
        elif any(filled > start for filled, start in zip(room.filled, starts)):
            room = room.moved(room.size, starts)  # another memory has written there
        for rows, start in _runs(starts):
            room.k[rows, :, start : start + T] = k[rows]
            room.v[rows, :, start : start + T] = v[rows]
        room.filled = ends
        return KeyMemory._over(room, ends)

    def shortened(self, lengths: Lengths) -> KeyMemory:
        """Return a memory of only the first `lengths` positions of each row."""
        return KeyMemory._over(self._room, lengths)

    def attend(self, q: Array, attention: Callable[[Array, Array, Array], Array]) -> Array:
        """Return ``attention(q, k, v)`` over each row's own positions, q (rows, n_head, T, d_head).

        Neighbouring rows of equal length share one call.
        """
        room = self._room
        parts = [
            attention(q[rows], room.k[rows, :, :end], room.v[rows, :, :end])
            for rows, end in _runs(self.lengths)
        ]
        return parts[0] if len(parts) == 1 else get_xp(q).concatenate(parts)

    def keys(self, row: int) -> Array:
        """Return the keys (1, n_head, length, d_head) of a row."""
        return self._room.k[row : row + 1, :, : self.lengths[row]]


def _runs(lengths: Lengths) -> list[tuple[slice, int]]:
    """Return slices of neighbouring rows of equal length, each with that length."""
    runs, first = [], 0
    for length, group in groupby(lengths):
        last = first + len(list(group))
        runs.append((slice(first, last), length))
        first = last
    return runs


def shortened(memory: Any, lengths: Lengths) -> Any:
    """Return a tree of memories, as a model's layers return it, with each row cut to its length."""
    if isinstance(memory, list):
        return [shortened(part, lengths) for part in memory]
    return memory.shortened(lengths) if isinstance(memory, KeyMemory) else memory
