"""The rows of the table that are whole models: the loss, plain and adapted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lora_np.backend import like
from lora_np.gradcheck import Case
from lora_np.layers import Layer, as_pair
from lora_np.methods import IntrinsicConfig, LoraConfig, PrefixConfig, PromptConfig, inject
from lora_np.models import GPT, GPTConfig, Llama, LlamaConfig
from lora_np.selfcheck.layers import at_random


def of_models(rng: np.random.Generator) -> list[Case]:
    """Return every model, a GPT and a Llama with methods too."""
    config = GPTConfig(vocab_size=7, block_size=5, n_layer=2, n_head=2, d_model=4, dropout=0.1)
    base = GPT(config, rng, np.float64)
    lora = LoraConfig(r=2, lora_dropout=0.2, target_modules="all-linear")
    table = {"GPT": base}
    for name, method in {
        "LoRA": lora,
        "a prompt": PromptConfig(1),
        "a prefix": PrefixConfig(1),
        "a prefix and its MLP": PrefixConfig(1, prefix_projection=True, encoder_hidden_size=3),
        "a random subspace": IntrinsicConfig(d=20, structured=True),
    }.items():
        table[f"GPT with {name}"] = inject(base, method, rng)
    tokens, targets = rng.integers(0, 7, (2, 3, 4))
    found = [_model_case(name, model, tokens, (targets,), rng) for name, model in table.items()]
    return [*found, *_llamas(tokens, targets, replace(lora, lora_alpha=1), rng)]


def _llamas(
    tokens: np.ndarray, targets: np.ndarray, lora: LoraConfig, rng: np.random.Generator
) -> list[Case]:
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 4, "n_kv_head": 2, "d_model": 4, "d_head": 2}
    tied = LlamaConfig(7, 5, d_hidden=3, **sizes)
    base = Llama(tied, rng, np.float64)
    untied = Llama(replace(tied, tied=False, qkv_bias=True), rng, np.float64)
    adapted, recomputed = inject(base, lora, rng), inject(base, lora, rng)
    recomputed.recompute = True
    whole = (targets,)
    packed = (targets, np.array([[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 1]]))
    table = [
        ("Llama", base, whole),
        ("Llama, untied, biases", untied, whole),
        ("Llama, packed rows", base, packed),
        ("Llama with LoRA", adapted, whole),
        ("Llama with LoRA, recomputed", recomputed, packed),
        ("Llama with a prefix", inject(base, PrefixConfig(1), rng), whole),
    ]
    return [_model_case(name, model, tokens, batch, rng) for name, model, batch in table]


def _model_case(
    name: str,
    model: Layer,
    tokens: np.ndarray,
    batch: tuple[np.ndarray, ...],
    rng: np.random.Generator,
) -> Case:
    """Return the loss of tokens; `batch` holds the targets, and the positions of packed rows."""

    def loss(model: Any, x: np.ndarray) -> tuple[Any, Any]:
        others = [like(part, x) for part in batch]
        return model.loss(x, *others, rng=np.random.default_rng(1))

    at_random(model, rng, 0.5)
    forward, backward, inputs = as_pair(model, loss)
    return Case(name, forward, backward, inputs(tokens), {}, ("directional", "complex"))
