"""Run a student's code in a child process. The correct answers stay in this process.

The child process (child.py) reads its inputs from a folder and writes its outputs there, which
untrusted.py reads. Any failure of one submission goes into its report, so that the rest of the
class is graded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import lora_np
from lora_np.course.judge import judge
from lora_np.course.report import Finding, Report
from lora_np.course.sandbox.here import ENDED, TOO_LONG, TOO_MUCH, run_here
from lora_np.course.sandbox.untrusted import Unreadable, read_answers, read_regular
from lora_np.course.task import Draw, Task, task_called
from lora_np.crew import machine
from lora_np.reading import brief

REFUSED = ("lora_np", "torch", "jax", "tensorflow", "autograd", "tinygrad", "peft", "transformers")
HERE = Path(lora_np.__file__).resolve().parent
CHILD = Path(__file__).resolve().with_name("child.py")
MOST_SOURCE = 2**20  # bytes of a submitted file


@dataclass(frozen=True)
class Limits:
    """What a student's code may use.

    Attributes
    ----------
    seconds : int
        CPU time. The limit by the clock is three times as long, because the machine may be busy.
    memory_mib : int
        Address space, in MiB. NumPy alone needs 512.
    output_mib : int
        What the code prints, and what it returns, in MiB each.

    Examples
    --------
    >>> from lora_np.course import Limits
    >>> Limits(seconds=2).memory_mib
    1024
    """

    seconds: int = 10
    memory_mib: int = 1024
    output_mib: int = 8


def run_isolated(
    source: str | Path | Sequence[str | Path],
    task: str,
    limits: Limits | None = None,
    *,
    seed: int = 0,
) -> Report:
    """Run a student's code in a fresh process and report what is wrong with its answer.

    In a browser, where Python cannot start a process, the code runs in this one, with fewer limits
    (:mod:`lora_np.course.sandbox.here`): such a report is not for grades, and says so.

    Parameters
    ----------
    source : str, Path or sequence of str and Path
        Python text, a file, or the cells of a notebook. If a cell fails, the next cells still run.
        A file must be a regular file of at most 1 MiB; links are not followed. It is decoded as
        Python decodes it (PEP 263).
    task : str
        A key of TASKS, which is the name of the function that the code must define.
    limits : Limits, optional
    seed : int
        Draws the inputs.

    Returns
    -------
    Report
        The finding is "left out" if a file cannot be read, and "not graded" if the grader fails.

    Raises
    ------
    ValueError
        If there is no such task.

    Examples
    --------
    >>> from lora_np import run_isolated
    >>> cells = [
    ...     "from numpy.linalg import norm",
    ...     "def stable_rank(M): return norm(M, 'nuc') / norm(M, 2)",
    ... ]
    >>> print(run_isolated(cells, "stable_rank"))
    stable_rank: not yet right
      - Your stable rank has singular values where their squares belong: sum sigma^2 / sigma_1^2.
    """
    found, limits = task_called(task), limits or Limits()
    chunks = [source] if isinstance(source, str | Path) else list(source)
    draws = found.draws(seed)
    try:
        report = _graded(found, [_chunk(chunk) for chunk in chunks], draws, limits)
        return replace(report, in_page=not machine.has_processes())
    except Unreadable as error:
        return Report(task, (Finding("left out", f"This is not graded: {error}"),))
    except Exception as error:  # ours or the machine's
        said = brief(f"{type(error).__name__}: {error}", 200)
        sentence = f"The grader failed: grade this by hand, and report the error ({said})"
        return Report(task, (Finding("not graded", sentence),))


def _graded(task: Task, chunks: list[Any], draws: list[Draw], limits: Limits) -> Report:
    """Return the report on a submission that has been read."""
    with _working_folder() as folder:
        _write_job(folder, task, chunks, draws, limits)
        run = _run if machine.has_processes() else run_here
        if trouble := run(folder, limits):
            return Report(task.name, (Finding("limit", trouble),))
        try:
            answers = read_answers(folder, len(draws), limits.output_mib * 2**20)
        except Unreadable:
            sentence = "Your code left no readable answer"
            return Report(task.name, (Finding("no answer", sentence),))
    with np.errstate(all="ignore"):
        return judge(task, draws, answers)


def _chunk(source: str | Path) -> str | dict[str, str]:
    """Return a cell, or the bytes of a file, as JSON. The child decodes the bytes."""
    if isinstance(source, str):
        return source
    return {"bytes": read_regular(source, MOST_SOURCE).decode("latin-1")}


@contextmanager
def _working_folder() -> Iterator[Path]:
    """Make a folder that the code may fill, and remove as much of it as possible."""
    folder = tempfile.TemporaryDirectory(prefix="submission-", ignore_cleanup_errors=True)
    try:
        yield Path(folder.name).resolve()
    finally:
        with suppress(RecursionError):  # folders in folders, deeper than Python's own rmtree goes
            folder.cleanup()


def _write_job(
    folder: Path, task: Task, chunks: list[Any], draws: list[Draw], limits: Limits
) -> None:
    """Write what the child needs: the code, the inputs, the limits, but no correct answer."""
    with open(folder / "inputs.npys", "wb") as file:
        for draw in draws:
            for value in draw.values():
                if isinstance(value, np.ndarray):
                    np.save(file, value, allow_pickle=False)
    numbers = [{k: None if isinstance(v, np.ndarray) else v for k, v in d.items()} for d in draws]
    job = {
        "name": task.name,
        "chunks": chunks,
        "draws": [{k: draw[k] for k in task.arguments} for draw in numbers],
        "limits": asdict(limits),
        "refused": REFUSED,
        "closed": [f"{HERE}{os.sep}", "/proc/"],
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _run(folder: Path, limits: Limits) -> str:
    """Run the child to its end. Return what went wrong, or an empty text."""
    environment = {k: os.environ[k] for k in ("PATH", "SYSTEMROOT", "TEMP") if k in os.environ}
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment |= dict.fromkeys(threads, "1")  # every thread of BLAS reserves memory
    with open(folder / "printed", "wb") as printed:
        child = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            status = child.wait(timeout=3 * limits.seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
        size = os.fstat(printed.fileno()).st_size
    if status is None or status == -getattr(signal, "SIGXCPU", 0):
        return TOO_LONG.format(limits.seconds)
    if status == -9:  # SIGKILL: the hard limit on time, or the system, short of memory
        return "The system stopped your code: it used too much time or memory"
    if size >= limits.output_mib * 2**20:
        return TOO_MUCH
    if status < 0:
        return f"Your code crashed Python (signal {-status}): does it call C or recurse deeply?"
    if not os.path.lexists(folder / "answer.json"):
        return ENDED.format(status)
    return ""


def _end(child: subprocess.Popen) -> None:
    """End the child and all processes that it started, which may outlive it."""
    if hasattr(os, "killpg"):
        with suppress(OSError):  # no process of the group is left
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()
