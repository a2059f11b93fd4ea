"""The Llama and the batches that both sides build, each in its own process."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from lora_np import Llama, LlamaConfig, inject, load_llama, store_model
from lora_np.files import CheckpointError
from lora_np.forms import Q8_0
from lora_np.methods import adapters
from lora_np.pretrained import find_model
from tests.benchmarks.models import BATCHES, lora_config
from tests.benchmarks.plan import RANK

RANDOM = {  # configurations with random weights, by the name of the model in the plan
    "tiny": LlamaConfig(256, 256, n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_hidden=96),
    "SmolLM2-shaped": LlamaConfig(
        49152, 2048, n_layer=30, n_head=9, n_kv_head=3, d_model=576, d_hidden=1536
    ),
}
SMOLLM2, STAND_IN = "smollm2", "SmolLM2-shaped"


class Case(NamedTuple):
    """A batch of B texts of T tokens."""

    B: int
    T: int

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"{self.B} x {self.T}"


def found(model: str) -> tuple[str, str]:
    """Return a model that :func:`base_model` can make, and why it is another one, or ""."""
    if model in RANDOM:
        return model, f"the model's weights are random: {model}"
    try:
        return str(find_model(os.environ.get("LORA_NP_SMOLLM2") or model)), ""
    except CheckpointError as error:
        return STAND_IN, f"SmolLM2's own weights; these are random, of the same shapes ({error})"


def base_model(model: str, quantised: bool = False) -> Llama:
    """Return the base in float32; quantised, as in its file, or in Q8_0 if it is random."""
    if model not in RANDOM:
        return load_llama(model, keep_quantised=quantised)
    base = Llama(RANDOM[model], np.random.default_rng(0))
    if not quantised:
        return base
    matrices = [name for name, p in base.parameters().items() if len(p.shape) == 2]
    return store_model(base, Q8_0.encode, matrices)


def adapted(base: Llama) -> Llama:
    """Return the base with LoRA on q, k, v and o whose B is random, and small beside W."""
    rng = np.random.default_rng(1)
    model = inject(base, lora_config(RANK), rng)
    for layer in adapters(model).values():
        layer.B.value = (0.002 * rng.standard_normal(layer.B.shape)).astype(layer.B.dtype)
    return model


def token_batches(vocab_size: int, case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of (tokens, targets), each (B, T); every token has a target."""
    rng = np.random.default_rng(2)
    drawn = rng.integers(0, vocab_size, (BATCHES, 2, case.B, case.T))
    return [(tokens, targets) for tokens, targets in drawn]


def prompts(vocab_size: int, case: Case) -> np.ndarray:
    """Return the prompts (B, T) of generation."""
    return np.random.default_rng(3).integers(0, vocab_size, (case.B, case.T))
