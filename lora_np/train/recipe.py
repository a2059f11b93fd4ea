"""The settings of a training run, its history, and the error when it diverges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lora_np import plots
from lora_np.tables import Table, Tabular, counted
from lora_np.train.scaling import check_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.history)  # a process can send it to another


@dataclass(repr=False)
class History(Tabular):
    """The record of a training run; prints as a table of its parts.

    Attributes
    ----------
    loss, lr, gradient_norm : list of float
        One entry per step; the norm is that before clipping.
    validation : list of (int, float)
        Number of steps done, and the validation loss after them.
    tokens, seconds : int, float
        Number of targets in all batches, and the time taken.

    Examples
    --------
    >>> from lora_np.train import History
    >>> history = History([3.0, 2.0, 1.0, 1.0], [0.1] * 4, [1.0] * 4, [(4, 1.5)], 64, 0.2)
    >>> history
    <History of 4 steps: loss 3 to 1>
    >>> print(history)
    4 steps, 64 tokens, 0.2 s
    step    loss  validation   lr  gradient norm
    4     1.7500      1.5000  0.1              1
    """

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def table(self, parts: int = 10) -> Table:
        """Return a row for each part of the run: the means of loss and norm, the rate at its end.

        Parameters
        ----------
        parts : int
            The number of equal parts of a run without validation. Otherwise a part ends where the
            validation loss was measured.
        """
        n, validation = len(self.loss), dict(self.validation)
        ends = {*validation, n} if validation else {n * i // parts for i in range(parts + 1)} - {0}
        rows, start = [], 0
        for end in sorted(ends):
            row = {"step": end, "loss": _mean(self.loss[start:end])}
            if validation:
                row["validation"] = validation.get(end)
            row["lr"] = next(iter(self.lr[max(end - 1, 0) : end]), None)
            rows.append({**row, "gradient norm": _mean(self.gradient_norm[start:end])})
            start = end
        forms = {
            **dict.fromkeys(("loss", "validation"), ".4f"),
            "lr": ".2g",
            "gradient norm": ".3g",
        }
        title = f"{counted(n, 'step')}, {self.tokens:,} tokens, {self.seconds:.1f} s"
        return Table.of_rows(rows, forms, title)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses against the steps, by default in a new figure."""
        with plots.drawing(None, ax, (7, 4)) as picture:
            axis = picture.axes[0]
            steps = range(1, len(self.loss) + 1)
            axis.plot(steps, self.loss, color=plots.BLUE, linewidth=0.8, label="training")
            if self.validation:
                points = zip(*self.validation)
                axis.plot(*points, "o-", color=plots.ORANGE, markersize=3, label="validation")
            axis.set(xlabel="step", ylabel="loss")
            axis.legend()
        return axis

    def __repr__(self) -> str:
        losses = f": loss {self.loss[0]:.4g} to {self.loss[-1]:.4g}" if self.loss else ""
        return f"<History of {counted(len(self.loss), 'step')}{losses}>"


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


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
