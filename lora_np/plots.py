"""Pictures: loss against rank and dimension, spectra, and ranks layer by layer.

Colours are Okabe and Ito's, told apart by the colour-blind, and every series has its own marker or
dash as well, so that a print in grey can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.analyse import Analysis
from lora_np.experiments.intrinsic.dimension import VARIANTS, losses_of
from lora_np.experiments.intrinsic.text import STARTS
from lora_np.experiments.rank_sweep.report import FULL, counted, summary, trainable_parameters
from lora_np.files import replacing
from lora_np.rank.planted import Recovery

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
GREEN, PURPLE, SKY, AMBER = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
ESTIMATORS = {  # colour by family, and a marker and dash of its own for each
    "numerical rank": ("black", "x", ":"),
    "stable rank": (GREEN, "v", "-."),
    "participation ratio": (PURPLE, "^", "-."),
    "effective rank": (SKY, "d", "-."),
    "90% energy rank": (AMBER, "<", "--"),
    "95% energy rank": (AMBER, ">", ":"),
    "99% energy rank": (AMBER, "p", "-."),
    "bulk edge": (ORANGE, "o", "-"),
    "Gavish-Donoho": (BLUE, "s", "-"),
    "Gavish-Donoho, known noise": (BLUE, "D", ":"),
}
LARGEST = 60.0  # inches of a picture's side
LOSS_LABEL = {
    "text": "test loss [nats a byte]",
    "linear": r"population loss $\frac{1}{2}\|\Delta W - s\,BA\|_F^2$",
}


def plot_rank_vs_loss(results: dict[str, Any], path: str | Path) -> None:
    """Draw the loss of LoRA at every rank between the base's line and full fine-tuning's.

    Text: the test loss. Linear: the population loss, on a log scale, and the Eckart-Young floor.
    Error bars are one standard deviation over seeds; a single seed has none. A second axis has the
    trainable parameters.

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
    >>> from lora_np.plots import plot_rank_vs_loss
    >>> from lora_np.experiments.rank_sweep import LinearSettings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = rank_sweep(LinearSettings(ranks=(1, 2), d_in=4, d_out=3, steps=50), folder)
    ...     plot_rank_vs_loss(results, f"{folder}/curve.png")
    ...     os.path.exists(f"{folder}/curve.png")
    True
    """
    linear = results["settings"]["task"] == "linear"
    figure = _figure(7, 4.6)
    axis = figure.subplots()
    points = summary(results, "test_loss")
    ranks = sorted(r for r in results["settings"]["ranks"] if ("lora", r) in points)
    means, spread = ([points["lora", r][i] for r in ranks] for i in (0, 1))
    bars = [np.nan if deviation is None else deviation for deviation in spread]
    several = results["settings"]["seeds"] > 1
    name = "LoRA, mean and s.d. over seeds" if several else "LoRA"
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
    axis.set_title(_title(results))
    axis.legend(frameon=False)
    _save(figure, path)


def _title(results: dict[str, Any]) -> str:
    """Return the curve's title: of which task, from how many seeds, and what is left out."""
    lost = sum(run["test_loss"] is None for run in results["runs"])
    note = f", {counted(lost, 'run')} diverged, left out" if lost else ""
    seeds = counted(results["settings"]["seeds"], "seed")
    return f"Rank versus loss, {results['settings']['task']} task, {seeds}{note}"


