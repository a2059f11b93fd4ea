"""The samples of every pair of a user and a task, in three splits that share no prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_np.data import read_records
from lora_np.experiments.instructions.words import Words
from lora_np.experiments.personal.plan import Plan, PlanError, Task
from lora_np.experiments.personal.tasks import GENERATORS, Note, Sample, note
from lora_np.reading import brief

SPLITS = {"train": "train", "validation": "validation", "held_out": "test"}  # and their words
TRIES = 100  # draws in a row that give no new note
ALIKE = 0.5  # two pairs may answer alike on this share of the prompts that they have in common


class Splits(NamedTuple):
    """The samples of a pair."""

    train: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]


def samples_of(plan: Plan) -> dict[str, Splits]:
    """Return the samples of every pair by its name.

    Parameters
    ----------
    plan : Plan

    Raises
    ------
    PlanError
        If a file of the user's own cannot be used (:class:`lora_np.data.DataError` where it is no
        file of conversations), or if two pairs give mostly the same answers to
        the same prompts: neither adapter could then beat the other.

    Examples
    --------
    >>> from lora_np.experiments.personal import Plan, Task, User, samples_of
    >>> plan = Plan((Task("what", "what"),), (User("anna", "plain"), User("ben", "grams")))
    >>> found = samples_of(plan)
    >>> found["anna/what"].train[0].prompt == found["ben/what"].train[0].prompt
    True
    >>> found["anna/what"].train[0].answer, found["ben/what"].train[0].answer
    ('17 kg of plums', '17000 g of plums')
    """
    by_task = {task.name: _splits(task, plan) for task in plan.tasks}
    found = {
        name: Splits(
            *(
                [Sample(prompt, user.styled(answer)) for prompt, answer in samples]
                for samples in by_task[task.name]
            )
        )
        for name, (user, task) in plan.pairs.items()
    }
    check_told_apart({name: splits.held_out for name, splits in found.items()})
    return found


def check_told_apart(held_out: Mapping[str, list[Sample]]) -> None:
    """Raise PlanError if two pairs mostly give the same answers to the same prompts.

    Examples
    --------
    >>> from lora_np.experiments.personal.samples import check_told_apart
    >>> from lora_np.experiments.personal.tasks import Sample
    >>> samples = [Sample("a note", "Oslo")]
    >>> try:
    ...     check_told_apart({"anna/where": samples, "ben/where": samples})
    ... except ValueError as error:
    ...     print(error)
    anna/where and ben/where have the same answer to 1 of 1 prompt: change a style or a task
    """
    for (one, samples), (other, others) in combinations(held_out.items(), 2):
        answers = dict(others)
        common = [sample for sample in samples if sample.prompt in answers]
        alike = sum(answers[prompt] == answer for prompt, answer in common)
        if alike > ALIKE * len(common):
            raise PlanError(
                f"{one} and {other} have the same answer to {alike} of {len(common)} "
                f"prompt{'s' * (len(common) > 1)}: change a style or a task"
            )


def _splits(task: Task, plan: Plan) -> Splits:
    """Return the samples of a task before any style."""
    if task.file is not None:
        return _own(task.file, plan)
    answer = GENERATORS[str(task.generator)]
    taken: set[str] = set()
    return Splits(
        *(
            [Sample(found.text, answer(found)) for found in _notes(plan, i, taken)]
            for i in range(len(SPLITS))
        )
    )


def _notes(plan: Plan, i: int, taken: set[str]) -> Iterator[Note]:
    """Yield the notes of one split, which depend on the seed and not on the task."""
    split = list(SPLITS)[i]
    words = Words(SPLITS[split], np.random.default_rng([plan.seed, i]))
    tries, left = TRIES, getattr(plan, split)
    while left:
        if tries == 0:
            raise PlanError(f"{split} = {getattr(plan, split)} is more than there are notes")
        found, tries = note(words), tries - 1
        if found.text not in taken:
            taken.add(found.text)
            tries, left = TRIES, left - 1
            yield found


def _own(path: Path, plan: Plan) -> Splits:
    """Return the samples of a file, shuffled; those that are left over are trained too."""
    samples = read_samples(path)
    apart = plan.validation + plan.held_out
    if len(samples) <= apart:
        raise PlanError(
            f"{brief(str(path))} has {len(samples)} samples, expected more than validation + "
            f"held_out = {apart}"
        )
    order = np.random.default_rng([plan.seed, len(SPLITS)]).permutation(len(samples))
    mixed = [samples[i] for i in order]
    return Splits(mixed[apart:], mixed[: plan.validation], mixed[plan.validation : apart])


def read_samples(path: str | Path) -> list[Sample]:
    """Read a file of questions and answers, in any form of :func:`lora_np.data.read_records`.

    Raises
    ------
    PlanError
        With the number of a line that is no single question with its answer, or whose question
        another line has.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.experiments.personal.samples import read_samples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "own.jsonl")
    ...     _ = path.write_text('{"prompt": "hello", "response": "goodbye"}', encoding="utf-8")
    ...     read_samples(path)
    [Sample(prompt='hello', answer='goodbye')]
    """
    lines: dict[str, int] = {}
    samples = []
    for record in read_records(path):
        if [message["role"] for message in record.messages] != ["user", "assistant"]:
            raise PlanError(f"{record.place}: expected one question and its answer")
        sample = Sample(*(message["content"] for message in record.messages))
        first = lines.setdefault(sample.prompt, record.line)
        if first != record.line:
            raise PlanError(f"{record.place}: line {first} has the same prompt: remove one")
        samples.append(sample)
    return samples
