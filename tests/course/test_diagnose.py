"""lora_np.course: every misconception is told from the others; the code of students is kept out.

The class of students (class_of_50.py) is graded in whole. What a submission must not be able to do
is done here: hang, exit, eat memory, flood the output, patch NumPy, call or read our solution.
"""

import math
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lora_np import cli
from lora_np.course import TASKS, Limits, WrongAnswer, diagnose, run_isolated
from lora_np.course.grade import grade_folder
from lora_np.course.judge import judge
from lora_np.course.task import Task
from tests import class_of_50, naive
from tests.class_of_50 import RIGHT, students, write_class

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
LINEAR = RIGHT["linear_backward"]
SHORT = Limits(seconds=2, memory_mib=1024, output_mib=1)


def defined(source, name):
    """Run a source here; return its function."""
    space = {"np": np, "math": math}
    exec(source, space)
    return space[name]


# --- the catalogue -------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("seed", [0, 1, 2027])
def test_every_misconception_gets_its_own_diagnosis_and_no_other(task, seed):
    """So the draws tell all pairs of them apart, and each from the right answer."""
    draws = task.draws(seed)
    rights = [task.right(draw) for draw in draws]
    for entry in task.misconceptions:
        answers = []
        for draw, right in zip(draws, rights):
            wrong = entry.outputs(task.known(draw, right))
            if not isinstance(wrong, str) and entry.output is not None:
                i = task.outputs.index(entry.output)
                wrong = (*right[:i], *wrong, *right[i + 1 :])
            answers.append(as_answer(task, draw, wrong))
        report = judge(task, draws, answers)
        assert [finding.name for finding in report.findings] == [entry.name]
        assert report.sentences == [entry.sentence]


def as_answer(task, draw, outputs):
    if isinstance(outputs, str):
        return {"raised": (outputs, "shapes do not fit")}
    if task.keeps_dtype:
        outputs = [a.astype(next(iter(draw.values())).dtype) for a in outputs]
    return {"outputs": list(outputs), "changed": {}}


def test_the_catalogue_is_large_and_its_sentences_are_whole():
    entries = [entry for task in TASKS.values() for entry in task.misconceptions]
    assert len(entries) > 200
    for task in TASKS.values():
        sentences = [entry.sentence for entry in task.misconceptions]
        names = [entry.name for entry in task.misconceptions]
        assert len(set(sentences)) == len(sentences) and len(set(names)) == len(names)
    assert all(entry.sentence.startswith("Your ") for entry in entries)
    assert all(entry.sentence == entry.sentence.strip(". ") for entry in entries)
    assert all(len(entry.sentence) < 130 and not entry.sentence.endswith(".") for entry in entries)


