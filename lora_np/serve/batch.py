"""The tokens of a step, and their attention: each sees the keys of its own request.

A batch is a list of single tokens, (N, 1): the newest token of each request that is writing its
answer, and the next few of the prompts that are still being read. Every layer but attention works
on each token alone, whoever owns it; :class:`PagedKeys` takes the place of
:class:`lora_np.layers.memory.KeyMemory` and gives each token the keys of its own request. So no
row is padded, and reading and writing share one pass over the weights (Orca's selective batching).

Source: Yu et al. (2022), "Orca", OSDI 22, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.models.language import TextMemory
from lora_np.serve.keys import KeyLayout, KeyRoom
from lora_np.serve.pool import Pool

Attention = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Part(NamedTuple):
    """A request's tokens in a batch: their room, how many precede them, and how many they are."""

    room: KeyRoom
    known: int
    new: int

    @property
    def end(self) -> int:
        """How many tokens the request has read after the batch."""
        return self.known + self.new


class PagedKeys:
    """The keys of a batch of single tokens in one attention layer.

    Parameters
    ----------
    batch : Batch
        Shared by the layers.
    layer : int
        The layer's number among the attention layers.
    """

    def __init__(self, batch: Batch, layer: int) -> None:
        self._batch, self._layer = batch, layer

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens precede each token."""
        return self._batch.positions

    def extended(self, k: np.ndarray, v: np.ndarray) -> PagedKeys:
        """Write keys and values (N, heads, 1, d_head) to their rooms, and return this memory."""
        batch, (_, heads, _, d) = self._batch, k.shape
        memory = batch.pool.memory.reshape(-1, d)
        for half, x in enumerate((k, v)):
            head = np.arange(heads) + (2 * self._layer + half) * heads
            memory[batch.rows[:, None] + head * batch.sizes[:, None]] = x[:, :, 0]  # (N, heads, d)
        return self

    def attend(self, q: np.ndarray, attention: Attention) -> np.ndarray:
        """Return the attention (N, heads, 1, d) of each token over its own request's keys.

        q is (N, heads, 1, d). Requests with several tokens, whose prompts are being read, call
        ``attention(q, k, v)`` in groups; all others share :func:`attend_one`.
        """
        out = np.empty_like(q)
        for group in self._batch.several:
            rooms = [part.room.views()[self._layer, :, :, : part.end] for _, part in group]
            own = side_by_side([q[at : at + p.new, :, 0].swapaxes(0, 1) for at, p in group])
            keys, values = (side_by_side([room[half] for room in rooms]) for half in (0, 1))
            for (at, part), y in zip(group, attention(own, keys, values)):  # y (heads, T, d)
                out[at : at + part.new, :, 0] = y[:, : part.new].swapaxes(0, 1)
        single = self._batch.single
        if len(single):
            grids = [(keys[self._layer], values[self._layer]) for keys, values in self._batch.grids]
            out[single, :, 0] = attend_one(q[single, :, 0], grids, self._batch.unseen)
        return out


class Batch:
    """The tokens of a step: whose they are, and where their keys lie.

    Parameters
    ----------
    pool : Pool
    parts : sequence of Part
        In the order of their tokens.

    Attributes
    ----------
    positions : tuple of int
        The position of each token in its own text.
    rows : integer array, shape (N,)
        Where the keys of each token go in head 0 of layer 0, as rows of the pool: see
        ``KeyRoom.row``.
    sizes : integer array, shape (N,)
        The pages of each token's lease: how many rows a head has.
    single : integer array
        The places in the batch of tokens that are their request's only ones, in the order of their
        rooms.
    grids : list of (keys, values)
        The rooms of these tokens, in arrays (layers, R, G, d, n) and (layers, R, G, n, d). An array
        is a view of R rooms that adjoin and are of one size; n is how many places its tokens see at
        most.
    unseen : array of bool, shape (N, 1, 1, n), or None
        Which places a single token does not see; None if all see equally many.
    several : list of list of (int, Part)
        The other parts, each with the place of its first token, in groups that attend together.
    """

    def __init__(self, pool: Pool, parts: Sequence[Part]) -> None:
        self.pool, self.parts = pool, parts
        counts = np.array([part.new for part in parts])
        ends = np.cumsum(counts)
        self.ends = ends - 1  # the place of each part's last token
        first = np.array([part.known for part in parts]) - (ends - counts)
        positions = np.repeat(first, counts) + np.arange(ends[-1])
        self.positions = tuple(positions.tolist())
        self.rows = np.repeat([part.room.row for part in parts], counts) + positions
        self.sizes = np.repeat([part.room.lease.pages for part in parts], counts)
        starts = (ends - counts).tolist()
        self.several = in_groups([(at, p) for at, p in zip(starts, parts) if p.new > 1])
        single = [(at, p) for at, p in zip(starts, parts) if p.new == 1]
        single.sort(key=lambda one: one[1].room.lease.start)
        self.single = np.array([at for at, _ in single], np.int64)
        self.grids = [_grid(pool, own) for own in side_by_side_rooms([p for _, p in single])]
        seen = np.array([p.end for _, p in single])
        self.unseen = None
        if len(set(seen.tolist())) > 1:
            self.unseen = (np.arange(seen.max()) >= seen[:, None])[:, None, None]

    def memory(self, layout: KeyLayout) -> TextMemory:
        """Return the memory with which the model reads the batch."""

        def keys(memory: Any) -> Any:
            if isinstance(memory, list):
                return [keys(part) for part in memory]
            return None if memory is None else PagedKeys(self, memory)

        return TextMemory(self.positions, keys(layout.memory))


def in_groups(parts: Sequence[tuple[int, Part]]) -> list[list[tuple[int, Part]]]:
    """Return parts in groups: prompts read from their start, each at least half the longest.

    A shorter prompt is padded at its end, which changes none of its numbers, since no token sees
    those after it. The next part of a prompt whose first part was read before forms a group alone.

    Examples
    --------
    >>> from lora_np.serve.batch import Part, in_groups
    >>> parts = [Part(None, known, new) for known, new in ((0, 9), (0, 3), (2, 9), (0, 6), (0, 4))]
    >>> [[at for at, _ in group] for group in in_groups(list(enumerate(parts)))]
    [[2], [0, 3], [4, 1]]
    """
    groups = [[one] for one in parts if one[1].known]
    fresh = sorted((one for one in parts if not one[1].known), key=lambda one: -one[1].new)
    longest = 0
    for one in fresh:
        if 2 * one[1].new < longest or not longest:
            groups.append([])
            longest = one[1].new
        groups[-1].append(one)
    return groups


def side_by_side(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays (heads, T_i, d) as one (N, heads, T, d), padded with zeros at the end.

    A single array is not copied.
    """
    if len(arrays) == 1:
        return arrays[0][None]
    heads, _, d = arrays[0].shape
    T = max(x.shape[1] for x in arrays)
    filled = np.zeros((len(arrays), heads, T, d), arrays[0].dtype)
    for place, x in zip(filled, arrays):
        place[:, : x.shape[1]] = x
    return filled


