"""lora_np.experiments.instructions: the records are right and apart, and the judge is strict."""

import json
import math
import re

import pytest

from lora_np.experiments.instructions import (
    Record,
    instruction_set,
    judge,
    judge_splits,
    report,
    write_jsonl,
)
from lora_np.experiments.instructions.families import ALL, HELD_OUT, REFUSAL, TRAINED
from lora_np.experiments.instructions.judge import guessed, rate, refused_wrongly, same_json
from lora_np.experiments.instructions.records import SPLITS, TESTS, check_apart
from lora_np.experiments.instructions.words import CITIES, GOODS, NAMES, PARTS, Words


@pytest.fixture(scope="module")
def splits():
    return instruction_set(seed=3, train=60, held_out=20)


def every(splits, family):
    return [record for records in splits.values() for record in records if record.family == family]


# --- the records ---------------------------------------------------------------------------------


def test_equal_seeds_give_equal_records_and_other_seeds_others(splits):
    assert instruction_set(seed=3, train=60, held_out=20) == splits
    assert instruction_set(seed=4, train=60, held_out=20)["values"] != splits["values"]


def test_every_split_has_its_families_and_their_numbers(splits):
    for name in SPLITS:
        families = [family.name for family in (HELD_OUT if name == "formats" else TRAINED)]
        count = 60 if name == "train" else 20
        found = sorted(record.family for record in splits[name])
        assert found == sorted(families * count)
        assert [record.family for record in splits[name]] != found  # shuffled
    assert len(HELD_OUT) >= 3 and len(TRAINED) >= 10
    assert all(len(splits[name]) >= 80 for name in TESTS)


def test_no_prompt_is_in_two_splits_and_the_check_finds_one_that_is(splits):
    prompts = [record.prompt for records in splits.values() for record in records]
    assert len(set(prompts)) == len(prompts)
    planted = {**splits, "values": [*splits["values"], splits["train"][0]]}
    with pytest.raises(ValueError, match="is in train and in values"):
        check_apart(planted)
    with pytest.raises(ValueError, match="is 2 times in values"):
        check_apart({"values": [splits["values"][0]] * 2})


def words_in(records, of):
    text = " ".join(record.input for record in records)
    return set(re.findall(r"\w+", text)) & set(of.split())


@pytest.mark.parametrize("of", [NAMES, CITIES, GOODS], ids=["names", "cities", "goods"])
def test_tests_have_words_that_training_and_validation_have_not(splits, of):
    train, validation = (words_in(splits[name], of) for name in ("train", "validation"))
    test = set().union(*(words_in(splits[name], of) for name in TESTS))
    assert len(train) > len(validation) > 4 and len(test) > 4
    assert not train & validation and not (train | validation) & test
    assert len(of.split()) == len(set(of.split()))


def test_the_parts_of_a_list_are_the_whole_list():
    assert [word for part in PARTS for word in Words(part, None).some_of(GOODS)] == GOODS.split()


def test_unseen_phrasing_and_formats_share_no_wording_with_training():
    for family in TRAINED:
        assert len(family.wordings) == 3 and len(family.unseen) == 2
    seen = {wording for family in TRAINED for wording in family.wordings}
    unseen = {wording for family in TRAINED for wording in family.unseen}
    formats = {wording for family in HELD_OUT for wording in family.wordings}
    assert not seen & unseen and not (seen | unseen) & formats


def test_a_refusal_has_the_instructions_of_the_family_that_answers(splits):
    for name in ("extract", "lookup"):
        asked, refused = every(splits, name), every(splits, f"{name}, not stated")
        assert {r.instruction for r in refused} <= {r.instruction for r in asked}
        assert all(r.refuses for r in refused) and not any(r.refuses for r in asked)
        assert all(REFUSAL in r.instruction for r in (*asked, *refused))


def test_prompt_and_output_are_short(splits):
    longest = max(len(r.prompt) + len(r.output) for records in splits.values() for r in records)
    assert longest <= 260  # characters: the words are common, so about 4 make a token


# --- the outputs, recomputed from the inputs by other code ---------------------------------------


def facts_of(record):
    """The values that a sentence about a person holds, by key, in the order of the instruction."""
    name = re.search(r"^(?:In \w+ lives )?(\w+)", record.input)[1]
    city = re.search(r"(?:lives in|In) (\w+)", record.input)[1]
    held = {"name": name, "city": city, "age": int(re.search(r"\d+", record.input)[0])}
    return {key: held[key] for key in re.findall(r"\b(?:name|city|age)\b", record.instruction)}


