"""The page of the rivals: every figure in it is that of docs/rivals.json."""

import json
import re

import pytest

from lora_np.experiments.compare.report import COLUMNS
from lora_np.experiments.compare.rows import ROWS
from lora_np.methods import METHODS
from tests.benchmarks import page as benchmarks
from tests.docs import rivals_page
from tests.docs.rivals_page import BLOCKS, MISSING, PAGE, PLACE, filled, findings, kept, take
from tests.experiments.test_compare import planted

REACH = {"changes": {"rank 4": "W0 plus"}, "trainable": {"lora": 9}, "residual": {"lora": [0.0]}}


def content(**options):
    results = planted(**options)
    versions = {"versions": {"numpy": "2"}, "complete": True}
    return {"date": "2030-01-02", "results": {**results, **versions}, "reach": REACH}


def test_no_figure_of_the_page_was_typed_by_hand():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, kept()) == text
    outside = benchmarks.PLACE.sub("", PLACE.sub("", text))
    assert not re.search(r"\d\.\d|\d %", outside), "a figure outside the marks"


def test_the_page_has_a_place_for_every_block():
    names = [name for _, name, _ in PLACE.findall(PAGE.read_text(encoding="utf-8"))]
    assert sorted(names) == sorted([*BLOCKS, "reach"])


def test_every_method_of_the_table_has_a_paragraph_that_links_its_file():
    text = PAGE.read_text(encoding="utf-8")
    for method in {row.method for row in ROWS} - {None}:
        assert method not in METHODS or f"methods/{method}.py" in text, method


def test_a_run_fills_every_place_and_another_one_changes_it():
    text = PAGE.read_text(encoding="utf-8")
    whole = filled(text, content())
    assert MISSING not in whole and "2030-01-02" in whole
    assert "refuted: said in articles" in whole and "- rank 4: lora." in whole
    assert filled(whole, content()) == whole
    assert filled(whole, content(changed={"lora": 1.9})) != whole
    assert filled(whole, {}) == filled(text, {})


def test_sentences_follow_the_numbers():
    found = " ".join(findings(content()["results"]))
    assert "A lower loss than full: none." in found
    assert "Not separated from lora: houlsby." in found
    better = " ".join(findings(content(changed={"wrg": 1.9})["results"]))
    assert "A lower loss than full: wrg." in better
    noise = " ".join(findings(content(seeds=2)["results"]))
    assert "The seeds separate 0 of 36 pairs" in noise and "A lower loss" not in noise


def test_a_run_is_taken_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals_page, "SOURCE", tmp_path / "docs.json")
    results = content()["results"]
    run = tmp_path / "run"
    run.mkdir()
    for name in rivals_page.PICTURES:
        (run / name).write_bytes(b"picture")
    (run / "results.json").write_text(json.dumps({**results, "complete": False}))
    with pytest.raises(SystemExit, match="is not complete"):
        take(run)
    assert not (tmp_path / "docs.json").exists()
    (run / "results.json").write_text(json.dumps(results))
    (run / "reach.json").write_text(json.dumps(REACH))
    take(run)
    assert json.loads((tmp_path / "docs.json").read_text())["reach"] == REACH
    assert (tmp_path / "compare_losses.png").read_bytes() == b"picture"


def test_what_dora_leaves_of_scaled_rows_is_the_bias_as_the_page_says():
    reach = kept()["reach"]
    i = list(reach["changes"]).index("rows")
    (of_bias,) = re.findall(r"; (0\.\d\d) remains if W alone", reach["changes"]["rows"])
    for label in ("dora", "dora exact", "lora r=32"):
        assert f"{reach['residual'][label][i]:.2f}" == of_bias
    assert f"{reach['residual']['lora'][i]:.2f}" > of_bias


def test_the_page_names_every_column_and_every_key_that_the_command_writes():
    text = PAGE.read_text(encoding="utf-8")
    written = text[text.index("## What the command writes") :]
    said = set(re.findall(r"`([a-z_0-9]+)`", written))
    assert said >= {*COLUMNS, *kept()["results"]["measured"]["lora"], *kept()["reach"]}
