"""lora-np grade: every entry of a folder gets its line, and no student stops the others.

Most cases never reach a child process, so that they cost nothing: what is no submission is left out
before, and the reader of answers is tried here on answers that a child could have left.
"""

import io
import json
import os
import random
import runpy
import socket
import sys

import numpy as np
import pytest

from lora_np import cli
from lora_np.course import TASKS, Limits, diagnose, run_isolated
from lora_np.course.grade import grade_folder, text, verdict
from lora_np.course.judge import judge
from lora_np.course.sandbox import child, runner
from lora_np.course.sandbox.untrusted import MOST_JSON, Unreadable, read_answers
from lora_np.reading import brief
from tests.class_of_50 import RIGHT
from tests.docs.pages import ROOT, bodies

TASK = "softmax_backward"
SOURCE = RIGHT[TASK].lstrip()
SHORT = Limits(seconds=2, memory_mib=512, output_mib=1)


# --- the folder ----------------------------------------------------------------------------------


def bound(path):
    """Bind a socket, whose path may be short only."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


WRITTEN = {  # name of a file: its bytes, and its verdict or why it is left out
    "anna.py": (SOURCE.encode(), "right"),
    "bom.py": (b"\xef\xbb\xbf" + SOURCE.encode(), "right"),
    "latin.py": (b"# coding: latin-1\n# M\xfcller\n" + SOURCE.encode(), "right"),
    "ben.PY": (SOURCE.encode(), "right"),
    "ben.PY.py": (b"x = 1", "no function called softmax_backward"),  # no namesake of ben.PY
    "\x1b[2J\nright.py": (SOURCE.encode(), "right"),
    "wrong.py": (b"# M\xfcller\n" + SOURCE.encode(), "save the file as UTF-8"),
    "x" * 252 + ".py": (b"#" * (2**20 + 1), "...xxxxxx.py is larger than 1 MiB"),
    "book.ipynb": (b"{}", "it is a notebook: convert it to a script"),
    "essay.pdf": (b"%PDF", "it is not a Python file"),
    "._anna.py": (b"\0\5", "it is hidden"),
    ".py": (b"", "it is hidden"),
}
MADE = {  # name of what is no file: how it is made, and why it is left out
    "a-folder.py": (os.mkdir, "it is a folder"),
    "jane": (lambda p: (p.mkdir(), (p / "answer.py").write_text(SOURCE)), "it is a folder"),
    "dangling.py": (
        lambda p: p.symlink_to("nobody.py"),
        "is a link: replace it by the file",
    ),
    "itself.py": (lambda p: p.symlink_to(p.name), "is a link: replace it by the file"),
    "copies.py": (lambda p: p.symlink_to("anna.py"), "is a link: replace it by the file"),
    "zero.py": (lambda p: p.symlink_to("/dev/zero"), "is a link: replace it by the file"),
    "pipe.py": (os.mkfifo, "is a pipe, not a file"),
    "socket.py": (bound, "is a socket, not a file"),
}


def test_every_entry_gets_one_line_and_the_rest_keep_their_results(tmp_path, monkeypatch):
    place = tmp_path / TASK
    place.mkdir()
    wanted = {name: why for made in (WRITTEN, MADE) for name, (_, why) in made.items()}
    for name, (data, _) in WRITTEN.items():
        (place / name).write_bytes(data)
    for name, (make, _) in MADE.items():
        make(place / name)
    for name in ("essay", "\x1b[31m"):
        (tmp_path / name).mkdir()
    (tmp_path / "loose.py").write_text(SOURCE)
    graded = grade_folder(tmp_path, SHORT)

    assert {student for task, student in graded if task == TASK} == {
        name if name in ("ben.PY.py", ".py") else name.removesuffix(".py") for name in wanted
    }
    for name, why in wanted.items():
        key = (TASK, name if (TASK, name) in graded else name.removesuffix(".py"))
        assert why in f"{verdict(graded[key])} {graded[key]}", name
    assert "there is no task 'essay': choose from" in str(graded["essay", ""])
    assert "it is not in the folder of a task" in str(graded["loose.py", ""])
    lines = text(graded).splitlines()
    assert len([line for line in lines if not line.startswith("    ")]) == len(wanted) + 3
    assert all(line.isprintable() for line in lines)
    assert any(line.startswith(rf"{TASK}  \x1b[2J\nright ") for line in lines)


def test_a_file_that_vanishes_or_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    assert "gone.py cannot be read: No such file" in str(run_isolated(tmp_path / "gone.py", TASK))
    (tmp_path / "own.py").write_text(SOURCE)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    report = run_isolated(tmp_path / "own.py", TASK)
    assert verdict(report) == "left out" and "cannot be read: Permission denied" in str(report)


def test_a_fault_of_the_graders_is_one_students_report(tmp_path, monkeypatch):
    """Neither a disk that is full nor a bug of ours loses the others' results."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "_write_job", full)
    report = run_isolated(SOURCE, TASK)
    assert verdict(report) == "not graded" and "No space left on device" in str(report)


