"""AdaLoRA in PEFT's files: only the kept triplets; ``rank_pattern`` says which those are.

The scale stays lora_alpha / (init_r + 1e-5) however many are kept. A triplet that was cut is read
as zeros.

Source: PEFT 0.21.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.methods.contract import Fields, FileForm, Tensors
from lora_np.methods.peft_lora import OURS

DEFAULTS = {
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
TENSORS = ("lora_A", "lora_E", "lora_B")  # (r, in), (r, 1), (out, r)


def our_fields(saved: Fields) -> dict[str, Any]:
    """Return the fields without those that are not options; PEFT's penalty is the norm."""
    if saved.get("peft_type") != "ADALORA":
        return dict(saved)
    kept = {key: x for key, x in saved.items() if key not in ("r", "rank_pattern", OURS)}
    return {**kept, "orth_reg": (saved.get(OURS) or {}).get("orth_reg", "norm")}


def without_cut(fields: Fields, tensors: Tensors) -> FileForm:
    """Return PEFT's fields and tensors of the kept triplets, from those of all and ``kept``."""
    pattern, found = {}, {}
    for name, x in tensors.items():
        module, _, kind = name.rpartition(".")
        flags = tensors[f"{module}.kept"].reshape(-1) != 0.0  # (r,)
        if kind == "kept":
            pattern[f"{module}.lora_E"] = flags.tolist()
        else:
            found[name] = x[:, flags] if kind == "lora_B" else x[flags]
    ours = {key: x for key, x in fields.items() if key != "orth_reg"}
    if fields["orth_reg"] != "norm":
        ours[OURS] = {"orth_reg": fields["orth_reg"]}
    all_kept = all(all(flags) for flags in pattern.values())
    return {**ours, "rank_pattern": None if all_kept else pattern}, found


def with_cut(saved: Fields, tensors: Tensors, r: int) -> dict[str, np.ndarray]:
    """Return the tensors of all `r` triplets and ``kept``, from those of the kept ones."""
    pattern, found = saved.get("rank_pattern") or {}, {}
    for name, x in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind not in TENSORS:
            raise ValueError(f"the file holds {name!r}, which is not AdaLoRA's")
        axis = 1 if kind == "lora_B" else 0
        flags = np.array(pattern.get(f"{module}.lora_E", [True] * r), bool)
        if flags.shape != (r,) or flags.sum() != x.shape[axis]:
            raise ValueError(
                f"{name!r} has {x.shape[axis]} triplets, but rank_pattern keeps {flags.sum()} of "
                f"{r}: they belong to different files"
            )
        whole = np.zeros((len(x), r) if axis else (r, *x.shape[1:]), x.dtype)
        whole[(slice(None), flags) if axis else flags] = x
        found[name], found[f"{module}.kept"] = whole, flags.astype(x.dtype).reshape(r, 1)
    return found
