"""A crew of one, a crew of Python threads, and an executor without either."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextvars import copy_context
from pathlib import Path
from types import CodeType
from typing import Any

from lora_np.crew import machine
from lora_np.crew.machine import one_blas_thread

WAITING = {  # functions of the standard library in which threads wait: (file, function)
    ("threading.py", "wait"),
    ("threading.py", "_wait_for_tstate_lock"),
    ("selectors.py", "select"),
    ("thread.py", "_worker"),  # of concurrent.futures: a worker without a task
}

Work = Callable[[int, Any], Any]  # work(number of the member, item) -> result


class CrewError(RuntimeError):
    """A crew cannot work: a process failed, or the call is outside the with block."""


class Alone:
    """A crew of one, this thread. The setting of BLAS is not changed.

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
        """Return the result for each item, in order."""
        return [self.work(member, item) for member, item in enumerate(items)]


class InProcess(Executor):
    """An executor that runs each call at once, in this thread.

    Examples
    --------
    >>> from lora_np.crew import InProcess
    >>> InProcess().submit(max, 2, 3).result()
    3
    """

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Call `fn` and return its finished future."""
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Threads(Alone):
    """A crew of Python threads, for use in a ``with`` block.

    Where Python cannot start threads, as in a browser, the members work one after another in this
    thread: what they return is the same, as long as none waits for another.

    Parameters
    ----------
    work : callable
        Called as ``work(member, item)``.
    size : int
        The number of threads.

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
        self.pool = ThreadPoolExecutor(self.size) if machine.has_threads() else InProcess()
        return self

    def __exit__(self, *args: object) -> None:
        self.pool.shutdown()
        self.pool = None
        self.blas.__exit__()

    def map(self, items: Sequence[Any]) -> list[Any]:
        """Return the result for each item, in order."""
        if self.pool is None:
            raise CrewError("a crew works inside its with block")
        # np.errstate belongs to a thread's context: each item runs in a copy of this one.
        futures = [
            self.pool.submit(copy_context().run, self.work, member, item)
            for member, item in enumerate(items)
        ]
        for future in futures:
            future.exception()  # wait for all items before the first error is raised
        return [future.result() for future in futures]


def threads_at_work() -> list[str]:
    """Return the names of other Python threads that may be inside BLAS now.

    At a fork BLAS waits until no thread is inside it, so a fork beside such a thread may never
    return. Waiting threads, such as those of a progress bar, an idle pool or a server, are left
    out.

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
    """Whether a thread that is inside this function waits for others."""
    return (Path(code.co_filename).name, code.co_name) in WAITING
