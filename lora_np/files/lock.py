"""Locks: only one process at a time writes into a folder, and a lock file there names it.

Locks are numbered. A process that finds no lock, or only locks of processes that have ended, makes
the lock with the next number. Creating a file is atomic, so if several processes try at once,
exactly one succeeds. It then looks again and gives up its lock if it finds another lock that is
held. So two processes never hold a folder, and the lock of a killed process needs no repair.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from lora_np.files.atomic import PREFIX, beside, flush, make_folder, remove_stale
from lora_np.files.owner import Owner, has_ended, this_process

LOCK = re.compile(re.escape(PREFIX) + r"lock-(\d{1,9})")
ELSEWHERE = "choose another --out"
FIELDS = ("host", "space", "start", "since")  # and pid
_numbers = count()  # shared by the threads of the process


class HeldError(ValueError):
    """Another process holds the folder; the message names the process and says what to do."""


@contextmanager
def hold(folder: Path, take_over: bool = False) -> Iterator[None]:
    """Hold a folder: other processes and threads that call this function are refused.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    take_over : bool
        Also take the folder from a process that may still run, because it is on another host or
        the system does not say. A folder is always taken from a process that has ended, and never
        from one that is known to run.

    Raises
    ------
    HeldError
        If another process or thread holds the folder.
    OSError
        If the folder cannot be written.

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
    """Remove the temporary files and locks of killed processes from a finished folder."""
    remove_stale(folder)
    with suppress(OSError):
        for lock in _locks(folder):
            holder = _holder(lock)
            if holder is not None and has_ended(holder.owner):
                lock.unlink(missing_ok=True)


def _release(folder: Path, text: str) -> None:
    """Remove our lock, found by its text: it may exist even if _make_lock was interrupted."""
    with suppress(OSError):
        for lock in _locks(folder):
            with suppress(FileNotFoundError):  # another lock may be released meanwhile
                if lock.read_bytes() == text.encode():
                    lock.unlink()


@contextmanager
def held(folder: Path, error: type[Exception], take_over: bool = False) -> Iterator[None]:
    """Hold a folder that a command writes to; raise `error`, with the ways out, if that fails."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder, take_over))
        except HeldError as found:
            raise error(f"{found}, or {ELSEWHERE}") from None
        except OSError as found:
            reason = getattr(found, "reason", found.strerror)
            raise error(f"{folder} cannot be written: {ELSEWHERE} ({reason})") from None
        yield


def _make_lock(folder: Path, text: str, take_over: bool) -> Path:
    while True:
        found = _locks(folder)
        _refuse_if_held(found, take_over)
        last = max((int(lock.name.rpartition("-")[2]) for lock in found), default=0)
        mine = folder / f"{PREFIX}lock-{last + 1}"
        if _make(mine, text):
            return mine  # otherwise another process was faster: look again


def _locks(folder: Path) -> list[Path]:
    return [folder / name for name in os.listdir(folder) if LOCK.fullmatch(name)]


def _make(lock: Path, text: str) -> bool:
    """Make a file with its content in one step; return False if it already exists."""
    with beside(lock) as temporary:
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        try:
            os.link(temporary, lock)
        except FileExistsError:
            return False
        except (OSError, AttributeError):  # the file system has no links, or the browser's Python
            return _make_without_links(lock, text)
    return True


def _make_without_links(lock: Path, text: str) -> bool:
    """Make the file on a file system without links; the file is empty for a moment."""
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
        way_out = "if that process has ended, --take-over takes the folder"
        if ended is False:
            way_out = "wait for it, or stop it"
        raise HeldError(f"{lock.parent} is in use by {holder.shown}: {way_out}")


class _Holder(NamedTuple):
    """The process that made a lock, and its description for errors."""

    owner: Owner
    shown: str


def _holder(lock: Path) -> _Holder | None:
    """Return the process that made a lock, or None if the lock has been released."""
    try:
        content = json.loads(lock.read_bytes())
        host, space, start, since = (str(content[name]) for name in FIELDS)
        pid = int(content["pid"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _Holder(Owner("?", "?", 0, ""), f"a process that {lock.name} does not name")
    return _Holder(Owner(host, space, pid, start), f"process {pid} on {host} since {since}")
