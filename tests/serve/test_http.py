"""A real server: answers, streams, refusals, clients that vanish, and the end."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from lora_np.serve.alias import alias_of
from lora_np.serve.http.server import Limits
from tests.pretrained.tiny_tokenizer import tiny_tokenizer
from tests.serve.fake import CRASH, FakeEngine, Server

HELLO = [{"role": "user", "content": "hi"}]
JSON = {"Content-Type": "application/json"}


@contextmanager
def serving(folder, engine=None, **options):
    server = Server(engine or FakeEngine(), tiny_tokenizer(), folder, **options)
    try:
        assert get(server, "/health")[0] == 200
        yield server
    finally:
        if server.engine.steps is not None:
            server.engine.steps.release(1000)
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that all tests share which leave it as it was."""
    folder = tmp_path_factory.mktemp("adapters")
    aliases = [alias_of("ab=shops:1,sql:1")]
    with serving(folder, aliases=aliases, rng=np.random.default_rng(0)) as server:
        yield server


def connect(server):
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)


def send(server, method, path, data=None, headers=JSON):
    """Return the status, the headers and the body."""
    connection = connect(server)
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def get(server, path, **headers):
    status, _, data = send(server, "GET", path, headers=headers)
    return status, data.decode()


def post(server, path, **fields):
    status, _, data = send(server, "POST", path, json.dumps(fields).encode())
    return status, json.loads(data) if data.startswith(b"{") else data.decode()


def complete(server, **fields):
    return post(server, "/v1/completions", **{"model": "sql", "prompt": [60, 61]} | fields)


def chat(server, **fields):
    return post(server, "/v1/chat/completions", **{"model": "sql", "messages": HELLO} | fields)


def metric(server, name):
    line = next(x for x in get(server, "/metrics")[1].splitlines() if x.startswith(f"{name} "))
    return float(line.split()[-1])


def outcomes(server):
    names = ("stop", "length", "cancelled", "failed", "refused")
    return {o: int(metric(server, f'lora_np_requests_total{{outcome="{o}"}}')) for o in names}


def refused(answer, status, param=None):
    found, body = answer
    assert found == status and set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["param"] == param and "\n" not in body["error"]["message"]
    return body["error"]


def events(data):
    """Return the objects of a stream, which ends with [DONE]."""
    *lines, done, end = data.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def stream(server, path="/v1/completions", **fields):
    fields = {"model": "sql", "prompt": [60, 61], "stream": True} | fields
    status, headers, data = send(server, "POST", path, json.dumps(fields).encode())
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    return events(data)


# --- answers --------------------------------------------------------------------------------------


def test_a_completion_is_the_text_of_its_tokens(server):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("how many shops")
    status, body = complete(server, prompt="how many shops", max_tokens=2 * len(ids))
    choice = {"index": 0, "text": "how many shops" * 2, "logprobs": None, "finish_reason": "length"}
    assert (status, body["object"], body["model"]) == (200, "text_completion", "sql")
    assert body["choices"] == [choice] and body["id"].startswith("cmpl-")
    n = len(ids)
    usage = {"prompt_tokens": n, "completion_tokens": 2 * n, "total_tokens": 3 * n}
    assert body["usage"] == usage and type(body["created"]) is int
    assert complete(server, prompt=ids, max_tokens=n)[1]["choices"][0]["text"] == "how many shops"


def test_a_chat_is_written_by_the_template_and_ends_at_an_end(server):
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.chat(HELLO, answer_follows=True)
    status, body = chat(server)
    request = server.engine.submitted[-1]
    assert request.prompt == prompt and request.stop == tokenizer.ends
    spoken = prompt[: next(i for i, t in enumerate(prompt) if t in tokenizer.ends)]
    message = {"role": "assistant", "content": tokenizer.decode(spoken), "refusal": None}
    assert (status, body["object"]) == (200, "chat.completion")
    assert body["choices"][0]["message"] == message
    assert body["choices"][0]["finish_reason"] == "stop" and body["id"].startswith("chatcmpl-")
    assert body["usage"]["completion_tokens"] == len(spoken) + 1


def test_without_a_limit_a_chat_may_fill_the_context_and_a_prompt_begins_with_bos(tmp_path):
    tokenizer = tiny_tokenizer()
    with serving(tmp_path) as server:
        chat(server)
        room = 160 - len(tokenizer.chat(HELLO, answer_follows=True))
        assert server.engine.submitted[-1].n == room
        chat(server, max_tokens=3)
        assert server.engine.submitted[-1].n == 3
    with serving(tmp_path, limits=Limits(tokens=7)) as server:
        chat(server)
        assert server.engine.submitted[-1].n == 7


