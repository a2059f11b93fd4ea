"""The sweep itself: every trial of the plan on any executor, its result saved as it ends.

Calling the sweep again with equal settings continues it; with other settings it is an error, and
nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lora_np.experiments.folder import Results, begin, opened, save_results
from lora_np.experiments.rank_sweep.linear import LinearSettings, LinearTask, run_linear_trial
from lora_np.experiments.rank_sweep.llm import LlmSettings, LlmTask, run_llm_trial
from lora_np.experiments.rank_sweep.method import as_settings
from lora_np.experiments.rank_sweep.plan import Trial, chosen_trials, expected_number, next_trials
from lora_np.experiments.rank_sweep.results import SweepResults
from lora_np.experiments.rank_sweep.store import (
    LOSSES,
    SWEEP,
    done_trials,
    drop_lost_trials,
    drop_other_models,
    model_file,
)
from lora_np.experiments.rank_sweep.text import TextSettings, TextTask, run_text_trial
from lora_np.experiments.runner import Arrays, Progress, guarded, run_all, with_mapped
from lora_np.files import load_arrays, save_arrays
from lora_np.files.atomic import make_folder

Settings = TextSettings | LinearSettings | LlmSettings

MEASURED = ("trainable_parameters", *LOSSES, "seconds")


class Task(Protocol):
    """What a task offers. Its trials are the functions in TRIALS, which workers call."""

    given_sha256: str | None  # of a base that the caller gave

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on besides the settings."""
        ...

    def prepare(self, folder: Path, progress: bool) -> dict[str, np.ndarray]:
        """Return the arrays that trials need."""
        ...

    def baseline(self, arrays: Arrays) -> dict[str, float]:
        """Return the losses of the base before it is adapted."""
        ...

    def facts(self, folder: Path, arrays: Arrays) -> dict[str, Any]:
        """Return what is known before any trial: where the base came from, or the floors."""
        ...

    def change_spectrum(self, arrays: Arrays, trained: Arrays) -> list[dict[str, Any]]:
        """Return the spectrum of what full fine-tuning changed, matrix by matrix."""
        ...


TASKS: dict[str, Callable[..., Task]] = {"text": TextTask, "linear": LinearTask, "llm": LlmTask}
TRIALS: dict[str, Callable] = {
    "text": run_text_trial,
    "linear": run_linear_trial,
    "llm": run_llm_trial,
}


def rank_sweep(
    settings: Settings,
    out: str | Path,
    *,
    base: str | Path | None = None,
    executor: Executor | None = None,
    listen: Callable[[Progress], None] | None = None,
    progress: bool = False,
    take_over: bool = False,
) -> SweepResults:
    """Measure loss against rank, for LoRA and for full fine-tuning.

    Parameters
    ----------
    settings : TextSettings, LinearSettings or LlmSettings
    out : str or Path
        Folder of ``results.json``, the base and the models. An equal sweep in it continues.
    base : str or Path, optional
        Folder of a text sweep whose base is copied. By default, a base is pretrained.
    executor : concurrent.futures.Executor, optional
        Runs the trials: a process pool, or one of Dask or MPI. By default this process.
    listen : callable, optional
        Called with a Progress after every trial.
    progress : bool
        Show a bar while the base is pretrained.
    take_over : bool
        Take `out` from a process on another host that has ended.

    Returns
    -------
    SweepResults
        The content of ``results.json`` by name; prints as a table, and plots the curve.

    Raises
    ------
    SweepError
        If `out` cannot be written, is in use, or holds another sweep, or if `base` does not fit.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np import rank_sweep
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> settings = LinearSettings(ranks=(1, 2), seeds=1, d_in=4, d_out=3, decay=0.5, steps=100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = rank_sweep(settings, folder)
    >>> {run["rank"]: round(run["test_loss"], 3) for run in results["runs"] if run["rank"]}
    {1: 0.156, 2: 0.031}
    >>> [round(floor, 3) for floor in results["floors"][1:3]]  # what theory allows
    [0.156, 0.031]
    """
    task, folder = TASKS[settings.task](settings, base), Path(out)
    with _opened(settings, task, folder, take_over) as results:
        if not results["complete"]:
            arrays = task.prepare(folder, progress)
            baseline = partial(task.baseline, arrays)
            begin(folder, results, task.facts(folder, arrays), task.given_sha256, baseline)
            _run_trials(settings, arrays, results, folder, executor, listen)
            _finish(settings, task, arrays, results, folder)
    return SweepResults(results)


def check_sweep(
    settings: Settings,
    out: str | Path,
    base: str | Path | None = None,
    *,
    take_over: bool = False,
) -> bool:
    """Return whether `out` holds this sweep, complete; raise what rank_sweep would raise."""
    task = TASKS[settings.task](settings, base)
    with _opened(settings, task, Path(out), take_over) as results:
        return bool(results["complete"])


@contextmanager
def _opened(settings: Settings, task: Task, folder: Path, take_over: bool) -> Iterator[Results]:
    """Give the results in `folder`, or new ones, with the folder ready to continue."""
    made_with = {"task": settings.task, **as_settings(settings), **task.identity()}
    with opened(SWEEP, folder, made_with, task.given_sha256, take_over) as results:
        if results["complete"]:
            drop_other_models(folder, results)  # a process killed at its end may have left them
        else:
            drop_lost_trials(folder, results)
            make_folder(folder / "models")
        yield results


def _run_trials(
    settings: Settings,
    arrays: Arrays,
    results: Results,
    folder: Path,
    executor: Executor | None,
    listen: Callable[[Progress], None] | None,
) -> None:
    """Run the trials that the plan still asks for, and save each as it ends."""
    base = results["base_validation_loss"]

    def keep(trial: Trial, found: tuple[dict[str, Any], Arrays], running: int) -> None:
        result, trained = found
        if trained:
            save_arrays(model_file(folder, trial), trained)
        results["trials"].append({**trial.as_dict(), **result})
        save_results(folder, results)
        if listen is not None:
            done = len(results["trials"])
            expected = max(expected_number(settings), done + running)
            listen(Progress(done, expected, trial, result))

    def waiting() -> list[Trial]:
        return next_trials(settings, done_trials(results), base)

    def run(arrays: Arrays) -> None:
        run_all(waiting, partial(guarded_trial, settings, arrays), keep, executor)

    with_mapped(arrays, folder, executor, run)


def guarded_trial(
    settings: Settings, arrays: Arrays, trial: Trial
) -> tuple[dict[str, Any], Arrays]:
    """Run a trial; if it diverges, that is the result, with None for the losses."""
    return guarded(partial(TRIALS[settings.task], settings, arrays, trial), MEASURED, LOSSES)


def _finish(settings: Settings, task: Task, arrays: Arrays, results: Results, folder: Path) -> None:
    """Pick the runs of the curve, take the spectrum of the change, and drop the other models."""
    done = done_trials(results)
    chosen = chosen_trials(settings, done, results["base_validation_loss"])
    by_trial = dict(zip(done, results["trials"]))
    results["runs"] = [by_trial[trial] for trial in chosen]
    full = next((t for t in chosen if t.method == "full"), None)
    if full is not None:
        trained = load_arrays(model_file(folder, full))
        results["spectrum"] = task.change_spectrum(arrays, trained)
    results["complete"] = True
    save_results(folder, results)
    drop_other_models(folder, results)
