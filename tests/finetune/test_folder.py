"""The command: a folder that continues bit for bit, what it refuses, and what it leaves."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_np import load_adapter, load_llm
from lora_np.adapters import save_adapter
from lora_np.cli import main, parser
from lora_np.cli.finetune import settings_of
from lora_np.data import read_records
from lora_np.files import load_json
from lora_np.files.lock import hold
from lora_np.finetune import (
    FinetuneError,
    Settings,
    Training,
    finetune,
    folder,
    prepare,
    read_toml,
    train_adapter,
)
from lora_np.finetune.layout import Layout, mean_loss
from lora_np.finetune.terminal import TrainingBar
from lora_np.ops.loss import IGNORE_INDEX
from tests.finetune.tiny import write_data, write_llama

OPTIONS = {"epochs": 2, "batch_size": 4, "lr": 0.01, "jobs": 1, "r": 2, "validation": 0.2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The names of a model's folder and of a data file."""
    place = tmp_path_factory.mktemp("files")
    return str(write_llama(place / "base")), str(write_data(place / "mine.jsonl"))


@pytest.fixture
def settings(files):
    model, data = files
    return Settings(model=model, data=data, **OPTIONS)


def command(settings, *more):
    """Return the words of the command."""
    given = {"model": settings.model, "data": settings.data, **OPTIONS}
    words = [w for k, v in given.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return ["finetune", *words, *map(str, more)]


def refused(words, capsys):
    """Run a command that is refused; return what it says."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def tensors(out):
    return (out / "adapter_model.safetensors").read_bytes()


def losses(record):
    return record["loss"], record["validation"]


# ------------------------------------------------------------------------------- what it leaves


def test_the_command_leaves_an_adapter_a_card_and_a_record(settings, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(settings, "--out", out)) == 0
    said = capsys.readouterr()
    assert "which is kept" in said.out
    line = r"epoch 2 of 2: loss #, validation #, # tokens a second, # seconds left"
    assert re.search(line.replace("#", r"\d+(\.\d+)?"), said.err)
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"]
    assert sorted(os.listdir(out)) == names
    record, card = load_json(out / "training.json"), (out / "README.md").read_text()
    prepared = prepare(settings)
    assert record["complete"] and record["base"]["fingerprint"] == prepared.fingerprint
    assert load_json(out / "adapter_config.json")["base_model_name_or_path"] == settings.model
    for part in (prepared.fingerprint, prepared.sha256, "mine.jsonl", "lora-np finetune --model"):
        assert part in card
    assert f"| {record['steps']} | " in card and "| r | 2 |" in card

    model = load_adapter(prepared.model, out)
    found = mean_loss(Layout.of(model, prepared.validation, 1), prepared.validation, 4)
    best = dict(map(tuple, record["validation"]))[record["best_step"]]
    assert found == pytest.approx(best, rel=1e-6) and best < record["validation"][0][1]

    assert main(command(settings, "--out", out)) == 0  # complete: nothing is trained
    again = capsys.readouterr()
    assert again.out == said.out and again.err == ""


def test_the_command_and_the_function_in_memory_give_the_same_adapter(settings, tmp_path):
    finetune(settings, tmp_path / "out")
    prepared = prepare(settings)
    result = train_adapter(prepared.model, prepared.train, prepared.validation, settings)
    save_adapter(result.model, tmp_path / "mine", base_model=settings.model)
    assert tensors(tmp_path / "out") == tensors(tmp_path / "mine")


def test_a_sample_is_what_chat_asks_and_the_end_of_its_answer_is_learned(settings):
    prepared = prepare(replace(settings, validation=0.0))
    batch = Layout.of(prepared.model, prepared.train, 2)(prepared.train)
    for record, sample in zip(read_records(settings.data), prepared.train, strict=True):
        asked = prepared.tokenizer.chat(record.messages[:1], True)
        start = int(np.flatnonzero(sample.labelled)[0])
        assert sample.tokens[:start].tolist() == asked
        answer = prepared.tokenizer.encode(record.messages[1]["content"])
        assert sample.tokens[start:].tolist() == [*answer, prepared.tokenizer.ends[0]]
    learned = sum(int(s.labelled.sum()) for s in prepared.train)
    assert (batch[1] != IGNORE_INDEX).sum() == learned  # no padding


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_dry_run_may_have_an_epoch_of_any_length(settings, capsys, batch_size):
    assert main(command(settings, "--dry-run", "--batch-size", batch_size)) == 0
    assert "largest step (measured)" in capsys.readouterr().out


def test_the_dry_run_writes_nothing_and_shows_the_first_sample(settings, tmp_path, capsys):
    out = tmp_path / "out"
    more = ("--top-layers", 1, "--out", out, "--dry-run")
    assert main(command(settings, *more)) == 0
    said = capsys.readouterr().out
    assert not out.exists()
    for part in ("11 samples to train on, 3 to validate on", "hidden states, kept", "6 steps: 2"):
        assert part in said
    assert "\n> " in said and "\n  how many in shop" in said


def test_nothing_is_asked_of_the_network(settings, tmp_path, monkeypatch, capsys):
    def asked(*arguments):
        raise AssertionError(f"the network was asked: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, asked)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, asked)
    model, out = ["--model", settings.model], str(tmp_path / "out")
    assert main(command(settings, "--out", out, "--epochs", 1)) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("how many in shop 1?\n"))
    assert main(["chat", *model, "--adapter", out, "--tokens", "2"]) == 0
    assert main(["export", *model, "--adapter", out, "--out", str(tmp_path / "x.gguf")]) == 0
    capsys.readouterr()
    with pytest.raises(AssertionError, match="the network was asked"):
        socket.create_connection(("localhost", 9))
    assert main(["chat", "--model", "HuggingFaceTB/SmolLM2-135M-Instruct"]) == 2
    assert "no such file or folder" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- continuing


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """The adapter's bytes and the losses of a run that was not stopped."""
    model, data = files
    out = tmp_path_factory.mktemp("whole") / "out"
    record = finetune(Settings(model=model, data=data, **OPTIONS, dropout=0.2), out)
    return tensors(out), losses(record)


class Stopped(Exception):
    """Stands for a kill: nothing is tidied up."""


def test_a_run_stopped_after_every_step_continues_bit_for_bit(
    settings, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(folder, "EVERY", 0.0)
    monkeypatch.setattr(folder, "SHARE", 1e9)  # a state after every step
    out, steps = tmp_path / "out", []

    def stop(training):
        steps.append(training.trainer.position)
        raise Stopped

    settings = replace(settings, dropout=0.2)
    while len(steps) < 6:
        with pytest.raises(Stopped):
            finetune(settings, out, after=stop)
    assert steps == [1, 2, 3, 4, 5, 6]
    record = finetune(settings, out)
    assert (tensors(out), losses(record)) == whole


def test_a_run_stopped_before_any_file_is_in_place_continues_bit_for_bit(
    settings, whole, tmp_path, monkeypatch
):
    out, replace_file, before = tmp_path / "out", Path.replace, [0]

    def replacing(path, target):
        before[0] -= 1
        if before[0] < 0:
            raise Stopped
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", replacing)
    settings, record = replace(settings, dropout=0.2), None
    for stops in range(20):
        before[0] = stops  # a few more files are put in place each time
        try:
            record = finetune(settings, out)
            break
        except Stopped:
            pass
    assert record is not None and stops > 5
    assert (tensors(out), losses(record)) == whole


@pytest.mark.slow
def test_a_killed_process_leaves_a_folder_that_continues(settings, whole, tmp_path):
    out = tmp_path / "out"
    killing = (
        "import os, signal, sys\n"
        "from lora_np.finetune import run\n"
        "after = run.Training._after_step\n"
        "def kill(self, *step):\n"
        "    after(self, *step)\n"
        "    if self.trainer.position == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.Training._after_step = kill\n"
        "from lora_np.cli import main\n"
        "main(sys.argv[1:])"
    )
    words = command(settings, "--dropout", "0.2", "--out", out)
    done = subprocess.run([sys.executable, "-c", killing, *words], check=False)
    assert done.returncode == -signal.SIGKILL and (out / "state.npz").exists()
    assert main(words) == 0
    assert (tensors(out), losses(load_json(out / "training.json"))) == whole


def test_a_run_continues_with_its_number_of_processes(settings, tmp_path):
    out = tmp_path / "out"

    def stop(training):
        raise Stopped

    with pytest.raises(Stopped):
        finetune(settings, out, after=stop)
    jobs = []
    finetune(replace(settings, jobs=None), out, after=lambda training: jobs.append(training.jobs))
    assert set(jobs) == {1}


def test_a_run_that_diverged_keeps_its_best_weights_and_says_so(settings, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(settings, "--out", out, "--lr", "1e38", "--clip", "0")) == 1
    assert "stopped early: the " in capsys.readouterr().out
    assert np.isfinite(load_json(out / "training.json")["loss"]).all()
    load_adapter(load_llm(settings.model).model, out)


# ------------------------------------------------------------------------------ what it refuses


def test_a_folder_of_something_else_is_refused(settings, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    said = refused(command(settings, "--out", tmp_path), capsys)
    assert "holds notes.txt, but no training.json: choose another --out" in said
    said = refused(command(settings, "--out", tmp_path / "notes.txt"), capsys)
    assert "notes.txt" in said
    (tmp_path / "training.json").write_text('{"complete": true}')
    said = refused(command(settings, "--out", tmp_path), capsys)
    assert "is not the record of a fine-tuning" in said
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "training.json"]


def test_a_folder_in_use_is_refused(settings, tmp_path, capsys):
    with hold(tmp_path / "out"):
        said = refused(command(settings, "--out", tmp_path / "out"), capsys)
    assert "is in use by process" in said and "choose another --out" in said


def test_other_settings_data_and_base_are_refused(settings, tmp_path):
    data = write_data(tmp_path / "data.jsonl")
    settings, out = replace(settings, data=str(data)), tmp_path / "out"
    finetune(settings, out)
    kept = tensors(out)
    with pytest.raises(FinetuneError, match=r"begun with lr = 0.01, now 0.02: choose another"):
        finetune(replace(settings, lr=0.02), out)
    record = load_json(out / "training.json")
    (out / "training.json").write_text(json.dumps({**record, "complete": False}))
    other = write_llama(tmp_path / "other", seed=5)
    with pytest.raises(FinetuneError, match="the base changed since"):
        finetune(replace(settings, model=str(other)), out)
    write_data(data, 15)
    with pytest.raises(FinetuneError, match=r"the data changed since .* was begun"):
        finetune(settings, out)
    assert tensors(out) == kept


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty"),
        ('{"prompt": "a", "response": ""}\n', "an answer of no tokens teaches nothing"),
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', "no turn of the assistant"),
        (
            '{"prompt": "a", "response": "b"}\n' * 9,
            "data.jsonl: a validation share of 0.2 of 9 records",
        ),
        ('{"prompt": "a", "response": "' + "b " * 300 + '"}\n', "more than 160"),
    ],
)
def test_data_from_which_nothing_can_be_learned_leaves_no_folder(
    settings, tmp_path, capsys, content, message
):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text(content)
    words = command(settings, "--out", out)
    words[words.index("--data") + 1] = str(data)
    if "more than" in message:
        words += ["--validation", "0"]
    assert message in refused(words, capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (("--method", "lorra"), "there is no method 'lorra': did you mean lora"),
        (("--method", "bitfit"), "method 'bitfit' has no r: leave it out"),
        (("--top-layers", "9"), "top_layers = 9, but the model has 3 layers"),
        (("--option", "rank=2"), "method 'lora' has no option 'rank'"),
        (("--option", "rank"), "--option rank: expected NAME=VALUE"),
        (("--option", "r=3"), "r and the option r are one setting: leave one of them out"),
        (
            ("--alpha", "4", "--option", "lora_alpha=8"),
            "alpha and the option lora_alpha are one setting",
        ),
        (("--data", ""), "data is empty: expected a name"),
        (("--model", ""), "model is empty: expected a name"),
        (("--template", ""), "template is empty: expected a name"),
        (("--resume-adapter", ""), "resume_adapter is empty: expected a name"),
        (("--target-modules", "q_prj"), "did you mean q_proj"),
        (("--longest", "999"), "longest = 999, but the model's context has 160 tokens"),
        (("--accumulate", "5"), "accumulate = 5 parts of batch_size = 4 samples"),
        (("--lr", "nan"), "lr = nan, expected a finite number"),
        (("--validation", "1"), "validation = 1.0, expected at least 0 and below 1"),
        (("--data", "no_such_file.jsonl"), "no_such_file.jsonl does not exist"),
        (("--model", "no_such_model"), "no such file or folder, and no model of a package"),
        (("--resume-adapter", "no_such_folder"), "no_such_folder"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_and_leaves_no_folder(
    settings, tmp_path, capsys, more, message
):
    assert message in refused(command(settings, "--out", tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out").exists()


def test_there_must_be_data(tmp_path, capsys):
    assert "name your file with --data" in refused(["finetune", "--out", str(tmp_path)], capsys)


# --------------------------------------------------------------------- an adapter that is resumed


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_adapter_is_trained_on_if_it_is_of_this_base(settings, tmp_path, method):
    first = tmp_path / "first"
    r = {"lora": 2, "full": None}[method]
    before = finetune(replace(settings, method=method, r=r), first)
    more = replace(settings, r=None, resume_adapter=str(first), epochs=1)
    after = finetune(more, tmp_path / "second")
    best = dict(map(tuple, before["validation"]))[before["best_step"]]
    assert after["validation"][0][1] == pytest.approx(best, rel=1e-6)
    other = write_llama(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="first was trained on another base"):
        finetune(replace(more, model=str(other)), tmp_path / "third")
    with pytest.raises(ValueError, match="r is that of the adapter that is trained on"):
        finetune(replace(more, r=2), tmp_path / "third")
    (first / "training.json").unlink()  # without it the shapes tell
    narrow = write_llama(tmp_path / "narrow", d_model=8)
    with pytest.raises(ValueError, match="first: "):
        finetune(replace(more, model=str(narrow)), tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("complete", [True, False])
def test_a_run_does_not_continue_on_a_changed_adapter(settings, tmp_path, file, complete):
    first, out = tmp_path / "first", tmp_path / "second"
    finetune(replace(settings, epochs=1), first)
    more = replace(settings, r=None, resume_adapter=str(first), epochs=1)
    record = finetune(more, out)
    (out / "training.json").write_text(json.dumps({**record, "complete": complete}))
    before = (first / file).read_bytes()
    finetune(more, out)
    (out / "training.json").write_text(json.dumps({**record, "complete": complete}))
    if file.endswith(".json"):  # another scale, of the same tensors
        (first / file).write_text(json.dumps({**load_json(first / file), "lora_alpha": 64}))
    else:
        (first / file).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(FinetuneError, match=r"the adapter that is trained on changed since .*sec"):
        finetune(more, out)
    (first / file).write_bytes(before)
    assert finetune(more, out)["complete"]


def test_a_record_from_before_adapters_were_compared_continues(settings, tmp_path):
    first, out = tmp_path / "first", tmp_path / "second"
    finetune(replace(settings, epochs=1), first)
    more = replace(settings, r=None, resume_adapter=str(first), epochs=1)
    record = finetune(more, out)
    del record["base"]["adapter"]
    (out / "training.json").write_text(json.dumps({**record, "complete": False}))
    assert len(finetune(more, out)["base"]["adapter"]) == 64


# --------------------------------------------------------------------------------- the settings


def test_a_toml_file_sets_what_the_command_line_does_not(settings, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        f"model = {json.dumps(settings.model)}\ndata = {json.dumps(settings.data)}\n"
        'batch-size = 4\nepochs = 1\nlr = 1e-2\njobs = 1\ntarget_modules = ["q_proj", "up_proj"]\n'
        "[options]\nuse_rslora = true\n"
    )
    out = tmp_path / "out"
    assert main(["finetune", "--config", str(config), "--out", str(out), "--epochs", "2"]) == 0
    record = load_json(out / "training.json")
    found = record["settings"]
    assert (found["epochs"], found["batch_size"], found["lr"]) == (2, 4, 0.01)
    assert found["target_modules"] == ["q_proj", "up_proj"]
    assert load_json(out / "adapter_config.json")["use_rslora"] is True
    assert record["command"] == f"lora-np finetune --config {config} --epochs 2"


@pytest.mark.parametrize(
    "content, message",
    [
        ("epoch = 1", "there is no setting 'epoch': did you mean epochs"),
        ("epochs = '1'", "epochs = '1', expected a whole number"),
        ("epochs = true", "epochs = True, expected a whole number"),
        ("epochs = 0", "epochs = 0, expected at least 1"),
        ("long = 'cut'", "long = 'cut', expected 'refuse' or 'drop' or 'truncate'"),
        ("top-layers = 1\ntop_layers = 2", "top_layers is set twice"),
        ("epochs", "is not TOML"),
        ("options = 3", "options = 3, expected a table of names and values"),
        ("accumulate = 9", "accumulate = 9 parts of batch_size = 8"),
        ("method = 'lorra'", "there is no method 'lorra': did you mean lora"),
        ("options = { alpha = 3 }", "method 'lora' has no option 'alpha'"),
        ("method = 'bitfit'\nr = 2", "method 'bitfit' has no r: leave it out"),
        ("options = { use_dora = 'yes' }", "method 'lora' has no option 'use_dora'"),
        ("options = { use_rslora = 'yes' }", "use_rslora = 'yes', expected True or False"),
        ("target_modules = ['q']", "q"),
        ("top_layers = 9", "top_layers = 9, but the model has"),
        ("longest = 9999", "longest = 9999, but the model's context has"),
        ("resume_adapter = 'nowhere'", "nowhere"),
        ("template = 'nowhere'", "nowhere"),
    ],
)
def test_a_toml_file_with_a_mistake_is_refused(tmp_path, files, capsys, content, message):
    """Whether the file alone is wrong, or it does not fit the model; the line names the file."""
    config, (model, data) = tmp_path / "run.toml", files
    config.write_text(f"model = {json.dumps(model)}\ndata = {json.dumps(data)}\n{content}")
    said = refused(["finetune", "--config", str(config), "--out", str(tmp_path / "out")], capsys)
    assert message in said and str(config) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting, message", [("model", "no such file"), ("data", "mine")])
def test_a_toml_file_that_names_a_missing_file_is_refused(
    tmp_path, files, capsys, setting, message
):
    config, named = tmp_path / "run.toml", dict(zip(("model", "data"), files))
    named[setting] = str(tmp_path / "mine")
    config.write_text("\n".join(f"{name} = {json.dumps(file)}" for name, file in named.items()))
    said = refused(["finetune", "--config", str(config), "--dry-run"], capsys)
    assert message in said and f"(settings from {config})" in said


def test_an_error_of_the_command_line_names_no_file(settings, tmp_path, capsys):
    said = refused(command(settings, "--out", tmp_path / "out", "--epochs", "0"), capsys)
    assert "epochs = 0, expected at least 1" in said and "settings from" not in said
    (tmp_path / "run.toml").write_text("epochs = 3")
    words = ["finetune", "--config", str(tmp_path / "run.toml"), "--lr", "0"]
    assert f"(settings from {tmp_path / 'run.toml'} and the command line)" in refused(words, capsys)


def test_a_method_of_the_command_line_has_its_options(settings, tmp_path):
    out = tmp_path / "out"
    words = command(settings, "--out", out, "--method", "adalora", "--epochs", 1)
    del words[words.index("--r") : words.index("--r") + 2]
    assert main([*words, "--option", "target_r=1", "--option", "init_r=2"]) == 0
    assert load_json(out / "adapter_config.json")["peft_type"] == "ADALORA"


def test_quantised_weights_are_kept_under_adapters_and_not_trained_in_full(tmp_path, capsys):
    model = write_llama(tmp_path / "half", dtype=np.float16)
    data = write_data(tmp_path / "mine.jsonl")
    settings = Settings(model=str(model), data=str(data), keep_quantised=True)
    assert prepare(settings).model.head().stored_as == "float16"
    words = command(settings, "--keep-quantised", "--out")
    assert main([*words, str(tmp_path / "out")]) == 0
    capsys.readouterr()
    del words[words.index("--r") : words.index("--r") + 2]
    said = refused([*words, str(tmp_path / "full"), "--method", "full"], capsys)
    assert "stored as float16" in said and "no --keep-quantised" in said
    assert not (tmp_path / "full").exists()


def test_the_chat_template_is_that_of_the_settings(settings, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}={{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant={% endif %}"
    )
    for template, asked in (
        ("chatml", "user\nhow many in shop 0?\nassistant\n0"),  # no system message of its own
        (str(file), "user=how many in shop 0?assistant=0"),
    ):
        prepared = prepare(replace(settings, template=template, validation=0.0))
        assert prepared.tokenizer.decode(prepared.train[0].tokens.tolist()) == asked
    file.write_text("{% for m in")
    with pytest.raises(ValueError, match="template"):
        prepare(replace(settings, template=str(file)))


def test_toml_names_may_have_hyphens(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("top-layers = 2\nweight_decay = 0.1\n")
    assert read_toml(config) == {"top_layers": 2, "weight_decay": 0.1}


def test_options_of_the_command_line_are_added_to_those_of_the_file(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('method = "dora"\noptions = { lora_alpha = 4.0, use_rslora = true }\n')
    words = ["finetune", "--config", str(config), "--option", "lora_alpha=8.0"]
    found = settings_of(parser().parse_args(words))
    assert found.options == {"lora_alpha": 8.0, "use_rslora": True}
    config.write_text("options = 3\n")
    with pytest.raises(ValueError, match="options = 3"):
        settings_of(parser().parse_args(words))


def test_another_template_or_tokenizer_is_refused_where_a_run_continues(settings, tmp_path):
    file, out = tmp_path / "mine.jinja", tmp_path / "out"
    text = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    file.write_text(text)
    settings = replace(settings, template=str(file))
    finetune(settings, out)
    record = load_json(out / "training.json")
    (out / "training.json").write_text(json.dumps({**record, "complete": False}))
    file.write_text(text.replace("content", "content | upper"))
    with pytest.raises(FinetuneError, match=r"the template or tokenizer changed since .* was"):
        finetune(settings, out)
    file.write_text(text)
    assert finetune(settings, out)["loss"] == record["loss"]


def test_a_complete_run_is_not_that_of_another_base(settings, tmp_path):
    out = tmp_path / "out"
    finetune(settings, out)
    other = write_llama(tmp_path / "other", seed=5)
    with pytest.raises(FinetuneError, match="the base changed since"):
        finetune(replace(settings, model=str(other)), out)
    same = write_llama(tmp_path / "same", seed=0)
    assert finetune(replace(settings, model=str(same)), out)["complete"]


def test_a_folder_that_holds_anothers_record_is_trained_on(settings, tmp_path):
    first = tmp_path / "first"
    finetune(settings, first)
    for record in ([], {"base": {"name": "x"}}, {"base": 1}):
        (first / "training.json").write_text(json.dumps(record))
        assert prepare(replace(settings, r=None, resume_adapter=str(first))).model is not None


def test_the_bar_knows_all_tokens_without_asking_for_every_step(settings, monkeypatch):
    prepared = prepare(settings)
    training = Training(prepared.model, prepared.train, prepared.validation, settings)
    per_epoch = sum(map(len, prepared.train))
    bar = TrainingBar(training)
    assert (bar.first, bar.total) == (0, 2 * per_epoch)
    training.run(bar)
    assert bar.done == bar.total
    training.trainer.position = training.steps_in_epoch + 1
    began = TrainingBar(training)
    assert began.first == per_epoch + sum(
        map(len, training.epochs.samples(training.steps_in_epoch))
    )
    endless = Training(
        prepared.model, prepared.train, prepared.validation, replace(settings, epochs=10**15)
    )
    assert TrainingBar(endless).total == 10**15 * per_epoch
