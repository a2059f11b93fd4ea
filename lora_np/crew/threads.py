"""A crew of one, and a crew of Python threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from types import CodeType
from typing import Any

from lora_np.crew.machine import one_blas_thread

WAITING = {  # (file of the standard library, function) in which threads wait
    ("threading.py", "wait"),
    ("threading.py", "_wait_for_tstate_lock"),
    ("selectors.py", "select"),
    ("thread.py", "_worker"),  # of concurrent.futures: a worker without a task
}

Work = Callable[[int, Any], Any]  # (the member's number, its item) -> a result


class CrewError(RuntimeError):
    """A crew cannot work: one of its processes has ended, or it is not inside its with block."""


class Alone:
    """A crew of one: this thread. BLAS is left as it is.

    Parameters
    ----------
    work : callable
        ``work(member, item)`` is called for every item.

    Examples
    --------
    >>> from lora_np.crew import Alone
    >>> with Alone(lambda member, item: 10 * item + member) as crew:
    ...     crew.map([7])
    [70]
    """

    def __init__(self, work: Work) -> None:
        self.work = work

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def map(self, items: Sequence[Any]) -> list[Any]:
        """Return the work of each item, in order."""
        return [self.work(member, item) for member, item in enumerate(items)]


class Threads(Alone):
    """A crew of Python threads, for use in a ``with`` statement.

    Parameters
    ----------
    work : callable
    size : int
        How many threads; `map` takes at most as many items.

    Examples
    --------
    >>> from lora_np.crew import Threads
    >>> with Threads(lambda member, item: 10 * item + member, size=2) as crew:
    ...     crew.map([7, 8])
    [70, 81]
    """

    def __init__(self, work: Work, size: int) -> None:
        super().__init__(work)
        self.size, self.blas = size, one_blas_thread()
        self.pool: Any = None

    def __enter__(self) -> Threads:
        from concurrent.futures import ThreadPoolExecutor

        self.blas.__enter__()
        self.pool = ThreadPoolExecutor(self.size)
        return self

    def __exit__(self, *args: object) -> None:
        self.pool.shutdown()
        self.pool = None
        self.blas.__exit__()

    def map(self, items: Sequence[Any]) -> list[Any]:
        """Return the work of each item, in order."""
        if self.pool is None:
            raise CrewError("a crew works inside its with block")
        # np.errstate lives in a thread's context: hand it on.
        futures = [
            self.pool.submit(copy_context().run, self.work, member, item)
            for member, item in enumerate(items)
        ]
        for future in futures:
            future.exception()  # all are done before the first error is raised
        return [future.result() for future in futures]


def threads_at_work() -> list[str]:
    """Return the names of other Python threads that may be inside BLAS now.

    BLAS waits for its callers before it lets a process fork, and a fork beside them may never end.
    Threads that only wait are left out: those of a progress bar, of an idle pool, of a server.

    Examples
    --------
    >>> from lora_np.crew import threads_at_work
    >>> threads_at_work()
    []
    """
    frames = sys._current_frames()
    others = [t for t in threading.enumerate() if t is not threading.current_thread()]
    return [t.name for t in others if t.ident in frames and not _waits(frames[t.ident].f_code)]


def _waits(code: CodeType) -> bool:
    """Whether a thread whose innermost function this is waits for others."""
    return (Path(code.co_filename).name, code.co_name) in WAITING
