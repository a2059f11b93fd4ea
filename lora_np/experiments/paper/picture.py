"""Figures 3 and 4: how many directions two ranks, or two seeds, share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from lora_np import plots
from lora_np.plots import AMBER, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY


def plot_similarity(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw phi(i, j) of two ranks, or of two seeds of one rank, for every matrix.

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
    >>> from lora_np.experiments.paper.picture import plot_similarity
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
    figure = plots.figure(3.7 * columns + 1, 2.9 * len(rows) + 0.6)
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
    plots.save(figure, path)


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
