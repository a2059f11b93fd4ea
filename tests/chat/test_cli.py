"""The command chat: piped lines, a terminal, what is refused, and what it may take of memory."""

import io
import json
import os
import subprocess
import sys

import pytest

from tests.chat.test_shelf import write_adapter
from tests.chat.tiny import llama, write_llama
from tests.smollm2 import smollm2_file

LIMIT = 350_000_000  # bytes of address space, which holds the mapped file too


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the model "base-model" and its adapter "shops"."""
    root = tmp_path_factory.mktemp("chat")
    write_llama(root / "model")
    write_adapter(root / "shops", llama())
    return root


@pytest.fixture
def piped(command, monkeypatch, folder):
    """Run the command with bytes on standard input; return its status and what it said."""

    def call(data, *options):
        stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        options = ("--temperature", 0, "--tokens", 6, "--system", "s", *options)
        return command("chat", "--model", folder / "model", *options)

    return call


def test_piped_lines_are_answered_without_prompts_and_the_end_is_status_0(piped, folder):
    status, out, err = piped(b"which?\nand then?\n")
    assert (status, err) == (0, "") and len(out.split("\n")) >= 3
    assert out.endswith("\n") and "> " not in out and "\x1b" not in out
    assert piped(b"which?\n/quit\nand then?\n")[1] == piped(b"which?\r\n")[1]
    assert piped(b"") == (0, "", "")
    adapted = piped(b"which?\n", "--adapter", folder / "shops")[1]
    assert adapted != piped(b"which?\n")[1]
    switched = piped(b"/adapter base\nwhich?\n/adapter\n", "--adapter", folder / "shops")
    assert switched == (0, piped(b"which?\n")[1], "adapter: base\n* base\n  shops\n")


def test_bytes_that_are_not_utf8_are_replaced(piped):
    status, out, err = piped(b"caf\xe9 \xff\n")
    assert (status, err) == (0, "") and out == piped("caf\ufffd \ufffd\n".encode())[1]


def test_what_the_output_cannot_encode_becomes_a_question_mark(piped, monkeypatch):
    lines = b"which?\nand then?\nhow many\n"
    expected = piped(lines)[1]
    output = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert piped(lines)[0] == 0 and not expected.isascii()
    assert raw.getvalue() == expected.encode("ascii", "replace")


def test_the_options_reach_the_answer(piped, folder, tmp_path):
    line = b"which?\n"
    greedy = piped(line)[1]
    assert piped(line, "--temperature", 3, "--top-k", 1)[1] == greedy
    assert piped(line, "--temperature", 3, "--top-p", "1e-9")[1] == greedy
    warm = [piped(line, "--temperature", 3, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    assert len(piped(line, "--tokens", 1)[1]) < len(greedy)
    for options in [(), ("--adapter", folder / "shops")]:  # packed as float16
        assert piped(line, "--keep-quantised", *options)[1] == piped(line, *options)[1]
    assert piped(line, "--template", "chatml")[1] == greedy  # with a system message they agree
    (tmp_path / "own.jinja").write_text("{{ messages[-1]['content'] }}")
    assert piped(line, "--template", tmp_path / "own.jinja")[1] != greedy


def test_plain_text_is_continued(piped, command, monkeypatch, folder):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the shops\n" * 2))
    options = ("--plain", "--temperature", 0, "--tokens", 6)
    status, out, err = command("chat", "--model", folder / "model", *options)
    first, second = out[: len(out) // 2], out[len(out) // 2 :]
    assert (status, err) == (0, "") and first == second != piped(b"the shops\n")[1]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seed", -1], "--seed -1: expected at least 0"),
        (["--tokens", 0], "tokens = 0"),
        (["--temperature", "nan"], "temperature = nan"),
        (["--top-p", 2], "top_p = 2.0"),
        (["--template", "nothing.jinja"], "nothing.jinja does not exist"),
        (["--adapter", "nothing"], "nothing"),
        (["--system", "shop " * 300], "the context has only 160"),
        (["--plain"], "a plain text has no system message"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_read(piped, options, message):
    status, out, err = piped(b"which?\n", *options)
    assert (status, out) == (2, "") and message in err
    assert err.startswith("lora-np: ") and err.count("\n") == 1


class Typed(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


@pytest.fixture
def typed(monkeypatch, folder):
    """Run the command at a terminal, where lines are typed; return its status and its screen."""

    def call(*lines):
        from lora_np.cli import main

        left, screen = [*lines], Typed()

        def typing(prompt):
            screen.write(prompt)
            line = left.pop(0)
            if isinstance(line, BaseException):
                raise line
            screen.write(f"{line}\n")
            return line

        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, screen)
        monkeypatch.setattr("builtins.input", typing)
        options = ("--temperature", "0", "--tokens", "4", "--system", "s")
        return main(["chat", "--model", str(folder / "model"), *options]), screen.getvalue()

    return call


def test_at_a_terminal_there_is_a_prompt_and_ctrl_d_ends_with_a_newline(typed):
    status, screen = typed("which?", "/adapter", EOFError())
    assert status == 0 and screen.startswith("/help lists the commands\n> which?\n")
    assert screen.endswith("\n> /adapter\n* base\n> \n")


def test_ctrl_c_at_the_prompt_ends_as_every_command_does(typed):
    status, screen = typed("/clear", KeyboardInterrupt())
    assert status == 130 and screen.endswith("> \nlora-np: interrupted\n")


def test_the_command_loads_no_scipy_and_no_matplotlib(folder):
    script = (
        f"from lora_np.cli import main; main(['chat', '--model', {str(folder / 'model')!r}, "
        "'--temperature', '0', '--tokens', '2']); import sys; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input="hi\n", capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "lora_np.chat.session" in loaded
    assert not loaded & {"scipy", "matplotlib", "tqdm", "transformers", "torch"}


@pytest.mark.llm
def test_smollm2_with_quantised_weights_answers_within_350_mb():
    script = (
        "import resource, sys; from lora_np.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT})); "
        f"status = main(['chat', '--model', {str(smollm2_file())!r}, '--keep-quantised', "
        "'--temperature', '0', '--tokens', '20']); "
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')); "
        "print(peak, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="What is the capital of France?\nAnd of Italy?\n",
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread reserves address space
    )
    assert done.returncode == 0, done.stderr
    france, italy = done.stdout.splitlines()
    assert "Paris" in france and "Rome" in italy
    print(json.dumps(done.stderr))
    assert 1000 * int(done.stderr.split()[1]) < LIMIT
