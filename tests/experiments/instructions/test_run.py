"""``lora-np instructions``: asked, trained, asked again; stopped between any two, it continues."""

import json
from contextlib import suppress

import pytest

from lora_np import load_llm
from lora_np.cli import main
from lora_np.data import read_records
from lora_np.experiments.folder import SweepError
from lora_np.experiments.instructions import (
    InstructionSettings,
    instruction_set,
    report,
    run_instructions,
)
from lora_np.experiments.instructions import run as run_file
from tests.experiments.personal.test_personal import timeless
from tests.finetune.tiny import llama, write_llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer

TRAINING = {"r": 2, "top_layers": 1, "epochs": 1, "batch_size": 8, "lr": 0.01}
SIZES = {"context": 512, "n_layer": 1, "d_model": 8}
SETTINGS = InstructionSettings(seeds=2, train=1, held_out=1, training=TRAINING)


@pytest.fixture(scope="module")
def model():
    return llama(**SIZES)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run_instructions(SETTINGS, model, tiny_tokenizer(), out)


def test_both_sides_answer_every_test_of_every_seed(run):
    out, results = run
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    assert results["complete"] and [t["seed"] for t in results["trials"]] == [0, 1]
    for trial in results["trials"]:
        splits = instruction_set(trial["seed"], 1, 1)
        tests = [
            (name, r.family) for name in ("values", "phrasing", "formats") for r in splits[name]
        ]
        for side in ("before", "after"):
            assert [(row["split"], row["family"]) for row in trial[side]] == tests
        kept = read_records(out / "adapters" / f"seed-{trial['seed']}" / "train.jsonl")
        assert [r.messages[0]["content"] for r in kept] == [r.prompt for r in splits["train"]]
        assert trial["train"] == len(kept) == 13


def test_a_run_stopped_before_any_step_continues_to_the_same_results(model, run, tmp_path):
    heard = []

    def listen(said):
        heard.append(said.split(": ")[1])
        if len(heard) % 2 == 0:  # the second step of every call
            raise KeyboardInterrupt

    found = None
    while found is None:
        with suppress(KeyboardInterrupt):
            found = run_instructions(SETTINGS, model, tiny_tokenizer(), tmp_path, listen)
    assert timeless(found) == timeless(run[1])
    assert heard[:4] == ["the base answers", "training", "training", "the adapter answers"]


def test_other_settings_and_another_base_are_refused(model, run):
    with pytest.raises(SweepError, match="other settings"):
        run_instructions(InstructionSettings(1, 1, 1, TRAINING), model, tiny_tokenizer(), run[0])
    with pytest.raises(SweepError, match="another base"):
        run_instructions(
            SETTINGS, llama(1, context=512, n_layer=1, d_model=8), tiny_tokenizer(), run[0]
        )


@pytest.mark.parametrize(
    ("training", "context", "message"),
    [({**TRAINING, "top_layers": 2}, 512, "top_layers = 2"), (TRAINING, 40, "more than 40")],
)
def test_a_model_that_does_not_fit_is_refused_before_a_folder_is_made(
    training, context, message, tmp_path
):
    settings, small = InstructionSettings(1, 1, 1, training), llama(**{**SIZES, "context": context})
    with pytest.raises(ValueError, match=message):
        run_instructions(settings, small, tiny_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_report_has_the_seeds_and_the_time(run):
    text = report(run[1])
    assert text.startswith("Synthetic instructions, trained on 13 records; 2 seeds")
    assert "Exact match by seed" in text and text.endswith("minutes of one processor.")


def test_the_command_prints_what_it_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_file, "QUICK", SETTINGS)
    model = write_llama(tmp_path / "base", context=512)
    words = ["instructions", "--quick", "--seeds", "1", "--model", str(model)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "instructions.txt").read_text(encoding="utf-8") in said + "\n"
    assert "nothing to conclude" in said and "1 seed" in said
    assert load_llm(model).model.config.block_size == 512
    assert main([*words[:2], "--seeds", "0", "--model", str(model)]) == 2
    assert capsys.readouterr().err.endswith("seeds = 0, expected at least 1\n")
