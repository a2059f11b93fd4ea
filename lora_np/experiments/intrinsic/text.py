"""The text task's intrinsic dimension: a GPT that was pretrained against one that was not.

The base, the texts, their slices and the batches are those of the rank sweep. Both models learn the
same second text in the same number of steps, and each is compared with its own full training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.data import split, windows
from lora_np.experiments.folder import Kind, Results, begin, opened, save_results
from lora_np.experiments.intrinsic.dimension import Problem, Run, intrinsic_dimension
from lora_np.experiments.intrinsic.report import STARTS, report
from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.experiments.rank_sweep.text import (
    DeviceBatches,
    TextSettings,
    TextTask,
    rebuild_base,
)
from lora_np.experiments.runner import Arrays, with_mapped
from lora_np.models import GPT
from lora_np.train import evaluate

UNUSED = ("ranks", "target_modules", "lora_lr", "method")  # of the sweep's settings


@dataclass(frozen=True)
class IntrinsicSettings:
    """The settings of an intrinsic run; they decide its results.

    Parameters
    ----------
    ds : tuple of int
        The default ends with D, the number of parameters of the default sizes.
    text : TextSettings
        Texts, sizes, ``steps`` of every run, ``seeds``, and ``full_lr``, where searches start. The
        ranks and the other settings of LoRA are not used.

    Examples
    --------
    >>> from lora_np.experiments.intrinsic import QUICK, IntrinsicSettings
    >>> IntrinsicSettings().text.seeds, QUICK.ds
    (2, (64, 1024, 16384))
    """

    ds: tuple[int, ...] = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 120576)
    text: TextSettings = field(default_factory=lambda: TextSettings(seeds=2))


QUICK = IntrinsicSettings(
    ds=(64, 1024, 16384),
    text=TextSettings(seeds=1, pretrain_steps=80, steps=10, windows=16),
)


@dataclass(frozen=True)
class TextProblem:
    """Makes the problem of adapting a GPT with these arrays to the second text, in any process."""

    settings: TextSettings
    arrays: Arrays

    def __call__(self, seed: int) -> Problem:
        """Return the model, the seed's batches, and the validation loss."""
        s, slices = self.settings, split(self.arrays["adapt"])
        held_out = windows(slices.validation, s.block_size, s.windows)
        return Problem(
            rebuild_base(s, self.arrays),
            DeviceBatches(s, slices.train, np.random.default_rng([seed, 0])),
            lambda model: evaluate(model, *held_out),
        )


def intrinsic_run(
    settings: IntrinsicSettings,
    out: str | Path,
    *,
    base: str | Path | None = None,
    executor: Executor | None = None,
    listen: Callable[[Run, float], None] | None = None,
    progress: bool = False,
    take_over: bool = False,
) -> dict[str, Any]:
    """Measure the intrinsic dimension of the text task, pretrained and not.

    Parameters
    ----------
    settings : IntrinsicSettings
    out : str or Path
        Folder of ``results.json`` and the base. A run of equal settings in it continues.
    base, executor, progress, take_over : optional
        As for :func:`lora_np.experiments.rank_sweep.rank_sweep`.
    listen : callable, optional
        Called with every run that ends, and its loss.

    Returns
    -------
    dict
        ``settings``, ``versions``, ``complete``, ``trials`` (every run with its loss, None where it
        diverged), ``base_made``, ``base_sha256``, and, for "pretrained" and "random", what
        :func:`~lora_np.experiments.intrinsic.dimension.intrinsic_dimension` returns.

    Raises
    ------
    SweepError
        If the folder cannot be written, is in use, or holds anything else, or if `base` does not
        fit.
    ValueError
        If the text settings have no ``full_lr``.
    """
    folder, task = Path(out), _task(settings, base)
    with _opened(settings, task, folder, take_over) as results:
        if not results["complete"]:
            results.setdefault("trials", [])  # earlier versions saved none
            arrays = task.prepare(folder, progress)
            begin(folder, results, task.facts(folder, arrays), task.given_sha256)
            for start, given in _arrays(settings.text, arrays).items():
                measure = partial(_measure, settings, results, folder, start, executor, listen)
                results[start] = with_mapped(given, folder, executor, measure)
            results["complete"] = True
            save_results(folder, results)
    return results


def check_intrinsic(
    settings: IntrinsicSettings,
    out: str | Path,
    base: str | Path | None = None,
    *,
    take_over: bool = False,
) -> bool:
    """Return whether `out` holds this run, complete; raise what intrinsic_run would raise."""
    with _opened(settings, _task(settings, base), Path(out), take_over) as results:
        return bool(results["complete"])


def _task(settings: IntrinsicSettings, base: str | Path | None) -> TextTask:
    if settings.text.full_lr is None:
        raise ValueError("full_lr is None, expected a learning rate: searches start there")
    # TextTask checks ranks, which are not used here.
    return TextTask(replace(settings.text, ranks=(1,)), base)


def _measure(
    settings: IntrinsicSettings,
    results: Results,
    folder: Path,
    start: str,
    executor: Executor | None,
    listen: Callable[[Run, float], None] | None,
    arrays: Arrays,
) -> dict[str, Any]:
    """Return the intrinsic dimension from one start; each run is saved as it ends."""
    s = settings.text
    assert s.full_lr is not None  # _task refuses None

    def keep(run: Run, loss: float) -> None:
        found = loss if math.isfinite(loss) else None
        results["trials"].append({"start": start, **asdict(run), "loss": found})
        save_results(folder, results)
        if listen is not None:
            listen(run, loss)

    return intrinsic_dimension(
        TextProblem(s, arrays),
        settings.ds,
        lr=s.full_lr,
        fit_options={"steps": s.steps, "warmup": s.steps // 10, "options": {"weight_decay": 0.0}},
        seeds=s.seeds,
        executor=executor,
        listen=keep,
        done=dict(_kept(trial) for trial in results["trials"] if trial["start"] == start),
    )


def _kept(trial: dict[str, Any]) -> tuple[Run, float]:
    """Return the run, and its loss, that an entry of the results stands for."""
    run = Run(*(trial[name] for name in ("variant", "d", "seed", "lr")))
    return run, math.inf if trial["loss"] is None else float(trial["loss"])


def _arrays(settings: TextSettings, pretrained: Arrays) -> dict[str, Arrays]:
    """Return the arrays that runs need, by where they start."""
    blank = GPT(settings.gpt(), np.random.default_rng([0, 3])).parameters()
    random = {name: p.value for name, p in blank.items()}
    return {"pretrained": pretrained, "random": {**random, "adapt": pretrained["adapt"]}}


def _opened(
    settings: IntrinsicSettings, task: TextTask, folder: Path, take_over: bool
) -> AbstractContextManager[Results]:
    """Give the results that the folder holds, or new ones; nothing is overwritten."""
    text = {k: v for k, v in asdict(settings.text).items() if k not in UNUSED}
    made_with = {"task": "intrinsic", "ds": settings.ds, **text, **task.identity()}
    return opened(INTRINSIC, folder, made_with, task.given_sha256, take_over)


def _check(results: Results) -> None:
    """Raise an error, as Kind says, if results are not those of an intrinsic run."""
    trials = results.get("trials", [])
    if not isinstance(trials, list) or any(trial["start"] not in STARTS for trial in trials):
        raise TypeError
    for run, _ in map(_kept, trials):
        Trial(run.variant, run.d, run.seed, run.lr)  # raises if the fields are not a run's
    if results["complete"]:
        report(results)


INTRINSIC = Kind("an intrinsic run", ("*",), _check)