def plot_spectrum(results: dict[str, Any], path: str | Path) -> None:
    """Draw the singular values of full fine-tuning's change, and the energy they add up to.

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
    >>> from lora_np.plots import plot_spectrum
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
    figure = _figure(10, 4.2)
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
    _save(figure, path)


def plot_rank_map(analysis: Analysis, path: str | Path) -> None:
    """Draw the rank that keeps 99 % of the energy as a map: a row a layer, a column a kind.

    Parameters
    ----------
    analysis : Analysis
    path : str or Path
        The PNG to write.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import analyse_adapter, write_adapter
    >>> from lora_np.plots import plot_rank_map
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(f"{folder}/adapter", [("h.0.q_proj", np.eye(4), np.eye(4, 6), 1.0)])
    ...     plot_rank_map(analyse_adapter(f"{folder}/adapter"), f"{folder}/map.png")
    ...     sorted(os.listdir(folder))
    ['adapter', 'map.png']
    """
    from matplotlib.ticker import MaxNLocator

    layers, kinds = (list(dict.fromkeys(names)) for names in zip(*analysis.places))
    grid = np.full((len(layers), len(kinds)), np.nan)  # nan: no such module, or more than known
    marks = {}
    for (layer, kind), module in zip(analysis.places, analysis.modules):
        row, column = layers.index(layer), kinds.index(kind)
        rank = module.energy_ranks[0.99]
        grid[row, column] = np.nan if rank is None else rank
        marks[row, column] = f">{len(module.singular_values)}" if rank is None else str(rank)
    columns, rows = ([_label(name) for name in names] for names in (kinds, layers))
    longest = max(map(len, columns))
    wide, high = 4 + 0.7 * len(kinds), 2.2 + 0.08 * longest + 0.24 * len(layers)
    figure = _figure(min(wide, LARGEST), min(high, LARGEST))
    axis = figure.subplots()
    top = float(np.nanmax(grid)) if np.isfinite(grid).any() else 1.0
    image = axis.imshow(grid, cmap="cividis", vmin=0, vmax=max(top, 1), aspect="auto")
    for (row, column), mark in marks.items():
        colour = "black" if grid[row, column] > 0.55 * top or mark[0] == ">" else "white"
        axis.text(column, row, mark, ha="center", va="center", color=colour, fontsize="x-small")
    turn, plain = 90 if longest > 8 else 0, {"parse_math": False}  # a name may hold dollar signs
    axis.set_xticks(range(len(kinds)), columns, rotation=turn, **plain)
    axis.set_yticks(range(len(layers)), [row or "-" for row in rows], **plain)
    axis.set(xlabel="module", ylabel="layer")
    axis.set_title("Rank that keeps 99 % of the change's energy", fontsize="medium")
    figure.colorbar(image, label="rank (directions)", ticks=MaxNLocator(integer=True))
    _save(figure, path)


def plot_recovery(rows: Sequence[Recovery], path: str | Path) -> None:
    """Draw what estimators of rank answer where the rank was planted, against signal-to-noise.

    A column for each planted rank. Above: the mean answer, whose 95 % interval is mostly smaller
    than its marker, and the truth as a line. Below: in what share of the trials it was exact.

    Parameters
    ----------
    rows : sequence of Recovery
        As :func:`lora_np.rank.recovery` returns them.
    path : str or Path
        The PNG to write.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.plots import plot_recovery
    >>> from lora_np.rank import recovery
    >>> rows = recovery((20, 20), [2], [1.0, 4.0], trials=2, rng=np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_recovery(rows, f"{folder}/recovery.png")
    ...     os.listdir(folder)
    ['recovery.png']
    """
    ks = list(dict.fromkeys(row.k for row in rows))
    figure = _figure(1.5 + 4.2 * len(ks), 6.6)
    axes = figure.subplots(2, len(ks), sharex=True, sharey="row", squeeze=False)
    for (above, below), k in zip(axes.T, ks):
        for name, (colour, marker, dash) in ESTIMATORS.items():
            found = sorted((r for r in rows if (r.estimator, r.k) == (name, k)), key=_ratio)
            x, means = [r.ratio for r in found], [r.mean for r in found]
            style = {
                "color": colour,
                "marker": marker,
                "linestyle": dash,
                "markerfacecolor": "none",
            }
            bars = [[r.mean - r.low for r in found], [r.high - r.mean for r in found]]
            above.errorbar(x, means, yerr=bars, label=name, **style)
            below.plot(x, [100 * r.exact for r in found], **style)
        above.axhline(k, color=GREY, linewidth=1, label="planted rank k")
        above.set(title=f"planted rank k = {k}", xscale="log", yscale="log")
        below.set_xlabel("signal-to-noise: weakest direction / edge of the noise")
        ratios = sorted({r.ratio for r in rows})
        below.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        below.set_xticks([], minor=True)
        for axis in (above, below):
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("mean answer [directions]")
    axes[1, 0].set_ylabel("trials answered exactly [%]")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize="small")  # fmt: skip
    _save(figure, path)


def plot_similarity(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw phi(i, j) of two ranks, or of one rank's seeds, for every matrix (figures 3 and 4).

    A row of heat maps for each kind of matrix, a column for each layer. Then random matrices, and
    the diagonals phi(i, i) of all with the level by chance.

    Parameters
    ----------
    found : mapping
        As :func:`lora_np.experiments.paper.directions.figure` returns it.
    path : str or Path
        The PNG to write.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.experiments.paper.directions import figure
    >>> from lora_np.plots import plot_similarity
    >>> rng = np.random.default_rng(0)
    >>> paths = "h.0.attn.q_proj", "h.0.attn.v_proj"
    >>> def draw():  # one seed's adapters of rank 2
    ...     return {path: (np.zeros((8, 2)), rng.standard_normal((2, 8))) for path in paths}
    >>> found = figure({2: {0: draw(), 1: draw()}}, (2, 2), rng)  # by rank and seed
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_similarity(found, f"{folder}/similarity.png")
    ...     os.listdir(folder)
    ['similarity.png']
    """
    (r1, r2), d = found["ranks"], found["d"]
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in found["panels"]))
    rows = [[n for n in found["panels"] if n.endswith(kind)] for kind in kinds]
    columns = len(rows[0]) + 1
    figure = _figure(3.7 * columns + 1, 2.9 * len(rows) + 0.6)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    labels = (f"first i of r = {r1}", f"first j directions of r = {r2}")
    for across, names in zip(axes, rows):
        for axis, name in zip(across, names):
            _heat_map(axis, name, found["panels"][name], labels)
    image = _heat_map(axes[0, -1], "random matrices", found["control"], labels)
    _diagonals(axes[1, -1], found)
    figure.colorbar(image, ax=axes, label=r"similarity $\phi(i, j)$", shrink=0.8)
    what = f"r = {r1} and r = {r2}, of two seeds," if r1 != r2 else f"two seeds at r = {r1}"
    pairs = f"mean over all pairs of {found['seeds']} seeds"
    figure.suptitle(f"Input directions that A of {what} share; d = {d}, {pairs}")
    _save(figure, path)


