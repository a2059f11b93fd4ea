"""The text-to-SQL study: train, store, answer, judge; stopped at any moment, it continues.

Every training leaves an adapter in a folder, and every model answers from what its folder holds.
Work runs in processes that hold BLAS at one thread, so answers do not depend on their number, and
the CPU seconds of a training are those of one core.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters import load_adapter, save_adapter
from lora_np.crew import one_blas_thread
from lora_np.data import Epochs, Sample, samples_of
from lora_np.experiments.asking import chat_answers
from lora_np.experiments.folder import Kind, as_json, begin, opened, save_results
from lora_np.experiments.runner import Progress, run_all
from lora_np.experiments.sql.plan import (
    FULL,
    LORA,
    SHOWN,
    TRAINED,
    VERDICT,
    SqlSettings,
    Trial,
    Work,
    expected_number,
    in_order,
    next_work,
    records_of,
    trial_of,
)
from lora_np.experiments.sql.task import (
    Question,
    questions,
    scored,
    training_records,
    worked_examples,
)
from lora_np.experiments.unchanged import check_unchanged, parameter_hashes, whole
from lora_np.finetune import Settings, train_adapter
from lora_np.finetune.adapt import method_in
from lora_np.methods import merge
from lora_np.methods.targets import linear_paths
from lora_np.pretrained import load_llm

ADAPTERS = "adapters"  # the folder of the adapters
ASKED = ("template", "prompt", "gold")  # what the results hold of every question


def run_sql(
    settings: SqlSettings,
    out: str | Path,
    *,
    executor: Executor | None = None,
    listen: Callable[[Progress], None] | None = None,
    take_over: bool = False,
) -> dict[str, Any]:
    """Run or continue the study in a folder.

    Parameters
    ----------
    settings : SqlSettings
    out : str or Path
        Gets ``results.json`` and a folder ``adapters/CONTENDER-SEED-RATE`` for every training.
    executor : concurrent.futures.Executor, optional
        By default this process.
    listen : callable, optional
        Hears of every training and every answered split.
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.

    Returns
    -------
    dict
        The content of ``results.json``. :func:`lora_np.experiments.sql.plan.records_of` makes a
        record of every answer.

    Raises
    ------
    SweepError
        If the folder holds anything else, or a training changes the base.

    Examples
    --------
    >>> from lora_np.experiments.sql.study import run_sql
    >>> from lora_np.experiments.sql.plan import SqlSettings
    >>> run_sql(SqlSettings(model="no_such_model"), "no_such_folder")
    Traceback (most recent call last):
        ...
    lora_np.files.arrays.CheckpointError: model 'no_such_model': no such file or folder, and no
    model of a package; known are smollm2
    """
    out, asked = Path(out), _questions(settings.draw, settings.sizes)
    if not (out / "results.json").exists():
        _expect_fit(settings, asked["train"])  # before a folder is made
    with opened(KIND, out, made_with(settings, asked), take_over=take_over) as results:
        if results["complete"]:
            return results
        facts = {"base_sha256": whole(_base(settings.model)[1]), "questions": _facts(asked)}
        results.setdefault("scores", [])
        begin(out, results, facts, None)
        _work_off(settings, out, results, executor, listen)
        results["complete"] = True
        save_results(out, results)
    return results


def _expect_fit(settings: SqlSettings, asked: Sequence[Question]) -> None:
    """Raise ValueError if there is no such model, or if it cannot be trained on the questions."""
    model, tokenizer, *_ = _base(settings.model)[0]
    samples = training_samples(asked, tokenizer, model.block_size)
    for contender in TRAINED:
        trial = Trial(contender, 0, settings.rates(contender)[0])
        method_in(finetune_settings(settings, trial, model, samples), model, steps=1)


def _work_off(
    settings: SqlSettings,
    out: Path,
    results: dict[str, Any],
    executor: Executor | None,
    listen: Callable[[Progress], None] | None,
) -> None:
    """Do all work that is left; the results are saved after every piece of it."""

    def keep(work: Work, found: dict[str, Any], running: int) -> None:
        kind = "trials" if work.split is None else "scores"
        results[kind].append({**work.trial._asdict(), **found})
        save_results(out, results)
        if listen is not None:
            done = len(results["trials"]) + len(results["scores"])
            listen(Progress(done, expected_number(settings), work, found))

    waiting = partial(next_work, settings, results)
    run_all(waiting, partial(carry_out_work, settings, out), keep, executor)
    for kind in ("trials", "scores"):  # whichever ended first
        results[kind].sort(key=in_order)


def check_sql(settings: SqlSettings, out: str | Path, *, take_over: bool = False) -> bool:
    """Return whether the folder holds the complete study; raise what :func:`run_sql` raises."""
    if not (Path(out) / "results.json").exists():
        _base(settings.model)
    made = made_with(settings, _questions(settings.draw, settings.sizes))
    with opened(KIND, Path(out), made, take_over=take_over) as results:
        return results["complete"]


def made_with(settings: SqlSettings, asked: dict[str, list[Question]]) -> dict[str, Any]:
    """Return what decides the results: the settings without the model's name, and the questions."""
    fields = asdict(settings)
    del fields["model"]
    sha = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return {**fields, "questions_sha256": sha}


