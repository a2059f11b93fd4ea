"""The ranks of what full fine-tuning changed, from the spectra that a sweep saved."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.analyse import source_of
from lora_np.adapters.ranks import Analysis, ModuleRanks, by_name
from lora_np.experiments.folder import SweepError
from lora_np.experiments.rank_sweep.store import read_results
from lora_np.rank import Spectrum
from lora_np.reading import is_name, shown


def analyse_sweep(folder: str | Path) -> Analysis:
    """Return the ranks of what full fine-tuning changed in a sweep, as its results hold them.

    Parameters
    ----------
    folder : str or Path
        Folder of a finished sweep.

    Returns
    -------
    Analysis
        Its singular values have 6 digits.

    Raises
    ------
    SweepError
        If the folder has no results, or the results hold no spectrum.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np import analyse_sweep, rank_sweep
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> settings = LinearSettings(ranks=(1,), seeds=1, d_in=4, d_out=3, decay=0.5, steps=100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = rank_sweep(settings, folder)
    ...     analysis = analyse_sweep(folder)
    >>> [module.energy_ranks[0.95] for module in analysis.modules]  # planted: 1, 1/2, 1/4
    [2]
    """
    changes = read_results(Path(folder) / "results.json").get("spectrum")
    if not changes:
        raise SweepError(f"{folder} holds no spectrum: the sweep is not finished, or diverged")
    if not isinstance(changes, list):
        raise SweepError(f"{folder} holds the spectrum {shown(changes)}, expected a list")
    modules = []
    for change in changes:
        try:
            name, found = _held_spectrum(change)
        except ValueError as error:
            raise SweepError(f"{folder} holds a spectrum with {error}") from None
        modules.append(ModuleRanks.of_spectrum(name.removesuffix(".W"), found))
    return Analysis(source_of(folder), by_name(modules))


def next_of_sweep(analysis: Analysis, folder: str | Path) -> str:
    """Return the line of the command that shows the model of the rank that an analysis found.

    Parameters
    ----------
    analysis : Analysis
        Of this sweep.
    folder : str or Path

    Returns
    -------
    str
        With the validation loss of that model, which has the smallest rank of the sweep that is
        enough, else the largest. "" for a sweep that leaves no model that writes.
    """
    results = read_results(Path(folder) / "results.json")
    found = results["runs"] if results["settings"].get("task") == "text" else ()
    runs = [run for run in found if run["rank"] is not None and run["validation_loss"] is not None]
    if not runs:
        return ""
    needed = max(rank or 0 for rank in analysis.largest_rank().values())
    ranks = sorted({run["rank"] for run in runs})
    rank = next((rank for rank in ranks if rank >= needed), ranks[-1])
    loss = min(run["validation_loss"] for run in runs if run["rank"] == rank)
    command = f"lora-np generate --run {shlex.quote(str(folder))} --model {rank}"
    return f"next: {command}   (validation loss {loss:.4g})"


def _held_spectrum(change: Any) -> tuple[str, Spectrum]:
    """Return the name and the spectrum of one matrix in a results file.

    Raises
    ------
    ValueError
        If a field is wrong; the message names it.
    """
    fields: dict[str, Any] = change if isinstance(change, dict) else {}
    name, shape, values = map(fields.get, ("name", "shape", "singular_values"))
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(f"the name {shown(name)}")
    sides = shape if isinstance(shape, list) else []
    if len(sides) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in sides):
        raise ValueError(f"the shape {shown(shape)} of {name!r}, expected two sizes")
    sigma = values if isinstance(values, list) else []
    if len(sigma) != min(sides) or not all(
        type(x) in (int, float) and 0 <= x < 1e100 for x in sigma
    ):
        raise ValueError(
            f"singular values of {name!r} that are not {min(sides)} non-negative numbers"
        )
    if any(x < y for x, y in pairwise(sigma)):
        raise ValueError(f"singular values of {name!r} that do not descend")
    eps = float(np.finfo(np.float32).eps)  # in which the sweep trains
    return name, Spectrum(np.array(sigma, np.float64), (sides[0], sides[1]), eps)
