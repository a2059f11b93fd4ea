"""Models of a finished text sweep, read back from its folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from lora_np.backend import get_device
from lora_np.checkpoint import load_arrays, load_parameters
from lora_np.gpt import GPT
from lora_np.sweep.store import SweepError, as_trial, model_file, read_results
from lora_np.sweep.text import TextSettings, adapted_model, rebuild_base


def load_model(folder: Path, which: str = "best", device: str = "cpu") -> GPT:
    """Return a model of a finished text sweep.

    Parameters
    ----------
    folder : Path
        Of the sweep.
    which : str
        "base", "full", a rank as in "8", or "best": the run with the lowest validation loss.
    device : {"cpu", "cuda"}

    Raises
    ------
    SweepError
        If the folder has no such model.
    """
    get_device(device)
    results = read_results(folder / "results.json")
    if results["settings"].get("task") != "text":
        raise SweepError(f"{folder} is no text sweep: only those have a model that writes")
    settings = text_settings(results["settings"], device)
    arrays = load_arrays(folder / "base.npz")
    _check_sizes(settings, sum(array.size for array in arrays.values()), folder)
    base = rebuild_base(settings, arrays)
    if which == "base":
        return base
    if not results["complete"]:
        raise SweepError(f"{folder} is not finished: run the sweep again, or take --model base")
    run = _pick(results["runs"], which)
    model = adapted_model(settings, base, run["rank"], run["seed"])
    load_parameters(model_file(folder, as_trial(run)), model)
    return model


def _check_sizes(s: TextSettings, held: int, folder: Path) -> None:
    """Hold the sizes that a file gives to what is there, before a model of these sizes is made."""
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
    """Return the settings as the results hold them, on this device."""
    names = {field.name for field in fields(TextSettings)}
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in names}
    return TextSettings(**{**kept, "device": device})


def _pick(runs: list[dict[str, Any]], which: str) -> dict[str, Any]:
    finite = [run for run in runs if run["validation_loss"] is not None]
    if which != "best":
        finite = [run for run in finite if str(run["rank"] or "full") == which]
    if not finite:
        have = list(dict.fromkeys(str(run["rank"] or "full") for run in runs))
        raise SweepError(f"no model {which!r}: choose best, base, {', '.join(have)}")
    return min(finite, key=lambda run: run["validation_loss"])
