"""What a trial trains: a method's adapters on the base, or a copy of all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.layers import copy_model
from lora_np.methods import LoraConfig, MethodConfig, inject
from lora_np.methods.contract import METHOD_FIELD
from lora_np.methods.file_form import method_of_fields


class Compared:
    """Settings of a sweep that compares the ranks of a method."""

    method: MethodConfig | None

    @property
    def method_name(self) -> str:
        """The name of the method that is compared at every rank."""
        return config_of(self).name


def config_of(settings: Any) -> MethodConfig:
    """Return the method that a sweep compares at several ranks: by default LoRA."""
    if settings.method is not None:
        return settings.method
    return LoraConfig(target_modules=getattr(settings, "target_modules", "all-linear"))


def adapted_model(base: Any, trial: Trial, settings: Any) -> Any:
    """Return the model that a trial trains; `base` stays as it is.

    The scale of LoRA is 1 at every rank (lora_alpha = r): only the rank differs.

    Raises
    ------
    ValueError
        If the trial is of another method than that of the sweep, or lacks a rank.
    """
    if trial.method == "full":
        return copy_model(base)
    config = config_of(settings)
    if trial.method != config.name or trial.rank is None:
        expected = f"expected {config.name!r} with a rank, or 'full'"
        raise ValueError(f"{trial} cannot be trained: {expected}")
    return inject(base, config.of_rank(trial.rank), np.random.default_rng([trial.seed, 1]))


def as_settings(settings: Any) -> dict[str, Any]:
    """Return settings as results hold them; a method that is not LoRA by its fields."""
    plain = asdict(settings)
    plain.pop("method")
    return plain if settings.method is None else {**plain, "method": settings.method.fields()}


def of_settings(saved: Mapping[str, Any]) -> MethodConfig | None:
    """Return the method that results name, or None for LoRA, which they do not name.

    Raises
    ------
    ValueError
        If no method of this name is defined.
    """
    fields = saved.get("method")
    return None if fields is None else method_of_fields(fields).of_fields(fields)


def name_in(results: Mapping[str, Any]) -> str:
    """Return the name of the method whose ranks some results compare."""
    return results["settings"].get("method", {METHOD_FIELD: LoraConfig.name})[METHOD_FIELD]
