"""Extract an adapter from two checkpoints: the best low-rank approximation of their difference.

Only weights of linear layers become factors. Other tensors that changed (biases, norms, embeddings)
do not fit into a LoRA adapter: they are listed with the norm of their change. Tensors that differ
only by the rounding of the two files' numbers (``rounding.py``) are listed too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lora_np.adapters.cut import Keep, Truncation, factors_of, rounded
from lora_np.adapters.rounding import equal_when_rounded
from lora_np.adapters.weights import CONV1D_MODELS, CheckpointPair, leading_svd
from lora_np.adapters.write import Written, write_adapter
from lora_np.rank import uneven_noise_edge
from lora_np.tables import Table

EMBEDDING = re.compile(
    r"(?:^|\.)(?:wte|wpe|shared|relative_attention_bias|[^.]*embed[^.]*)(?:\.|$)"
)
FIRST = 64  # directions of a large matrix that are tried first if no rank is given


@dataclass
class Extracted:
    """The tensors that two checkpoints, or a method, change: in the adapter or not.

    Attributes
    ----------
    fits : list of Truncation
        The modules of the adapter.
    rounding : list of str
        Tensors that differ only by the rounding of the files' numbers.
    beyond : dict of str to float
        Tensors that changed but do not fit into an adapter, with the norm of their change.
    unmatched : list of str
        Tensors that could not be compared, with the reason.
    """

    fits: list[Truncation] = field(default_factory=list)
    rounding: list[str] = field(default_factory=list)
    beyond: dict[str, float] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)

    def leave_out(self, name: str, old: np.ndarray | float, new: np.ndarray) -> None:
        """Record the change of a tensor that an adapter cannot hold, if it changed."""
        if not np.array_equal(new, np.broadcast_to(old, new.shape)):
            self.beyond[name] = float(np.linalg.norm(new.astype(np.float64) - old))


def extract_adapter(
    base: str | Path,
    tuned: str | Path,
    folder: str | Path,
    keep: Keep,
    rng: np.random.Generator | None = None,
) -> Extracted:
    """Write the change from one checkpoint to another as an adapter in PEFT's format, in float32.

    Parameters
    ----------
    base, tuned : str or Path
        Safetensors files, or Hugging Face folders. If their config.json has the model_type "gpt2"
        or "openai-gpt", Conv1D weights are read as (in, out); all other weights are (out, in).
    folder : str or Path
        A new or an empty folder.
    keep : Keep
        How many directions to keep of each matrix that training changed.
    rng : numpy.random.Generator, optional
        For the randomised SVD of large matrices, whose error is at most a little above the smallest
        possible; by default a generator with a fixed seed.

    Returns
    -------
    Extracted

    Raises
    ------
    CheckpointError
        If a file is broken, or the folder is not empty.
    ValueError
        If the files share no weight of a linear layer, or none changed by more than rounding.
        Nothing is then written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Keep, extract_adapter
    >>> from lora_np.files import save_tensors
    >>> with tempfile.TemporaryDirectory() as d:
    ...     save_tensors(f"{d}/base.safetensors", {"layer.weight": np.zeros((3, 4))})
    ...     save_tensors(f"{d}/tuned.safetensors", {"layer.weight": np.ones((3, 4))})
    ...     files = f"{d}/base.safetensors", f"{d}/tuned.safetensors"
    ...     found = extract_adapter(*files, f"{d}/adapter", Keep(error=0.01))
    >>> found.fits[0].name, found.fits[0].r, f"{found.fits[0].norm:.3f}"  # the root of 12
    ('layer', 1, '3.464')
    """
    result = Extracted()
    rng = rng or np.random.default_rng(0)
    with CheckpointPair(base, tuned) as pair:
        result.unmatched = pair.unmatched
        modules = _extracted(pair, keep, rng, result)
        write_adapter(folder, modules, dtype=None, fan_in_fan_out=pair.kind in CONV1D_MODELS)
    return result


def can_adapt(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the weight of a linear layer, judged by its name and shape.

    Parameters
    ----------
    name : str
    shape : tuple of int
    """
    linear = len(shape) == 2 and 0 not in shape and name.endswith(".weight")
    return linear and not EMBEDDING.search(name)


