"""What lora_np runs: the side to change when it gains a faster way to take a step."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from lora_np.adapt import merge
from lora_np.backend import Array, Crew, keep_memory
from lora_np.optim import AdamW
from lora_np.parameters import Packed, pack
from lora_np.train import Batch, loss_and_gradient
from tests.benchmarks.models import (
    LEARNING_RATE,
    adapted_model,
    base_model,
    batches,
    model_for,
    prompt,
)
from tests.benchmarks.plan import Size
from tests.benchmarks.workers import Side

PRODUCT = 1536  # rows and columns of the product that finds the machine's peak
PRODUCT_FLOPS = 2 * PRODUCT**3


def numpy_step(model: Any, packed: Packed, optimizer: AdamW, batch: Batch, crew: Crew) -> float:
    """Take the training step that is measured; return the loss."""
    loss, gradient = loss_and_gradient(model, packed, batch, crew=crew)
    optimizer.step(gradient, LEARNING_RATE)
    return loss


def training(size: Size, rank: int | None) -> Callable[[Crew], float]:
    """Return a function that takes one step after the other on a model of its own."""
    model = model_for(size, rank)
    packed = pack(model.parameters())
    optimizer, turn = AdamW(packed), itertools.cycle(batches(size))
    return lambda crew: numpy_step(model, packed, optimizer, next(turn), crew)


class NumpySide(Side):
    """lora_np in a process of its own.

    Parameters
    ----------
    threads : int
        Of BLAS; in a training step, Python threads with BLAS at one thread each.
    keep : bool
        Whether freed memory is kept, as ``lora-np``'s own commands do.
    """

    def __init__(self, threads: int, keep: bool = True) -> None:
        super().__init__()
        self.threads, self.crew = threads, Crew(1)
        self.steps: set[str] = set()  # the actions that are training steps
        self._limits = threadpool_limits(threads, user_api="blas")
        if keep:
            keep_memory()

    def add_step(self, name: str, size: Size, rank: int | None) -> None:
        """Prepare a training step."""
        step = training(size, rank)
        self.actions[name] = lambda: step(self.crew)
        self.steps.add(name)

    def run(self, action: str, count: int) -> list[float]:
        """Time `count` calls; a step's batch is shared by Python threads, as by ``fit``."""
        with Crew(self.threads if action in self.steps else 1) as self.crew:
            seconds = super().run(action, count)
        self.crew = Crew(1)  # the other has gone home
        return seconds

    def add_inference(self, size: Size, rank: int) -> None:
        """Prepare the forwards "base", "merged" and "unmerged"."""
        adapted = adapted_model(size, rank)
        models = {"base": base_model(size), "merged": merge(adapted), "unmerged": adapted}
        tokens = batches(size)[0][0]
        for name, model in models.items():
            self.actions[name] = lambda model=model: model.forward(tokens)[0]

    def add_product(self, name: str) -> None:
        """Prepare a product of two square matrices, which runs at the machine's peak."""
        a, b = np.random.default_rng(0).random((2, PRODUCT, PRODUCT), np.float32)
        y = a @ b
        self.actions[name] = lambda: np.matmul(a, b, out=y)

    def add_generation(self, name: str, size: Size) -> None:
        """Prepare the greedy continuation of the prompt up to the full block."""
        model, tokens = base_model(size), prompt(size)
        self.actions[name] = lambda: model.generate(tokens, size.T - len(tokens), temperature=0)

    def peak_memory(self, size: Size, rank: int | None) -> int:
        """Return the most bytes that Python and NumPy held during a step: state and activations."""
        tracemalloc.start()
        step = training(size, rank)
        step(self.crew)
        tracemalloc.reset_peak()
        step(self.crew)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    def logits(self, size: Size) -> Array:
        """Return the base's logits (B, T, V) for the first batch."""
        return base_model(size).forward(batches(size)[0][0])[0]

    def versions(self) -> dict[str, str]:
        """Return NumPy's version and the BLAS in use."""
        found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        parts = ("internal_api", "version", "architecture")
        names = [" ".join(str(pool[k]) for k in parts if pool.get(k)) for pool in found]
        return {"numpy": np.__version__, "blas": ", ".join(names) or "unknown"}
