"""Without processes, as in a browser: the same diagnoses, and nothing is left changed."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from lora_np.course import Limits, WrongAnswer, checker, diagnose, run_isolated
from lora_np.course.grade import grade_folder
from lora_np.crew import machine
from tests.class_of_50 import RIGHT, students, write_class
from tests.course.test_diagnose import HOSTILE, LINEAR, PATCHES

CLASS = students()
# What only a process of its own stops: calls that never return, memory, crashes, other files.
NOT_HERE = {
    *("sleeps", "eats memory", "is killed", "crashes", "calls C", "forks", "signals the grader"),
    *("starts a process", "imports it by another way", "leaves a pipe"),
    *(what for what in HOSTILE if what.startswith(("reads", "writes", "makes", "opens"))),
}


@pytest.fixture
def page(monkeypatch):
    """A Python that cannot start a process."""

    def refuse(*_, **__):
        raise OSError("emscripten does not support processes.")

    monkeypatch.setattr(machine, "has_processes", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", refuse)


def names(report):
    return tuple(finding.name for finding in report.findings)


@pytest.mark.parametrize("student", CLASS, ids=[f"{s.task}-{s.name}" for s in CLASS])
def test_each_of_the_class_gets_the_diagnosis(student, page):
    report = run_isolated(student.source, student.task)
    assert names(report) == student.findings and report.in_page
    space = {"np": np, "math": math}
    exec(student.source, space)
    assert diagnose(student.task, space[student.task]) == report  # check() says the same


@pytest.mark.parametrize("what", [what for what in HOSTILE if what not in NOT_HERE])
def test_a_hostile_submission_gets_the_diagnosis(what, page):
    line, name, sentence = HOSTILE[what]
    source = LINEAR.replace("    dx = dy @ W", f"    {line}\n    dx = dy @ W")
    report = run_isolated(source, "linear_backward", Limits(1, output_mib=1))
    assert names(report) == (name,)
    assert sentence.replace("(line 5)", "(line 4)") in str(report)


def test_what_is_not_guarded_in_a_page_is_listed_by_names_that_exist():
    assert set(HOSTILE) > NOT_HERE and {"hangs", "prints without end"} <= set(HOSTILE) - NOT_HERE


POISON = """
import builtins, os, sys, warnings
np.float = float
np.seterr(all="raise"); np.set_printoptions(precision=1)
warnings.simplefilter("error")
os.environ["POISON"] = "1"
os.chdir("/"); sys.path.insert(0, "/poison")
sys.setrecursionlimit(5000)
sys.stdout = sys.stderr = None
sys.modules["math"] = None
del np.linalg.svd
math.sqrt = lambda x: 0.0
open = None
import numpy.polynomial.hermite_e
"""


def shared():
    """What all code of this process shares, as far as it can be compared."""
    return {
        "names": {m: dict(vars(sys.modules[m])) for m in ("numpy", "numpy.linalg", "math")},
        "builtins": {n: id(v) for n, v in vars(sys.modules["builtins"]).items()},
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.getrecursionlimit(), os.getcwd()),
        "path": (list(sys.path), dict(os.environ), np.geterr(), np.get_printoptions()),
        "modules": {n: id(m) for n, m in sys.modules.items() if n.startswith(("numpy", "math"))},
    }


def same_but_for_imports(before, after):
    """Whether nothing is another thing; submodules of numpy may have been loaded since."""
    assert before.keys() == after.keys()
    for what in before.keys() - {"modules", "names"}:
        assert before[what] == after[what], what
    assert before["modules"].items() <= after["modules"].items()
    for module, names in before["names"].items():
        now = after["names"][module]
        assert all(now[name] is value for name, value in names.items()), module
        assert all(hasattr(now[name], "__path__") or "." in now[name].__name__
                   for name in now.keys() - names.keys()), module  # fmt: skip


@pytest.mark.parametrize("change", [POISON, PATCHES], ids=["poison", "patches"])
@pytest.mark.parametrize("where", ["a cell", "the function"])
def test_what_a_students_code_changes_is_restored(change, where, page):
    if where == "the function":
        body = "".join(f"    {line}\n" for line in change.splitlines())
        source = LINEAR.replace("    dx = dy @ W", f"    global np, math\n{body}    dx = dy @ W")
        cells = [source]
    else:
        cells = [change, LINEAR]
    before = shared()
    run_isolated(cells, "linear_backward")
    same_but_for_imports(before, shared())
    assert run_isolated(LINEAR, "linear_backward").passed


def test_an_endless_loop_is_stopped_in_a_cell_in_the_function_and_in_a_check(page, capsys):
    limits = Limits(0.2)
    for cells in (
        ["while True: pass", LINEAR],
        [LINEAR.replace("    dx = dy @ W", "    while True: dx = dy @ W")],
        [LINEAR.replace("    dx = dy @ W", "    while True: np.tile(dy, 2)")],
    ):
        report = run_isolated(cells, "linear_backward", limits)
        assert names(report) == ("limit",) and "ran for more than 0.2 s" in str(report)
    assert sys.gettrace() is None or "coverage" in sys.modules


def test_a_check_says_that_it_is_not_for_grades(page, capsys, monkeypatch):
    monkeypatch.setattr("lora_np.course.notebook.Limits", lambda: Limits(0.2))

    space = {}
    exec("def stable_rank(M):\n    while True: pass", space)
    check = checker(space)
    said = capsys.readouterr().out
    assert "not for grades" in said and "after 0.2 s" in said and "Kernel > Restart" in said
    with pytest.raises(WrongAnswer, match="not for grades") as caught:
        check("stable_rank")
    assert "ran for more than 0.2 s" in str(caught.value)
    exec(RIGHT["stable_rank"], {"np": np}, space)
    check("stable_rank")
    assert capsys.readouterr().out == "stable_rank: right (in this page; not for grades)\n"


def test_natively_a_check_says_nothing_of_it(capsys):
    space = {}
    exec(RIGHT["stable_rank"], {"np": np}, space)
    checker(space)("stable_rank")
    assert capsys.readouterr().out == "stable_rank: right\n"


@pytest.mark.slow
def test_every_word_of_a_diagnosis_is_that_of_a_process_of_its_own(tmp_path, monkeypatch):
    write_class(tmp_path)
    apart = grade_folder(tmp_path)
    monkeypatch.setattr(machine, "has_processes", lambda: False)
    here = grade_folder(tmp_path)
    assert len(here) == len(CLASS) and all(report.in_page for report in here.values())
    assert {key: report.findings for key, report in here.items()} == {
        key: report.findings for key, report in apart.items()
    }


def test_a_folder_is_graded_without_processes_and_threads(tmp_path, page):
    (tmp_path / "stable_rank").mkdir()
    (tmp_path / "stable_rank" / "anna.py").write_text(RIGHT["stable_rank"])
    ((_, report),) = grade_folder(tmp_path).items()
    assert report.passed and report.in_page
