"""Draw an analysis: the rank of every module, by layer and kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora_np import plots
from lora_np.adapters.ranks import Analysis

LARGEST = 60.0  # inches, of either side of a picture


def plot_rank_map(analysis: Analysis, path: str | Path) -> None:
    """Draw a map of the ranks that keep 99 % of the energy: one row per layer, one column per kind.

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
    >>> from lora_np.adapters.picture import plot_rank_map
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(f"{folder}/adapter", [("h.0.q_proj", np.eye(4), np.eye(4, 6), 1.0)])
    ...     plot_rank_map(analyse_adapter(f"{folder}/adapter"), f"{folder}/map.png")
    ...     sorted(os.listdir(folder))
    ['adapter', 'map.png']
    """
    from matplotlib.ticker import MaxNLocator

    layers, kinds = (list(dict.fromkeys(names)) for names in zip(*analysis.places))
    grid = np.full((len(layers), len(kinds)), np.nan)  # nan: no such module, or rank unknown
    marks = {}
    for (layer, kind), module in zip(analysis.places, analysis.modules):
        row, column = layers.index(layer), kinds.index(kind)
        rank = module.energy_ranks[0.99]
        grid[row, column] = np.nan if rank is None else rank
        marks[row, column] = f">{len(module.singular_values)}" if rank is None else str(rank)
    columns, rows = ([_label(name) for name in names] for names in (kinds, layers))
    longest = max(map(len, columns))
    wide, high = 4 + 0.7 * len(kinds), 2.2 + 0.08 * longest + 0.24 * len(layers)
    figure = plots.figure(min(wide, LARGEST), min(high, LARGEST))
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
    plots.save(figure, path)


def _label(name: str) -> str:
    """Return a name in ASCII, shortened to at most 60 characters."""
    text = name.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"