@pytest.mark.parametrize("name", ["attention_backward", "layernorm_backward"])
def test_references_agree_with_the_naive_twins(name):
    twin = getattr(naive, name)
    for draw in TASKS[name].draws(3)[:-1]:
        arguments = dict(draw)
        if name == "layernorm_backward":
            arguments["beta"] = np.zeros_like(draw["gamma"])
        for ours, theirs in zip(TASKS[name].right(draw), twin(**arguments)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@every_task
def test_hidden_draws_differ_from_the_visible_and_repeat(task):
    first, again, hidden = task.draws(0), task.draws(0), task.draws(1)
    arrays = [(a[k], b[k], c[k]) for a, b, c in zip(first, again, hidden) for k in a]
    arrays = [triple for triple in arrays if isinstance(triple[0], np.ndarray)]
    assert all(np.array_equal(a, b) for a, b, _ in arrays)
    assert any(not np.array_equal(a, c) for a, _, c in arrays)


# --- the class -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_class_is_graded_and_every_diagnosis_is_right(tmp_path):
    expected = write_class(tmp_path)
    graded = grade_folder(tmp_path)
    found = {key: tuple(f.name for f in report.findings) for key, report in graded.items()}
    assert found == {key: student.findings for key, student in expected.items()}


def test_the_class_is_as_large_as_it_claims():
    wrong = {(s.task, s.findings) for s in students() if s.findings}
    right = {s.source for s in students() if not s.findings}
    assert len(wrong) >= 50 and len(right) >= 20
    assert {s.task for s in students() if s.findings} == set(TASKS)


@pytest.mark.parametrize("student", students(), ids=lambda s: f"{s.task}-{s.name}")
def test_in_this_process_the_diagnosis_is_the_same(student):
    function = defined(student.source, student.task)
    report = diagnose(student.task, function, seed=5)
    assert tuple(finding.name for finding in report.findings) == student.findings


def test_two_mistakes_are_both_named():
    source = RIGHT["lora_linear_backward"].replace("dB = scale *", "dB =").replace("dy @ W0 + ", "")
    report = diagnose("lora_linear_backward", defined(source, "lora_linear_backward"))
    assert [f.name for f in report.findings] == ["dx without W0", "dB over scale"]
    with pytest.raises(WrongAnswer, match=r"not yet right\n  - Your dx lacks the frozen path") as e:
        report.raise_if_wrong()
    assert e.value._render_traceback_() == str(report).splitlines()  # no source for IPython


LORA = "lora_linear_backward"


@pytest.mark.parametrize(
    "task, old, new, sentences",
    [
        (LORA, "alpha / A", "alpha // A", ["Your scale is alpha // r, which drops"]),
        (
            LORA,
            "dA = rows",
            "dA = len(A) ** 0.5 * rows",
            ["dA equals the correct dA times sqrt(r)."],
        ),
        (LORA, "dA = rows", "dA = alpha / len(rows(x)) * rows", ["times alpha / N."]),
        (
            LORA,
            "dA = rows",
            "dA = 3.5 * rows",
            ["Your dA equals the correct dA times 3.5, on every"],
        ),
        (LORA, "dA = rows", "dA = x.flat[0] ** 2 * rows", ["dA equals the correct dA times 0."]),
        (
            LORA,
            "(du @ A)",
            "alpha * (du @ A)",
            ["part of your dx equals the correct part times alpha."],
        ),
        (
            "linear_backward",
            "dx, dW, db\n",
            "dW, db, dx\n",
            ["returns dW, db, dx: the order is dx"],
        ),
        (
            "linear_backward",
            "return dx, dW, db",
            "return db, dW / len(X), dx",
            [
                "returns db, dW, dx: the order is dx, dW, db.",
                "Your dW equals the correct dW times 1/N",
            ],
        ),
        (
            "attention_backward",
            "dq, dk, dv\n",
            "dk, dv, dq\n",
            ["returns dk, dv, dq: the order is"],
        ),
    ],
)
def test_a_factor_and_an_order_are_spelled(task, old, new, sentences):
    report = diagnose(task, defined(RIGHT[task].replace(old, new), task), seed=3)
    lines = str(report).splitlines()[1:]
    assert len(lines) == len(sentences) and all(s in line for s, line in zip(sentences, lines))


def test_an_input_put_back_to_rounding_is_told_from_one_left_changed():
    source = (
        "def numeric_gradient(f, x, h):\n    g = np.zeros_like(x)\n"
        "    for i in np.ndindex(x.shape):\n        x[i] += h; up = f(x)\n"
        "        x[i] -= 2 * h; down = f(x); x[i] += h\n"
        "        g[i] = (up - down) / (2 * h)\n    return g\n"
    )
    rounded = diagnose("numeric_gradient", defined(source, "numeric_gradient"))
    assert rounded.findings[0].name == "put back inexactly" and "last digit" in str(rounded)
    moved = source.replace("return g", "x[0] += 1e-9; return g")
    assert (
        diagnose("numeric_gradient", defined(moved, "numeric_gradient")).findings[0].name
        == "writes"
    )


@pytest.mark.parametrize(
    "old, new, name, sentence",
    [
        ("g.T @ X", "g.T @ X + 1", "value", r"Your dW differs .* by up to 1; .*no known misconc"),
        ("g.T @ X", "(g.T @ X)[:1]", "shape", r"Your dW has shape \(1, 3\), expected \(4, 3\)"),
        ("g.T @ X", "g.T @ X * np.nan", "not finite", "Your dW contains nan or inf"),
        ("dx, dW, db\n", "dx, dW, db, W\n", "count", "returned 4 values, expected 3: dx, dW, db"),
        ("return dx, dW, db", "", "raises", r"returned None: is its return statement missing\?$"),
        ("g.T @ X", "g.squeeze().T @ X.squeeze()", "raises", r"matmul.* where dy is \(1, 1\)"),
        ("return dx, dW, db", "return {'dx': dx}", "raises", "returned a dict: return the arrays"),
        ("return dx, dW, db", "yield dx", "raises", "returned a generator: return the arrays"),
        ("dx = dy @ W", "raise NotImplementedError", "raises", "raises NotImplementedError: write"),
        ("g.T @ X", "(g.T @ X) * (1 + 1e-6)", "value", "Your dW agrees in the first digits only"),
        ("g.sum(axis=0)", "g.sum(axis=0) + 0j", "dtype", "complex128, .* keep the dtype of"),
        ("g.sum(axis=0)", "g.sum(axis=0) / np.sum(x > 9, initial=1)", "dtype", "a NumPy scalar, "),
        ("dy @ W", "dy @ V", "raises", r"raises NameError: name 'V' is not defined"),
        ("return dx, dW, db", "return 'dx', dW, db", "raises", "has dtype <U2: arrays of numbers"),
    ],
)
def test_what_no_misconception_explains_is_described(old, new, name, sentence):
    report = diagnose("linear_backward", defined(LINEAR.replace(old, new), "linear_backward"))
    assert [f.name for f in report.findings] == [name]
    assert report.passed is False and re.search(sentence, str(report))


def test_an_exception_of_another_kind_is_not_explained_away():
    """Someone who leaves ignored tokens out, and misspells a name there, is told of the name."""
    source = RIGHT["cross_entropy_backward"].replace("    p[~kept] = 0", "    if any(~kept): P = Q")
    report = diagnose("cross_entropy_backward", defined(source, "cross_entropy_backward"))
    assert [f.name for f in report.findings] == ["raises"] and "name 'Q'" in str(report)


def test_an_error_within_the_tolerance_passes_and_one_beyond_it_does_not():
    def off_by(error):
        source = LINEAR.replace("g.T @ X", f"(g.T @ X) * {1 + error}")
        return diagnose("linear_backward", defined(source, "linear_backward")).passed

    assert off_by(1e-10) and not off_by(1e-8)


def test_unknown_tasks_and_outputs_are_refused_by_name():
    with pytest.raises(ValueError, match=r"no task 'conv': choose from .*linear_backward, "):
        diagnose("conv", abs)
    with pytest.raises(ValueError, match="linear_backward has no output 'dV'"):
        TASKS["linear_backward"].mistake("dV")


def test_a_new_task_needs_a_reference_and_draws():
    def double(x):
        return 2 * x

    task = Task("double", ("y",), double, lambda rng: [{"x": rng.standard_normal(3)}])
    try:
        task.usual_mistakes(but=("transposed",))
        assert diagnose("double", lambda x: x + x).passed
        assert diagnose("double", lambda x: -2 * x).findings[0].name == "y negated"
    finally:
        del TASKS["double"]


# --- isolation -----------------------------------------------------------------------------------

HOSTILE = {
    "hangs": ("while True: pass", "limit", "ran for more than 1 s"),
    "hangs and catches all": (
        "while True:\n        try: dx = 0\n        except: pass",
        "limit",
        "ran for more than 1 s",
    ),
    "hangs in a handler": (
        "while True:\n        try: 1 / 0\n        except:\n            while True: pass",
        "limit",
        "ran for more than 1 s",
    ),
    "sleeps": ("import time; time.sleep(60)", "limit", "ran for more than 1 s"),
    "exits": ("import sys; sys.exit(0)", "raises", "calls exit"),
    "ends the process": ("import os; os._exit(0)", "limit", "ended the process, with status 0"),
    "eats memory": ("a = [np.zeros(10**7) for _ in range(10**6)]", "limit", "more memory"),
    "prints without end": ("while True: print('x' * 10**6)", "limit", "prints or returns too much"),
    "returns too much": ("return np.zeros(10**6), 0, 0", "limit", "prints or returns too much"),
    "imports our solution": ("import lora_np.ops", "raises", "lora_np cannot be imported here"),
    "imports it by another way": (
        "import importlib; importlib.import_module('lora_np')",
        "raises",
        "cannot be read here",
    ),
    "imports torch": ("import torch", "raises", "torch cannot be imported here"),
    "starts a process": (
        "import subprocess; subprocess.run('ls')",
        "raises",
        "is not allowed",
    ),
    "forks": ("import os; os.fork()", "raises", "os.fork is not allowed"),
    "signals the grader": (
        "import os; os.kill(os.getppid(), 9)",
        "raises",
        "os.kill is not",
    ),
    "reads our files": ("open(OURS).read()", "raises", "cannot be read here"),
    "reads our files by bytes": ("open(OURS.encode()).read()", "raises", "cannot be read here"),
    "reads the course's notebooks": ("open(CLASS).read()", "raises", "cannot be read here"),
    "reads the gradebook": (
        "import sqlite3; sqlite3.connect('gradebook.db')",
        "raises",
        "sqlite3.connect is not allowed",
    ),
    "calls C": ("import ctypes; ctypes.pythonapi.system(b'ls')", "raises", "C functions are not"),
    "makes a folder elsewhere": ("import os; os.mkdir('../x')", "raises", "cannot be made"),
    "makes a file elsewhere": (
        "import os; os.open('../x', os.O_CREAT)",
        "raises",
        "outside the working folder",
    ),
    "is killed": (
        "import signal; signal.raise_signal(9)",
        "limit",
        "too much time or memory",
    ),
    "crashes": ("import ctypes; ctypes.string_at(0)", "limit", "crashed Python (signal 11)"),
    "leaves a pipe": (
        "import os; os.mkfifo('answer.json'); os._exit(0)",
        "no answer",
        "left no readable answer",
    ),
    "raises what cannot be printed": (
        "raise ValueError('\\ud800 \\x1b[2J')",
        "raises",
        r"ValueError: \ud800 \x1b[2J (line 5)",
    ),
    "reads the grader's memory": ("open('/proc/1/maps')", "raises", "cannot be read here"),
    "writes elsewhere": ("open('../x', 'w')", "raises", "outside the working folder"),
    "recurses": ("return linear_backward(dy, x, W)", "raises", "RecursionError"),
    "returns an object": ("return [[[1, 2], [3]], 0, 0]", "raises", "inhomogeneous"),
}


WAITS = (
    "hangs",
    "hangs and catches all",
    "hangs in a handler",
    "sleeps",
)  # for one second of CPU time, for three by the clock


@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=pytest.mark.slow) if w in WAITS else w for w in HOSTILE]
)
def test_a_submission_that(what):
    line, name, sentence = HOSTILE[what]
    ours = str(Path(naive.__file__).parents[1] / "lora_np" / "ops" / "linear.py")
    source = f"OURS, CLASS = {ours!r}, {class_of_50.__file__!r}\n" + LINEAR.replace(
        "    dx = dy @ W", f"    {line}\n    dx = dy @ W"
    )
    own = {**dict.fromkeys(WAITS, Limits(1)), "eats memory": Limits(memory_mib=512)}
    limits = own.get(what, SHORT)
    report = run_isolated(source, "linear_backward", limits)
    assert [finding.name for finding in report.findings] == [name]
    assert sentence in str(report)


