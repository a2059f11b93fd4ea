"""Which rank do the changes of a model need? Adapters, pairs of checkpoints and sweeps, measured.

A change of every weight matrix comes as LoRA's factors, as the difference of two checkpoints, or
as the spectrum that a sweep has kept. Of each matrix are told: the measures of its rank
(``lora_np.rank``), its share of the squared Frobenius norm of all changes, and, of pairs, where
noise begins and how many of the top directions are intruders.

The difference of two files holds the rounding of their numbers, which is known
(``adapterfiles/rounding.py``). Energy ranks of pairs count what stands above it: a matrix that
differs by rounding alone has the rank 0.

A large difference has its 256 largest singular values found by a randomised SVD. Its norm is
known from the entries, so that its energy ranks are those of a copy that really keeps the energy
(an upper bound on the least); what needs the whole spectrum is then not told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.file import open_adapter
from lora_np.adapters.weights import CheckpointPair, is_small, leading_svd
from lora_np.experiments.rank_sweep.store import SweepError, read_results
from lora_np.files import CheckpointError, load_json, save_json
from lora_np.files.atomic import make_folder, strangers
from lora_np.rank import Spectrum, intruder_dimensions, spectrum, uneven_noise_edge
from lora_np.reading import is_name, shown
from lora_np.tables import listed, natural, text_table, unmatched_lines

FRACTIONS = (0.90, 0.95, 0.99)
LEADING = 256  # singular values found of a large matrix
TOP = 10  # directions in which intruders are sought, as in the paper, or all of a small matrix
RESULT = "analysis.json"


@dataclass(frozen=True, eq=False)
class ModuleRanks:
    """What was measured of the change of one weight matrix.

    Parameters
    ----------
    name : str
        The module's.
    shape : (int, int)
        (out, in).
    norm : float
        Frobenius norm of the change.
    singular_values : ndarray, shape (k,)
        Descending; all that are not zero, or the largest of a large matrix.
    stable_rank : float
    energy_ranks : dict of float to int or None
        By fraction, of the energy above the rounding; None where more than k directions are needed.
    effective_rank : float or None
        None where only the largest singular values are known. So too the next three.
    bulk_rank, hard_threshold_rank : int or None
        See :class:`lora_np.rank.Spectrum`; None also where there is no noise floor.
    intruders : int or None
        Of the top left singular vectors, how many resemble none of W0's.
    intruders_of : int or None
        How many were looked at: ten, or all of a smaller matrix.
    r : int or None
        Rank of the factors, where there are any.
    missed : float or None
        Relative Frobenius norm of what lies beyond the k directions of a large matrix.
    missed_at_most : float or None
        Bound on its largest singular value, but for a probability of 1e-10.
    rounding : float or None
        Of a pair: the largest singular value that the rounding of the files' numbers may have.
    """

    name: str
    shape: tuple[int, int]
    norm: float
    singular_values: np.ndarray
    stable_rank: float
    energy_ranks: dict[float, int | None]
    effective_rank: float | None = None
    bulk_rank: int | None = None
    hard_threshold_rank: int | None = None
    intruders: int | None = None
    intruders_of: int | None = None
    r: int | None = None
    missed: float | None = None
    missed_at_most: float | None = None
    rounding: float | None = None

    @property
    def only_rounding(self) -> bool:
        """Whether no direction of the change stands above the rounding of the files' numbers."""
        return self.rounding is not None and float(self.singular_values[0]) < self.rounding

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON; singular values to 6 digits."""
        return {
            **vars(self),
            "shape": list(self.shape),
            "singular_values": [float(f"{s:.6g}") for s in self.singular_values],
            "energy_ranks": {f"{f:.2f}": k for f, k in self.energy_ranks.items()},
        }


@dataclass(frozen=True, eq=False)
class Analysis:
    """The ranks of all modules of an adapter, a pair of checkpoints or a sweep.

    Parameters
    ----------
    source : dict of str to str
        The paths of what was analysed, see :func:`source_of`.
    modules : list of ModuleRanks
        By name, layer 2 before layer 10.
    unchanged : list of str
        Matrices of a pair that are equal in both.
    unmatched : list of str
        Tensors of a pair that could not be compared, with the reason.
    scale_known : bool
        Whether the file says by which scale B A is multiplied.
    passed_over : list of str
        What an adapter's file holds that was not used.
    """

    source: dict[str, str]
    modules: list[ModuleRanks]
    unchanged: Sequence[str] = ()
    unmatched: Sequence[str] = ()
    scale_known: bool = True
    passed_over: Sequence[str] = ()

    @property
    def shares(self) -> list[float]:
        """Each module's share of the squared Frobenius norm of all; 0 where nothing changed."""
        norms = np.array([module.norm for module in self.modules])
        squares = (norms / (norms.max() or 1.0)) ** 2  # relative: no square overflows
        return [float(share) for share in squares / (squares.sum() or 1.0)]

    @property
    def only_rounding(self) -> list[str]:
        """Modules that differ by no more than the rounding of the files' numbers."""
        return [module.name for module in self.modules if module.only_rounding]

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each module's layer and kind: the row and the column of the heat map."""
        return places([module.name for module in self.modules])

    def largest_rank(self, fraction: float = 0.99) -> dict[str, int | None]:
        """Return, by kind, the largest energy rank; None where it is beyond what was computed."""
        found: dict[str, int | None] = {}
        for (_, kind), module in zip(self.places, self.modules):
            known, k = found.get(kind, 0), module.energy_ranks[fraction]
            found[kind] = None if known is None or k is None else max(known, k)
        return found

    def sentence(self) -> str:
        """Say which rank keeps 99 % of every module's energy."""
        found = self.largest_rank()
        kinds = ", ".join(f"{kind} {_or_more(k)}" for kind, k in found.items())
        whole = None if None in found.values() else max(k or 0 for k in found.values())
        return (
            f"Smallest rank that keeps 99 % of the energy of every module: {kinds}; "
            f"{_or_more(whole)} over all."
        )

    def table(self) -> str:
        """Return one line for each module; columns of which nothing is known are left out."""
        columns: dict[str, list[str]] = {
            "module": [m.name for m in self.modules],
            "shape": [f"{m.shape[0]} x {m.shape[1]}" for m in self.modules],
            "r": [_or_dash(m.r) for m in self.modules],
            "eff. rank": [_or_dash(m.effective_rank) for m in self.modules],
            "stable rank": [_or_dash(m.stable_rank) for m in self.modules],
            **{
                f"{fraction:.0%}": [_or_more(m.energy_ranks[fraction]) for m in self.modules]
                for fraction in FRACTIONS
            },
            "share": [f"{share:.1%}" for share in self.shares],
            "MP edge": [_or_dash(m.bulk_rank) for m in self.modules],
            "G-D": [_or_dash(m.hard_threshold_rank) for m in self.modules],
            "intruders": [_of_top(m) for m in self.modules],
        }
        return text_table({k: v for k, v in columns.items() if any(cell != "-" for cell in v)})

    def notes(self) -> list[str]:
        """Return what the reader must know of the table's figures."""
        found = []
        large = [m for m in self.modules if m.missed is not None]
        if large:
            worst = max(m.missed or 0.0 for m in large)
            found.append(
                f"large matrices ({len(large)}): {LEADING} directions by a randomised SVD, which "
                f"leave out at most {worst:.1%} of the norm; energy ranks are upper bounds"
            )
        if not self.scale_known:
            found.append(
                "no adapter_config.json tells the scale of B A: norms are those at scale 1"
            )
        found += self.passed_over
        if any(m.intruders is not None for m in self.modules):
            found.append(
                "MP edge, G-D: directions above the Marchenko-Pastur edge and above Gavish and "
                "Donoho's threshold, the median being noise; intruders: of the top directions, "
                "how many are none of the base's"
            )
        if any(m.rounding is not None for m in self.modules):
            found.append("90%, 95%, 99%: of the energy above the rounding of the files' numbers")
        if self.only_rounding:
            found.append(f"only rounding: {listed(self.only_rounding)}")
        if self.unchanged:
            found.append(f"equal in both: {listed(self.unchanged)}")
        return [*found, *(f"not compared, {line}" for line in unmatched_lines(self.unmatched))]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        rows = zip(self.modules, self.places, self.shares)
        return {
            "source": self.source,
            "modules": [
                {**module.as_dict(), "layer": layer, "kind": kind, "share": share}
                for module, (layer, kind), share in rows
            ],
            "rank_for_99_percent": self.largest_rank(),
            "only_rounding": self.only_rounding,
            "unchanged": list(self.unchanged),
            "unmatched": list(self.unmatched),
        }