def test_how_tokens_are_drawn_reaches_the_engine(server):
    complete(server, temperature=0, top_p=0.5, seed=-1)
    drawing = {"temperature": 0.0, "top_p": 0.5, "seed": 2**64 - 1}
    assert server.engine.submitted[-1].drawing == drawing
    complete(server)
    drawing = {"temperature": 1.0, "top_p": None, "seed": None}
    assert server.engine.submitted[-1].drawing == drawing


def test_a_stop_string_ends_the_text_and_the_engines_request(server):
    before = outcomes(server)
    fields = {"prompt": "shops 12, ", "stop": ["zzz", "12"], "max_tokens": 60}
    _, body = complete(server, **fields)
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("shops ", "stop")
    assert body["usage"]["completion_tokens"] < 60
    pieces = stream(server, **fields)
    assert "".join(p["choices"][0]["text"] for p in pieces) == "shops "
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert complete(server)[0] == 200  # after it the engine has seen the cancels
    after = outcomes(server)
    assert after["stop"] == before["stop"] + 2 and after["cancelled"] == before["cancelled"]


def test_a_stop_string_cancels_the_engines_request(gated):
    with asking(gated, prompt="shops 12, ", stop=["12"], max_tokens=50_000):
        step_until(gated, lambda: gated.engine.submitted and gated.site.service.live == 0)
    (request,) = gated.engine.submitted
    assert request.state == "cancelled" and outcomes(gated)["stop"] == 1


def test_a_stream_is_the_whole_answer_in_pieces(server):
    pieces = stream(server, prompt="how many shops", max_tokens=9)
    whole = complete(server, prompt="how many shops", max_tokens=9)[1]
    assert len({p["id"] for p in pieces}) == 1
    assert "".join(p["choices"][0]["text"] for p in pieces) == whole["choices"][0]["text"]
    finished = [p["choices"][0]["finish_reason"] for p in pieces]
    assert finished == [None] * (len(pieces) - 1) + ["length"]
    assert all("usage" not in p for p in pieces)


def test_a_piece_is_sent_as_soon_as_its_token_is_there(gated):
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.encode("how many shops")
    with asking(gated, prompt=tokens, max_tokens=len(tokens), stream=True) as connection:
        gated.engine.steps.release()
        answer = connection.getresponse()
        for i, token in enumerate(tokens):
            piece = json.loads(answer.readline().removeprefix(b"data: "))
            assert piece["choices"][0]["text"] == tokenizer.decode([token])
            assert answer.readline() == b"\n" and len(gated.engine.submitted[0].tokens) == i + 1
            gated.engine.steps.release()
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_a_chat_stream_begins_with_the_role_and_may_end_with_the_usage(server):
    options = {"messages": HELLO, "stream_options": {"include_usage": True}, "max_tokens": 5}
    fields = {"prompt": None, **options}
    del fields["prompt"]
    data = json.dumps({"model": "sql", "stream": True, **fields}).encode()
    *pieces, last = events(send(server, "POST", "/v1/chat/completions", data)[2])
    whole = chat(server, max_tokens=5)[1]
    deltas = [p["choices"][0]["delta"] for p in pieces]
    assert deltas[0]["role"] == "assistant" and all("role" not in d for d in deltas[1:])
    text = "".join(d.get("content", "") for d in deltas)
    assert text == whole["choices"][0]["message"]["content"] and deltas[-1] == {}
    assert all(p["usage"] is None and p["object"] == "chat.completion.chunk" for p in pieces)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


