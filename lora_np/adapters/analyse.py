"""Which rank do the changes of a model need? Adapters and pairs of checkpoints, measured.

The change of a weight matrix comes as LoRA's factors, or as the difference of two checkpoints (and
from a sweep, as the spectrum that it kept: ``experiments/rank_sweep/analyse.py``). What is reported
of each matrix is in ``ranks.py``: the measures of its rank (``lora_np.rank``), its share of the
squared Frobenius norm of all changes, and, for pairs, where noise begins and how many of the top
directions are intruders.

The difference of two files holds the rounding of their numbers, which is known
(``adapters/rounding.py``). Energy ranks of pairs count what stands above it: a matrix that
differs by rounding alone has the rank 0.

A large difference has its 256 largest singular values found by a randomised SVD. Its norm is
known from the entries, so that its energy ranks are those of a copy that really keeps the energy
(an upper bound on the least); what needs the whole spectrum is then not reported.
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

TOP = 10  # directions in which intruders are sought, as in the paper, or all of a small matrix
RESULT = "analysis.json"


def analyse_adapter(path: str | Path) -> Analysis:
    """Measure a LoRA adapter, one module in memory at a time; no product B A is formed.

    Parameters
    ----------
    path : str or Path
        As :func:`lora_np.adapters.open_adapter` takes it.

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
        Safetensors files, or folders of Hugging Face's.
    rng : numpy.random.Generator, optional
        For the randomised SVD of large matrices; by default one of a fixed seed.

    Returns
    -------
    Analysis
        Intruder dimensions are sought in matrices small enough for a dense SVD.

    Raises
    ------
    CheckpointError
        If a file is broken.
    ValueError
        If the files share no matrix, or all that they share are equal.

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
    """Return what an analysis is of: its ``source``.

    Parameters
    ----------
    path : str or Path
        The adapter, the sweep, or the tuned checkpoint.
    base : str or Path, optional
        The checkpoint before.
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
    if sigma[-1] < edge:  # all that stands above rounding is known
        found = Spectrum(sigma, (shape[0], shape[1]), float(np.finfo(np.float64).eps))
        return {fraction: found.energy_rank(fraction, edge) for fraction in FRACTIONS}
    kept = np.cumsum((sigma / norm) ** 2)  # (k,) of all energy, in the first 1, 2, ...
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
        Need not exist.
    source : dict
        Of the analysis to be written.
    """
    if not out.exists():
        return
    wrong = f"{out} holds something else already: choose another --out, or remove it"
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
    """Write analysis.json into a folder, which :func:`check_folder` has let pass.

    Parameters
    ----------
    analysis : Analysis
    out : Path
        Is made if it does not exist.
    """
    check_folder(out, analysis.source)
    make_folder(out)
    save_json(out / RESULT, analysis.as_dict())