def _extracted(
    pair: CheckpointPair, keep: Keep, rng: np.random.Generator, result: Extracted
) -> Iterator[Written]:
    for name in pair.names:
        W0, W = pair.read(name)
        if np.array_equal(W0, W):
            continue
        if not can_adapt(name, pair.shape(name)):
            if equal_when_rounded(W0, W, pair.types(name), pair.base_is_rounded):
                result.rounding.append(name)
            else:
                result.leave_out(name, W0, W)
            continue
        floor = uneven_noise_edge(pair.rounding(name, W0, W))
        yield from nearest(name.removesuffix(".weight"), W - W0, keep, floor, rng, result)
    if not result.fits:
        compared = sum(can_adapt(name, pair.shape(name)) for name in pair.names)
        raise pair.no_change("matrix that an adapter can hold", compared)


def nearest(
    module: str,
    delta: np.ndarray,
    keep: Keep,
    floor: float,
    rng: np.random.Generator,
    result: Extracted,
) -> Iterator[Written]:
    """Yield the nearest factors of a change, in float32, unless it is only rounding.

    Parameters
    ----------
    module : str
        Name of the module; `result` gets its errors, or the name if the change is rounding.
    delta : ndarray, shape (out, in), float64
    keep : Keep
    floor : float
        Singular values below it are rounding.
    rng : numpy.random.Generator
        For the randomised SVD of a large matrix.
    result : Extracted
    """
    factors = _best_factors(delta, keep, floor, rng)
    if factors is None:
        result.rounding.append(module)
        return
    B, A = (rounded(x, np.float32) for x in factors)
    result.fits.append(_fit(module, delta, factors, (B, A)))
    yield module, B, A, 1.0


def _fit(
    module: str,
    delta: np.ndarray,
    best: tuple[np.ndarray, np.ndarray],
    written: tuple[np.ndarray, np.ndarray],
) -> Truncation:
    """Return the errors of the best factors of a change, and of those that are written."""
    shape, norm = (delta.shape[0], delta.shape[1]), float(np.linalg.norm(delta))
    errors = (float(np.linalg.norm(delta - b.astype(np.float64) @ a)) for b, a in (best, written))
    return Truncation(module, shape, None, len(best[1]), norm, *errors)


def _best_factors(
    delta: np.ndarray, keep: Keep, floor: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return B (out, k) and A (k, in), or None if no direction is above the floor of rounding.

    For a large matrix, the number of computed directions doubles until k of them suffice.
    """
    shape, norm = (delta.shape[0], delta.shape[1]), float(np.linalg.norm(delta))
    count = min(keep.rank or FIRST, *shape)
    while True:
        U, sigma, Vt, bound = leading_svd(delta, count, rng)
        if sigma[0] < floor:
            return None
        all_above = keep.energy is not None and sigma[-1] < floor
        if bound is None or keep.rank is not None or all_above:
            return factors_of(U, sigma, Vt, keep.of(sigma, shape, floor))
        rest = (bound.frobenius or 0.0) / norm
        tails = np.append(np.cumsum((sigma[::-1] / norm) ** 2)[::-1], 0.0)  # after 0, ..., count
        enough = np.flatnonzero(rest**2 + tails <= keep.missed_share)
        if enough.size:
            return factors_of(U, sigma, Vt, max(int(enough[0]), 1))
        count = min(2 * count, *shape)  # with all of them, the SVD is dense


def beyond_table(found: Extracted) -> Table:
    """Return a table: a line for each changed tensor outside the adapter, with its norm.

    Parameters
    ----------
    found : Extracted
    """
    held = math.hypot(*(fit.norm for fit in found.fits))
    lacking = math.hypot(*found.beyond.values())
    columns = {
        "tensor": [*found.beyond, "all of these", "all in the adapter's modules"],
        "norm": [*found.beyond.values(), lacking, held],
    }
    return Table(columns, {"norm": ".4g"})
