"""The linear task: the curve where theory gives the answer.

A linear map W0 has to become W0 + Delta W, where Delta W has known singular values. The inputs x
are whitened, E[x x^T] = I, so the population loss of a change N is exactly::

    1/2 E ||(Delta W - N) x||^2 = 1/2 ||Delta W - N||_F^2

By Eckart and Young (1936) no N of rank r gets below the floor 1/2 sum_{i>r} sigma_i^2. The sweep
trains A and B (with Adam) and shows whether the measured loss sits on that floor.

Sufficient statistics: with targets free of noise, the squared loss sees the data X (n, in) only
through X^T X. So any R with R^T R = X^T X / n gives the same loss and gradient, and the triangular
factor of X's QR decomposition is one with `in` rows where X had n. Whitened, R is diagonal with
entries 1 or -1: the data are gone, and only the matrix problem is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.backend import Array, to_device, to_host
from lora_np.crew import one_blas_thread
from lora_np.experiments.rank_sweep.method import Compared, adapted_model, config_of
from lora_np.experiments.rank_sweep.plan import Trial, check_numbers
from lora_np.experiments.runner import Arrays
from lora_np.layers import Layer, Linear
from lora_np.methods import LoRALinear, MethodConfig, inject
from lora_np.ops import mse_backward, mse_forward
from lora_np.parameters import Grads
from lora_np.rank import eckart_young_floor, spectrum
from lora_np.train import fit


@dataclass(frozen=True)
class LinearSettings(Compared):
    """The settings of the linear task; they decide its results.

    Parameters
    ----------
    ranks : tuple of int
    seeds : int
        Number of seeds; a seed draws A.
    d_in, d_out : int
        W0 is (d_out, d_in).
    decay : float
        The planted singular values are 1, decay, decay^2, ...
    steps : int
        Steps of every trial.
    lora_lr, full_lr : float
        Where the searches for a learning rate start.
    device : {"cpu", "cuda"}
    method : MethodConfig, optional
        The method to compare at every rank; by default LoRA.

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> settings = LinearSettings(ranks=(1, 2), steps=500)
    >>> settings.task, settings.d_out, settings.d_in
    ('linear', 48, 64)
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seeds: int = 3
    d_in: int = 64
    d_out: int = 48
    decay: float = 0.9
    steps: int = 2000
    lora_lr: float = 0.05
    full_lr: float = 0.05
    device: str = "cpu"
    method: MethodConfig | None = field(default=None, repr=False)

    task = "linear"


class LinearTask:
    """A planted change, as the sufficient statistics on which the trials train."""

    given_sha256: str | None = None

    def __init__(self, settings: LinearSettings, base: str | Path | None = None) -> None:
        s = self.settings = settings
        if base is not None:
            raise ValueError(f"base {base}: the linear task draws W0 and takes no base")
        if not 0.0 < s.decay <= 1.0:
            raise ValueError(f"decay = {s.decay}, expected 0 < decay <= 1")
        check_numbers(s, ("steps", "seeds", "d_in", "d_out"), ("lora_lr", "full_lr"))
        blank = Linear(s.d_in, s.d_out, np.random.default_rng(0))
        for r in s.ranks:  # report a rank that does not fit before anything is trained
            inject(blank, config_of(s).of_rank(r), np.random.default_rng(0))

    def identity(self) -> dict[str, Any]:
        """Return an empty dict: the results depend on the settings alone."""
        return {}

    def prepare(self, folder: Path, progress: bool) -> dict[str, np.ndarray]:
        """Return W0, the planted Delta W with its singular values, and the statistics R."""
        with one_blas_thread():  # the last bits depend on the number of threads
            return self._plant()

    def _plant(self) -> dict[str, np.ndarray]:
        s, rng = self.settings, np.random.default_rng(0)
        n = min(s.d_in, s.d_out)
        sigma = s.decay ** np.arange(n)  # (n,)
        U, _ = np.linalg.qr(rng.standard_normal((s.d_out, n)))  # orthonormal columns
        V, _ = np.linalg.qr(rng.standard_normal((s.d_in, n)))
        W0 = rng.standard_normal((s.d_out, s.d_in)) / math.sqrt(s.d_in)
        X = whiten(rng.standard_normal((8 * s.d_in, s.d_in)))  # (n, in)
        _, R = np.linalg.qr(X / math.sqrt(len(X)))  # (in, in), R^T R = X^T X / n
        return {"W0": W0, "change": (U * sigma) @ V.T, "sigma": sigma, "R": R}

    def baseline(self, arrays: Arrays) -> dict[str, float]:
        """Return the loss of W0 without any change."""
        loss = population_loss(arrays["change"])
        return {"base_validation_loss": loss, "base_test_loss": loss}

    def facts(self, folder: Path, arrays: Arrays) -> dict[str, Any]:
        """Return the planted spectrum, and the floors of ranks 0 up to the largest one."""
        ranks = range(max(self.settings.ranks) + 1)
        floors = [eckart_young_floor(arrays["sigma"], r) for r in ranks]
        return {"planted_singular_values": arrays["sigma"].tolist(), "floors": floors}

    def change_spectrum(self, arrays: Arrays, trained: Arrays) -> list[dict[str, Any]]:
        """Return the spectrum of the change that full training found."""
        return [{"name": "W", **spectrum(trained["linear.W"] - arrays["W0"]).as_dict()}]


