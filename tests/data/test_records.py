"""lora_np.data.records: what a file holds is recognised, and what is wrong in it is named."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.data import DataError, Record, data_hash, read_records, split_records
from lora_np.data.records import TO_LINES


def written(folder, *lines, name="mine.jsonl"):
    path = folder / name
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return path


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def contents(record):
    return [(message["role"], message["content"]) for message in record.messages]


TURNS = [("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d")]


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, turns",
    [
        ({"prompt": "a?", "response": "b"}, TURNS[:2]),
        ({"prompt": "a?", "completion": "b", "id": 7}, TURNS[:2]),
        ({"instruction": "a?", "output": "b"}, TURNS[:2]),
        ({"instruction": "a?", "input": "", "output": "b", "text": "x"}, TURNS[:2]),
        ({"instruction": "a?", "input": None, "output": "b"}, TURNS[:2]),
        ({"instruction": "a?", "input": "z", "output": "b"}, [("user", "a?\n\nz"), TURNS[1]]),
        ({"messages": chat(*TURNS)}, TURNS),
        ({"messages": chat(("system", "s"), *TURNS)}, [("system", "s"), *TURNS]),
        ({"messages": [dict(m, weight=1) for m in chat(*TURNS[:2])]}, TURNS[:2]),
    ],
)
def test_each_kind_of_line_becomes_a_conversation(tmp_path, row, turns):
    (record,) = read_records(written(tmp_path, row))
    assert contents(record) == turns and record.text == ""
    assert record.labelled == (True,) * sum(role == "assistant" for role, _ in turns)


def test_only_the_last_turn_of_the_assistant_is_learned_if_asked(tmp_path):
    path = written(tmp_path, {"messages": chat(*TURNS)})
    assert read_records(path)[0].labelled == (True, True)
    assert read_records(path, turns="last")[0].labelled == (False, True)


def test_texts_keep_their_characters_and_lines_their_numbers(tmp_path):
    first, second = " né\n\t", "秩 😀"
    path = written(tmp_path, b"", {"text": first}, b"  \r", {"text": second})
    records = read_records(path)
    assert [(record.line, record.text) for record in records] == [(2, first), (4, second)]
    assert records[1].place == f"{path}, line 4" and records[0].messages == ()


def test_a_file_without_a_last_line_end_and_with_windows_line_ends_is_read(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(b'{"text": "a"}\r\n{"text": "b"}')
    assert [record.text for record in read_records(path)] == ["a", "b"]


def test_a_plain_text_is_one_record(tmp_path):
    path = tmp_path / "mine.TXT"
    path.write_text('{"text": "not JSON here"}\n\nTo be\n', encoding="utf-8")
    (record,) = read_records(path)
    assert record.whole_file and record.text.endswith("\n\nTo be\n") and record.line == 1


def test_the_hash_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "mine.bin"
    raw = bytes(range(256)) * 5000  # more than one read
    path.write_bytes(raw)
    assert data_hash(path) == hashlib.sha256(raw).hexdigest()


# --- what is wrong -------------------------------------------------------------------------------

GOOD = {"prompt": "a?", "response": "b"}
LINES = [  # lines, and the error without the file's name
    ([], " is empty: expected one JSON object a line"),
    ([b"", b" \t"], " is empty: expected one JSON object a line"),
    (
        [b'\xef\xbb\xbf{"text": "a"}'],
        " starts with a byte order mark: save it as UTF-8 without one",
    ),
    (
        [b"", b"[", b'{"prompt": "a"}]'],
        ", line 2 starts a JSON array, expected one object a line: convert it with " + TO_LINES,
    ),
    ([GOOD, [1, 2]], ", line 2 is a list, expected a JSON object"),
    ([GOOD, 7], ", line 2 is a number, expected a JSON object"),
    ([None], ", line 1 is null, expected a JSON object"),
    (
        [GOOD, b'{"prompt": "a", }'],
        ", line 2 is not JSON (expecting property name enclosed in double quotes at character 17): "
        "expected one whole object a line; the name of a plain text ends in .txt",
    ),
    (
        [b"To be"],
        ", line 1 is not JSON (expecting value at character 1): expected one whole object a line; "
        "the name of a plain text ends in .txt",
    ),
    (
        [b'{"prompt": "a\x01"}'],
        ", line 1 is not JSON (invalid control character at character 14): expected one whole",
    ),
    ([GOOD, b'{"prompt": "\xe9"}'], ", line 2 is not UTF-8 at byte 12: save it as UTF-8"),
    ([b"{" + b'"a":' + b"1" * 5000 + b"}"], ", line 1 has a number too long or brackets too deep"),
    ([b'{"a":' * 100_000], ", line 1 has a number too long or brackets too deep to read"),
    (
        [{"question": "a", "answer": "b"}],
        ", line 1 has the fields question, answer, expected one of: messages, prompt + response, "
        "prompt + completion, instruction + output, text",
    ),
    ([{}], ", line 1 has the fields none, expected one of: messages"),
    ([GOOD, {"prompt": "a"}], ", line 2 has no field 'response', which the lines before it have"),
    (
        [GOOD, {"instruction": "a", "output": "b"}],
        ", line 2 has instruction + output and the lines before it have prompt + response: put "
        "different kinds into different files",
    ),
    ([GOOD, {"prompt": "a", "response": 4}], ", line 2: 'response' is a number, expected a string"),
    ([{"prompt": ["a"], "response": "b"}], ", line 1: 'prompt' is a list, expected a string"),
    ([{"prompt": "a", "response": None}], ", line 1: 'response' is null, expected a string"),
    ([{"text": True}], ", line 1: 'text' is a boolean, expected a string"),
    ([{"text": " \n"}], ", line 1: 'text' is empty"),
    (
        [{"instruction": "a", "input": {}, "output": "b"}],
        ", line 1: 'input' is an object, expected a string",
    ),
    (
        [GOOD, {"prompt": "a", "response": " "}],
        ", line 2: 'response' is empty: an answer of no tokens teaches nothing",
    ),
    ([{"text": "a\0"}], ", line 1: 'text' has a NUL character at 2: remove it"),
    (
        [b'{"text": "a\\ud83d"}'],
        ", line 1: 'text' has half a surrogate pair at character 2: write the whole character",
    ),
    (
        [b'{"text": "' + b"a" * 2**24],
        ", line 1 has more than 16,777,216 bytes: expected one record",
    ),
]
CHATS = [
    ("a", ": 'messages' is a string, expected a list"),
    ([], " has no turn of the assistant: there is nothing to learn"),
    (chat(("user", "a")), " has no turn of the assistant: there is nothing to learn"),
    (["a"], ", message 1 is not an object with role and content"),
    ([{"role": "user"}], ", message 1 is not an object with role and content"),
    (
        chat(("user", "a"), ("tool", "b")),
        ", message 2 has the role 'tool', expected system, user, assistant",
    ),
    ([{"role": ["user"], "content": "a"}], ", message 1 has the role ['user'], expected system"),
    (
        [{"role": "user", "content": [{"type": "text"}]}],
        ", message 1: 'content' is a list, expected a string",
    ),
    (
        chat(("user", "a"), ("assistant", "")),
        ", message 2: 'content' is empty: an answer of no tokens teaches nothing",
    ),
    (
        chat(("user", "a"), ("user", "b")),
        ", message 2 is of the user and follows one of the user, expected assistant: a "
        "conversation has a system message or none, then user and assistant in turn",
    ),
    (
        chat(("user", "a"), ("assistant", "b"), ("assistant", "c")),
        ", message 3 is of the assistant and follows one of the assistant, expected user",
    ),
    (
        chat(("assistant", "a")),
        ", message 1 is of the assistant and comes first, expected system or user",
    ),
    (
        chat(("user", "a"), ("system", "b")),
        ", message 2 is of the system and follows one of the user, expected assistant",
    ),
]


@pytest.mark.parametrize(
    "lines, message",
    [*LINES, *(([{"messages": m}], f", line 1{message}") for m, message in CHATS)],
)
def test_a_bad_line_is_named_with_its_file_number_and_cause(tmp_path, lines, message):
    path = written(tmp_path, *lines)
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}{message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", " is empty: pass a file that holds text"),
        (b" \n", " holds only white space: pass a file that holds text"),
        (b"a\xe9", " is not UTF-8 at byte 1: save it as UTF-8 first"),
        (b"\xef\xbb\xbfa", " starts with a byte order mark: save it as UTF-8 without one"),
        (b"a\0b", ": the text has a NUL character at 2: remove it"),
    ],
)
def test_a_bad_plain_text_is_named(tmp_path, raw, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert str(caught.value) == f"{path}{message}"


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(DataError, match="is a folder, expected a file"):
        read_records(tmp_path)
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="turns='first', expected 'all' or 'last'"):
        read_records(tmp_path, turns="first")  # pyright: ignore[reportArgumentType]


def test_a_name_that_moves_the_cursor_is_escaped(tmp_path):
    path = written(tmp_path, {"a\x1b[2J": 1})
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert "\x1b" not in str(caught.value) and r"a\x1b[2J" in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="the command is for a POSIX shell")
def test_the_command_for_an_array_makes_lines(tmp_path):
    (tmp_path / "array.json").write_text(json.dumps([GOOD, {**GOOD, "prompt": "é\n"}], indent=1))
    command = TO_LINES.replace("python3", sys.executable)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=60)
    records = read_records(tmp_path / "lines.jsonl")
    assert [record.messages[0]["content"] for record in records] == ["a?", "é\n"]


# --- the split -----------------------------------------------------------------------------------


def asked(*prompts):
    return [
        Record("m.jsonl", i, tuple(chat(("user", prompt), ("assistant", f"{i}"))), (True,))
        for i, prompt in enumerate(prompts, start=1)
    ]


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=4, max_size=40), st.integers(0, 9))
def test_no_prompt_stands_on_both_sides(letters, seed):
    records = asked(
        *(letter.upper() if i % 2 else f" {letter} " for i, letter in enumerate(letters))
    )
    try:
        train, validation, _ = split_records(records, 0.5, seed)
    except DataError:  # one prompt is more than half of all
        assert max(map(letters.count, letters)) > len(letters) / 2
        return
    assert not {r.prompt for r in train} & {r.prompt for r in validation}
    assert sorted(r.line for r in train + validation) == [r.line for r in records]
    assert [r.line for r in train] == sorted(r.line for r in train)
    assert 1 <= len(validation) <= len(records) / 2 + 0.5


def test_the_split_is_the_seeds_and_has_the_share_of_records():
    records = asked(*map(str, range(100)))
    one, same, other = (split_records(records, 0.2, seed) for seed in (1, 1, 2))
    assert one == same and one != other
    assert (len(one.train), len(one.validation), one.duplicates) == (80, 20, 0)


def test_an_answer_does_not_decide_the_side_and_an_equal_record_is_a_duplicate():
    records = [*asked("a", "b", "A "), *asked("a", "c")]  # line 1 twice
    train, validation, duplicates = split_records(records, 0.4, seed=0)
    assert duplicates == 1
    assert {len(train), len(validation)} == {3, 2} and {r.prompt for r in train} == {"user a"}


@pytest.mark.parametrize(
    "records, share, message",
    [
        (asked("a", "b"), 0, "a validation share of 0, expected one above 0 and below 1"),
        (asked("a", "b"), 1.0, "a validation share of 1.0, expected one above 0 and below 1"),
        (asked("a", "b"), float("nan"), "a validation share of nan, expected one above 0"),
        (
            asked("a", "a", "b"),
            0.1,
            "m.jsonl: a validation share of 0.1 of 3 records with 2 different prompts leaves "
            "3 to train on and 0 to validate on: change the share or add records",
        ),
        (
            asked("a", "b"),
            0.9,
            "m.jsonl: a validation share of 0.9 of 2 records with 2 different prompts leaves "
            "0 to train on and 2 to validate on: change the share or add records",
        ),
        ([], 0.5, "a validation share of 0.5 of 0 records with 0 different prompts leaves 0"),
    ],
)
def test_a_side_without_records_is_an_error_with_the_numbers(records, share, message):
    with pytest.raises(DataError) as caught:
        split_records(records, share, seed=0)
    assert str(caught.value).startswith(message)


def whole(text):
    return [Record("m.txt", 1, text=text, whole_file=True)]


@pytest.mark.parametrize(
    "text, share, parts",
    [
        ("one\ntwo\nsix\nten\n", 0.3, ("one\ntwo\n", "six\nten\n")),
        ("one two six ten", 0.5, ("one two ", "six ten")),
        ("abcdefghij", 0.2, ("abcdefgh", "ij")),
    ],
)
def test_a_plain_text_is_cut_by_position(text, share, parts):
    train, validation, duplicates = split_records(whole(text), share, seed=0)
    assert (train[0].text, validation[0].text, duplicates) == (*parts, 0)
    assert validation[0].line == 1 + parts[0].count("\n")
    assert train[0].whole_file and validation[0].whole_file


def test_a_plain_text_too_short_to_cut_is_an_error():
    with pytest.raises(DataError, match="leaves 1 to train on and 0 to validate on"):
        split_records(whole("ab"), 0.2, seed=0)
    with pytest.raises(DataError, match="2 plain texts: split one at a time"):
        split_records(whole("ab") * 2, 0.5, seed=0)
