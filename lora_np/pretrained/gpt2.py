"""Read the weights of Hugging Face's GPT-2 into our GPT.

Its Conv1D keeps weights as (in, out); ours are (out, in). Weights are transposed here and nowhere
else. places.py says which rows of which matrix belong to a layer.

Source: the format of transformers' GPT2LMHeadModel.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np.files import CheckpointError, TensorFile, load_json, open_weights
from lora_np.files.names import plain_names
from lora_np.layers import Embedding, LayerNorm, Linear
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Parameter
from lora_np.pretrained.places import file_layout
from lora_np.reading import is_one_of, shown

PREFIX = "transformer."
BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, in old files
SIZES = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
ALLOWED = {  # fields that change the mathematics; an absent field means the first value
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False, None),
    "tie_word_embeddings": (True,),
    "is_encoder_decoder": (False, None),
    "pruned_heads": (None, {}),
    "quantization_config": (None, {}),
}


def load_gpt2(folder: str | Path, dtype: Any = np.float32) -> GPT:
    """Load a GPT-2 model of Hugging Face.

    Parameters
    ----------
    folder : str or Path
        A folder with config.json and model.safetensors, or model.safetensors.index.json and the
        files that it lists.
    dtype : dtype
        float32 or float64; the file may have another float dtype.

    Returns
    -------
    GPT
        All its Parameters are trainable. Its dropout is 0, whatever the config says.

    Raises
    ------
    CheckpointError
        If a file is broken or does not fit the config, or a field of the config requires other
        mathematics; the message names the file and the field.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import load_gpt2
    >>> from lora_np.files import save_json, save_tensors
    >>> sizes = {"vocab_size": 5, "n_positions": 4, "n_layer": 1, "n_head": 1, "n_embd": 8}
    >>> shapes = {"wte.weight": (5, 8), "wpe.weight": (4, 8)}
    >>> inner = {"attn.c_attn": (8, 24), "attn.c_proj": (8, 8), "mlp.c_fc": (8, 32),
    ...          "mlp.c_proj": (32, 8), "ln_1": (8,), "ln_2": (8,)}
    >>> for name, shape in {**{f"h.0.{k}": v for k, v in inner.items()}, "ln_f": (8,)}.items():
    ...     shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/config.json", {"model_type": "gpt2", **sizes})
    ...     save_tensors(f"{folder}/model.safetensors", {k: np.ones(v) for k, v in shapes.items()})
    ...     model = load_gpt2(folder)
    >>> model.h[0].mlp.up_proj.W.shape  # (out, in), where the file has (in, out)
    (32, 8)
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype {np.dtype(dtype)}: expected float32 or float64")
    folder = Path(folder)
    fields = _fields(folder / "config.json")
    with open_weights(folder) as file:
        plain = plain_names(file.names, file.path)
        held = {name.removeprefix(PREFIX): own for own, name in plain.items()}
        if len(held) < len(file.names):
            raise CheckpointError(f"{file.path} holds names with and without {PREFIX!r}")
        _check_sizes(file, held, fields)
        model = _empty_gpt(fields, dtype)
        targets = _targets(model)
        for name, parts in targets.items():
            _read(file, held, name, parts)
        _check_rest(file, held, set(targets))
    return model


def _fields(path: Path) -> dict[str, Any]:
    """Read the config, and refuse values that our GPT does not support."""
    fields = load_json(path)
    if not isinstance(fields, dict) or fields.get("model_type") != "gpt2":
        raise CheckpointError(f"{path} is not a GPT-2 config: its model_type is not 'gpt2'")
    for name in SIZES:
        if type(fields.get(name)) is not int or fields[name] < 1:
            raise CheckpointError(
                f"{path}: {name} = {shown(fields.get(name))}, expected a whole number"
            )
    if fields["n_embd"] % fields["n_head"]:
        raise CheckpointError(
            f"{path}: n_embd is not a multiple of n_head = {shown(fields['n_head'])}"
        )
    d_hidden = 4 * fields["n_embd"]
    for name, allowed in {**ALLOWED, "n_inner": (None, d_hidden)}.items():
        value = fields.get(name, allowed[0])
        if not is_one_of(value, allowed):
            raise CheckpointError(f"{path}: {name} = {shown(value)}, expected {shown(allowed[-1])}")
    eps = fields.setdefault("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(
            f"{path}: layer_norm_epsilon = {shown(eps)}, expected 0 < epsilon < 1"
        )
    return fields


