"""PEFT's fields for LoRA: the ranks and scales of modules, as a default and exceptions.

Source: the LoraConfig of PEFT 0.21.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any


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
