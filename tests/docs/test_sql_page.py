"""The page of text-to-SQL: every figure in it is that of docs/text_to_sql.json."""

import json
import re

import pytest

from lora_np.experiments.sql.plan import BASE, FULL, LORA, SCORED, SHOWN
from tests.docs import sql_page
from tests.docs.sql_page import BLOCKS, PAGE, PLACE, filled, kept, slim, take


def test_no_figure_of_the_page_was_typed_by_hand():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, kept()) == text
    outside = re.sub(r"^```.*?^```", "", PLACE.sub("", text), flags=re.M | re.S)
    assert not re.search(r"\d\.\d|\d %", outside), "a figure outside the marks"


def test_the_page_has_a_place_for_every_block():
    names = [name for _, name, _ in PLACE.findall(PAGE.read_text(encoding="utf-8"))]
    assert sorted(names) == sorted(BLOCKS)


def results(right=3, asked=4):
    """Planted results: LoRA is right on so many questions of each split, the others on none."""
    questions = [
        {"template": "count", "prompt": f"p{i}", "gold": f"SELECT {i}"} for i in range(asked)
    ]
    trials, scores = [], []
    for name, lr in ((BASE, None), (SHOWN, None), (LORA, 0.003), (FULL, 0.0001)):
        run = {"contender": name, "seed": 0, "lr": lr}
        took = {"cpu_seconds": 90.0, "wall_seconds": 99.0, "train_loss": 0.5, "trainable": 8}
        trials += [{**run, **took}] if lr else []
        for split in SCORED:
            found = [i < right * (name == LORA) for i in range(asked)]
            reason = [None if x else "syntax" for x in found]
            verdict = {"answer": ["said"] * asked, "right": found, "exact": found, "reason": reason}
            scores.append({**run, "split": split, **verdict})
    sizes = {"train": 36, "validation": asked, "test": asked}
    settings = {"sizes": sizes, "r": 4, "alpha": 8, "target_modules": "all-linear", "epochs": 1}
    settings |= {"top_layers": None, "batch_size": 4, "examples": 3}
    return {
        "settings": settings,
        "versions": {"numpy": "2"},
        "complete": True,
        "trials": trials,
        "scores": scores,
        "questions": dict.fromkeys(SCORED, questions),
    }


def test_a_run_fills_every_place_and_another_one_changes_it():
    text = PAGE.read_text(encoding="utf-8")
    whole = filled(text, {"date": "2030-01-02", "results": results()})
    assert "2030-01-02" in whole and "A quick run: there is nothing to conclude" in whole
    said = "unseen schema, %: base 0.0, base with examples 0.0, LoRA 75.0, full 0.0."
    assert said in whole
    assert "took 1.50 CPU minutes; 4 were allowed" in whole and "LoRA: said (right)" in whole
    less = filled(text, {"date": "2030-01-02", "results": results(right=2)})
    assert "LoRA 50.0, full 0.0" in less
    real = filled(text, {"date": "2030-01-02", "results": results(right=100, asked=144)})
    assert "nothing to conclude" not in real


def test_what_is_kept_fills_the_page_as_the_whole_results_do():
    text, whole = PAGE.read_text(encoding="utf-8"), results()
    contents = ({"date": "2030-01-02", "results": x} for x in (whole, slim(whole)))
    assert len({filled(text, content) for content in contents}) == 1
    assert sum(map(len, slim(whole)["scores"][0]["answer"])) == len("said")


def test_a_run_is_taken_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_page, "SOURCE", tmp_path / "docs.json")
    run = tmp_path / "run"
    run.mkdir()
    (run / sql_page.PICTURE).write_bytes(b"picture")
    (run / "results.json").write_text(json.dumps({**results(), "complete": False}))
    with pytest.raises(SystemExit, match="is not complete"):
        take(run)
    assert not (tmp_path / "docs.json").exists()
    (run / "results.json").write_text(json.dumps(results()))
    take(run)
    assert json.loads((tmp_path / "docs.json").read_text())["results"]["complete"] is True
    assert (tmp_path / sql_page.PICTURE).read_bytes() == b"picture"
