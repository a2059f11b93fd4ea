"""PEFT's side: its mixed batch, over the same base and the same folders of adapters.

Only this file imports transformers and PEFT, and only if this side is measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files import CheckpointError
from lora_np.pretrained.llama_out import json_fields

LEAF = {"W": "weight", "gamma": "weight", "b": "bias"}


def expect_peft() -> None:
    """Raise CheckpointError unless PyTorch, transformers and PEFT are installed."""
    names = ("torch", "transformers", "peft")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise CheckpointError(
            f"--peft needs {', '.join(missing)}: pip install torch, then pip install "
            "'lora_np[peers]'; or leave --peft out"
        )


class PeftSide:
    """PEFT's ``generate`` with ``adapter_names``, on one thread.

    Parameters
    ----------
    model : Llama
    folders : sequence of Path
        Of adapters.
    """

    def __init__(self, model: Any, folders: Sequence[Path]) -> None:
        peft, torch = import_module("peft"), import_module("torch")
        torch.set_num_threads(1)
        self._torch, self._names = torch, [folder.name for folder in folders]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that will change in transformers
            first, *others = folders
            twin = twin_of(model)
            self.model = peft.PeftModel.from_pretrained(twin, first, adapter_name=first.name)
            for folder in others:
                self.model.load_adapter(folder, adapter_name=folder.name)
        self.model.eval()

    def generate(self, chosen: Sequence[int], prompts: np.ndarray, n: int) -> np.ndarray:
        """Return the new tokens (B, n), row i written with the adapter ``chosen[i]``."""
        tokens = self._torch.from_numpy(prompts)
        names = [self._names[i] for i in np.asarray(chosen).tolist()]
        options = {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mask = self._torch.ones_like(tokens)
            texts = self.model.generate(
                input_ids=tokens, attention_mask=mask, adapter_names=names, **options
            )
        return texts.numpy()[:, prompts.shape[1] :]


def twin_of(ours: Any) -> Any:
    """Return transformers' model with the values of ours."""
    torch, transformers = import_module("torch"), import_module("transformers")
    no_special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    fields = {**json_fields(ours.config, "the model"), **no_special}
    kind = getattr(transformers, fields.pop("architectures")[0])
    theirs = kind(kind.config_class(**fields))
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, p in ours.parameters().items():
            path, _, leaf = name.rpartition(".")
            named[f"{path}.{LEAF[leaf]}"].copy_(torch.from_numpy(p.value))
    return theirs
