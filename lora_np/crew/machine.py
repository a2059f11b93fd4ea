"""What the machine offers: threads, processes, cores; glibc's memory; the threads of BLAS.

In a browser Python starts no thread and no process. Everything runs there all the same: the members
of a crew take turns. The functions of other files ask :func:`has_threads` and
:func:`has_processes`, so that what a browser lacks is decided here alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import lru_cache
from typing import Any


def has_threads() -> bool:
    """Return whether Python can start threads here: not in a browser.

    Examples
    --------
    >>> from lora_np.crew import has_threads
    >>> has_threads()
    True
    """
    return sys.thread_info.name != "pthread-stubs"


def has_processes() -> bool:
    """Return whether Python can start processes here: not in a browser.

    Examples
    --------
    >>> from lora_np.crew import has_processes
    >>> has_processes()
    True
    """
    return sys.platform not in ("emscripten", "wasi")


class one_blas_thread:
    """A context in which BLAS uses one thread; the setting is restored afterwards.

    Small products gain nothing from a second BLAS thread, so the cores are free for independent
    runs. With equal thread counts, equal inputs also give bit-equal results in every worker. The
    setting belongs to the whole process: the first Python thread to enter the context sets it, and
    the last one to leave restores it.

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
        here = one_blas_thread
        with here._lock:
            if here._inside == 0 and has_threads():
                here._limits = _controller(len(sys.modules)).limit(limits=1, user_api="blas")
            here._inside += 1

    def __exit__(self, *args: object) -> None:
        here = one_blas_thread
        with here._lock:
            here._inside -= 1
            if here._inside == 0 and here._limits is not None:
                _release_blas()
                here._limits.restore_original_limits()
                _release_blas()
                here._limits = None


@lru_cache(maxsize=1)
def _controller(modules: int) -> Any:
    """Find the BLAS libraries of this process; `modules`, a number, is how many have been loaded.

    The search takes 2 ms, and a library comes with a module: only a new number repeats it.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _release_blas() -> None:
    """Let any thread change BLAS's setting: threadpoolctl 3.8 allows only the one that set it."""
    import threadpoolctl

    release = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


def cores() -> int:
    """Return the number of cores that this process may use.

    Examples
    --------
    >>> from lora_np.crew import cores
    >>> cores() >= 1
    True
    """
    if not has_threads():
        return 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def progress_bar(*arguments: Any, **settings: Any) -> Any:
    """Return a progress bar of tqdm, whose own thread is left out where there are no threads."""
    from tqdm import tqdm

    if not has_threads():
        tqdm.monitor_interval = 0
    return tqdm(*arguments, **settings)


def keep_memory() -> None:
    """Ask glibc to keep freed memory for reuse; do nothing with another C library.

    Otherwise large temporaries are returned to the system and page-faulted in again at every step.
    The setting cannot be undone, so only our own processes make it, never an import.
    """
    M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc: everything works, but slower
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
