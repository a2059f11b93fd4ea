"""One memory in pages: requests take pages for their keys, and adapters for their weights.

A page holds a fixed number of numbers. Whoever needs memory takes a lease: a run of neighbouring
pages. The numbers of a lease are one array, which matrix products read without copying. Keys and
adapters share the pages, so no split between the two has to be chosen beforehand (S-LoRA's unified
paging).

S-LoRA's kernels for GPUs read scattered pages as fast as neighbouring ones. NumPy would have to
gather scattered pages into a new array at every step. So a lease is never scattered. When the free
pages suffice but no run of them is long enough, the pool moves its leases together, once::

    aa..bbb.c...        d takes 5 pages: no run is that long
    aabbbc......        moved
    aabbbcddddd.

Source: Sheng et al. (2023), arXiv:2311.03285, section 4.2.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

import numpy as np


class Lease:
    """A run of neighbouring pages; :meth:`Pool.take` makes it.

    Attributes
    ----------
    start, pages : int
        The first page, and how many there are. `start` changes if the pool moves the lease.
    at_end : bool
        The side of the pool that it was taken from.
    """

    def __init__(self, pool: Pool, start: int, pages: int, at_end: bool) -> None:
        self._pool, self.start, self.pages, self.at_end = pool, start, pages, at_end

    @property
    def numbers(self) -> np.ndarray:
        """The lease's numbers (pages * page,), a view: valid until ``pool.moves`` changes."""
        return self._pool.memory[self.start : self.start + self.pages].reshape(-1)


class Pool:
    """Memory in pages.

    Parameters
    ----------
    pages : int
    page : int
        How many numbers a page holds.
    dtype : numpy dtype

    Raises
    ------
    ValueError
        If `pages` or `page` is below 1.

    Attributes
    ----------
    memory : numpy.ndarray, shape (pages, page)
    free : int
        The number of free pages.
    moves : int
        How many times leases were moved: after a move, views of their numbers are out of date.

    Examples
    --------
    >>> from lora_np.serve.pool import Pool
    >>> pool = Pool(10, 4)
    >>> a, b, c = pool.take(4), pool.take(3), pool.take(3)
    >>> c.numbers[:] = 1.0
    >>> pool.give_back(a), pool.give_back(b), pool.take(8) is None
    (None, None, True)
    >>> d = pool.take(7)
    >>> pool.free, c.start, d.start, pool.moves
    (0, 7, 0, 0)
    """

    def __init__(self, pages: int, page: int, dtype: Any = np.float32) -> None:
        if pages < 1 or page < 1:
            raise ValueError(f"{pages} pages of {page} numbers, expected at least 1 of each")
        try:
            self.memory = np.zeros((pages, page), dtype)
        except (MemoryError, ValueError):  # ValueError: beyond what can be addressed
            size = pages * page * np.dtype(dtype).itemsize
            raise ValueError(
                f"{pages} pages take {size / 2**30:.0f} GiB, which this machine does not have: "
                "choose fewer"
            ) from None
        self.free, self.moves = pages, 0
        self._gaps = [(0, pages)]  # runs of free pages, (start, pages), in order
        self._leases: set[Lease] = set()

    @property
    def pages(self) -> int:
        """The number of pages, free or taken."""
        return len(self.memory)

    def pages_for(self, numbers: int) -> int:
        """Return how many pages hold so many numbers."""
        return -(-numbers // self.memory.shape[1])

    def take(self, pages: int, at_end: bool = False) -> Lease | None:
        """Return a lease of so many pages, or None if there are not enough free ones.

        The lease begins the first run that is long enough or, with `at_end`, ends the last one.
        Keys are taken from one side and adapters from the other, so that the free pages between
        them tend to be one run. Leases may be moved. Less than 1 page raises ValueError.
        """
        if pages < 1:
            raise ValueError(f"a lease of {pages} pages, expected at least 1")
        if pages > self.free:
            return None
        if all(n < pages for _, n in self._gaps):
            self._move_together()
        long = [i for i, (_, n) in enumerate(self._gaps) if n >= pages]
        at = long[-1] if at_end else long[0]
        start, n = self._gaps.pop(at)
        if n > pages:
            rest = start if at_end else start + pages
            self._gaps.insert(at, (rest, n - pages))
        self.free -= pages
        lease = Lease(self, start + n - pages if at_end else start, pages, at_end)
        self._leases.add(lease)
        return lease

    def give_back(self, lease: Lease) -> None:
        """Free the pages of a lease; raise ValueError if it is not, or no longer, of this pool."""
        if lease not in self._leases:
            raise ValueError("the lease is not of this pool, or was given back before")
        self._leases.remove(lease)
        self.free += lease.pages
        at = bisect_left(self._gaps, (lease.start, 0))
        start, n = lease.start, lease.pages
        if at < len(self._gaps) and self._gaps[at][0] == start + n:
            n += self._gaps.pop(at)[1]
        if at > 0 and sum(self._gaps[at - 1]) == start:
            before = self._gaps.pop(at - 1)
            start, n = before[0], before[1] + n
        insort(self._gaps, (start, n))

    def _move_together(self) -> None:
        """Move all leases to the two sides, in their order: the free pages become one run.

        Those up to the last that was taken from the beginning go there, and the others to the end.
        """
        leases = sorted(self._leases, key=lambda lease: lease.start)
        split = next((i for i in range(len(leases), 0, -1) if not leases[i - 1].at_end), 0)
        first, last = 0, self.pages
        self.moves += 1
        try:
            for lease in leases[:split]:
                self._move(lease, first)
                first += lease.pages
            for lease in reversed(leases[split:]):
                last -= lease.pages
                self._move(lease, last)
        finally:  # an interrupt in between harms nothing
            self._gaps = self._runs_between(leases)

    def _move(self, lease: Lease, start: int) -> None:
        """Move a lease; its old and new place may overlap."""
        if start != lease.start:
            numbers, page = self.memory.reshape(-1), self.memory.shape[1]
            numbers[start * page : (start + lease.pages) * page] = lease.numbers
            lease.start = start

    def _runs_between(self, leases: list[Lease]) -> list[tuple[int, int]]:
        """Return the runs of free pages, (start, pages), between leases in their order."""
        ends = [0, *(lease.start + lease.pages for lease in leases)]
        starts = [*(lease.start for lease in leases), self.pages]
        return [(end, start - end) for end, start in zip(ends, starts) if start > end]
