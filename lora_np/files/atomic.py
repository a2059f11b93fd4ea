"""How all files are written: as a temporary file in the same folder, then renamed in one step.

A reader finds the old file or the new one, never half a file, whenever the process is killed or the
power fails. The name of the temporary file identifies its process, so that the next write in the
folder can remove the temporary files of killed processes.
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
NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # from file systems without fsync
_numbers = count()  # shared by the threads of the process


class WriteError(OSError):
    """A file or folder cannot be written; the message names the path and the reason."""

    def __init__(self, path: Path, error: OSError, reason: str | None = None) -> None:
        self.path, self.reason = path, reason or error.strerror or str(error)
        super().__init__(f"{path} cannot be written: {self.reason}")
        self.errno = error.errno

    def __reduce__(self) -> tuple:
        return type(self), (self.path, OSError(self.errno, self.reason))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write; it replaces `path` if no error is raised.

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
    ...         os.listdir(folder)  # no half-written file
    []
    """
    path = Path(path)
    with beside(path) as temporary:
        yield temporary
        flush(temporary)  # content before name: else a power cut could leave an empty file
        temporary.replace(path)
        _flush_folder(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `folder` if no error is raised.

    Write its files with :func:`replacing`. If `folder` exists, it is replaced if it is empty;
    otherwise an error is raised.
    """
    with beside(folder) as temporary:
        temporary.mkdir(parents=True)
        yield temporary
        with suppress(OSError):  # not there, or not empty: the next line says so
            folder.rmdir()  # Windows renames to no folder that exists, even an empty one
        temporary.replace(folder)
        _flush_folder(folder.parent)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a unique path in the folder of `path`; afterwards remove what is still there."""
    remove_stale(path.parent)
    owner = this_process()
    name = f"{PREFIX}{_system(owner)}-{owner.pid}-{owner.start}-{next(_numbers)}"
    temporary = path.with_name(name)
    try:
        yield temporary
    except WriteError as error:  # for a file in a temporary folder
        raise WriteError(path, error, error.reason) from error
    except OSError as error:
        other = error.filename is not None and os.fspath(error.filename) != str(temporary)
        raise WriteError(path, error, str(error) if other else None) from error
    finally:
        _remove(temporary)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless they exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from error


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders of processes that have ended."""
    with suppress(OSError):
        for name in os.listdir(folder):
            parts = TEMPORARY.fullmatch(name)
            if parts is not None and _is_stale(folder / name, parts):
                _remove(folder / name)


def _is_stale(path: Path, parts: re.Match[str]) -> bool:
    """Return whether a temporary file is from this system and its process has ended."""
    here = this_process()
    if parts["system"] != _system(here):
        return False
    ended = has_ended(Owner(here.host, here.space, int(parts["pid"]), parts["start"]))
    return ended or (ended is None and time.time() - path.lstat().st_mtime > OLD)


def strangers(folder: Path) -> list[Path]:
    """Return the contents of a folder except our own temporary files and locks."""
    return [path for path in folder.iterdir() if not path.name.startswith(PREFIX)]


def flush(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, if the system supports that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):  # most often nothing is there
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)


def _system(owner: Owner) -> str:
    return hashlib.sha256(f"{owner.host} {owner.space}".encode()).hexdigest()[:8]
