"""Diagnose a function in this process, as the notebooks of the assignments do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lora_np.course.judge import judge
from lora_np.course.report import Finding, Report, WrongAnswer
from lora_np.course.sandbox.child import attempt
from lora_np.course.sandbox.here import Guard
from lora_np.course.sandbox.runner import Limits
from lora_np.course.task import task_called
from lora_np.crew import machine

IN_A_PAGE = (
    "check runs in this page, not for grades. It stops code after {} s; a call that never returns "
    "ends only with Kernel > Restart."
)


def diagnose(task: str, function: Callable, seed: int = 0) -> Report:
    """Call a function in this process and report what is wrong with it.

    Parameters
    ----------
    task : str
        A key of TASKS.
    function : callable
        Takes the arguments of the task by position, returns its outputs.
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
    >>> import numpy as np
    >>> from lora_np.course import diagnose
    >>> def stable_rank(M):
    ...     sigma = np.linalg.svd(M, compute_uv=False)
    ...     return (sigma / sigma[0]).sum()
    >>> print(diagnose("stable_rank", stable_rank))
    stable_rank: not yet right
      - Your stable rank has singular values where their squares belong: sum sigma^2 / sigma_1^2.
    """
    found = task_called(task)
    draws = found.draws(seed)
    with np.errstate(all="ignore"):
        if machine.has_processes():
            return judge(found, draws, [attempt(function, draw) for draw in draws])
        guard = Guard(Limits().seconds)  # a browser has no button that stops a loop
        answers = [attempt(lambda *a: guard.call(function, *a), draw) for draw in draws]
        if guard.trouble:
            return Report(task, (Finding("limit", guard.trouble),), in_page=True)
        return replace(judge(found, draws, answers), in_page=True)


def checker(space: Mapping[str, Any]) -> Callable[..., None]:
    """Return ``check(task, seed=0)`` for a notebook whose functions are in `space`.

    Parameters
    ----------
    space : mapping
        The ``globals()`` of the notebook.

    Returns
    -------
    callable
        Prints that the function called `task` is right, or raises a WrongAnswer. In a browser, it
        says that this is not for grades.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.course import checker
    >>> def stable_rank(M):
    ...     sigma = np.linalg.svd(M, compute_uv=False)
    ...     return ((sigma / sigma[0]) ** 2).sum()
    >>> check = checker(globals())
    >>> check("stable_rank")
    stable_rank: right
    """

    if not machine.has_processes():
        print(IN_A_PAGE.format(Limits().seconds))

    def check(task: str, seed: int = 0) -> None:
        if task not in space:
            raise WrongAnswer(f"no function called {task} is defined yet")
        report = diagnose(task, space[task], seed)
        report.raise_if_wrong()
        print(report)

    return check
