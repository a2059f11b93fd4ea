"""All-gather and all-reduce between the processes of a crew, through shared memory, counted.

Members of a crew that work on one item together hold parts of the same arrays::

    all_gather(x)     every member has its own x; each receives the x of all
    all_reduce(x)     every member has an x of one shape; each receives their sum

An all-reduce is a reduce-scatter and an all-gather: a member adds up its own share of the numbers,
and then all members receive all shares. Each number is added up once, in the order of the members,
so that all members hold bit-equal sums.

The numbers that a member reads from another one are counted. For p members:

- all-gather: each of the n numbers is read by the p - 1 others, (p - 1) n in total;
- all-reduce of n numbers: (p - 1) n to add them up, and (p - 1) n to hand the sums out.

The mean of a member is a p-th part of these: (p - 1) n / p and 2 (p - 1) n / p, as many as each
device of a ring sends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.crew import machine
from lora_np.crew.processes import BEAT, PATIENCE, shared_empty, state_of
from lora_np.crew.threads import CrewError

ROOM = 2**16  # numbers of a member in shared memory; longer arrays are exchanged piece by piece


class MemberLost(CrewError):
    """Another member of the crew has ended, failed or was stopped, so an exchange cannot end."""


class Exchange:
    """The shared memory of the members of a crew, made before they are forked.

    Parameters
    ----------
    size : int
        The number of members.
    dtype : numpy dtype
        Of the arrays that are exchanged.
    kinds : sequence of str
        Names of the kinds of exchange; the numbers of each kind are counted separately.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.crew import Threads
    >>> from lora_np.crew.exchange import Exchange
    >>> exchange = Exchange(2, float, ["sums"])
    >>> def work(member, item):
    ...     return exchange.all_reduce(member, np.full(3, item), "sums").tolist()
    >>> with Threads(work, size=2) as crew:
    ...     crew.map([1.0, 10.0])
    [[11.0, 11.0, 11.0], [11.0, 11.0, 11.0]]
    >>> exchange.sent()  # 3 numbers to add up, and 3 sums handed out
    {'sums': 6}
    """

    def __init__(self, size: int, dtype: Any, kinds: Sequence[str]) -> None:
        import multiprocessing

        if not machine.has_threads():
            raise CrewError("Python starts no threads here, so members cannot wait for one another")
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self.size, self.kinds = size, list(kinds)
        self._offered = shared_empty((size, ROOM), dtype)  # by each member
        self._sums = shared_empty((ROOM,), dtype)
        self._counts = shared_empty((size, len(self.kinds)), np.int64)
        self._pids = shared_empty((size,), np.int64)
        self._failed = shared_empty((1,), np.int8)
        # _arrived[i][j] is raised by member i for member j
        self._arrived = [[context.Semaphore(0) for _ in range(size)] for _ in range(size)]

    def sent(self) -> dict[str, int]:
        """Return how many numbers members have read from one another, by kind."""
        return dict(zip(self.kinds, self._counts.sum(axis=0).tolist()))

    def all_gather(
        self, member: int, x: np.ndarray, lengths: Sequence[int], kind: str
    ) -> list[np.ndarray]:
        """Return the arrays of all members, each a vector.

        Parameters
        ----------
        member : int
            The member that calls. All must call, in the same order.
        x : array, shape (lengths[member],)
        lengths : sequence of int
            How many numbers each member has.
        kind : str
            Where the numbers are counted.
        """
        found = [np.empty(n, x.dtype) for n in lengths]
        for start in range(0, max(lengths), ROOM):
            own = x[start : start + ROOM]
            self._offered[member, : len(own)] = own
            self._meet(member)
            for other, y in enumerate(found):
                part = y[start : start + ROOM]
                part[...] = self._offered[other, : len(part)]
            self._meet(member)  # all have read, before the next piece is laid down
        self._count(member, kind, sum(lengths) - len(x))
        return found

    def all_reduce(self, member: int, x: np.ndarray, kind: str) -> np.ndarray:
        """Return the sum of the members' arrays x, which have one shape."""
        flat, total = x.reshape(-1), np.empty(x.size, x.dtype)
        for start in range(0, x.size, ROOM):
            part = total[start : start + ROOM]
            n = len(part)
            self._offered[member, :n] = flat[start : start + ROOM]
            self._meet(member)
            own = shares(n, self.size)[member]
            self._sums[own] = self._offered[:, own].sum(axis=0)  # a reduce-scatter
            self._meet(member)
            part[...] = self._sums[:n]  # an all-gather
            width = own.stop - own.start
            self._count(member, kind, (self.size - 1) * width + n - width)
        return total.reshape(x.shape)

    # ------------------------------------------------------------------------ who is still there

    def know(self, pids: Sequence[int]) -> None:
        """Remember the members' processes, so that nobody waits for one that has ended."""
        self._pids[:] = pids

    def fail(self) -> None:
        """Let the members that wait for this one raise MemberLost: it has met an error."""
        self._failed[0] = 1

    def _meet(self, member: int) -> None:
        """Wait until all members have come here."""
        others = [other for other in range(self.size) if other != member]
        for other in others:
            self._arrived[member][other].release()
        for other in others:
            self._await(member, other)

    def _await(self, member: int, other: int) -> None:
        """Wait for another member, but not for one that cannot come."""
        stopped = 0.0  # seconds
        while not self._arrived[other][member].acquire(timeout=BEAT):
            if self._failed[0]:
                raise MemberLost("another member of the crew met an error")
            pid = int(self._pids[other])
            state = state_of(pid)[0] if pid else "S"  # 0: a thread of this process
            stopped = stopped + BEAT if state in "Tt" else 0.0
            if state in "ZXx" or stopped >= PATIENCE:
                raise MemberLost(f"process {pid} of the crew has ended or was stopped")

    def _count(self, member: int, kind: str, numbers: int) -> None:
        self._counts[member, self.kinds.index(kind)] += numbers


def shares(n: int, size: int) -> list[slice]:
    """Return n things cut into `size` slices, as equal as possible.

    Examples
    --------
    >>> from lora_np.crew.exchange import shares
    >>> shares(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(n * i // size, n * (i + 1) // size) for i in range(size)]
