"""nbgrader's part: check the answers of a notebook without running it, and show them safely.

:class:`Diagnose` takes the place of nbgrader's Execute. No part of a submission runs in the grader
or in a kernel: the text of its answer cells, and of the student's other cells the definitions that
these need, goes to :func:`lora_np.course.run_isolated`; in its test cells only the calls
``check("task", seed=3)`` are read. So a hang, an exit or a patched function fails one cell of one
student. What else a notebook holds is not graded.

:func:`markdown_to_safe_html` takes the place of nbconvert's markdown2html, so that the pages which
show an answer run no script of it.
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

LONGEST_CELL = 2**14  # characters; over longer ones, IPython may take minutes
NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what ast.parse raises
MARKDOWN_TAGS = """
a blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr img li ol p pre span strong sub sup
table tbody td th thead tr ul
"""


class Diagnose(NbGraderPreprocessor):
    """Give every test cell of a notebook the output that its checks earn."""

    limits = Limits()

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        """Check the answers in `nb`; nbgrader reads the outputs: an error is worth no points."""
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
        """Return the reports of a test cell's checks, up to the first that is not right."""
        found: list[Report] = []
        for task, seed in checks_in(source):
            found.append(run_isolated(answers, task, self.limits, seed=seed))
            if not found[-1].passed:
                break
        return found


def as_output(reports: list[Report]) -> Any:
    """Return the output of a test cell: the last report, if it is not right, or that all are."""
    if not reports:
        text = "this cell holds no check"
        return new_output("error", ename="NoCheck", evalue=text, traceback=[text])
    if not reports[-1].passed:
        lines = str(reports[-1]).splitlines()
        if "NameError" in lines[-1]:
            lines.append("  - Of other cells than answers only def, class, import and plain ")
            lines[-1] += "constants are taken: put what the answer needs into its cell."
        return new_output("error", ename="WrongAnswer", evalue=lines[0], traceback=lines)
    text = "".join(f"{line}\n" for line in dict.fromkeys(map(str, reports)))
    return new_output("stream", name="stdout", text=text)


def definitions(own: list[str], answers: list[str]) -> list[str]:
    """Return what the answers need of the student's own cells: definitions, one a chunk.

    Parameters
    ----------
    own : list of str
        Python text of the cells that are no answers. They may plot, train, or hold an older try.
    answers : list of str
        Of the answer cells.

    Returns
    -------
    list of str
        Every def, class, import and plain constant that the answers name, or that one of these
        names in turn. The line numbers are those of the cell. Cells of more than 16 KiB are left
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
    """Return what may be a name in a text: a word too many takes a definition too many."""
    return set(re.findall(r"\w+", source))


def _definitions_in(source: str) -> list[tuple[set[str], str]]:
    """Return, for every definition at a cell's left margin, the names it binds and its text."""
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
    """Return the names that a def, class, import or plain constant binds; of others none."""
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
    """Return Markdown as HTML of which nothing runs: other tags are shown as they were typed.

    It takes the place of nbconvert's filter of that name (nbgrader_config.py), as nbgrader's pages
    of feedback and of the Formgrader do not heed ``sanitize_html`` for written answers. Mathematics
    is text to it.

    Parameters
    ----------
    context : jinja2.runtime.Context
        Holds the cell, for its attached images.
    source : str
    """
    page = HTMLExporter.markdown2html(HTMLExporter(), context, source)
    protocols = ("http", "https", "mailto", "data")
    return bleach.clean(page, MARKDOWN_TAGS.split(), _harmless, protocols)


def _harmless(tag: str, name: str, value: str) -> bool:
    """Return whether an attribute may stay: a link, an image, the colours of code."""
    if name == "src" or (tag == "a" and name == "href"):
        embedded = value.strip().lower().startswith("data:")
        return not embedded or (tag == "img" and value.startswith("data:image/"))
    return name in ("alt", "title") or (name == "class" and tag in ("div", "pre", "span"))


def checks_in(source: str) -> list[tuple[str, int]]:
    """Return (task, seed) of every ``check("task", seed=3)`` in a cell; the seed is 0 if not given.

    Parameters
    ----------
    source : str
        Of a test cell. It is read, not run.
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
    """Return a cell without IPython's own lines, which are no Python.

    IPython says which these are: a line that begins with != may be half of a comparison. Where it
    cannot, the cell is returned as it is, and Python says what is wrong with it.
    """
    if len(source) > LONGEST_CELL:
        return source
    lines = source.splitlines()
    if source.startswith("%%"):  # %%time, say: the rest is Python
        lines[0] = "pass"
    try:
        plain = TransformerManager().transform_cell("\n".join(lines))
    except Exception:  # it gives up after 500 such lines, say
        return source
    return re.sub(r"get_ipython\(\)\..*", "None", plain)
