"""Measure the rank of what training changed, in an adapter or between two checkpoints.

The change of a weight is the product of LoRA's factors, or the difference of two checkpoints. (A
sweep stores the spectrum of its changes: see ``experiments/rank_sweep/analyse.py``.) For each
matrix, :class:`~lora_np.adapters.ranks.ModuleRanks` holds the measures of rank from
``lora_np.rank``. For a pair of checkpoints it also holds the edge of the rounding noise and the
number of intruders among the top directions.

The difference of two files contains the rounding of their numbers. ``adapters/rounding.py`` bounds
its singular values, and the energy ranks of a pair count only the directions above that bound: a
matrix that differs only by rounding has rank 0.

For a large difference, a randomised SVD finds the 256 largest singular values. The entries give the
exact norm, so each energy rank is an upper bound on the smallest rank that keeps the energy.
Measures that need the whole spectrum are then not reported.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lora_np.adapters import ranks
from lora_np.adapters.file import open_adapter
from lora_np.adapters.ranks import FRACTIONS, Analysis, ModuleRanks, by_name
from lora_np.adapters.weights import CheckpointPair, is_small, leading_svd
from lora_np.files import CheckpointError, load_json, save_json
from lora_np.files.atomic import make_folder, strangers
from lora_np.rank import Spectrum, intruder_dimensions, spectrum, uneven_noise_edge

TOP = 10  # top directions searched for intruders, as in the paper; all of them in a smaller matrix
RESULT = "analysis.json"


def analyse_adapter(path: str | Path) -> Analysis:
    """Measure a LoRA adapter, one module in memory at a time; no product B A is formed.

    Parameters
    ----------
    path : str or Path
        An adapter that :func:`lora_np.adapters.open_adapter` can open.

    Returns
    -------
    Analysis

    Raises
    ------
    CheckpointError
        If the file is broken.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import analyse_adapter, write_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(folder, [("h.0.q_proj", np.diag([3.0, 0.1]), np.eye(2, 5), 1.0)])
    ...     analysis = analyse_adapter(folder)
    >>> print(analysis.sentence())
    Smallest rank that keeps 99 % of the energy of every module: q_proj 1; 1 over all.
    """
    with open_adapter(path) as adapter:
        modules = [
            ModuleRanks.of_spectrum(name, spectrum(module.factors(), module.scale), r=module.r)
            for name, module in adapter.modules.items()
        ]
        known, notes = adapter.scale_known, adapter.notes
    return Analysis(source_of(path), by_name(modules), scale_known=known, passed_over=notes)


def analyse_checkpoints(
    base: str | Path, tuned: str | Path, rng: np.random.Generator | None = None
) -> Analysis:
    """Measure W - W0 for every matrix that two checkpoints share.

    Parameters
    ----------
    base, tuned : str or Path
        Safetensors files, or Hugging Face folders.
    rng : numpy.random.Generator, optional
        For the randomised SVD of large matrices; by default a generator with a fixed seed.

    Returns
    -------
    Analysis
        Intruder dimensions are counted only in matrices small enough for a dense SVD.

    Raises
    ------
    CheckpointError
        If a file is broken.
    ValueError
        If the files share no matrix, or all matrices that they share are equal.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import analyse_checkpoints
    >>> from lora_np.files import save_tensors
    >>> with tempfile.TemporaryDirectory() as d:
    ...     save_tensors(f"{d}/base.safetensors", {"q.weight": np.zeros((4, 4))})
    ...     save_tensors(f"{d}/tuned.safetensors", {"q.weight": np.eye(4)})
    ...     analysis = analyse_checkpoints(f"{d}/base.safetensors", f"{d}/tuned.safetensors")
    >>> analysis.modules[0].name, round(analysis.modules[0].stable_rank, 6)
    ('q', 4.0)
    """
    rng = rng or np.random.default_rng(0)
    modules, unchanged = [], []
    with CheckpointPair(base, tuned) as pair:
        for name in pair.names:
            if len(pair.shape(name)) != 2 or 0 in pair.shape(name):
                continue
            W0, W = pair.read(name)
            if np.array_equal(W0, W):
                unchanged.append(name)
            else:
                edge = uneven_noise_edge(pair.rounding(name, W0, W))
                modules.append(_of_change(name.removesuffix(".weight"), W0, W, edge, rng))
    if not modules:
        raise pair.no_change("matrix", len(unchanged))
    return Analysis(source_of(tuned, base), by_name(modules), unchanged, pair.unmatched)


def source_of(path: str | Path, base: str | Path | None = None) -> dict[str, str]:
    """Return the ``source`` of an analysis: the resolved paths of its files.

    Parameters
    ----------
    path : str or Path
        The adapter, the sweep, or the tuned checkpoint.
    base : str or Path, optional
        The checkpoint before training.
    """
    places = {"path": path} if base is None else {"path": path, "base": base}
    return {name: str(Path(place).resolve()) for name, place in places.items()}


def _of_change(
    name: str, W0: np.ndarray, W: np.ndarray, edge: float, rng: np.random.Generator
) -> ModuleRanks:
    """Measure one change (out, in): by its whole spectrum, or by the largest singular values."""
    if is_small(W.shape):
        k = min(TOP, *W.shape)
        found = ModuleRanks.of_spectrum(name, spectrum(W - W0), rounding=edge)
        return replace(found, intruders=intruder_dimensions(W0, W, k=k).count, intruders_of=k)
    delta = W - W0
    _, sigma, _, bound = leading_svd(delta, ranks.LEADING, rng)
    norm = float(np.linalg.norm(delta))
    return ModuleRanks(
        name=name,
        shape=(W.shape[0], W.shape[1]),
        norm=norm,
        singular_values=sigma,
        stable_rank=(norm / float(sigma[0])) ** 2,
        energy_ranks=_energy_ranks(sigma, W.shape, norm, edge),
        rounding=edge,
        missed=None if bound is None else (bound.frobenius or 0.0) / norm,
        missed_at_most=None if bound is None else bound.spectral,
    )


def _energy_ranks(
    sigma: np.ndarray, shape: tuple[int, ...], norm: float, edge: float
) -> dict[float, int | None]:
    """Return energy ranks by the largest singular values (k,) of a matrix of this norm."""
    if sigma[-1] < edge:  # every singular value above the rounding is known
        found = Spectrum(sigma, (shape[0], shape[1]), float(np.finfo(np.float64).eps))
        return {fraction: found.energy_rank(fraction, edge) for fraction in FRACTIONS}
    kept = np.cumsum((sigma / norm) ** 2)  # (k,) share of the energy in the first 1, 2, ...
    return {
        fraction: int(np.argmax(kept >= fraction)) + 1 if kept[-1] >= fraction else None
        for fraction in FRACTIONS
    }


# -------------------------------------------------------------------------------------- written


def check_folder(out: Path, source: dict[str, str]) -> None:
    """Raise ValueError if a folder holds anything but an earlier analysis of the same files.

    Parameters
    ----------
    out : Path
        It need not exist.
    source : dict
        The source of the analysis that will be written.
    """
    if not out.exists():
        return
    wrong = f"{out} already holds something else: choose another --out, or remove it"
    if not out.is_dir() or (strangers(out) and not (out / RESULT).exists()):
        raise ValueError(wrong)
    if (out / RESULT).exists():
        try:
            before = load_json(out / RESULT)
        except CheckpointError:
            raise ValueError(wrong) from None
        if not isinstance(before, dict) or before.get("source") != source:
            raise ValueError(wrong)


def save_analysis(analysis: Analysis, out: Path) -> None:
    """Write analysis.json into a folder that passes :func:`check_folder`.

    Parameters
    ----------
    analysis : Analysis
    out : Path
        It is created if it does not exist.
    """
    check_folder(out, analysis.source)
    make_folder(out)
    save_json(out / RESULT, analysis.as_dict())
