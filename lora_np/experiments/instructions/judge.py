"""Is an answer right? Exact match; for JSON the value too; and who guessed, who refused.

An answer is compared after leading and trailing white space is removed, and nothing else: a model
that explains its answer, or puts it into a code block, did not follow the instruction.

A refusal is recognised by its fixed form, whatever its capitals, with or without the full stop, at
the beginning of the answer. Every instruction that may need it states the form. A refusal in other
words counts as a guess, because no rule could tell it from an answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lora_np.experiments.instructions.families import ALL, REFUSAL
from lora_np.experiments.instructions.records import Record

Answer = Callable[[list[str]], list[str]]
Row = dict[str, Any]  # a sample: its split and family, the answer, and what was judged


class Rate(NamedTuple):
    """A share of n samples, and its standard error."""

    share: float
    error: float
    n: int


def judge(record: Record, answer: str) -> dict[str, bool]:
    """Return whether an answer is exactly right, whether its value is, and whether it refuses.

    Parameters
    ----------
    record : Record
    answer : str

    Returns
    -------
    dict of str to bool
        "exact", "value" (an equal JSON value, where the output is JSON; else as "exact"),
        "should_refuse" and "refused".

    Examples
    --------
    >>> from lora_np.experiments.instructions import Record, judge
    >>> record = Record("json", "Give age and city as JSON.", "...", '{"age": 30, "city": "Oslo"}')
    >>> found = judge(record, '{"city":"Oslo", "age":30}')
    >>> found["exact"], found["value"], judge(record, "Not stated.")["refused"]
    (False, True, True)
    """
    exact = answer.strip() == record.output
    is_json = record.family in ALL and ALL[record.family].is_json
    return {
        "exact": exact,
        "value": exact or (is_json and same_json(answer, record.output)),
        "should_refuse": record.refuses,
        "refused": is_refusal(answer),
    }


def is_refusal(answer: str) -> bool:
    """Return whether an answer begins with the fixed form of a refusal.

    Examples
    --------
    >>> from lora_np.experiments.instructions.judge import is_refusal
    >>> [is_refusal(text) for text in ("Not stated.", "not stated", "I do not know.", "Oslo")]
    [True, True, False, False]
    """
    return answer.strip().lower().startswith(REFUSAL.rstrip(".").lower())


def same_json(one: str, other: str) -> bool:
    """Return whether two texts are JSON of one value: keys in any order, 1 unlike 1.0 and true.

    Examples
    --------
    >>> from lora_np.experiments.instructions.judge import same_json
    >>> same_json('{"a": 1, "b": 2}', '{"b":2,"a":1}'), same_json("1", "1.0"), same_json("{", "{")
    (True, False, False)
    """
    try:
        return _canonical(one) == _canonical(other)
    except (ValueError, RecursionError):
        return False


def _canonical(text: str) -> str:
    value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)
    return json.dumps(value, sort_keys=True)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def judge_splits(splits: Mapping[str, Sequence[Record]], answer: Answer) -> list[Row]:
    """Return a row for each record of some splits.

    Parameters
    ----------
    splits : mapping of str to sequence of Record
    answer : callable
        ``answer(prompts)`` returns one text for each prompt.

    Returns
    -------
    list of dict
        "split", "family", "answer", and what ``judge`` found.

    Raises
    ------
    ValueError
        If there are more or fewer answers than prompts.

    Examples
    --------
    >>> from lora_np.experiments.instructions import Record, judge_splits
    >>> record = Record("count", "Count the items.", "cups, hats", "2")
    >>> judge_splits({"values": [record]}, lambda prompts: ["2" for prompt in prompts])[0]["exact"]
    True
    """
    rows = []
    for split, records in splits.items():
        answers = answer([record.prompt for record in records])
        if len(answers) != len(records):
            raise ValueError(f"{len(answers)} answers to {len(records)} prompts of {split}")
        for record, text in zip(records, answers):
            of = {"split": split, "family": record.family, "answer": text}
            rows.append({**of, **judge(record, text)})
    return rows


def rate(right: Iterable[bool]) -> Rate:
    """Return the share of samples for which something holds.

    Examples
    --------
    >>> from lora_np.experiments.instructions.judge import rate
    >>> rate([True, True, False, False])
    Rate(share=0.5, error=0.25, n=4)
    """
    found = list(right)
    n = len(found)
    if n == 0:
        return Rate(math.nan, math.nan, 0)
    share = sum(found) / n
    return Rate(share, math.sqrt(share * (1 - share) / n), n)


def guessed(rows: Iterable[Row]) -> Rate:
    """Return how often an answer was given where the text does not hold it."""
    return rate(not row["refused"] for row in rows if row["should_refuse"])


def refused_wrongly(rows: Iterable[Row]) -> Rate:
    """Return how often the answer was refused where the text holds it, over all families."""
    return rate(row["refused"] for row in rows if not row["should_refuse"])
