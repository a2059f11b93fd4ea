"""The command serve: a real model over HTTP, SIGTERM, and what is refused before it is read."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from lora_np.serve.http.server import serve_http
from tests.chat.test_shelf import write_adapter
from tests.chat.tiny import llama, write_llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer
from tests.serve.fake import CRASH, FakeEngine
from tests.serve.test_http import asking, complete, get, wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a model and two adapters."""
    root = tmp_path_factory.mktemp("serve")
    write_llama(root / "model")
    for seed, name in enumerate(("shops", "sql")):
        write_adapter(root / "adapters" / name, llama(), seed)
    return root


class Process:
    """The command in a process of its own."""

    def __init__(self, folder, *options):
        given = ["--model", folder / "model", "--adapters", folder / "adapters", "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lora_np", "serve", *map(str, given), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self.ready = self.process.stdout.readline()
        self.port = int(self.ready.rpartition(":")[2].partition("/")[0])

    def end(self, *signals):
        """Send signals; return the status, and what was said."""
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_the_command_serves_adapters_and_sigterm_finishes_what_runs(folder):
    server = Process(folder, "--alias", "ab=shops:1,sql:1")
    assert server.ready == f"serving model and 2 adapters at http://127.0.0.1:{server.port}/v1\n"
    names = [m["id"] for m in json.loads(get(server, "/v1/models")[1])["data"]]
    assert names == ["model", "shops", "sql", "ab"]
    fields = {"prompt": "how many", "max_tokens": 20, "temperature": 0}
    answers = [complete(server, model=m, **fields)[1] for m in ("model", "shops", "sql")]
    texts = [answer["choices"][0]["text"] for answer in answers]
    assert len(set(texts)) == 3 and [a["model"] for a in answers] == ["model", "shops", "sql"]
    with asking(server, prompt="how", max_tokens=150, stream=True) as running:
        answer = running.getresponse()
        first = answer.readline()
        server.process.send_signal(signal.SIGTERM)
        rest = answer.read()
        assert first.startswith(b"data: ") and rest.endswith(b"data: [DONE]\n\n")
    status, out, err = server.end()
    assert (status, err) == (0, "")
    assert out in ("stopping: 1 request to finish\n", "stopping: 0 requests to finish\n")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--alias", "ab"], "alias 'ab': expected NAME=ADAPTER:WEIGHT"),
        (["--queue", 0], "queue = 0: expected a positive number"),
        (["--adapters", "nothing"], "nothing cannot be read"),
        (["--model", "nothing"], "model 'nothing'"),
        (["--alias", "ab=shop:1"], "there is no adapter 'shop': did you mean shops?"),
        (["--batch", 0], "batch = 0"),
        (["--pages", 0], "0 pages"),
        (["--template", "nothing.jinja"], "nothing.jinja does not exist"),
        (
            ["--requests", "r.jsonl", "--out", "no/a.jsonl", "--adapters", "a"],
            "--port is of a server",
        ),
        (["--port", 70_000], "port 70000 cannot be used (0 to 65535 are ports)"),
    ],
)
def test_what_cannot_be_is_one_line(command, folder, options, message):
    given = ("--model", folder / "model", "--adapters", folder / "adapters", "--port", 0)
    status, out, err = command("serve", *given, *options)
    assert (status, out) == (2, "") and message in err
    assert err.startswith("lora-np: ") and err.count("\n") == 1


def test_a_file_of_requests_is_answered_without_a_server(command, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)  # no server, no packages of one
    asked, out = tmp_path / "r.jsonl", tmp_path / "answers.jsonl"
    names = ["shops", "model", "sql", "shops"]
    lines = [json.dumps({"model": name, "prompt": "how", "max_tokens": 4}) for name in names]
    asked.write_text("\n".join(lines))
    given = ("--model", folder / "model", "--adapters", folder / "adapters")
    status, said, _ = command("serve", *given, "--requests", asked, "--out", out)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert (status, said) == (0, f"4 answers: written to {out}\n")
    assert {a["line"]: a["model"] for a in answers} == dict(enumerate(names, 1))
    before = out.read_text()
    status, _, err = command("serve", *given, "--requests", asked, "--out", out)
    assert status == 2 and "nothing is overwritten" in err and out.read_text() == before