# ---------------------------------------------------------------------------------- what is read


def analyse_adapter(path: str | Path) -> Analysis:
    """Measure a LoRA adapter, one module in memory at a time; no product B A is formed.

    Parameters
    ----------
    path : str or Path
        As :func:`lora_np.files.open_adapter` takes it.

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
            _of_spectrum(name, spectrum(module.factors(), module.scale), r=module.r)
            for name, module in adapter.modules.items()
        ]
        known, notes = adapter.scale_known, adapter.notes
    return Analysis(source_of(path), _sorted(modules), scale_known=known, passed_over=notes)


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
    return Analysis(source_of(tuned, base), _sorted(modules), unchanged, pair.unmatched)


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
        modules.append(_of_spectrum(name.removesuffix(".W"), found))
    return Analysis(source_of(folder), _sorted(modules))


def _held_spectrum(change: Any) -> tuple[str, Spectrum]:
    """Return the name and the spectrum of one matrix in a results file.

    Raises
    ------
    ValueError
        If it is none; the message says which field is wrong.
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
        raise ValueError(f"singular values of {name!r} that are not {min(sides)} numbers from 0 on")
    if any(x < y for x, y in pairwise(sigma)):
        raise ValueError(f"singular values of {name!r} that do not descend")
    eps = float(np.finfo(np.float32).eps)  # in which the sweep trains
    return name, Spectrum(np.array(sigma, np.float64), (sides[0], sides[1]), eps)


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


