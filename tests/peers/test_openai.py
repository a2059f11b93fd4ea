"""The real client of OpenAI's API, on a tiny Llama and its adapters."""

import importlib

import numpy as np
import pytest

from lora_np.serve import Engine
from lora_np.serve.alias import alias_of
from tests.chat.test_shelf import write_adapter
from tests.chat.tiny import CONTEXT, llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer
from tests.serve.fake import Server

pytestmark = pytest.mark.peers
HELLO = [{"role": "system", "content": "s"}, {"role": "user", "content": "how many shops?"}]
USAGE = {"include_usage": True}


@pytest.fixture(scope="module")
def openai():
    """Without the package this is an error, not a skip."""
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def models(root):
    """Return the base and the adapted models by their names, and write the adapters."""
    names = ("shops", "sql", "later")
    adapted = {name: write_adapter(root / name, llama(), i) for i, name in enumerate(names)}
    return {"tiny": llama(), **adapted}


@pytest.fixture(scope="module")
def client(openai, root, models):
    engine = Engine(llama(), [root / "shops", root / "sql"], pages=2000, batch=4)
    engine.context = CONTEXT
    aliases = [alias_of("ab=shops:1,sql:1")]
    server = Server(engine, tiny_tokenizer(), root, aliases=aliases)
    base = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=20) as client:
        yield client
    server.stop()


def greedy(model):
    """Return the model's own answer, without a server."""
    tokenizer = tiny_tokenizer()
    prompt = np.array(tokenizer.chat(HELLO, answer_follows=True))
    text = model.generate(prompt, 12, temperature=0, stop=tokenizer.ends)
    return tokenizer.decode(text[len(prompt) :])


def ask(client, **fields):
    fixed = {"model": "sql", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    return client.chat.completions.create(**fixed | fields)


def test_models_are_listed_and_found(client):
    names = [model.id for model in client.models.list()]
    assert names[:3] == ["tiny", "shops", "sql"] and "ab" in names
    assert client.models.retrieve("sql").owned_by == "lora_np"


@pytest.mark.parametrize("name", ["tiny", "shops", "sql"])
def test_a_chat_is_what_the_model_alone_writes(client, models, name):
    answer = ask(client, model=name)
    assert answer.model == name and answer.choices[0].message.content == greedy(models[name])
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_same_text(client):
    *pieces, last = ask(client, stream=True, stream_options=USAGE)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    whole = ask(client)
    assert text == whole.choices[0].message.content and last.usage == whole.usage
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_continue_a_text_and_stop_before_a_string(client):
    fixed = {"model": "shops", "prompt": "the shops", "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**fixed).choices[0].text
    stop = whole[3:5]
    cut = client.completions.create(**fixed, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (whole.partition(stop)[0], "stop")
    pieces = client.completions.create(**fixed, stop=[stop], stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == cut.text


def test_a_seed_draws_the_same_text_again(client):
    warm = {"temperature": 1.5, "top_p": 0.9, "n": 1, "user": "anna"}
    texts = [ask(client, seed=s, **warm).choices[0].message.content for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_alias_names_the_adapter_that_answered(client):
    found = {ask(client, model="ab", user=str(i)).model for i in range(12)}
    assert found == {"shops", "sql"} and ask(client, model="ab", user="1").model in found


def test_errors_are_those_of_the_client(client, openai):
    with pytest.raises(openai.NotFoundError, match="did you mean sql"):
        ask(client, model="sqll")
    with pytest.raises(openai.BadRequestError, match="n = 2 is not supported") as problem:
        ask(client, n=2)
    assert (problem.value.param, problem.value.code) == ("n", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="there is room for 160") as problem:
        ask(client, max_tokens=1000)
    assert problem.value.code == "context_length_exceeded"
    other = client.with_options(default_headers={"Host": "evil.example"})
    with pytest.raises(openai.PermissionDeniedError, match="is not this machine"):
        ask(other)


def test_an_adapter_is_loaded_by_its_name_and_a_stream_may_be_broken_off(client, models):
    client.post("/load_lora_adapter", body={"lora_name": "later"}, cast_to=str)
    assert ask(client, model="later").choices[0].message.content == greedy(models["later"])
    with ask(client, model="later", max_tokens=100, stream=True) as stream:
        next(iter(stream))
    client.post("/unload_lora_adapter", body={"lora_name": "later"}, cast_to=str)
    assert "later" not in [model.id for model in client.models.list()]
