"""Attention over packed rows: several samples stand end to end in a row, and none sees another.

The positions of a row restart at 0 with each sample that shares nothing::

    row        a a a b b b b c c          positions   0 1 2 0 1 2 3 0 1

A row's attention is that of its samples, each alone: the products of a sample with another, whose
weights a mask would make zero, are never formed. Every other layer works on each position alone and
does not know of samples.

A sample may share its first tokens with the one that last began at 0. Its positions then restart at
their number s, and its queries look at the keys of these s tokens and at its own::

    row        a a a a b b b c c          positions   0 1 2 3 2 3 4 3 4
                                          b attends to a a b b b, c to a a a c c

The gradients of shared keys and values are the sums over the samples that share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, to_host


class Segment(NamedTuple):
    """A sample of a packed batch: its row, and where its tokens stand in the row."""

    row: int
    start: int  # its own tokens are those from start to stop - 1
    stop: int
    root: int  # the tokens that it shares with an earlier sample are those from root
    shared: int  # how many they are


class PackedCache(NamedTuple):
    """The shapes of q, k and v, and the cache of each sample."""

    shapes: tuple[tuple[int, ...], ...]
    caches: list[Any]


class Packing:
    """Where the samples of packed rows lie.

    Parameters
    ----------
    positions : integer array, shape (B, T)
        Counted from 0, or from the number of shared tokens, at the start of each sample.

    Attributes
    ----------
    positions : numpy.ndarray, shape (B, T)
        On the host.
    segments : list of Segment

    Raises
    ------
    ShapeError
        If the positions are of another form.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.layers.packing import Packing
    >>> [tuple(part) for part in Packing(np.array([[0, 1, 2, 0, 1, 1]])).segments]
    [(0, 0, 3, 0, 0), (0, 3, 5, 3, 0), (0, 5, 6, 3, 1)]
    """

    def __init__(self, positions: Array) -> None:
        self.positions = host = to_host(positions)
        if host.ndim != 2:
            raise ShapeError(f"positions has shape {host.shape}, expected (B, T)")
        self.segments = [part for row, own in enumerate(host) for part in _segments(row, own)]

    def forward(self, attention: Callable, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        """Return ``attention(q, k, v)`` of each sample; the arrays are (B, heads, T, d)."""
        y = get_xp(q).empty_like(q, shape=(*q.shape[:-1], v.shape[-1]))
        caches = []
        for segment in self.segments:
            own = np.s_[segment.row, :, segment.start : segment.stop]
            y[own], cache = attention(q[own], _seen(k, segment), _seen(v, segment))
            caches.append(cache)
        return y, PackedCache((q.shape, k.shape, v.shape), caches)

    def backward(
        self, attention: Callable, dy: Array, cache: PackedCache, need: Sequence[bool]
    ) -> tuple[Array | None, ...]:
        """Return (dq, dk, dv) from ``attention(dy, cache, need)`` of each sample."""
        xp = get_xp(dy)
        dq, dk, dv = (
            xp.empty(shape, dy.dtype) if needed else None
            for shape, needed in zip(cache.shapes, need)
        )
        for segment, inner in zip(self.segments, cache.caches):
            own = np.s_[segment.row, :, segment.start : segment.stop]
            dq_own, *seen = attention(dy[own], inner, need)
            if dq is not None:
                dq[own] = dq_own
            for whole, part in zip((dk, dv), seen):
                if whole is not None:
                    whole[own] = part[:, segment.shared :]
                    whole[_shared(segment)] += part[:, : segment.shared]
        return dq, dk, dv


def _shared(segment: Segment) -> Any:
    """Return the place of the tokens that a sample shares, in an array (B, heads, T, d)."""
    return np.s_[segment.row, :, segment.root : segment.root + segment.shared]


def _seen(k: Array, segment: Segment) -> Array:
    """Return the keys or values (heads, shared + own, d) that a sample attends to."""
    own = k[segment.row, :, segment.start : segment.stop]
    if segment.shared == 0:
        return own
    return get_xp(k).concatenate((k[_shared(segment)], own), axis=1)


def _segments(row: int, positions: np.ndarray) -> list[Segment]:
    """Return the samples of one row (T,)."""
    starts = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist()][: positions.size]
    found, root, length = [], 0, 0  # the sample that last began at 0, and its number of tokens
    for start, stop in zip(starts, [*starts[1:], positions.size]):
        shared = int(positions[start])
        if shared == 0:
            root, length = start, stop - start
        elif not 0 < shared <= length:
            raise ShapeError(
                f"positions of row {row}: {shared} at token {start}, expected the next number, 0, "
                f"or at most {length}, the tokens of the sample that last began at 0"
            )
        found.append(Segment(row, start, stop, root, shared))
    return found
