"""A checkpoint with an adapter merged into it: W0 + scale B A, for use without LoRA.

The sum is rounded to the checkpoint's type. In a narrow type that can swallow much of a small
change, so its size is told, beside that of the change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_np.adapters.cut import rounded
from lora_np.adapters.file import AdapterFile, AdapterModule, open_adapter
from lora_np.adapters.weights import CONV1D_MODELS, is_conv1d, model_type
from lora_np.files import CheckpointError, TensorFile, open_weights
from lora_np.files.rewrite import rewrite_tensors
from lora_np.tables import natural, text_table

MOST_NAMED = 10  # modules in an error's line


@dataclass(frozen=True)
class Merged:
    """One merged weight.

    Parameters
    ----------
    name : str
        Of the tensor.
    dtype : str
        Its type, before and after.
    norm : float
        Frobenius norm of the change, scale B A.
    rounding : float
        Frobenius norm of what rounding did to the sum.
    """

    name: str
    dtype: str
    norm: float
    rounding: float


def merge_adapter(base: str | Path, adapter: str | Path, out: str | Path) -> list[Merged]:
    """Write a checkpoint with an adapter merged in; one weight is in memory at a time.

    Parameters
    ----------
    base : str or Path
        A safetensors file, or a folder of Hugging Face's. Tensors without adapter are copied bit
        for bit.
    adapter : str or Path
        As :func:`lora_np.files.open_adapter` takes it. A first part that all its names have
        and the checkpoint's have not, such as "transformer.", is left off.
    out : str or Path
        The file to write.

    Returns
    -------
    list of Merged

    Raises
    ------
    CheckpointError
        If a file is broken, `out` exists, a module is not in the checkpoint or has another shape
        there, or a sum is not finite in the checkpoint's type. Nothing is then written.

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
        modules = _by_tensor(file, weights, str(adapter))
        kind = model_type(base)

        def replacement(name: str) -> np.ndarray | None:
            if name not in modules:
                return None
            transposed = _is_transposed(kind, name, modules[name], file.fan_in_fan_out)
            return _sum(weights, name, modules[name], transposed, merged)

        rewrite_tensors(weights, out, replacement)
    return merged


def _is_transposed(
    kind: str | None, name: str, module: AdapterModule, fan_in_fan_out: bool
) -> bool:
    """Whether a weight lies as (in, out): as the model's type says, else as the adapter says."""
    if kind is None or kind in CONV1D_MODELS:
        return is_conv1d(kind, name) if kind else fan_in_fan_out
    if fan_in_fan_out and module.shape[0] == module.shape[1]:
        raise CheckpointError(
            f"the adapter says fan_in_fan_out, which of {kind} is not known here, and {name!r} is "
            "square: its shape cannot tell; let PEFT merge it"
        )
    return fan_in_fan_out


def _by_tensor(file: AdapterFile, weights: TensorFile, source: str) -> dict[str, AdapterModule]:
    """Return the modules by the names of the tensors that they change."""
    held, names = set(weights.names), list(file.modules)
    for count in range(1 + min(name.count(".") for name in names)):
        parts = [name.split(".") for name in names]
        tensors = [".".join([*rest[count:], "weight"]) for rest in parts]
        one_prefix = len({tuple(rest[:count]) for rest in parts}) == 1
        if one_prefix and held.issuperset(tensors):
            return dict(zip(tensors, file.modules.values()))
    missing = [name for name in names if f"{name}.weight" not in held]
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    raise CheckpointError(
        f"{weights.path} lacks what {source} adapts: {', '.join(missing[:MOST_NAMED])}{more}"
    )


def _sum(
    weights: TensorFile, name: str, module: AdapterModule, transposed: bool, merged: list[Merged]
) -> np.ndarray:
    """Return W0 + scale B A in W0's type and layout; note the rounding."""
    shape = module.shape[::-1] if transposed else module.shape
    if weights.shape(name) != shape:
        raise CheckpointError(
            f"{weights.path} holds {name!r} with shape {weights.shape(name)}, the adapter's is "
            f"{shape}"
        )
    B, A = (x.astype(np.float64) for x in module.factors())
    change = module.scale * (B @ A)  # (out, in)
    exact = weights.read(name, np.float64) + (change.T if transposed else change)
    found = rounded(exact, weights.dtype(name))
    if not np.isfinite(found).all():
        raise CheckpointError(f"{name!r} is not finite in {found.dtype} once merged")
    error = float(np.linalg.norm(found.astype(np.float64) - exact))
    merged.append(Merged(name, found.dtype.name, float(np.linalg.norm(change)), error))
    return found


def merge_table(merged: Sequence[Merged]) -> str:
    """Return one line for each weight, with the rounding in parts of the change, and one for all.

    Parameters
    ----------
    merged : sequence of Merged
    """
    norm = math.hypot(*(m.norm for m in merged))
    rounding = math.hypot(*(m.rounding for m in merged))
    rows = [*sorted(merged, key=lambda m: natural(m.name)), Merged("all", "", norm, rounding)]
    return text_table(
        {
            "tensor": [m.name for m in rows],
            "dtype": [m.dtype for m in rows],
            "norm": [f"{m.norm:.4g}" for m in rows],
            "rounding / norm": [f"{m.rounding / m.norm if m.norm else 0.0:.2e}" for m in rows],
        }
    )
