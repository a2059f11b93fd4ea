"""What a layer remembers of earlier positions: keys and values, with room made in advance.

``y, memory = layer.extend(x, memory)`` gives the newest positions only. Most layers remember
nothing; an attention remembers its keys and values here. Each row of the batch has its own length,
so that texts of different lengths can go on in one batch.

Memories are values: extending one leaves it as it was. The old and the new one share a room, as the
new one only writes behind the old one's end. Where another has written there, the room is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from lora_np.backend import Array, get_xp

Lengths = tuple[int, ...]  # one a row


class _Room:
    """Arrays with space for more positions than are filled.

    Attributes
    ----------
    k, v : arrays, shapes (rows, n_head, size, d_head)
    filled : tuple of int
        How far any memory has written in each row.
    """

    def __init__(self, k: Array, v: Array, filled: Lengths) -> None:
        self.k, self.v, self.filled = k, v, filled

    @property
    def size(self) -> int:
        """The number of positions that fit."""
        return self.k.shape[2]

    def moved(self, size: int, lengths: Lengths) -> _Room:
        """Return a room of `size` positions that holds the first `lengths` of each row."""
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
        Of the first positions.

    Attributes
    ----------
    lengths : tuple of int
        How many positions of each row are remembered.

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
        """Return the memory with T more positions in every row: k, v (rows, n_head, T, d_head)."""
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
        """Return the memory of the first so many positions of each row."""
        return KeyMemory._over(self._room, lengths)

    def attend(self, q: Array, attention: Callable[[Array, Array, Array], Array]) -> Array:
        """Return ``attention(q, k, v)`` over each row's own positions, q (rows, n_head, T, d_head).

        Neighbouring rows of one length go through one call.
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
    """Return neighbouring rows of one length, as slices, with that length."""
    runs, first = [], 0
    for length, group in groupby(lengths):
        last = first + len(list(group))
        runs.append((slice(first, last), length))
        first = last
    return runs


def shortened(memory: Any, lengths: Lengths) -> Any:
    """Return a tree of memories, as layers return it, with each row cut to its length."""
    if isinstance(memory, list):
        return [shortened(part, lengths) for part in memory]
    return memory.shortened(lengths) if isinstance(memory, KeyMemory) else memory
