"""Pictures of a sweep: loss against rank, and the spectrum of what full fine-tuning changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.experiments.rank_sweep.method import name_in
from lora_np.experiments.rank_sweep.report import FULL, summary, trainable_parameters
from lora_np.plots import BLUE, GREY, LOOKS, ORANGE
from lora_np.tables import counted, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_LABEL = {
    "text": "test loss [nats a byte]",
    "llm": "test loss [nats a learned token]",
    "linear": r"population loss $\frac{1}{2}\|\Delta W - s\,BA\|_F^2$",
}
CLOSE = 0.25  # of the way down from the base: losses that differ by less are drawn once more


def plot_rank_vs_loss(
    results: dict[str, Any], path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the loss at every rank, between the lines of the base and of full fine-tuning.

    Text and language model: the test loss. Linear: the population loss, on a log scale, and the
    Eckart-Young floor. Error bars are one standard deviation over seeds; a single seed does not
    have one. A second axis shows the trainable parameters. If the base lies so far above that the
    ranks can hardly be told apart, a new figure has a second panel, without the base.

    Parameters
    ----------
    results : dict
        The content of ``results.json``.
    path : str or Path, optional
        The PNG to write.
    ax : Axes, optional
        Where to draw. By default, in a new figure.

    Returns
    -------
    Axes
        Of the panel with the base.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np import rank_sweep
    >>> from lora_np.experiments.rank_sweep.picture import plot_rank_vs_loss
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = rank_sweep(LinearSettings(ranks=(1, 2), d_in=4, d_out=3, steps=50), folder)
    ...     axis = plot_rank_vs_loss(results, f"{folder}/curve.png")
    ...     os.path.exists(f"{folder}/curve.png")
    True
    """
    results = _finite(results)
    low, high = _after_training(results)
    base, linear = results["base_test_loss"], results["settings"]["task"] == "linear"
    near = not linear and 0.0 < high - low < CLOSE * (base - low)
    panels = 1 + (near and ax is None)
    with plots.drawing(path, ax, (7 if panels == 1 else 11, 4.6), columns=panels) as picture:
        for axis in picture.axes:
            _draw_curve(axis, results)
        picture.axes[0].set_title(_title(results))
        picture.axes[0].legend()
        if panels == 2:
            margin = 0.05 * (high - low)
            picture.axes[1].set_ylim(low - margin, high + margin)
            picture.axes[1].set_title("The same, without the base")
    return picture.axes[0]


