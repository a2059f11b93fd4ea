"""The page on images: every figure at its marks is that of docs/images.json."""

import json
import re

import pytest

from tests.docs import images_page as tool
from tests.docs.images_page import BLOCKS, MISSING, PAGE, PICTURES, PLACE, filled, kept, take
from tests.images.planted_report import planted

TEXT = PAGE.read_text(encoding="utf-8")


def content(results):
    return {"date": "2030-01-02", "results": results}


def whole(text):
    """Return a text with every run of white space as one space."""
    return " ".join(text.split())


def test_no_figure_of_the_page_was_typed_by_hand():
    assert filled(TEXT, kept()) == TEXT
    outside = re.sub(r"^```.*?^```", "", PLACE.sub("", TEXT), flags=re.M | re.S)
    assert not re.search(r"\d\.\d|\d %", outside), "a figure outside the marks"


def test_the_page_has_a_place_for_every_block():
    assert sorted(name for _, name, _ in PLACE.findall(TEXT)) == sorted(BLOCKS)


def test_a_run_fills_every_place_and_another_one_changes_it():
    page = filled(TEXT, content(planted()))
    assert MISSING not in page and "2030-01-02" in page and "quick run: there" not in page
    assert "| base: letter | >= 0.995 | 0.999 | reached |" in page
    assert "Of these claims: 28 reached, 1 missed, 1 shown." in whole(page)
    assert "Read as regular: 95.0 % at 1, 90.0 % at 1.5, 50.0 % at 2, 10.0 % at 3." in whole(page)
    assert [page.count(f"]({name})") for name in PICTURES] == [1, 1, 1, 1]
    worse = planted()
    for seed in range(3):
        worse["done"][f"regular, seed {seed}"]["sure"] = 0.4
    assert "| 0.40 | missed |" in filled(page, content(worse))
    assert filled(page, {}).count(MISSING) == len(BLOCKS)


def test_a_quick_run_is_called_one():
    results = planted()
    results["settings"]["n"] = 312
    assert "**A quick run: there is nothing to conclude from it.**" in filled(
        TEXT, content(results)
    )


def test_a_run_is_taken_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SOURCE", tmp_path / "images.json")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "images.md")
    (tmp_path / "images.md").write_text(TEXT)
    run = tmp_path / "run"
    run.mkdir()
    for name in PICTURES:
        (run / name).write_bytes(name.encode())
    (run / "results.json").write_text(json.dumps({**planted(), "complete": False}))
    with pytest.raises(SystemExit, match="is not complete"):
        take(run)
    assert kept() == {}
    (run / "results.json").write_text(json.dumps(planted()))
    tool.main([str(run)])
    assert all((tmp_path / name).read_bytes() == name.encode() for name in PICTURES)
    assert MISSING not in (tmp_path / "images.md").read_text()