def test_an_empty_answer_streams_too(server):
    (piece,) = stream(server, prompt=[2], max_tokens=5)  # the end itself
    assert piece["choices"][0] == {
        "index": 0, "text": "", "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip


def test_the_base_an_adapter_and_an_alias_answer_by_name(server):
    assert complete(server, model="tiny")[1]["model"] == "tiny"
    assert server.engine.submitted[-1].adapter is None
    assert complete(server, model="shops")[1]["model"] == "shops"
    assert server.engine.submitted[-1].adapter == "shops"
    found = [complete(server, model="ab", user=f"u{i % 6}")[1]["model"] for i in range(12)]
    assert found[:6] == found[6:] and set(found) == {"shops", "sql"}
    drawn = {complete(server, model="ab")[1]["model"] for _ in range(12)}
    assert drawn == {"shops", "sql"}


def test_the_models_are_listed(server):
    status, text = get(server, "/v1/models")
    models = json.loads(text)["data"]
    assert status == 200 and [m["id"] for m in models] == ["tiny", "shops", "sql", "broken", "ab"]
    assert [m["parent"] for m in models] == [None, "tiny", "tiny", "tiny", "tiny"]
    for model in models:
        assert json.loads(get(server, f"/v1/models/{model['id']}")[1]) == model
    assert get(server, "/v1/models/none")[0] == 404


def test_many_requests_at_once_are_all_answered(server):
    found, before = {}, outcomes(server)

    def ask(i):
        found[i] = complete(server, prompt=[50 + i, 51 + i], max_tokens=20, stream=False)

    threads = [threading.Thread(target=ask, args=[i]) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokenizer = tiny_tokenizer()
    for i, (status, body) in found.items():
        assert status == 200
        assert body["choices"][0]["text"] == tokenizer.decode([50 + i, 51 + i] * 10)
    assert outcomes(server)["length"] - before["length"] == 24 == len(found)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, status, param",
    [
        ({"model": "shop"}, 404, "model"),
        ({"n": 2}, 400, "n"),
        ({"stop": 3}, 400, "stop"),
        ({"prompt": [340]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "\ud800"}, 400, None),
        ({"max_tokens": 1000}, 400, "prompt"),
    ],
)
def test_a_call_that_cannot_be_is_refused_and_leaves_nothing(server, fields, status, param):
    before = outcomes(server)
    assert refused(complete(server, **fields), status, param)["type"] == (
        "not_found_error" if status == 404 else "invalid_request_error"
    )
    assert outcomes(server)["refused"] == before["refused"] + 1
    assert server.site.service.live == 0


def test_a_chat_that_the_template_cannot_write_is_refused(tmp_path):
    engine, tokenizer = FakeEngine(), tiny_tokenizer(chat_template="{{ raise_exception('no') }}")
    server = Server(engine, tokenizer, tmp_path)
    try:
        assert "the chat template cannot be used" in refused(chat(server), 400)["message"]
    finally:
        server.stop()


def test_what_is_not_json_is_refused(server):
    for data in (b"", b"{", b"\xff"):
        status, _, body = send(server, "POST", "/v1/completions", data)
        assert status == 400 and "not JSON" in json.loads(body)["error"]["message"]
    for kind in ({}, {"Content-Type": "text/plain"}):
        status, headers, body = send(server, "POST", "/v1/completions", b"{}", kind)
        assert status == 415 and "application/json" in json.loads(body)["error"]["message"]
        assert headers["connection"] == "close"
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (
        b"model is missing"
        in send(server, "POST", "/v1/completions", b'{"prompt": ""}', charset)[2]
    )


def test_a_path_or_a_method_that_does_not_exist_is_named(server):
    assert "GET '/v2'" in json.loads(get(server, "/v2")[1])["error"]["message"]
    status, headers, body = send(server, "GET", "/v1/completions")
    assert (status, headers["allow"]) == (405, "POST") and b"there is no GET" in body
    assert get(server, "/v1/completions/%1b%ff")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "", "localhost:80@evil", "[::1"])
def test_another_host_is_refused_on_every_path(server, host):
    for path in ("/v1/models", "/health", "/metrics", "/nothing"):
        status, body = get(server, path, Host=host)
        assert status == 403 and "is not this machine" in json.loads(body)["error"]["message"]


def test_this_machine_may_be_named_in_three_ways(server):
    for host in ("localhost", "127.0.0.1", "[::1]", "LocalHost"):
        assert get(server, "/health", Host=host)[0] == 200
        assert get(server, "/health", Host=f"{host}:{server.port}")[0] == 200


