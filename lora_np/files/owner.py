"""The owner of a file: a process, identified by host, number and start; whether it still runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Owner(NamedTuple):
    """A process, identified among all processes that may use the same disk.

    Attributes
    ----------
    host : str
    space : str
        The namespace of `pid`: containers may share a host's name and a disk.
    pid : int
    start : str
        When the process started, because numbers are reused; a random text of its own if the
        system does not say.
    """

    host: str
    space: str
    pid: int
    start: str


def this_process() -> Owner:
    """Return the calling process.

    Examples
    --------
    >>> import os
    >>> from lora_np.files.owner import has_ended, this_process
    >>> this_process().pid == os.getpid(), has_ended(this_process())
    (True, False)
    """
    return _owner(os.getpid())  # getpid each time: a forked process has another number


@cache
def _owner(pid: int) -> Owner:
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    # A system that does not say may give the number to another process: a browser's is always 42.
    return Owner(socket.gethostname(), space, pid, started(pid) or uuid.uuid4().hex)


def has_ended(owner: Owner) -> bool | None:
    """Return whether a process has ended; None if that cannot be known here."""
    here = this_process()
    if owner[:2] != here[:2]:
        return None
    if owner == here:
        return False
    start = started(owner.pid)
    if start is None:
        return True
    return start != owner.start if start and owner.start else None


def started(pid: int) -> str | None:
    """Return when a process of this system started, as letters and digits.

    Return None if there is no such process, and "" if the system does not say.
    """
    if os.name != "posix":
        return ""
    try:
        os.kill(pid, 0)  # sends no signal
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # the process runs as another user
    return _started_on_linux(pid) if sys.platform == "linux" else _started_by_ps(pid)


def _started_on_linux(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # after the program's name, which may hold anything
    return None if fields[0] in "ZX" else f"{boot[:8]}{fields[19]}"  # clock ticks since the boot


def _started_by_ps(pid: int) -> str | None:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    state, *when = said.stdout.split() or [""]
    return None if state.startswith("Z") else "".join(filter(str.isalnum, "".join(when)))
