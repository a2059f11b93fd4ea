"""Who does the work: this thread alone, Python threads, or forked processes; and BLAS's threads.

A crew shares the samples of a batch. Every member works with BLAS at one thread: threads inside
BLAS would compete with the crew, and the two together are slower than either. What pays:

- Threads run side by side where NumPy's loops and BLAS have released the interpreter's lock. For
  each of a step's hundreds of calls they must take it back, and then wait for one another.
- Processes have a lock each. They see the model as it was when they were forked, and afterwards
  only what lies in shared memory (:func:`shared_empty`) or is sent to them.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WAITING = {  # (file of the standard library, function) in which threads wait
    ("threading.py", "wait"),
    ("threading.py", "_wait_for_tstate_lock"),
    ("selectors.py", "select"),
    ("thread.py", "_worker"),  # of concurrent.futures: a worker without a task
}

Work = Callable[[int, Any], Any]  # (the member's number, its item) -> a result
PATIENCE = 5.0  # seconds that a process has to end by itself, or to go on after it was stopped
STUCK = 120.0  # seconds that a process may wait for something without computing
BEAT = 0.5  # seconds between two looks at a process that has not answered yet


class CrewError(RuntimeError):
    """A crew cannot work: one of its processes has ended, or it is not inside its with block."""


class one_blas_thread:
    """A context that holds BLAS at one thread and restores the setting after.

    Small products gain nothing from a second BLAS thread, and independent runs then share the
    cores; equal thread counts also make equal inputs give bit-equal results in every worker. The
    setting belongs to the whole process: of several Python threads in here, the first sets it and
    the last one out restores it.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.crew import one_blas_thread
    >>> with one_blas_thread():
    ...     float((np.ones((2, 2)) @ np.ones(2)).sum())
    4.0
    """

    _lock = threading.Lock()
    _inside = 0
    _limits: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        here = one_blas_thread
        with here._lock:
            if here._inside == 0:
                here._limits = threadpool_limits(limits=1, user_api="blas")
            here._inside += 1

    def __exit__(self, *args: object) -> None:
        here = one_blas_thread
        with here._lock:
            here._inside -= 1
            if here._inside == 0:
                _release_blas()
                here._limits.restore_original_limits()
                _release_blas()


def _release_blas() -> None:
    """Let any thread change BLAS's setting: threadpoolctl 3.8 minds only the one that set it."""
    import threadpoolctl

    release = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


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


class Processes(Alone):
    """A crew of processes, forked when the ``with`` statement is entered.

    Parameters
    ----------
    work : callable
        Is not pickled: a process has it, and all that it refers to, from its parent.
    size : int
        How many processes; `map` takes at most as many items. Items and results are pickled.

    Raises
    ------
    ValueError
        Where processes cannot be forked.

    Examples
    --------
    >>> from lora_np.crew import Alone, Processes, can_fork, shared_empty
    >>> seen = shared_empty((1,), float)
    >>> def work(member, item):
    ...     seen[0] += item  # the parent sees it
    ...     return 2 * item
    >>> with Processes(work, size=1) if can_fork() else Alone(work) as crew:
    ...     crew.map([7])
    [14]
    >>> seen.tolist()
    [7.0]
    """

    def __init__(self, work: Work, size: int) -> None:
        super().__init__(work)
        if not can_fork():
            raise ValueError(
                "processes are forked, which only Linux does safely, and a daemon process (as a "
                "Pool's are) may not: take threads"
            )
        self.size, self.blas = size, one_blas_thread()
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []

    def __enter__(self) -> Processes:
        self.blas.__enter__()  # the processes inherit it
        try:
            for member in range(self.size):
                self._fork(member)
        except BaseException:  # no memory, no more processes, or Ctrl-C
            self.__exit__()
            raise
        return self

    def _fork(self, member: int) -> None:
        import multiprocessing

        context: Any = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        self.pipes.append(ours)
        task = (self.work, member, theirs, tuple(self.pipes))
        process = context.Process(target=_serve, args=task, daemon=True)
        process.start()
        theirs.close()
        self.processes.append(process)

    def __exit__(self, *args: object) -> None:
        try:
            self._dismiss()
            for process in self.processes:
                process.join(PATIENCE)
        finally:  # whatever else interrupts: no process stays, and BLAS is as it was
            for process in self.processes:
                process.kill()  # nothing, if it has ended
                process.join()
            self.pipes, self.processes = [], []
            self.blas.__exit__()

    def _dismiss(self) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):  # closed already, or its process has ended
                pipe.send(None)  # closing alone is not seen while another fork holds the pipe
            pipe.close()

    def map(self, items: Sequence[Any]) -> list[Any]:
        """Return the work of each item, in order; raise the first error after all are done.

        Raises
        ------
        CrewError
            If a process has ended, was stopped, or does not compute; the crew is then of no more
            use.
        """
        if len(items) > len(self.pipes):
            raise CrewError(
                f"{len(items)} items for {len(self.pipes)} processes; a crew works inside its with "
                "block"
            )
        try:
            for pipe, item in zip(self.pipes, items):
                pipe.send((item,))
            working = zip(self.pipes, self.processes, items)
            replies = [_receive(pipe, process.pid) for pipe, process, _ in working]
        except BaseException as error:
            self._dismiss()  # replies still under way must not be taken for the next call's
            if not isinstance(error, EOFError | OSError):
                raise
            raise CrewError(
                f"one of {self.size} processes was ended from outside (was memory short?), or the "
                "crew was interrupted before"
            ) from None
        for error, _ in replies:
            if error is not None:
                raise error
        return [result for _, result in replies]


