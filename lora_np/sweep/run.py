"""The sweep itself: trials on any executor, results kept after each.

``results.json`` is rewritten, in one step, after every trial. Calling the sweep again with equal
settings goes on from there; with others it is an error, and nothing is overwritten. Trials are
pure functions of their arguments and hold BLAS at one thread, so the losses do not depend on the
executor or on the order in which trials end.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.checkpoint import CheckpointError, load_arrays, load_json, save_arrays, save_json
from lora_np.sweep.linear import LinearSettings, LinearTask, run_linear_trial
from lora_np.sweep.plan import Trial, chosen_trials, expected_number, next_trials
from lora_np.sweep.text import TextSettings, TextTask, run_text_trial
from lora_np.train import Diverged

Settings = TextSettings | LinearSettings
Results = dict[str, Any]
Arrays = dict[str, np.ndarray]

LOSSES = ("train_loss", "validation_loss", "test_loss")
MEASURED = ("trainable_parameters", *LOSSES, "seconds")

TASKS: dict[str, Any] = {"text": TextTask, "linear": LinearTask}
TRIALS: dict[str, Callable] = {"text": run_text_trial, "linear": run_linear_trial}


class SweepError(ValueError):
    """A sweep that cannot be run or resumed as asked; the message says what to do."""


@dataclass(frozen=True)
class Progress:
    """What a listener hears: how many trials are done, of how many expected, and the last one."""

    done: int
    expected: int
    trial: Trial
    result: dict[str, Any]


class InProcess(Executor):
    """An executor that runs each call at once, in this process."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Call `fn` and return its finished future."""
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def rank_sweep(
    settings: Settings,
    out: str | Path,
    *,
    executor: Executor | None = None,
    listen: Callable[[Progress], None] | None = None,
    progress: bool = False,
) -> Results:
    """Measure loss against rank, for LoRA and for full fine-tuning.

    Parameters
    ----------
    settings : TextSettings or LinearSettings
    out : str or Path
        Folder of ``results.json``, the base and what was trained. If it holds an unfinished sweep
        of equal settings, that one goes on.
    executor : concurrent.futures.Executor, optional
        Where trials run: a process pool, a Dask client's ``get_executor()``, an MPI pool. By
        default in this process, one after the other.
    listen : callable, optional
        Called with a Progress after every trial.
    progress : bool
        Show a bar while the base is pretrained.

    Returns
    -------
    dict
        The content of ``results.json``; its fields are described in docs/results.md.

    Raises
    ------
    SweepError
        If the folder cannot be written, or holds results of other settings.
    """
    task = TASKS[settings.task](settings)
    folder = Path(out)
    results = open_results(folder, settings, task.identity())
    if results["complete"]:
        return results
    arrays = task.prepare(folder, progress)
    if "base_validation_loss" not in results:
        results.update(task.baseline(arrays), **task.facts(arrays))
        save_json(folder / "results.json", results)
    _run_trials(settings, arrays, results, folder, executor or InProcess(), listen)
    return _finish(settings, task, arrays, results, folder)


def check_sweep(settings: Settings, out: str | Path) -> bool:
    """Return whether `out` holds this sweep, complete; raise what rank_sweep would raise."""
    task = TASKS[settings.task](settings)
    return open_results(Path(out), settings, task.identity())["complete"]


def open_results(folder: Path, settings: Settings, identity: dict[str, Any]) -> Results:
    """Return the results in `folder`, or new ones if it has none."""
    made_with = {"task": settings.task, **asdict(settings), **identity}
    made_with = {k: list(v) if isinstance(v, tuple) else v for k, v in made_with.items()}
    path = folder / "results.json"
    try:
        (folder / "models").mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise SweepError(f"{folder} cannot be written: choose another --out")
    if not path.exists():
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        return {"settings": made_with, "versions": versions, "complete": False, "trials": []}
    try:
        results = load_json(path)
        before = dict(results["settings"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        raise SweepError(f"{path} is no results file of a sweep: choose another --out") from None
    if before != made_with:
        raise SweepError(f"{path} is of other settings ({_difference(before, made_with)}): {_ELSE}")
    return results


_ELSE = "choose another --out, or remove it"


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    name = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{name} {before.get(name)}, now {now.get(name)}{more}"


def done_trials(results: Results) -> dict[Trial, float | None]:
    """Return the validation loss of every trial that is done."""
    return {
        Trial(t["method"], t["rank"], t["seed"], t["lr"]): t["validation_loss"]
        for t in results["trials"]
    }


def _run_trials(
    settings: Settings,
    arrays: Arrays,
    results: Results,
    folder: Path,
    executor: Executor,
    listen: Callable[[Progress], None] | None,
) -> None:
    """Keep the executor busy until no trial is left to run."""
    running: dict[Future, Trial] = {}
    while True:
        waiting = next_trials(settings, done_trials(results))
        for trial in (t for t in waiting if t not in running.values()):
            future = executor.submit(guarded_trial, settings, arrays, trial)
            running[future] = trial
            if future.done():
                break  # an executor without workers of its own: record this one first
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            trial = running.pop(future)
            result, trained = future.result()
            if trained:
                save_arrays(folder / "models" / f"{trial}.npz", trained)
            results["trials"].append({**trial.as_dict(), **result})
            save_json(folder / "results.json", results)
            if listen is not None:
                done = len(results["trials"])
                expected = max(expected_number(settings), done + len(running))
                listen(Progress(done, expected, trial, result))


def guarded_trial(
    settings: Settings, arrays: Arrays, trial: Trial
) -> tuple[dict[str, Any], Arrays]:
    """Run a trial; one that diverges is a result too, with None for what it did not reach."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            result, trained = TRIALS[settings.task](settings, arrays, trial)
    except Diverged as error:
        return {**dict.fromkeys(MEASURED), "diverged": str(error)}, {}
    if not all(math.isfinite(result[name]) for name in MEASURED):
        return {**result, **dict.fromkeys(LOSSES), "diverged": "the last step went too far"}, {}
    return result, trained


def _finish(
    settings: Settings, task: Any, arrays: Arrays, results: Results, folder: Path
) -> Results:
    """Pick the runs that make up the curve, take the change's spectrum, drop the other models."""
    done = done_trials(results)
    chosen = chosen_trials(settings, done)
    by_trial = dict(zip(done, results["trials"]))
    results["runs"] = [by_trial[trial] for trial in chosen]
    full = next((t for t in chosen if t.method == "full"), None)
    if full is not None:
        trained = load_arrays(folder / "models" / f"{full}.npz")
        results["spectrum"] = task.change_spectrum(arrays, trained)
    results["complete"] = True
    save_json(folder / "results.json", results)
    kept = {f"{trial}.npz" for trial in chosen}
    for path in (folder / "models").glob("*.npz"):
        if path.name not in kept:
            path.unlink()
    return results
