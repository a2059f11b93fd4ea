"""What a training run is told, what it records, and how it says that it diverged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Diverged(ArithmeticError):
    """A loss, gradient or parameter stopped being finite; the model holds the state from before.

    Attributes
    ----------
    history : History
        Of the steps before.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, fit
    >>> from lora_np.train import Diverged
    >>> model = GPT(GPTConfig(4, 3, 1, 1, 8), np.random.default_rng(0))
    >>> batch = np.array([[0, 1, 2]]), np.array([[1, 2, 3]])
    >>> try:
    ...     fit(model, lambda: batch, steps=5, lr=1e38, optimizer="sgd", clip=None)
    ... except Diverged as error:
    ...     print(len(error.history.loss) < 5)  # the steps that went well
    True
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@dataclass
class History:
    """What happened at each step.

    Attributes
    ----------
    loss, lr, gradient_norm : list of float
        One a step; the norm is that before clipping.
    validation : list of (int, float)
        Steps done, and the validation loss then.
    tokens, seconds : int, float
        Targets seen, ignored ones included, and the time it took.
    """

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How gradients become steps.

    Parameters
    ----------
    optimizer : {"adamw", "adam", "sgd"}
    schedule : {"cosine", "linear", "constant"}
        Of the learning rate, after the warmup.
    warmup : int
        Steps over which the learning rate rises.
    clip : float, optional
        Largest global norm of the gradient; None does not clip.
    accumulate : int
        Parts in which a batch is worked through, to save memory; the result is the same.
    threads, processes : int
        Python threads, or forked processes (Linux, arrays on the host), that share every batch,
        with BLAS at one thread each; not both above 1. Processes are faster. Where a program has
        threads of its own at work, as Jupyter's kernels do, a fork might never end: as many threads
        then take the processes' place, with a warning. The result is the same to rounding, and bit
        for bit for the same number of either.
    options : mapping
        For the optimizer, e.g. ``{"weight_decay": 0.1}``.

    Examples
    --------
    >>> from lora_np.train import Recipe
    >>> Recipe().optimizer, Recipe(warmup=10, clip=None).clip
    ('adamw', None)
    """

    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: int = 0
    clip: float | None = 1.0
    accumulate: int = 1
    threads: int = 1
    processes: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip = {self.clip}, expected a norm above 0, or None")
        if self.accumulate < 1:
            raise ValueError(f"accumulate = {self.accumulate}, expected at least 1 part")
