"""The grader that explains: it compares a wrong answer with known misconceptions and names them.

- :mod:`~lora_np.course.task`: a function to write, its inputs, and how it is often misunderstood.
- :mod:`~lora_np.course.misconceptions`: all tasks; to add a task, copy its file ``softmax.py``.
- :mod:`~lora_np.course.judge`: how a diagnosis is found; read this file to see why you got yours.
- :mod:`~lora_np.course.sandbox`: runs a student's code in a process of its own, with limits.
- :func:`~lora_np.course.checker` serves notebooks, :func:`~lora_np.course.run_isolated` graders.
"""

from lora_np.course import misconceptions  # noqa: F401  fills TASKS
from lora_np.course.notebook import checker, diagnose
from lora_np.course.report import Finding, Report, WrongAnswer
from lora_np.course.sandbox.runner import Limits, run_isolated
from lora_np.course.task import TASKS, Misconception, Task

__all__ = [
    "TASKS",
    "Finding",
    "Limits",
    "Misconception",
    "Report",
    "Task",
    "WrongAnswer",
    "checker",
    "diagnose",
    "run_isolated",
]
