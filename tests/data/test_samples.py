"""lora_np.data.samples: answers and their end markers are labelled, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.data import DataError, Record, Sample, histogram, packed, sample_text, samples_of
from lora_np.ops.loss import IGNORE_INDEX
from tests.data.byte_chat import BOS, END, START, ByteChat

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


def talk(line, *contents, labelled=None, system=None):
    """A record of turns of the user and the assistant, in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Record("mine.jsonl", line, tuple(messages), labelled or (True,) * (len(contents) // 2))


def text_of(line, text):
    return Record("mine.jsonl", line, text=text)


def learned(sample):
    """The tokens that are a target."""
    targets = sample.targets
    return targets[targets != IGNORE_INDEX].tolist()


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), st.booleans(), TEXTS)
def test_the_targets_are_the_answers_with_their_ends(turns, last_only, system):
    flat = [text for turn in turns for text in turn]
    flags = [not last_only or i == len(turns) - 1 for i in range(len(turns))]
    record = talk(1, *flat, labelled=tuple(flags), system=system)
    (sample,), report = samples_of([record], ByteChat(), longest=10_000)
    expected = [
        token
        for (_, answer), flag in zip(turns, flags, strict=True)
        if flag
        for token in [*answer.encode(), END]
    ]
    assert learned(sample) == expected and report.labelled == len(expected)
    ids, _ = ByteChat().spans(record.messages)
    assert sample.tokens.tolist() == ids[:-1]  # without the line end after the last answer
    assert report.lengths.tolist() == [len(sample)] and report.tokens == len(sample)
    assert report.labelled_share == len(expected) / len(sample)


def test_a_last_turn_of_the_user_and_answers_not_asked_for_are_cut_off():
    (sample,), _ = samples_of([talk(1, "a", "b", "c")], ByteChat(), longest=99)
    assert learned(sample) == [ord("b"), END] and sample.tokens[-1] == END
    record = talk(1, "a", "b", "c", "d", labelled=(True, False))
    (same,), _ = samples_of([record], ByteChat(), longest=99)
    assert same.tokens.tolist() == sample.tokens.tolist()


@pytest.mark.parametrize("bos", [None, BOS])
def test_a_text_is_learned_with_its_end(bos):
    (sample,), report = samples_of([text_of(1, "abc")], ByteChat(bos), longest=9)
    start = [] if bos is None else [bos]
    assert sample.tokens.tolist() == [*start, 97, 98, 99, END]
    assert learned(sample) == sample.tokens[1:].tolist()
    assert report.labelled == len(sample) - 1


@pytest.mark.parametrize("bos", [None, BOS])
@given(text=TEXTS, longest=st.integers(2, 9))
def test_a_plain_text_is_cut_so_that_every_token_is_a_target_once(bos, text, longest):
    record = Record("mine.txt", 1, text=text, whole_file=True)
    samples, report = samples_of([record], ByteChat(bos), longest=longest)
    tokens = [*([] if bos is None else [bos]), *text.encode(), END]
    assert max(map(len, samples)) <= longest and min(map(len, samples)) >= 2
    assert [token for sample in samples for token in learned(sample)] == tokens[1:]
    assert samples[0].tokens[0] == tokens[0]
    assert all(b.tokens[0] == a.tokens[-1] for a, b in zip(samples, samples[1:]))  # noqa: RUF007
    assert report.labelled == len(tokens) - 1 and report.dropped == report.truncated == 0


class OnlyLast(ByteChat):
    """A template that writes earlier answers otherwise once more turns follow."""

    def spans(self, messages, last=False):
        assert last, "the earlier answers have no span"
        return super().spans(messages, last)


def test_only_the_last_answer_is_asked_for_where_only_it_is_learned():
    record = talk(1, "a", "b", "c", "d", labelled=(False, True))
    (sample,), _ = samples_of([record], OnlyLast(), longest=99)
    assert learned(sample) == [ord("d"), END]
    with pytest.raises(AssertionError, match="no span"):
        samples_of([talk(1, "a", "b", "c", "d")], OnlyLast(), longest=99)


def test_packed_conversations_have_each_end_as_a_target():
    records = [talk(i, "q" * i, "a" * (9 - i)) for i in range(1, 7)]
    samples, _ = samples_of(records, ByteChat(), longest=99)
    tokens, targets, _ = packed(samples, 2)
    assert int((targets == END).sum()) == 6  # of the 12 ends, those of the answers
    assert int((tokens == END).sum()) == 12 and START not in targets


# --- long samples --------------------------------------------------------------------------------

QUESTION = len("<user\n") + len("<assistant\n") + len(">\n")  # tokens around "a"
LONG = [talk(3, "a", "b"), talk(5, "a", "bcdefg"), talk(8, "a" * 30, "b")]


