"""Grade notebooks with nbgrader: check their answers without a kernel, and show them safely.

:class:`Diagnose` replaces the preprocessor Execute of nbgrader. No part of a submission runs in the
grader or in a kernel. The text of the answer cells goes to :func:`lora_np.course.run_isolated`,
together with the definitions from other cells that the answers need. Of the test cells, only the
calls ``check("task", seed=3)`` are read. So a hang, an exit or a patched function fails one cell of
one student. The rest of a notebook is not graded.

:func:`markdown_to_safe_html` replaces the filter markdown2html of nbconvert, so that pages that
show an answer run no script from the answer.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import bleach  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
from IPython.core.inputtransformer2 import (  # pyright: ignore[reportMissingImports]
    TransformerManager,
)
from jinja2 import pass_context  # pyright: ignore[reportMissingImports]
from nbconvert.exporters import HTMLExporter  # pyright: ignore[reportMissingImports]
from nbformat.v4 import new_output  # pyright: ignore[reportMissingImports]
from nbgrader.preprocessors import NbGraderPreprocessor  # pyright: ignore[reportMissingImports]
from nbgrader.utils import is_grade, is_locked, is_solution  # pyright: ignore[reportMissingImports]

from lora_np.course.report import Report
from lora_np.course.sandbox.runner import Limits, run_isolated

LONGEST_CELL = 2**14  # characters; IPython may take minutes to read longer ones
NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what ast.parse raises
MARKDOWN_TAGS = """
a blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr img li ol p pre span strong sub sup
table tbody td th thead tr ul
"""


class Diagnose(NbGraderPreprocessor):
    """Replace the output of every test cell by the result of its checks."""

    limits = Limits()

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        """Check the answers in `nb`. An output that is an error earns no points in nbgrader."""
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        answers = [without_magics(c.source) for c in code if is_solution(c) and not is_grade(c)]
        own = [c for c in code if not is_locked(c) and (is_grade(c) or not is_solution(c))]
        needed = definitions([without_magics(c.source) for c in own], answers)
        for cell in code:
            if is_grade(cell) and not is_solution(cell):
                cell.outputs = [as_output(self.reports([*needed, *answers], cell.source))]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = {}  # an image's width goes into the page without quotes
        return nb, resources

    def reports(self, answers: list[str], source: str) -> list[Report]:
        """Return the reports on the checks of a test cell, up to the first wrong answer."""
        found: list[Report] = []
        for task, seed in checks_in(source):
            found.append(run_isolated(answers, task, self.limits, seed=seed))
            if not found[-1].passed:
                break
        return found


def as_output(reports: list[Report]) -> Any:
    """Return the output of a test cell: the diagnosis of a wrong answer, or all reports."""
    if not reports:
        text = "this cell contains no check"
        return new_output("error", ename="NoCheck", evalue=text, traceback=[text])
    if not reports[-1].passed:
        lines = str(reports[-1]).splitlines()
        if "NameError" in lines[-1]:
            lines.append("  - From cells that are not answers, the grader takes only def, class, ")
            lines[-1] += "import and plain constants: put what you need into the answer cell."
        return new_output("error", ename="WrongAnswer", evalue=lines[0], traceback=lines)
    text = "".join(f"{line}\n" for line in dict.fromkeys(map(str, reports)))
    return new_output("stream", name="stdout", text=text)


def definitions(own: list[str], answers: list[str]) -> list[str]:
    """Return the definitions from the student's own cells that the answers need.

    Parameters
    ----------
    own : list of str
        The source of the cells that are not answers. They may plot, train, or contain an older
        attempt.
    answers : list of str
        The source of the answer cells.

    Returns
    -------
    list of str
        Every def, class, import and plain constant that the answers name, directly or through
        another definition. Line numbers stay those of the cell. Cells of more than 16 KiB are left
        out.
    """
    short = [source for source in own if len(source) <= LONGEST_CELL]
    found = [item for source in short for item in _definitions_in(source)]
    wanted = {"*"} | {name for source in answers for name in _words(source)}
    taken: set[int] = set()
    while new := [i for i, (names, _) in enumerate(found) if i not in taken and names & wanted]:
        taken.update(new)
        wanted.update(name for i in new for name in _words(found[i][1]))
    return [found[i][1] for i in sorted(taken)]


def _words(source: str) -> set[str]:
    """Return every word of a text that may be a name; extra words do no harm."""
    return set(re.findall(r"\w+", source))


def _definitions_in(source: str) -> list[tuple[set[str], str]]:
    """Return the names and the text of every definition at the top level of a cell."""
    try:
        body = ast.parse(source).body
    except NO_PYTHON:
        return []
    found = []
    for node in body:
        if names := _bound(node):
            for decorator in getattr(node, "decorator_list", [])[:1]:
                node.lineno, node.col_offset = decorator.lineno, 0
            text = ast.get_source_segment(source, node) or ""
            found.append((names, "\n" * (node.lineno - 1) + text))
    return found


def _bound(node: ast.stmt) -> set[str]:
    """Return the names that a def, class, import or plain constant binds, otherwise none."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) for t in node.targets):
        plain = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.Tuple, ast.List)
        parts = (ast.operator, ast.unaryop, ast.expr_context)
        if isinstance(node.value, ast.Lambda) or all(
            isinstance(part, (*plain, *parts)) for part in ast.walk(node.value)
        ):
            return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return set()


