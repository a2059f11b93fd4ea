"""The settings of a training run, its history, and the error when it diverges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_np.train.scaling import check_scale


class Diverged(ArithmeticError):
    """A loss, gradient or parameter is not finite; the model holds the parameters from before.

    Attributes
    ----------
    history : History
        The history up to that step.

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
    ...     print(len(error.history.loss) < 5)  # only the good steps are recorded
    True
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@dataclass
class History:
    """The record of a training run.

    Attributes
    ----------
    loss, lr, gradient_norm : list of float
        One entry per step; the norm is that before clipping.
    validation : list of (int, float)
        Number of steps done, and the validation loss after them.
    tokens, seconds : int, float
        Number of targets in all batches, and the time taken.
    """

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run: optimizer, schedule, clipping, and workers.

    Parameters
    ----------
    optimizer : {"adamw", "adam", "sgd"}
    schedule : {"cosine", "linear", "constant"}
        The learning rate after the warmup.
    warmup : int
        Number of steps over which the learning rate rises.
    clip : float, optional
        Largest global norm of the gradient; None does not clip. A model whose ``groups()`` lists
        names of Parameters is clipped group by group.
    loss_scale : float or "dynamic", optional
        The number from which backward starts, as in :mod:`lora_np.train.scaling`; gradients are
        divided by it. By default 1. Only layers that keep gradients in float16 need another.
    accumulate : int
        Number of parts into which a batch is split to save memory; the result is the same to
        rounding.
    threads, processes : int
        Number of Python threads, or of forked processes (Linux, arrays on the host), that share
        every batch, with one BLAS thread each; at least one of the two is 1. Processes are faster.
        If other threads of the program are at work, as in Jupyter's kernels, a fork might never
        return: as many threads then replace the processes, with a warning. The result is the same
        to rounding; equal numbers of threads and of processes give equal bits.
    options : mapping
        Options of the optimizer, for example ``{"weight_decay": 0.1}``.

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
    loss_scale: float | str | None = None
    accumulate: int = 1
    threads: int = 1
    processes: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip = {self.clip}, expected a norm above 0, or None")
        check_scale(self.loss_scale)
        if self.accumulate < 1:
            raise ValueError(f"accumulate = {self.accumulate}, expected at least 1 part")