def side_by_side_rooms(parts: Sequence[Part]) -> list[list[Part]]:
    """Return parts, in the order of their rooms, in runs whose rooms adjoin and are of one size."""
    runs: list[list[Part]] = []
    for part in parts:
        lease = part.room.lease
        last = runs[-1][-1].room.lease if runs else None
        if last is None or (last.start + last.pages, last.pages) != (lease.start, lease.pages):
            runs.append([])
        runs[-1].append(part)
    return runs


def _grid(pool: Pool, run: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys (layers, R, G, d, n) and values (layers, R, G, n, d) of rooms that adjoin."""
    first, c, n = run[0].room.lease, run[0].room.layout, max(part.end for part in run)
    numbers = pool.memory[first.start : first.start + len(run) * first.pages]
    rooms = numbers.reshape(len(run), c.layers, 2, c.heads, first.pages, c.d_head)[..., :n, :]
    rooms = rooms.swapaxes(0, 1)  # (layers, R, 2, G, n, d)
    return rooms[:, :, 0].swapaxes(3, 4), rooms[:, :, 1]


def attend_one(
    q: np.ndarray, grids: Sequence[tuple[np.ndarray, np.ndarray]], unseen: np.ndarray | None
) -> np.ndarray:
    """Return the attention of single queries, each over its own keys, of any number.

    y = softmax(q K^T / sqrt(d)) V, as in ops/grouped.py. The two products are done for one grid of
    keys after the other. The softmax is done for all queries at once, in an array that holds -inf
    at the places that a query does not see.

    Parameters
    ----------
    q : array, shape (N, heads, d)
    grids : sequence of (keys, values)
        Shapes (R, G, d, n) and (R, G, n, d), for the next R queries; G divides the heads.
    unseen : array of bool, shape (N, 1, 1, n), optional
        The places of a query's own keys that it does not see. Their values must be finite.

    Returns
    -------
    array, shape (N, heads, d)
    """
    N, heads, d = q.shape
    G, longest = grids[0][0].shape[1], max(keys.shape[3] for keys, _ in grids)
    rows = (q * (1.0 / math.sqrt(d))).reshape(N, G, heads // G, d)
    scores = np.empty((N, G, heads // G, longest), q.dtype)
    own, at = [], 0
    for keys, _ in grids:
        R, n = len(keys), keys.shape[3]
        own.append((slice(at, at + R), scores[at : at + R, ..., :n]))  # (R, G, g, n)
        np.matmul(rows[at : at + R], keys, own[-1][1])
        at += R
    if unseen is not None:
        np.copyto(scores, -np.inf, where=unseen)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    y = np.empty_like(rows)
    for (queries, score), (_, values) in zip(own, grids):
        np.matmul(score, values, y[queries])  # (R, G, g, d)
    y /= scores.sum(axis=-1, keepdims=True)  # (N, G, g, 1)
    return y.reshape(q.shape)
