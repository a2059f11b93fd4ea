"""What lora_np runs: the side to change when it gains a faster way to take a step."""

from __future__ import annotations

import itertools
import statistics
import time
import tracemalloc
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from lora_np import layers, methods, ops
from lora_np.backend import Array
from lora_np.crew import keep_memory
from lora_np.methods import MethodConfig, merge, method_of
from lora_np.optim import AdamW
from lora_np.parameters import pack
from lora_np.rank import spectrum
from lora_np.train import BatchGradient
from tests.benchmarks.models import (
    LEARNING_RATE,
    Method,
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


HOMES = {  # where the layers call each twin from
    "attention": layers.attention,
    "gelu": layers.basic,
    "gqa": layers.rotary,
    "lora_linear": methods.lora,
}


class Training:
    """Training steps, one after the other, on a model of its own; use it in a ``with`` statement.

    Parameters
    ----------
    model : model
    data : list of tuple of array
        Batches, gone through in turn.
    textbook : str, optional
        The pair, e.g. "gelu", that the layers call in the place of its fast twin.
    **crew
        ``threads`` or ``processes``, as for :class:`BatchGradient`.
    """

    def __init__(
        self, model: Any, data: list[tuple], textbook: str | None = None, **crew: int
    ) -> None:
        names = [f"{textbook}_forward", f"{textbook}_backward"] if textbook else []
        self.swapped = {name: getattr(ops, name) for name in names}
        self.model, self.number = model, itertools.count()
        packed = pack(self.model.parameters())
        self.method, self.rng = method_of(self.model) or MethodConfig(), np.random.default_rng(3)
        self.gradient = BatchGradient(self.model, packed, **crew)
        self.optimizer, self.turn = AdamW(packed), itertools.cycle(data)

    def __enter__(self) -> Training:
        with ExitStack() as stack:
            for name, function in self.swapped.items():  # before processes are forked
                home = HOMES[name.rpartition("_")[0]]
                stack.enter_context(mock.patch.object(home, name, function))
            stack.enter_context(self.gradient)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *args: object) -> None:
        self._leave.close()

    def step(self) -> float:
        """Take the training step that is measured; return the loss."""
        loss, gradient = self.gradient(next(self.turn), self.rng)
        self.optimizer.step(gradient, LEARNING_RATE)
        self.method.after_step(self.model, next(self.number), gradient)
        return loss


class NumpySide(Side):
    """lora_np in a process of its own.

    Parameters
    ----------
    threads : int
        Of BLAS; in a training step, as many workers with BLAS at one thread each.
    keep : bool
        Whether freed memory is kept, as ``lora-np``'s own commands do.
    workers : {"processes", "threads"}
        Of a training step.
    cpu_time : bool
        Whether to count this process's CPU seconds. They depend less on what else the machine
        does, and say nothing about several workers.
    """

    def __init__(
        self,
        threads: int,
        keep: bool = True,
        workers: str = "processes",
        cpu_time: bool = False,
    ) -> None:
        super().__init__()
        self.clock = time.process_time if cpu_time else time.perf_counter
        self.threads, self.workers = threads, workers
        self.trainings: dict[str, Training] = {}
        self._limits = threadpool_limits(threads, user_api="blas")
        if keep:
            keep_memory()

    def add_step(self, name: str, size: Size, method: Method, textbook: str | None = None) -> None:
        """Prepare a training step."""
        crew = {self.workers: self.threads}
        self.add_training(name, Training(model_for(size, method), batches(size), textbook, **crew))

    def add_training(self, name: str, training: Training) -> None:
        """Prepare the steps of a training."""
        self.trainings[name], self.actions[name] = training, training.step

    def run(self, action: str, count: int) -> list[float]:
        """Time `count` calls; the workers of a training step are there meanwhile, as in ``fit``."""
        with self.trainings.get(action) or nullcontext():
            return super().run(action, count)

    def results(self, action: str, count: int) -> list[Any]:
        """Return what `count` calls return."""
        with self.trainings.get(action) or nullcontext():
            return super().results(action, count)

    def forget(self) -> None:
        """Drop all actions, and the models that they hold."""
        super().forget()
        self.trainings.clear()

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

    def peak_memory(self, size: Size, method: Method) -> int:
        """Return the most bytes that Python and NumPy held during a step: state and activations."""
        tracemalloc.start()
        training = Training(model_for(size, method), batches(size))
        with training:
            training.step()
            tracemalloc.reset_peak()
            training.step()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    def spectra(self, size: int, rank: int) -> tuple[float, float, float]:
        """Return the seconds of a dense SVD of B A and of ``spectrum((B, A))``, and how far apart.

        Singular values only, by either. Apart is the largest difference over sigma_1.
        """
        rng = np.random.default_rng(0)
        B, A = rng.standard_normal((size, rank)), rng.standard_normal((rank, size))
        found = spectrum((B, A)).singular_values  # (rank,)
        seconds = []
        for _ in range(11):
            start = time.perf_counter()
            spectrum((B, A))
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        dense = np.linalg.svd(B @ A, compute_uv=False)  # (size,)
        dense_seconds = time.perf_counter() - start
        expected = np.concatenate([found, np.zeros(size - rank)])  # what is left out is zero
        apart = float(np.abs(dense - expected).max() / dense[0])
        return dense_seconds, statistics.median(seconds), apart

    def logits(self, size: Size) -> Array:
        """Return the base's logits (B, T, V) for the first batch."""
        return base_model(size).forward(batches(size)[0][0])[0]

    def versions(self) -> dict[str, str]:
        """Return NumPy's version and the BLAS in use."""
        found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        parts = ("internal_api", "version", "architecture")
        names = [" ".join(str(pool[k]) for k in parts if pool.get(k)) for pool in found]
        return {"numpy": np.__version__, "blas": ", ".join(names) or "unknown"}
