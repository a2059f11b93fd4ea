"""The task: schemas, databases, templates, phrasings, splits."""

import json
import string
from collections import Counter
from contextlib import ExitStack, closing

import numpy as np
import pytest

from lora_np.experiments.sql.heldout import PHRASINGS as HELD_OUT
from lora_np.experiments.sql.judge import judge
from lora_np.experiments.sql.phrasings import PHRASINGS
from lora_np.experiments.sql.schemas import SCHEMAS, TRAINED, UNSEEN, VALIDATION, database
from lora_np.experiments.sql.task import (
    INSTRUCTION,
    SPLITS,
    TESTS,
    Sizes,
    guarded,
    messages,
    questions,
    scored,
    worked_examples,
    write_jsonl,
)
from lora_np.experiments.sql.templates import RESERVED, TEMPLATES, Draw, phrased
from tests.experiments.sql.planted import planted

EITHER = ({"things", "thing"}, {"owners", "owner"})  # forms of one slot


@pytest.fixture(scope="module")
def splits():
    return questions()


def rng_of(seed):
    return np.random.default_rng(seed)


def words_of(schemas):
    tables = [table for schema in schemas for table in schema.tables]
    columns = [column for table in tables for column in table.columns]
    return {t.name for t in tables} | {t.thing for t in tables} | {c.name for c in columns}


def test_schemas_of_training_validation_and_test_share_no_table_and_no_column():
    groups = [words_of(group) for group in (TRAINED, VALIDATION, UNSEEN)]
    assert len(TRAINED) >= 6 and len(UNSEEN) >= 3
    assert sum(map(len, groups)) == len(set.union(*groups))


# --- databases -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=lambda schema: schema.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_database_has_no_ties_and_no_even_groups(schema, seed):
    with closing(database(schema, rng_of(seed))) as connection:

        def column(sql):
            return [row[0] for row in connection.execute(sql)]

        for table in schema.tables:
            assert column(f"SELECT COUNT(DISTINCT id) FROM {table.name}") == [table.rows]
            for unique in table.of_kind("label", "number", "day"):
                assert len(set(column(f"SELECT {unique.name} FROM {table.name}"))) == table.rows
            for grouped in table.of_kind("text", "key"):
                sizes = Counter(column(f"SELECT {grouped.name} FROM {table.name}")).most_common()
                assert sizes[0][1] > sizes[1][1] >= sizes[-1][1]
                assert len(sizes) == len(grouped.values) or grouped.kind == "key"
        for table, key, owner in schema.links():
            lone = f"SELECT COUNT(*) FROM {owner.name} WHERE id NOT IN"
            assert 0 < column(f"{lone} (SELECT {key.name} FROM {table.name})")[0] < owner.rows
            assert set(column(f"SELECT {key.name} FROM {table.name}")) <= set(
                column(f"SELECT id FROM {owner.name}")
            )


def test_names_and_ids_are_shuffled_in_every_database():
    rows = []
    for seed in (0, 0, 1):
        with closing(database(SCHEMAS["shop"], rng_of(seed))) as connection:
            rows.append(connection.execute("SELECT id, name, city FROM customers").fetchall())
    assert rows[0] == rows[1]
    ids, names, cities = zip(*rows[0])
    assert all(one != two for one, two in zip((ids, names, cities), zip(*rows[2])))
    assert len(set(names) & {name for _, name, _ in rows[2]}) < 10


# --- templates and phrasings ---------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_runs_on_every_schema(template):
    for schema in SCHEMAS.values():
        with guarded(schema, 0) as connection:
            for seed in range(5):
                drawn = TEMPLATES[template](Draw(schema, rng_of(seed)))
                assert judge(drawn.sql, drawn.sql, [connection]) == (True, True, None)
                assert template != "most" or len(connection.execute(drawn.sql).fetchall()) == 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_phrasing_says_every_slot(template):
    slots = set(TEMPLATES[template](Draw(TRAINED[0], rng_of(0))).slots)
    for phrasing in (*PHRASINGS[template], *HELD_OUT[template]):
        said = {name for _, name, _, _ in string.Formatter().parse(phrasing) if name}
        assert said <= slots
        missing = slots - said
        assert all(any(missing & e == {m} and said & e for e in EITHER) for m in missing), phrasing


def test_there_are_enough_phrasings_and_none_is_written_twice():
    assert list(PHRASINGS) == list(TEMPLATES) and set(HELD_OUT) == set(TEMPLATES)
    for template, known in PHRASINGS.items():
        assert len(known) >= 5 and len(HELD_OUT[template]) >= 4
        slots = TEMPLATES[template](Draw(TRAINED[0], rng_of(0))).slots
        said = {phrased(p, slots, rng_of(seed)) for p in known for seed in range(20)}
        assert not said & {phrased(p, slots, rng_of(0)) for p in HELD_OUT[template]}


