"""Write the sizes of a Llama: the fields of a GGUF file, and Hugging Face's config.json.

The way back from :mod:`lora_np.pretrained.llama_config`. The names and values are those that
llama.cpp's converter and transformers write.

Source: convert_hf_to_gguf.py of llama.cpp; LlamaConfig and Qwen2Config of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files import CheckpointError, GgufFile, load_json
from lora_np.models import Llama, LlamaConfig
from lora_np.ops.rope import Llama3Scaling
from lora_np.parameters import Parameter
from lora_np.pretrained.llama import ROPE_FREQS
from lora_np.pretrained.llama_config import config_of_gguf, config_of_json

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # general.file_type, by the type of the matrices
BLOCKS_VERSION = 2  # general.quantization_version: the layout of ggml's blocks
OF_QUANTISER = "quantize."  # fields about the bits of a file, which do not hold for other bits


def config_at(path: Path) -> LlamaConfig:
    """Return the sizes of a model in a GGUF file or a folder; no weight is read.

    Parameters
    ----------
    path : pathlib.Path
        From :func:`lora_np.pretrained.find_model`.

    Raises
    ------
    CheckpointError
        If it is no model of the Llama family.
    """
    if path.is_dir():
        return config_of_json(load_json(path / "config.json"), path / "config.json")
    file = GgufFile.open(path)
    return config_of_gguf(file.fields, path, tied="output.weight" not in file.tensors)


def linear_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of every linear layer of a model, by its path.

    Examples
    --------
    >>> from lora_np import LlamaConfig
    >>> from lora_np.pretrained.llama_out import linear_shapes
    >>> shapes = linear_shapes(LlamaConfig(9, 8, 1, 2, 1, 4, 6))
    >>> shapes["model.layers.0.self_attn.k_proj"], len(shapes)
    ((2, 4), 7)
    """
    shapes: dict[str, tuple[int, int]] = {}

    def noted(name: str, shape: tuple[int, ...]) -> Parameter:
        path, _, part = name.rpartition(".")
        if part == "W" and path != "model.embed_tokens":
            shapes[path] = (shape[0], shape[1])
        return Parameter(np.broadcast_to(np.float32(0.0), shape))  # no memory

    Llama.of(config, noted)
    return shapes


def architecture_of(config: LlamaConfig) -> str:
    """Return the name of a model's kind in GGUF files and in config.json.

    Examples
    --------
    >>> from lora_np import LlamaConfig
    >>> from lora_np.pretrained.llama_out import architecture_of
    >>> architecture_of(LlamaConfig(9, 8, 1, 1, 1, 4, 6, qkv_bias=True))
    'qwen2'
    """
    return "qwen2" if config.qkv_bias else "llama"


def gguf_fields(config: LlamaConfig, name: str) -> dict[str, Any]:
    """Return the fields of a GGUF file that give a model's kind, name and sizes.

    Examples
    --------
    >>> from lora_np import LlamaConfig
    >>> from lora_np.pretrained.llama_out import gguf_fields
    >>> fields = gguf_fields(LlamaConfig(9, 8, 1, 2, 1, 4, 6), "tiny")
    >>> fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    (2, 1)
    """
    kind, width = architecture_of(config), config.head_width
    sizes = {
        "block_count": config.n_layer,
        "context_length": config.block_size,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_hidden,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": config.eps,
        "rope.dimension_count": width,
        "rope.freq_base": config.rope_base,
        "vocab_size": config.vocab_size,
    }
    general = {"architecture": kind, "type": "model", "name": name}
    return {
        **{f"general.{key}": value for key, value in general.items()},
        **{f"{kind}.{key}": value for key, value in sizes.items()},
    }


def typed(fields: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields of a GGUF file whose matrices are written in another type.

    Parameters
    ----------
    fields : mapping
        The fields of the model.
    kind : {"f32", "f16", "q8_0"}

    Examples
    --------
    >>> from lora_np.pretrained.llama_out import typed
    >>> typed({"general.file_type": 3, "quantize.imatrix.file": "x"}, "f16")
    {'general.file_type': 1, 'general.quantization_version': 2}
    """
    kept = {name: x for name, x in fields.items() if not name.startswith(OF_QUANTISER)}
    kept["general.file_type"] = FILE_TYPES[kind]
    return {**kept, "general.quantization_version": BLOCKS_VERSION}


def frequency_divisors(config: LlamaConfig) -> dict[str, np.ndarray]:
    """Return the tensor of a GGUF file that holds a model's change of the rotary frequencies.

    The result is empty if they are not changed.

    Examples
    --------
    >>> from lora_np import LlamaConfig
    >>> from lora_np.ops.rope import Llama3Scaling
    >>> from lora_np.pretrained.llama_out import frequency_divisors
    >>> scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    >>> config = LlamaConfig(9, 8, 1, 1, 1, 6, 6, rope_base=5e5, rope_scaling=scaling)
    >>> frequency_divisors(config)["rope_freqs.weight"].round(3).tolist()
    [1.0, 1.0, 8.0]
    """
    if config.rope_scaling is None:
        return {}
    width = config.head_width
    plain = config.rope_base ** (-np.arange(0, width, 2) / width)  # (d_head/2,), as in rope_angles
    return {ROPE_FREQS: (plain / config.rope_scaling.stretched(plain)).astype(np.float32)}


def json_fields(config: LlamaConfig, source: Any) -> dict[str, Any]:
    """Return the fields of a config.json that give a model's kind and sizes.

    Parameters
    ----------
    config : LlamaConfig
    source : path
        The model's file, for the error.

    Raises
    ------
    CheckpointError
        If the rotary frequencies are changed by divisors, as in the GGUF files of Llama 3.

    Examples
    --------
    >>> from lora_np import LlamaConfig
    >>> from lora_np.pretrained.llama_out import json_fields
    >>> json_fields(LlamaConfig(9, 8, 1, 2, 1, 4, 6), "x.gguf")["architectures"]
    ['LlamaForCausalLM']
    """
    kind = architecture_of(config)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if isinstance(config.rope_scaling, Llama3Scaling):
        rope |= {"rope_type": "llama3", **vars(config.rope_scaling)}
    elif config.rope_scaling is not None:
        raise CheckpointError(
            f"{source} has {ROPE_FREQS!r}, which config.json cannot hold: export from the model's "
            "folder of Hugging Face, or to a .gguf file"
        )
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_width,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_hidden,
        "hidden_act": "silu",
        "rms_norm_eps": float(str(np.float32(config.eps))),  # 1e-05, of which GGUF has 32 bits
        "rope_theta": config.rope_base,  # for readers older than transformers 5
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied,
    }
