"""The result of an analysis: the ranks of every module's change, a table and its notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np.adapters.kinds import layers_and_kinds
from lora_np.adapters.weights import unmatched_lines
from lora_np.rank import Spectrum
from lora_np.tables import Table, Tabular, counted, listed, natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRACTIONS = (0.90, 0.95, 0.99)
LEADING = 256  # singular values computed for a large matrix


@dataclass(frozen=True, eq=False)
class ModuleRanks:
    """Measures of the change of one weight matrix.

    Parameters
    ----------
    name : str
        Name of the module.
    shape : (int, int)
        (out, in).
    norm : float
        Frobenius norm of the change.
    singular_values : ndarray, shape (k,)
        Descending: all that are not zero, or only the largest of a large matrix.
    stable_rank : float
    energy_ranks : dict of float to int or None
        Smallest rank that keeps each fraction of the energy above the rounding; None if it needs
        more than k directions.
    effective_rank : float or None
        This and the next three are None if only the largest singular values are known.
    bulk_rank, hard_threshold_rank : int or None
        See :class:`lora_np.rank.Spectrum`; None also if there is no noise floor.
    intruders : int or None
        Number of top left singular vectors that resemble none of W0's.
    intruders_of : int or None
        Number of top vectors examined: ten, or all of a smaller matrix.
    r : int or None
        Rank of the factors, if there are factors.
    missed : float or None
        Relative Frobenius norm of the part of a large matrix outside its k directions.
    missed_at_most : float or None
        Upper bound on the largest singular value of that part; it fails with probability 1e-10.
    rounding : float or None
        For a pair, the largest singular value that the rounding of the files' numbers can have.
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

    @classmethod
    def of_spectrum(
        cls, name: str, found: Spectrum, r: int | None = None, rounding: float | None = None
    ) -> ModuleRanks:
        """Return the measures of a change whose whole spectrum is known.

        Parameters
        ----------
        name : str
        found : Spectrum
        r : int, optional
            Rank of the factors.
        rounding : float, optional
            For a pair: smaller singular values do not count in energy ranks.
        """
        sigma, floor = found.singular_values, rounding or 0.0
        return cls(
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

    @property
    def only_rounding(self) -> bool:
        """Whether no direction of the change is above the rounding of the files' numbers."""
        return self.rounding is not None and float(self.singular_values[0]) < self.rounding

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON, with singular values to 6 digits."""
        return {
            **vars(self),
            "shape": list(self.shape),
            "singular_values": [float(f"{s:.6g}") for s in self.singular_values],
            "energy_ranks": {f"{f:.2f}": k for f, k in self.energy_ranks.items()},
        }


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Tabular):
    """The ranks of all modules of an adapter, a pair of checkpoints or a sweep.

    Parameters
    ----------
    source : dict of str to str
        The paths of the analysed files; see :func:`lora_np.adapters.analyse.source_of`.
    modules : list of ModuleRanks
        Sorted by name, with layer 2 before layer 10.
    unchanged : list of str
        Matrices that are equal in both files of a pair.
    unmatched : list of str
        Tensors of a pair that could not be compared, with the reason.
    scale_known : bool
        Whether the file defines the scale of B A.
    passed_over : list of str
        Notes on parts of an adapter's file that were ignored.
    """

    source: dict[str, str]
    modules: list[ModuleRanks]
    unchanged: Sequence[str] = ()
    unmatched: Sequence[str] = ()
    scale_known: bool = True
    passed_over: Sequence[str] = ()

    @property
    def shares(self) -> list[float]:
        """Each module's share of the squared Frobenius norm of all changes."""
        norms = np.array([module.norm for module in self.modules])
        squares = (norms / (norms.max() or 1.0)) ** 2  # relative: no square overflows
        return [float(share) for share in squares / (squares.sum() or 1.0)]

    @property
    def only_rounding(self) -> list[str]:
        """Modules that differ only by the rounding of the files' numbers."""
        return [module.name for module in self.modules if module.only_rounding]

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each module's layer and kind: the row and the column of the heat map."""
        return layers_and_kinds([module.name for module in self.modules])

    def largest_rank(self, fraction: float = 0.99) -> dict[str, int | None]:
        """Return the largest energy rank by kind; None if it exceeds the computed directions."""
        found: dict[str, int | None] = {}
        for (_, kind), module in zip(self.places, self.modules):
            known, k = found.get(kind, 0), module.energy_ranks[fraction]
            found[kind] = None if known is None or k is None else max(known, k)
        return found

    def sentence(self) -> str:
        """Return a sentence: the smallest rank that keeps 99 % of every module's energy."""
        found = self.largest_rank()
        kinds = ", ".join(f"{kind} {_or_more(k)}" for kind, k in found.items())
        whole = None if None in found.values() else max(k or 0 for k in found.values())
        return (
            f"Smallest rank that keeps 99 % of the energy of every module: {kinds}; "
            f"{_or_more(whole)} over all."
        )

    def table(self) -> Table:
        """Return a row for each module, and notes. Columns without any value are left out."""
        columns: dict[str, list[Any]] = {
            "module": [m.name for m in self.modules],
            "shape": [f"{m.shape[0]} x {m.shape[1]}" for m in self.modules],
            "r": [m.r for m in self.modules],
            "eff. rank": [m.effective_rank for m in self.modules],
            "stable rank": [m.stable_rank for m in self.modules],
            **{
                f"{fraction:.0%}": [_or_more(m.energy_ranks[fraction]) for m in self.modules]
                for fraction in FRACTIONS
            },
            "share": self.shares,
            "MP edge": [m.bulk_rank for m in self.modules],
            "G-D": [m.hard_threshold_rank for m in self.modules],
            "intruders": [_of_top(m) for m in self.modules],
        }
        known = {k: v for k, v in columns.items() if any(cell is not None for cell in v)}
        forms = {"eff. rank": ".1f", "stable rank": ".1f", "share": ".1%"}
        return Table(known, forms, notes=["", *self.notes(), self.sentence()], missing="-")

    def __repr__(self) -> str:
        return f"<Analysis of {counted(len(self.modules), 'module')}>"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the ranks as a map; see :func:`lora_np.adapters.picture.plot_rank_map`.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw the map. By default, in a new figure, with the spectra beside it.

        Returns
        -------
        Axes
        """
        from lora_np.adapters.picture import plot_rank_map

        return plot_rank_map(self, ax=ax)

    def notes(self) -> list[str]:
        """Return notes that explain the figures of the table."""
        found = []
        large = [m for m in self.modules if m.missed is not None]
        if large:
            worst = max(m.missed or 0.0 for m in large)
            found.append(
                f"large matrices ({len(large)}): a randomised SVD computes {LEADING} directions "
                f"and misses at most {worst:.1%} of the norm; energy ranks are upper bounds"
            )
        if not self.scale_known:
            found.append(
                "no adapter_config.json defines the scale of B A: norms are given at scale 1"
            )
        found += self.passed_over
        if any(m.bulk_rank is not None for m in self.modules):
            found.append(
                "MP edge, G-D: directions above the Marchenko-Pastur edge and above Gavish and "
                "Donoho's threshold, assuming that at least half of the singular values are noise"
            )
        if any(m.intruders is not None for m in self.modules):
            found.append("intruders: top directions that resemble none of the base's")
        if any(m.rounding is not None for m in self.modules):
            found.append("90%, 95%, 99%: rank that keeps this share of the energy above rounding")
        if self.only_rounding:
            found.append(f"only rounding: {listed(self.only_rounding)}")
        if self.unchanged:
            found.append(f"equal in both: {listed(self.unchanged)}")
        return [*found, *(f"not compared, {line}" for line in unmatched_lines(self.unmatched))]

    def as_dict(self) -> dict[str, Any]:
        """Return the analysis, ready for JSON."""
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


def by_name(modules: Sequence[ModuleRanks]) -> list[ModuleRanks]:
    """Return the modules sorted by name, with layer 2 before layer 10.

    Parameters
    ----------
    modules : sequence of ModuleRanks
    """
    return sorted(modules, key=lambda module: natural(module.name))


def _of_top(module: ModuleRanks) -> str | None:
    return None if module.intruders is None else f"{module.intruders} of {module.intruders_of}"


def _or_more(rank: int | None) -> int | str:
    return f">{LEADING}" if rank is None else rank
