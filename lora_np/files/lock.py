"""One process at a time writes into a folder: a lock file there says which.

Locks are numbered. A process that finds none, or only locks of processes that have ended, makes
the next number. A file is made under a name in one step, so of several that start at once exactly
one succeeds. It then looks again: whoever finds another lock that is held gives up its own. So no
two go on, and a lock that a killed process left needs no repair.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from lora_np.files.atomic import PREFIX, beside, flush, make_folder, remove_stale
from lora_np.files.owner import Owner, has_ended, this_process

LOCK = re.compile(re.escape(PREFIX) + r"lock-(\d{1,9})")
FIELDS = ("host", "space", "start", "since")  # and pid
_numbers = count()  # the threads of a process share it


class HeldError(ValueError):
    """A folder into which another process writes; the message says which, and what to do."""


@contextmanager
def hold(folder: Path, take_over: bool = False) -> Iterator[None]:
    """Keep other processes, and other threads, from writing into a folder.

    Parameters
    ----------
    folder : Path
        Is made if it does not exist.
    take_over : bool
        Take the folder also from a process that may run, on another host. From one that has ended
        it is always taken, and never from one that is known to run.

    Raises
    ------
    HeldError
        If somebody holds the folder.
    OSError
        If it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.files.lock import HeldError, hold
    >>> with tempfile.TemporaryDirectory() as folder, hold(Path(folder)):
    ...     try:
    ...         with hold(Path(folder)):
    ...             print("twice")
    ...     except HeldError as error:
    ...         "is in use by process" in str(error)
    True
    """
    make_folder(folder)
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = json.dumps({**this_process()._asdict(), "since": since, "number": next(_numbers)})
    try:
        mine = _make_lock(folder, text, take_over)
        others = [lock for lock in _locks(folder) if lock != mine]
        _refuse_if_held(others, take_over)
        for lock in others:
            lock.unlink(missing_ok=True)
        yield
    finally:
        _release(folder, text)


def clear(folder: Path) -> None:
    """Remove what killed processes left in a folder in which there is nothing more to do."""
    remove_stale(folder)
    with suppress(OSError):
        for lock in _locks(folder):
            holder = _holder(lock)
            if holder is not None and has_ended(holder.owner):
                lock.unlink(missing_ok=True)


def _release(folder: Path, text: str) -> None:
    """Remove our lock, known by its text: it is there even if making it was interrupted."""
    with suppress(OSError):
        for lock in _locks(folder):
            with suppress(FileNotFoundError):  # another one may be released meanwhile
                if lock.read_bytes() == text.encode():
                    lock.unlink()


def _make_lock(folder: Path, text: str, take_over: bool) -> Path:
    while True:
        found = _locks(folder)
        _refuse_if_held(found, take_over)
        last = max((int(lock.name.rpartition("-")[2]) for lock in found), default=0)
        mine = folder / f"{PREFIX}lock-{last + 1}"
        if _make(mine, text):
            return mine  # else another process was faster: look who


def _locks(folder: Path) -> list[Path]:
    return [folder / name for name in os.listdir(folder) if LOCK.fullmatch(name)]


def _make(lock: Path, text: str) -> bool:
    """Make a file with its content in one step; return False if there is one already."""
    with beside(lock) as temporary:
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        try:
            os.link(temporary, lock)
        except FileExistsError:
            return False
        except OSError:
            return _make_without_links(lock, text)
    return True


def _make_without_links(lock: Path, text: str) -> bool:
    """Make the file where the file system has no links; it is empty for a moment."""
    try:
        file = lock.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except BaseException:
        lock.unlink()
        raise
    return True


def _refuse_if_held(locks: list[Path], take_over: bool) -> None:
    for lock in locks:
        holder = _holder(lock)
        if holder is None:
            continue
        ended = has_ended(holder.owner)
        if ended or (ended is None and take_over):
            continue
        way_out = "if that has ended, --take-over takes the folder"
        if ended is False:
            way_out = "wait for it, or stop it"
        raise HeldError(f"{lock.parent} is in use by {holder.shown}: {way_out}")


class _Holder(NamedTuple):
    """Who made a lock, and how that is said."""

    owner: Owner
    shown: str


def _holder(lock: Path) -> _Holder | None:
    """Read who made a lock; None if it has been released."""
    try:
        content = json.loads(lock.read_bytes())
        host, space, start, since = (str(content[name]) for name in FIELDS)
        pid = int(content["pid"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _Holder(Owner("?", "?", 0, ""), f"a process that {lock.name} does not name")
    return _Holder(Owner(host, space, pid, start), f"process {pid} on {host} since {since}")
