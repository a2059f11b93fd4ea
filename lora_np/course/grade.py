"""Grade a folder with one file for each submission, each in a process of its own.

Every entry of the folder gets a report. The report on an entry that is not a submission gives the
reason, and the rest of the class is graded.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lora_np.course.report import Finding, Report
from lora_np.course.sandbox.runner import Limits, run_isolated
from lora_np.course.task import TASKS
from lora_np.crew import InProcess, cores, machine
from lora_np.reading import brief

Key = tuple[str, str]  # task, student
LONGEST_NAME = 48  # characters that the table shows


def grade_folder(
    folder: Path, limits: Limits | None = None, *, seed: int = 0, jobs: int | None = None
) -> dict[Key, Report]:
    """Grade every ``folder/TASK/STUDENT.py``.

    Parameters
    ----------
    folder : Path
    limits : Limits, optional
        What each submission may use.
    seed : int
        Draws the inputs.
    jobs : int, optional
        How many submissions run at a time; by default one for each core.

    Returns
    -------
    dict
        The reports by (task, student), in alphabetical order. The student is the name of the file
        without ".py". An entry that is not graded has the finding "left out" and keeps its full
        name. An entry of `folder` that is not a task has the key (name, "").

    Raises
    ------
    ValueError
        If there is no submission.
    """
    found = {key: entry for task in _listed(folder) for key, entry in _entries(folder, task)}
    files = {key: entry for key, entry in found.items() if isinstance(entry, Path)}
    if not files:
        raise ValueError(f"{brief(str(folder))} contains no TASK/STUDENT.py{_first(found)}")
    apart = machine.has_processes()
    with ThreadPoolExecutor(jobs or cores()) if apart else InProcess() as pool:
        # each thread waits for a process
        reports = pool.map(lambda key: run_isolated(files[key], key[0], limits, seed=seed), files)
        graded = dict(zip(files, reports))
    left_out = {k: _left_out(k[0], why) for k, why in found.items() if isinstance(why, str)}
    return {key: (graded | left_out)[key] for key in found}


def _listed(folder: Path) -> list[str]:
    """Return the names of a folder's entries, in alphabetical order."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{brief(str(folder))} cannot be listed: {error.strerror}") from error


def _entries(folder: Path, task: str) -> list[tuple[Key, Path | str]]:
    """Return the files to grade in one entry of the folder, and why others are left out."""
    place = folder / task
    if not os.path.isdir(place):
        return [((task, ""), "it is not in the folder of a task: move it to TASK/STUDENT.py")]
    if task not in TASKS:
        name = brief(task, LONGEST_NAME)
        return [((task, ""), f"there is no task '{name}': choose from {', '.join(TASKS)}")]
    try:
        names = _listed(place)
    except ValueError as error:
        return [((task, ""), str(error))]
    entries = []
    for name in names:
        stem = name.removesuffix(".py")
        student = name if stem in ("", *names) else stem  # so that no two entries share a key
        entries.append(((task, student), _why_not(place / name) or place / name))
    return entries


def _why_not(path: Path) -> str:
    """Return why an entry cannot be a submission, or an empty text if it can."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "it is hidden: rename it if it is a submission"
    if os.path.isdir(path) and not os.path.islink(path):
        return "it is a folder: move the student's file to TASK/STUDENT.py"
    if suffix == ".ipynb":
        return "it is a notebook: convert it to a script (jupyter nbconvert --to script NOTEBOOK)"
    return "" if suffix == ".py" else "it is not a Python file: its name does not end in .py"


def _left_out(task: str, why: str) -> Report:
    """Return the report on an entry that is not graded."""
    return Report(task, (Finding("left out", f"This is not graded: {why}"),))


def _first(found: dict[Key, Path | str]) -> str:
    """Return the first entry that is left out, and how many others there are."""
    if not found:
        return ""
    (task, student), why = next(iter(found.items()))
    more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
    return f": {brief(os.path.join(task, student).rstrip(os.sep), 100)}: {why}{more}"


def table(graded: dict[Key, Report]) -> str:
    """Return one line for each submission, followed by its diagnosis."""
    rows = [[brief(name, LONGEST_NAME) for name in key] for key in graded]
    widths = [max(map(len, column)) + 2 for column in zip(*rows)]
    lines = []
    for row, report in zip(rows, graded.values()):
        names = "".join(f"{name:<{width}}" for name, width in zip(row, widths))
        lines.append(f"{names}{verdict(report)}")
        lines += [f"    {sentence}" for sentence in report.sentences]
    return "\n".join(lines)


def verdict(report: Report) -> str:
    """Return "right", "not yet right", "left out" or "not graded"."""
    if report.passed:
        return "right"
    name = report.findings[0].name
    return name if name in ("left out", "not graded") else "not yet right"
