"""The one way in which files are written: beside their place, then moved there in one step.

A reader finds the old file or the new one, never half of one, whenever the process is killed or the
power fails. The temporary file is named after its process, so that what a killed one left behind is
known, and is removed at the next write beside it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from lora_np.files.owner import Owner, has_ended, this_process

PREFIX = ".lora-np-"
TEMPORARY = re.compile(
    re.escape(PREFIX) + r"(?P<system>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>[A-Za-z0-9]*)-\d+"
)
OLD = 7 * 24 * 3600.0  # seconds: no write takes that long
NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # by some file systems
_numbers = count()  # the threads of a process share it


class WriteError(OSError):
    """A file or folder that cannot be written; the message names it and says why."""

    def __init__(self, path: Path, error: OSError, reason: str | None = None) -> None:
        self.reason = reason or error.strerror or str(error)
        super().__init__(f"{path} cannot be written: {self.reason}")
        self.errno = error.errno


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to write, which takes the place of `path` if all went well.

    Raises
    ------
    OSError
        If the file cannot be written; the message names `path`.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np.files import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         with replacing(f"{folder}/a.txt") as temporary:
    ...             _ = temporary.write_text("half of i")
    ...             raise KeyboardInterrupt
    ...     except KeyboardInterrupt:
    ...         os.listdir(folder)  # no half of a file
    []
    """
    path = Path(path)
    with beside(path) as temporary:
        yield temporary
        flush(temporary)  # the content before the name, or a power cut could leave an empty file
        temporary.replace(path)
        _flush_folder(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which takes the place of `folder` if all went well.

    Its files are written by :func:`replacing`. An empty folder is replaced, a full one is an error.
    """
    with beside(folder) as temporary:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(folder)
        _flush_folder(folder.parent)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a name beside `path` that nobody else uses, and remove what is left under it."""
    remove_stale(path.parent)
    owner = this_process()
    name = f"{PREFIX}{_system(owner)}-{owner.pid}-{owner.start}-{next(_numbers)}"
    temporary = path.with_name(name)
    try:
        yield temporary
    except WriteError as error:  # of a file in a temporary folder
        raise WriteError(path, error, error.reason) from error
    except OSError as error:
        other = error.filename is not None and os.fspath(error.filename) != str(temporary)
        raise WriteError(path, error, str(error) if other else None) from error
    finally:
        _remove(temporary)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from error


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders that processes left which have ended."""
    with suppress(OSError):
        for name in os.listdir(folder):
            parts = TEMPORARY.fullmatch(name)
            if parts is not None and _is_stale(folder / name, parts):
                _remove(folder / name)


def _is_stale(path: Path, parts: re.Match[str]) -> bool:
    """Return whether a temporary is of this system, and of no process that still writes it."""
    here = this_process()
    if parts["system"] != _system(here):
        return False
    ended = has_ended(Owner(here.host, here.space, int(parts["pid"]), parts["start"]))
    return ended or (ended is None and time.time() - path.lstat().st_mtime > OLD)


def strangers(folder: Path) -> list[Path]:
    """Return what a folder holds beside our own temporaries and locks."""
    return [path for path in folder.iterdir() if not path.name.startswith(PREFIX)]


def flush(path: Path) -> None:
    """Wait until the disk has a file's content."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):  # nothing is there, most often
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)


def _system(owner: Owner) -> str:
    return hashlib.sha256(f"{owner.host} {owner.space}".encode()).hexdigest()[:8]