PATCHES = """
import builtins
np.allclose = np.isclose = lambda *a, **k: True
np.array_equal = np.testing.assert_allclose = lambda *a, **k: True
np.isfinite = lambda a: np.zeros(np.shape(a), bool)
np.abs = lambda a: 0.0
builtins.abs = builtins.max = lambda *a, **k: 0.0
np.save = lambda *a, **k: None
"""


def test_patching_numpy_gains_nothing_and_loses_nothing():
    wrong = LINEAR.replace("g.T @ X", "g.T @ X / len(X)")
    report = run_isolated(PATCHES + wrong, "linear_backward", SHORT)
    assert [finding.name for finding in report.findings] == ["dW mean"]
    assert run_isolated(PATCHES + LINEAR, "linear_backward", SHORT).passed
    assert np.allclose(1, 2) is False  # nothing was patched here


def test_a_guess_of_the_answer_file_is_not_believed():
    """Code that writes an answer itself is measured like any other."""
    forged = (
        "    import json, os\n"
        "    open('answer.json', 'w').write(json.dumps([{'outputs': 3, 'changed': []}] * 5))\n"
        "    open('answer.npys', 'wb').write(b'\\x93NUMPY')\n    os._exit(0)\n"
    )
    source = LINEAR.replace("    dx = dy @ W\n", forged)
    report = run_isolated(source, "linear_backward", SHORT)
    assert [finding.name for finding in report.findings] == ["no answer"]


