"""A study on any executor: every result is kept as its run ends, and the same call goes on.

The base is that of the rank sweep's text task: pretrained once in the folder, or copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.crew import one_blas_thread
from lora_np.data import split, windows
from lora_np.experiments.folder import (
    PRETRAINING,
    Kind,
    Results,
    begin,
    opened,
    save_results,
)
from lora_np.experiments.rank_sweep.text import TextSettings, TextTask, losses_on, rebuild_base
from lora_np.experiments.runner import Arrays, Progress, run_all, with_mapped
from lora_np.experiments.study.plan import (
    Contender,
    Run,
    as_losses,
    best_rate,
    expected_number,
    next_runs,
)
from lora_np.experiments.study.trial import (
    LOSSES,
    Trained,
    model_of,
    run_study_trial,
    settings_of,
    texts_of,
)
from lora_np.models import GPT

UNUSED = ("ranks", "target_modules", "lora_lr", "full_lr", "method")  # of the sweep's settings

Listen = Callable[[Progress], None]


def as_printed(results: Results) -> str:
    """Return results as Python prints them, for a study without a report of its own."""
    return str(results)


@dataclass(frozen=True)
class Study:
    """A question that is answered by comparing contenders on the text task.

    Functions are those of a module, since a study is pickled with every run.

    Parameters
    ----------
    name : str
        The name of its command.
    text : TextSettings
        The task. Its ranks, targets and learning rates are not used: contenders have their own.
    contenders : sequence of Contender
    settings : mapping
        What else decides the results, or what reports and pictures need, for ``results.json``.
    conclude : callable
        ``conclude(results, arrays)`` returns what is added to complete results: ``claims``, a list
        of :class:`lora_np.experiments.claims.Claim` as dictionaries, and numbers beside them.
    report : callable
        ``report(results)`` returns complete results as text.
    pictures : mapping of str to callable
        By a file's name, ``draw(results, path)``.
    measure : callable, optional
        ``measure(trained)`` returns further numbers of a run, by name, from a
        :class:`~lora_np.experiments.study.trial.Trained`. It is not called where training diverged.
        A number with the name of a loss takes its place: searches look at ``validation_loss``.

    Examples
    --------
    >>> from lora_np import LoraConfig
    >>> from lora_np.experiments.rank_sweep import TextSettings
    >>> from lora_np.experiments.study import Contender, Study
    >>> from lora_np.experiments.study.report import report
    >>> contenders = [Contender("full", None, 4e-3), Contender("LoRA", LoraConfig(), 2e-2)]
    >>> study = Study("lora-or-full", TextSettings(), contenders, report=report)
    >>> study.name, len(study.contenders)
    ('lora-or-full', 2)
    """

    name: str
    text: TextSettings
    contenders: Sequence[Contender]
    settings: Mapping[str, Any] = field(default_factory=dict)
    conclude: Callable[[Results, Arrays], dict[str, Any]] | None = None
    report: Callable[[Results], str] = as_printed
    pictures: Mapping[str, Callable[[Results, Path], Any]] = field(default_factory=dict)
    measure: Callable[[Trained], Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        labels = [contender.label for contender in self.contenders]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice or not labels:
            what = f"two contenders are named {twice[0]!r}" if twice else "there is no contender"
            raise ValueError(f"{self.name}: {what}")

    @property
    def device(self) -> str:
        """The device of the task."""
        return self.text.device

    def kind(self) -> Kind:
        """Return how the folder of this study is recognised."""
        files = ("base.npz", "base.json", PRETRAINING, "*.png", f"{self.name}.txt")
        return Kind(f"a study ({self.name})", files, partial(_check_results, self))


def run_study(
    study: Study,
    out: str | Path,
    *,
    base: str | Path | None = None,
    executor: Executor | None = None,
    listen: Listen | None = None,
    progress: bool = False,
    take_over: bool = False,
) -> Results:
    """Run or resume a study.

    Parameters
    ----------
    study : Study
    out : str or Path
        Folder of ``results.json`` and the base. An equal study in it continues.
    base, executor, listen, progress, take_over : optional
        As for :func:`lora_np.experiments.rank_sweep.rank_sweep`.

    Returns
    -------
    dict
        The content of ``results.json``: ``settings`` (with the contenders), ``versions``,
        ``complete``, ``trials``, the losses of the base, ``best`` (the best learning rate by
        label, None where every rate diverged), and what ``study.conclude`` adds.

    Raises
    ------
    SweepError
        If the folder cannot be written, is in use, or holds anything else, or if `base` does not
        fit.
    ValueError
        If a contender cannot be trained; nothing has been trained then.
    """
    folder, task = Path(out), _task(study, base)
    with _opened(study, task, folder, take_over) as results:
        if not results["complete"]:
            arrays = {**task.prepare(folder, progress), "pretrain": split(task.pretraining).test}
            baseline = partial(_baseline, study, arrays)
            begin(folder, results, task.facts(folder, arrays), task.given_sha256, baseline)
            _run_all(study, arrays, results, folder, executor, listen)
            results |= _finished(study, results, arrays)
            save_results(folder, results)
    return results


def check_study(
    study: Study, out: str | Path, base: str | Path | None = None, *, take_over: bool = False
) -> bool:
    """Return whether `out` holds this study, complete; raise what run_study would raise."""
    with _opened(study, _task(study, base), Path(out), take_over) as results:
        return bool(results["complete"])


def as_sweep(study: Study) -> TextSettings:
    """Return one sweep that takes about as long as the study, to estimate the time."""
    s, tokens = study.text, 0
    for contender in study.contenders:
        own = settings_of(s, contender)
        runs = expected_number([contender], s.seeds)
        tokens += runs * own.steps * own.batch_size * own.block_size
    trials = tokens / (s.steps * s.batch_size * s.block_size)
    ranks = max(1, round(trials / (2 + s.seeds)))
    return replace(s, ranks=(1,) * ranks, full_lr=None, method=None)


def _task(study: Study, base: str | Path | None) -> TextTask:
    """Return the task; raise ValueError if a contender could not be trained."""
    task = TextTask(replace(study.text, ranks=(1,), method=None), base)
    blank = GPT(study.text.gpt(), np.random.default_rng(0))
    arrays = {"adapt": task.adaptation, "pretrain": task.pretraining}
    for contender in study.contenders:
        try:
            own = settings_of(study.text, contender)
            model_of(blank, contender, 0)
            train = texts_of(arrays, contender)["train"]
            windows(train, own.block_size, 1)
            if contender.tokens is not None and len(train) < contender.tokens:
                raise ValueError(f"the text to train on has only {len(train):,} bytes")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{contender.label}: {error}") from None
        if not 0.0 < contender.start < math.inf:
            expected = "expected a positive learning rate"
            raise ValueError(f"{contender.label}: start = {contender.start}, {expected}")
    return task


def _opened(
    study: Study, task: TextTask, folder: Path, take_over: bool
) -> AbstractContextManager[Results]:
    """Give the results that the folder holds, or new ones; nothing is overwritten."""
    text = {name: value for name, value in asdict(study.text).items() if name not in UNUSED}
    contenders = [contender.as_dict() for contender in study.contenders]
    own = {**study.settings, "contenders": contenders}
    made_with = {"task": study.name, **text, **own, **task.identity()}
    return opened(study.kind(), folder, made_with, task.given_sha256, take_over)


def _baseline(study: Study, arrays: Arrays) -> dict[str, float]:
    """Return the losses of the base, also on the text that it was pretrained on.

    They are measured as those of the contenders are, where all of these change the same settings.
    """
    first, *others = (contender.changes.items() for contender in study.contenders)
    settings = replace(study.text, **dict(x for x in first if all(x in other for other in others)))
    texts = {**split(arrays["adapt"])._asdict(), "pretrain": arrays["pretrain"]}
    del texts["train"]
    with one_blas_thread():
        losses = losses_on(rebuild_base(study.text, arrays), settings, texts)
    return {f"base_{name}": loss for name, loss in losses.items()}


def _run_all(
    study: Study,
    arrays: Arrays,
    results: Results,
    folder: Path,
    executor: Executor | None,
    listen: Listen | None,
) -> None:
    """Run what the plan still asks for, and save each result as its run ends."""
    seeds, base = study.text.seeds, results["base_validation_loss"]

    def waiting() -> list[Run]:
        return next_runs(study.contenders, seeds, as_losses(results["trials"]), base)

    def keep(run: Run, found: dict[str, Any], running: int) -> None:
        results["trials"].append({**run._asdict(), **found})
        save_results(folder, results)
        if listen is not None:
            done = len(results["trials"])
            expected = max(expected_number(study.contenders, seeds), done + running)
            listen(Progress(done, expected, run, found))

    def work(arrays: Arrays) -> None:
        run_all(waiting, partial(run_study_trial, study, arrays), keep, executor)

    with_mapped(arrays, folder, executor, work)


def _finished(study: Study, results: Results, arrays: Arrays) -> dict[str, Any]:
    """Return what complete results hold beside the runs, which are put in the study's order."""
    order = [contender.label for contender in study.contenders]
    trials = sorted(results["trials"], key=lambda t: (order.index(t["label"]), t["lr"], t["seed"]))
    done, base = as_losses(trials), results["base_validation_loss"]
    best = {c.label: best_rate(c, done, base) for c in study.contenders}
    found = {**results, "trials": trials, "best": best, "complete": True}
    return {**found, **(study.conclude(found, arrays) if study.conclude is not None else {})}


def _check_results(study: Study, results: Results) -> None:
    """Raise an error, as Kind says, if results are not those of a study."""
    if results["settings"]["task"] != study.name:
        raise TypeError
    for trial in results["trials"]:
        _number(trial["lr"])
        if type(trial["label"]) is not str or type(trial["seed"]) is not int:
            raise TypeError
        for name in LOSSES:
            if trial[name] is not None:  # it diverged
                _number(trial[name])
    if results["complete"]:
        study.report(results)


def _number(value: Any) -> None:
    if type(value) not in (int, float) or not math.isfinite(float(value)):
        raise TypeError(value)
