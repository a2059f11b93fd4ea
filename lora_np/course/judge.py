"""How a diagnosis is found: compare an answer with the truth, then with every misconception.

:func:`judge` asks in turn, and each question has its file:

1. Does a misconception explain the whole answer? (match.py)
2. Is the number of outputs correct, and is their order? (this file)
3. For each output that is wrong: does a misconception explain it, is it a multiple of the correct
   output (factor.py), or can we only describe the difference (describe.py)?
4. Which exceptions remain, are dtypes kept, and are inputs unchanged? (describe.py)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lora_np.course.comparison import same, tolerance
from lora_np.course.describe import difference, exception, written_input, wrong_dtype
from lora_np.course.factor import wrong_factor
from lora_np.course.match import best_match
from lora_np.course.report import Finding, Report
from lora_np.course.task import Draw, Misconception, Task
from lora_np.course.trial import Answer, Trial


def judge(task: Task, draws: Sequence[Draw], answers: Sequence[Answer]) -> Report:
    """Report what is wrong with a student's answers.

    Parameters
    ----------
    task : Task
    draws : sequence of dict
        The inputs.
    answers : sequence of dict
        One for each draw, as from :func:`lora_np.course.sandbox.child.attempt`.

    Returns
    -------
    Report
    """
    trial = Trial.of(task, draws, answers)
    if (match := best_match(trial, None)) is not None:
        return Report(task.name, (finding_of(match.misconception),))
    if (found := wrong_count(trial)) is not None:
        return Report(task.name, (found,))
    findings, explained = [], set()
    if (order := wrong_order(trial)) is not None:
        names = [", ".join(task.outputs[i] for i in order), ", ".join(task.outputs)]
        sentence = f"Your function returns {names[0]}: the order is {names[1]}"
        findings.append(Finding("order", sentence))
        trial = trial.reordered(order)
    for i in range(len(task.outputs)):
        if not trial.wrong(i):
            continue
        if (match := best_match(trial, i)) is not None:
            findings.append(finding_of(match.misconception))
            explained |= match.raising
        else:
            findings.append(wrong_factor(trial, i) or difference(trial, i))
    more = (exception(trial, explained), wrong_dtype(trial), written_input(trial))
    return Report(task.name, (*findings, *(found for found in more if found is not None)))


def finding_of(entry: Misconception) -> Finding:
    """Return the finding that an answer has a misconception."""
    return Finding(entry.name, entry.sentence)


def wrong_count(trial: Trial) -> Finding | None:
    """Return a finding if the function returned too many outputs, or too few."""
    names = trial.task.outputs
    wrong = {len(trial.answers[n]["outputs"]) for n in trial.answered()} - {len(names)}
    if not wrong:
        return None
    sentence = f"Your function returned {min(wrong)} values, expected {len(names)}: "
    return Finding("count", sentence + ", ".join(names))


def wrong_order(trial: Trial) -> tuple[int, ...] | None:
    """Return the order in which the outputs were returned, if it is another than the task's.

    Shapes decide where the outputs fit in only one order. Otherwise all values must be correct.
    """
    own = tuple(range(len(trial.task.outputs)))
    fitting = [p for p in itertools.permutations(own) if _fits(trial, p, own)]
    if not trial.answered() or not fitting:
        return None
    best = max(fitting, key=lambda order: sum(_fits(trial, order, (i,), True) for i in own))
    if best == own or (own in fitting and not _fits(trial, best, own, True)):
        return None
    return best


def _fits(trial: Trial, order: Sequence[int], which: Sequence[int], values: bool = False) -> bool:
    """Return whether the returned outputs `which` can be the correct outputs ``order[which]``."""
    for n in trial.answered():
        for i in which:
            got, wanted = trial.answers[n]["outputs"][i], trial.right[n][order[i]]
            if got.shape != wanted.shape:
                return False
            if values and not same(got, wanted, tolerance(trial.draws[n])):
                return False
    return True
