"""Train an adapter for every pair over one base, and score every adapter on every pair.

The base is shared and never changed: its Parameters are hashed before the first training and after
each one. ``one_shared_model`` does the opposite, as a control.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np.adapters import save_adapter
from lora_np.experiments.folder import Kind, Results, begin, opened, save_results
from lora_np.experiments.personal.matrix import BASE, Matrix, matrix_text
from lora_np.experiments.personal.plan import Plan
from lora_np.experiments.personal.samples import Splits, samples_of
from lora_np.experiments.personal.tasks import Sample
from lora_np.experiments.unchanged import check_unchanged, parameter_hashes, whole
from lora_np.layers import Layer
from lora_np.report import Report

ADAPTERS = "adapters"  # the folder of the adapters: adapters/USER/TASK


class Tools(NamedTuple):
    """What the experiment needs of a model and its trainer.

    Attributes
    ----------
    train : callable
        ``train(base, samples, validation)`` returns an adapted model that leaves `base` as it was.
    losses : callable
        ``losses(model, samples)`` returns the mean loss of each sample's answer, in nats a token.
    answer : callable
        ``answer(model, prompts)`` returns one text for each prompt.
    save : callable
        ``save(adapted, folder)`` writes the adapter to a new folder.
    """

    train: Callable[[Any, Sequence[Sample], Sequence[Sample]], Any]
    losses: Callable[[Any, Sequence[Sample]], np.ndarray]
    answer: Callable[[Any, list[str]], list[str]]
    save: Callable[[Any, Path], None] = save_adapter


def run_personal(
    plan: Plan,
    base: Layer,
    out: str | Path,
    tools: Tools,
    listen: Callable[[str], None] = lambda what: None,
    take_over: bool = False,
) -> Results:
    """Train and score an adapter for every pair of a plan; a stopped run continues.

    Parameters
    ----------
    plan : Plan
    base : Layer
    out : str or Path
        Gets ``results.json`` and a folder ``adapters/USER/TASK`` for every pair.
    tools : Tools
    listen : callable, optional
        ``listen(what)`` is called before each step with what comes next.
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.

    Returns
    -------
    dict
        The content of ``results.json``; ``matrix_of`` makes the matrix of it. The "seconds" of a
        pair are those of a processor, for its training.

    Raises
    ------
    SweepError
        If a training changes the base, or the folder holds results of another plan or base.
    """
    out, samples = Path(out), samples_of(plan)
    held_out = {name: splits.held_out for name, splits in samples.items()}
    before = parameter_hashes(base)
    sha = whole(before)
    with opened(KIND, out, _made_with(plan, samples), sha, take_over) as results:
        if results["complete"]:
            return results

        def baseline() -> dict[str, Any]:
            listen("the base, before any training")
            return {"base_scores": score(base, held_out, tools)}

        begin(out, results, {"base_sha256": sha}, sha, baseline)
        for name in list(plan.pairs)[len(results["trials"]) :]:  # they end in this order
            listen(name)
            started = time.process_time()
            adapted = tools.train(base, samples[name].train, samples[name].validation)
            seconds = time.process_time() - started
            check_unchanged(before, parameter_hashes(base), name)
            _save(adapted, out / ADAPTERS / name, tools)
            found = {"name": name, "seconds": seconds, **score(adapted, held_out, tools)}
            results["trials"].append(found)
            save_results(out, results)
        results["complete"] = True
        save_results(out, results)
    return results


def score(model: Any, held_out: Mapping[str, list[Sample]], tools: Tools) -> dict[str, Any]:
    """Return each held-out sample's loss, and whether its answer is exactly right, by pair."""
    samples = [sample for own in held_out.values() for sample in own]
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))  # pairs share most
    losses, answers = tools.losses(model, samples), tools.answer(model, prompts)
    for what, found, asked in (("losses", losses, samples), ("answers", answers, prompts)):
        if len(found) != len(asked):
            raise ValueError(f"{len(found)} {what} to {len(asked)} prompts")
    said, left = dict(zip(prompts, answers)), iter(losses)
    return {
        "losses": {name: [float(next(left)) for _ in own] for name, own in held_out.items()},
        "exact": {
            name: [said[sample.prompt].strip() == sample.answer.strip() for sample in own]
            for name, own in held_out.items()
        },
    }


def matrix_of(results: Results) -> Matrix:
    """Return the matrix of complete results."""
    rows = {BASE: results["base_scores"], **{t["name"]: t for t in results["trials"]}}
    pairs = list(results["base_scores"]["losses"])
    adapters = (BASE, *(name for name in pairs if name in rows))
    losses, exact = (
        np.array([[rows[name][what][pair] for pair in pairs] for name in adapters])
        for what in ("losses", "exact")
    )
    return Matrix(adapters, pairs, losses, exact)


def run_text(results: Results) -> Report:
    """Return complete results as text: the matrix, the verdict, the base, the time."""
    seconds = [trial["seconds"] for trial in results["trials"]]
    said = (
        f"The base is bit-equal before the first training and after each of {len(seconds)} "
        f"(SHA-256 {results['base_sha256'][:16]}).\n"
        f"A training took {min(seconds):.0f} to {max(seconds):.0f} seconds of one processor."
    )
    return Report([matrix_text(matrix_of(results)), said])


class Control(NamedTuple):
    """The first task's held-out losses (n,) with one shared model.

    Attributes
    ----------
    before, after : array, shape (n,)
        After training the first task, and after training the second one too.
    """

    before: np.ndarray
    after: np.ndarray


def one_shared_model(
    model: Any,
    first: Splits,
    second: Splits,
    train: Callable[[Any, Sequence[Sample]], None],
    losses: Callable[[Any, Sequence[Sample]], np.ndarray],
) -> Control:
    """Do what must not be done: keep "a model for each task" that are one and the same model.

    A tutorial adapts a model once, trains it on each task in turn, and stores it under each task's
    name. Both names then refer to one set of weights, and the second training overwrites what the
    first one learned.

    Parameters
    ----------
    model : model
        Adapted; it is trained in place.
    first, second : Splits
    train : callable
        ``train(model, samples)`` trains a model in place.
    losses : callable
        As in ``Tools``.

    Returns
    -------
    Control
        How well "the first task's model" does on its own task, before and after the second.
    """
    models = {}
    train(model, first.train)
    models["first"] = model
    before = losses(models["first"], first.held_out)
    train(model, second.train)
    models["second"] = model  # the same object: nothing was kept apart
    return Control(before, losses(models["first"], first.held_out))


def _save(adapted: Any, folder: Path, tools: Tools) -> None:
    """Write an adapter, over one that a stopped run wrote and did not score."""
    if folder.exists():
        shutil.rmtree(folder)
    tools.save(adapted, folder)


def _made_with(plan: Plan, samples: Mapping[str, Splits]) -> dict[str, Any]:
    """Return what decides the results: the plan, and a hash of all samples."""
    fields = asdict(plan)
    for task in fields["tasks"]:
        task["file"] = None if task["file"] is None else task["file"].name
    texts = repr([(name, *splits) for name, splits in samples.items()])
    return {**fields, "samples_sha256": hashlib.sha256(texts.encode()).hexdigest()}


def _check(results: Results) -> None:
    """Raise what a look-up raises if results are not those of this experiment."""
    fields = [results["settings"][name] for name in ("users", "tasks", "samples_sha256")]
    rows = [(trial["name"], trial["losses"], trial["exact"]) for trial in results["trials"]]
    if not all(fields) or (results["complete"] and len(matrix_of(results).pairs) != len(rows)):
        raise ValueError


KIND = Kind("personal adapters", (ADAPTERS,), _check)