def raw(server, data):
    """Send bytes; return all that comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(data)
        found = b""
        while part := client.recv(65536):
            found += part
        return found


def test_no_host_and_two_hosts_are_refused(server):
    assert b" 403 " in raw(server, b"GET /health HTTP/1.0\r\n\r\n")
    two = b"Host: localhost\r\nHost: evil.example\r\n"
    assert b" 400 " in raw(server, b"GET /health HTTP/1.1\r\n" + two + b"\r\n")


def head(server, *lines):
    first = [
        b"POST /v1/completions HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/json",
    ]
    return b"\r\n".join([*first, *lines, b"", b""])


def test_a_body_that_is_too_long_is_refused_declared_or_not(tmp_path):
    with serving(tmp_path, limits=Limits(body=100)) as server:
        found = raw(server, head(server, b"Content-Length: 101"))
        assert b" 413 " in found and b"more than 100 bytes" in found
        assert b" 413 " in raw(server, head(server, b"Content-Length: " + b"9" * 19))
        chunk = b"32\r\n" + b" " * 50 + b"\r\n"
        assert b" 413 " in raw(server, head(server, b"Transfer-Encoding: chunked") + 3 * chunk)
        assert complete(server)[0] == 200


def test_a_client_that_does_not_send_is_dropped(tmp_path):
    with serving(tmp_path, limits=Limits(patience=0.05)) as server:
        late = raw(server, head(server, b"Content-Length: 10") + b"{")
        assert b" 408 " in late and b"did not arrive within 0.05 s" in late
        for part in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
            assert raw(server, part) == b""
        idle = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.startswith(b"HTTP/1.1 200") and idle.count(b"HTTP/1.1") == 1
        slow = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
        assert slow.count(b"HTTP/1.1") == 1


@contextmanager
def asking(server, **fields):
    """Send a request whose answer is read later, with ``getresponse``."""
    connection = connect(server)
    data = json.dumps({"model": "sql", "prompt": [60]} | fields).encode()
    try:
        connection.request("POST", "/v1/completions", data, JSON)
        yield connection
    finally:
        connection.close()


def read(connection):
    """Return the status and the object of an answer."""
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.fixture
def gated(tmp_path):
    """A server that takes at most two requests, whose engine waits before each step."""
    engine = FakeEngine(context=100_000)
    engine.steps = threading.Semaphore(0)
    with serving(tmp_path, engine, limits=Limits(queue=2, patience=5)) as server:
        yield server


def step_until(server, condition):
    """Let the engine work, a step at a time, until a condition holds."""
    wait_until(lambda: server.engine.steps.release() or condition())


def test_one_more_than_the_limit_is_told_to_come_back(gated):
    with asking(gated, max_tokens=3) as one, asking(gated, max_tokens=3) as two:
        wait_until(lambda: gated.site.service.live == 2)
        data = json.dumps({"model": "sql", "prompt": [60]}).encode()
        status, headers, body = send(gated, "POST", "/v1/completions", data)
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["error"]["type"] == "rate_limit_error"
        step_until(gated, lambda: gated.site.service.live == 0)
        assert [read(connection)[0] for connection in (one, two)] == [200, 200]
    gated.engine.steps.release(100)
    assert complete(gated)[0] == 200


def wait_until(condition):
    """Return once a condition holds that another thread will make true."""
    ticks, end = threading.Event(), 4000
    for _ in range(end):
        if condition():
            return
        ticks.wait(0.005)
    raise AssertionError("it never came true")


# --- failures -------------------------------------------------------------------------------------


def test_a_broken_adapter_fails_its_own_request_before_or_within_a_stream(server):
    before = outcomes(server)
    problem = refused(complete(server, model="broken"), 500)
    assert problem["message"] == "'broken' cannot answer: a tensor is missing"
    assert (problem["type"], problem["code"]) == ("server_error", "model_failed")
    refused(complete(server, model="broken", stream=True, max_tokens=1), 500)
    data = json.dumps({"model": "broken", "prompt": [60], "stream": True}).encode()
    status, _, body = send(server, "POST", "/v1/completions", data)
    *_, last, end = body.decode().split("\n\n")
    assert (status, end) == (200, "")
    assert "a tensor is missing" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert complete(server)[0] == 200
    after = outcomes(server)
    assert (after["failed"], after["refused"]) == (before["failed"] + 3, before["refused"])


@pytest.mark.parametrize("stream", [False, True])
def test_the_request_of_a_client_that_vanishes_is_cancelled(gated, stream):
    with asking(gated, max_tokens=50_000, stream=stream):
        step_until(gated, lambda: gated.engine.submitted and gated.engine.submitted[0].tokens)
    step_until(gated, lambda: gated.site.service.live == 0)
    (request,) = gated.engine.submitted
    assert request.state == "cancelled" and len(request.tokens) < 50_000
    assert (gated.engine.running, gated.engine.waiting) == ([], [])
    assert outcomes(gated)["cancelled"] == 1


def test_a_client_that_does_not_read_holds_nobody_up(server):
    silent = socket.create_connection(("127.0.0.1", server.port))
    data = json.dumps({"model": "sql", "prompt": [60], "max_tokens": 150, "stream": True}).encode()
    silent.sendall(head(server, b"Content-Length: %d" % len(data)) + data)
    assert complete(server, max_tokens=150)[0] == 200
    wait_until(lambda: server.site.service.live == 0)  # although nobody has read
    silent.close()


def test_a_client_that_vanishes_within_its_body_leaves_nothing(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head(server, b"Content-Length: 1000") + b"{")
    assert complete(server)[0] == 200 and server.site.service.live == 0


def test_a_fault_of_the_server_is_a_500_in_the_same_shape(server, monkeypatch, caplog):
    monkeypatch.setattr(server.engine, "submit", lambda *a, **k: 1 / 0)
    problem = refused(complete(server), 500)
    assert "the server has a fault" in problem["message"] and server.site.service.live == 0
    wait_until(lambda: "ZeroDivisionError" in caplog.text)


def test_a_crash_of_the_engine_answers_all_and_ends_the_server(gated):
    with asking(gated, max_tokens=50_000) as one, asking(gated, prompt=[CRASH]) as two:
        wait_until(lambda: gated.site.service.live == 2)
        step_until(gated, lambda: gated.site.worker.error is not None)
        for connection in (one, two):
            assert refused(read(connection), 500)["code"] == "engine_stopped"
    gated.thread.join(20)
    assert not gated.thread.is_alive()
    assert isinstance(gated.site.worker.error, ArithmeticError)


# --- adapters -------------------------------------------------------------------------------------


def test_adapters_are_loaded_and_unloaded(tmp_path):
    for name in ("new", "spoilt"):
        (tmp_path / name).mkdir()
    (tmp_path / "spoilt" / "spoilt").touch()
    with serving(tmp_path, aliases=[alias_of("ab=sql:1")]) as server:

        def load(**fields):
            return post(server, "/v1/load_lora_adapter", **fields)

        def unload(name):
            return post(server, "/v1/unload_lora_adapter", lora_name=name)

        assert refused(complete(server, model="new"), 404, "model")
        assert load(lora_name="new", lora_path=str(tmp_path / "new")) == (
            200, "Success: LoRA adapter 'new' added successfully.",
        )  # fmt: skip
        assert complete(server, model="new")[1]["model"] == "new"
        refused(load(lora_name="new"), 400, "lora_name")
        assert unload("new")[0] == 200 and refused(complete(server, model="new"), 404, "model")
        assert load(lora_name="new")[0] == 200
        assert "spoilt" in refused(load(lora_name="spoilt"), 400, "lora_name")["message"]
        refused(load(lora_name="new", lora_path="../new"), 400, "lora_name")
        refused(load(lora_name="x", lora_path=".."), 400, "lora_path")
        refused(load(lora_name="missing"), 404, "lora_name")
        refused(load(lora_path="new"), 400, "lora_name")
        refused(load(lora_name="a", rank=8), 400, "rank")
        refused(unload("nobody"), 404, "lora_name")
        refused(unload("sql"), 400, "lora_name")  # the alias needs it
        assert server.engine.names == ["shops", "sql", "broken", "new"]


# --- the end --------------------------------------------------------------------------------------


def test_a_signal_finishes_what_runs_and_refuses_what_is_new(gated):
    with asking(gated, max_tokens=8) as running:
        wait_until(lambda: gated.site.service.live == 1)
        gated.site._on_signal(15)
        wait_until(lambda: gated.site.service.draining)
        data = json.dumps({"model": "sql", "prompt": [60]}).encode()
        status, headers, body = send(gated, "POST", "/v1/completions", data)
        assert (status, headers["retry-after"]) == (503, "5") and b"stopping" in body
        assert get(gated, "/health")[0] == 503
        refused(post(gated, "/v1/load_lora_adapter", lora_name="x"), 503)
        gated.engine.steps.release(100)
        status, body = read(running)
        assert (status, body["usage"]["completion_tokens"]) == (200, 8)
    gated.thread.join(20)
    assert not gated.thread.is_alive() and not gated.site.forced
    assert gated.said[1:] == ["stopping: 1 request to finish"]


def test_a_second_signal_ends_it_at_once(gated):
    with asking(gated, max_tokens=50_000):
        wait_until(lambda: gated.site.service.live == 1)
        gated.site._on_signal(2)
        gated.site._on_signal(2)
        step_until(gated, lambda: not gated.thread.is_alive())
    assert gated.site.forced and len(gated.engine.submitted[0].tokens) < 50_000
