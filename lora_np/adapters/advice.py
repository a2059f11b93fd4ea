"""What to do after an analysis: the next command, and the relative error that it will make.

An adapter is cut to one rank for all modules, the smallest that keeps 99 % of the energy of each.
If that is the rank it has, each module is cut to its own. The change between two checkpoints is
extracted at the rank that the analysis found. Either error follows from the singular values
(Eckart and Young), so it is known before the command runs.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from lora_np.adapters.cut import Keep
from lora_np.adapters.extract import can_adapt
from lora_np.adapters.ranks import Analysis, ModuleRanks
from lora_np.rank import best_rank_error

ENERGY = 0.99


def next_command(analysis: Analysis, path: str | Path, base: str | Path | None = None) -> str:
    """Return the line that names the next command, or "" where the rank is not known.

    Parameters
    ----------
    analysis : Analysis
        Of an adapter, or of two checkpoints.
    path : str or Path
        The adapter, or the checkpoint after training, as the user wrote it.
    base : str or Path, optional
        The checkpoint before training.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import analyse_adapter, write_adapter
    >>> from lora_np.adapters.advice import next_command
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(folder, [("q_proj", np.diag([3.0, 4.0, 0.05]), np.eye(3, 5), 1.0)])
    ...     print(next_command(analyse_adapter(folder), "mine"))
    next: lora-np resize mine --rank 2 --out mine-r2   (relative error 1.00e-02)
    """
    modules = analysis.modules if base is None else [m for m in analysis.modules if _extracts(m)]
    found = [module.energy_ranks[ENERGY] for module in modules]
    ranks = [rank for rank in found if rank is not None]
    if not ranks or len(ranks) < len(found):
        return ""  # of a large matrix, more directions than were computed
    keep = Keep(rank=max(1, *ranks))
    if base is None and all(module.r == _kept(module, keep) for module in modules):
        keep = Keep(energy=ENERGY)
        if all(module.r == _kept(module, keep) for module in modules):
            return "next: nothing to cut, since every module needs its rank for 99 % of its energy"
    error, about = _error(modules, keep), any(module.missed for module in modules)
    name = Path(path).resolve().name.removesuffix(".safetensors")
    rule = f"--rank {keep.rank}" if keep.rank else f"--energy {ENERGY}"
    out = shlex.quote(str(Path(path).parent / f"{name}-{f'r{keep.rank}' if keep.rank else 'cut'}"))
    what = f"resize {shlex.quote(str(path))}"
    if base is not None:
        what = f"extract --base {shlex.quote(str(base))} --tuned {shlex.quote(str(path))}"
    said = f"relative error {'about ' * about}{error:.2e}"
    return f"next: lora-np {what} {rule} --out {out}   ({said})"


def _extracts(module: ModuleRanks) -> bool:
    """Whether ``extract`` makes an adapter of this change."""
    return can_adapt(f"{module.name}.weight", module.shape) and not module.only_rounding


def _kept(module: ModuleRanks, keep: Keep) -> int:
    """Return the rank that a module is written with: no more than it has."""
    k = keep.of(module.singular_values, module.shape)
    return k if module.r is None or max(k, keep.rank or 0) < module.r else module.r


def _error(modules: Sequence[ModuleRanks], keep: Keep) -> float:
    """Return the Frobenius norm of what is cut off, over that of all changes."""
    missed = []
    for module in modules:
        sigma, k = module.singular_values, _kept(module, keep)
        cut = best_rank_error(sigma, min(k, len(sigma)), relative=False) if k != module.r else 0.0
        missed.append(math.hypot(cut, (module.missed or 0.0) * module.norm))
    norm = math.hypot(*(module.norm for module in modules))
    return math.hypot(*missed) / norm if norm else 0.0
