"""Stop strings across pieces, and answers from tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.serve.text import AnswerText, StopStrings
from tests.pretrained.tiny_tokenizer import tiny_tokenizer


def cut(stops, pieces):
    text = StopStrings(stops)
    said = [text.push(piece) for piece in pieces]
    return said, text.flush(), text.found


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    st.lists(st.text("ab", max_size=3), max_size=8),
)
def test_the_text_ends_before_the_first_stop_string_to_end_however_it_is_cut(stops, pieces):
    whole = "".join(pieces)
    found = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    said, rest, stopped = cut(stops, pieces)
    assert stopped == bool(found)
    assert "".join(said) + rest == (whole[: min(found)[1]] if found else whole)


@given(st.text("ab", min_size=1, max_size=4), st.lists(st.text("ab", max_size=3), max_size=8))
def test_no_more_is_held_back_than_may_begin_the_stop_string(stop, pieces):
    text, pushed, said = StopStrings([stop]), "", ""
    for piece in pieces:
        pushed, said = pushed + piece, said + text.push(piece)
        if text.found:
            assert said == pushed[: pushed.index(stop)]
            return
        held = pushed[len(said) :]
        assert stop.startswith(held) and len(held) < len(stop)


def test_nothing_follows_a_stop_string():
    assert cut(["b"], ["ab", "cd", "e"]) == (["a", "", ""], "", True)
    assert cut([], ["a", "b"]) == (["a", "b"], "", False)
    assert cut(["abc"], ["xab"]) == (["x"], "ab", False)


def test_a_character_waits_for_its_bytes_and_an_end_has_no_text():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("Zoë 秩")
    text = AnswerText(tokenizer, [])
    pieces = [text.push(i) for i in [*ids, tokenizer.ends[0]]]
    assert "".join(pieces) == "Zoë 秩" and "" in pieces and not any("�" in p for p in pieces)
    assert (text.tokens, text.flush()) == (len(ids) + 1, "")


def test_bytes_that_never_become_a_character_are_replaced_at_the_end():
    tokenizer = tiny_tokenizer()
    text = AnswerText(tokenizer, ["�"])
    assert text.push(tokenizer.encode("秩")[0]) == "" and not text.stopped
    assert text.flush() == "" and text.stopped  # the replacement is text like any other


@pytest.mark.parametrize("stop", ["e 秩", "ë", "秩"])
def test_a_stop_string_of_several_tokens_is_found(stop):
    tokenizer = tiny_tokenizer()
    text = AnswerText(tokenizer, [stop])
    said = "".join(text.push(i) for i in tokenizer.encode("aë e 秩 b"))
    assert text.stopped and said == "aë e 秩 b".partition(stop)[0]