def test_long_samples_are_refused_with_the_line_and_both_lengths():
    with pytest.raises(DataError) as caught:
        samples_of(LONG, ByteChat(), longest=24)
    assert str(caught.value) == (
        f"mine.jsonl, line 5 has {QUESTION + 1 + 7} tokens, more than 24 (1 more sample too): "
        "raise the limit, or drop or truncate long samples"
    )
    with pytest.raises(DataError, match=r"line 8 has 51 tokens, more than 27: raise"):
        samples_of(LONG, ByteChat(), longest=27)


def test_long_samples_are_dropped_and_counted():
    samples, report = samples_of(LONG, ByteChat(), longest=24, long="drop")
    assert [learned(sample) for sample in samples] == [[ord("b"), END]]
    assert (report.dropped, report.truncated) == (2, 0)
    assert report.lengths.tolist() == [22, 27, 51] and report.tokens == 22


def test_long_samples_are_truncated_and_those_without_labels_dropped():
    samples, report = samples_of(LONG, ByteChat(), longest=24, long="truncate")
    assert [learned(sample) for sample in samples] == [[98, END], [98, 99, 100, 101]]
    assert (report.dropped, report.truncated) == (1, 1)
    assert max(map(len, samples)) == 24


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), st.integers(2, 60))
def test_a_truncated_sample_has_a_target(turns, longest):
    records = [talk(i, *turn) for i, turn in enumerate(turns)]
    try:
        samples, report = samples_of(records, ByteChat(), longest=longest, long="truncate")
    except DataError as error:
        assert "no sample is left" in str(error)
        return
    assert all(learned(sample) and len(sample) <= longest for sample in samples)
    assert len(samples) + report.dropped == len(records)


@pytest.mark.parametrize(
    "longest, long, message",
    [
        (5, "drop", "no sample is left: 3 samples of more than 5 tokens, and none truncated that"),
        (20, "truncate", "no sample is left: 3 samples of more than 20 tokens, and none truncated"),
        (1, "drop", "longest=1, long='drop': expected at least 2 tokens, and 'refuse', 'drop' or"),
        (9, "cut", "longest=9, long='cut': expected at least 2 tokens, and 'refuse', 'drop' or"),
    ],
)
def test_nothing_left_and_bad_options_are_errors(longest, long, message):
    with pytest.raises(DataError) as caught:
        samples_of(LONG, ByteChat(), longest=longest, long=long)
    assert str(caught.value).startswith(message)


class Silent(ByteChat):
    """A tokenizer that has no token for anything."""

    def encode(self, text):
        return []

    def spans(self, messages, last=False):
        return [START, 10], [(2, 2)]


@pytest.mark.parametrize(
    "record, message",
    [
        (talk(7, "a", "b"), "mine.jsonl, line 7 has an answer of no tokens"),
        (text_of(7, "a"), "mine.jsonl, line 7 is a text of no tokens"),
    ],
)
def test_what_a_tokenizer_turns_into_nothing_is_an_error(record, message):
    with pytest.raises(DataError) as caught:
        samples_of([record], Silent(), longest=99)
    assert str(caught.value) == message


# --- what is shown -------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=50))
def test_a_histogram_counts_every_length_in_its_row(lengths):
    heading, *lines = str(histogram(lengths)).splitlines()
    assert heading.split() == ["tokens", "samples"] and 1 <= len(lines) <= 8
    for line in lines:
        (low, high), count = map(int, line.split()[0].split("-")), int(line.split()[1])
        assert count == sum(low <= length <= high for length in lengths)
        assert line.count("#") <= 30 and (count > 0) == ("#" in line)
    assert sum(int(line.split()[1]) for line in lines) == len(lengths)
    assert len({line.index("#") for line in lines if "#" in line}) == 1  # bars start together


def test_a_sample_is_shown_with_what_is_learned_marked():
    (sample,), _ = samples_of([talk(1, "a\x1b?", "b\nc", "d", "e")], ByteChat(), longest=99)
    assert sample_text(sample, ByteChat()).split("\n") == [
        f"{len(sample)} tokens, 6 labelled (>)",
        "  <256>user",
        r"  a\x1b?<257>",
        "  <256>assistant",
        "> b",
        "> c<257>",
        "",
        "  <256>user",
        "  d<257>",
        "  <256>assistant",
        "> e<257>",
    ]


def test_a_character_of_many_tokens_is_shown_whole():
    (sample,), _ = samples_of([talk(1, "a", "秩")], ByteChat(), longest=99)
    assert sample_text(sample, ByteChat()).endswith("> 秩<257>")


def test_a_sample_of_one_mask_is_one_stretch():
    sample = Sample(np.array([97, 98]), np.array([True, True]))
    assert sample_text(sample, ByteChat()) == "2 tokens, 2 labelled (>)\n> ab"
