"""Tiny Llamas written as a folder of Hugging Face and as a GGUF file, sound or otherwise."""

import json

import numpy as np
from safetensors.numpy import save_file

from lora_np import Llama, LlamaConfig
from lora_np.files import write_gguf
from lora_np.pretrained.gguf_names import gguf_name
from tests.naive_gguf import permuted_head_by_head

KIND = {"W": "weight", "b": "bias", "gamma": "weight"}
SIZES = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_model": 32, "d_hidden": 64, "d_head": 8}
EPS = 2.0**-17  # near the usual 1e-5, and a number that GGUF's float32 holds


def tiny_llama(rng, vocab_size=37, **changes):
    """A model in float32 whose every Parameter is random."""
    model = Llama(LlamaConfig(vocab_size, 24, eps=EPS, **{**SIZES, **changes}), rng)
    for p in model.parameters().values():
        p.value = (p.value + 0.3 * rng.standard_normal(p.shape)).astype(np.float32)
    return model


def named(model):
    """Each Parameter's path, the files' word for its kind, and its value."""
    for name, p in model.parameters().items():
        path, _, kind = name.rpartition(".")
        yield path, KIND[kind], p.value


def changed(content, changes):
    """Return the dict with other values; None removes one."""
    return {k: x for k, x in {**content, **(changes or {})}.items() if x is not None}


def write_folder(folder, model, fields=None, tensors=None, dtype=np.float32):
    """Write config.json and model.safetensors; `fields` and `tensors` are changes."""
    c = model.config
    config = {
        "model_type": "qwen2" if c.qkv_bias else "llama",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_hidden,
        "head_dim": c.head_width,
        "rms_norm_eps": c.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "tie_word_embeddings": c.tied,
    }
    held = {f"{path}.{kind}": x.astype(dtype) for path, kind, x in named(model)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(changed(config, fields)))
    save_file(changed(held, tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_file(path, model, fields=None, tensors=None, encode=None):
    """Write a GGUF file as llama.cpp's converter does; `encode` packs the matrices."""
    c, kind = model.config, "qwen2" if model.config.qkv_bias else "llama"
    sizes = {
        "vocab_size": c.vocab_size,
        "context_length": c.block_size,
        "block_count": c.n_layer,
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_kv_head,
        "attention.key_length": c.head_width,
        "attention.layer_norm_rms_epsilon": c.eps,
        "embedding_length": c.d_model,
        "feed_forward_length": c.d_hidden,
        "rope.freq_base": c.rope_base,
    }
    content = {"general.architecture": kind, **{f"{kind}.{k}": x for k, x in sizes.items()}}
    heads = {"q_proj": c.n_head, "k_proj": c.n_kv_head}
    held: dict = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for module, leaf, x in named(model):
        name = gguf_name(module)
        own = heads.get(module.rpartition(".")[2]) if kind == "llama" else None
        x = x if own is None else permuted_head_by_head(x, own)
        held[f"{name}.{leaf}"] = encode(x) if encode and x.ndim == 2 else x
    write_gguf(path, changed(content, fields), changed(held, tensors))
    return path
