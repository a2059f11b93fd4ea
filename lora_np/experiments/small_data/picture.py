"""The picture of shrinking text: train and validation loss against the length of the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_np import plots
from lora_np.experiments.small_data.claims import label
from lora_np.experiments.study.losses import Results, losses
from lora_np.plots import BLUE, GREY, ORANGE
from lora_np.tables import counted


def plot_small_data(results: Results, path: str | Path) -> None:
    """Draw train and validation loss of LoRA and full fine-tuning, mean and s.d. over seeds.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    path : str or Path
        The PNG to write.
    """
    s = results["settings"]
    figure = plots.figure(7.2, 4.8)
    axis = figure.subplots()
    styles = {"LoRA": (f"LoRA, r = {s['r']}", BLUE, "o"), "full": ("full", ORANGE, "s")}
    for name, (shown, colour, marker) in styles.items():
        for key, dash, what in (("validation", "-", colour), ("train", "--", "none")):
            found = [losses(results, label(name, n), key=f"{key}_loss") for n in s["tokens"]]
            rows = np.array([list(by_seed.values()) for by_seed in found])  # (lengths, seeds)
            rows = np.where(np.isfinite(rows), rows, np.nan)
            bars = rows.std(axis=1, ddof=1) if rows.shape[1] > 1 else None
            style = {"color": colour, "marker": marker, "linestyle": dash, "capsize": 3}
            text = f"{shown}: {key}"
            axis.errorbar(
                s["tokens"], rows.mean(axis=1), bars, markerfacecolor=what, label=text, **style
            )
    base = results["base_validation_loss"]
    axis.axhline(base, color=GREY, linestyle=":", label=f"base, not adapted: {base:.3f}")
    seeds = counted(s["seeds"], "seed")
    axis.set_title(f"{counted(s['steps'], 'step')} at the best rate of each point, {seeds}")
    axis.set(xscale="log", xlabel="text to train on [bytes]", ylabel="loss [nats a byte]")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    plots.save(figure, path)