def items_of(record):
    return record.input.split(", ")


def asked_of(record):
    text, question = record.input.split("\n")
    who = re.search(r"(?:does) (\w+)", question)[1]
    verb = re.search(r"(live|sell|come)\?$", question)[1]
    found = re.search(rf"{who} {verb}s (?:in |on )?(\w+)\.", text)
    return found[1] if found else REFUSAL


def extracted(record):
    kind = re.search(r"order number|date|email address", record.instruction)[0]
    forms = {
        "order number": r"number is (\d+)",
        "date": r"(\d+ [A-Z][a-z]+ \d{4})",
        "email address": r"(\S+@\S+)",
    }
    found = re.search(forms[kind], record.input)
    return found[1] if found else REFUSAL


def reason(record):
    text, question = record.input.split("\n")
    name, good = re.search(r"Does (\w+) sell (\w+)\?", question).groups()
    yes = f"{name} sells {good}."
    return f"Yes: {yes}" if yes in text else f"No: {name} does not sell {good}."


def filled(record):
    values = dict(part.split(": ") for part in record.input.split(", "))
    form = next(w for w in ALL["template"].wordings + ALL["template"].unseen if fits(w, record))
    before, after = form.split("{form}")
    template = record.instruction.removeprefix(before).removesuffix(after)
    for key, value in values.items():
        template = template.replace(f"{{{key}}}", value)
    return template


def fits(wording, record):
    before, after = wording.split("{form}")
    return record.instruction.startswith(before) and record.instruction.endswith(after)


RIGHT = {
    "json": lambda r: json.dumps(facts_of(r)),
    "csv": lambda r: ",".join(str(v) for v in facts_of(r).values()),
    "bullets": lambda r: "- " + "\n- ".join(items_of(r)),
    "capitals": lambda r: "".join(c.upper() for c in r.input),
    "reversed": lambda r: ", ".join(items_of(r)[::-1]),
    "sorted": lambda r: ", ".join(sorted(items_of(r))),
    "count": lambda r: str(r.input.count(",") + 1),
    "extract": extracted,
    "extract, not stated": extracted,
    "lookup": asked_of,
    "lookup, not stated": asked_of,
    "yes or no": reason,
    "template": filled,
    "tags": lambda r: "".join("<{0}>{1}</{0}>".format(*pair) for pair in facts_of(r).items()),
    "key=value": lambda r: "\n".join("{}={}".format(*pair) for pair in facts_of(r).items()),
    "numbered": lambda r: "\n".join(f"{i + 1}. {x}" for i, x in enumerate(items_of(r))),
    "table row": lambda r: "".join(f"| {v} " for v in facts_of(r).values()) + "|",
}


@pytest.mark.parametrize("family", list(ALL))
def test_the_output_is_the_right_one(splits, family):
    records = every(splits, family)
    assert [record.output for record in records] == [RIGHT[family](r) for r in records]
    assert len({record.output for record in records}) > 1 or records[0].refuses


