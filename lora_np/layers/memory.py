"""What layers remember of earlier positions: keys and values (a KV cache), or a hidden state.

``y, memory = layer.extend(x, memory)`` computes the newest positions only. Most layers need no
memory. An attention layer keeps its keys and values here, in arrays with free space; a recurrent
layer keeps its hidden state. Each row of the batch has its own length, so that texts of different
lengths can continue in one batch.

A memory does not change when it is extended. An old and a new memory of keys share arrays: the new
one writes after the end of the old one. If another memory has written there, the arrays are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp, like

Lengths = tuple[int, ...]  # one per row
Runs = tuple[tuple[slice, int], ...]  # neighbouring rows of one length, and that length


class _Room:
    """Arrays with space for more positions than are remembered.

    Attributes
    ----------
    k, v : arrays, shapes (rows, n_head, size, d_head)
    turn : int
        The number of times a memory was extended here. Only the memory of the last turn may write.
    """

    def __init__(self, k: Array, v: Array) -> None:
        self.k, self.v, self.turn = k, v, 0

    def moved(self, size: int, known: int) -> _Room:
        """Return a room of `size` positions that holds the first `known` of this one."""

        def grown(old: Array) -> Array:
            rows, heads, _, d = old.shape
            new = get_xp(old).zeros((rows, heads, size, d), old.dtype)
            new[:, :, :known] = old[:, :, :known]
            return new

        return _Room(grown(self.k), grown(self.v))


class KeyMemory:
    """Keys and values of earlier positions.

    Parameters
    ----------
    k, v : arrays, shapes (rows, n_head, T, d_head)
        Keys and values of the first T positions.

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
        rows, _, T, _ = k.shape
        self._room, self._turn = _Room(k, v), 0
        self._runs: Runs = ((slice(0, rows), T),)

    @classmethod
    def _over(cls, room: _Room, turn: int, runs: Runs) -> KeyMemory:
        memory = cls.__new__(cls)
        memory._room, memory._turn, memory._runs = room, turn, runs
        return memory

    @property
    def lengths(self) -> Lengths:
        """The number of positions remembered for each row."""
        return tuple(n for rows, n in self._runs for _ in range(rows.start, rows.stop))

    def extended(self, k: Array, v: Array) -> KeyMemory:
        """Return a memory with T more positions in every row: k, v (rows, n_head, T, d_head)."""
        room, T = self._room, k.shape[2]
        known, size = max(n for _, n in self._runs), room.k.shape[2]
        if known + T > size:
            room = room.moved(2 * (known + T), known)
        elif self._turn != room.turn:  # another memory has written behind this one's end
            room = room.moved(size, known)
        for rows, n in self._runs:
            room.k[rows, :, n : n + T] = k[rows]
            room.v[rows, :, n : n + T] = v[rows]
        room.turn += 1
        return KeyMemory._over(room, room.turn, tuple((rows, n + T) for rows, n in self._runs))

    def shortened(self, lengths: Lengths) -> KeyMemory:
        """Return a memory of only the first `lengths` positions of each row."""
        return KeyMemory._over(self._room, -1, _runs(lengths))  # this memory may go on in the room

    def attend(self, q: Array, attention: Callable[[Array, Array, Array], Array]) -> Array:
        """Return ``attention(q, k, v)`` over each row's own positions, q (rows, n_head, T, d_head).

        Neighbouring rows of equal length share one call.
        """
        room = self._room
        parts = [
            attention(q[rows], room.k[rows, :, :n], room.v[rows, :, :n]) for rows, n in self._runs
        ]
        return parts[0] if len(parts) == 1 else get_xp(q).concatenate(parts)

    def keys(self, row: int) -> Array:
        """Return the keys (1, n_head, length, d_head) of a row."""
        return self._room.k[row : row + 1, :, : self.lengths[row]]


class StateMemory:
    """The hidden state of a recurrent layer after the newest position of each row.

    The states after the other positions of the last call are kept until the next one, so that rows
    of different lengths, padded to one length, can each continue from their own end.

    Parameters
    ----------
    y : array, shape (rows, T, H)
        The states after the positions of the last call.
    known : sequence of int
        The number of positions before that call, for each row.
    lengths : sequence of int, optional
        The number of positions remembered for each row; by default known + T.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.layers.memory import StateMemory
    >>> memory = StateMemory(np.arange(6.0).reshape(2, 3, 1), (0, 0))
    >>> memory.lengths, memory.state().ravel().tolist()
    ((3, 3), [2.0, 5.0])
    >>> memory.shortened((3, 1)).state().ravel().tolist()
    [2.0, 3.0]
    """

    def __init__(self, y: Array, known: Lengths, lengths: Lengths | None = None) -> None:
        self._y, self._known = y, known
        self.lengths = tuple(n + y.shape[1] for n in known) if lengths is None else lengths

    def state(self) -> Array:
        """Return the state (rows, H) after the newest position of each row."""
        ends = [n - known - 1 for n, known in zip(self.lengths, self._known)]
        rows = np.arange(len(ends))
        return self._y[like(rows, self._y), like(np.array(ends, np.int64), self._y)]

    def shortened(self, lengths: Lengths) -> StateMemory:
        """Return a memory of only the first `lengths` positions of each row.

        Raises
        ------
        ValueError
            If a row would end before the last call: the state there is no longer known.
        """
        for n, known, longest in zip(lengths, self._known, self.lengths):
            if not known < n <= longest:
                raise ValueError(
                    f"a row cannot be cut to {n} positions: the states after positions {known + 1} "
                    f"to {longest} are known, those of the last call"
                )
        return StateMemory(self._y, self._known, lengths)


def _runs(lengths: Lengths) -> Runs:
    """Return slices of neighbouring rows of equal length, each with that length."""
    runs, first = [], 0
    for length, group in groupby(lengths):
        last = first + len(list(group))
        runs.append((slice(first, last), length))
        first = last
    return tuple(runs)


def shortened(memory: Any, lengths: Lengths) -> Any:
    """Return a tree of memories, as a model's layers return it, with each row cut to its length."""
    if isinstance(memory, list):
        return [shortened(part, lengths) for part in memory]
    return memory.shortened(lengths) if isinstance(memory, KeyMemory | StateMemory) else memory
