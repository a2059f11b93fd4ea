"""The grader that explains: a wrong answer is matched with known misconceptions and told which."""

from lora_np.course import misconceptions  # noqa: F401  it fills TASKS
from lora_np.course.judge import Finding, Report, WrongAnswer, checker, diagnose
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
