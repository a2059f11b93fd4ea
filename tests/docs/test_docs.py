"""Pages and docstrings: examples print what they show, commands parse, links lead to files."""

import argparse
import doctest
import importlib
import pkgutil
import re
import shlex
from inspect import isfunction
from itertools import pairwise

import pytest

import lora_np
from lora_np import checkpoint, rank
from lora_np.cli import parser
from tests.docs.pages import ROOT, SESSION, bodies, failures
from tests.test_house import ORDER

DOCS = (p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "beside")  # copies
PAGES = sorted([*DOCS, *ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md"])
NEEDS_NBGRADER = {"lora_np.course.nbgrader"}  # its tests are those of the course
MODULES = sorted(
    {m.name for m in pkgutil.walk_packages(lora_np.__path__, "lora_np.")} - NEEDS_NBGRADER
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@every_page
def test_every_session_of_a_page_prints_what_it_shows(page):
    sessions = bodies(page.read_text(encoding="utf-8"), "pycon")
    assert not failures("\n\n".join(sessions), page.name)  # one after another: names stay


def in_words(page):
    """Return what a page has in `code` outside its blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(page):
    """Return the commands of a page, without lora-np: those of its blocks, and those in words."""
    lines = "\n".join(bodies(page.read_text(encoding="utf-8"), "sh", "console"))
    lines = re.sub(r"\"\$\w+\"", "1", lines.replace("\\\n", " ")).replace("&&", "\n")
    shown = re.findall(r"^ *(?:\$ |exec )?lora-np ([a-z].*)$", lines, re.M)
    named = [span[8:] for span in in_words(page) if re.match(r"lora-np [a-z]+ ", span)]
    return [words for words in shown + named if "--help" not in words]


@every_page
def test_every_command_of_a_page_parses(page):
    for command in commands(page):
        assert parser().parse_args(shlex.split(command, comments=True)).run


NOT_OURS = {"--nthreads", "--ntasks", "--cdn"}  # of Dask's worker, of SLURM, of notebooks/lite.py


def options_of(command):
    """Return the options of a parser and of the commands in it."""
    parts = (a for a in command._actions if isinstance(a, argparse._SubParsersAction))
    inner = [options_of(part) for action in parts for part in action.choices.values()]
    return set(command._option_string_actions).union(*inner)


@every_page
def test_every_option_that_a_page_names_exists(page):
    known = options_of(parser())
    spans = " ".join(span for span in in_words(page) if span.startswith("--"))
    assert set(re.findall(r"--[a-z-]+", spans)) <= known | NOT_OURS


@every_page
def test_every_file_that_a_page_names_exists(page):
    names = [s for s in in_words(page) if re.fullmatch(r"(tests|lora_np|docs)/[\w/]+\.\w+", s)]
    assert [name for name in names if not (ROOT / name).exists()] == []


@every_page
def test_a_page_has_one_title_and_its_headings_skip_no_level(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in pairwise(levels))


@every_page
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_map_of_the_house_has_every_room_in_its_order():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    firsts = re.findall(r"^\| (`\w+(?:\.py|/)`(?:, `\w+(?:\.py|/)`)*) \|", page, re.M)
    rooms = [room for first in firsts for room in re.findall(r"`(\w+)", first)]
    assert rooms == [room for room in ORDER if room != "__main__"]


@pytest.mark.usefixtures("unpainted")
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