def test_alternatives_are_drawn():
    said = {phrased("[show|list] the {x}", {"x": "city"}, rng_of(seed)) for seed in range(20)}
    assert said == {"Show the city", "List the city"}


# --- splits --------------------------------------------------------------------------------------


def test_no_question_is_in_two_splits_and_templates_are_balanced(splits):
    prompts = [question.prompt for split in splits.values() for question in split]
    assert len(prompts) == len(set(prompts))
    for name, split in splits.items():
        counts = Counter(question.template for question in split)
        assert set(counts) == set(TEMPLATES) and len(set(counts.values())) == 1
        assert len(split) >= 120 or name == "validation"


def test_splits_follow_from_the_seed_and_not_from_the_size_of_training(splits):
    small = questions(sizes=Sizes(train=36))
    assert all(small[name] == splits[name] for name in SPLITS[:-1])
    one, two = (questions(seed, Sizes(18, 18, 18)) for seed in (1, 2))
    assert one == questions(1, Sizes(18, 18, 18))
    assert all(one[name] != two[name] for name in SPLITS)


def test_each_split_has_what_its_name_says(splits):
    schemas = {name: {question.schema for question in split} for name, split in splits.items()}
    trained, unseen = ({schema.name for schema in group} for group in (TRAINED, UNSEEN))
    assert schemas["unseen schema"] == unseen
    assert schemas["train"] == trained >= schemas["new values"] | schemas["unseen phrasing"]
    assert not schemas["validation"] & unseen and schemas["validation"] - trained


def test_new_values_are_in_no_training_query(splits):
    new = set()
    for column in (c for schema in TRAINED for t in schema.tables for c in t.of_kind("text")):
        new |= {
            f"{column.name} = '{value}'"
            for value in column.values[-(len(column.values) // RESERVED) :]
        }
    assert not [q for q in splits["train"] if any(value in q.sql for value in new)]
    filtered = [q for q in splits["new values"] if q.template == "filter"]
    assert all(any(value in q.sql for value in new) for q in filtered)


def test_wrong_queries_are_judged_wrong(splits):
    right, wrong, on_one = Counter(), Counter(), Counter()
    for question in splits["new values"] + splits["unseen schema"]:
        with ExitStack() as stack:
            schema = SCHEMAS[question.schema]
            opened = [stack.enter_context(guarded(schema, s)) for s in question.databases]
            assert judge(question.sql, question.sql, opened).right
            for plant, sql in planted(question.sql).items():
                verdict = judge(sql, question.sql, opened)
                right[plant] += verdict.right
                wrong[plant] += verdict.reason == "wrong rows"
                on_one[plant] += judge(sql, question.sql, opened[:1]).reason == "wrong rows"
    print({plant: (right[plant], wrong[plant], on_one[plant]) for plant in wrong})
    assert len(wrong) == 21
    assert all(wrong[plant] >= 0.95 * (wrong[plant] + right[plant]) for plant in wrong)
    assert sum(wrong.values()) > 0.99 * (sum(wrong.values()) + sum(right.values()))
    assert sum(on_one.values()) < sum(wrong.values())  # three databases see more than one


# --- prompts and answers -------------------------------------------------------------------------


def test_a_prompt_is_the_same_in_training_and_in_asking(splits, tmp_path):
    train = splits["train"]
    write_jsonl(tmp_path / "train.jsonl", train)
    lines = (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(train)
    for line, question in zip(lines[:50], train):
        *asked, answer = json.loads(line)["messages"]
        assert asked == messages(question) and asked[0]["content"] == INSTRUCTION
        assert answer == {"role": "assistant", "content": question.sql}


def test_worked_examples_come_before_the_question(splits):
    examples = worked_examples(splits["train"], 3)
    assert len({example.template for example in examples}) == 3
    chat = messages(splits["new values"][0], examples)
    assert [turn["role"] for turn in chat] == ["system", *(["user", "assistant"] * 3), "user"]
    assert chat[2]["content"] == examples[0].sql and examples[0] == splits["train"][0]
    assert len(worked_examples(splits["train"], 99)) == len(TEMPLATES)


def test_the_gold_scores_all_and_another_questions_gold_almost_nothing(splits):
    split = TESTS[1]
    gold = {question.prompt: question.sql for question in splits[split]}

    def knows(chats):
        return [gold[chat[-1]["content"]] for chat in chats]

    def shifted(chats):
        return knows([*chats[1:], chats[0]])

    right = scored(knows, splits[split], "gold", split)
    assert all(record["right"] and record["exact"] for record in right)
    wrong = scored(shifted, splits[split], "shifted", split)
    assert sum(record["right"] for record in wrong) <= 2
    assert json.loads(json.dumps(wrong)) == wrong
