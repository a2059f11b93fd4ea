"""Pictures of a sweep: loss against rank, and the spectrum of what full fine-tuning changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lora_np import plots
from lora_np.experiments.rank_sweep.method import name_in
from lora_np.experiments.rank_sweep.report import FULL, summary, trainable_parameters
from lora_np.plots import BLUE, GREY, ORANGE
from lora_np.tables import counted, rounded

LOSS_LABEL = {
    "text": "test loss [nats a byte]",
    "llm": "test loss [nats a learned token]",
    "linear": r"population loss $\frac{1}{2}\|\Delta W - s\,BA\|_F^2$",
}
CLOSE = 0.25  # of the way down from the base: losses that differ by less are drawn once more


def plot_rank_vs_loss(results: dict[str, Any], path: str | Path) -> None:
    """Draw the loss at every rank, between the lines of the base and of full fine-tuning.

    Text and language model: the test loss. Linear: the population loss, on a log scale, and the
    Eckart-Young floor. Error bars are one standard deviation over seeds; a single seed does not
    have one. A second axis shows the trainable parameters. If the base lies so far above that the
    ranks can hardly be told apart, a second panel leaves out the base.

    Parameters
    ----------
    results : dict
        The content of ``results.json``.
    path : str or Path
        The PNG to write.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np import rank_sweep
    >>> from lora_np.experiments.rank_sweep.picture import plot_rank_vs_loss
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = rank_sweep(LinearSettings(ranks=(1, 2), d_in=4, d_out=3, steps=50), folder)
    ...     plot_rank_vs_loss(results, f"{folder}/curve.png")
    ...     os.path.exists(f"{folder}/curve.png")
    True
    """
    low, high = _after_training(results)
    base, linear = results["base_test_loss"], results["settings"]["task"] == "linear"
    near = not linear and 0.0 < high - low < CLOSE * (base - low)
    figure = plots.figure(12 if near else 7, 4.6)
    axes = figure.subplots(1, 1 + near, squeeze=False)[0]
    for axis in axes:
        _draw_curve(axis, results)
    axes[0].set_title(_title(results))
    axes[0].legend(frameon=False)
    if near:
        margin = 0.05 * (high - low)
        axes[1].set_ylim(low - margin, high + margin)
        axes[1].set_title("The same, without the base")
    plots.save(figure, path)


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
        axis.plot(*zip(*shown), color=ORANGE, marker="x", linestyle=":", label="Eckart-Young floor")
        axis.set_yscale("log")
    elif FULL in points:
        mean, deviation, _ = points[FULL]
        axis.axhline(mean, color=ORANGE, label=f"full fine-tuning: {mean:.3f}")
        if deviation is not None:
            axis.axhspan(mean - deviation, mean + deviation, color=ORANGE, alpha=0.2, linewidth=0)
    axis.set_ylabel(LOSS_LABEL[results["settings"]["task"]])
    _rank_axis(axis, ranks)
    _parameter_axis(axis, ranks, results)


def _title(results: dict[str, Any]) -> str:
    """Return the title of the curve: the task, the number of seeds, and the runs left out."""
    lost = sum(run["test_loss"] is None for run in results["runs"])
    note = f", {counted(lost, 'run')} diverged, left out" if lost else ""
    seeds = counted(results["settings"]["seeds"], "seed")
    return f"Rank versus loss, {results['settings']['task']} task, {seeds}{note}"


def _rank_axis(axis: Any, ranks: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(ranks, [str(r) for r in ranks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("rank r")
    axis.grid(alpha=0.25)


def _parameter_axis(axis: Any, ranks: list[int], results: dict[str, Any]) -> None:
    """Label each rank with its trainable parameters along the top."""
    count = trainable_parameters(results)
    top = axis.secondary_xaxis("top")
    top.set_xticks(ranks, [rounded(count[name_in(results), r]) for r in ranks])
    top.set_xticks([], minor=True)
    full = f" (full: {rounded(count[FULL])})" if FULL in count else ""
    top.set_xlabel(f"trainable parameters{full}")


def plot_spectrum(results: dict[str, Any], path: str | Path) -> None:
    """Draw the singular values of the change of full fine-tuning, and their cumulative energy.

    Parameters
    ----------
    results : dict
        The content of ``results.json``, complete.
    path : str or Path
        The PNG to write.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np.experiments.rank_sweep.picture import plot_spectrum
    >>> change = {"name": "h.0.attn.q_proj.W", "singular_values": [3.0, 1.0, 0.1]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_spectrum({"spectrum": [change]}, f"{folder}/spectrum.png")
    ...     os.listdir(folder)
    ['spectrum.png']
    """
    from matplotlib import colormaps

    changes = results["spectrum"]
    kinds = list(dict.fromkeys(_kind(c["name"]) for c in changes))
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(kinds)))
    figure = plots.figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    for change in changes:
        kind = _kind(change["name"])
        style = {"color": colours[kinds.index(kind)], "linewidth": 1.3}
        style["linestyle"] = ("-", "--", ":", "-.")[kinds.index(kind) % 4]
        sigma = np.array(change["singular_values"])
        index = np.arange(1, len(sigma) + 1)
        first = change is next(c for c in changes if _kind(c["name"]) == kind)
        left.plot(index, sigma, label=kind if first else None, **style)
        right.plot(index, np.cumsum(sigma**2) / max(float((sigma**2).sum()), 1e-300), **style)
    if "planted_singular_values" in results:
        planted = results["planted_singular_values"]
        left.plot(
            range(1, len(planted) + 1), planted, "x", color=ORANGE, markersize=4, label="planted"
        )
    left.set(yscale="log", xlabel="index i", ylabel=r"singular value $\sigma_i$ of $\Delta W$")
    right.axhline(0.9, color=GREY, linestyle=":", linewidth=1)
    right.annotate("90 %", (0.98, 0.905), xycoords=("axes fraction", "data"), ha="right")
    right.set(
        xlabel="rank r", ylabel=r"energy in the first r: $\sum_{i\leq r}\sigma_i^2/\sum\sigma_i^2$"
    )
    right.set_ylim(0.0, 1.02)
    left.legend(frameon=False, fontsize="small")
    figure.suptitle(r"What full fine-tuning changed: $\Delta W = W - W_0$, every matrix")
    plots.save(figure, path)


def _kind(name: str) -> str:
    """Return the name of the projection: q_proj for h.0.attn.q_proj.W."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else name