def _sorted(modules: list[ModuleRanks]) -> list[ModuleRanks]:
    return sorted(modules, key=lambda module: natural(module.name))


def _of_spectrum(
    name: str, found: Spectrum, r: int | None = None, rounding: float | None = None
) -> ModuleRanks:
    sigma, floor = found.singular_values, rounding or 0.0
    return ModuleRanks(
        name=name,
        shape=found.shape,
        norm=float(sigma[0]) * found.stable_rank**0.5,
        singular_values=sigma,
        stable_rank=found.stable_rank,
        energy_ranks={fraction: found.energy_rank(fraction, floor) for fraction in FRACTIONS},
        effective_rank=found.effective_rank,
        bulk_rank=found.bulk_rank,
        hard_threshold_rank=found.hard_threshold_rank,
        r=r,
        rounding=rounding,
    )


def _of_change(
    name: str, W0: np.ndarray, W: np.ndarray, edge: float, rng: np.random.Generator
) -> ModuleRanks:
    """Measure one change (out, in): by its whole spectrum, or by the largest singular values."""
    if is_small(W.shape):
        k = min(TOP, *W.shape)
        found = _of_spectrum(name, spectrum(W - W0), rounding=edge)
        return replace(found, intruders=intruder_dimensions(W0, W, k=k).count, intruders_of=k)
    delta = W - W0
    _, sigma, _, bound = leading_svd(delta, LEADING, rng)
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


# ----------------------------------------------------------------------------------------- names


def places(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (layer, kind) of each module: the first number in its name, and its last name.

    Where two modules would share a place, the kind is all that follows the number, and where that
    does not tell them apart, the layer is all before. A name without number has the layer "".

    Parameters
    ----------
    names : sequence of str
        "model.layers.3.self_attn.q_proj", or kohya's "lora_te_layers_3_self_attn_q_proj", whose
        kind is what follows the last number.

    Examples
    --------
    >>> from lora_np.adapters.analyse import places
    >>> places(["model.layers.3.self_attn.q_proj", "lora_te_layers_3_self_attn_q_proj"])
    [('3', 'q_proj'), ('3', 'self_attn_q_proj')]
    """
    found: list[tuple[str, str]] = []
    for split in (_short_place, _middle_place, _long_place):
        found = [split(name) for name in names]
        if len(set(found)) == len(set(names)):
            break
    return found


NUMBER = re.compile(r"(?<![^._])(\d+)(?![^._])")


def _short_place(name: str) -> tuple[str, str]:
    number = NUMBER.search(name)
    last = name.split(".")[-1] if "." in name else NUMBER.split(name)[-1].lstrip("_")
    return (number[1] if number else ""), last or name


def _middle_place(name: str) -> tuple[str, str]:
    number = NUMBER.search(name)
    return (number[1], name[number.end() :].lstrip("._") or name) if number else ("", name)


def _long_place(name: str) -> tuple[str, str]:
    number = NUMBER.search(name)
    return (name[: number.end()], name[number.end() :].lstrip("._")) if number else ("", name)


def _of_top(module: ModuleRanks) -> str:
    return "-" if module.intruders is None else f"{module.intruders} of {module.intruders_of}"


def _or_dash(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.1f}"


def _or_more(rank: int | None) -> str:
    return f">{LEADING}" if rank is None else f"{rank:d}"


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
