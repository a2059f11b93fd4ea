"""A Llama of three layers with the tiny tokenizer, in memory and as a folder; data for it."""

import json

import numpy as np

from lora_np import Llama, LlamaConfig
from lora_np.data import Sample
from lora_np.files import save_tensors
from lora_np.pretrained.llama import OURS
from tests.pretrained.tiny_tokenizer import write_tiny_tokenizer

V, CONTEXT = 360, 160
SIZES = {"n_layer": 3, "n_head": 2, "n_kv_head": 1, "d_model": 16, "d_hidden": 24}


def llama(seed=0, dtype=np.float32, vocab=V, context=CONTEXT, **sizes):
    """A model with weights large enough that every part matters."""
    rng = np.random.default_rng(seed)
    model = Llama(LlamaConfig(vocab, context, **{**SIZES, **sizes}), rng, dtype)
    for p in model.parameters().values():
        p.value[...] = p.value + 0.2 * rng.standard_normal(p.shape)
    return model


def samples(number, seed=1, longest=12, vocab=V):
    """Samples of unequal lengths; the second half of each is labelled."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, number)
    return [Sample(rng.integers(0, vocab, n), np.arange(n) >= max(1, n // 2)) for n in lengths]


def write_llama(folder, seed=0, dtype=np.float32, **sizes):
    """Write a model of these sizes, with the tiny tokenizer, as a folder of Hugging Face."""
    return write_model(folder, llama(seed, **sizes), dtype)


def write_model(folder, model, dtype):
    """Write a model, its numbers in `dtype`, and the tiny tokenizer as a folder of Hugging Face."""
    write_tiny_tokenizer(folder)
    arrays = {}
    for name, p in model.parameters().items():
        path, _, kind = name.rpartition(".")
        arrays[f"{path}.{OURS[kind]}"] = p.value.astype(dtype)
    save_tensors(folder / "model.safetensors", arrays, {"format": "pt"})
    c = model.config
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_hidden,
        "rms_norm_eps": c.eps,
        "rope_theta": c.rope_base,
        "hidden_act": "silu",
        "tie_word_embeddings": c.tied,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def write_data(path, number=14):
    """Write questions and answers as JSON lines."""
    rows = [{"prompt": f"how many in shop {i}?", "response": f"{i * 7}"} for i in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
