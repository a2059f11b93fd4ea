"""The task: training questions, one split to choose settings on, and three test splits.

====================  =============================================================================
train                 schemas, phrasings and values of training
validation            thirds: new values, phrasings kept for it, schemas kept for it
new values            schemas and phrasings of training, values that no training question has
unseen phrasing       schemas of training, phrasings written without sight of those of training
unseen schema         schemas that are nowhere else, phrasings of training
====================  =============================================================================

Every split holds the templates equally often, and no question stands in two splits. A split other
than train does not depend on how many questions train has.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np.data import Record
from lora_np.experiments.sql.heldout import PHRASINGS as HELD_OUT
from lora_np.experiments.sql.judge import guard, judge, rows_of
from lora_np.experiments.sql.phrasings import PHRASINGS
from lora_np.experiments.sql.schemas import SCHEMAS, TRAINED, UNSEEN, VALIDATION, Schema, database
from lora_np.experiments.sql.templates import TEMPLATES, Draw, phrased
from lora_np.files import save_text

Messages = list[dict[str, str]]
Answer = Callable[[list[Messages]], list[str]]

INSTRUCTION = "Answer with one SQLite query."
TESTS = ("new values", "unseen phrasing", "unseen schema")
SPLITS = ("validation", *TESTS, "train")  # train last: it leaves out what the others ask
DATABASES = 3  # that an answer is judged on
TRIES = 40  # databases drawn before a question is drawn anew
NOTHING: tuple[list[tuple[Any, ...]], ...] = ([], [(0,)], [(None,)])  # rows that say too little


@dataclass(frozen=True)
class Sizes:
    """How many questions each split has.

    Attributes
    ----------
    train, validation, test : int
        `test` is of each of the three test splits.
    """

    train: int = 1800
    validation: int = 108
    test: int = 144


class Question(NamedTuple):
    """A question on a schema, and the seeds of the databases that answers are judged on."""

    template: str
    schema: str
    text: str
    sql: str
    databases: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The schema's line and the question."""
        return f"{SCHEMAS[self.schema].line()}\n{self.text}"


def questions(seed: int = 0, sizes: Sizes | None = None) -> dict[str, list[Question]]:
    """Return the questions of every split, in a random order.

    Parameters
    ----------
    seed : int
    sizes : Sizes, optional

    Examples
    --------
    >>> from lora_np.experiments.sql.task import Sizes, questions
    >>> splits = questions(0, Sizes(train=36, validation=18, test=18))
    >>> {name: len(split) for name, split in splits.items()}["unseen schema"]
    18
    """
    sizes, taken = sizes or Sizes(), set[str]()
    counts = {"train": sizes.train, "validation": sizes.validation}
    splits = {}
    for number, name in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        made = [_question(name, i, taken, rng) for i in range(counts.get(name, sizes.test))]
        splits[name] = [made[i] for i in rng.permutation(len(made))]
    return splits


def _question(split: str, i: int, taken: set[str], rng: np.random.Generator) -> Question:
    """Return question `i` of a split; its prompt joins those that are taken."""
    template = list(TEMPLATES)[i % len(TEMPLATES)]
    third = i // len(TEMPLATES) % 3 if split == "validation" else None
    schemas: Sequence[Schema] = TRAINED
    known = PHRASINGS[template][:-1]
    phrasings = known
    if split == "unseen schema" or third == 2:
        schemas = VALIDATION if third == 2 else UNSEEN
    elif split == "unseen phrasing":
        phrasings = HELD_OUT[template]
    elif third == 1:
        phrasings = PHRASINGS[template][-1:]
    while True:
        draw = Draw(schemas[int(rng.integers(len(schemas)))], rng, split == TESTS[0] or third == 0)
        slots, sql = TEMPLATES[template](draw)
        text = phrased(draw.one(phrasings), slots, rng)
        found = () if split == "train" else _databases(draw.schema, sql, rng)
        question = Question(template, draw.schema.name, text, sql, found or ())
        if found is not None and question.prompt not in taken:
            taken.add(question.prompt)
            return question


