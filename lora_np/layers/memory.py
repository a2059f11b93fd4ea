"""What a layer remembers of earlier positions: keys and values, with room made in advance.

``y, memory = layer.extend(x, memory)`` gives the newest positions only. Most layers remember
nothing; an attention remembers its keys and values here. Each row of the batch has its own length, so
that texts of different lengths can go on in one batch.

Memories are values: extending one leaves it as it was. The old and the new one share a room, as the
new one only writes behind the old one's end. Where another has written there, the room is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp


class _Room:
    """Arrays with space for more positions than are filled.

    Attributes
    ----------
    k, v : arrays, shapes (rows, n_head, size, d_head)
    filled : ndarray of int, shape (rows,)
        How far any memory has written.
    """

    def __init__(self, k: Array, v: Array, filled: np.ndarray) -> None:
        self.k, self.v, self.filled = k, v, filled

    @property
    def size(self) -> int:
        """The number of positions that fit."""
        return self.k.shape[2]

    def moved(self, size: int, lengths: np.ndarray) -> _Room:
        """Return a room of `size` positions that holds the first `lengths` of each row."""
        known = int(lengths.max(initial=0))

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
    lengths : ndarray of int, shape (rows,)
        How many positions of each row are remembered.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.layers.memory import KeyMemory
    >>> one = np.ones((2, 1, 3, 4))
    >>> memory = KeyMemory(one, one).extended(one, one)
    >>> memory.lengths.tolist(), memory.keys(0).shape
    ([6, 6], (1, 1, 6, 4))
    """

    def __init__(self, k: Array, v: Array) -> None:
        lengths = np.full(len(k), k.shape[2])
        self._room = _Room(k, v, lengths)
        self.lengths = lengths

    @classmethod
    def _over(cls, room: _Room, lengths: np.ndarray) -> KeyMemory:
        memory = cls.__new__(cls)
        memory._room, memory.lengths = room, lengths
        return memory

    def extended(self, k: Array, v: Array) -> KeyMemory:
        """Return the memory with T more positions in every row: k, v (rows, n_head, T, d_head)."""
        room, starts = self._room, self.lengths
        ends = starts + k.shape[2]
        written_by_another = bool((room.filled > starts).any())
        if written_by_another or ends.max() > room.size:
            size = room.size if ends.max() <= room.size else 2 * int(ends.max())
            room = room.moved(size, starts)
        for rows, start, end in _runs(starts, ends):
            room.k[rows, :, start:end] = k[rows]
            room.v[rows, :, start:end] = v[rows]
        room.filled = ends
        return KeyMemory._over(room, ends)

    def shortened(self, lengths: np.ndarray) -> KeyMemory:
        """Return the memory of the first `lengths` (rows,) positions alone."""
        return KeyMemory._over(self._room, np.asarray(lengths))

    def attend(self, q: Array, attention: Callable[[Array, Array, Array], Array]) -> Array:
        """Return ``attention(q, k, v)`` over each row's own positions, q (rows, n_head, T, d_head).

        Rows of one length go through one call.
        """
        room, parts = self._room, []
        for rows, _, end in _runs(self.lengths, self.lengths):
            parts.append(attention(q[rows], room.k[rows, :, :end], room.v[rows, :, :end]))
        return parts[0] if len(parts) == 1 else get_xp(q).concatenate(parts)

    def keys(self, row: int) -> Array:
        """Return the keys (1, n_head, length, d_head) of a row."""
        return self._room.k[row : row + 1, :, : self.lengths[row]]


def _runs(starts: np.ndarray, ends: np.ndarray) -> list[tuple[slice, int, int]]:
    """Return neighbouring rows that have the same start and end, as slices."""
    cuts = np.flatnonzero(np.diff(starts)) + 1
    edges = [0, *cuts.tolist(), len(starts)]
    return [
        (slice(first, last), int(starts[first]), int(ends[first]))
        for first, last in pairwise(edges)
    ]


def shortened(memory: Any, lengths: np.ndarray) -> Any:
    """Return a tree of memories, as layers return it, with each row cut to its length."""
    if isinstance(memory, list):
        return [shortened(part, lengths) for part in memory]
    return memory.shortened(lengths) if isinstance(memory, KeyMemory) else memory
