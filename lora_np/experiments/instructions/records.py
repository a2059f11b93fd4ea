"""The synthetic instruction set: records in Alpaca's form, in five splits that share no prompt.

::

    train        the trained families, their wordings, the words for training
    validation   the same wordings, other words: settings are chosen here
    values       the same wordings, words that neither of the two has
    phrasing     the words of `values`, wordings never trained
    formats      the words of `values`, families never trained
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_np.experiments.instructions.families import HELD_OUT, REFUSAL, TRAINED, Family
from lora_np.experiments.instructions.words import Words
from lora_np.files import save_text
from lora_np.reading import shown

TESTS = ("values", "phrasing", "formats")
SPLITS = ("train", "validation", *TESTS)
TRIES = 100  # draws in a row that give no new prompt, before a family is said to have too few


@dataclass(frozen=True)
class Record:
    """An instruction, its input, and the right output.

    Attributes
    ----------
    family : str
    instruction, input, output : str
    """

    family: str
    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """The user's message: the instruction, a blank line, the input."""
        return f"{self.instruction}\n\n{self.input}"

    @property
    def refuses(self) -> bool:
        """Whether the input does not hold the answer."""
        return self.output == REFUSAL

    def as_alpaca(self) -> dict[str, str]:
        """Return the three fields of Alpaca's form."""
        return {"instruction": self.instruction, "input": self.input, "output": self.output}


def instruction_set(seed: int = 0, train: int = 200, held_out: int = 20) -> dict[str, list[Record]]:
    """Return the synthetic records by split.

    Parameters
    ----------
    seed : int
        Equal seeds give equal records.
    train, held_out : int
        Number of records of each family in the split to train on, and in each of the others.

    Returns
    -------
    dict of str to list of Record
        The splits "train", "validation", "values", "phrasing" and "formats"; each is shuffled.

    Raises
    ------
    ValueError
        If a family does not have so many different prompts.

    Examples
    --------
    >>> from lora_np.experiments.instructions import instruction_set
    >>> splits = instruction_set(seed=0, train=3, held_out=2)
    >>> {name: len(records) for name, records in splits.items()}
    {'train': 39, 'validation': 26, 'values': 26, 'phrasing': 26, 'formats': 8}
    >>> record = next(r for r in splits["formats"] if r.family == "numbered")
    >>> print(record.prompt)
    Number the items, one a line: "1. ", "2. " and so on.
    <BLANKLINE>
    nails, boots, drills
    """
    taken: set[str] = set()
    splits = {}
    for i, split in enumerate(SPLITS):
        families = HELD_OUT if split == "formats" else TRAINED
        count = train if split == "train" else held_out
        records = []
        for j, family in enumerate(families):
            words = Words("test" if split in TESTS else split, np.random.default_rng([seed, i, j]))
            records += _draw(family, words, split == "phrasing", count, taken)
        order = np.random.default_rng([seed, i, len(families)]).permutation(len(records))
        splits[split] = [records[k] for k in order]
    check_apart(splits)
    return splits


def _draw(
    family: Family, words: Words, unseen: bool, count: int, taken: set[str]
) -> Iterator[Record]:
    """Yield records whose prompts are not taken yet, and take them."""
    wordings = family.unseen if unseen else family.wordings
    tries, found = TRIES, 0
    while found < count:
        if tries == 0:
            raise ValueError(
                f"the family {family.name!r} gave {found} different prompts for {words.part}, not "
                f"{count}: ask for fewer records"
            )
        drawn = family.draw(words)
        instruction = words.one(wordings).format(**drawn.fields)
        record = Record(family.name, instruction, drawn.input, drawn.output)
        tries -= 1
        if record.prompt not in taken:
            taken.add(record.prompt)
            tries, found = TRIES, found + 1
            yield record


def check_apart(splits: Mapping[str, Sequence[Record]]) -> None:
    r"""Raise ValueError if a prompt occurs twice, in one split or in two.

    Examples
    --------
    >>> from lora_np.experiments.instructions import Record
    >>> from lora_np.experiments.instructions.records import check_apart
    >>> record = Record("count", "Count the items.", "cups, hats", "2")
    >>> try:
    ...     check_apart({"train": [record], "values": [record]})
    ... except ValueError as error:
    ...     print(error)
    the prompt 'Count the items.\n\ncups, hats' is in train and in values
    """
    home: dict[str, str] = {}
    for split, records in splits.items():
        for record in records:
            first = home.setdefault(record.prompt, split)
            if first != split:
                raise ValueError(f"the prompt {shown(record.prompt)} is in {first} and in {split}")
        prompt, n = max(
            Counter(r.prompt for r in records).items(), key=lambda x: x[1], default=("", 0)
        )
        if n > 1:
            raise ValueError(f"the prompt {shown(prompt)} is {n} times in {split}")


def write_jsonl(path: str | Path, records: Sequence[Record]) -> None:
    """Write records in Alpaca's form: a JSON object a line.

    Parameters
    ----------
    path : str or Path
    records : sequence of Record

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.experiments.instructions import Record, write_jsonl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_jsonl(f"{folder}/train.jsonl", [Record("count", "Count.", "cups, hats", "2")])
    ...     print(Path(f"{folder}/train.jsonl").read_text(encoding="utf-8"), end="")
    {"instruction": "Count.", "input": "cups, hats", "output": "2"}
    """
    lines = (json.dumps(record.as_alpaca(), ensure_ascii=False) for record in records)
    save_text(path, "".join(f"{line}\n" for line in lines))
