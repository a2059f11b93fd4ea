"""Pages and docstrings: examples print what they show, commands parse, links lead to files."""

import doctest
import importlib
import pkgutil
import re
import shlex
from inspect import isfunction

import pytest

import lora_np
from lora_np import checkpoint, rank
from lora_np.cli import parser
from tests.pages import ROOT, SESSION, bodies, failures

DOCS = (p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "beside")  # copies
PAGES = sorted([*DOCS, *ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md"])
NEEDS_NBGRADER = {"lora_np.diagnose.course"}  # its tests are those of the course
MODULES = sorted(
    {m.name for m in pkgutil.walk_packages(lora_np.__path__, "lora_np.")} - NEEDS_NBGRADER
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@every_page
def test_every_session_of_a_page_prints_what_it_shows(page):
    sessions = bodies(page.read_text(encoding="utf-8"), "pycon")
    assert not failures("\n\n".join(sessions), page.name)  # one after another: names stay


@every_page
def test_every_command_of_a_page_parses(page):
    lines = "\n".join(bodies(page.read_text(encoding="utf-8"), "sh", "console"))
    for command in re.findall(r"^(?:\$ )?lora-np ([a-z].*)$", lines.replace("\\\n", " "), re.M):
        words = shlex.split(command, comments=True)
        if "--help" not in words:
            assert parser().parse_args(words).run


@every_page
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_example_of_a_docstring_prints_what_it_shows(name):
    module, bare = importlib.import_module(name), {"__name__": "__main__"}
    result = doctest.testmod(module, optionflags=SESSION, globs=bare)  # it imports what it uses
    assert not result.failed


def functions(module):
    """Return a module's public functions; the backward of a pair is shown beside its forward."""
    names = [name for name in module.__all__ if not name.endswith("_backward")]
    return [getattr(module, name) for name in names if isfunction(getattr(module, name))]


SHOWN = [getattr(lora_np, name) for name in lora_np.__all__ if name != "__version__"]
SHOWN += functions(lora_np.ops) + functions(checkpoint) + functions(rank)


@pytest.mark.parametrize("shown", dict.fromkeys(SHOWN), ids=lambda shown: shown.__name__)
def test_what_a_user_meets_has_an_example(shown):
    _, heading, examples = (shown.__doc__ or "").partition("Examples\n")
    assert heading and ">>> " in examples


def test_a_session_that_prints_something_else_is_noticed(capsys):
    text = "```pycon\n>>> a = 2\n>>> a + 2\n4\n```\n\n```pycon\n>>> a\n3\n```\n"
    assert failures("\n\n".join(bodies(text, "pycon")), "page") == 1
    assert "Expected:\n    3" in capsys.readouterr().out
