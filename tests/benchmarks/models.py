"""The models and batches that both sides build, each in its own process, from equal seeds."""

from __future__ import annotations

import numpy as np

from lora_np.costs import account
from lora_np.methods import LoraConfig, MethodConfig, adapters, inject
from lora_np.models import GPT
from tests.benchmarks.plan import Size

Method = MethodConfig | int | None  # an int is LoRA of this rank, None full fine-tuning
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
BATCHES = 4  # gone through in turn
LEARNING_RATE = 1e-4


def base_model(size: Size) -> GPT:
    """Return the base in float32."""
    return GPT(size.gpt(), np.random.default_rng(0))


def lora_config(rank: int) -> LoraConfig:
    """Return what is adapted: the attention's projections."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)


def adapted_model(size: Size, rank: int) -> GPT:
    """Return the base with adapters whose B is random: a mistake in the adapter then shows."""
    rng = np.random.default_rng(1)
    model = inject(base_model(size), lora_config(rank), rng)
    for layer in adapters(model).values():
        layer.B.value = (0.02 * rng.standard_normal(layer.B.shape)).astype(layer.B.dtype)
    return model


def model_for(size: Size, method: Method) -> GPT:
    """Return the model that a method trains: the base for None, LoRA for a rank."""
    if isinstance(method, MethodConfig):
        return inject(base_model(size), method, np.random.default_rng(1))
    return base_model(size) if method is None else adapted_model(size, method)


def batches(size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of (inputs, targets), each (B, T), random: they cannot be learned by heart."""
    rng = np.random.default_rng(2)
    shape = (BATCHES, 2, size.batch_size, size.T)
    drawn = rng.integers(0, size.vocab_size, shape)
    return [(inputs, targets) for inputs, targets in drawn]


def prompt(size: Size) -> np.ndarray:
    """Return the tokens (T / 8,) from which generation starts."""
    return batches(size)[0][0][0, : max(1, size.T // 8)]


def step_flops(size: Size, rank: int | None) -> int:
    """Return what ``account()`` predicts for a training step on one batch."""
    forward, backward = account(model_for(size, rank), size.T).flops
    return (forward + backward) * size.batch_size * size.T
