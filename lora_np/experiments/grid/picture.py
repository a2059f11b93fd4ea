"""Pictures of the grid: two heat maps of the loss; the best rate, and the first step, against s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.experiments.grid.claims import EXPONENT, best_rates, cell
from lora_np.experiments.study.losses import Results, mean_loss
from lora_np.plots import GREY, LOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_grid(
    results: Results, path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw the validation loss over rank x lora_alpha, with one rate for all and with the best.

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
    both = [loss_grid(results, s["common_lr"]), loss_grid(results)]
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in both])
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    width = max(3.6, 0.95 * len(s["alphas"]))
    titles = (f"one learning rate, {s['common_lr']:g}", "the best learning rate of each cell")
    size = 2 * width + 1.4, 0.75 * len(s["ranks"]) + 2.0
    with plots.drawing(path, ax, size, columns=2, sharey=True) as picture:
        image = None
        for axis, grid, title in zip(picture.axes, both, titles):
            image = axis.imshow(grid, cmap="viridis", aspect="auto", vmin=low, vmax=high)
            axis.set(title=title, xlabel="lora_alpha")
            axis.set_xticks(range(len(s["alphas"])), [f"{a:g}" for a in s["alphas"]])
            axis.set_yticks(range(len(s["ranks"])), [str(r) for r in s["ranks"]])
            cells = {at: f"{x:.3f}" if x == x else "diverged" for at, x in np.ndenumerate(grid)}
            plots.write_cells(axis, image, cells)
        picture.axes[0].set_ylabel("rank r")
        label = "validation loss [nats a byte]"
        picture.figure.colorbar(image, ax=picture.axes, label=label, shrink=0.8)
    return picture.axes


def loss_grid(results: Results, lr: float | None = None) -> np.ndarray:
    """Return the mean validation losses (ranks, alphas), nan where a seed diverged."""
    s = results["settings"]
    rows = [
        [mean_loss(results, cell(r, alpha), lr, "validation_loss") for alpha in s["alphas"]]
        for r in s["ranks"]
    ]
    grid = np.array(rows)
    return np.where(np.isfinite(grid), grid, np.nan)


def plot_rates(
    results: Results, path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw the best learning rate against alpha / r, and the first step against s.

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
    with plots.drawing(path, ax, (10, 4.4), columns=2) as picture:
        _best_rates(picture.axes[0], results)
        _first_step(picture.axes[1], results)
    return picture.axes


def _best_rates(axis: Any, results: Results) -> None:
    s, rates = results["settings"], best_rates(results)
    for n, r in enumerate(s["ranks"]):
        colour, marker, _ = LOOKS[n % len(LOOKS)]
        points = [(a / r, rates[r, a]) for a in s["alphas"] if (r, a) in rates]
        if points:
            style = {"color": colour, "marker": marker, "markerfacecolor": "none"}
            axis.plot(*zip(*points), linestyle="none", label=f"r = {r}", **style)
    scales = sorted({a / r for r, a in rates})
    if scales:
        middle = math.exp(np.mean([math.log(lr) for lr in rates.values()]))
        centre = math.exp(np.mean([math.log(a / r) for r, a in rates]))
        line = [middle * (x / centre) ** EXPONENT for x in scales]
        axis.plot(scales, line, color=GREY, linestyle="--", label=r"$\propto (\alpha / r)^{-1/2}$")
        axis.legend()
    axis.set(xscale="log", yscale="log", xlabel=r"scale $s = \alpha / r$")
    axis.set(ylabel="best learning rate", title="The best rate, geometric mean over seeds")
    axis.grid(alpha=0.25, which="both")


def _first_step(axis: Any, results: Results) -> None:
    s, steps = results["settings"], results["first_step"]
    for name, label, power, (colour, marker, dash) in zip(
        ("sgd", "adam"), ("SGD", "Adam"), (2, 1), LOOKS
    ):
        means = np.mean(steps[name]["norms"], axis=0)
        x = np.array(s["scales"])
        style = {"color": colour, "marker": marker, "markerfacecolor": "none"}
        axis.plot(x, means, linestyle="none", label=f"{label}, measured", **style)
        line = means[0] * (x / x[0]) ** power
        axis.plot(x, line, color=colour, linestyle=dash, label=rf"$\propto s^{power}$")
    axis.set(xscale="log", yscale="log", xlabel=r"scale $s = \alpha / r$")
    axis.set(ylabel=r"$\|\Delta W\|_F$", title=f"The first step, r = {s['step_rank']}")
    axis.set_xticks(s["scales"], [f"{scale:g}" for scale in s["scales"]])
    axis.set_xticks([], minor=True)
    axis.legend()
    axis.grid(alpha=0.25)
