"""The README says what is so: its example runs, its commands and links exist."""

import re
import shlex
from pathlib import Path

import pytest

from lora_np.cli import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_is_short_and_runs(capsys):
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len(lines) <= 15
    exec(compile(PYTHON[0], "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "trainable / base" in printed and "numerical rank               8" in printed
    assert "def " in printed


@pytest.mark.parametrize("block", PYTHON[1:])
def test_the_examples_for_clusters_use_names_that_exist(block):
    import lora_np.experiments.rank_sweep

    compile(block, "README.md", "exec")
    for names in re.findall(r"from lora_np\.experiments\.rank_sweep import (.*)", block):
        assert all(
            hasattr(lora_np.experiments.rank_sweep, name.strip()) for name in names.split(",")
        )


def test_every_command_in_the_readme_parses():
    commands = re.findall(r"lora-np ([a-z]+[^`\n]*)", README)
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)
        if "--help" not in words:
            assert parser().parse_args(words).run


def test_every_link_of_the_readme_leads_to_a_file():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_the_readme_has_no_figure_left_to_fill_in():
    assert not re.search(r"\b(DATE|TABLE|LINEAR|ACCOUNT|TODO)\b", README)
