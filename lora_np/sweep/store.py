"""A sweep's folder: opened, checked, and never written over when it is somebody else's."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.checkpoint import CheckpointError, load_arrays, load_json
from lora_np.reading import brief
from lora_np.sweep.plan import Trial

Results = dict[str, Any]

OURS = ("base.npz", "base.json", "rank_vs_loss.png", "spectrum.png", "models")
ELSEWHERE = "choose another --out"


class SweepError(ValueError):
    """A sweep that cannot be run or resumed as asked; the message says what to do."""


def open_results(folder: Path, made_with: dict[str, Any]) -> Results:
    """Return the results in `folder`; if it has none, begin new ones there.

    Parameters
    ----------
    folder : Path
    made_with : dict
        The task, its settings, and the texts' hashes.

    Raises
    ------
    SweepError
        If the folder cannot be written, holds results of other settings, or holds files of
        something else under the names that a sweep uses.
    """
    path = folder / "results.json"
    made_with = json.loads(json.dumps(made_with))  # as it comes back from a file
    if path.exists():
        return _held(path, made_with)
    foreign = [name for name in OURS if (folder / name).exists()]
    if foreign:
        raise SweepError(f"{folder} holds {foreign[0]}, but no results.json: {ELSEWHERE}")
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    results = {"settings": made_with, "versions": versions, "complete": False, "trials": []}
    try:
        (folder / "models").mkdir(parents=True)
        with path.open("x", encoding="utf-8") as file:  # of two sweeps at once, one is first
            json.dump(results, file)
    except FileExistsError:
        return _held(path, made_with)
    except OSError:
        raise SweepError(f"{folder} cannot be written: {ELSEWHERE}") from None
    return results


def _held(path: Path, made_with: dict[str, Any]) -> Results:
    """Return the results that the file holds, if they are of these settings."""
    results = read_results(path)
    before = results["settings"]
    if before != made_with:
        difference = _difference(before, made_with)
        raise SweepError(f"{path} is of other settings ({difference}): {ELSEWHERE}, or remove it")
    if not os.access(path.parent, os.W_OK):
        raise SweepError(f"{path.parent} cannot be written: {ELSEWHERE}")
    if not results["complete"]:
        results["trials"] = [t for t in results["trials"] if _is_kept(path.parent, t)]
    return results


def read_results(path: Path) -> Results:
    """Return a results file's content, if it is one."""
    if not os.path.exists(path):
        raise SweepError(f"{brief(str(path))} does not exist: is this the folder of a sweep?")
    try:
        results = load_json(path)
        for held in (results, *results["trials"], *results.get("runs", ())):
            _check_losses(held)
        done_trials(results)
        finished = ("runs", "base_validation_loss", "base_test_loss") if results["complete"] else ()
        if not isinstance(results["settings"], dict) or any(k not in results for k in finished):
            raise KeyError
    except (CheckpointError, KeyError, TypeError, AttributeError):
        raise SweepError(f"{brief(str(path))} is no results file of a sweep: {ELSEWHERE}") from None
    return results


def _check_losses(held: dict[str, Any]) -> None:
    """Raise TypeError if a loss is neither a number nor None."""
    for name, loss in held.items():
        if name.endswith("_loss") and type(loss) not in (int, float, type(None)):
            raise TypeError(name)


def _is_kept(folder: Path, trial: dict[str, Any]) -> bool:
    """Return whether what the trial trained can still be read: if not, it is run again."""
    if trial["validation_loss"] is None:
        return True  # it diverged and left nothing
    try:
        return bool(load_arrays(model_file(folder, as_trial(trial))))
    except CheckpointError:
        return False


def model_file(folder: Path, trial: Trial) -> Path:
    """Return where the trained parameters of a trial lie."""
    return folder / "models" / f"{trial}.npz"


def as_trial(result: dict[str, Any]) -> Trial:
    """Return the trial that a result belongs to."""
    return Trial(result["method"], result["rank"], result["seed"], result["lr"])


def done_trials(results: Results) -> dict[Trial, float | None]:
    """Return the validation loss of every trial that is done."""
    return {as_trial(t): t["validation_loss"] for t in results["trials"]}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    name = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{name} {before.get(name)}, now {now.get(name)}{more}"