# -------------------------------------------------------------------------------- one piece of work


def carry_out_work(settings: SqlSettings, out: Path, work: Work) -> dict[str, Any]:
    """Train and store a model, or let one answer a split; return what the results hold of it."""
    asked = _questions(settings.draw, settings.sizes)
    with one_blas_thread():
        if work.split is None:
            return _train(settings, out, work.trial, asked["train"])
        return _score(settings, out, work, asked)


def _train(
    settings: SqlSettings, out: Path, trial: Trial, asked: Sequence[Question]
) -> dict[str, Any]:
    """Train one model and store it; return what that took."""
    llm, before = _base(settings.model)
    samples = training_samples(asked, llm.tokenizer, llm.model.block_size)
    chosen = finetune_settings(settings, trial, llm.model, samples)
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = train_adapter(llm.model, samples, [], chosen)
    took = {"cpu_seconds": cpu_seconds() - cpu, "wall_seconds": time.perf_counter() - wall}
    check_unchanged(before, parameter_hashes(llm.model), f"{trial.contender}, seed {trial.seed}")
    if result.diverged is not None:
        return {**took, "diverged": result.diverged}
    folder = folder_of(out, trial)
    shutil.rmtree(folder, ignore_errors=True)  # one that a stopped run wrote and did not record
    save_adapter(result.model, folder)
    trainable = sum(p.size for p in result.model.parameters().values() if p.trainable)
    losses = result.history.loss
    facts = {"trainable": trainable, "steps": len(losses), "tokens": sum(map(len, samples))}
    return {**facts, "train_loss": float(np.mean(losses[-20:])), **took}


def finetune_settings(
    settings: SqlSettings, trial: Trial, model: Any, samples: Sequence[Sample]
) -> Settings:
    """Return the settings of one training run; both methods train the same layers."""
    s, lr = settings, trial.lr
    assert lr is not None  # only a contender with a rate is trained
    steps = Epochs(samples, s.batch_size, trial.seed).steps(s.epochs)
    modules: Any = s.target_modules
    own: dict[str, Any] = {"r": s.r, "alpha": float(s.alpha)}
    if trial.contender == FULL:
        paths = linear_paths(model, s.target_modules)
        modules, own = list(dict.fromkeys(path.rpartition(".")[2] for path in paths)), {}
    return Settings(
        method={LORA: "lora", FULL: "full"}[trial.contender],
        target_modules=modules,
        top_layers=s.top_layers,
        epochs=s.epochs,
        batch_size=s.batch_size,
        together=s.together,
        lr=lr,
        warmup=round(s.warmup * steps),
        seed=trial.seed,
        jobs=1,
        **own,
    )


def training_samples(asked: Sequence[Question], tokenizer: Any, longest: int) -> list[Sample]:
    """Return a sample for each question: its chat, of which the query is labelled."""
    return samples_of(training_records(asked), tokenizer, longest=longest)[0]


def _score(
    settings: SqlSettings, out: Path, work: Work, asked: dict[str, list[Question]]
) -> dict[str, Any]:
    """Let a model answer a split; return the verdicts, a list for each part of them."""
    llm, _ = _base(settings.model)
    trial, split = work.trial, work.split
    assert split is not None
    model = llm.model
    if trial.lr is not None:
        model = merge(load_adapter(model, folder_of(out, trial)))
    shown = worked_examples(asked["train"], settings.examples) if trial.contender == SHOWN else ()
    how = {"longest": settings.longest, "together": settings.answered}
    answer = partial(chat_answers, model, llm.tokenizer, **how)
    cpu = cpu_seconds()
    records = scored(answer, asked[split], trial.contender, split, trial.seed, shown)
    verdicts = {name: [record[name] for record in records] for name in VERDICT}
    return {"split": split, "cpu_seconds": cpu_seconds() - cpu, **verdicts}


def cpu_seconds() -> float:
    """Return the processor's time that this process and its ended children have used."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def folder_of(out: Path, trial: Trial) -> Path:
    """Return the folder of a trained model."""
    return out / ADAPTERS / f"{trial.contender.lower()}-{trial.seed}-{trial.lr:g}"


# ------------------------------------------------------------------------------------------ helpers


@lru_cache(maxsize=1)
def _base(name: str) -> tuple[Any, dict[str, str]]:
    """Return the model with its tokenizer, and a hash of every Parameter; once in a process."""
    llm = load_llm(name)
    return llm, parameter_hashes(llm.model)


_questions = lru_cache(maxsize=1)(questions)


def _facts(asked: dict[str, list[Question]]) -> dict[str, list[dict[str, str]]]:
    """Return the questions of every split but the first as the results hold them."""
    return as_json(
        {
            split: [dict(zip(ASKED, (q.template, q.prompt, q.sql))) for q in found]
            for split, found in asked.items()
            if split != "train"
        }
    )


def _check(results: dict[str, Any]) -> None:
    """Raise what a look-up raises if results are not those of this study."""
    _ = results["settings"]["questions_sha256"]
    for entry in results["trials"]:
        _ = trial_of(entry), entry["cpu_seconds"]
    if results["complete"] and not records_of(results):
        raise ValueError


KIND = Kind("a text-to-SQL study", (ADAPTERS,), _check)
