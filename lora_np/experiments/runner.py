"""Runs on any executor, kept as they end, and the arrays that their workers map.

A run is a pure function of what it is given and holds BLAS at one thread, so its result does not
depend on the executor or on the order in which runs end.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lora_np.crew import InProcess
from lora_np.files.atomic import PREFIX, WriteError, replacing
from lora_np.train import Diverged

Arrays = Mapping[str, np.ndarray]
Run = TypeVar("Run")
Found = TypeVar("Found")
MAPPED = f"{PREFIX}mapped-"
LONGEST_HEADER = 2**24  # bytes of our own file's; NumPy's limit is for files of strangers


@dataclass(frozen=True)
class Progress:
    """What a listener hears: how many runs are done, of how many expected, and the last one."""

    done: int
    expected: int
    trial: Any
    result: dict[str, Any]


def run_all(
    waiting: Callable[[], Sequence[Run]],
    work: Callable[[Run], Found],
    keep: Callable[[Run, Found, int], None],
    executor: Executor | None = None,
) -> None:
    """Keep an executor busy until no run is left.

    Parameters
    ----------
    waiting : callable
        Returns the runs that can start now, given those that were kept; those that are under way
        may be among them.
    work : callable
        ``work(run)`` carries one out, in any process: it is pickled with every run.
    keep : callable
        ``keep(run, found, running)`` is called in this process for each that ends, with the number
        of those under way. Whatever ends the loop early, every run that was kept stays kept, and
        those that have not started are cancelled.
    executor : concurrent.futures.Executor, optional
        By default this process.

    Examples
    --------
    >>> from lora_np.experiments.runner import run_all
    >>> done = {}
    >>> run_all(
    ...     lambda: [n for n in (1, 2, 3) if n not in done],
    ...     lambda n: n * n,
    ...     lambda n, square, running: done.update({n: square}),
    ... )
    >>> done
    {1: 1, 2: 4, 3: 9}
    """
    executor, running = executor or InProcess(), {}
    try:
        while True:
            for run in (r for r in waiting() if r not in running.values()):
                future = executor.submit(work, run)
                running[future] = run
                if future.done():
                    break  # an executor without workers of its own: keep this one first
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                run = running.pop(future)
                keep(run, future.result(), len(running))
    finally:
        for future in running:
            future.cancel()


def guarded(
    train: Callable[[], tuple[dict[str, Any], Arrays]],
    measured: Sequence[str],
    losses: Sequence[str],
) -> tuple[dict[str, Any], Arrays]:
    """Call ``train()``; if training diverges, that is the result, with None for the losses.

    Parameters
    ----------
    train : callable
        Returns what a run measured, and what it trained.
    measured : sequence of str
        What a run measures; a number that is not finite means that training diverged.
    losses : sequence of str
        The losses among them.

    Examples
    --------
    >>> from lora_np.experiments.runner import guarded
    >>> guarded(lambda: ({"loss": float("inf"), "seconds": 1.0}, {}), ["loss"], ["loss"])[0]
    {'loss': None, 'seconds': 1.0, 'diverged': 'the last step went too far'}
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            result, trained = train()
    except Diverged as error:
        return {**dict.fromkeys(measured), "diverged": str(error)}, {}
    if not all(math.isfinite(result[name]) for name in measured):
        return {**result, **dict.fromkeys(losses), "diverged": "the last step went too far"}, {}
    return result, trained


# ------------------------------------------------------------------- what every run needs


class NotMapped(OSError):
    """A worker cannot see the file of the arrays that it should map."""


class Mapped(Mapping):
    """Arrays by name in a file; pickled as the file's name, and mapped where they are first read.

    Workers on one machine then hold one copy of them between them.

    Parameters
    ----------
    path : Path
        As :func:`mapped` writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] | None = None

    def __reduce__(self) -> tuple:
        return Mapped, (self.path,)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._load()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())

    def _load(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            try:
                whole = np.load(self.path, mmap_mode="r", max_header_size=LONGEST_HEADER)
            except OSError:  # not there, or another user's
                raise NotMapped(f"{self.path} is not visible from here") from None
            self._arrays = {name: np.asarray(whole[name][0]) for name in whole.dtype.names}
        return self._arrays


@contextmanager
def mapped(arrays: Arrays, folder: Path) -> Iterator[Mapped]:
    """Write arrays to one file in a folder, for workers to map; it is removed at the end.

    Examples
    --------
    >>> import pickle
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lora_np.experiments.runner import mapped
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with mapped({"W": np.ones((1000, 1000))}, Path(folder)) as arrays:
    ...         pickled = pickle.dumps(arrays)
    ...         len(pickled) < 1000, pickle.loads(pickled)["W"].shape
    (True, (1000, 1000))
    """
    fields = [(name, array.dtype, array.shape) for name, array in arrays.items()]
    whole = np.empty(1, np.dtype(fields, align=True))  # one record with a field for each array
    for name, array in arrays.items():
        whole[name][0] = array
    content = io.BytesIO()
    # Format 3.0, for a header of any length: NumPy would choose it with a warning.
    np.lib.format.write_array(content, whole, version=(3, 0), allow_pickle=False)
    # The name says what the file holds: a worker on another host takes no other file for it.
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    path = folder.absolute() / f"{MAPPED}{digest[:16]}"
    try:
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(content.getbuffer())
        except WriteError as error:  # the folder is what its user knows
            raise WriteError(folder, error, error.reason) from None
        del content
        yield Mapped(path)
    finally:
        _remove_mapped(folder)


def _remove_mapped(folder: Path) -> None:
    for path in folder.glob(f"{MAPPED}*"):
        with suppress(OSError):  # Windows keeps a file that a worker still maps
            path.unlink()


def with_mapped(
    arrays: Arrays, folder: Path, executor: Executor | None, run: Callable[[Arrays], Found]
) -> Found:
    """Call ``run(arrays)`` with arrays that the executor's workers map.

    Where they cannot see the folder, on hosts without a common disk, it is called again with the
    arrays themselves, which then travel with every run.
    """
    _remove_mapped(folder)  # what a killed process left
    if executor is None:
        return run(arrays)
    try:
        with mapped(arrays, folder) as shared:
            return run(shared)
    except NotMapped:
        return run(arrays)
