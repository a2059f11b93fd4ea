"""The JSON of a request: what is understood, and what is refused by which name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.serve.api import UNSUPPORTED, chat_of, completion_of, object_of, words_of
from lora_np.serve.errors import Refusal

HELLO = [{"role": "user", "content": "hi"}]


def body(**fields):
    return json.dumps(fields).encode()


def chat(**fields):
    return chat_of(body(**{"model": "sql", "messages": HELLO} | fields))


def completion(**fields):
    return completion_of(body(**{"model": "sql", "prompt": "hi"} | fields))


def refused(call, **fields):
    with pytest.raises(Refusal) as problem:
        call(**fields)
    assert "\n" not in problem.value.message and problem.value.status == 400
    return problem.value


def test_every_field_of_a_call_is_understood():
    call = chat(
        max_completion_tokens=9, temperature=0, top_p=0.5, seed=-1, stop=["a", "b"], stream=True,
        stream_options={"include_usage": True}, user="anna",
    )  # fmt: skip
    assert (call.model, call.messages, call.prompt) == ("sql", tuple(HELLO), None)
    assert (call.max_tokens, call.temperature, call.top_p) == (9, 0.0, 0.5)
    assert (call.seed, call.stop, call.user) == (2**64 - 1, ("a", "b"), "anna")
    assert call.stream and call.include_usage


def test_without_fields_the_defaults_are_those_of_the_api():
    call = chat()
    assert (call.max_tokens, call.temperature, call.top_p, call.seed) == (None, 1.0, 1.0, None)
    assert (call.stop, call.stream, call.include_usage, call.user) == ((), False, False, None)
    assert completion().max_tokens == 16
    assert chat(max_tokens=None, stop=None, stream=None, seed=None, user=None) == call


@pytest.mark.parametrize(
    "prompt, found",
    [("hi", "hi"), (["hi"], "hi"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ([7], (7,)), ("", "")],
)
def test_a_prompt_is_one_text_or_its_tokens(prompt, found):
    assert completion(prompt=prompt).prompt == found


@pytest.mark.parametrize("prompt", [3, {}, [], [[]], ["a", 1], [1.5], [True], [None], [[["a"]]]])
def test_other_prompts_are_refused(prompt):
    assert refused(completion, prompt=prompt).param == "prompt"


def test_several_prompts_are_refused_with_the_way_out():
    assert "2 prompts: send one" in refused(completion, prompt=["a", "b"]).message


def test_the_parts_of_a_message_are_joined_and_a_developer_is_the_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]
    assert chat(messages=messages).messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "ab"},
    )
    answered = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None}
    assert chat(messages=[answered]).messages == ({"role": "assistant", "content": "x"},)


@pytest.mark.parametrize(
    "message, param",
    [
        ("hi", "messages[1]"),
        ({"role": "tool", "content": "x"}, "messages[1].role"),
        ({"role": ["user"], "content": "x"}, "messages[1].role"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "user", "content": ["x"]}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content"),
        ({"role": "user", "content": "x", "name": "n"}, "messages[1].name"),
    ],
)
def test_a_message_that_is_not_understood_is_named(message, param):
    assert refused(chat, messages=[*HELLO, message]).param == param


@pytest.mark.parametrize(
    "field, value",
    [
        ("model", 3), ("messages", []), ("messages", {}), ("max_tokens", 0), ("max_tokens", 1.0),
        ("max_tokens", True), ("max_completion_tokens", -1), ("temperature", 2.1),
        ("temperature", "1"), ("temperature", True), ("temperature", -0.1), ("top_p", 0),
        ("top_p", 1.5), ("seed", 1.5), ("seed", 2**63), ("max_tokens", 10**400),
        ("temperature", 10**400), ("top_p", 10**400), ("stop", 3), ("stop", [""]), ("stop", ""),
        ("stop", ["a"] * 5), ("stop", ["a", 1]), ("stream", 1), ("stream", "true"), ("user", 3),
        ("stream_options", {"include_usage": True}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_a_refusal_that_names_its_field(field, value):
    problem = refused(chat, **{field: value})
    assert problem.param == field and field in problem.message


@pytest.mark.parametrize("options", [3, {"more": True}, {"include_usage": 1}])
def test_wrong_options_of_a_stream_are_refused(options):
    assert refused(chat, stream=True, stream_options=options).param == "stream_options"


def test_options_of_a_stream_may_be_empty():
    assert not chat(stream=True, stream_options={}).include_usage


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_supported_passes_only_if_it_asks_for_nothing(field):
    for idle in (None, *UNSUPPORTED[field]):
        assert chat(**{field: idle}) == chat()
    problem = refused(chat, **{field: 2})
    assert (problem.param, problem.code) == (field, "unsupported_parameter")
    assert f"{field} = 2 is not supported: leave the field out" in problem.message


def test_a_refusal_shows_the_value_as_json():
    assert "echo = true is not" in refused(completion, echo=True).message
    assert refused(chat, stop=["a", 1]).message.startswith('stop = ["a", 1]: expected')


@pytest.mark.parametrize("field, value", [("n", True), ("echo", 0), ("logprobs", 0), ("n", 2)])
def test_true_is_not_one_and_false_is_not_zero(field, value):
    assert refused(chat, **{field: value}).param == field


def test_unknown_fields_are_refused_with_the_nearest_names():
    problem = refused(chat, temprature=1)
    assert problem.code == "unknown_parameter" and "did you mean temperature" in problem.message
    assert refused(completion, messages=HELLO).param == "messages"
    assert refused(chat, prompt="hi").param == "prompt"
    assert "response_format" not in refused(chat, reasoning_effort="low").message
    assert len(refused(chat, **{"x" * 10_000 + "\x1b": 1}).message) < 700


def test_missing_fields_are_named():
    for call, field in [(chat, "model"), (chat, "messages"), (completion, "prompt")]:
        problem = refused(call, **{field: None})
        assert (problem.param, problem.code) == (field, "missing_required_parameter")


def test_two_limits_must_agree():
    assert chat(max_tokens=3, max_completion_tokens=3).max_tokens == 3
    assert "differ" in refused(chat, max_tokens=3, max_completion_tokens=4).message


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[1]", b"3", b"null", b"\xff", b'{"a": NaN}', b'{"a": Infinity}',
        b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b'{"a": 1} x',
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_not_an_object_of_json_is_refused_in_one_short_line(data):
    with pytest.raises(Refusal, match="JSON") as problem:
        object_of(data)
    assert len(problem.value.message) < 500 and "\n" not in problem.value.message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = ["messages", "prompt", "stop", "seed", "stream_options", "temperature", "max_tokens", "n"]


@given(st.sampled_from(FIELDS), JSON)
def test_no_value_is_more_than_a_refusal(field, value):
    for call in (chat, completion):
        try:
            call(**{field: value})
        except Refusal as problem:
            assert problem.body()["error"]["message"]


def test_words_are_strings_of_known_names():
    assert words_of(body(a="x", b=None), ["a"], ["b"]) == {"a": "x"}
    for fields, param in [({}, "a"), ({"a": 3}, "a"), ({"a": "x", "c": "y"}, "c")]:
        with pytest.raises(Refusal) as problem:
            words_of(body(**fields), ["a"], ["b"])
        assert problem.value.param == param
