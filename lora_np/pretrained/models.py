"""Load a model of ours from other people's files, by the model type in their config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files import CheckpointError, load_json
from lora_np.pretrained.gpt2 import load_gpt2
from lora_np.pretrained.llama import load_llama
from lora_np.reading import shown

LOADERS: dict[str, Callable[..., Any]] = {
    "gpt2": load_gpt2,
    "llama": load_llama,
    "qwen2": load_llama,
}


def load_model(folder: str | Path, dtype: Any = np.float32) -> Any:
    """Return a model of ours with the weights of a Hugging Face folder.

    Parameters
    ----------
    folder : str or Path
        A folder whose config.json names a model type in ``LOADERS``.
    dtype : dtype
        float32 or float64.

    Raises
    ------
    CheckpointError
        If the folder is broken, or lora_np has no model of that type.

    Examples
    --------
    >>> from lora_np.pretrained import load_model
    >>> load_model("no_such_folder")
    Traceback (most recent call last):
        ...
    lora_np.files.arrays.CheckpointError: no_such_folder has no config.json, which names its model
    """
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder} has no config.json, which names its model")
    fields = load_json(config)
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind not in LOADERS:
        known = ", ".join(LOADERS)
        raise CheckpointError(f"{config}: model_type = {shown(kind)}, lora_np has only {known}")
    return LOADERS[kind](folder, dtype)
