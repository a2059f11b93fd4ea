"""Which misconception does an answer have? The one whose outputs it equals on every draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_np.course.comparison import all_same, tolerance
from lora_np.course.task import Misconception
from lora_np.course.trial import Trial


class Match(NamedTuple):
    """A misconception that explains an answer, and the draws on which both raise."""

    misconception: Misconception
    raising: set[int]


def best_match(trial: Trial, i: int | None) -> Match | None:
    """Return the misconception that explains output `i`, or the whole answer if `i` is None.

    Among several, the misconception that explains the most exceptions is returned.
    """
    output = None if i is None else trial.task.outputs[i]
    entries = [entry for entry in trial.task.misconceptions if entry.output == output]
    raising = [(entry, agreement(trial, entry, i)) for entry in entries]
    matches = [Match(entry, draws) for entry, draws in raising if draws is not None]
    return max(matches, key=lambda match: len(match.raising), default=None)


def agreement(trial: Trial, entry: Misconception, i: int | None) -> set[int] | None:
    """Return the draws on which an answer and a misconception both raise, if the two agree.

    Returns
    -------
    set of int or None
        None if the two disagree on a draw, or if both are correct on every draw. If only the answer
        raises, the two do not disagree about output `i`: another output may be the reason.
    """
    raising, wrong = set(), False
    for n, answer in enumerate(trial.answers):
        expected, got = entry.outputs(trial.known[n]), answer.get("outputs")
        if isinstance(expected, str):  # the misconception raises
            if got is not None or answer["raised"][0] != expected:
                return None  # a NameError, say, is not an error of shapes
            raising.add(n)
            wrong = True
        elif got is not None:
            right: Sequence[np.ndarray] = trial.right[n]
            if i is not None:
                got, right = [got[i]], [right[i]]
            limit = tolerance(trial.draws[n])
            if not all_same(got, expected, limit):
                return None
            wrong = wrong or not all_same(got, right, limit)
        elif i is None:
            return None
    return raising if wrong else None