def test_a_pickle_in_the_answer_is_not_read(tmp_path):
    forged = (
        "    import json, os\n"
        "    open('answer.json', 'w').write(json.dumps([{'outputs': 1, 'changed': []}] * 5))\n"
        "    with open('answer.npys', 'wb') as f: np.save(f, np.array([{}]), allow_pickle=True)\n"
        "    os._exit(0)\n"
    )
    report = run_isolated(LINEAR.replace("    dx = dy @ W\n", forged), "linear_backward", SHORT)
    assert [finding.name for finding in report.findings] == ["no answer"]


def test_a_limit_hits_one_submission_and_the_rest_of_the_class_is_graded(tmp_path):
    folder = tmp_path / "linear_backward"
    folder.mkdir()
    lines = {"anna": "", "ben": "while True: pass", "carl": "import os; os._exit(3)", "dora": ""}
    for name, line in lines.items():
        body = f"    {line}\n    dx = dy @ W" if line else "    dx = dy @ W"
        (folder / f"{name}.py").write_text(LINEAR.replace("    dx = dy @ W", body))
    start = time.perf_counter()
    graded = grade_folder(tmp_path, replace(SHORT, seconds=1))
    assert {s: r.passed for (_, s), r in graded.items()} == {
        "anna": True, "ben": False, "carl": False, "dora": True,
    }  # fmt: skip
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    "chunks, name",
    [
        (["1 / 0", LINEAR], None),  # a cell that fails does not stop the next
        (["print(", LINEAR], None),
        ([LINEAR, "raise SystemExit"], None),
        (["x = 1"], "raises"),
        (["def linear_backward(: pass"], "raises"),
        ([""], "raises"),
    ],
)
def test_cells_are_run_one_by_one(chunks, name):
    report = run_isolated(chunks, "linear_backward", SHORT)
    assert [finding.name for finding in report.findings] == ([name] if name else [])
    if name:
        assert "linear_backward is defined" in str(report) or "SyntaxError" in str(report)


