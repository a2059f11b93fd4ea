"""Attention over packed rows: several samples stand end to end in a row, and none sees another.

The positions of a row restart at 0 with each sample::

    row        a a a b b b b c c          positions   0 1 2 0 1 2 3 0 1

A row's attention is that of its samples, each alone: the products of a sample with another, whose
weights a mask would make zero, are never formed. Every other layer works on each position alone and
does not know of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, to_host


class Segment(NamedTuple):
    """A sample of a packed batch: its row, and its positions start .. stop - 1 in the row."""

    row: int
    start: int
    stop: int


class PackedCache(NamedTuple):
    """The shapes of q, k and v, and the cache of each sample."""

    shapes: tuple[tuple[int, ...], ...]
    caches: list[Any]


class Packing:
    """Where the samples of packed rows lie.

    Parameters
    ----------
    positions : integer array, shape (B, T)
        0, 1, 2, ... from the start of each sample.

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
    >>> [tuple(part) for part in Packing(np.array([[0, 1, 2, 0, 1]])).segments]
    [(0, 0, 3), (0, 3, 5)]
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
        for row, start, stop in self.segments:
            part = np.s_[row, :, start:stop]
            y[part], cache = attention(q[part], k[part], v[part])
            caches.append(cache)
        return y, PackedCache((q.shape, k.shape, v.shape), caches)

    def backward(
        self, attention: Callable, dy: Array, cache: PackedCache, need: Sequence[bool]
    ) -> tuple[Array | None, ...]:
        """Return (dq, dk, dv): ``attention(dy, cache, need)`` of each sample."""
        xp = get_xp(dy)
        found = tuple(
            xp.empty(shape, dy.dtype) if needed else None
            for shape, needed in zip(cache.shapes, need)
        )
        for (row, start, stop), inner in zip(self.segments, cache.caches):
            part = np.s_[row, :, start:stop]
            for whole, own in zip(found, attention(dy[part], inner, need)):
                if whole is not None:
                    whole[part] = own
        return found


def _segments(row: int, positions: np.ndarray) -> list[Segment]:
    """Return the samples of one row (T,)."""
    T = positions.size
    starts = np.flatnonzero(positions == 0)  # the first position of each sample
    lengths = np.diff(starts, append=T)
    expected = np.arange(T)
    if starts.size:
        expected = expected - np.repeat(starts, lengths) if starts[0] == 0 else expected
    if not np.array_equal(positions, expected):
        raise ShapeError(f"positions of row {row}: expected 0, 1, 2, ... from each sample's start")
    return [Segment(row, int(a), int(a + n)) for a, n in zip(starts, lengths)]
