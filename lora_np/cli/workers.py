"""The worker processes of a command: their number, and how they start and end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, InvalidStateError, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from lora_np.crew import cores, keep_memory, machine

MOST_ON_WINDOWS = 61  # processes: Python's pool cannot wait for more there


def jobs_of(arguments: argparse.Namespace, settings: Any) -> int:
    """Return the number of processes: --jobs, or one per core; one on a GPU or in a browser."""
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: expected at least 1")
    if settings.device == "cuda" or not machine.has_processes():
        return 1  # one device, one process
    most = MOST_ON_WINDOWS if sys.platform == "win32" else cores()
    return arguments.jobs or min(cores(), most)


@contextmanager
def pool_of(jobs: int) -> Iterator[Executor | None]:
    """Yield a pool of new processes, or None for one job; at the end, cancel waiting tasks."""
    if jobs == 1:
        yield None
        return
    import multiprocessing

    # Spawned, because the threads of BLAS do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=start_worker)
    before_errors, threading.excepthook = threading.excepthook, _quiet_if_cancelled
    try:
        # Workers inherit this until start_worker runs: a Ctrl-C now reaches only the parent.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while len(multiprocessing.active_children()) < jobs:
                pool.submit(int)  # starts one more process, unless one is idle
        finally:
            signal.signal(signal.SIGINT, before)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        threading.excepthook = before_errors


def _quiet_if_cancelled(error: threading.ExceptHookArgs) -> None:
    """Report what ended a thread, but not that a task of a broken pool was cancelled before.

    After Ctrl-C the workers end while tasks are cancelled. The pool's thread in Python 3.11 then
    fails to give such a task its error; later versions ignore that.
    """
    if error.exc_type is not InvalidStateError:
        threading.__excepthook__(error)


def start_worker() -> None:
    """Prepare a worker: it ends with its parent, and ends silently on Ctrl-C."""
    import multiprocessing

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(130)

    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.Thread(target=follow_parent, daemon=True).start()
    keep_memory()
