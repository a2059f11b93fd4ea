"""LoRA in PEFT's files: the ranks and scales of modules, as a default and exceptions; the factors.

Source: the LoraConfig of PEFT 0.21.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora_np.layers import Layer, rebuild
from lora_np.methods.contract import (
    Fields,
    FileForm,
    Places,
    Tensors,
    adapters,
    name_in,
    with_adapters,
)
from lora_np.methods.stacked import ADAPTED, PathFactors, file_factors, homes_of, model_factors
from lora_np.methods.start import parameter_like
from lora_np.parameters import Parameter
from lora_np.reading import shown

OURS = "lora_np_options"  # a field that PEFT ignores: how the adapter is trained further


def lora_options(saved: Fields, trained_by: Sequence[str] = ()) -> dict[str, Any]:
    """Return the options of LoRA in the fields of a PEFT file; `trained_by` are those of ours."""
    known = ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern")
    given = {key: saved[key] for key in known if saved.get(key) is not None}
    options = saved.get(OURS) or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"{OURS} = {shown(options)}, expected an object")
    ours = {key: x for key, x in options.items() if key in trained_by}
    return {"r": 8, "lora_alpha": 8, **given, **ours}  # PEFT's defaults


def lora_to_peft(config: Any, adapted: Layer, places: Places) -> FileForm:
    """Return PEFT's fields and tensors of LoRA; adapters of stacked layers become one adapter."""
    factors = file_factors(adapted, places)
    dropouts = {layer.dropout for layer in adapters(adapted).values()}
    if len(dropouts) > 1:
        raise ValueError(f"the adapters have dropouts {sorted(dropouts)}: PEFT has one for all")
    ranks = {name: len(A) for name, (_, A, _) in factors.items()}
    scales = {name: scale for name, (_, _, scale) in factors.items()}
    tensors: dict[str, np.ndarray] = {}
    names = {name_in(path, places): a.file_names for path, a in adapters(adapted).items()}
    for name, (B, A, _) in factors.items():
        tensors |= {f"{name}.{names[name]['A']}": A, f"{name}.{names[name]['B']}": B}
    fields = {**as_fields(ranks, scales, config.use_rslora), "lora_dropout": dropouts.pop()}
    ours = {key: getattr(config, key) for key in config.trained_by}
    plain = {key: getattr(type(config), key) for key in config.trained_by}
    return fields if ours == plain else {**fields, OURS: ours}, tensors


def lora_of_peft(config: Any, tensors: Tensors, base: Layer, places: Places) -> Any:
    """Return `base` with the factors of a PEFT file; those of stacked layers are split."""
    check_ranks(config, tensors)
    return adapted_with(config, model_factors(homes_of(base, places, ADAPTED), tensors), base)


def check_ranks(config: Any, tensors: Tensors) -> None:
    """Raise ValueError if a factor A of a file has another rank than the file's fields say.

    All tensors must hold floats.
    """
    for name, value in tensors.items():
        if value.dtype.kind in "iu":
            raise ValueError(f"{name!r} holds {value.dtype} in the file, expected floats")
        module, _, half = name.rpartition(".lora_")
        if half in ("A.weight", "embedding_A") and len(value) != config.rank_of(module):
            raise ValueError(
                f"the file adapts {module!r} with rank {len(value)}, but its r and rank_pattern "
                f"say {config.rank_of(module)}"
            )


def adapted_with(config: Any, found: Mapping[str, PathFactors], base: Layer) -> Any:
    """Return `base` with LoRA of these factors, by path; names are those of the config's file."""

    def adapt(path: str, layer: Any) -> Layer | None:
        if path not in found or not isinstance(layer, config.kinds):
            return None
        name, *factors = found[path]
        B, A = (parameter_like(layer.W, x) for x in factors)
        A.trainable = config.train_A
        return config.over(layer, A, B, config.scale_of(name))

    ranks = {path: len(A) for path, (_, _, A) in found.items()}
    scales = {path: config.scale_of(name) for path, (name, _, _) in found.items()}
    ours = lora_options(as_fields(ranks, scales, config.use_rslora))  # with this model's paths
    method = replace(config, target_modules=tuple(found), **ours)
    return with_adapters(rebuild(base, Parameter.share), adapt, method)


def as_fields(
    ranks: Mapping[str, int], scales: Mapping[str, float], use_rslora: bool = False
) -> dict[str, Any]:
    """Return the fields of an adapter_config.json that give these ranks and scales, by module.

    The most common rank and alpha become the defaults; a module that differs gets a pattern that
    matches only this module. The alphas are those of `use_rslora`, unless only the other rule gives
    the scales exactly.
    """
    use_rslora, alphas = _alphas(ranks, scales, use_rslora)
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": use_rslora,
        "rank_pattern": {_exactly(name): x for name, x in ranks.items() if x != r},
        "alpha_pattern": {_exactly(name): x for name, x in alphas.items() if x != alpha},
        "target_modules": list(ranks),
        "bias": "none",
    }


def _exactly(name: str) -> str:
    return "^" + re.escape(name)  # without ^ the key would match longer paths too


def _alphas(
    ranks: Mapping[str, int], scales: Mapping[str, float], prefer_rslora: bool
) -> tuple[bool, dict[str, float]]:
    """Return whether to divide by sqrt(r), and the alphas.

    The quotients must equal the scales exactly. With r they do for powers of two and if a scale was
    computed as alpha / r; with sqrt(r) if it was computed as alpha / sqrt(r). For other scales no
    alpha may give the exact quotient: about one in ten is then off by the last bit, a relative
    2e-16.
    """
    for use_rslora in (prefer_rslora, not prefer_rslora):
        root = math.sqrt if use_rslora else float
        alphas = {name: _alpha(scale, root(ranks[name])) for name, scale in scales.items()}
        if all(alphas[name] / root(ranks[name]) == scale for name, scale in scales.items()):
            return use_rslora, alphas
    return False, {name: _alpha(scale, float(ranks[name])) for name, scale in scales.items()}


def _alpha(scale: float, root: float) -> float:
    alpha = scale * root
    return int(alpha) if alpha.is_integer() and alpha < 2**53 else alpha
