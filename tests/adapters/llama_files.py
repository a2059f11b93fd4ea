"""A tiny Llama as other programs write it: a folder of Hugging Face, and a GGUF file."""

import json

import numpy as np

from lora_np import Llama, LlamaConfig, LoraConfig, inject, save_adapter
from lora_np.files import save_tensors, write_gguf
from lora_np.ops.rope import Llama3Scaling
from lora_np.pretrained.gguf_names import gguf_name
from tests.naive_gguf import permuted_head_by_head
from tests.pretrained.tiny_tokenizer import tiny_fields, write_tiny_tokenizer

V = len(tiny_fields()["tokenizer.ggml.tokens"])
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 16)
TOKENS = np.array([[1, 20, 300, 7, 339, 42], [5, 4, 3, 2, 1, 0]])
KIND = {"W": "weight", "b": "bias", "gamma": "weight"}


def llama(**changes):
    """A model with 4 heads of queries, 2 of keys and values, and weights that all matter."""
    sizes = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_model": 64, "d_hidden": 96}
    rng = np.random.default_rng(0)
    sizes = {"vocab_size": V, "block_size": 32, **sizes, **changes}
    model = Llama(LlamaConfig(**sizes), rng)
    for p in model.parameters().values():
        p.value += 0.1 * rng.standard_normal(p.shape, np.float32)
    return model


def arrays(model):
    """The weights by Hugging Face's names."""
    split = {name: name.rpartition(".") for name in model.parameters()}
    return {f"{split[n][0]}.{KIND[split[n][2]]}": p.value for n, p in model.parameters().items()}


def write_folder(folder, model, **tokenizer):
    """Write a folder of Hugging Face."""
    c, kind = model.config, "qwen2" if model.config.qkv_bias else "llama"
    rope = {"rope_type": "default", "rope_theta": c.rope_base}
    if c.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **vars(c.rope_scaling)}
    config = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]],
        "model_type": kind, "vocab_size": c.vocab_size, "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head, "hidden_size": c.d_model,
        "intermediate_size": c.d_hidden, "rms_norm_eps": c.eps, "rope_parameters": rope,
        "tie_word_embeddings": c.tied, "dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    write_tiny_tokenizer(folder, **tokenizer)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_tensors(folder / "model.safetensors", arrays(model), {"format": "pt"})
    return folder


def write_model_gguf(path, model, **tokenizer):
    """Write a GGUF file with fields that a reader of the sizes does not know."""
    c, tensors = model.config, {}
    for name, x in arrays(model).items():
        module, _, part = name.rpartition(".")
        heads = {"q_proj": c.n_head, "k_proj": c.n_kv_head}.get(module.rpartition(".")[2])
        x = x if heads is None else permuted_head_by_head(x, heads)
        tensors[f"{gguf_name(module)}.{part}"] = x
    sizes = {
        "block_count": c.n_layer, "context_length": c.block_size, "embedding_length": c.d_model,
        "feed_forward_length": c.d_hidden, "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_kv_head, "rope.freq_base": c.rope_base,
        "attention.layer_norm_rms_epsilon": c.eps, "rope.dimension_count": c.head_width,
        "vocab_size": c.vocab_size,
    }  # fmt: skip
    general = {"architecture": "llama", "type": "model", "license": "mine", "file_type": 3}
    fields = {f"general.{name}": x for name, x in general.items()}
    fields |= {f"llama.{name}": x for name, x in sizes.items()} | tiny_fields(**tokenizer)
    write_gguf(path, {**fields, "quantize.imatrix.file": "x.dat"}, tensors)
    return path


def adapted(model, config=None):
    """The model with an adapter as if it had been trained."""
    rng = np.random.default_rng(1)
    found = inject(model, config or LoraConfig(r=2, target_modules="all-linear"), rng)
    for p in found.parameters().values():
        if p.trainable:
            p.value += 0.1 * rng.standard_normal(p.shape, np.float32)
    return found


def write_lora(folder, model, config=None):
    """Write an adapter; return the adapted model."""
    found = adapted(model, config)
    save_adapter(found, folder)
    return found
