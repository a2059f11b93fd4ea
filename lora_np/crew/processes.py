"""A crew of forked processes, the memory that they share, and what to do when one is stuck."""

from __future__ import annotations

import contextlib
import math
import mmap
import pickle
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np.crew.machine import keep_memory, one_blas_thread
from lora_np.crew.threads import Alone, CrewError, Work

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PATIENCE = 5.0  # seconds that a process has to end by itself, or to go on after it was stopped
STUCK = 120.0  # seconds that a process may wait for something without computing
BEAT = 0.5  # seconds between two looks at a process that has not answered yet


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