def _databases(schema: Schema, sql: str, rng: np.random.Generator) -> tuple[int, ...] | None:
    """Return seeds of databases on which a gold query returns something; None if few do."""
    seeds: list[int] = []
    for seed in rng.integers(2**31, size=TRIES).tolist():
        with guarded(schema, seed) as connection:
            if rows_of(sql, connection) not in NOTHING:
                seeds.append(seed)
        if len(seeds) == DATABASES:
            return tuple(seeds)
    return None


@contextmanager
def guarded(schema: Schema, seed: int) -> Iterator[sqlite3.Connection]:
    """Give the guarded database of a seed.

    Parameters
    ----------
    schema : Schema
    seed : int
    """
    with closing(database(schema, np.random.default_rng(seed))) as connection:
        guard(connection)
        yield connection


def messages(
    question: Question, examples: Sequence[Question] = (), answered: bool = False
) -> Messages:
    """Return a question as a chat: the instruction, worked examples, the question.

    Parameters
    ----------
    question : Question
    examples : sequence of Question
    answered : bool
        Whether the gold query follows, as in training.
    """
    turns = [{"role": "system", "content": INSTRUCTION}]
    for asked in (*examples, question):
        turns.append({"role": "user", "content": asked.prompt})
        turns.append({"role": "assistant", "content": asked.sql})
    return turns if answered else turns[:-1]


def training_records(asked: Sequence[Question]) -> list[Record]:
    """Return questions with their queries as records, for :func:`lora_np.data.samples_of`.

    Parameters
    ----------
    asked : sequence of Question
    """
    chats = (tuple(messages(question, answered=True)) for question in asked)
    return [Record("questions", i, chat, (True,)) for i, chat in enumerate(chats, start=1)]


def worked_examples(train: Sequence[Question], number: int) -> list[Question]:
    """Return the first training questions of different templates.

    Parameters
    ----------
    train : sequence of Question
    number : int
        At most the number of templates.
    """
    first = {question.template: question for question in reversed(train)}
    return sorted(first.values(), key=train.index)[:number]


def write_jsonl(path: str | Path, asked: Sequence[Question]) -> None:
    """Write questions with their queries as chats, one a line, for training.

    Parameters
    ----------
    path : str or Path
    asked : sequence of Question
    """
    lines = [json.dumps({"messages": messages(q, answered=True)}) for q in asked]
    save_text(path, "".join(f"{line}\n" for line in lines))


def scored(
    answer: Answer,
    asked: Sequence[Question],
    contender: str,
    split: str,
    seed: int = 0,
    examples: Sequence[Question] = (),
) -> list[dict[str, Any]]:
    """Return a model's answers with their verdicts: one record a question, ready for JSON.

    Parameters
    ----------
    answer : callable
        Takes chats and returns what the model answers to each.
    asked : sequence of Question
        Not of the training split, whose questions have no databases.
    contender, split : str
        Names for the records.
    seed : int
        Of the training run, for the records.
    examples : sequence of Question
        Worked examples before each question.

    Examples
    --------
    >>> from lora_np.experiments.sql.task import Sizes, questions, scored
    >>> asked = questions(0, Sizes(train=18, validation=18, test=18))["unseen schema"]
    >>> records = scored(lambda chats: ["SELECT"] * len(chats), asked, "parrot", "unseen schema")
    >>> records[0]["right"], records[0]["reason"]
    (False, 'syntax')
    """
    answers = answer([messages(question, examples) for question in asked])
    records = []
    for question, said in zip(asked, answers, strict=True):
        with ExitStack() as stack:
            schema = SCHEMAS[question.schema]
            opened = [stack.enter_context(guarded(schema, s)) for s in question.databases]
            verdict = judge(said, question.sql, opened)
        run = {"contender": contender, "split": split, "seed": seed}
        asked_for = {"template": question.template, "prompt": question.prompt, "gold": question.sql}
        records.append({**run, **asked_for, "answer": said, **verdict._asdict()})
    return records
