"""The README says what is so: its example runs, its counts, commands and figures are right."""

import re
import shlex
from pathlib import Path

import pytest

from lora_np.cli import parser
from lora_np.costs import known_models
from tests.docs.pages import ROOT, bodies

README = (ROOT / "README.md").read_text(encoding="utf-8")
CURVE = (ROOT / "docs" / "rank_vs_loss.md").read_text(encoding="utf-8").split("\n## ")[1]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NEAR = 0.1  # relative: a count of lines that is so near still says how long the file is


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 140


def test_the_example_is_short_and_runs(capsys):
    (example,) = PYTHON
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 15
    names = {"__name__": "readme"}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "trainable / base" in printed and re.search(r"numerical rank +8\n", printed)
    assert "A" not in vars(names["plain"].h[0].attn.q_proj)  # merged


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
    assert not re.search(r"\b(DATE|TABLE|LINEAR|ACCOUNT|BENCH|GENERATED|TODO)\b", README)


# --- the reading order: every row is (path, lines) ----------------------------------------------


def reading_order(text):
    rows = re.findall(r"^\| \[[^]]*\]\(([^)]*)\) \| (\d+) \|", text, re.M)
    return [(path, int(count)) for path, count in rows]


def source(path):
    """Return the text of a file, or of the files of a folder."""
    whole = ROOT / path
    files = whole.glob("*.py") if whole.is_dir() else [whole]
    return "".join(file.read_text(encoding="utf-8") for file in files)


def lines_of(path):
    return len(source(path).splitlines())


def miscounted(text):
    rows = reading_order(text)
    return [path for path, count in rows if abs(count - lines_of(path)) > NEAR * lines_of(path)]


def test_the_line_counts_of_the_reading_order_are_the_files():
    assert len(reading_order(README)) == 12
    assert miscounted(README) == []


@pytest.mark.parametrize("path", ["lora_np/ops/lora.py", "lora_np/layers"])
def test_a_line_count_that_drifted_is_noticed(path):
    (count,) = (count for found, count in reading_order(README) if found == path)
    wrong = README.replace(f"({path}) | {count} |", f"({path}) | {2 * count} |")
    assert miscounted(wrong) == [path]


def test_the_reading_order_is_one_in_which_the_files_import_only_those_above():
    from tests.test_house import ORDER

    places = [Path(path).parts[1].removesuffix(".py") for path, _ in reading_order(README)]
    # Parameters and optimizers import no operation, and read better after those who need them.
    book = [place for place in places if place not in ("parameters", "optim")]
    assert book == sorted(book, key=ORDER.index)


def test_the_book_holds_the_way_from_a_token_to_a_loss_and_to_the_step():
    """Fresh readers stood at the end of it without a loss."""
    book = "".join(source(path) for path, _ in reading_order(README))
    for name in (
        "def cross_entropy_forward",
        "def attention_backward",
        "def inject",
        "def loss(",
        "def generate",
        "def _add_up",
        "def step",
        "class LoRALinear",
        "class AdamW",
    ):
        assert name in book, name


# --- figures stand where a command printed them --------------------------------------------------


def test_the_figures_of_the_curve_are_those_of_its_table():
    gains = dict(re.findall(r"^r = (\d+) .* (\d+) %$", CURVE, re.M))
    trained = dict(re.findall(r"^(r = 1|full) +([\d,]+) ", CURVE, re.M))
    words = " ".join(README.split())
    assert f"At r = 1, LoRA trains {trained['r = 1']} parameters" in words
    assert f"reaches {gains['1']} % of the gain" in words
    assert f"which trains {trained['full']}; at r = 32 it reaches {gains['32']} %" in words


def test_what_the_models_write_is_what_the_page_of_the_curve_prints():
    (printed,) = bodies((ROOT / "docs" / "rank_vs_loss.md").read_text(encoding="utf-8"), "console")
    section = README.split("\n## What it writes\n")[1].split("\n## ")[0]
    written = bodies(section, "")
    assert len(written) == 2 and all(text in printed for text in written)


def test_the_account_of_known_models_stands_in_the_page_about_performance():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"```\n{known_models()}\n```" in page
