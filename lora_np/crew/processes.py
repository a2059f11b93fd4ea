"""A crew of forked processes, the memory that they share, and errors for a stuck process."""

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

PATIENCE = 5.0  # seconds in which a process must end, or continue if it was stopped
STUCK = 120.0  # seconds that a process may wait without computing
BEAT = 0.5  # seconds between two looks at a process that has not replied yet


class Processes(Alone):
    """A crew of processes, forked when the ``with`` block is entered.

    Parameters
    ----------
    work : callable
        Called as ``work(member, item)``. It is not pickled: a forked process has it, and all that
        it refers to, from its parent.
    size : int
        The number of processes, and of the items that `map` accepts at most. Items and results are
        pickled.

    Raises
    ------
    ValueError
        If this process may not fork others (see :func:`can_fork`).

    Examples
    --------
    >>> from lora_np.crew import Alone, Processes, can_fork, shared_empty
    >>> seen = shared_empty((1,), float)
    >>> def work(member, item):
    ...     seen[0] += item  # the parent sees this change
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
                "processes are forked, which is safe only on Linux and not allowed in a daemon "
                "process, such as a Pool's: use threads"
            )
        self.size, self.blas = size, one_blas_thread()
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []

    def __enter__(self) -> Processes:
        self.blas.__enter__()  # the processes inherit the setting
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
        finally:  # even after an interrupt no process is left, and BLAS has its old setting
            for process in self.processes:
                process.kill()  # does nothing if the process has ended
                process.join()
            self.pipes, self.processes = [], []
            self.blas.__exit__()

    def _dismiss(self) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):  # already closed, or the process has ended
                pipe.send(None)  # a close is not noticed while another fork holds the pipe
            pipe.close()

    def map(self, items: Sequence[Any]) -> list[Any]:
        """Return the result for each item, in order; raise the first error once all have replied.

        Raises
        ------
        CrewError
            If a process has ended, was stopped, or does not compute. The crew cannot be used
            afterwards.
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
            self._dismiss()  # late replies must not be taken for those of the next call
            if not isinstance(error, EOFError | OSError):
                raise
            raise CrewError(
                f"one of {self.size} processes was killed (was memory short?), or an earlier call "
                "was interrupted: start a new crew"
            ) from None
        for error, _ in replies:
            if error is not None:
                raise error
        return [result for _, result in replies]


def _receive(pipe: Connection, pid: int) -> Any:
    """Return a process's reply; raise CrewError if there will be none."""
    stopped = idle = 0.0  # seconds, so far
    _, before = state_of(pid)
    while not pipe.poll(BEAT):
        state, ticks = state_of(pid)
        stopped = stopped + BEAT if state in "Tt" else 0.0
        idle = idle + BEAT if state not in "Rx" and ticks == before else 0.0
        before = ticks
        if stopped >= PATIENCE:
            raise CrewError(
                f"process {pid} was stopped from outside (state {state}) and did not continue: "
                f"kill -CONT {pid} would have continued it"
            )
        if idle >= STUCK:
            raise CrewError(f"process {pid} has not computed for {idle:.0f} s (state {state})")
    return pipe.recv()


def state_of(pid: int) -> tuple[str, int]:
    """Return a process's state (R runs, S sleeps, T is stopped, ...) and its CPU time in ticks."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "x", 0  # the process has ended: the pipe will report it
    fields = text.rpartition(")")[2].split()  # after the program's name, which may hold anything
    return fields[0], int(fields[11]) + int(fields[12])


def _serve(work: Work, member: int, pipe: Connection, parents: Sequence[Connection]) -> None:
    """Work on the items that come through the pipe until the parent closes it or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in parents:
        other.close()  # otherwise this process would keep the others' pipes open
    keep_memory()
    while True:
        try:
            message = pipe.recv()
            if message is None:
                return
            pipe.send(_reply(work, member, *message))
        except (EOFError, OSError):
            return  # the parent has ended, or no longer waits


def _reply(work: Work, member: int, item: Any) -> tuple[BaseException | None, Any]:
    """Return (None, result), or (the error raised, None)."""
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
    """Return whether this process may fork others: on Linux, unless it is a daemon process."""
    import multiprocessing

    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def shared_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of zeros in memory that is shared with processes forked later.

    Examples
    --------
    >>> from lora_np.crew import shared_empty
    >>> shared_empty((2, 3), "float32").sum(axis=0).tolist()
    [0.0, 0.0, 0.0]
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)
