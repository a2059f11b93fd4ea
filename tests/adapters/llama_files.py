"""A tiny Llama as other programs write it: a folder of Hugging Face, and a GGUF file."""

import numpy as np

from lora_np import Llama, LlamaConfig, LoraConfig, inject, save_adapter
from lora_np.ops.rope import Llama3Scaling
from tests.pretrained import llama_files
from tests.pretrained.llama_files import named
from tests.pretrained.tiny_tokenizer import tiny_fields, write_tiny_tokenizer

V = len(tiny_fields()["tokenizer.ggml.tokens"])
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 16)
TOKENS = np.array([[1, 20, 300, 7, 339, 42], [5, 4, 3, 2, 1, 0]])


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
    return {f"{path}.{kind}": x for path, kind, x in named(model)}


def write_folder(folder, model, **tokenizer):
    """Write a folder of Hugging Face with a tokenizer, and what a program needs to run it."""
    scaling = model.config.rope_scaling
    rope = {"rope_type": "default", "rope_theta": model.config.rope_base}
    if scaling is not None:
        rope |= {"rope_type": "llama3", **vars(scaling)}
    kind = "Qwen2ForCausalLM" if model.config.qkv_bias else "LlamaForCausalLM"
    fields = {"architectures": [kind], "dtype": "float32", "bos_token_id": 1, "eos_token_id": 2}
    write_tiny_tokenizer(folder, **tokenizer)
    return llama_files.write_folder(folder, model, {"rope_parameters": rope, **fields})


def write_model_gguf(path, model, **tokenizer):
    """Write a GGUF file with a tokenizer, and fields that a reader of the sizes does not know."""
    general = {"type": "model", "license": "mine", "file_type": 3}
    fields = {f"general.{name}": x for name, x in general.items()} | tiny_fields(**tokenizer)
    fields["quantize.imatrix.file"] = "x.dat"
    return llama_files.write_file(path, model, fields)


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
