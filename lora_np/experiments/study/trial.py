"""One run of a study: a contender is trained on the text task, and the losses are measured."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lora_np.crew import one_blas_thread
from lora_np.data import split
from lora_np.experiments.rank_sweep.text import TextSettings, adapt, losses_on, rebuild_base
from lora_np.experiments.runner import Arrays, guarded
from lora_np.experiments.study.plan import Contender, Run
from lora_np.layers import copy_model
from lora_np.methods import inject
from lora_np.models import GPT

LOSSES = ("train_loss", "validation_loss", "test_loss", "pretrain_loss")
OWN = ("steps", "batch_size", "block_size")  # settings that contenders may change
MEASURED = ("trainable_parameters", *LOSSES, "seconds")


class Trained(NamedTuple):
    """What a study may measure further: ``measure(trained)`` returns numbers by name.

    Attributes
    ----------
    contender : Contender
    run : Run
    model : model
        As it was trained.
    base : GPT
        As it was before; an adapted model shares its frozen arrays.
    settings : TextSettings
        Those of this contender.
    texts : mapping of str to ndarray
        Tokens: "train" (what this contender saw), "validation", "test", and "pretrain", a slice of
        the pretraining text that the base did not see.
    """

    contender: Contender
    run: Run
    model: Any
    base: GPT
    settings: TextSettings
    texts: Mapping[str, np.ndarray]


def run_study_trial(study: Any, arrays: Arrays, run: Run) -> dict[str, Any]:
    """Train a contender once and return its losses; if it diverges, they are None.

    Parameters
    ----------
    study : lora_np.experiments.study.Study
    arrays : mapping of str to ndarray
        The base, the text to adapt it to ("adapt"), and held-out pretraining text ("pretrain").
    run : Run

    Returns
    -------
    dict
        ``trainable_parameters``, ``train_loss``, ``validation_loss``, ``test_loss``,
        ``pretrain_loss``, ``seconds``, and what the study measures further.
    """
    (contender,) = (c for c in study.contenders if c.label == run.label)
    result, _ = guarded(partial(_train, study, arrays, contender, run), MEASURED, LOSSES)
    return result


def settings_of(text: TextSettings, contender: Contender) -> TextSettings:
    """Return the settings of the text task with which a contender is trained.

    Raises
    ------
    ValueError
        If it changes a setting that all contenders must share, such as a size of the base, or if
        it needs longer windows than the base has positions.
    """
    for name, value in contender.changes.items():
        if name not in OWN:
            raise ValueError(f"changes of {name}: a contender can change only {', '.join(OWN)}")
        if value < 1:
            raise ValueError(f"{name} = {value}, expected at least 1")
    settings = replace(text, **contender.changes)
    if settings.block_size > text.block_size:
        above = f"above the {text.block_size} positions of the base"
        raise ValueError(f"block_size = {settings.block_size} is {above}")
    return settings


def model_of(base: GPT, contender: Contender, seed: int) -> Any:
    """Return the model that a contender trains; `base` stays as it is."""
    if contender.method is None:
        return copy_model(base)
    return inject(base, contender.method, np.random.default_rng([seed, 1]))


def texts_of(arrays: Arrays, contender: Contender) -> dict[str, np.ndarray]:
    """Return the slices of the texts by name; the one to train on is cut to a contender's size."""
    slices = split(arrays["adapt"])
    train = slices.train[: contender.tokens]
    held_out = {"validation": slices.validation, "test": slices.test}
    return {"train": train, **held_out, "pretrain": arrays["pretrain"]}


def _train(
    study: Any, arrays: Arrays, contender: Contender, run: Run
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    start, settings = time.perf_counter(), settings_of(study.text, contender)
    texts = texts_of(arrays, contender)
    with one_blas_thread():
        base = rebuild_base(study.text, arrays)
        model = model_of(base, contender, run.seed)
        adapt(model, settings, texts["train"], run.seed, run.lr)
        losses = losses_on(model, settings, texts)
        count = sum(p.value.size for p in set(model.parameters().values()) if p.trainable)
        seconds = round(time.perf_counter() - start, 3)
        more = {}
        if study.measure is not None and all(map(math.isfinite, losses.values())):
            trained = Trained(contender, run, model, base, settings, texts)
            more = dict(study.measure(trained))
    return {"trainable_parameters": count, **losses, "seconds": seconds, **more}, {}
