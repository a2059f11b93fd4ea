"""What an analysis holds: the ranks of every module's change, their table, and its notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.adapters.places import places
from lora_np.rank import Spectrum
from lora_np.tables import listed, natural, text_table, unmatched_lines

FRACTIONS = (0.90, 0.95, 0.99)
LEADING = 256  # singular values found of a large matrix


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

    @classmethod
    def of_spectrum(
        cls, name: str, found: Spectrum, r: int | None = None, rounding: float | None = None
    ) -> ModuleRanks:
        """Return the measures of a change of which the whole spectrum is known.

        Parameters
        ----------
        name : str
        found : Spectrum
        r : int, optional
            Rank of the factors.
        rounding : float, optional
            Of a pair; smaller singular values do not count in energy ranks.
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
        The paths of what was analysed, see
        :func:`lora_np.adapters.analyse.source_of`.
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


def by_name(modules: Sequence[ModuleRanks]) -> list[ModuleRanks]:
    """Return the modules in the order of their names, layer 2 before layer 10.

    Parameters
    ----------
    modules : sequence of ModuleRanks
    """
    return sorted(modules, key=lambda module: natural(module.name))


def _of_top(module: ModuleRanks) -> str:
    return "-" if module.intruders is None else f"{module.intruders} of {module.intruders_of}"


def _or_dash(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.1f}"


def _or_more(rank: int | None) -> str:
    return f">{LEADING}" if rank is None else f"{rank:d}"
