"""The page of many adapters: every figure in it is that of docs/many_adapters.json."""

import json
import re
import sys

import pytest

from tests.docs import many_adapters_page as tool
from tests.docs.many_adapters_page import BLOCKS, MISSING, PAGE, PLACE, filled, kept, take

VERSIONS = {"numpy": "2"}
HEAD = {"complete": True, "versions": VERSIONS, "base_sha256": "ab" * 32}


def personal(own=0.1):
    """Two pairs; a/x misses its margin over b/x if its own loss is as high as the other's."""
    names = ("a/x", "b/x")
    losses = {"base": (2.0, 2.1), "a/x": (own, 1.5), "b/x": (1.5, 0.2)}

    def scores(row):
        pairs = dict(zip(names, losses[row], strict=True))
        return {
            "losses": {name: [x, x + 0.01] for name, x in pairs.items()},
            "exact": {name: [x < 1, False] for name, x in pairs.items()},
        }

    trials = [{"name": name, "seconds": 21.0, **scores(name)} for name in names]
    return {**HEAD, "base_scores": scores("base"), "trials": trials}


def instructions(after=True):
    def rows(right):
        judged = {"exact": right, "value": right, "refused": right, "answer": "x" * 99}
        return [
            {"split": split, "family": family, "should_refuse": False, **judged}
            for split, family in (("values", "csv"), ("phrasing", "csv"), ("formats", "tags"))
        ] + [{"split": "values", "family": "extract, not stated", "should_refuse": True, **judged}]

    trial = {"seed": 0, "train": 52, "seconds": 240.0, "before": rows(False), "after": rows(after)}
    return {**HEAD, "trials": [trial]}


def content(**runs):
    runs = {"personal": personal(), "instructions": instructions(), **runs}
    return {name: {"date": "2030-01-02", "results": results} for name, results in runs.items()}


def test_no_figure_of_the_page_was_typed_by_hand():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, kept()) == text
    outside = re.sub(r"^```pycon.*?^```", "", PLACE.sub("", text), flags=re.M | re.S)
    assert not re.search(r"\d\.\d(?!\.\d)|\d %", outside.replace("0.1.2", "")), "outside the marks"


def test_the_page_has_a_place_for_every_block():
    names = [name for _, name, _ in PLACE.findall(PAGE.read_text(encoding="utf-8"))]
    assert sorted(names) == sorted(BLOCKS)


def test_a_run_fills_its_places_and_another_one_changes_them():
    text = PAGE.read_text(encoding="utf-8")
    whole = filled(text, content())
    assert MISSING not in whole and whole.count("2030-01-02; numpy 2") == 2
    assert "An adapter answers 50 to 50 % of its own pair's samples exactly" in whole
    assert "none of them. 4 of 4 margins of the loss exceed two standard errors." in whole
    assert "0 to 100 % (new values), 0 to 100 % (unseen phrasing)" in whole
    assert "guesses 100 % of the time before and 0 % after" in whole
    assert filled(whole, {}).count(MISSING) == len(BLOCKS)
    worse = filled(whole, content(personal=personal(1.5), instructions=instructions(False)))
    assert "3 of 4 margins" in worse and "not a/x over b/x" in worse
    assert "0 to 0 % (new values)" in worse


def test_a_run_is_taken_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SOURCE", tmp_path / "docs.json")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "docs.md")
    (tmp_path / "docs.json").write_text("{}")
    (tmp_path / "docs.md").write_text("<!-- run: matrix -->\n<!-- end -->\n")
    for name, results in (("personal", personal()), ("instructions", instructions())):
        run = tmp_path / name
        run.mkdir()
        (run / "matrix.png").write_bytes(b"picture")
        (run / "results.json").write_text(json.dumps({**results, "complete": False}))
        with pytest.raises(SystemExit, match="is not complete"):
            take(name, run)
        (run / "results.json").write_text(json.dumps(results))
    assert (tmp_path / "docs.json").read_text() == "{}"
    runs = [
        "--personal",
        str(tmp_path / "personal"),
        "--instructions",
        str(tmp_path / "instructions"),
    ]
    monkeypatch.setattr(sys, "argv", ["page", *runs])
    tool.main()
    assert set(kept()) == {"personal", "instructions"}
    assert "x" * 99 not in (tmp_path / "docs.json").read_text()  # no answers
    assert (tmp_path / tool.PICTURE).read_bytes() == b"picture"
    assert "SHA-256 abab" in (tmp_path / "docs.md").read_text()
