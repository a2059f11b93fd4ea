"""Figures 3 and 4: how many directions two ranks, or two seeds, share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.plots import GREY, LOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_similarity(
    found: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    ax: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw phi(i, j) of two ranks, or of two seeds of one rank, for every matrix.

    A row of heat maps for each kind of matrix, a column for each layer. Then random matrices, and
    the diagonals phi(i, i) of all with the level by chance.

    Parameters
    ----------
    found : mapping
        As :func:`lora_np.experiments.paper.directions.figure` returns it.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw, row by row. By default, in a new figure.

    Returns
    -------
    list of Axes

    Raises
    ------
    ValueError
        If there is no matrix.

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
    ...     axes = plot_similarity(found, f"{folder}/similarity.png")
    ...     os.listdir(folder)
    ['similarity.png']
    """
    if not found["panels"]:
        raise ValueError(
            "there is no matrix to draw: the two ranks have no adapted matrix in common"
        )
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in found["panels"]))
    names = [[n for n in found["panels"] if n.endswith(kind)] for kind in kinds]
    rows, columns = max(2, len(names)), len(names[0]) + 1  # beside the maps: chance, diagonals
    with plots.drawing(path, ax, (3.3 * columns + 1, 2.8 * rows + 0.6), rows, columns) as picture:
        axes = [picture.axes[columns * row : columns * (row + 1)] for row in range(rows)]
        image = _draw(axes, names, found)
        label = r"similarity $\phi(i, j)$"
        picture.figure.colorbar(image, ax=picture.axes, label=label, shrink=0.8)
        picture.title(_title(found))
    return picture.axes


def _draw(
    axes: Sequence[Sequence[Any]], names: Sequence[Sequence[str]], found: Mapping[str, Any]
) -> Any:
    """Draw all panels; return an image for the colour bar."""
    for axis in chain.from_iterable(axes):
        axis.set_visible(False)  # until it has something to show
    for across, named in zip(axes, names):
        for axis, name in zip(across, named):
            _heat_map(axis, name, found["panels"][name], found["ranks"])
    _diagonals(axes[1][-1], found)
    return _heat_map(axes[0][-1], "random matrices", found["control"], found["ranks"])


def _title(found: Mapping[str, Any]) -> str:
    r1, r2 = found["ranks"]
    what = f"r = {r1} and r = {r2}, of two seeds," if r1 != r2 else f"two seeds at r = {r1}"
    pairs = f"mean over all pairs of {found['seeds']} seeds"
    return f"Input directions that A of {what} share; d = {found['d']}, {pairs}"


def _heat_map(axis: Any, title: str, grid: Sequence[Sequence[float]], ranks: Sequence[int]) -> Any:
    rows, columns = len(grid), len(grid[0])
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)  # so that cell (1, 1) has its middle there
    axis.set(title=title, visible=True)
    axis.set_ylabel(f"first i of r = {ranks[0]}")
    axis.set_xlabel(f"first j directions of r = {ranks[1]}")
    for side in (axis.xaxis, axis.yaxis):
        side.get_major_locator().set_params(integer=True)
    return axis.imshow(grid, vmin=0, vmax=1, aspect="auto", extent=extent, cmap="viridis")


def _diagonals(axis: Any, found: Mapping[str, Any]) -> None:
    """Draw phi(i, i) of every matrix over i."""
    for n, (name, grid) in enumerate(found["panels"].items()):
        colour, marker, dash = LOOKS[n % len(LOOKS)]
        _diagonal(axis, grid, color=colour, marker=marker, linestyle=dash, label=name)
    _diagonal(axis, found["control"], color=GREY, marker="x", linestyle=":", label="random")
    i = np.arange(1, len(found["control"]) + 1)
    axis.plot(i, i / found["d"], color=GREY, linewidth=1, label="chance, i / d")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(
        xlabel="first i directions of both", ylabel=r"$\phi(i, i)$", ylim=(0, 1.03), visible=True
    )
    axis.legend(fontsize="x-small", ncols=2)
    axis.grid(alpha=0.25)


def _diagonal(axis: Any, grid: Sequence[Sequence[float]], **style: Any) -> None:
    values = np.diag(np.array(grid))
    axis.plot(range(1, len(values) + 1), values, markersize=4, markerfacecolor="none", **style)
