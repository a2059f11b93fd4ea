"""The trials and models of a sweep on disk: which are kept, lost or removed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_np.experiments.folder import Kind, Results
from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.files import CheckpointError, load_arrays


def read_results(path: Path) -> Results:
    """Return the content of a sweep's results file; raise SweepError if it is not one."""
    return SWEEP.read(path)


def _check(results: Results) -> None:
    """Raise ValueError, KeyError or TypeError if results are not those of a sweep."""
    trials = (*results["trials"], *results.get("runs", ()))
    for holder in (results, *trials):
        _check_losses(holder)
    for trial in trials:
        as_trial(trial)  # raises if the fields are not a trial's
    finished = ("runs", "base_validation_loss", "base_test_loss") if results["complete"] else ()
    if any(name not in results for name in finished):
        raise KeyError


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
    """Return whether the model of a trial can still be read; if not, the trial is run again."""
    if trial["validation_loss"] is None:
        return True  # the trial diverged and left no model
    try:
        return bool(load_arrays(model_file(folder, as_trial(trial))))
    except CheckpointError:
        return False


def model_file(folder: Path, trial: Trial) -> Path:
    """Return the path of the trained parameters of a trial."""
    return folder / "models" / f"{trial}.npz"


def as_trial(result: dict[str, Any]) -> Trial:
    """Return the trial that a result belongs to."""
    return Trial(result["method"], result["rank"], result["seed"], result["lr"])


def done_trials(results: Results) -> dict[Trial, float | None]:
    """Return the validation loss of every trial that is done."""
    return {as_trial(t): t["validation_loss"] for t in results["trials"]}


SWEEP = Kind(
    "a sweep",
    ("base.npz", "base.json", "pretraining.npz", "rank_vs_loss.png", "spectrum.png", "models"),
    _check,
)