def test_a_custom_id_comes_back_whatever_json_can_hold(command, folder, tmp_path):
    asked, out = tmp_path / "r.jsonl", tmp_path / "answers.jsonl"
    ids = ["\ud800", "\u79e9", "a\r\n", "same", "same"]
    how = {"model": "sql", "prompt": "how", "max_tokens": 1}
    lines = [json.dumps(how | {"custom_id": i}) for i in ids]
    asked.write_bytes("\r\n".join(lines).encode())
    given = ("--model", folder / "model", "--adapters", folder / "adapters")
    assert command("serve", *given, "--requests", asked, "--out", out)[0] == 0
    answers = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert {a["line"]: a["custom_id"] for a in answers} == dict(enumerate(ids, 1))
    assert "\u79e9".encode() in out.read_bytes()


def test_an_answer_that_is_an_error_shows_in_the_status(command, folder, tmp_path):
    asked, out = tmp_path / "r.jsonl", tmp_path / "answers.jsonl"
    lines = [{"model": "sql", "prompt": "how", "max_tokens": n} for n in (2, 10**6)]
    asked.write_text("\n".join(map(json.dumps, lines)))
    given = ("--model", folder / "model", "--adapters", folder / "adapters")
    status, said, _ = command("serve", *given, "--requests", asked, "--out", out)
    assert (status, said) == (1, f"2 answers, 1 of them an error: written to {out}\n")


def test_a_file_that_is_wrong_leaves_no_answers(command, folder, tmp_path):
    asked, out = tmp_path / "r.jsonl", tmp_path / "answers.jsonl"
    asked.write_text('{"model": "sql", "prompt": "how"}\n{')
    given = ("--model", folder / "model", "--adapters", folder / "adapters")
    status, _, err = command("serve", *given, "--requests", asked, "--out", out)
    assert status == 2 and "line 2 is not JSON" in err and not out.exists()
    status, _, err = command("serve", *given, "--requests", asked)
    assert status == 2 and "--requests and --out go together" in err
    missing = tmp_path / "missing"
    status, _, err = command("serve", *given, "--requests", asked, "--out", missing / "a.jsonl")
    assert status == 2 and err.endswith(f"there is no folder {missing}: make it first\n")
    given = ("--model", folder / "model", "--adapters", folder / "adapters" / "sql")
    status, _, err = command("serve", *given)
    assert status == 2 and err.endswith(
        "sql is an adapter: expected the folder that holds adapters' folders\n"
    )


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_named_with_its_extra(command, folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = command("serve", "--model", "m", "--adapters", "a")
    assert status == 2
    assert err == f"lora-np: the package {package} is missing: pip install 'lora_np[serve]'\n"


def serve(engine, **options):
    """Serve a fake engine in this thread."""
    fixed = {"model_name": "tiny", "folder": "nowhere", "port": 0}
    serve_http(engine, tiny_tokenizer(), **fixed | options)


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} cannot be used \(.*\): choose another"):
            serve(FakeEngine(), port=port)


def from_outside(act):
    """Return a `say` that, once the server is ready, acts on it in a thread of its own."""
    said = []

    def say(line):
        said.append(line)
        if len(said) == 1:
            server = SimpleNamespace(port=int(line.rpartition(":")[2].partition("/")[0]))
            threading.Thread(target=act, args=[server, said], daemon=True).start()

    return say


def test_what_the_engine_raised_is_raised_at_the_end():
    def act(server, said):
        complete(server, prompt=[CRASH])

    with pytest.raises(ArithmeticError, match="the engine's fault"):
        serve(FakeEngine(), say=from_outside(act))


def test_a_second_signal_is_an_interruption():
    engine = FakeEngine(context=100_000)
    engine.steps = threading.Semaphore(0)

    def act(server, said):
        with asking(server, max_tokens=50_000) as running:
            wait_until(lambda: engine.submitted)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: said[1:] == ["stopping: 1 request to finish"])
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: engine.steps.release() or ended)
            running.close()

    ended = []
    with pytest.raises(KeyboardInterrupt):
        serve(engine, say=from_outside(act))
    ended.append(True)
    assert len(engine.submitted[0].tokens) < 50_000
