"""Records to train on and records to validate on, with equal prompts on the same side.

A file of questions often asks one of them twice. Drawn line by line, the second would be validated
on after the first was trained on, and the validation loss would praise what was memorised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_np.data.records import Record
from lora_np.data.texts import DataError
from lora_np.tables import counted


class RecordSplit(NamedTuple):
    """Records to train on and records to validate on, each in the order of the file."""

    train: list[Record]
    validation: list[Record]
    duplicates: int  # records that are equal to an earlier one in all but the line


def split_records(records: Sequence[Record], share: float, seed: int) -> RecordSplit:
    """Set records aside for validation, with equal prompts on the same side.

    Prompts are compared without case and white space. They are visited in a random order, and the
    records of a prompt are set aside unless the share would then be exceeded; so the share may be
    missed by a little. A plain text is cut at a line end instead: its last part is the validation
    text.

    Parameters
    ----------
    records : sequence of Record
    share : float
        Of the records, or of the characters of a plain text; above 0 and below 1.
    seed : int
        The same seed draws the same prompts.

    Returns
    -------
    RecordSplit

    Raises
    ------
    DataError
        If nothing is left to train on or to validate on.

    Examples
    --------
    >>> from lora_np.data import Record, split_records
    >>> records = [Record("mine.jsonl", i, text=text) for i, text in enumerate("abcDdefghi", 1)]
    >>> train, validation, duplicates = split_records(records, share=0.3, seed=0)
    >>> [record.text for record in train], [record.text for record in validation], duplicates
    (['a', 'b', 'D', 'd', 'g', 'h', 'i'], ['c', 'e', 'f'], 0)
    """
    if not 0 < share < 1:
        raise DataError(f"a validation share of {share}, expected one above 0 and below 1")
    if any(record.whole_file for record in records):
        train, validation = _cut_text(records, share)
        duplicates = 0
    else:
        train, validation = _grouped(records, share, seed)
        duplicates = len(records) - len({repr((r.messages, r.text)) for r in records})
    if not train or not validation:
        source = f"{records[0].file}: " if records else ""
        raise DataError(
            f"{source}a validation share of {share} of "
            f"{counted(len(records), 'record')} with "
            f"{counted(len({r.prompt for r in records}), 'different prompt')} leaves {len(train)} "
            f"to train on and {len(validation)} to validate on: change the share or add records"
        )
    return RecordSplit(train, validation, duplicates)


def _grouped(
    records: Sequence[Record], share: float, seed: int
) -> tuple[list[Record], list[Record]]:
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(record.prompt, []).append(i)
    prompts, held = list(groups), set[int]()
    for k in np.random.default_rng(seed).permutation(len(prompts)):
        group = groups[prompts[k]]
        if len(held) + len(group) <= round(share * len(records)):
            held.update(group)
    sides: tuple[list[Record], list[Record]] = ([], [])
    for i, record in enumerate(records):
        sides[i in held].append(record)
    return sides


def _cut_text(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Cut a plain text after the last line, or else the last word, that ends before its share."""
    if len(records) != 1:
        raise DataError(f"{counted(len(records), 'plain text')}: split one at a time")
    (record,) = records
    text = record.text
    most = round((1 - share) * len(text))
    cut = text.rfind("\n", 0, most) + 1 or text.rfind(" ", 0, most) + 1 or most
    line = record.line + text.count("\n", 0, cut)
    parts = [(text[:cut], record.line), (text[cut:], line)]
    train, validation = (
        [Record(record.file, start, text=part, whole_file=True)] if part.strip() else []
        for part, start in parts
    )
    return train, validation