def test_a_folder_without_a_submission_is_refused_with_the_first_reason(tmp_path, command):
    assert "cannot be listed: No such file" in command("grade", tmp_path / "gone")[2]
    (tmp_path / TASK).mkdir()
    for name in "ab":
        (tmp_path / TASK / f"{name}.ipynb").write_text("{}")
    status, out, err = command("grade", tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{TASK}/a.ipynb: it is a notebook" in err and err.endswith("; and 1 more\n")


def test_the_command_counts_what_is_left_out_and_prints_on_any_console(tmp_path, monkeypatch):
    (tmp_path / TASK).mkdir()
    (tmp_path / TASK / "müller.py").write_text("x = 1")
    (tmp_path / TASK / "日本.txt").write_text("")
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert cli.main(["grade", str(tmp_path)]) == 0
    console.flush()
    lines = console.buffer.getvalue().decode("ascii").splitlines()
    assert lines[0].split()[1] == r"m\xfcller" and lines[2].split()[1] == r"\u65e5\u672c.txt"
    assert lines[-1].startswith("1 submission, 0 right, in ")
    assert lines[-1].endswith("; 1 left out")


def test_the_script_for_gradescope_grades_files_as_python_reads_them(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "instructors.md").read_text(encoding="utf-8")
    (script,) = [body for body in bodies(page, "python") if "argv" in body]
    (tmp_path / "run").write_text(script)
    (tmp_path / "submission").mkdir()
    parts = {"a": "lora_linear_forward", "b": "lora_linear_backward"}
    for name, task in parts.items():
        text = f"# coding: latin-1\n# Müller\n{RIGHT[task]}"
        (tmp_path / "submission" / f"{name}.py").write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path)])
    runpy.run_path(str(tmp_path / "run"))
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [test["score"] for test in results["tests"]] == [3, 6]


# --- the text of a file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, text",
    [
        (b"x = '\xc3\xbc'", "x = 'ü'"),
        (b"\xef\xbb\xbfx = 1", "x = 1"),
        (b"# coding: cp1252\nx = '\x80'", "# coding: cp1252\nx = '€'"),
        (
            b"#!\n# vim: fileencoding=latin-1\nx = '\xfc'",
            "#!\n# vim: fileencoding=latin-1\nx = 'ü'",
        ),
        (b"x\n\n# M\xfcller", "byte 0xfc of line 3 is not valid utf-8: save the file as UTF-8"),
        (b"# M\xfcller", "invalid or missing encoding declaration: save the file as UTF-8"),
        ("x = 1".encode("utf-16"), "invalid or missing encoding declaration: save the file as"),
        (b"# coding: klingon\nx", "unknown encoding: klingon: save the file as UTF-8"),
        (b"# coding: hex\nx", "'hex' is not a text encoding"),
        (b"# coding: undefined\nx", "undefined encoding"),
    ],
)
def test_a_file_is_decoded_as_python_decodes_it(data, text):
    try:
        assert child.decoded(data) == text
    except SyntaxError as error:
        assert text in str(error)