def _finite(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results with None, which stands for diverged, also for losses that are nan."""
    losses = [run["test_loss"] for run in results["runs"]]
    finite = [loss if loss is not None and math.isfinite(loss) else None for loss in losses]
    runs = [{**run, "test_loss": loss} for run, loss in zip(results["runs"], finite)]
    return {**results, "runs": runs}


def _after_training(results: dict[str, Any]) -> tuple[float, float]:
    """Return the lowest and the highest loss after training, error bars included."""
    points = [(mean, bar or 0.0) for mean, bar, _ in summary(results, "test_loss").values()]
    ends = [end for mean, bar in points for end in (mean - bar, mean + bar)]
    return min(ends, default=0.0), max(ends, default=0.0)


def _draw_curve(axis: Any, results: dict[str, Any]) -> None:
    """Draw the points of the ranks, and the lines of the base, of full fine-tuning, of theory."""
    linear = results["settings"]["task"] == "linear"
    points = summary(results, "test_loss")
    method = name_in(results)
    ranks = sorted(r for r in results["settings"]["ranks"] if (method, r) in points)
    means, spread = ([points[method, r][i] for r in ranks] for i in (0, 1))
    bars = [np.nan if deviation is None else deviation for deviation in spread]
    bars = bars if np.isfinite(bars).any() else None  # of one seed: no bars, in the legend neither
    several = results["settings"]["seeds"] > 1
    name = ("LoRA" if method == "lora" else method) + ", mean and s.d. over seeds" * several
    # The floor bends between ranks: a straight line from point to point would run below it.
    line = "none" if linear else "-"
    axis.errorbar(
        ranks, means, yerr=bars, color=BLUE, marker="o", capsize=4, linestyle=line, label=name
    )
    base = results["base_test_loss"]
    axis.axhline(base, color=GREY, linestyle="--", label=f"base, not adapted: {base:.3f}")
    if linear:
        floors = results["floors"]
        shown = [(r, f) for r, f in enumerate(floors) if r >= 1 and f > 0.0]
        x, floor = [r for r, _ in shown], [f for _, f in shown]
        axis.plot(x, floor, color=ORANGE, marker="x", linestyle=":", label="Eckart-Young floor")
        axis.set_yscale("log")
    elif FULL in points:
        mean, deviation, _ = points[FULL]
        axis.axhline(mean, color=ORANGE, label=f"full fine-tuning: {mean:.3f}")
        if deviation is not None:
            axis.axhspan(mean - deviation, mean + deviation, color=ORANGE, alpha=0.2, linewidth=0)
    axis.set_ylabel(LOSS_LABEL[results["settings"]["task"]])
    plots.rank_axis(axis, ranks)
    axis.set_xlabel("rank r")
    axis.grid(alpha=0.25)
    _parameter_axis(axis, ranks, results)


def _title(results: dict[str, Any]) -> str:
    """Return the title of the curve: the task, the number of seeds, and the runs left out."""
    lost = sum(run["test_loss"] is None for run in results["runs"])
    note = f", {counted(lost, 'run')} diverged, left out" if lost else ""
    seeds = counted(results["settings"]["seeds"], "seed")
    return f"Rank versus loss, {results['settings']['task']} task, {seeds}{note}"


def _parameter_axis(axis: Any, ranks: list[int], results: dict[str, Any]) -> None:
    """Label each rank with its trainable parameters along the top."""
    count = trainable_parameters(results)
    top = axis.secondary_xaxis("top")
    top.set_xticks(ranks, [rounded(count[name_in(results), r]) for r in ranks])
    top.set_xticks([], minor=True)
    full = f" (full: {rounded(count[FULL])})" if FULL in count else ""
    top.set_xlabel(f"trainable parameters{full}")


def plot_spectrum(
    results: dict[str, Any],
    path: str | Path | None = None,
    *,
    ax: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw the singular values of the change of full fine-tuning, and their cumulative energy.

    There is a column for each block: above the singular values, below the energy.

    Parameters
    ----------
    results : dict
        The content of ``results.json``, complete.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw: all upper panels, then all lower ones. By default, in a new figure.

    Returns
    -------
    list of Axes

    Raises
    ------
    ValueError
        If the results have no spectrum.

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep.picture import plot_spectrum
    >>> from lora_np.plots import figure
    >>> change = {"name": "h.0.attn.q_proj.W", "singular_values": [3.0, 1.0, 0.1]}
    >>> above, below = plot_spectrum({"spectrum": [change]}, ax=figure(4, 6).subplots(2, 1))
    >>> below.lines[0].get_ydata().round(3).tolist()
    [0.899, 0.999, 1.0]
    """
    changes = results.get("spectrum")
    if not changes:
        raise ValueError("there is no spectrum to draw: full fine-tuning diverged, or never ended")
    kinds = list(dict.fromkeys(_kind(change["name"]) for change in changes))
    blocks: dict[str, list[Any]] = {}
    for change in changes:
        blocks.setdefault(_block(change["name"]), []).append(change)
    n = len(blocks)
    size = 1.2 + 3.9 * max(n, 1.5), 7.4
    with plots.drawing(path, ax, size, 2, n, sharey="row") as picture:
        above, below = picture.axes[:n], picture.axes[n:]
        for column, (block, own) in zip(zip(above, below), blocks.items()):
            _draw_spectra(*column, own, kinds)
            column[0].set_title(block)
        if "planted_singular_values" in results:
            planted = results["planted_singular_values"]
            i = range(1, len(planted) + 1)
            above[0].plot(i, planted, "x", color=ORANGE, markersize=5, label="planted")
        above[0].set_ylabel(r"singular value $\sigma_i$ of $\Delta W$")
        below[0].set_ylabel(r"energy in the first r: $\sum_{i\leq r}\sigma_i^2/\sum\sigma_i^2$")
        picture.legend(above[0], 7)
        picture.title(r"What full fine-tuning changed: $\Delta W = W - W_0$, every matrix")
    return picture.axes


def _draw_spectra(
    above: Any, below: Any, changes: Sequence[Mapping[str, Any]], kinds: Sequence[str]
) -> None:
    """Draw the matrices of one block; a kind looks the same in every block."""
    longest = max(len(change["singular_values"]) for change in changes)
    for change in changes:
        kind = _kind(change["name"])
        colour, marker, dash = LOOKS[kinds.index(kind) % len(LOOKS)]
        sigma = np.array(change["singular_values"], dtype=float)
        look = {"color": colour, "marker": marker, "linestyle": dash, "label": kind}
        look |= {"markersize": 4, "markevery": max(1, len(sigma) // 10), "linewidth": 1.3}
        i, energy = np.arange(1, len(sigma) + 1), np.cumsum(sigma**2)
        above.plot(i, np.where(sigma > 0, sigma, np.nan), **look)  # zero has no logarithm
        below.plot(i, energy / max(float(energy[-1]), 1e-300), **look)
    below.axhline(0.9, color=GREY, linestyle=":", linewidth=1)
    below.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1], ["0", "25 %", "50 %", "75 %", "90 %", "100 %"])
    below.set(ylim=(0.0, 1.02), xlabel="rank r")
    above.set(yscale="log", xlabel="index i")
    for axis in (above, below):
        plots.count_from_one(axis, longest)
        axis.grid(alpha=0.25)


def _block(name: str) -> str:
    """Return the block of a matrix: "block 0" for h.0.attn.q_proj.W; "" outside all blocks."""
    number = next((part for part in name.split(".") if part.isdigit()), None)
    return "" if number is None else f"block {number}"


def _kind(name: str) -> str:
    """Return the name of the projection: q_proj for h.0.attn.q_proj.W."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else name