def whiten(X: np.ndarray) -> np.ndarray:
    """Return `X` (n, d) mixed over its columns so that X^T X / n is the identity."""
    Q, _ = np.linalg.qr(X)  # (n, d), orthonormal columns
    return Q * math.sqrt(len(X))


def population_loss(error: np.ndarray) -> float:
    """Return 1/2 ||error||_F^2 in float64."""
    return 0.5 * float((np.asarray(error, dtype=np.float64) ** 2).sum())


class Regression(Layer):
    """A linear layer with half the summed squared error as its loss."""

    def __init__(self, linear: Linear | LoRALinear) -> None:
        self.linear = linear

    def loss(
        self, inputs: Array, targets: Array, rng: Any = None, count: int | None = None
    ) -> tuple[Array, Any]:
        """Return 1/2 ||linear(inputs) - targets||_F^2 and the cache."""
        y, c_linear = self.linear.forward(inputs, rng)
        mean, c_mse = mse_forward(y, targets)
        half = 0.5 * targets.size / (count or 1)  # from the mean to half the sum
        return mean * half, (c_linear, c_mse, half)

    def number(self, batch: Sequence[Array]) -> int:
        """Return 1: the loss is a sum, so the losses of parts of a batch add up."""
        return 1

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add the gradients of the trainable Parameters."""
        c_linear, c_mse, half = cache
        dy_linear, _ = mse_backward(dy * half, c_mse, (True, False))
        assert dy_linear is not None  # it was asked for
        self.linear.backward(dy_linear, c_linear, grads, need_dx=False)


def run_linear_trial(
    settings: LinearSettings, arrays: Arrays, trial: Trial
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train once on the statistics; return losses and trained arrays. Runs in any process."""
    s, start = settings, time.perf_counter()
    with one_blas_thread():
        linear = Linear(s.d_in, s.d_out, np.random.default_rng(0), bias=False, dtype=np.float64)
        linear.W.value = to_device(arrays["W0"], s.device)
        model = adapted_model(Regression(linear), trial, s)
        inputs = to_device(arrays["R"], s.device)  # (in, in)
        targets = to_device(
            arrays["R"] @ (arrays["W0"] + arrays["change"]).T, s.device
        )  # (in, out)
        fit(
            model,
            lambda: (inputs, targets),
            steps=s.steps,
            lr=trial.lr,
            warmup=s.steps // 100,
            optimizer="adam",
            clip=None,
        )
        train_loss = float(model.loss(inputs, targets)[0])
    parameters = {n: to_host(p.value) for n, p in model.parameters().items()}
    trained = {n: parameters[n] for n, p in model.parameters().items() if p.trainable}
    if trial.method == "full":
        found = parameters["linear.W"] - arrays["W0"]
    else:
        found = to_host(model.linear.delta())
    loss = population_loss(arrays["change"] - found)
    result = {
        "trainable_parameters": sum(array.size for array in trained.values()),
        "train_loss": train_loss,
        "validation_loss": loss,
        "test_loss": loss,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if trial.rank is not None:
        result["floor"] = eckart_young_floor(arrays["sigma"], trial.rank)
    return result, trained
