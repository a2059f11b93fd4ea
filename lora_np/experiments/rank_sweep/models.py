"""Models of a finished text sweep, read back from its folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from lora_np.backend import get_device
from lora_np.experiments.folder import SweepError
from lora_np.experiments.rank_sweep.method import adapted_model, of_settings
from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.experiments.rank_sweep.store import as_trial, model_file, read_results
from lora_np.experiments.rank_sweep.text import TextSettings, rebuild_base
from lora_np.experiments.search import lowest
from lora_np.files import load_arrays
from lora_np.models import GPT
from lora_np.train.resume import load_parameters


def load_model(folder: Path, which: str = "best", device: str = "cpu") -> GPT:
    """Return a model of a finished text sweep.

    Parameters
    ----------
    folder : Path
        Folder of the sweep.
    which : str
        "base", "full", a rank as in "8", or "best": the run with the lowest validation loss. Among
        losses that count as equal (``search.lowest``), the first run of the curve is taken.
    device : {"cpu", "cuda"}

    Raises
    ------
    SweepError
        If the folder has no such model.
    """
    get_device(device)
    results = read_results(folder / "results.json")
    if results["settings"].get("task") != "text":
        raise SweepError(f"{folder} is not a text sweep: only a text sweep has a model that writes")
    settings = text_settings(results["settings"], device)
    arrays = load_arrays(folder / "base.npz")
    _check_sizes(settings, sum(array.size for array in arrays.values()), folder)
    base = rebuild_base(settings, arrays)
    if which == "base":
        return base
    if not results["complete"]:
        raise SweepError(f"{folder} is not finished: run the sweep again, or take --model base")
    trial = _pick(results["runs"], which, results["base_validation_loss"])
    model = adapted_model(base, trial, settings)
    load_parameters(model_file(folder, trial), model)
    return model


def _check_sizes(s: TextSettings, held: int, folder: Path) -> None:
    """Compare the sizes in the settings with the arrays, before a model of these sizes is made."""
    sizes = (s.d_model, s.n_layer, s.n_head, s.block_size)
    names = [s.target_modules] if isinstance(s.target_modules, str) else s.target_modules
    if not (
        all(type(size) is int and size > 0 for size in sizes)
        and s.d_model * (12 * s.n_layer * s.d_model + s.block_size) <= held
        and isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
    ):
        raise SweepError(f"{folder}: the settings in results.json are not those of base.npz")


def text_settings(saved: dict[str, Any], device: str) -> TextSettings:
    """Return the settings that the results hold, on this device."""
    names = {field.name for field in fields(TextSettings)}
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in names}
    return TextSettings(**{**kept, "device": device, "method": of_settings(saved)})


def _pick(runs: list[dict[str, Any]], which: str, base: float) -> Trial:
    """Return the trial of this name with the lowest validation loss."""
    losses = {as_trial(run): run["validation_loss"] for run in runs}
    finite = {
        trial: loss
        for trial, loss in losses.items()
        if loss is not None and which in ("best", _name(trial))
    }
    if not finite:
        have = list(dict.fromkeys(map(_name, losses)))
        raise SweepError(f"no model {which!r}: choose best, base, {', '.join(have)}")
    return lowest(finite, base)[0]


def _name(trial: Trial) -> str:
    """Return the name of a run: its rank, or its method if that does not have a rank."""
    return trial.method if trial.rank is None else str(trial.rank)
