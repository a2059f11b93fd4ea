"""DoRA in PEFT's files: LoRA's tensors, and the lengths m of all rows of a matrix.

A file that stacks layers in one matrix holds m for all its rows, also those of a layer without an
adapter: there m is the length of the row of W0. In the other direction, a layer whose m differ from
these lengths gets an adapter, even if its rows of B are zero.

Source: PEFT 0.21.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import Array, like, to_host
from lora_np.layers import Layer, Linear
from lora_np.methods.contract import FileForm, Places, Tensors, adapters
from lora_np.methods.lora import LoRALinear
from lora_np.methods.peft import by_module
from lora_np.methods.peft_lora import adapted_with, check_ranks, lora_to_peft
from lora_np.methods.stacked import homes_of, model_factors, place_of
from lora_np.ops.linear import row_lengths

A, B, M = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def dora_to_peft(config: Any, adapted: Layer, places: Places) -> FileForm:
    """Return PEFT's fields and tensors of DoRA."""
    fields, tensors = lora_to_peft(config, adapted, places)
    rows: dict[str, dict[int, np.ndarray]] = {}
    for path, layer in {"": adapted, **adapted.modules()}.items():
        if isinstance(layer, Linear | LoRALinear):
            place = place_of(path, layer, places)
            rows.setdefault(place.name, {})[place.start] = to_host(lengths_of(layer))
    for name in [name.removesuffix(f".{A}") for name in tensors if name.endswith(A)]:
        tensors[f"{name}.{M}"] = np.concatenate([m for _, m in sorted(rows[name].items())])
    return {**fields, "use_dora": True}, tensors


def dora_of_peft(config: Any, tensors: Tensors, base: Layer, places: Places) -> Any:
    """Return `base` with the adapters of a DoRA file of PEFT's."""
    check_ranks(config, tensors)
    homes = homes_of(base, places)
    modules = by_module(tensors, homes)
    for name, own in modules.items():
        total = homes[name][0][1].total
        for odd in sorted(own.keys() ^ {A, B, M}):
            which = "holds" if odd in own else "lacks"
            raise ValueError(f"the file {which} '{name}.{odd}', which is not DoRA's")
        if own[M].shape != (total,):
            raise ValueError(f"'{name}.{M}' has shape {own[M].shape}, expected ({total},)")
    found = model_factors(homes, {n: x for n, x in tensors.items() if not n.endswith(M)})
    trained = {}
    for name, own in modules.items():
        for path, place, layer in homes[name]:
            m = own[M][place.start : place.start + layer.d_out].astype(layer.W.dtype)
            if path not in found and not np.array_equal(m, to_host(lengths_of(layer))):
                found[path] = (name, np.zeros((layer.d_out, len(own[A])), m.dtype), own[A])
            trained[path] = m
    adapted = adapted_with(config, found, base)
    for path, layer in adapters(adapted).items():
        layer.m.value = like(trained[path], layer.m.value)
    return adapted


def lengths_of(layer: Any) -> Array:
    """Return m of a DoRA layer, or the lengths of the rows of a linear one."""
    return layer.m.value if hasattr(layer, "m") else row_lengths(layer.W.value)
