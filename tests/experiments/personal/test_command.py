"""``lora-np personal``: the folder, what is printed, and a run that was stopped."""

import json

import numpy as np
import pytest

from lora_np import load_adapter, load_llm
from lora_np.cli import main
from lora_np.data import DataError
from lora_np.experiments.asking import answer_losses, chat_samples
from lora_np.experiments.personal import matrix_of, read_plan, samples_of
from lora_np.experiments.personal import tools as tools_file
from lora_np.experiments.personal.tools import tools_for
from tests.compare import PNG
from tests.experiments.personal.test_personal import timeless
from tests.finetune.tiny import write_llama

PLAN = """\
train = 6
validation = 2
held_out = 3
[training]
top_layers = 2
r = 2
batch_size = 4
[[task]]
name = "who"
generator = "who"
[[task]]
name = "goods"
generator = "what"
[[user]]
name = "ben"
style = "grams"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A plan, the folder of a model, and the folder of a complete run."""
    place = tmp_path_factory.mktemp("files")
    (place / "people.toml").write_text(PLAN, encoding="utf-8")
    write_llama(place / "base", context=320)
    assert main(command(place / "people.toml", place / "base", place / "out")) == 0
    return place / "people.toml", place / "base", place / "out"


def command(plan, model, out):
    return ["personal", "--plan", str(plan), "--model", str(model), "--out", str(out)]


def test_the_folder_holds_peft_adapters_that_score_as_the_matrix_says(files):
    plan, model, out = files
    base, tokenizer, *_ = load_llm(model)
    found = matrix_of(json.loads((out / "results.json").read_text(encoding="utf-8")))
    assert found.adapters == ("base", "ben/who", "ben/goods")
    for i, name in enumerate(found.adapters[1:], 1):
        assert (out / "adapters" / name / "adapter_config.json").exists()
        adapted = load_adapter(base, out / "adapters" / name)
        held_out = samples_of(read_plan(plan))["ben/goods"].held_out
        losses = answer_losses(adapted, chat_samples(held_out, tokenizer, base))
        np.testing.assert_allclose(losses, found.losses[i, 1], rtol=1e-5)
    assert (out / "matrix.png").read_bytes().startswith(PNG)


def test_the_matrix_the_verdict_and_the_base_are_printed_again_without_training(
    files, capsys, monkeypatch
):
    plan, model, out = files
    monkeypatch.setattr(tools_file, "adapter_of", None)
    assert main(command(plan, model, out)) == 0
    said = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert "Loss on the held-out samples" in said and "comparisons." in said
    assert f"after each of 2 (SHA-256 {results['base_sha256'][:16]})" in said
    assert "results.json, personal.txt, matrix.png" in said
    assert (out / "personal.txt").read_text(encoding="utf-8") in said


def test_a_command_that_was_stopped_continues_to_the_same_matrix(
    files, tmp_path, capsys, monkeypatch
):
    plan, model, out = files
    train, done = tools_file.adapter_of, []

    def stopped(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(train(*arguments))
        return done[0]

    monkeypatch.setattr(tools_file, "adapter_of", stopped)
    assert main(command(plan, model, tmp_path)) == 130
    assert "run the same command to continue" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command(plan, model, tmp_path)) == 0
    both = [json.loads((f / "results.json").read_text(encoding="utf-8")) for f in (out, tmp_path)]
    assert timeless(both[0]) == timeless(both[1])


def test_the_example_is_written_once(tmp_path, capsys):
    path = tmp_path / "people.toml"
    assert main(["personal", "--example", str(path)]) == 0
    assert len(read_plan(path).pairs) == 9 and f"--plan {path}" in capsys.readouterr().out
    path.write_text("mine", encoding="utf-8")
    assert main(["personal", "--example", str(path)]) == 2
    assert "exists: name a new file" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"


def test_a_note_longer_than_the_context_is_refused_before_anything_is_trained(files, tmp_path):
    base, tokenizer, *_ = load_llm(write_llama(tmp_path / "small", context=40))
    with pytest.raises(DataError, match="tokens, more than 40"):
        tools_for(read_plan(files[0]), base, tokenizer)


def test_settings_that_do_not_fit_the_model_are_refused_before_a_folder_is_made(
    files, tmp_path, capsys
):
    plan = tmp_path / "people.toml"
    for line in ("top_layers = 9", "top_layers = 2\noptions = { target_r = 2 }"):
        plan.write_text(PLAN.replace("top_layers = 2", line), encoding="utf-8")
        assert main(command(plan, files[1], tmp_path / "out")) == 2
        said = capsys.readouterr().err
        assert f"{plan}: " in said and ("top_layers = 9, but" in said or "no option" in said)
    assert not (tmp_path / "out").exists()
