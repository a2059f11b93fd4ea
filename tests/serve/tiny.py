"""A tiny base of each type, and folders of adapters over it."""

import numpy as np

from lora_np import GPT, GPTConfig, Llama, LlamaConfig, LoraConfig, inject, save_adapter

V, CONTEXT = 50, 64


def llama(seed=0):
    config = LlamaConfig(V, CONTEXT, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_hidden=48)
    return Llama(config, np.random.default_rng(seed))


def gpt(seed=0):
    return GPT(GPTConfig(V, CONTEXT, 2, 4, 32), np.random.default_rng(seed))


BASES = {"llama": llama, "gpt": gpt}
OPTIONS = {  # unequal ranks, scales and targets
    "one": {"r": 1, "target_modules": "all-linear"},
    "four": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "eight": {"r": 8, "use_rslora": True, "target_modules": ["v_proj", "o_proj", "up_proj"]},
}


def adapter(base, folder, rng, size=0.3, **options):
    """Write an adapter with random factors, by default large enough to change answers."""
    adapted = inject(base, LoraConfig(**options), rng)
    for p in adapted.parameters().values():
        if p.trainable:
            p.value = (size * rng.standard_normal(p.shape)).astype(np.float32)
    save_adapter(adapted, folder)
    return adapted


def adapters(base, folder, rng):
    """Write all of OPTIONS; return the adapted models by name, the base under None."""
    models = {name: adapter(base, folder / name, rng, **how) for name, how in OPTIONS.items()}
    return {None: base, **models}


def greedy(model, prompt, n):
    """Return the new tokens of one text alone."""
    return model.generate(np.array(prompt), n, temperature=0)[len(prompt) :].tolist()
