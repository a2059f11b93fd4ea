"""A file of requests: checked before anything is answered, and each line answered as alone."""

import json

import numpy as np
import pytest

from lora_np import load_adapter
from lora_np.data import DataError
from lora_np.serve import Engine
from lora_np.serve.alias import alias_of
from lora_np.serve.engine import LOOKED_AT
from lora_np.serve.lines import answers_to, read_requests
from lora_np.serve.names import Names
from tests.chat.tiny import CONTEXT, llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer
from tests.serve.tiny import adapter, greedy

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
def served(tmp_path, rng):
    base, tokenizer = llama(), tiny_tokenizer()
    for name, r in (("sql", 2), ("shops", 4)):
        adapter(base, tmp_path / name, rng, r=r, target_modules=["q_proj", "v_proj"])
    engine = Engine(base, [tmp_path / "sql", tmp_path / "shops"], pages=2000, batch=4)
    names = Names("tiny", engine.names, [alias_of("ab=sql:1,shops:1")], np.random.default_rng(0))
    return base, tokenizer, engine, names


def file_of(folder, *lines):
    path = folder / "r.jsonl"
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return path


def answered(served, path):
    _, tokenizer, engine, names = served
    found = list(answers_to(read_requests(path, names), engine, tokenizer, names))
    return {answer["line"]: answer for answer in found}


def test_each_line_gets_the_text_of_its_adapter_alone(served, tmp_path):
    base, tokenizer, engine, _ = served
    how = {"max_tokens": 6, "temperature": 0}
    path = file_of(
        tmp_path,
        {"model": "sql", "messages": HELLO, **how},
        {"model": "tiny", "prompt": "hi there", "custom_id": "mine", **how},
        {"model": "shops", "prompt": [60, 61, 62], **how},
    )
    found = answered(served, path)
    chat = tokenizer.chat(HELLO, answer_follows=True)
    texts = [
        (load_adapter(base, tmp_path / "sql"), chat),
        (base, tokenizer.encode("hi there")),
        (load_adapter(base, tmp_path / "shops"), [60, 61, 62]),
    ]
    for number, (model, prompt) in enumerate(texts, 1):
        tokens = greedy(model, prompt, 6)
        ended = next((i for i, t in enumerate(tokens) if t in tokenizer.ends), None)
        expected = tokenizer.decode(tokens[:ended])
        answer = found[number]
        assert answer["text"] == expected
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert answer["finish_reason"] == ("length" if ended is None else "stop")
    assert [found[i]["model"] for i in (1, 2, 3)] == ["sql", "tiny", "shops"]
    assert found[2]["custom_id"] == "mine" and "custom_id" not in found[1]
    assert engine.counts().running == 0


def test_the_engine_holds_a_few_lines_of_a_long_file(served, tmp_path):
    _, tokenizer, engine, names = served
    n = 3 * (LOOKED_AT + engine.batch)
    lines = [{"model": "tiny", "prompt": [60 + i % 9], "max_tokens": 1} for i in range(n)]
    answers = answers_to(read_requests(file_of(tmp_path, *lines), names), engine, tokenizer, names)
    found = []
    for answer in answers:
        found.append(answer["line"])
        counts = engine.counts()
        assert counts.waiting + counts.running <= LOOKED_AT + engine.batch
    assert sorted(found) == list(range(1, n + 1))


def test_a_stop_string_ends_an_answer_before_it(served, tmp_path):
    how = {"model": "tiny", "prompt": [60, 61], "temperature": 0, "max_tokens": 12}
    whole = answered(served, file_of(tmp_path, how))[1]["text"]
    stop = whole[3:5]
    cut = answered(served, file_of(tmp_path, how | {"stop": stop}))[1]
    assert cut["text"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < 12
    assert served[2].counts().running == 0


def test_what_can_never_run_and_what_breaks_fail_alone(served, tmp_path):
    (tmp_path / "sql" / "adapter_model.safetensors").write_bytes(b"broken")
    path = file_of(
        tmp_path,
        {"model": "tiny", "prompt": [60] * (CONTEXT - 3), "max_tokens": 4},
        {"model": "sql", "prompt": [60], "max_tokens": 3},
        {"model": "shops", "prompt": [60], "max_tokens": 3, "temperature": 0},
        {"model": "tiny", "prompt": [10**6], "max_tokens": 3},
    )
    found = answered(served, path)
    assert f"there is room for {CONTEXT}" in found[1]["error"]["message"]
    assert found[1]["error"]["code"] == "context_length_exceeded"
    assert found[2]["error"]["message"].startswith("'sql' cannot answer: ")
    assert "not a readable" in found[2]["error"]["message"]
    assert found[2]["error"]["code"] == "model_failed"
    assert found[3]["usage"]["completion_tokens"] == 3
    assert "there is no token" in found[4]["error"]["message"]


def test_an_answer_without_a_limit_is_no_longer_than_the_pool(served, tmp_path):
    base, tokenizer, _, names = served
    chat = len(tokenizer.chat(HELLO, answer_follows=True))
    engine = Engine(base, [], pages=chat + 3, batch=4)
    path = file_of(tmp_path, {"model": "tiny", "messages": HELLO, "temperature": 0})
    (answer,) = answers_to(read_requests(path, names), engine, tokenizer, names)
    assert engine.longest == chat + 3 < CONTEXT
    assert answer["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 3


def test_more_lines_than_the_engine_looks_at_are_submitted_as_places_come_free(served, tmp_path):
    _, tokenizer, engine, names = served
    lines = [{"model": "tiny", "prompt": [60], "max_tokens": 1 + i % 3} for i in range(200)]
    waiting, found = [], []
    path = file_of(tmp_path, *lines)
    for answer in answers_to(
        read_requests(path, names),
        engine,
        tokenizer,
        names,
        lambda new: waiting.append(engine.counts().waiting),
    ):
        found.append(answer["line"])
    assert sorted(found) == list(range(1, 201)) and max(waiting) < 100


def test_an_alias_answers_by_one_of_its_adapters(served, tmp_path):
    lines = [{"model": "ab", "prompt": [60], "max_tokens": 1, "user": str(i)} for i in range(12)]
    found = answered(served, file_of(tmp_path, *lines, *lines))
    models = [found[i]["model"] for i in range(1, 25)]
    assert set(models) == {"sql", "shops"} and models[:12] == models[12:]


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is a list"),
        ({"model": "slq", "prompt": "x"}, "line 2: there is no model 'slq': did you mean sql"),
        ({"prompt": "x"}, "line 2: the field model is missing"),
        ({"model": "sql"}, "line 2: the field prompt is missing"),
        ({"model": "sql", "prompt": "x", "n": 2}, "line 2: n = 2 is not supported"),
        ({"model": "sql", "prompt": "x", "stream": True}, "line 2: stream"),
        ({"model": "sql", "prompt": "x", "custom_id": 3}, "line 2: custom_id"),
        ({"model": "sql", "prompt": "x", "max_tokens": 0}, "line 2: max_tokens = 0"),
    ],
)
def test_a_line_that_is_no_request_is_named_before_any_is_answered(served, tmp_path, line, said):
    path = file_of(tmp_path, {"model": "sql", "prompt": "x"}, line)
    with pytest.raises(DataError, match=said):
        read_requests(path, served[3])
    assert served[2].counts().waiting == 0


def test_an_empty_file_is_an_error(served, tmp_path):
    with pytest.raises(DataError, match="is empty"):
        read_requests(file_of(tmp_path), served[3])
