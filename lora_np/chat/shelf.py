"""Adapters over one base, by name: switching is picking another model that shares its arrays.

An adapter is small, so all are loaded at the start, and a broken or a foreign one is an error
before the first message. A switch costs what it takes the new model to read the conversation again.

Adapters are not merged into the base. A merged model would save the products with A and B, but each
switch would take a merge of all adapted weights, which would be in memory twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_np.adapters import load_adapter
from lora_np.files import CheckpointError
from lora_np.methods.table import hint
from lora_np.reading import folder_name, shown

BASE = "base"  # the name under which the model has no adapter


class Shelf:
    """A base, and models that adapt it by the names of their folders.

    Parameters
    ----------
    base : LanguageModel
        Stays unchanged.
    folders : sequence of str or Path
        From ``lora-np finetune``, :func:`lora_np.save_adapter` or PEFT.

    Attributes
    ----------
    models : dict
        By name; the base is called "base".
    chosen : str
        The name of the first adapter, or "base" if there is none.

    Raises
    ------
    CheckpointError
        If two folders have one name, or an adapter is broken or was trained on another base.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig, LoraConfig, inject, save_adapter
    >>> from lora_np.chat import Shelf
    >>> rng = np.random.default_rng(0)
    >>> base = Llama(LlamaConfig(9, 8, 1, 1, 1, d_model=4, d_hidden=6), rng)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(inject(base, LoraConfig(r=2), rng), f"{folder}/sql")
    ...     shelf = Shelf(base, [f"{folder}/sql"])
    >>> shelf.chosen, shelf.choose("base") is base
    ('sql', True)
    """

    def __init__(self, base: Any, folders: Sequence[str | Path] = ()) -> None:
        self.models, places = {BASE: base}, {BASE: "the model itself"}
        for folder in map(Path, folders):
            name = folder_name(folder)
            if name in places:
                raise CheckpointError(
                    f"two adapters are called {shown(name)}: {folder} and {places[name]}; rename "
                    "a folder"
                )
            self.models[name], places[name] = load_adapter(base, folder), str(folder)
        self.chosen = next((name for name in self.models if name != BASE), BASE)

    def choose(self, name: str) -> Any:
        """Return the model of a name, and remember the choice.

        Raises
        ------
        ValueError
            If the name is unknown; the message has the nearest ones.
        """
        if name not in self.models:
            raise ValueError(f"no adapter is called {shown(name)}: {hint(name, self.models)}")
        self.chosen = name
        return self.models[name]

    @property
    def model(self) -> Any:
        """The chosen model."""
        return self.models[self.chosen]