@pytest.mark.parametrize(
    "text, most, shown",
    [
        ("müller 日本", 20, "müller 日本"),
        ("\x1b[2J\r\n\t\x7f", 30, r"\x1b[2J\r\n\t\x7f"),
        ("\u202egnp.\udcff\u200b", 30, r"\u202egnp.\udcff\u200b"),
        ("a" * 50 + "b" * 50, 20, "aaaaaaaaaaaaa...bbbb"),
        ("\n" * 20, 20, r"\n\n\n\n\n\n\...\n\n"),
    ],
)
def test_what_is_printed_is_one_short_line(text, most, shown):
    assert brief(text, most) == shown


# --- what a student's exception does -------------------------------------------------------------


class Raises(Exception):
    def __str__(self):
        raise SystemExit


class NoNumber(OSError):
    @property
    def errno(self):
        raise KeyError


def syntax_error_of_ones_own():
    error = SyntaxError("no")
    error.msg, error.lineno = None, "x"
    return error


@pytest.mark.parametrize(
    "error, sentence",
    [
        (Raises(), "an exception: its message cannot be printed"),
        (NoNumber(), "an exception: its message cannot be printed"),
        (syntax_error_of_ones_own(), "SyntaxError: None (line x)"),
        (ValueError("x" * 10**7), "ValueError: " + "x" * 300),
        (type("E" * 10**6, (Exception,), {})("a"), "E" * 100 + ": a"),
    ],
)
def test_an_exception_that_cannot_be_printed_is_reported(error, sentence):
    def softmax_backward(dy, y):
        raise error

    said = str(diagnose(TASK, softmax_backward))
    assert sentence in said and len(said) < 500


def test_an_input_that_is_no_longer_an_array_of_numbers_counts_as_written_to():
    def softmax_backward(dy, y):
        dx = y * (dy - (dy * y).sum(axis=-1, keepdims=True))
        y[...] = 0
        y.dtype = f"S{y.itemsize}"
        return dx

    assert [f.name for f in diagnose(TASK, softmax_backward).findings] == ["writes"]


