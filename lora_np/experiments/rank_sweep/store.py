"""A sweep's folder: opened, checked, and never written over when it is somebody else's.

``results.json`` is written first, and the rest can be made again from it: whenever the process is
killed, the same command goes on. A complete folder is only read, so it may lie on a read-only disk.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.files import CheckpointError, load_arrays, load_json, save_json
from lora_np.files.lock import HeldError, clear, hold
from lora_np.reading import brief

Results = dict[str, Any]

OURS = ("base.npz", "base.json", "rank_vs_loss.png", "spectrum.png", "models")
ELSEWHERE = "choose another --out"


class SweepError(ValueError):
    """A sweep that cannot be run or resumed as asked; the message says what to do."""


@contextmanager
def opened(
    folder: Path,
    read: Callable[[], Results | None],
    begin: Callable[[], Results],
    take_over: bool = False,
) -> Iterator[Results]:
    """Give the results in a folder; unless they are complete, nobody else writes there meanwhile.

    Parameters
    ----------
    folder : Path
    read : callable
        Returns the results that the folder holds, None if it has none.
    begin : callable
        Writes new results and returns them.
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.

    Raises
    ------
    SweepError
        If the folder cannot be written, or another process is at work there.
    """
    results = read()
    with ExitStack() as stack:
        if results is None or not results["complete"]:
            stack.enter_context(held(folder, take_over))
            results = read() or begin()  # another process may have written since
        yield results
    if results["complete"]:
        clear(folder)


@contextmanager
def held(folder: Path, take_over: bool = False) -> Iterator[None]:
    """Hold a folder; raise SweepError if that fails."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder, take_over))
        except HeldError as error:
            raise SweepError(f"{error}, or {ELSEWHERE}") from None
        except OSError as error:
            reason = getattr(error, "reason", error.strerror)
            raise SweepError(f"{folder} cannot be written: {ELSEWHERE} ({reason})") from None
        yield


def held_results(folder: Path, made_with: dict[str, Any]) -> Results | None:
    """Return the results that a folder holds, None if it has none.

    Parameters
    ----------
    folder : Path
    made_with : dict
        The task, its settings, and the texts' hashes; see :func:`as_json`.

    Raises
    ------
    SweepError
        If they are of other settings, or no results.
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    results = read_results(path)
    before = results["settings"]
    if before != made_with:
        difference = _difference(before, made_with)
        raise SweepError(f"{path} is of other settings ({difference}): {ELSEWHERE}, or remove it")
    return results


def new_results(folder: Path, made_with: dict[str, Any], **more: Any) -> Results:
    """Begin results in a folder that has none.

    Raises
    ------
    SweepError
        If the folder holds files of something else under the names that a sweep uses.
    """
    foreign = [name for name in OURS if _is_something(folder / name)]
    if foreign:
        raise SweepError(f"{folder} holds {foreign[0]}, but no results.json: {ELSEWHERE}")
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    results = {"settings": made_with, "versions": versions, "complete": False, **more}
    save_json(folder / "results.json", results)
    return results


def _is_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def as_json(content: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they come back from a file."""
    return json.loads(json.dumps(content))


def read_results(path: Path) -> Results:
    """Return a results file's content, if it is one."""
    if not os.path.exists(path):
        raise SweepError(f"{brief(str(path))} does not exist: is this the folder of a sweep?")
    try:
        results = load_json(path)
        for held in (results, *results["trials"], *results.get("runs", ())):
            _check_losses(held)
        for trial in (*results["trials"], *results.get("runs", ())):
            as_trial(trial)  # raises where it is none
        finished = ("runs", "base_validation_loss", "base_test_loss") if results["complete"] else ()
        if not isinstance(results["settings"], dict) or any(k not in results for k in finished):
            raise KeyError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SweepError(f"{brief(str(path))} is no results file of a sweep: {ELSEWHERE}") from None
    return results


def check_base(results: Mapping[str, Any], sha256: str | None, folder: Path) -> None:
    """Raise SweepError if the results are of another base than the one with this hash."""
    began = results.get("base_sha256")
    if sha256 is not None and began is not None and sha256 != began:
        raise SweepError(f"{folder} was begun with another base: {ELSEWHERE}")


def _check_losses(held: dict[str, Any]) -> None:
    """Raise TypeError if a loss is neither a number nor None."""
    for name, loss in held.items():
        if name.endswith("_loss") and type(loss) not in (int, float, type(None)):
            raise TypeError(name)


def drop_lost_trials(folder: Path, results: Results) -> None:
    """Forget the trials whose models cannot be read, so that they are run again."""
    results["trials"] = [t for t in results["trials"] if _is_kept(folder, t)]


def drop_other_models(folder: Path, results: Results) -> None:
    """Remove the models that are not on the curve."""
    kept = {as_trial(run) for run in results["runs"]}
    for trial in done_trials(results):
        if trial not in kept:
            with suppress(OSError):
                model_file(folder, trial).unlink(missing_ok=True)


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
