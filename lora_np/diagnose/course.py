"""nbgrader's part: check the answers of a notebook without running it.

:class:`Diagnose` takes the place of nbgrader's Execute. No part of a submission runs in the grader
or in a kernel: the text of its answer cells goes to :func:`lora_np.diagnose.run_isolated`, and in
its test cells only the calls ``check("task", seed=3)`` are read. So a hang, an exit or a patched
function fails one cell of one student. What else a notebook holds is not graded.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from IPython.core.inputtransformer2 import (  # pyright: ignore[reportMissingImports]
    TransformerManager,
)
from nbformat.v4 import new_output  # pyright: ignore[reportMissingImports]
from nbgrader.preprocessors import NbGraderPreprocessor  # pyright: ignore[reportMissingImports]
from nbgrader.utils import is_grade, is_solution  # pyright: ignore[reportMissingImports]

from lora_np.diagnose.compare import Report
from lora_np.diagnose.runner import Limits, run_isolated


class Diagnose(NbGraderPreprocessor):
    """Give every test cell of a notebook the output that its checks earn."""

    limits = Limits()

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        """Check the answers in `nb`; nbgrader reads the outputs: an error is worth no points."""
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        answers = [without_magics(c.source) for c in code if is_solution(c) and not is_grade(c)]
        for cell in code:
            if is_grade(cell) and not is_solution(cell):
                cell.outputs = [as_output(self.reports(answers, cell.source))]
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
            lines.append("  - Only answer cells are run: helpers and imports belong into one.")
        return new_output("error", ename="WrongAnswer", evalue=lines[0], traceback=lines)
    text = "".join(f"{line}\n" for line in dict.fromkeys(map(str, reports)))
    return new_output("stream", name="stdout", text=text)


def checks_in(source: str) -> list[tuple[str, int]]:
    """Return (task, seed) of every ``check("task", seed=3)`` in a cell; the seed is 0 if not given.

    Parameters
    ----------
    source : str
        Of a test cell. It is read, not run.
    """
    found = []
    for node in ast.walk(ast.parse(without_magics(source))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "check":
            task = ast.literal_eval(node.args[0])
            seeds = [ast.literal_eval(k.value) for k in node.keywords if k.arg == "seed"]
            found.append((task, seeds[0] if seeds else 0))
    return found


def without_magics(source: str) -> str:
    """Return a cell without IPython's own lines, which are no Python.

    IPython says which these are: a line that begins with != may be half of a comparison.
    """
    lines = source.splitlines()
    if source.startswith("%%"):  # %%time, say: the rest is Python
        lines[0] = "pass"
    plain = TransformerManager().transform_cell("\n".join(lines))
    return re.sub(r"get_ipython\(\)\..*", "None", plain)
