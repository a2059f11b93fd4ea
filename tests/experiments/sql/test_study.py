"""lora_np.experiments.sql.study on a tiny Llama: runs, resumes, records; the base stays equal."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from lora_np.cli import main
from lora_np.experiments.asking import chat_answers
from lora_np.experiments.folder import SweepError
from lora_np.experiments.sql import study
from lora_np.experiments.sql.plan import (
    FULL,
    LORA,
    SCORED,
    SHOWN,
    Trial,
    best_rate,
    expected_number,
    next_work,
    records_of,
    tried_rates,
)
from lora_np.experiments.sql.report import study_report
from lora_np.experiments.sql.study import finetune_settings, run_sql, training_samples
from lora_np.experiments.sql.task import Sizes, messages, questions
from lora_np.finetune import train_adapter
from lora_np.pretrained import load_llm
from tests.experiments.sql.tiny import tiny_sql
from tests.finetune.tiny import SIZES, write_llama

TIMES = ("cpu_seconds", "wall_seconds")
MORE = {"sizes": Sizes(train=12, validation=6, test=6), "seeds": 2, "lora_rates": (1e-3, 1e-2)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings for a tiny model."""
    return tiny_sql(tmp_path_factory.mktemp("tiny") / "model", **MORE)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The folder of a run that was not stopped, and its results."""
    out = tmp_path_factory.mktemp("whole")
    return out, run_sql(tiny, out)


def timeless(results):
    results = json.loads(json.dumps(results))
    for entry in (*results["trials"], *results["scores"]):
        for name in TIMES:
            entry.pop(name, None)
    return results


# --- the plan ------------------------------------------------------------------------------------


def planted(settings, accuracy, diverged=()):
    """Carry out the whole plan with planted accuracies; return results and the order of work."""
    results, order = {"trials": [], "scores": []}, []
    while work := next_work(settings, results):
        order.append(work[0])
        trial, split = work[0]
        if split is None:
            said = {"diverged": "far"} if trial in diverged else {}
            results["trials"].append({**trial._asdict(), "cpu_seconds": 1.0, **said})
        else:
            right = [i < 10 * accuracy(trial) for i in range(10)]
            results["scores"].append({**trial._asdict(), "split": split, "right": right})
    return results, order


def test_a_rate_is_chosen_by_validation_before_any_test_split_is_answered(tiny):
    best = {LORA: 1e-2, FULL: 1e-3}
    results, order = planted(tiny, lambda trial: 0.9 if trial.lr == best.get(trial[0]) else 0.4)
    assert tried_rates(results, LORA) == {1e-3: 0.4, 1e-2: 0.9}
    assert best_rate(results, LORA) == 1e-2
    answered = {(w.trial.lr, w.split) for w in order if w.trial.contender == LORA}
    assert (1e-3, "validation") in answered
    assert not {(1e-3, split) for split in SCORED[1:]} & answered
    assert len(order) == len(set(order)) == expected_number(tiny)
    assert {w.trial.seed for w in order if w.split == "unseen schema"} == {0, 1}


def test_a_rate_that_diverged_is_not_chosen_and_a_contender_may_have_none(tiny):
    gone = {Trial(LORA, 0, 1e-2), Trial(FULL, 0, 1e-3)}
    results, order = planted(tiny, lambda trial: 0.0, gone)
    assert tried_rates(results, LORA) == {1e-3: 0.0, 1e-2: None}
    assert best_rate(results, LORA) == 1e-3 and best_rate(results, FULL) is None
    assert {w.trial.contender for w in order if w.split in SCORED} == {"base", SHOWN, LORA}


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_scores_every_contender_and_stores_what_it_trained(tiny, whole):
    out, results = whole
    assert results["complete"] and json.loads((out / "results.json").read_text()) == results
    assert len(results["trials"]) == 3 + 2 and len(results["scores"]) == 2 * 3 + 5 + 4 * 3
    records = records_of(results)
    asked = questions(0, tiny.sizes)["unseen schema"]
    mine = [r for r in records if (r["contender"], r["split"]) == (FULL, "unseen schema")]
    assert [r["gold"] for r in mine] == [q.sql for q in asked] * 2
    assert all(r["right"] == (r["reason"] is None) for r in records)
    llm = load_llm(tiny.model)
    (folder,) = (p for p in (out / "adapters").iterdir() if p.name.startswith("full-1"))
    model = study.merge(study.load_adapter(llm.model, folder))
    said = chat_answers(model, llm.tokenizer, [messages(q) for q in asked], 2, 4)
    assert said == [r["answer"] for r in mine if r["seed"] == 1]


def test_lora_and_full_fine_tuning_train_the_same_layers(tiny, whole):
    d, hidden, kv = SIZES["d_model"], SIZES["d_hidden"], SIZES["d_model"] // 2
    shapes = [(d, d), (kv, d), (kv, d), (d, d), (hidden, d), (hidden, d), (d, hidden)]
    trainable = {t["contender"]: t["trainable"] for t in whole[1]["trials"]}
    assert trainable[FULL] == 2 * sum(a * b for a, b in shapes)  # of the top two of three blocks
    assert trainable[LORA] == 2 * sum(2 * (a + b) for a, b in shapes)  # r = 2


def test_cpu_seconds_of_a_training_are_counted_and_children_with_them(whole, monkeypatch):
    assert all(t["cpu_seconds"] > 0 and t["wall_seconds"] > 0 for t in whole[1]["trials"])
    spent = partial(SimpleNamespace, user=1, system=2, children_user=4, children_system=8)
    monkeypatch.setattr(study.os, "times", spent)
    assert study.cpu_seconds() == 15


def test_the_base_is_answered_as_it_is_and_with_worked_examples(tiny, whole, monkeypatch):
    heard = []

    def answer(model, tokenizer, chats, **how):
        heard.append(chats)
        return ["SELECT 1"] * len(chats)

    monkeypatch.setattr(study, "chat_answers", answer)
    for name in ("base", SHOWN):
        work = study.Work(Trial(name, 0, None), "new values")
        study.carry_out_work(tiny, whole[0], work)
    plain, shown = (chats[0] for chats in heard)
    assert len(plain) == 2 and len(shown) == 4 and shown[-1] == plain[-1]
    assert shown[2]["role"] == "assistant" and "SELECT" in shown[2]["content"]


def test_a_run_that_is_stopped_after_any_work_continues_to_the_same_results(tiny, whole, tmp_path):
    stops = [1, 5, 8, 9, 14, 20]

    class Stopped(Exception):
        pass

    def listen(progress):
        if progress.done in stops:
            stops.remove(progress.done)
            raise Stopped

    while True:
        try:
            with ThreadPoolExecutor(1) as executor:  # all work that can start waits in a queue
                results = run_sql(tiny, tmp_path / "out", executor=executor, listen=listen)
            break
        except Stopped:  # a model that was written and not recorded is written anew
            (tmp_path / "out" / "adapters" / "lora-1-0.01").mkdir(parents=True, exist_ok=True)
    assert not stops and timeless(results) == timeless(whole[1])


def test_a_training_that_changes_the_base_is_refused(tiny, tmp_path, monkeypatch):
    def spoil(model, *rest):
        model.parameters()["model.layers.0.mlp.up_proj.W"].value[0, 0] += 1
        return train_adapter(model, *rest)

    study._base.cache_clear()
    monkeypatch.setattr(study, "train_adapter", spoil)
    with pytest.raises(SweepError, match=r"changed model\.layers\.0\.mlp\.up_proj\.W of the base"):
        run_sql(tiny, tmp_path / "out")
    study._base.cache_clear()


def test_a_training_that_diverges_leaves_no_model_and_no_row(tiny, tmp_path):
    rates = replace(tiny, seeds=1, lora_rates=(1e-3, 1e30), full_rates=(1e30,))
    results = run_sql(rates, tmp_path / "out")
    gone = [(t["contender"], t["lr"]) for t in results["trials"] if "diverged" in t]
    assert gone == [(LORA, 1e30), (FULL, 1e30)]
    assert [p.name for p in (tmp_path / "out" / "adapters").iterdir()] == ["lora-0-0.001"]
    said = study_report(results)
    assert "LoRA: 0.001: 0.0, 1e+30: diverged" in said and "full: 1e+30: diverged" in said


# --- samples and settings ------------------------------------------------------------------------


def test_a_sample_labels_the_query_and_its_end_and_asks_as_chat_does(tiny):
    tokenizer, (question, *_) = load_llm(tiny.model).tokenizer, questions(0, tiny.sizes)["train"]
    (sample,) = training_samples([question], tokenizer, 1024)
    asked = tokenizer.chat(messages(question), True)
    assert sample.tokens[: len(asked)].tolist() == asked
    assert np.flatnonzero(sample.labelled)[0] == len(asked)
    *query, end = sample.tokens[sample.labelled].tolist()
    assert tokenizer.decode(query) == question.sql and end in tokenizer.ends


def test_the_settings_of_a_training_are_those_of_the_study(tiny):
    model = load_llm(tiny.model).model
    samples = [None] * 60
    how = replace(tiny, epochs=2, batch_size=6, warmup=0.1)
    lora = finetune_settings(how, Trial(LORA, 3, 0.5), model, samples)
    assert (lora.r, lora.alpha, lora.lr, lora.seed, lora.jobs) == (2, 32.0, 0.5, 3, 1)
    assert (lora.warmup, lora.epochs, lora.schedule) == (2, 2, "cosine")  # of 20 steps
    full = finetune_settings(how, Trial(FULL, 3, 0.5), model, samples)
    assert full.r is None and set(full.target_modules) == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }


# --- folder, report, command ---------------------------------------------------------------------


def test_a_model_that_does_not_fit_is_refused_before_a_folder_is_made(tiny, tmp_path):
    with pytest.raises(ValueError, match="top_layers = 9, but the model has"):
        run_sql(replace(tiny, top_layers=9), tmp_path / "out")
    small = write_llama(tmp_path / "small")
    with pytest.raises(ValueError, match="tokens, more than"):
        run_sql(replace(tiny, model=str(small)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings_or_of_another_base_is_refused(tiny, whole, tmp_path):
    out = shutil.copytree(whole[0], tmp_path / "copy")
    with pytest.raises(SweepError, match="is of other settings"):
        run_sql(replace(tiny, r=4), out)
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({**results, "complete": False}))
    other = write_llama(tmp_path / "other", seed=9)
    with pytest.raises(SweepError, match="was started with another base"):
        run_sql(replace(tiny, model=str(other)), out)
    moved = shutil.copytree(tiny.model, tmp_path / "moved")
    assert run_sql(replace(tiny, model=str(moved)), out) == whole[1]


def test_the_report_shows_tests_and_states_what_training_took(whole):
    said = study_report(whole[1])
    for words in ("unseen phrasing (n = 6)", "CPU minutes", "LoRA, seed 1", "2 seeds"):
        assert words in said
    assert "validation (n" not in said.split("accuracy on validation")[0]


def test_the_command_prints_the_report_and_draws_the_picture(tiny, tmp_path, monkeypatch, capsys):
    small = replace(tiny, lora_rates=(1e-3,), model="smollm2")
    monkeypatch.setattr("lora_np.experiments.sql.plan.QUICK", small)
    given = ["sql", "--quick", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "out")]
    assert main([*given, "--model", tiny.model]) == 0
    first = capsys.readouterr().out
    assert "execution accuracy" in first and "a quick run: there is nothing to conclude" in first
    assert (tmp_path / "out" / "text_to_sql.png").read_bytes().startswith(b"\x89PNG")
    assert main([*given, "--model", tiny.model]) == 0
    assert capsys.readouterr().out == first.replace("written to", "held in")
    assert main([*given[:-1], str(tmp_path / "new"), "--model", "no_such_model"]) == 2
    assert not (tmp_path / "new").exists()
    assert main([*given, "--model", tiny.model, "--seeds", "0"]) == 2
    assert "seeds = 0, expected at least 1" in capsys.readouterr().err
