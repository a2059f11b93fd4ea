"""Grade a folder: one file a submission, each in a process of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lora_np.course.compare import Report, task_called
from lora_np.course.runner import Limits, run_isolated
from lora_np.crew import cores


def grade_folder(
    folder: Path, limits: Limits | None = None, *, seed: int = 0, jobs: int | None = None
) -> dict[tuple[str, str], Report]:
    """Grade every ``folder/TASK/STUDENT.py``.

    Parameters
    ----------
    folder : Path
    limits : Limits, optional
        Of each submission.
    seed : int
        Draws the inputs.
    jobs : int, optional
        Submissions at a time; by default one a core.

    Returns
    -------
    dict
        The reports by (task, student), in alphabetical order.

    Raises
    ------
    ValueError
        If there is no submission, or a folder is not called after a task.
    """
    files = sorted(folder.glob("*/*.py"))
    if not files:
        raise ValueError(f"{folder} holds no TASK/STUDENT.py")
    for name in {file.parent.name for file in files}:
        task_called(name)
    with ThreadPoolExecutor(jobs or cores()) as pool:  # each thread waits for a process
        reports = pool.map(lambda f: run_isolated(f, f.parent.name, limits, seed=seed), files)
        return {(file.parent.name, file.stem): report for file, report in zip(files, reports)}


def table(graded: dict[tuple[str, str], Report]) -> str:
    """Return one line a submission, and under it what is wrong."""
    lines = []
    for (task, student), report in graded.items():
        lines.append(f"{task:<24}{student:<32}{'right' if report.passed else 'not yet right'}")
        lines += [f"    {sentence}" for sentence in report.sentences]
    return "\n".join(lines)
