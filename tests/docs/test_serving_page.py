"""The page of serving: every figure at its marks is that of docs/serving.json."""

import json
import sys

import pytest

from tests.docs import serving_page as tool
from tests.docs.serving_page import BLOCKS, MISSING, PAGE, PLACE, filled, kept, take
from tests.experiments.planted_serving import planted

ORDER = ["pool", "distinct", "alone", "disk", "wide", "real"]
TEXT = "\n".join(f"<!-- run: {name} -->\nold\n<!-- end -->" for name in ORDER)


def content(**runs):
    return {name: {"date": "2030-01-02", "results": results} for name, results in runs.items()}


def test_no_figure_of_the_page_was_typed_by_hand():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, kept()) == text
    assert [name for _, name, _ in PLACE.findall(text)] == ORDER


def test_a_run_fills_its_places_and_another_one_changes_them():
    whole = filled(TEXT, content(small=planted(), real=planted(model="smollm2")))
    assert MISSING not in whole and whole.count("2030-01-02.") == len(BLOCKS)
    assert "1.10 (1.10 to 1.10)" in whole and "7.00 (7.00 to 7.00)" in whole
    assert whole.count(f"]({tool.PICTURE})") == 1
    assert filled(TEXT, content(small=planted())).count(MISSING) == 1
    slower = filled(whole, content(small=planted(ours=1.3), real=planted(model="smollm2")))
    assert "1.30 (1.30 to 1.30)" in slower and "at most 1.20: missed" in slower
    assert filled(slower, {}).count(MISSING) == len(BLOCKS)


def test_a_run_is_taken_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SOURCE", tmp_path / "serving.json")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "serving.md")
    (tmp_path / "serving.md").write_text(TEXT)
    run = tmp_path / "run"
    run.mkdir()
    (run / "serve.png").write_bytes(b"picture")
    (run / "results.json").write_text(json.dumps({**planted(), "complete": False}))
    with pytest.raises(SystemExit, match="is not complete"):
        take("small", run)
    assert kept() == {}
    (run / "results.json").write_text(json.dumps(planted()))
    monkeypatch.setattr(sys, "argv", ["page", "--small", str(run)])
    tool.main()
    assert list(kept()) == ["small"]
    assert (tmp_path / tool.PICTURE).read_bytes() == b"picture"
    assert (tmp_path / "serving.md").read_text().count(MISSING) == 1
