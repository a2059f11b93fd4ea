"""The places of a model's layers in other people's files: a table by class of model.

The layers of a model that is not in the table keep their own paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lora_np.layers import Layer
from lora_np.methods import FilePlace
from lora_np.models import GPT


class FileLayout(NamedTuple):
    """The layout of a model in other people's files.

    Attributes
    ----------
    places : dict of str to FilePlace
        Places of linear layers, embeddings and normalisations by path; a layer without a place
        keeps its path.
    fan_in_fan_out : bool
        Whether the files keep weights as (in, out). Ours are (out, in).
    """

    places: dict[str, FilePlace]
    fan_in_fan_out: bool


def _gpt2(model: GPT) -> FileLayout:
    """Return the layout of Hugging Face's GPT-2: weights (in, out); c_attn stacks q, k and v."""
    d = model.config.d_model
    places = {name: FilePlace(f"transformer.{name}", 0, d) for name in ("wte", "wpe")}
    for i in range(model.config.n_layer):
        ours, theirs = f"h.{i}", f"transformer.h.{i}"
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            places[f"{ours}.attn.{name}"] = FilePlace(f"{theirs}.attn.c_attn", part * d, 3 * d)
        places[f"{ours}.attn.o_proj"] = FilePlace(f"{theirs}.attn.c_proj", 0, d)
        places[f"{ours}.mlp.up_proj"] = FilePlace(f"{theirs}.mlp.c_fc", 0, 4 * d)
        places[f"{ours}.mlp.down_proj"] = FilePlace(f"{theirs}.mlp.c_proj", 0, d)
        for norm in ("ln_1", "ln_2"):
            places[f"{ours}.{norm}"] = FilePlace(f"{theirs}.{norm}", 0, d)
    places["ln_f"] = FilePlace("transformer.ln_f", 0, d)
    return FileLayout(places, fan_in_fan_out=True)


LAYOUTS: dict[type, Callable[[Any], FileLayout]] = {GPT: _gpt2}


def file_layout(model: Layer) -> FileLayout:
    """Return the layout of a model in other people's files.

    Parameters
    ----------
    model : Layer
        A model of a class in the table, or of a subclass; other models keep their own paths.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig
    >>> from lora_np.pretrained import file_layout
    >>> layout = file_layout(GPT(GPTConfig(9, 4, 1, 2, 8), np.random.default_rng(0)))
    >>> layout.places["h.0.attn.v_proj"]
    FilePlace(name='transformer.h.0.attn.c_attn', start=16, total=24)
    """
    for kind in type(model).__mro__:
        if kind in LAYOUTS:
            return LAYOUTS[kind](model)
    return FileLayout({}, fan_in_fan_out=False)
