"""Instruction tuning, before and after: any model that answers, any trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lora_np.experiments.instructions.judge import Answer, judge_splits
from lora_np.experiments.instructions.records import TESTS, Record, instruction_set

Results = dict[str, Any]
Train = Callable[[Sequence[Record], Sequence[Record]], Answer]


def instruction_study(
    answer: Answer, train: Train, seed: int = 0, train_count: int = 200, held_out: int = 20
) -> Results:
    """Judge a model on the three tests, train it, and judge it again.

    Parameters
    ----------
    answer : callable
        ``answer(prompts)`` of the base returns one text for each prompt.
    train : callable
        ``train(records, validation)`` returns the ``answer`` of the trained model. It may choose
        settings by the validation records; it never sees the tests.
    seed : int
        Of the records.
    train_count, held_out : int
        Records of each family to train on, and in each of the other splits.

    Returns
    -------
    dict
        Plain values: "seed", "train" (the number of records), and a row for each sample of the
        tests in "before" and "after", in one order.

    Examples
    --------
    >>> from lora_np.experiments.instructions import instruction_study
    >>> def train(records, validation):
    ...     return lambda prompts: ["Not stated." for prompt in prompts]
    >>> found = instruction_study(lambda prompts: ["" for p in prompts], train, held_out=1)
    >>> [sum(row["exact"] for row in found[side]) for side in ("before", "after")]
    [0, 4]
    """
    splits = instruction_set(seed, train_count, held_out)
    tests = {name: splits[name] for name in TESTS}
    before = judge_splits(tests, answer)
    trained = train(splits["train"], splits["validation"])
    after = judge_splits(tests, trained)
    return {"seed": seed, "train": len(splits["train"]), "before": before, "after": after}
