"""Results and errors are what they were after a copy, and after the way to another process."""

import ast
import copy
import pickle
import re
from pathlib import Path

import pytest

from lora_np.files.atomic import WriteError
from lora_np.images.latent import NotHeld
from lora_np.report import Report
from lora_np.serve.errors import Refusal
from lora_np.tables import Mean, Table
from lora_np.train import Diverged, History
from tests.source import FILES, nodes, tree_of
from tests.test_tables import planted_results

HOW = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
ERRORS = [
    Diverged("the loss is nan", History([2.0])),
    NotHeld("too much is lost", 8),
    Refusal("no such model", 404, param="model"),
    WriteError(Path("a.npz"), OSError(28, "No space left on device")),
]
TABLE = Table({"loss": [Mean(2.0, 0.5, note=" (1 lost)"), None]}, title="two", notes=["note"])


NOT_COPIED = "Stopped"  # it ends a student's code in a page, and stays there


def errors_of_their_own():
    """Return the names of the library's classes of errors with an __init__ of its own."""
    classes = [c for path in FILES for c in nodes(tree_of(path)) if isinstance(c, ast.ClassDef)]
    for one in classes:
        bases = " ".join(map(ast.unparse, one.bases))
        is_error = re.search("Error|Exception", bases) and one.name != NOT_COPIED
        if is_error and "super().__init__(" in ast.unparse(one):
            yield one.name


def test_every_error_with_an_init_of_its_own_is_tried_here():
    assert set(errors_of_their_own()) == {type(error).__name__ for error in ERRORS}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_copied(error, how):
    again = HOW[how](error)
    assert type(again) is type(error) and str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "result",
    [*planted_results(), TABLE, Report(["words", Report([TABLE, "more"], gap="\n")])],
    ids=lambda result: type(result).__name__,
)
def test_a_result_can_be_copied(result, how):
    again = HOW[how](result)
    assert type(again) is type(result) and str(again) == str(result)
    assert getattr(again, "tables", ()) == getattr(result, "tables", ())
