"""The picture of shrinking text: train and validation loss against the length of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.experiments.small_data.claims import label
from lora_np.experiments.study.losses import Results, losses
from lora_np.plots import BLUE, GREY, ORANGE
from lora_np.tables import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_small_data(
    results: Results, path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw train and validation loss of LoRA and full fine-tuning, mean and s.d. over seeds.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw: two panels. By default, in a new figure.

    Returns
    -------
    list of Axes
    """
    s = results["settings"]
    with plots.drawing(path, ax, (11, 5.2), columns=2) as picture:
        left, right = picture.axes
        _lines(left, results, None)
        _lines(right, results, s["common_lr"])
        left.set_title("at the best rate of each point")
        rates = ", ".join(f"{name} {lr:g}" for name, lr in s["common_lr"].items())
        right.set_title(f"at one rate for all lengths: {rates}")
        picture.legend(right, 3)
        work = f"{counted(s['steps'], 'step')}, mean and s.d. over {counted(s['seeds'], 'seed')}"
        picture.title(f"LoRA and full fine-tuning on little text: {work}")
    return picture.axes


def _lines(axis: Any, results: Results, common: Mapping[str, float] | None) -> None:
    """Draw the lines of both, at their best rates or at a common one."""
    s = results["settings"]
    styles = {"LoRA": (f"LoRA, r = {s['r']}", BLUE, "o"), "full": ("full", ORANGE, "s")}
    for name, (shown, colour, marker) in styles.items():
        lr = None if common is None else common[name]
        for key, dash, inside in (("validation", "-", colour), ("train", "--", "none")):
            found = [losses(results, label(name, n), lr, f"{key}_loss") for n in s["tokens"]]
            rows = np.array([list(by_seed.values()) for by_seed in found])  # (lengths, seeds)
            rows = np.where(np.isfinite(rows), rows, np.nan)
            bars = rows.std(axis=1, ddof=1) if rows.shape[1] > 1 else None
            style = {"color": colour, "marker": marker, "linestyle": dash, "capsize": 3}
            text = f"{shown}: {key}"
            axis.errorbar(
                s["tokens"], rows.mean(axis=1), bars, markerfacecolor=inside, label=text, **style
            )
    base = results["base_validation_loss"]
    axis.axhline(base, color=GREY, linestyle=":", label=f"base, validation: {base:.3f}")
    axis.set(xscale="log", xlabel="text to train on [bytes]", ylabel="loss [nats a byte]")
    axis.grid(alpha=0.25)
