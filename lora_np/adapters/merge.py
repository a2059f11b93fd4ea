"""Merge an adapter into a checkpoint: W0 + scale B A, for use without LoRA.

The sum is rounded to the checkpoint's type. In a narrow type, rounding can erase much of a small
change, so the norms of the rounding and of the change are both reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_np.adapters.cut import rounded
from lora_np.adapters.file import AdapterModule, open_adapter
from lora_np.adapters.weights import (
    is_transposed,
    model_type,
    require_floats,
    tensors_of_modules,
)
from lora_np.files import CheckpointError, TensorFile, open_weights
from lora_np.files.rewrite import rewrite_tensors
from lora_np.pretrained.find import expect_base
from lora_np.tables import Table, natural


@dataclass(frozen=True)
class Merged:
    """One merged weight.

    Parameters
    ----------
    name : str
        Name of the tensor.
    dtype : str
        Its type, the same before and after.
    norm : float
        Frobenius norm of the change, scale B A.
    rounding : float
        Frobenius norm of the rounding error of the sum.
    left_off, put_before : str
        The prefix removed from the name of the adapter's module, such as "vision_model.", and the
        prefix then added, to get the tensor's name. Both are "" if the names agree.
    """

    name: str
    dtype: str
    norm: float
    rounding: float
    left_off: str = ""
    put_before: str = ""


def merge_adapter(base: str | Path, adapter: str | Path, out: str | Path) -> list[Merged]:
    """Write a checkpoint with an adapter merged into it, with one weight in memory at a time.

    Parameters
    ----------
    base : str or Path
        A safetensors file, or a Hugging Face folder. Other tensors are copied bit for bit.
    adapter : str or Path
        An adapter that :func:`lora_np.adapters.open_adapter` can open. First parts of its names
        that all modules share are removed if the checkpoint does not have them; "model." or
        "transformer." may be added or removed.
    out : str or Path
        The file to write.

    Returns
    -------
    list of Merged

    Raises
    ------
    CheckpointError
        If a file is broken, `out` exists, a module is missing, quantised or of another shape in the
        checkpoint, a sum is not finite in the checkpoint's type, or the adapter's ``training.json``
        names another base. Nothing is then written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import merge_adapter, write_adapter
    >>> from lora_np.files import TensorFile, save_tensors
    >>> with tempfile.TemporaryDirectory() as d:
    ...     base, adapter, out = f"{d}/base.safetensors", f"{d}/adapter", f"{d}/out.safetensors"
    ...     save_tensors(base, {"layer.weight": np.eye(2)})
    ...     write_adapter(adapter, [("layer", np.ones((2, 1)), np.ones((1, 2)), 0.5)])
    ...     merged = merge_adapter(base, adapter, out)
    ...     with TensorFile(out) as file:
    ...         file.read("layer.weight").tolist()  # W0 + 0.5 B A
    [[1.5, 0.5], [0.5, 1.5]]
    """
    merged: list[Merged] = []
    with open_adapter(adapter) as file, open_weights(base) as weights:
        file.require_scale()
        expect_base(adapter, weights)
        held = tensors_of_modules(list(file.modules), weights, str(adapter))
        modules = {held[name][0]: (held[name][1], x) for name, x in file.modules.items()}
        kind = model_type(base)

        def replacement(name: str) -> np.ndarray | None:
            if name not in modules:
                return None
            plain, module = modules[name]
            transposed = is_transposed(kind, plain, module.shape, file.fan_in_fan_out)
            W, rounding, norm = _sum(weights, name, module, transposed)
            affixes = _affixes(module.name, plain.removesuffix(".weight"))
            merged.append(Merged(name, W.dtype.name, norm, rounding, *affixes))
            return W

        rewrite_tensors(weights, out, replacement)
    return merged


def _affixes(module: str, stem: str) -> tuple[str, str]:
    """Return the prefix to remove from the first name, and the prefix to add, to get the second."""
    ours, theirs = module.split("."), stem.split(".")
    same = 0
    while same < min(len(ours), len(theirs)) and ours[-1 - same] == theirs[-1 - same]:
        same += 1
    first = (parts[: len(parts) - same] for parts in (ours, theirs))
    left_off, put_before = ("".join(f"{part}." for part in parts) for parts in first)
    return left_off, put_before


def _sum(
    weights: TensorFile, name: str, module: AdapterModule, transposed: bool
) -> tuple[np.ndarray, float, float]:
    """Return W0 + scale B A in W0's type and layout, and the norms of rounding and change."""
    shape = module.shape[::-1] if transposed else module.shape
    require_floats(weights, name)
    if weights.shape(name) != shape:
        raise CheckpointError(
            f"{weights.path} holds {name!r} with shape {weights.shape(name)}, but the adapter's "
            f"has shape {shape}"
        )
    B, A = (x.astype(np.float64) for x in module.factors())
    change = module.scale * (B @ A)  # (out, in)
    exact = weights.read(name, np.float64) + (change.T if transposed else change)
    found = rounded(exact, weights.dtype(name))
    if not np.isfinite(found).all():
        raise CheckpointError(f"{name!r} is not finite in {found.dtype} after the merge")
    error = float(np.linalg.norm(found.astype(np.float64) - exact))
    return found, error, float(np.linalg.norm(change))


def names_note(merged: Sequence[Merged]) -> str:
    """Return a line that says how the adapter's names were changed; "" if they were not.

    Parameters
    ----------
    merged : sequence of Merged

    Examples
    --------
    >>> from lora_np.adapters.merge import Merged, names_note
    >>> print(names_note([Merged("h.0.q.weight", "float32", 1.0, 0.0, left_off="vision_model.")]))
    'vision_model.' was removed from the adapter's names
    """
    said = []
    for left_off, put_before in dict.fromkeys((m.left_off, m.put_before) for m in merged):
        if left_off:
            said.append(f"{left_off!r} was removed from the adapter's names")
        if put_before:
            said.append(f"{put_before!r} was added before the adapter's names")
    return "; ".join(said)


def merge_table(merged: Sequence[Merged]) -> Table:
    """Return a table: a line for each weight, with rounding relative to the change, and a total.

    Parameters
    ----------
    merged : sequence of Merged
    """
    norm = math.hypot(*(m.norm for m in merged))
    rounding = math.hypot(*(m.rounding for m in merged))
    rows = [*sorted(merged, key=lambda m: natural(m.name)), Merged("all", "", norm, rounding)]
    columns = {
        "tensor": [m.name for m in rows],
        "dtype": [m.dtype or None for m in rows],
        "norm": [m.norm for m in rows],
        "rounding / norm": [m.rounding / m.norm if m.norm else 0.0 for m in rows],
    }
    return Table(columns, {"norm": ".4g", "rounding / norm": ".2e"})
