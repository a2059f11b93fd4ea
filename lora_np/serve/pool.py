"""One memory of pages, from which requests take room for their keys and adapters for their weights.

A page is a fixed number of numbers. Whoever needs memory takes a lease: a run of neighbouring
pages, so that its numbers are one array, which matrix products read without copying. Keys and
adapters share the pages, so no split between the two has to be chosen beforehand (S-LoRA's unified
paging).

S-LoRA's kernels for GPUs read scattered pages as fast as neighbouring ones. NumPy would have to
gather scattered pages into a new array at every step. So a lease is never scattered; when the free
pages suffice but no run of them is long enough, the leases are moved together, once::

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
    """

    def __init__(self, pool: Pool, start: int, pages: int) -> None:
        self._pool, self.start, self.pages = pool, start, pages

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
        The numbers of a page.
    dtype : numpy dtype

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
        """The number of all pages."""
        return len(self.memory)

    def pages_for(self, numbers: int) -> int:
        """Return how many pages hold so many numbers."""
        return -(-numbers // self.memory.shape[1])

    def take(self, pages: int) -> Lease | None:
        """Return a lease of so many pages, or None if there are not enough free ones."""
        if pages < 1:
            raise ValueError(f"a lease of {pages} pages, expected at least 1")
        if pages > self.free:
            return None
        at = next((i for i, (_, n) in enumerate(self._gaps) if n >= pages), None)
        if at is None:
            self._move_together()
            at = 0
        start, n = self._gaps.pop(at)
        if n > pages:
            self._gaps.insert(at, (start + pages, n - pages))
        self.free -= pages
        lease = Lease(self, start, pages)
        self._leases.add(lease)
        return lease

    def give_back(self, lease: Lease) -> None:
        """Free the pages of a lease."""
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
        """Move leases down, in their order, until the free pages are one run.

        After each lease the pool is in order, so an interrupt in between harms nothing.
        """
        self.moves += 1
        numbers, page = self.memory.reshape(-1), self.memory.shape[1]
        for lease in sorted(self._leases, key=lambda lease: lease.start):
            (start, n), *rest = self._gaps
            if lease.start < start:
                continue
            if not rest:
                break
            end = start + lease.pages  # the gap moves up, behind the lease
            # Source and target may overlap: in one dimension, NumPy copies in order, in place.
            numbers[start * page : end * page] = lease.numbers
            if rest[0][0] == end + n:
                n += rest.pop(0)[1]
            lease.start, self._gaps = start, [(end, n), *rest]