def _heat_map(
    axis: Any, title: str, grid: Sequence[Sequence[float]], labels: tuple[str, str]
) -> Any:
    rows, columns = len(grid), len(grid[0])
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)  # so that cell (1, 1) has its middle there
    axis.set(title=title, ylabel=labels[0], xlabel=labels[1])
    for side in (axis.xaxis, axis.yaxis):
        side.get_major_locator().set_params(integer=True)
    return axis.imshow(grid, vmin=0, vmax=1, aspect="auto", extent=extent, cmap="viridis")


def _diagonals(axis: Any, found: Mapping[str, Any]) -> None:
    """Draw phi(i, i) of every matrix over i."""
    styles = zip((BLUE, SKY, ORANGE, AMBER, GREEN, PURPLE), "osDv^<", ("-", "--", "-.") * 2)
    for (name, grid), (colour, marker, dash) in zip(found["panels"].items(), cycle(styles)):
        _diagonal(axis, grid, color=colour, marker=marker, linestyle=dash, label=name)
    _diagonal(axis, found["control"], color="black", marker="x", linestyle=":", label="random")
    i = np.arange(1, len(found["control"]) + 1)
    axis.plot(i, i / found["d"], color=GREY, linewidth=1, label="chance, i / d")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="first i directions of both", ylabel=r"$\phi(i, i)$", ylim=(0, 1.03))
    axis.legend(frameon=False, fontsize="x-small")
    axis.grid(alpha=0.25)


def _diagonal(axis: Any, grid: Sequence[Sequence[float]], **style: Any) -> None:
    values = np.diag(np.array(grid))
    axis.plot(range(1, len(values) + 1), values, markersize=4, markerfacecolor="none", **style)


def _ratio(row: Recovery) -> float:
    return row.ratio


def plot_intrinsic(results: dict[str, Any], path: str | Path) -> None:
    """Draw the loss against the dimension d, pretrained and not, with the line that d90 needs.

    Parameters
    ----------
    results : dict
        What :func:`lora_np.experiments.intrinsic.intrinsic_run` returns.
    path : str or Path
        The PNG to write.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np.plots import plot_intrinsic
    >>> found = {"D": 1000, "base": 5.0, "target": 2.3, "full": 2.0,
    ...          "d90": {"plain": 100, "structured": None},
    ...          "rows": [{"variant": "plain", "d": d, "loss": 2.0 + 20 / d} for d in (10, 100)]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_intrinsic({"pretrained": found, "random": found}, f"{folder}/intrinsic.png")
    ...     os.listdir(folder)
    ['intrinsic.png']
    """
    figure = _figure(10, 4.4)
    for axis, start in zip(figure.subplots(1, 2), STARTS):
        found = results[start]
        axis.axhline(found["base"], color=GREY, linestyle="--", label="at the start")
        axis.axhline(found["target"], color=GREY, linestyle=":", label="90 % of the way")
        axis.axhline(found["full"], color=GREY, label=f"full training, D = {found['D']:,}")
        for variant, colour, marker in zip(VARIANTS, (BLUE, ORANGE), "os"):
            losses, d = losses_of(found["rows"], variant), found["d90"][variant]
            reached = "not reached" if d is None else f"$d_{{90}}$ = {d:,}"
            label = f"{variant}, {reached}"
            axis.plot(losses.keys(), losses.values(), marker + "-", color=colour, label=label)
            if d is not None:
                ring = {"markersize": 13, "markerfacecolor": "none", "color": colour}
                axis.plot(d, losses[d], marker, **ring)
        axis.set(xscale="log", xlabel="trained dimensions d", title=f"start: {start}")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize="small")
        axis.set_ylabel("validation loss [nats a byte]")
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """Return a figure without pyplot: no screen is needed, and a notebook's settings are kept."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")  # inches


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
    top.set_xticks(ranks, [_short(count["lora", r]) for r in ranks])
    top.set_xticks([], minor=True)
    full = f" (full: {_short(count[FULL])})" if FULL in count else ""
    top.set_xlabel(f"trainable parameters{full}")


def _short(number: int) -> str:
    return f"{number / 1000:.3g}k" if number >= 1000 else str(number)


def _label(name: str) -> str:
    """Return a name as the font and the picture have room for it."""
    text = name.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"


def _kind(name: str) -> str:
    """Return the projection's name: h.0.attn.q_proj.W is of kind q_proj."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else name


def _save(figure: Any, path: str | Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
