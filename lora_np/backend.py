"""Where arrays live and how many threads work on them: NumPy on the host, CuPy on a GPU.

Everything above this file is written once, against ``xp = get_xp(x)``, and runs on either. Nothing
is ever converted in passing: what must cross says so with :func:`to_device` or :func:`to_host`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np

Array = Any  # a numpy.ndarray or a cupy.ndarray: the two share the methods used here


class DeviceError(RuntimeError):
    """A device was asked for that this machine or this installation does not have."""


class ShapeError(ValueError):
    """An argument's shape does not fit; the message names it, its shape and the expected one."""


def get_xp(x: Array) -> Any:
    """Return the module that `x` belongs to: ``cupy`` for its arrays, else ``numpy``."""
    cupy = sys.modules.get("cupy")  # no CuPy array exists before somebody imported cupy
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def get_device(name: str) -> Any:
    """Return the array module of a device.

    Parameters
    ----------
    name : {"cpu", "cuda"}

    Raises
    ------
    DeviceError
        If "cuda" is asked for and CuPy is missing or sees no GPU.
    """
    if name == "cpu":
        return np
    if name != "cuda":
        raise DeviceError(f"device {name!r} is unknown: choose 'cpu' or 'cuda'")
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DeviceError("device 'cuda' needs CuPy: pip install '.[gpu]', or use 'cpu'") from None
    if not cupy.cuda.is_available():
        raise DeviceError("device 'cuda' needs a CUDA GPU with its driver, none found: use 'cpu'")
    return cupy


def to_device(x: Array, device: str) -> Array:
    """Return `x` on the device ("cpu" or "cuda"), the same array if it is there already."""
    return to_host(x) if device == "cpu" else get_device(device).asarray(x)


def to_host(x: Array) -> np.ndarray:
    """Return `x` as a NumPy array, copied from the GPU if it lies there."""
    xp = get_xp(x)
    return np.asarray(x) if xp is np else xp.asnumpy(x)


def like(x: np.ndarray, other: Array) -> Array:
    """Return the host array `x` on the device where `other` lies (the same array on a CPU)."""
    return get_xp(other).asarray(x)


def read_only_view(x: Array) -> Array:
    """Return a view of `x`'s memory; on the host, writing through it is an error."""
    view = x.view()
    if get_xp(x) is np:
        view.flags.writeable = False  # CuPy has no such flag: there the Parameter alone says it
    return view


class one_blas_thread:
    """A context that holds BLAS at one thread and restores the setting after.

    Small products gain nothing from a second BLAS thread, and independent runs then share the
    cores; equal thread counts also make equal inputs give bit-equal results in every worker. The
    setting belongs to the whole process: of several Python threads in here, the first sets it and
    the last one out restores it.
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
                here._limits.restore_original_limits()


class Crew:
    """Python threads that share work; with more than one, BLAS is held at one thread each.

    NumPy's loops and BLAS release the interpreter's lock, so two halves of a batch run side by
    side. Threads inside BLAS would compete with these: the two together are slower than either.

    Parameters
    ----------
    threads : int
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: Executor | None = None

    def __enter__(self) -> Crew:
        if self.threads > 1:
            self._blas = one_blas_thread()
            self._blas.__enter__()
            self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *args: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._blas.__exit__()

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Return `work` of each item, in order."""
        if self._pool is None:
            return [work(item) for item in items]
        # np.errstate lives in a thread's context: hand it on.
        contexts = [copy_context() for _ in items]
        return list(self._pool.map(lambda c, item: c.run(work, item), contexts, items))


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_memory() -> None:
    """Ask glibc to keep freed memory for reuse; elsewhere do nothing.

    Large temporaries are otherwise returned to the system and page-faulted in again at every step.
    The setting cannot be taken back, so only our own commands make it, never an import.
    """
    M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc: everything works, only slower
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