def test_lines_are_in_the_form_of_alpaca(splits, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", splits["train"])
    lines = (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(splits["train"])
    for line, record in zip(lines, splits["train"]):
        found = json.loads(line)
        assert list(found) == ["instruction", "input", "output"]
        assert Record(record.family, *found.values()) == record


def test_more_records_than_a_family_has_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(f"{instruction_set.__module__}.TRAINED", (ALL["template"],))
    with pytest.raises(ValueError, match=r"gave \d+ different prompts for \w+, not 9000") as error:
        instruction_set(train=1, held_out=9000)
    assert "\n" not in str(error.value)


# --- the judge -----------------------------------------------------------------------------------

JSON = Record("json", "Give age and city as JSON.", "...", '{"age": 30, "city": "Oslo"}')
COUNT = Record("count", "Count the items.", "cups, hats", "2")
ABSENT = Record("lookup, not stated", "Answer.", "...", REFUSAL)


@pytest.mark.parametrize(
    "record, answer, exact, value",
    [
        (JSON, '{"age": 30, "city": "Oslo"}', True, True),
        (JSON, ' {"age": 30, "city": "Oslo"}\n', True, True),
        (JSON, '{"city":"Oslo","age":30}', False, True),
        (JSON, '{"age": 30.0, "city": "Oslo"}', False, False),
        (JSON, '{"age": "30", "city": "Oslo"}', False, False),
        (JSON, '{"age": 1, "age": 30, "city": "Oslo"}', False, False),
        (JSON, '```json\n{"age": 30, "city": "Oslo"}\n```', False, False),
        (JSON, '{"age": 30, "city": "Oslo"} as JSON', False, False),
        (JSON, "[" * 100_000, False, False),
        (JSON, "", False, False),
        (COUNT, "2\n", True, True),
        (COUNT, "2.", False, False),
        (COUNT, "There are 2 items.", False, False),
        (COUNT, '"2"', False, False),
    ],
)
def test_only_the_text_or_for_json_its_value_is_right(record, answer, exact, value):
    found = judge(record, answer)
    assert (found["exact"], found["value"]) == (exact, value)


def test_json_is_compared_by_type_and_nan_is_none():
    assert same_json("[true]", "[true]") and not same_json("[1]", "[true]")
    assert not same_json("NaN", "NaN") and not same_json("{", "{")
    assert not same_json("1" * 5000, "2")


def test_guesses_and_wrong_refusals_are_counted_apart():
    answers = iter(["Not stated.", "not stated", "Oslo", "I cannot know.", "2", "Not stated."])
    tests = {"values": [ABSENT] * 4 + [COUNT] * 2}
    rows = judge_splits(tests, lambda prompts: [next(answers) for prompt in prompts])
    assert guessed(rows) == (0.5, 0.25, 4) and refused_wrongly(rows).share == 0.5
    assert [row["exact"] for row in rows] == [True, False, False, False, True, False]


def test_a_rate_has_the_standard_error_of_a_share():
    assert rate([True] * 20 + [False] * 80) == (0.2, pytest.approx(0.04), 100)
    assert rate([]).n == 0 and math.isnan(rate([]).share)


def test_a_model_that_swallows_a_prompt_is_refused():
    with pytest.raises(ValueError, match="0 answers to 1 prompts of values"):
        judge_splits({"values": [COUNT]}, lambda prompts: [])


# --- the study and its report --------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    """Of a model that knows everything but JSON's order after training, and refuses before."""
    splits = instruction_set(seed=1, train=4, held_out=8)
    tests = {name: splits[name] for name in TESTS}
    known = {r.prompt: r.output for records in splits.values() for r in records}

    def answer(prompts):
        return [spread(known[prompt]) for prompt in prompts]

    def spread(output):
        return output.replace('": ', '":') if output.startswith("{") else output

    before = judge_splits(tests, lambda prompts: [REFUSAL] * len(prompts))
    trial = {"train": 52, "seconds": 90.0, "before": before, "after": judge_splits(tests, answer)}
    return {"trials": [trial]}


def test_the_results_are_plain_and_both_sides_judge_the_same_samples(results):
    assert json.loads(json.dumps(results)) == results
    (trial,) = results["trials"]
    for side in ("before", "after"):
        assert [row["split"] for row in trial[side]] == ["values"] * 104 + ["phrasing"] * 104 + [
            "formats"
        ] * 32
    assert all(
        a["family"] == b["family"] for a, b in zip(trial["before"], trial["after"], strict=True)
    )


def test_the_report_has_every_family_with_its_numbers(results):
    text = report(results)
    assert text.startswith("Synthetic instructions, trained on 52 records; 1 seed")
    assert re.search(r"^json +8 +0\.0 \+- 0\.0 % +0\.0 \+- 0\.0 % +\+0\.0 \+- 0\.0$", text, re.M)
    assert re.search(r"^tags +8 +0\.0 \+- 0\.0 % +100\.0 \+- 0\.0 % +\+100\.0", text, re.M)
    before = f"{100 * 16 / 104:.1f}"  # the two families of refusals, of 13
    after = f"{100 * 96 / 104:.1f}"  # all but JSON
    assert len(re.findall(rf"^all +104 +{before} .* {after} \+- ", text, re.M)) == 2
    assert len(re.findall(r"^all, JSON by value +104 .* 100\.0 \+- 0\.0 %$", text, re.M)) == 2
    assert text.count("JSON by value") == 2  # no family of the unseen formats is JSON
    said = "0.0 +- 0.0 % before, 0.0 +- 0.0 % after (n = 16)"
    assert text.count(f"guessed where the text does not say: {said}") == 2
    assert text.count("refused where the text says: 100.0 +- 0.0 % before, 0.0 +- 0.0 % after") == 3
    assert max(map(len, text.splitlines())) <= 100
