"""lora_np.chat.conversation: turns, streaming, a full context, an answer that is broken off."""

import re

import numpy as np
import pytest

from lora_np.chat import Drawing
from tests.chat.tiny import CONTEXT, END, SYSTEM, Scripted, V, conversation, llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
HI = TOKENIZER.encode("the shops")
E_ACUTE, DAY = TOKENIZER.encode("é"), TOKENIZER.encode("日")  # 2 and 3 tokens of one byte each


def said(talk, text):
    return "".join(talk.ask(text))


def roles(talk):
    return [message["role"][0] for message in talk.messages]


# --- turns ---------------------------------------------------------------------------------------


def test_every_turn_is_answered_as_by_a_fresh_conversation_over_the_same_messages():
    model, drawing = llama(), Drawing(temperature=1.0, tokens=8)
    talk, _ = conversation(model, drawing=drawing)
    answers = set()
    for text in ("which city?", "how many orders", "and in 2024?"):
        fresh, _ = conversation(model, drawing=drawing, seed=len(answers))
        fresh.messages, talk.rng = [*talk.messages], np.random.default_rng(len(answers))
        answers.add(expected := said(fresh, text))
        assert said(talk, text) == expected and talk.messages == fresh.messages
    assert len(answers) == 3 and roles(talk) == [*"suauaua"]


def test_the_model_reads_what_the_template_writes_and_each_token_once():
    model = Scripted(HI, HI)
    talk, _ = conversation(model)
    said(talk, "which city?")
    said(talk, "and then?")
    expected = TOKENIZER.chat(talk.messages[:-1], answer_follows=True)
    assert [t for new in model.read for t in new] == expected + HI
    assert len(model.read[0]) > 10 and {len(new) for new in model.read[1 : len(HI) + 1]} == {1}


def test_another_model_goes_on_with_the_conversation():
    first, second = llama(0), llama(1)
    talk, _ = conversation(first)
    said(talk, "which city?")
    talk.use(second)
    fresh, _ = conversation(second)
    fresh.messages = [*talk.messages]
    expected = said(fresh, "and then?")
    assert said(talk, "and then?") == expected
    talk.use(first)
    other, _ = conversation(first)
    other.messages = talk.messages[:3]
    assert said(other, "and then?") != expected


def test_clear_leaves_the_system_message():
    talk, _ = conversation(Scripted(HI))
    said(talk, "which city?")
    talk.clear()
    assert talk.messages == [{"role": "system", "content": SYSTEM}]


