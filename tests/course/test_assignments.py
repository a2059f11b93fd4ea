"""The assignments: released without solutions, graded, and given back, by nbgrader's own commands.

One class goes through all of it once (``released``, ``graded``); the tests look at what came out.
"""

import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lora_np
from lora_np import run_isolated
from tests.class_of_50 import RIGHT

pytestmark = pytest.mark.course

REPOSITORY = Path(lora_np.__file__).parents[1]
COURSE = REPOSITORY / "notebooks" / "assignments"
NAMES = sorted(path.name for path in (COURSE / "source").iterdir())
LORA = "2_lora"


def nbgrader(folder, *arguments):
    """Run one of nbgrader's commands in a course's folder; return what it said."""
    command = [sys.executable, "-m", "nbgrader", *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # alembic
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def text(cell):
    return "".join(cell["source"])


def flag(cell, name):
    return cell["metadata"].get("nbgrader", {}).get(name)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder of a course whose assignments are released."""
    folder = tmp_path_factory.mktemp("course") / "lora"
    shutil.copytree(COURSE, folder)
    with open(folder / "nbgrader_config.py", "a", encoding="utf-8") as config:
        config.write("\nfrom lora_np.course import Limits\nDiagnose.limits = Limits(seconds=2)\n")
    nbgrader(folder, "generate_assignment", "*")
    return folder


def solution(cell):
    """Return the source of a cell of the source notebook as a student would have it."""
    lines = [line for line in text(cell).splitlines() if "### " not in line]
    return "\n".join(lines)


def hand_in(folder, student, name, change=lambda nb: None, answers=True):
    """Fill the released notebook with the right answers, change something, hand it in."""
    right = read(COURSE / "source" / name / f"{name}.ipynb")
    solutions = {flag(c, "grade_id"): solution(c) for c in right["cells"] if flag(c, "solution")}
    nb = read(folder / "release" / name / f"{name}.ipynb")
    for cell in nb["cells"]:
        if answers and flag(cell, "solution"):
            cell["source"] = solutions[flag(cell, "grade_id")]
    change(nb)
    path = folder / "submitted" / student / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(nb), encoding="utf-8")


def cell_of(nb, grade_id):
    return next(cell for cell in nb["cells"] if flag(cell, "grade_id") == grade_id)


def replacing(grade_id, old, new):
    """Return a change of one cell's text."""

    def change(nb):
        cell = cell_of(nb, grade_id)
        assert old in text(cell)
        cell["source"] = text(cell).replace(old, new)

    return change


def cheat(nb):
    """Patch what a check in the same process would use, and answer wrongly."""
    replacing("answer-forward", "scale *", "")(nb)
    cell = cell_of(nb, "answer-forward")
    cell["source"] = (
        "np.allclose = lambda *a, **k: True\ncheck = lambda *a, **k: None\n"
        "import lora_np.course.judge as c\nc.judge = lambda *a: None\n"
    ) + cell["source"]


def without_tests(nb):
    nb["cells"] = [
        cell for cell in nb["cells"] if not str(flag(cell, "grade_id")).startswith("test")
    ]


def forged(nb):
    """Answer nothing, and turn the tests into cells that pass, worth a hundred points."""
    for cell in nb["cells"]:
        if str(flag(cell, "grade_id")).startswith("test"):
            cell["source"] = "print('lora_linear_forward: right')"
            cell["metadata"]["nbgrader"].update(points=100, locked=False)
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "right"}]
        if str(flag(cell, "grade_id")).startswith("answer"):
            cell["source"] = "pass"


def own_cell(nb, source, outputs=()):
    """Put a cell of the student's own before the answers."""
    cell = {"cell_type": "code", "id": "own", "metadata": {}, "source": source}
    nb["cells"].insert(2, {**cell, "execution_count": None, "outputs": list(outputs)})


def helper_elsewhere(nb):
    """Put a helper into a cell that is no answer, with a loop that nobody waits for."""
    replacing("answer-forward", "(x * mask) @", "masked(x, mask) @")(nb)
    own_cell(nb, "def masked(x, mask):\n    return x * mask\nwhile masked(1, 1): pass")