def test_the_line_of_an_exception_is_told():
    source = LINEAR.replace("dx = dy @ W", "dx = dy @ undefined")
    report = run_isolated(source, "linear_backward", SHORT)
    assert "NameError: name 'undefined' is not defined (line 4)" in str(report)


def test_the_child_gets_no_right_answer():
    """It imports nothing of ours, and its job names inputs alone."""
    child = Path(sys.modules["lora_np.course.sandbox.runner"].CHILD)
    code = f"import runpy, sys; runpy.run_path({str(child)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert not [name for name in done.stdout.split() if name.startswith("lora_np")]


def test_the_file_of_a_submission_may_be_given(tmp_path):
    path = tmp_path / "anna.py"
    path.write_text(LINEAR)
    assert run_isolated(path, "linear_backward").passed
    assert asdict(Limits()) == {"seconds": 10, "memory_mib": 1024, "output_mib": 8}


# --- the command ---------------------------------------------------------------------------------


def test_the_command_grades_a_folder(tmp_path, capsys):
    folder = tmp_path / "linear_backward"
    folder.mkdir()
    (folder / "anna.py").write_text(LINEAR)
    (folder / "ben.py").write_text(LINEAR.replace("g.T @ X", "X.T @ g"))
    assert cli.main(["grade", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["linear_backward", "anna", "right"]
    assert lines[1].split() == ["linear_backward", "ben", "not", "yet", "right"]
    assert lines[2].strip().startswith("Your dW is the transpose of the correct dW")
    assert lines[3].startswith("2 submissions, 1 right, in ")


def test_the_command_names_what_is_missing(tmp_path, capsys):
    assert cli.main(["grade", str(tmp_path)]) == 2
    assert "contains no TASK/STUDENT.py" in capsys.readouterr().err
    (tmp_path / "essay").mkdir()
    (tmp_path / "essay" / "anna.py").write_text("")
    assert cli.main(["grade", str(tmp_path)]) == 2
    assert "there is no task 'essay'" in capsys.readouterr().err