def _check_sizes(file: TensorFile, held: dict[str, str], fields: dict[str, Any]) -> None:
    """Compare the config's sizes with the file's, before a model of these sizes is made."""
    d = fields["n_embd"]
    expected = {
        "wte.weight": (fields["vocab_size"], d),
        "wpe.weight": (fields["n_positions"], d),
        f"h.{fields['n_layer'] - 1}.ln_1.weight": (d,),
    }
    for name, shape in expected.items():
        _check_shape(file, held, name, shape)
    have = sum(math.prod(file.shape(name)) for name in file.names)
    if have < 12 * fields["n_layer"] * d**2:  # entries of a block's matrices, without biases
        raise CheckpointError(
            f"{file.path} holds {have} numbers, too few for the config's n_layer = "
            f"{shown(fields['n_layer'])} and n_embd = {d}"
        )


def _check_shape(file: TensorFile, held: dict[str, str], name: str, shape: tuple) -> None:
    found = file.shape(held.get(name, name))
    if found != shape:
        raise CheckpointError(
            f"{file.path} holds {shown(name)} with shape {found}, the config says {shown(shape)}"
        )


def _empty_gpt(fields: dict[str, Any], dtype: Any) -> GPT:
    """Return a model of the config's sizes; its weights are yet to be read."""
    vocab_size, block_size, n_layer, n_head, d_model = (fields[name] for name in SIZES)
    config = GPTConfig(vocab_size, block_size, n_layer, n_head, d_model)
    model = GPT(config, np.random.default_rng(0), dtype)
    for layer in model.modules().values():
        if isinstance(layer, LayerNorm):
            layer.eps = fields["layer_norm_epsilon"]
    return model


class _Target(NamedTuple):
    """A Parameter, its first row in a tensor of the file, and the tensor's shape (out, ...)."""

    parameter: Parameter
    start: int
    shape: tuple[int, ...]
    transposed: bool = False


def _targets(model: GPT) -> dict[str, list[_Target]]:
    """Return the Parameters that each tensor of the file fills, by its name without prefix."""
    targets: dict[str, list[_Target]] = {}
    places, transposed = file_layout(model)
    for path, layer in model.modules().items():
        if isinstance(layer, Linear) and layer.b is not None:
            name, start, total = places[path]
            name = name.removeprefix(PREFIX)
            weight = _Target(layer.W, start, (total, layer.W.shape[1]), transposed)
            targets.setdefault(f"{name}.weight", []).append(weight)
            targets.setdefault(f"{name}.bias", []).append(_Target(layer.b, start, (total,)))
        elif isinstance(layer, LayerNorm):
            targets[f"{path}.weight"] = [_Target(layer.gamma, 0, layer.gamma.shape)]
            targets[f"{path}.bias"] = [_Target(layer.beta, 0, layer.beta.shape)]
        elif isinstance(layer, Embedding):
            targets[f"{path}.weight"] = [_Target(layer.W, 0, layer.W.shape)]
    return targets


def _read(file: TensorFile, held: dict[str, str], name: str, targets: list[_Target]) -> None:
    """Read one tensor into the Parameters that it fills."""
    shape, transposed = targets[0].shape, targets[0].transposed
    _check_shape(file, held, name, shape[::-1] if transposed else shape)
    x = file.read(held[name], targets[0].parameter.dtype)
    whole = x.T if transposed else x  # (out, in)
    for parameter, start, *_ in targets:
        parameter.value[...] = whole[start : start + parameter.shape[0]]


def _check_rest(file: TensorFile, held: dict[str, str], read: set[str]) -> None:
    """Allow the masks and a head equal to the embedding; refuse all other tensors."""
    for name in held.keys() - read:
        if name == "lm_head.weight":
            head, wte = (file.read(held[n], None) for n in (name, "wte.weight"))
            if not np.array_equal(head, wte):
                raise CheckpointError(
                    f"{file.path}: 'lm_head.weight' is not 'wte.weight', to which our head is tied"
                )
        elif not name.endswith(BUFFERS):
            raise CheckpointError(f"{file.path} holds {held[name]!r}, which GPT-2 does not have")