@pass_context
def markdown_to_safe_html(context: Any, source: str) -> str:
    """Convert Markdown to HTML that runs no script. Forbidden tags are shown as they were typed.

    ``nbgrader_config.py`` replaces the filter markdown2html of nbconvert by this function, because
    the pages of nbgrader ignore ``sanitize_html`` for written answers. Formulas stay as text.

    Parameters
    ----------
    context : jinja2.runtime.Context
        The context of the template, with the cell and its attached images.
    source : str
        Markdown.
    """
    page = HTMLExporter.markdown2html(HTMLExporter(), context, source)
    protocols = ("http", "https", "mailto", "data")
    return bleach.clean(page, MARKDOWN_TAGS.split(), _harmless, protocols)


def _harmless(tag: str, name: str, value: str) -> bool:
    """Return whether an attribute may stay: of a link, of an image, or a colour of code."""
    if name == "src" or (tag == "a" and name == "href"):
        embedded = value.strip().lower().startswith("data:")
        return not embedded or (tag == "img" and value.startswith("data:image/"))
    return name in ("alt", "title") or (name == "class" and tag in ("div", "pre", "span"))


def checks_in(source: str) -> list[tuple[str, int]]:
    """Return (task, seed) for every ``check("task", seed=3)`` in a cell. The default seed is 0.

    Parameters
    ----------
    source : str
        The source of a test cell. It is parsed, not run.
    """
    found = []
    try:
        tree = ast.parse(without_magics(source))
    except NO_PYTHON:
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "check":
            task = ast.literal_eval(node.args[0])
            seeds = [ast.literal_eval(k.value) for k in node.keywords if k.arg == "seed"]
            found.append((task, seeds[0] if seeds else 0))
    return found


def without_magics(source: str) -> str:
    """Return the source of a cell without the lines that are IPython's, not Python's.

    IPython decides which lines these are, because a line that begins with != may continue a
    comparison. If IPython fails, the source is returned unchanged, and Python reports the error.
    """
    if len(source) > LONGEST_CELL:
        return source
    lines = source.splitlines()
    if source.startswith("%%"):  # %%time, say: the rest is Python
        lines[0] = "pass"
    try:
        plain = TransformerManager().transform_cell("\n".join(lines))
    except Exception:  # for example, IPython gives up after 500 such lines
        return source
    return re.sub(r"get_ipython\(\)\..*", "None", plain)
