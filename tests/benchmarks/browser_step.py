"""A training step of the sweep's GPT, in milliseconds: one script for CPython and for Pyodide.

Run ``python tests/benchmarks/browser_step.py`` natively, and the same file under Pyodide, by turns;
divide the medians. Each line is a method, the median and the smallest of the steps [ms].
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from lora_np import GPT, AdamW, LoraConfig, inject, pack
from lora_np.experiments.rank_sweep import TextSettings
from lora_np.train import BatchGradient

WARM, STEPS = 3, 30


def step_of(model, settings):
    """Return a function that takes one training step on a batch of random tokens."""
    packed, rng = pack(model.parameters()), np.random.default_rng(2)
    gradient, optimizer = BatchGradient(model, packed), AdamW(packed)
    shape = (2, settings.batch_size, settings.block_size)
    inputs, targets = rng.integers(0, settings.gpt().vocab_size, shape)

    def step():
        loss, g = gradient((inputs, targets))
        optimizer.step(g, 1e-4)
        return loss

    return step


def main() -> None:
    """Print the times of a LoRA step and of a full step."""
    settings, rng = TextSettings(), np.random.default_rng(1)
    base, other = (GPT(settings.gpt(), np.random.default_rng(0)) for _ in range(2))
    lora = inject(base, LoraConfig(r=8, target_modules=settings.target_modules), rng)
    steps = {"LoRA": step_of(lora, settings), "full": step_of(other, settings)}
    times = {name: [] for name in steps}
    for i in range(WARM + STEPS):
        for name, step in steps.items():  # by turns
            start = time.perf_counter()
            step()
            if i >= WARM:
                times[name].append(1000 * (time.perf_counter() - start))
    for name, found in times.items():
        print(f"{name:<6}{statistics.median(found):8.1f}{min(found):8.1f}", flush=True)


if __name__ == "__main__":
    main()