def test_the_seed_decides_what_is_drawn():
    drawing = Drawing(temperature=1.0, tokens=12)
    answers = [
        said(conversation(llama(), drawing=drawing, seed=seed)[0], "which?") for seed in (0, 0, 1)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_plain_text_is_continued_and_forgotten():
    model = Scripted(HI, HI)
    talk, _ = conversation(model, system=None, plain=True)
    assert said(talk, "one two") == said(talk, "three") == "the shops"
    first, second = TOKENIZER.encode("one two"), TOKENIZER.encode("three")
    assert model.read[0] == first and talk.messages == []
    read = [t for new in model.read for t in new]
    assert read == [*first, *HI, *second, *HI]
    with_bos = tiny_tokenizer(add_bos_token=True)
    talk, _ = conversation(model := Scripted(HI), system=None, plain=True, tokenizer=with_bos)
    said(talk, "one two")
    assert model.read[0] == [with_bos.bos, *first]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"plain": True}, "a plain text has no system message"),
        ({"tokenizer": tiny_tokenizer(chat_template=None)}, "no chat template.*--template chatml"),
        ({"system": "shop " * 200}, r"takes \d+ tokens .* the context has only 160"),
    ],
)
def test_a_conversation_that_cannot_begin_is_an_error_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        conversation(llama(), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"tokens": 0}, "tokens = 0"),
    ],
)
def test_a_drawing_names_what_is_out_of_bounds(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Drawing(**options)


def test_an_empty_message_is_refused_and_changes_nothing():
    talk, _ = conversation(Scripted(HI))
    with pytest.raises(ValueError, match="the message is empty"):
        said(talk, "")
    assert roles(talk) == ["s"]


# --- streaming -----------------------------------------------------------------------------------


def test_a_character_is_given_when_its_bytes_are_whole():
    talk, _ = conversation(Scripted([*E_ACUTE, *DAY, *HI[:1]]))
    pieces = [*talk.ask("which?")]
    assert pieces[:2] == ["é", "日"] and "".join(pieces) == talk.messages[-1]["content"]


def test_a_character_that_is_never_whole_is_replaced_at_the_end():
    talk, _ = conversation(Scripted([*HI, DAY[0], DAY[1]]))
    assert said(talk, "which?") == "the shops\ufffd"


def test_a_piece_is_given_before_the_next_token_is_computed():
    model = Scripted(HI)
    talk, _ = conversation(model)
    pieces = talk.ask("which?")
    assert next(pieces) and len(model.read) == 1


def test_an_answer_ends_at_its_limit():
    talk, _ = conversation(Scripted([*DAY * 9]), drawing=Drawing(temperature=0, tokens=6))
    assert said(talk, "which?") == "日日"


# --- broken off ----------------------------------------------------------------------------------


def test_what_was_said_before_an_interrupt_is_the_assistants_turn():
    model = Scripted([*HI, KeyboardInterrupt()], HI)
    talk, _ = conversation(model)
    with pytest.raises(KeyboardInterrupt):
        said(talk, "which?")
    assert roles(talk) == [*"sua"] and talk.messages[-1]["content"] == "the shops"
    model.script.pop(0)  # the END of the answer that never came
    assert said(talk, "and then?") == "the shops" and roles(talk) == [*"suaua"]


def test_an_answer_that_nobody_reads_to_its_end_is_kept_so_far():
    talk, _ = conversation(Scripted(HI))
    pieces = talk.ask("which?")
    first = next(pieces)
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": first}


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_message_without_an_answer_is_forgotten(problem):
    model = Scripted([problem], HI)
    talk, _ = conversation(model)
    with pytest.raises(type(problem)):
        said(talk, "which?")
    assert roles(talk) == ["s"]
    model.script.pop(0)
    assert said(talk, "which?") == "the shops"


# --- a full context ------------------------------------------------------------------------------


def test_the_oldest_turns_make_way_and_the_system_message_stays():
    model = llama(context=100)
    talk, heard = conversation(model)
    for i in range(6):
        before = [*talk.messages]
        answer = said(talk, f"which shop has order {i} in the city?")
        if heard:
            break
    else:
        pytest.fail("the context was never full")
    assert len(heard) == 1
    line = r"the context of 100 tokens is full: dropped the oldest (\d+) turns?"
    dropped = int(re.fullmatch(line, heard[0])[1])
    assert dropped >= 1 and talk.messages[0] == {"role": "system", "content": SYSTEM}
    assert talk.messages[1:-2] == before[1 + 2 * dropped :]
    fresh, _ = conversation(model)
    fresh.messages = talk.messages[:-2]
    assert said(fresh, f"which shop has order {i} in the city?") == answer


def test_turns_are_dropped_in_the_middle_of_an_answer_which_goes_on():
    first = TOKENIZER.encode("orders " * 4)
    long = (HI * 100)[:60]
    model = Scripted(first, long, context=100)
    talk, heard = conversation(model, drawing=Drawing(temperature=0, tokens=80))
    said(talk, "which?")
    answer = said(talk, "and then?")
    assert answer == TOKENIZER.decode(long) and len(heard) == 1 and "dropped" in heard[0]
    assert [m["content"] for m in talk.messages] == [SYSTEM, "and then?", answer]
    assert max(map(len, model.read)) <= 100
    assert model.read[-1] == long[-1:]


def test_an_answer_ends_where_the_context_does():
    talk, heard = conversation(Scripted(HI * 100), drawing=Drawing(temperature=0, tokens=1000))
    answer = said(talk, "which?")
    asked = len(TOKENIZER.chat(talk.messages[:2], answer_follows=True))
    assert answer == TOKENIZER.decode((HI * 100)[: CONTEXT - asked + 1])
    assert heard == [f"the context of {CONTEXT} tokens is full: the answer ends here"]


def test_a_message_longer_than_the_context_is_refused_with_both_lengths():
    talk, heard = conversation(Scripted(HI))
    said(talk, "which?")
    before, text = [*talk.messages], "shop " * 200
    n = len(TOKENIZER.chat([talk.messages[0], {"role": "user", "content": text}], True))
    with pytest.raises(ValueError, match=rf"takes {n} tokens .* context has only {CONTEXT}"):
        said(talk, text)
    assert talk.messages == before and heard == []


def test_a_message_that_just_fits_has_an_answer_of_one_token():
    model = llama()
    system = {"role": "system", "content": SYSTEM}
    for n in range(1, CONTEXT):
        text = "1" * n  # a digit is a token
        tokens = TOKENIZER.chat([system, {"role": "user", "content": text}], True)
        if len(tokens) == CONTEXT:
            break
    talk, heard = conversation(model)
    logits = model.forward(np.array([tokens]))[0]
    assert said(talk, text) == TOKENIZER.decode([int(logits[0, -1].argmax())]) and len(heard) == 1
    with pytest.raises(ValueError, match=f"takes {CONTEXT + 1} tokens"):
        said(talk, text + "1")


def test_the_tiny_model_and_its_tokenizer_fit():
    assert TOKENIZER.vocab_size == V and TOKENIZER.ends == (END,)