def computed_elsewhere(nb):
    """Need a number that a cell of one's own computes: it is not run."""
    replacing("answer-forward", "(x * mask) @", "(x * mask * ONE) @")(nb)
    own_cell(nb, "ONE = np.ones(1)[0]")


ALERT = "<script>alert(1)</script>"
HOSTILE_MARKDOWN = f"""It is $a<b$ and `x<y`, **so**: {ALERT} <img src=x onerror=alert(2)>
[here](javascript:alert(3)) <iframe srcdoc="{ALERT}"></iframe> <svg onload=alert(4)>

| h | error |
|---|---|
| 1 | 2 |

![drawn](attachment:a.png)
"""
HOSTILE_OUTPUTS = [
    {"text/html": f"<b>bold</b>{ALERT}"},
    {"application/javascript": "alert(5)"},
    {"text/markdown": ALERT},
    {"image/png": "AAAA"},
]


def scripts(nb):
    """Put scripts wherever a page may show them: in the written answer, in saved outputs."""
    answer = next(c for c in nb["cells"] if c["cell_type"] == "markdown" and flag(c, "solution"))
    answer["source"] = HOSTILE_MARKDOWN
    answer["attachments"] = {"a.png": {"image/png": "AAAA"}}
    size = {"image/png": {"width": "1 onerror=alert(6)"}}
    shown = {"output_type": "display_data", "metadata": size}
    own_cell(nb, "1", [{**shown, "data": data} for data in HOSTILE_OUTPUTS])