IN_A_CHILD = {
    "fills memory for good": (
        "keep = []\ndef fill(n):\n    try:\n        while True: keep.append([0] * n)\n"
        "    except MemoryError: pass",
        "for n in (10**6, 10**4, 100, 1): fill(n)\n    raise MemoryError",
        "needs more memory",
    ),
    "closes its output, goes elsewhere, allows no recursion": (
        "import os, sys; sys.stdout.close(); os.close(2); os.chdir('/'); sys.setrecursionlimit(30)",
        "pass", "right",
    ),
    "leaves folders in folders": (
        "import os\nfor _ in range(1200): os.mkdir('a'); os.chdir('a')", "pass", "right",
    ),
    "returns a hundred thousand numbers": ("", "return [0] * 10**5", "prints or returns too much"),
    "removes the working folder": (
        "import os, sys\nimport _posixsubprocess as p\na, b = os.pipe()",
        "p.fork_exec([b'/bin/sh', b'-c', b'rm -r \"$PWD\"'], [b'/bin/sh'], True, (b,), None, None, "
        "-1, -1, -1, -1, -1, -1, a, b, False, False, *[-1] * (sys.version_info > (3, 11)), "
        "None, None, None, -1, None, *[False] * (sys.version_info < (3, 14))); os.wait()",
        "ended the process, with status 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_A_CHILD)
def test_a_submission_that(what):
    above, line, sentence = IN_A_CHILD[what]
    source = f"{above}\n{SOURCE.replace('    return', f'    {line}' + chr(10) + '    return')}"
    assert sentence in str(run_isolated(source, TASK, SHORT))


# --- the answer ----------------------------------------------------------------------------------


def left(folder, rows, data=b""):
    """Write an answer as a child could have left it."""
    text = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    (folder / "answer.json").write_bytes(text)
    (folder / "answer.bin").write_bytes(data)
    return folder


def row(outputs="[]", changed="{}"):
    return f'[{{"outputs": {outputs}, "changed": {changed}}}]'.encode()


NO_ANSWERS = {
    "nothing": b"",
    "no Unicode": b"\xff\xfe",
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "too long": b" " * (MOST_JSON + 1),
    "no list": b"{}",
    "no object": b"[1e999]",
    "too few": b"[]",
    "too many": b"[{}, {}]",
    "infinitely many outputs": row("1e999"),
    "digits": row("1" * 5000),
    "raised nothing": b'[{"raised": null}]',
    "raised a number": b'[{"raised": ["E", NaN]}]',
    "no header": row("[0]"),
    "objects": row('[["|O", [1]]]'),
    "texts": row('[["<U9", [1]]]'),
    "dates": row('[["<M8[s]", [1]]]'),
    "fields": row('[["f8,i4", [1]]]'),
    "no name": row("[[[], [1]]]"),
    "a negative size": row('[["<f8", [-1]]]'),
    "half a size": row('[["<f8", [0.5]]]'),
    "a size that is true": row('[["<f8", [true]]]'),
    "no size": row('[["<f8", [null]]]'),
    "an infinite size": row('[["<f8", [Infinity]]]'),
    "a size of 400 digits": row('[["<f8", [' + "9" * 400 + "]]]"),
    "a large array": row('[["<f8", [2147483647, 2147483647]]]'),
    "a large empty array": row('[["<f8", [0, 2147483647, 2147483647]]]'),
    "many axes": row('[["<f8", [' + ", ".join("1" * 65) + "]]]"),
    "fewer bytes": row('[["<f8", [3]]]'),
    "changed by a text": row(changed='{"x": "much"}'),
    "changed by 400 digits": row(changed='{"x": ' + "9" * 400 + "}"),
    "changed in no input": row(changed="3"),
}


@pytest.mark.parametrize("what", NO_ANSWERS)
def test_an_answer_is_unreadable_that_has(what, tmp_path):
    with pytest.raises(Unreadable):
        read_answers(left(tmp_path, NO_ANSWERS[what], bytes(16)), 1, 2**20)


@pytest.mark.parametrize("name", ["answer.json", "answer.bin"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")])
def test_an_answer_that_is_no_regular_file_is_not_opened(make, name, tmp_path):
    left(tmp_path, row())
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(Unreadable, match=f"{name} is a"):
        read_answers(tmp_path, 1, 2**20)


def odd(array, rng):
    """Return an output as somebody might have it: of another dtype, shape or size."""
    return rng.choice(
        [
            lambda: array.astype(rng.choice(list("?bBhHiIlLqQefdgFDG"))),
            lambda: array.astype(array.dtype.newbyteorder()),
            lambda: np.full(array.shape, rng.choice([np.nan, np.inf, 1.7e308, 5e-324, 2**63 - 1])),
            lambda: array.ravel()[: rng.randrange(3)],
            lambda: array[..., None],
            lambda: np.zeros((0, 5, 7)),
            lambda: np.frombuffer(rng.randbytes(array.nbytes), array.dtype).reshape(array.shape),
            lambda: array,
        ]
    )()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_whatever_a_child_leaves_is_judged_or_unreadable(task, tmp_path):
    """Odd outputs come through and are judged; of files that were damaged, none raises another."""
    rng, draws = random.Random(task.name), task.draws(0)
    rights = [[np.asarray(a) for a in task.right(draw)] for draw in draws]
    for n in range(30):
        answers = [
            {"outputs": [odd(a, rng) for a in right] * rng.choice([1, 1, 1, 2]), "changed": {}}
            for right in rights
        ]
        child.leave(str(tmp_path), answers)
        read = read_answers(tmp_path, len(draws), 2**20)
        for answer, found in zip(answers, read):
            for array, same in zip(answer["outputs"], found["outputs"]):
                assert array.dtype == same.dtype and array.tobytes() == same.tobytes()
                assert array.shape == same.shape
        with np.errstate(all="ignore"):
            assert all(s.isprintable() for s in judge(task, draws, read).sentences)

        text = bytearray((tmp_path / "answer.json").read_bytes())
        for _ in range(n % 3 + 1):
            text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
        for damaged in (text, text[: rng.randrange(len(text))]):
            (tmp_path / "answer.json").write_bytes(damaged)
            try:
                read = read_answers(tmp_path, len(draws), 2**20)
            except Unreadable as error:
                assert str(error).isprintable()
            else:
                assert len(read) == len(draws)
