"""What a trial trains: LoRA's adapters on the base, or a copy of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.layers import copy_model
from lora_np.methods import LoraConfig, inject


def adapted_model(base: Any, trial: Trial, target_modules: Sequence[str] | str) -> Any:
    """Return the model that a trial trains; `base` stays as it is.

    LoRA's scale is 1 at every rank (lora_alpha = r), so that the rank is not confounded with it.

    Raises
    ------
    ValueError
        If the trial is neither of LoRA at some rank nor of full fine-tuning.
    """
    if trial.method == "full":
        return copy_model(base)
    if trial.method != "lora" or trial.rank is None:
        raise ValueError(f"{trial} cannot be trained: expected 'lora' with a rank, or 'full'")
    config = LoraConfig(trial.rank, lora_alpha=trial.rank, target_modules=target_modules)
    return inject(base, config, np.random.default_rng([trial.seed, 1]))
