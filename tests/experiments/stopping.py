"""Run a small sweep again and again, stopped at its first, second, ... operation on a file.

Usage: python -m tests.experiments.stopping HOW FOLDER STEP

HOW is "kill" (by the system, at once), "interrupt" (Ctrl-C) or "full" (the disk is full from there
on). Each time the same call must go on and reach what a call that was never stopped reaches. The
first 24 operations open the folder and begin the results; after them only every STEP-th is taken.
Prints how many operations there are.
"""

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from itertools import count
from pathlib import Path

from lora_np.experiments.rank_sweep import LinearSettings, SweepError, rank_sweep

SETTINGS = LinearSettings(ranks=(1,), seeds=1, d_in=4, d_out=3, steps=5)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir")
GROWS = ("open", "os.mkdir", "os.link")  # what a full disk refuses
STOPPED = {"kill": -signal.SIGKILL, "interrupt": 130, "full": 28}


def changes(event, arguments, folder):
    """Whether an audited event is an operation that changes something in the folder."""
    if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
        return False
    return event != "open" or bool(arguments[2] & WRITES)


def stop_at(n, how, folder):
    """From now on, stop at the n-th operation that changes something in the folder."""
    seen = count(1)

    def hook(event, arguments):
        if not changes(event, arguments, folder):
            return
        now = next(seen)
        if how == "kill" and now == n:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "interrupt" and now == n:
            raise KeyboardInterrupt
        if how == "full" and now >= n and event in GROWS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)


def outcome(folder):
    """Run the sweep; return its results without times, and the names of its files."""
    results = json.loads(json.dumps(rank_sweep(SETTINGS, folder)))
    for trial in (*results["trials"], *results["runs"]):
        del trial["seconds"]
    return results, sorted(str(path) for path in folder.rglob("*"))


def child(n, how, folder):
    """Run the sweep, stopped at the n-th operation; return the exit status."""
    stop_at(n, how, folder)
    try:
        rank_sweep(SETTINGS, folder)
    except KeyboardInterrupt:
        rank_sweep(SETTINGS, folder)  # the process that was interrupted may go on itself
        return 130
    except (OSError, SweepError) as error:
        said = str(error)
        assert "cannot be written" in said and "No space left" in said, said
        assert "\n" not in said and ".lora-np" not in said, said
        return 28
    return 0


def main(how, folder, step):
    """Stop at the operations in turn, until there is none left to stop at."""
    os.fsync = lambda handle: None  # nobody cuts the power here
    expected = outcome(folder)
    for n in (n for n in count(1) if n <= 24 or n % step == 0):
        shutil.rmtree(folder)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(n, how, folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = outcome(folder)
        assert found == expected, (n, found, expected)
        if ended == 0:
            print(n)
            return
        assert ended == STOPPED[how], (n, ended)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
