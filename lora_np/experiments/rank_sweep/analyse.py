"""The ranks of what full fine-tuning changed, from the spectra that a sweep has kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_np.adapters.analyse import source_of
from lora_np.adapters.ranks import Analysis, ModuleRanks, by_name
from lora_np.experiments.rank_sweep.store import SweepError, read_results
from lora_np.rank import Spectrum


def analyse_sweep(folder: str | Path) -> Analysis:
    """Return the ranks of what full fine-tuning changed in a sweep, as its results hold them.

    Parameters
    ----------
    folder : str or Path
        Of a finished sweep.

    Returns
    -------
    Analysis
        Of singular values kept to 6 digits.

    Raises
    ------
    SweepError
        If the folder has no results, or they hold no spectrum.

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
    results = read_results(Path(folder) / "results.json")
    if not results.get("spectrum"):
        raise SweepError(f"{folder} holds no spectrum: the sweep is not finished, or diverged")
    eps = float(np.finfo(np.float32).eps)  # in which the sweep trains
    modules = []
    for change in results["spectrum"]:
        values = np.array(change["singular_values"], np.float64)
        found = Spectrum(values, (change["shape"][0], change["shape"][1]), eps)
        modules.append(ModuleRanks.of_spectrum(change["name"].removesuffix(".W"), found))
    return Analysis(source_of(folder), by_name(modules))
