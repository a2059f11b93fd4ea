"""The worker processes of a command: their number, and how they start and end."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from lora_np.crew import cores, keep_memory


def jobs_of(arguments: argparse.Namespace, settings: Any) -> int:
    """Return the number of processes: --jobs, by default one per core; on a GPU, one."""
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: expected at least 1")
    if settings.device == "cuda":
        return 1  # one device, one process
    return arguments.jobs or cores()


@contextmanager
def pool_of(jobs: int) -> Iterator[Executor | None]:
    """Give a pool of fresh processes, or None for one job; leaving it drops waiting calls."""
    if jobs == 1:
        yield None
        return
    import multiprocessing

    # Not forked: BLAS's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=start_worker)
    try:
        # Workers inherit this until start_worker runs: a Ctrl-C now is the parent's alone.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        pool.submit(int)  # starts the processes
        signal.signal(signal.SIGINT, before)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """Prepare a worker: it ends with its parent, and prints nothing on Ctrl-C."""
    import multiprocessing
    import threading

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(130)

    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.Thread(target=follow_parent, daemon=True).start()
    keep_memory()
