"""The trials and models of a sweep on disk: which are kept, lost or removed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_np.experiments.folder import PRETRAINING, Kind, Results
from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.experiments.rank_sweep.report import table
from lora_np.files import CheckpointError, load_arrays

LOSSES = ("train_loss", "validation_loss", "test_loss")  # of every trial


def read_results(path: Path) -> Results:
    """Return the content of a sweep's results file; raise SweepError if it is not one."""
    return SWEEP.read(path)


def _check(results: Results) -> None:
    """Raise an error, as Kind says, if results are not those of a sweep."""
    for name, loss in results.items():
        if name.startswith("base_") and name.endswith("_loss"):
            _check_number(loss)
    for floor in results.get("floors", ()):
        _check_number(floor)
    for trial in (*results["trials"], *results.get("runs", ())):
        as_trial(trial)  # raises if the fields are not a trial's
        for name in LOSSES:
            if trial[name] is not None:  # it diverged
                _check_number(trial[name])
    if results["complete"]:
        str(table(results))


def _check_number(value: Any) -> None:
    """Raise TypeError if a value is no number, OverflowError if it is too large for one."""
    if type(value) not in (int, float):
        raise TypeError(value)
    float(value)


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
    ("base.npz", "base.json", PRETRAINING, "rank_vs_loss.png", "spectrum.png", "models"),
    _check,
)
