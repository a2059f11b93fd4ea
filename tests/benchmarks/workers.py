"""Sides in processes of their own, which run actions on command and otherwise block.

A side is an object in a fresh process. Two NumPy or PyTorch thread pools in one process would
compete; here each side has the cores to itself while it runs. A waiting side is blocked in a read.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# A side sets its threads itself: the same number on either, whatever the shell says.
THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)
SETTLE = 0.06  # seconds; thread pools spin for up to 30 ms after their last product
PATIENCE = 5.0  # seconds that a worker has to end by itself


class WorkerError(RuntimeError):
    """A side failed; the message holds its traceback."""


class Side:
    """Named actions, timed on command; what a worker holds."""

    def __init__(self) -> None:
        self.actions: dict[str, Callable[[], Any]] = {}
        self.waited, self.used_while_waiting = 0.0, 0.0
        self.clock: Callable[[], float] = time.perf_counter

    def run(self, action: str, count: int) -> list[float]:
        """Return the seconds of `count` calls, after one that warms the caches; then settle."""
        function, seconds = self.actions[action], []
        function()
        for _ in range(count):
            start = self.clock()
            function()
            seconds.append(self.clock() - start)
        time.sleep(SETTLE)  # the next side finds the cores free
        return seconds

    def results(self, action: str, count: int) -> list[Any]:
        """Return what `count` calls return."""
        return [self.actions[action]() for _ in range(count)]

    def peak_bytes(self, action: str, count: int) -> int:
        """Return the most memory that this process held during `count` calls, its code included.

        It is what Linux calls VmHWM, set back before the calls; elsewhere there is an error.
        """
        self.results(action, 1)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.results(action, count)
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
        return 1024 * int(peak)

    def forget(self) -> None:
        """Drop all actions, and the models that they hold."""
        self.actions.clear()

    def idle_cpu(self) -> float:
        """Return the CPU seconds that this process used for each second that it waited."""
        return self.used_while_waiting / max(self.waited, 1e-9)


class Worker:
    """A side in a process of its own; use it in a ``with`` statement.

    Parameters
    ----------
    side : str
        "module.Class", imported in the new process only.
    **options
        The class's arguments.
    """

    def __init__(self, side: str, **options: Any) -> None:
        self.name = side.rpartition(".")[2]
        context = multiprocessing.get_context("spawn")  # thread pools do not survive a fork
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, f"tests.benchmarks.{side}", options)
        self._process = context.Process(target=serve, args=arguments)  # no daemon: it may fork
        with thread_settings(None):
            self._process.start()
        theirs.close()
        self._receive()  # it is up

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the side's method over there and return its result.

        Raises
        ------
        WorkerError
            If it fails, or the process ends.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError:
            raise WorkerError(f"{self.name}: the process has ended") from None
        return self._receive()

    def _receive(self) -> Any:
        try:
            failure, result = self._pipe.recv()
        except EOFError:
            raise WorkerError(f"{self.name}: the process has ended") from None
        if failure:
            raise WorkerError(f"{self.name}: {failure}")
        return result

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


@contextmanager
def thread_settings(threads: int | None) -> Iterator[None]:
    """Give processes that start meanwhile this number of threads, or None for no setting."""
    before = {name: os.environ.pop(name, None) for name in THREAD_SETTINGS}
    if threads is not None:
        os.environ.update(dict.fromkeys(THREAD_SETTINGS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def serve(pipe: Connection, path: str, options: dict[str, Any]) -> None:
    """Make a side and obey the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends us
    module, _, name = path.rpartition(".")
    try:
        side: Side = getattr(import_module(module), name)(**options)
        pipe.send((None, None))
    except Exception:
        pipe.send((traceback.format_exc(), None))
        return
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        side.waited += time.perf_counter() - wall
        side.used_while_waiting += time.process_time() - cpu
        try:
            reply = (None, getattr(side, method)(*arguments))
        except Exception:
            reply = (traceback.format_exc(), None)
        pipe.send(reply)