def _receive(pipe: Connection, pid: int) -> Any:
    """Return what a process answers; raise CrewError if it never will."""
    stopped = idle = 0.0  # seconds, so far
    _, before = _state_of(pid)
    while not pipe.poll(BEAT):
        state, ticks = _state_of(pid)
        stopped = stopped + BEAT if state in "Tt" else 0.0
        idle = idle + BEAT if state not in "Rx" and ticks == before else 0.0
        before = ticks
        if stopped >= PATIENCE:
            raise CrewError(
                f"process {pid} was stopped from outside (state {state}) and does not go on: "
                f"kill -CONT {pid} would have continued it"
            )
        if idle >= STUCK:
            raise CrewError(f"process {pid} has not computed for {idle:.0f} s (state {state})")
    return pipe.recv()


def _state_of(pid: int) -> tuple[str, int]:
    """Return a process's state (R runs, S sleeps, T is stopped, ...) and its CPU time in ticks."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "x", 0  # it has ended, which the pipe tells
    fields = text.rpartition(")")[2].split()  # behind the program's name, which may hold anything
    return fields[0], int(fields[11]) + int(fields[12])


def _serve(work: Work, member: int, pipe: Connection, parents: Sequence[Connection]) -> None:
    """Do what the pipe asks for until the parent closes it, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in parents:
        other.close()  # or this process would keep the others' pipes open
    keep_memory()
    while True:
        try:
            message = pipe.recv()
            if message is None:
                return
            pipe.send(_reply(work, member, *message))
        except (EOFError, OSError):
            return  # the parent has ended, or did not wait


def _reply(work: Work, member: int, item: Any) -> tuple[BaseException | None, Any]:
    """Return (None, result), or (what was raised, None)."""
    try:
        return None, work(member, item)
    except BaseException as error:
        return _portable(error), None


def _portable(error: BaseException) -> BaseException:
    """Return the error if it survives pickling, else its text."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return CrewError(traceback.format_exc())


def can_fork() -> bool:
    """Return whether this process may fork others: on Linux, unless it is a daemon itself."""
    import multiprocessing

    return sys.platform == "linux" and not multiprocessing.current_process().daemon


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


def shared_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array in memory that processes forked from now on share, filled with zeros.

    Examples
    --------
    >>> from lora_np.crew import shared_empty
    >>> shared_empty((2, 3), "float32").sum(axis=0).tolist()
    [0.0, 0.0, 0.0]
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


def cores() -> int:
    """Return how many cores this process may use.

    Examples
    --------
    >>> from lora_np.crew import cores
    >>> cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_memory() -> None:
    """Ask glibc to keep freed memory for reuse; elsewhere do nothing.

    Large temporaries are otherwise returned to the system and page-faulted in again at every step.
    The setting cannot be taken back, so only processes of our own make it, never an import.
    """
    M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc: everything works, only slower
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
