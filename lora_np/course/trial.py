"""A student's answers beside the correct ones, draw by draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_np.course.comparison import same, tolerance
from lora_np.course.task import Draw, Outputs, Task

Answer = dict[str, Any]  # as from sandbox.child.attempt


@dataclass(frozen=True)
class Trial:
    """One task, tried on several draws. All lists have one item for each draw.

    Attributes
    ----------
    task : Task
    draws : list of dict
        The inputs.
    answers : list of dict
        What the student's function did, as :func:`lora_np.course.sandbox.child.attempt` returns it:
        either "raised" or "outputs" and "changed".
    right : list of tuple of ndarray
        The correct outputs.
    known : list of dict
        What misconceptions may read: inputs, correct outputs, quantities.
    """

    task: Task
    draws: Sequence[Draw]
    answers: Sequence[Answer]
    right: Sequence[Outputs]
    known: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, task: Task, draws: Sequence[Draw], answers: Sequence[Answer]) -> Trial:
        """Compute the correct outputs, and set the answers beside them."""
        right = [task.right(draw) for draw in draws]
        known = [task.known(draw, outputs) for draw, outputs in zip(draws, right)]
        return cls(task, draws, answers, right, known)

    def answered(self) -> list[int]:
        """Return the draws on which the student's function returned something."""
        return [n for n, answer in enumerate(self.answers) if "outputs" in answer]

    def wrong(self, i: int) -> list[int]:
        """Return the draws on which output `i` is wrong."""
        return [
            n
            for n in self.answered()
            if not same(self.answers[n]["outputs"][i], self.right[n][i], tolerance(self.draws[n]))
        ]

    def reordered(self, order: Sequence[int]) -> Trial:
        """Return the trial with returned output k in its place, ``order[k]``."""

        def in_place(answer: Answer) -> Answer:
            if "outputs" not in answer:
                return answer
            outputs = [answer["outputs"][order.index(i)] for i in range(len(order))]
            return {**answer, "outputs": outputs}

        return replace(self, answers=[in_place(answer) for answer in self.answers])
