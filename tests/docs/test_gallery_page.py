"""The gallery shows every picture of docs/, and the line that makes each can be run."""

import ast
import json
import shlex

import numpy as np
import pytest

from lora_np.cli import parser
from tests.docs import gallery_page as tool
from tests.docs.gallery_page import DOCS, GALLERY, OPAQUE, PAGE, drawings, files, filled
from tests.docs.pages import bodies

LINES = sorted({shown.line for section in GALLERY.values() for shown in section})


def test_the_page_is_what_the_tool_writes_and_has_every_picture_once():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text
    assert sorted(files()) == sorted(path.name for path in DOCS.glob("*.png"))
    assert all(text.count(f"]({file})") == 1 for file in files())


@pytest.mark.parametrize("line", LINES)
def test_the_line_of_a_picture_can_be_run(line):
    program, *words = shlex.split(line)
    if program == "lora-np":
        assert parser().parse_args(words).run
    elif program == "python":
        assert words == ["-m", "tests.benchmarks"]
    else:  # the names that are called are ours
        called = [node.func for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
        names = {f.attr if isinstance(f, ast.Attribute) else f.id for f in called}
        assert names <= {"spectrum", "plot", "plot_recovery"} and names & {"plot", "plot_recovery"}


def test_the_tool_draws_every_picture_but_those_that_need_a_run():
    assert {*drawings()} == {*files()} - OPAQUE


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    example = bodies(PAGE.read_text(encoding="utf-8"), "python")[0]
    exec(compile(example, "gallery.md", "exec"), {})
    pyplot.close("all")
    assert (tmp_path / "mine.png").stat().st_size > 1000


def test_a_run_is_kept_with_six_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "RUNS", tmp_path / "pictures.json")
    for name, file in (("sweep", "results.json"), ("precision", "precision.json")):
        content = {"x": [1 / 3, 5, None], "name": name}
        (tmp_path / file).write_text(json.dumps(content))
        tool.take(name, tmp_path)
    kept = json.loads((tmp_path / "pictures.json").read_text())
    assert list(kept) == ["sweep", "precision"]
    assert kept["sweep"] == {"x": [0.333333, 5, None], "name": "sweep"}


def test_an_adapter_is_kept_by_its_spectra(tmp_path, monkeypatch):
    from lora_np import write_adapter

    monkeypatch.setattr(tool, "RUNS", tmp_path / "pictures.json")
    write_adapter(tmp_path / "a", [("h.0.q_proj", np.diag([2.0, 1.0]), np.eye(2), 1.0)])
    tool.take("adapter", tmp_path / "a")
    (module,) = json.loads((tmp_path / "pictures.json").read_text())["adapter"]
    assert module == {"name": "h.0.q_proj", "shape": [2, 2], "r": 2, "singular_values": [2.0, 1.0]}
    (again,) = tool._analysis([module]).modules
    assert again.r == 2 and again.energy_ranks[0.9] == 2
