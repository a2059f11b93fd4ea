"""The chapters: source and notebook agree, every chapter has its parts, and every cell runs."""

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LARGEST = 500_000  # bytes of a notebook with its pictures
every_chapter = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)


def cells_of_source(text):
    """Return (kind, text) of every cell of a percent file, without its header."""
    cells = []
    for chunk in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = chunk.partition("\n")
        markdown = head.strip() == "[markdown]"
        lines = [re.sub("^# ?", "", line) if markdown else line for line in body.split("\n")]
        cells.append(("markdown" if markdown else "code", "\n".join(lines).strip("\n")))
    return cells


def notebook_of(source):
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))


def cells_of_notebook(notebook):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def outputs(notebook):
    return [out for cell in notebook["cells"] for out in cell.get("outputs", [])]


def load_build():
    """Return notebooks/build.py as a module; it needs the extra notebooks."""
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def prose(source):
    cells = cells_of_source(source.read_text(encoding="utf-8"))
    return "\n".join(text for kind, text in cells if kind == "markdown")


def test_there_are_chapters_and_no_notebook_without_a_source():
    assert SOURCES and sorted(FOLDER.glob("*.ipynb")) == [p.with_suffix(".ipynb") for p in SOURCES]


@every_chapter
def test_the_committed_notebook_has_the_cells_of_its_source(source):
    assert cells_of_notebook(notebook_of(source)) == cells_of_source(source.read_text("utf-8"))


@every_chapter
def test_the_committed_notebook_was_run_from_top_to_bottom_without_an_error(source):
    notebook = notebook_of(source)
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {out["output_type"] for out in outputs(notebook)} <= {"stream", "display_data"}
    assert all(out.get("name", "stdout") == "stdout" for out in outputs(notebook))  # no warning
    for cell in notebook["cells"]:
        kinds = [out["output_type"] for out in cell.get("outputs", [])]
        assert ("stream", "stream") not in pairwise(kinds)  # build.py joins them


@every_chapter
def test_the_committed_notebook_is_small_and_names_no_path_of_a_machine(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert not re.search(r"/(tmp|home|work|root|Users|usr)/", text)


@every_chapter
def test_every_picture_says_what_it_shows(source):
    text = source.read_text(encoding="utf-8")
    for cell in notebook_of(source)["cells"]:
        if any("image/png" in out.get("data", {}) for out in cell.get("outputs", [])):
            alt = cell["metadata"]["mystnb"]["image"]["alt"]
            assert len(alt.split()) > 5 and f'# %% alt="{alt}"\n' in text


@every_chapter
def test_a_chapter_opens_predicts_asserts_and_ends_with_three_exercises(source):
    text, code = prose(source), source.read_text(encoding="utf-8")
    assert re.match(rf"# {int(source.name[:2])}\. ", text)
    assert all(f"**What you'll {verb}.**" in text for verb in ("do", "learn", "need"))
    assert text.count("**Predict.**") >= 2 and code.count("assert ") >= 5
    exercises = text.partition("## Exercises\n")[2]
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"]


@pytest.mark.notebooks
@every_chapter
def test_every_claim_of_a_chapter_holds_when_it_is_run_again(source):
    again = load_build().executed(source)  # raises where a cell does
    assert cells_of_notebook(again) == cells_of_notebook(notebook_of(source))
    assert {out["output_type"] for out in outputs(again)} <= {"stream", "display_data"}


def test_the_reading_of_a_source_drops_the_header_and_the_comment_marks():
    text = "# ---\n# x: 1\n# ---\n\n# %% [markdown]\n# # A\n#\n# b\n\n\n# %%\ny = 1  # %% no\n"
    assert cells_of_source(text) == [("markdown", "# A\n\nb"), ("code", "y = 1  # %% no")]


def test_the_numbers_of_the_step_through_picture_stand_out_at_the_ends_of_its_sliders(monkeypatch):
    """Contrast of every number with the colour under it, by the rule for web pages (WCAG 2)."""
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.colors import to_rgb

    monkeypatch.syspath_prepend(str(FOLDER))
    from step_through import STEPS, draw_step

    def luminance(colour):
        c = np.array(to_rgb(colour))
        linear = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    W0 = np.array([[1.0, 0, 2], [0, 3, 1], [-1, 1, 0], [2, 2, 1]])
    A, B = np.array([[1.0, 0, -1], [2, 1, 0]]), np.array([[1.0, 0], [0, 2], [-1, 1], [3, -1]])
    for x0, s in ((-3.0, 2.0), (3.0, 2.0), (2.0, 0.0)):
        for step in range(len(STEPS)):
            figure, axis = plt.subplots()
            draw_step(axis, step, np.array([x0, -1.0, 1.0]), W0, A, B, s)
            for text in axis.texts:
                try:
                    value = float(text.get_text())
                except ValueError:
                    continue  # a name, a shape or a sign
                image = axis.images[0]
                below = image.cmap(image.norm(value))[:3]
                light, dark = sorted([luminance(below), luminance(text.get_color())])[::-1]
                assert (light + 0.05) / (dark + 0.05) > 3, (step, value)
            plt.close(figure)
