"""The pages of the sweep on a real model: every figure is that of docs/rank_on_smollm2.json."""

import json
import re

import pytest

from tests.docs import sweep_page
from tests.docs.sweep_page import BLOCKS, PAGES, PICTURE, PLACE, filled, kept, main, slim, take
from tests.test_plots import PARAMETERS

MODEL = "/far/away/smollm2.gguf"
RATES = {1: [4e-4, 8e-4, 1.6e-3], 4: [4e-4, 8e-4, 1.6e-3], None: [2e-4, 4e-4, 8e-4]}
LOG = """about 5.2 minutes in 2 processes
\tElapsed (wall clock) time (h:mm:ss or m:ss): 1:02:03.40
\tMaximum resident set size (kbytes): 2000000
"""


def results(best=None, test=None):
    """A sweep of two ranks, by default best at the second of three rates and without a gain."""
    best = {1: 8e-4, 4: 8e-4, None: 4e-4} | (best or {})
    test = {1: [0.5, 0.6], 4: [0.5, 0.61], None: [0.3, 0.31]} | (test or {})

    def run(rank, seed, lr):
        of = {"method": "full" if rank is None else "lora", "rank": rank, "seed": seed, "lr": lr}
        loss = 0.4 if lr == best[rank] else 0.7
        return {
            **of,
            "trainable_parameters": PARAMETERS[rank],
            "train_loss": loss,
            "validation_loss": loss,
            "test_loss": test[rank][seed],
        }

    settings = {"task": "llm", "ranks": [1, 4], "seeds": 2, "steps": 40, "batch_size": 8}
    change = {"energy_ranks": {"0.90": 30}, "singular_values": [1.0]}
    return {
        "settings": {**settings, "model": MODEL, "lora_lr": 8e-4, "full_lr": 4e-4},
        "versions": {"numpy": "2"},
        "complete": True,
        "base_validation_loss": 1.5,
        "base_test_loss": 1.6,
        "base_made": f"{MODEL}, the last 6 of 30 blocks adapted",
        "samples": {"train": 160, "validation": 40, "test": 40},
        "learned_tokens": {"train": 3215, "validation": 778, "test": 836},
        "trials": [run(rank, 0, lr) for rank, rates in RATES.items() for lr in rates],
        "runs": [run(rank, seed, best[rank]) for rank in RATES for seed in (0, 1)],
        "spectrum": [{"name": f"0.{part}.W", **change} for part in ("self_attn.q", "mlp.up")],
    }


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """Return the pages' text, in one, after a run with these results was taken."""
    monkeypatch.setattr(sweep_page, "SOURCE", tmp_path / "docs.json")
    monkeypatch.setattr(sweep_page, "plot_rank_vs_loss", lambda _, path: path.write_bytes(b"drawn"))
    run, log = tmp_path / "run", tmp_path / "log"
    run.mkdir()
    log.write_text(LOG)

    def text(found):
        (run / "results.json").write_text(json.dumps(found))
        take(run, log)
        return " ".join(filled(whole(), kept()).split())

    return text


def whole():
    return "".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_no_figure_of_the_pages_was_typed_by_hand():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert filled(text, kept()) == text
    text = re.sub(r"^```.*?^```", "", PLACE.sub("", PAGES[0].read_text("utf-8")), flags=re.M | re.S)
    assert not re.search(r"\d\.\d|\d %", text), "a figure outside the marks"


def test_the_pages_have_a_place_for_every_block():
    assert sorted(name for _, name, _ in PLACE.findall(whole())) == sorted(BLOCKS)


def test_a_run_fills_every_place(taken, tmp_path):
    text = taken(results())
    assert "62 minutes 3 seconds in 2 processes on two cores" in text and "took 2.0 GB" in text
    assert "**Take r = 1**: no higher rank gains two standard errors on it. r = 1 gets 81 %" in text
    assert "Full fine-tuning has the lowest loss with every seed." in text
    assert "in 30 to 30 directions for the matrices of attention and in 30 to 30" in text
    assert "**No.** The best rate is in the range at none of the 2 ranks." in text
    assert "The best rates are 2 to 2 times the upper end of the range." in text
    assert "the validation loss is 0.700 at r = 1, 0.700 at r = 4; at the best rates" in text
    assert "0.0008 0.400* 0.400* 0.700 " in text and "the highest that was tried" not in text
    assert (tmp_path / PICTURE).read_bytes() == b"drawn"


def test_another_run_changes_what_the_pages_say(taken):
    text = taken(results({1: 1.6e-3, 4: 4e-4}, {4: [0.2, 0.29]}))
    assert "**Not at every rank.** The best rate is in the range at 1 of the 2 ranks." in text
    assert "times the upper end" not in text
    assert "At r = 1 the best rate is the highest that was tried" in text
    assert "**Take r = 4**: no higher rank gains two standard errors on it, as one does" in text
    assert "r = 1 costs 0.305 nats a token more, beyond two standard errors." in text
    assert "does not have the lowest loss with every seed" in text
    assert "**Yes.**" in taken(results({1: 4e-4, 4: 4e-4}))


def test_no_folder_of_the_machine_is_kept(taken):
    taken(results())
    assert "/" not in json.dumps(kept()) and kept()["results"]["settings"]["model"] == "smollm2"
    assert slim(results())["base_made"] == "the last 6 of 30 blocks adapted"


def test_a_run_is_taken_whole_or_not_at_all(taken, tmp_path):
    with pytest.raises(SystemExit, match="is not complete"):
        taken({**results(), "complete": False})
    assert {path.name for path in tmp_path.iterdir()} == {"run", "log"}


def test_the_command_writes_into_the_pages(taken, tmp_path, monkeypatch):
    taken(results())
    page = tmp_path / "page.md"
    page.write_text("<!-- sweep: directions -->\n<!-- end -->\n")
    monkeypatch.setattr(sweep_page, "PAGES", [page])
    main([])
    assert "30 to 30" in page.read_text()
