"""The sweep over ranks on the top of a language model: kept rows, splits, resume, the report."""

from dataclasses import replace

import numpy as np
import pytest

from lora_np import load_llm
from lora_np.cli import main
from lora_np.experiments.rank_sweep import LlmSettings, SweepError, rank_sweep
from lora_np.experiments.rank_sweep.llm import LlmTask, run_llm_trial
from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.experiments.rank_sweep.report import best_rates
from lora_np.experiments.runner import guarded
from lora_np.finetune.layout import targets_in
from tests.finetune.tiny import write_data, write_llama
from tests.tiny import comparable


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A sweep of a second: a Llama of three blocks, 48 questions."""
    place = tmp_path_factory.mktemp("files")
    model, data = write_llama(place / "base"), write_data(place / "mine.jsonl", 48)
    sizes = {"ranks": (1, 2), "seeds": 1, "top_layers": 2, "samples": 32, "steps": 4}
    rates = {"batch_size": 4, "lora_lr": 0.01, "full_lr": 0.01}
    return LlmSettings(model=str(model), data=str(data), **sizes, **rates)


def loss_on_the_whole_model(model, samples):
    """Return the mean loss over the targets, sample by sample, through every block."""
    number, total = targets_in(samples), 0.0
    for sample in samples:
        total += float(model.loss(sample.tokens[None], sample.targets[None], count=number)[0])
    return total


def test_the_kept_rows_give_the_losses_of_the_whole_model_before_and_after(settings, tmp_path):
    task = LlmTask(settings)
    arrays = task.prepare(tmp_path, False)
    before = task.baseline(arrays)
    result, trained = run_llm_trial(settings, arrays, Trial("full", None, 0, 0.01))
    for name in ("validation", "test"):
        found = loss_on_the_whole_model(task.base, task.parts[name])
        assert before[f"base_{name}_loss"] == pytest.approx(found, rel=1e-5)
    whole = load_llm(settings.model).model
    own = whole.parameters()
    for name, array in trained.items():
        block = int(name.split(".")[2])
        own[name.replace(f".{block}.", f".{block + 1}.", 1)].value[...] = array
    found = loss_on_the_whole_model(whole, task.parts["validation"])
    assert result["validation_loss"] == pytest.approx(found, rel=1e-5)
    assert abs(found - before["base_validation_loss"]) > 1e-3  # training moved something
    assert not any("embed" in name or name == "model.norm.gamma" for name in trained)


def test_a_question_is_in_one_split_and_a_stopped_sweep_ends_the_same(settings, tmp_path):
    task = LlmTask(settings)
    texts = [{s.tokens.tobytes() for s in part} for part in task.parts.values()]
    assert [len(part) for part in task.parts.values()] == [32, 8, 8]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 48

    def stop(progress):
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_sweep(settings, tmp_path / "a", listen=stop)
    stopped, at_once = (rank_sweep(settings, tmp_path / name) for name in "ab")
    assert comparable(stopped) == comparable(at_once) and stopped["complete"]
    assert {run["rank"] for run in stopped["runs"]} == {None, 1, 2}
    names = [change["name"] for change in stopped["spectrum"]]
    assert len(names) == 14 and names[0].startswith("model.layers.1.")  # of blocks 1 and 2
    assert stopped["learned_tokens"]["train"] == targets_in(task.parts["train"])


def test_another_file_in_the_same_folder_is_refused(settings, tmp_path):
    data = write_data(tmp_path / "mine.jsonl", 48)
    own = replace(settings, data=str(data), ranks=(1,), full_lr=None)
    results = rank_sweep(own, tmp_path / "out")
    assert "spectrum" not in results and {run["method"] for run in results["runs"]} == {"lora"}
    data.write_text(data.read_text().replace("how many", "which"))
    with pytest.raises(SweepError, match="samples_sha256"):
        rank_sweep(own, tmp_path / "out")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"top_layers": 4}, "top_layers = 4: .* has 3 blocks"),
        ({"samples": 31}, "samples = 31, expected at least 32, a quarter of which is validated on"),
        ({"ranks": (17,)}, "rank 17 .* above the limit"),
        ({"lora_lr": 0.0}, "lora_lr = 0.0, expected a positive number"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_trained(settings, change, said):
    with pytest.raises(ValueError, match=said):
        LlmTask(replace(settings, **change))


@pytest.mark.parametrize("number, said", [(10, "7 samples to train"), (40, "7 samples to ")])
def test_a_file_that_leaves_too_few_to_measure_on_is_refused(
    settings, tmp_path, capsys, number, said
):
    data, out = write_data(tmp_path / "few.jsonl", number), tmp_path / "out"
    files = ["--model", settings.model, "--data", str(data), "--out", str(out)]
    assert main(["sweep", *files, "--top-layers", "1"]) == 2
    error = capsys.readouterr().err
    assert said in error and str(data) in error and error.count("\n") == 1 and not out.exists()


def test_a_trial_whose_last_step_goes_too_far_has_no_loss_and_no_error(settings, tmp_path):
    arrays = LlmTask(settings).prepare(tmp_path, False)
    once, trial = replace(settings, steps=1), Trial("full", None, 0, 1e30)
    names = [f"{name}_loss" for name in ("train", "validation", "test")]
    result, _ = guarded(lambda: run_llm_trial(once, arrays, trial), names, names)
    assert result["diverged"] == "the last step went too far"
    assert [result[name] for name in names] == [None] * 3


def test_a_folder_of_a_base_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="adapts the model that --model names"):
        LlmTask(settings, tmp_path)


def test_a_model_makes_the_command_a_sweep_of_it_and_generate_refuses_it(
    settings, tmp_path, capsys
):
    options = {"samples": 32, "steps": 2, "batch-size": 4, "top-layers": 1, "ranks": 1, "jobs": 1}
    words = [w for k, v in options.items() for w in (f"--{k}", str(v))]
    out = tmp_path / "out"
    files = ["--model", settings.model, "--data", settings.data, "--out", str(out)]
    assert main(["sweep", "--seeds", "1", *files, *words]) == 0
    said = capsys.readouterr().out
    assert "best rates: " in said and "the last 1 of 3 blocks adapted" in said
    assert (out / "rank_vs_loss.png").exists() and (out / "spectrum.png").exists()
    assert main(["generate", "--run", str(out)]) == 2
    assert "is not a text sweep" in capsys.readouterr().err
    assert main(["sweep", "--samples", "32"]) == 2
    assert "--task text has no option --samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rates, said",
    [
        ({1: 4e-4, 8: 2e-4}, "inside it at every rank"),
        ({1: 4e-4, 8: 8e-4}, "inside it at r = 1 alone"),
        ({1: 1e-4, 8: 8e-4}, "outside it at every rank"),
    ],
)
def test_the_report_says_where_the_best_rates_lie(rates, said):
    runs = [{"rank": rank, "lr": lr} for rank, lr in rates.items()]
    results = {"runs": [*runs, {"rank": None, "lr": 3e-4}], "settings": {"steps": 40}}
    results["trials"] = [{"rank": 1, "lr": lr} for lr in np.array([1.0, 2.0, 4.0, 8.0]) * 1e-4]
    first, second, third = best_rates(results)
    assert first.startswith(f"best rates: {rates[1]:.2g} at r = 1, ") and second.endswith(said)
    assert third.startswith("(tried 0.0001 to 0.0008, neighbours a factor of 2 apart")
