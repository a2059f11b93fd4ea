"""A student's code in a process of its own; the check stays here, with the right answers.

The child (child.py) gets a folder with the inputs and leaves its outputs there as .npy bytes and
JSON, which are read here as untrusted data: never unpickled, of any shape, or missing.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lora_np
from lora_np.course.compare import Finding, Report, judge, task_called
from lora_np.course.task import Draw, Task

REFUSED = ("lora_np", "torch", "jax", "tensorflow", "autograd", "tinygrad", "peft", "transformers")
HERE = Path(lora_np.__file__).resolve().parent
CHILD = HERE / "course" / "child.py"


@dataclass(frozen=True)
class Limits:
    """What a student's code may use.

    Attributes
    ----------
    seconds : int
        Of CPU time, and three times that by the clock, as others may use the machine too.
    memory_mib : int
        Address space, in MiB; at least 512, NumPy's own.
    output_mib : int
        What is printed, in MiB, and what is returned.

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
    source: str | Path | Sequence[str],
    task: str,
    limits: Limits | None = None,
    *,
    seed: int = 0,
) -> Report:
    """Run a student's code in a fresh process and say what is wrong with its answer.

    Parameters
    ----------
    source : str, Path or sequence of str
        Python text, a file, or the cells of a notebook: a cell that fails does not stop the next.
    task : str
        A key of TASKS, which is also the name of the function that the code must define.
    limits : Limits, optional
    seed : int
        Draws the inputs.

    Returns
    -------
    Report

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
    if isinstance(source, Path):
        source = source.read_text(encoding="utf-8", errors="replace")
    chunks = [source] if isinstance(source, str) else list(source)
    draws = found.draws(seed)
    with tempfile.TemporaryDirectory(prefix="submission-") as name:
        folder = Path(name)
        _write_job(folder, found, chunks, draws, limits)
        trouble = _run(folder, limits)
        answers = None if trouble else _read_answers(folder, len(draws))
    if trouble or answers is None:
        sentence = trouble or "Your code left no answer that can be read"
        return Report(task, (Finding("limit" if trouble else "no answer", sentence),))
    return judge(found, draws, answers)


def _write_job(
    folder: Path, task: Task, chunks: list[str], draws: list[Draw], limits: Limits
) -> None:
    """Write what the child needs: the code, the inputs, the limits; no right answer."""
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
    """Run the child to its end; return what went wrong with it, or nothing."""
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
    too_long = f"Your code ran for more than {limits.seconds} s: look for a loop that never ends"
    if status is None or status == -getattr(signal, "SIGXCPU", 0):
        return too_long
    if status == -9:  # SIGKILL: the hard limit on time, or the system, short of memory
        return "Your code was stopped from outside: it took too much time or memory"
    if (folder / "printed").stat().st_size >= limits.output_mib * 2**20:
        return "Your code prints or returns too much"
    if status < 0:
        return f"Your code crashed Python (signal {-status}): does it call C, or recurse there?"
    if not (folder / "answer.json").exists():
        return f"Your code ended the process, with status {status}: it must return instead"
    return ""


def _end(child: subprocess.Popen) -> None:
    """End the child and whatever it may have started."""
    if child.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.wait()


def _read_answers(folder: Path, n: int) -> list[dict[str, Any]] | None:
    """Return one answer a draw, as the comparison expects them; None if they cannot be read."""
    files = folder / "answer.json", folder / "answer.npys"
    if not all(stat.S_ISREG(file.lstat().st_mode) for file in files if os.path.lexists(file)):
        return None  # a pipe would be waited for, a link be followed
    try:
        rows = json.loads(files[0].read_text(encoding="utf-8"))
        with open(files[1], "rb") as file:
            answers = [_read_answer(row, file) for row in rows]
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        MemoryError,
        RecursionError,
    ):
        return None
    if len(answers) == 1 and "raised" in answers[0]:
        return answers * n  # there is no function to call
    return answers if len(answers) == n else None


def _read_answer(row: dict[str, Any], file: Any) -> dict[str, Any]:
    if "raised" in row:
        kind, message = row["raised"]
        return {"raised": (_printable(kind), _printable(message))}
    outputs = [np.load(file, allow_pickle=False) for _ in range(int(row["outputs"]))]
    if any(array.dtype.kind not in "biufc" for array in outputs):
        raise TypeError("an output is no array of numbers")
    return {
        "outputs": outputs,
        "changed": {_printable(k): float(v) for k, v in row["changed"].items()},
    }


def _printable(text: Any) -> str:
    """Return a text that prints in one line and fits any encoding of Unicode."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:400])