FORWARD, BACKWARD = "answer-forward", "answer-backward"
CLASS = {  # of the second assignment: the change, and the points for forward (3) and backward (6)
    "anna": (lambda nb: None, 3, 6),
    "scale": (replacing(BACKWARD, "scale * (dy @ B)", "dy @ B"), 3, 0),
    "swapped": (replacing(BACKWARD, "return dx, dA, dB", "return dx, dB, dA"), 3, 0),
    "masked": (replacing(FORWARD, "(x * mask)", "x"), 0, 6),
    "hangs": (replacing(FORWARD, "scale =", "while True: pass\n    scale ="), 0, 6),
    "exits": (replacing(FORWARD, "scale =", "import os; os._exit(0)\n    scale ="), 0, 6),
    "breaks": (replacing(FORWARD, "def lora", "def def lora"), 0, 6),
    "calls": (
        replacing(FORWARD, "scale =", "from lora_np import ops\n    scale ="), 0, 6,
    ),
    "cheats": (cheat, 0, 6),
    "magics": (
        replacing(FORWARD, "def lora", "%matplotlib inline\nnp.dot?\ndisplay(3)\ndef lora"), 3, 6,
    ),
    "elsewhere": (helper_elsewhere, 3, 6),
    "computes": (computed_elsewhere, 0, 6),
    "scripts": (scripts, 3, 6),
    "removes": (without_tests, 3, 6),
    "forges": (forged, 0, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def graded(released):
    """The same folder when the class has handed in, is graded, and has its feedback."""
    for name in NAMES:
        if name != LORA:
            hand_in(released, "anna", name)
    hand_in(released, "blank", "1_linear", answers=False)
    for student, (change, _, _) in CLASS.items():
        hand_in(released, student, LORA, change)
    nbgrader(released, "autograde", "*")
    nbgrader(released, "generate_feedback", "*")
    return released


def scores(folder, student, name):
    """Return the points of every test cell by its name."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as book:
        notebook = book.find_submission_notebook(name, name, student)
        return {grade.name: grade.auto_score for grade in notebook.grades if "test" in grade.name}


def feedback(folder, student, name):
    return (folder / "feedback" / student / name / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "cell, same_as",
    [
        ("%%time\nx = 7", "x = 7"),
        ("%matplotlib inline\n!ls\nx = 7", "x = 7"),
        ("np.einsum?\nx = 7", "x = 7"),
        ("x = !ls", "x = None"),
        ("if x:\n    %timeit x\nx = 7", "if x:\n    None\nx = 7"),
        ("x = (7\n     != 2)", "x = 7 != 2"),
        ("x = (7\n     % 2)", "x = 7 % 2"),
        ("x = '''\n% !\n!ls'''", "x = '\\n% !\\n!ls'"),
        ("display(np.ones(2)); x = 7", "display(np.ones(2)); x = 7"),
    ],
)
def test_a_cell_is_read_as_ipython_reads_it(cell, same_as):
    from lora_np.course.nbgrader import without_magics

    statements = [ast.dump(node) for node in ast.parse(without_magics(cell)).body]
    idle = {ast.dump(node) for node in ast.parse("None\npass").body}
    assert [s for s in statements if s not in idle] == [
        ast.dump(node) for node in ast.parse(same_as).body
    ]


@pytest.mark.parametrize("old", ["course.course", "diagnose.course"])
def test_a_course_that_was_copied_earlier_finds_what_its_settings_name(old):
    from traitlets.utils.importstring import import_item

    from lora_np.course.nbgrader import Diagnose, markdown_to_safe_html

    assert import_item(f"lora_np.{old}.Diagnose") is Diagnose
    assert import_item(f"lora_np.{old}.markdown_to_safe_html") is markdown_to_safe_html


# --- what students get ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_released_notebook_holds_no_solution_and_no_hidden_test(released, name):
    source = read(COURSE / "source" / name / f"{name}.ipynb")
    given = (released / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    cells = {cell["id"]: text(cell) for cell in json.loads(given)["cells"]}
    assert "seed=" not in given and "BEGIN" not in given and "SOLUTION" not in given
    for cell in source["cells"]:
        if not flag(cell, "solution"):
            continue
        body = [line.strip() for line in solution(cell).splitlines()]
        for line in body:
            if len(line) > 20 and not line.startswith(("def ", '"""')):
                assert line not in given
        assert "YOUR " in cells[cell["id"]]
        assert re.findall(r"^def .*", text(cell), re.M) == re.findall(
            r"^def .*", cells[cell["id"]], re.M
        )


@pytest.mark.parametrize("name", NAMES)
def test_points_and_tasks_are_those_of_the_text(name):
    cells = read(COURSE / "source" / name / f"{name}.ipynb")["cells"]
    asked = [c for c in cells if c["cell_type"] == "markdown" and not flag(c, "solution")]
    told = [int(n) for cell in asked for n in re.findall(r"\((\d+) points", text(cell))]
    given = [flag(cell, "points") for cell in cells if flag(cell, "grade")]
    assert told == given
    checked = [t for cell in cells for t in re.findall(r'^check\("(\w+)"\)$', text(cell), re.M)]
    assert checked and set(checked) <= set(RIGHT)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_notebook_runs_as_it_is(name, tmp_path):
    """In a kernel, as an instructor runs it: its solutions pass its checks."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(COURSE / "source" / name / f"{name}.ipynb", as_version=4)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    try:
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    said = [o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("right" in line for line in said) >= 1


# --- what the grader finds -----------------------------------------------------------------------


@pytest.mark.parametrize("student", CLASS)
def test_each_student_has_the_points_they_earned(graded, student):
    _, forward, backward = CLASS[student]
    assert scores(graded, student, LORA) == {
        "test-lora-linear-forward": forward,
        "test-lora-linear-backward": backward,
    }


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_have_all_points_and_blank_ones_none(graded, name):
    cells = read(COURSE / "source" / name / f"{name}.ipynb")["cells"]
    full = {
        flag(c, "grade_id"): flag(c, "points")
        for c in cells
        if flag(c, "grade") and not flag(c, "solution")
    }
    assert scores(graded, "anna", name) == full
    if name == "1_linear":
        assert set(scores(graded, "blank", name).values()) == {0}


@pytest.mark.parametrize(
    "student, diagnosis",
    [
        ("scale", "Your dA equals the correct dA times 1/scale: the scale is missing"),
        ("scale", "Your dx has no scale on the adapter's path"),
        ("swapped", "Your function returns dx, dB, dA: the order is dx, dA, dB"),
        ("masked", "Your y ignores the mask: the input of the adapter is x * mask"),
        ("hangs", "Your code ran for more than 2 s"),
        ("exits", "Your code ended the process, with status 0"),
        ("breaks", "SyntaxError"),
        ("calls", "lora_np cannot be imported here: write the formula yourself"),
        ("cheats", "lora_np cannot be imported here"),
        ("forges", "no function called lora_linear_forward is defined"),
    ],
)
def test_feedback_has_the_diagnosis_and_no_hidden_test(graded, student, diagnosis):
    page = html.unescape(feedback(graded, student, LORA))
    assert diagnosis in page
    assert "HIDDEN TESTS" not in page and "seed=" not in page and "Traceback (most" not in page


def test_what_is_computed_in_a_cell_that_is_no_answer_is_said_to_be_there(graded):
    page = html.unescape(feedback(graded, "computes", LORA))
    assert "name 'ONE' is not defined" in page and "put what you need into the answer cell" in page


@pytest.mark.parametrize(
    "own, taken",
    [
        ("def help(a):\n    return a\nplot(help(1))", ["def help(a):\n    return a"]),
        ("help = lambda a: a", ["help = lambda a: a"]),
        ("x = 1\n@wraps\ndef help(): pass", ["\n@wraps\ndef help(): pass"]),
        ("from scipy import help\nimport slow", ["from scipy import help"]),
        ("from scipy.special import *", ["from scipy.special import *"]),
        ("import numpy.linalg as help", ["import numpy.linalg as help"]),
        ("E = -1 / 3; plot()\ndef help(): E", ["E = -1 / 3", "\ndef help(): E"]),
        ("help = plot()", []),
        ("if True:\n    def help(): pass", []),
        ("def unused(): pass", []),
        ("def help(:", []),
    ],
)  # fmt: skip
def test_of_a_students_own_cells_the_definitions_that_answers_need_are_taken(own, taken):
    from lora_np.course.nbgrader import definitions

    assert definitions([own], ["def answer(a): return help(a)"]) == taken


@pytest.mark.parametrize(
    "source",
    [
        "x = 1" + " + 1" * 10_000,  # RecursionError in ast.parse
        "x = " + "-" * 100_000 + "1",  # MemoryError
        "x = '\ud800'",
        "x = 1\0",
        "x = (",
        "x = 1 #" + "." * 2**14,
    ],
)
def test_a_cell_that_cannot_be_parsed_is_left_to_the_child(source):
    from lora_np.course.nbgrader import checks_in, definitions, without_magics

    assert definitions([source, "y = 2"], ["x + y"]) == ["y = 2"]
    assert checks_in(source) == [] and isinstance(without_magics(source), str)
    assert not run_isolated([without_magics(source)], "stable_rank").passed


def test_a_definition_that_was_tried_elsewhere_does_not_replace_the_answer():
    from lora_np.course.nbgrader import definitions

    answers = [RIGHT["lora_linear_forward"]]
    own = ["def lora_linear_forward(*a): return 0"]
    assert run_isolated([*definitions(own, answers), *answers], "lora_linear_forward").passed


def test_no_script_of_a_submission_reaches_the_page_and_its_text_does(graded):
    page = feedback(graded, "scripts", LORA)
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    assert "alert" not in "".join(script.text for script in soup.find_all("script"))
    attributes = [(n, str(v)) for tag in soup.find_all(True) for n, v in tag.attrs.items()]
    assert not [a for a in attributes if a[0].startswith("on") or "alert" in a[1]]
    assert not soup.find_all(["iframe", "svg"])
    assert "$a&lt;b$" in page and "<strong>so</strong>" in page and "<code>x&lt;y</code>" in page
    assert soup.find("td", string="2") and soup.find("b", string="bold")
    assert soup.find("img", alt="drawn")["src"] == "data:image/png;base64,AAAA"
    assert "<script>alert(1)</script>" in soup.text  # shown as it was typed


def test_what_students_drew_is_left_for_the_reader(graded):
    """A submission's own outputs survive grading; those of its test cells do not."""
    nb = read(graded / "autograded" / "forges" / LORA / f"{LORA}.ipynb")
    test = cell_of(nb, "test-lora-linear-forward")
    assert [output["output_type"] for output in test["outputs"]] == ["error"]
