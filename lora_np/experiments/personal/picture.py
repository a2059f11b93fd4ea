"""The picture of the matrix: two heat maps, with every number written into its cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.experiments.personal.matrix import Matrix
from lora_np.plots import ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST = 40.0  # inches, of either side


def plot_matrix(
    matrix: Matrix, path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw the loss and the exact answers of every adapter on every pair.

    A frame marks the pair's own adapter. Colours go from dark to light in both maps, in an order
    that a print in grey and colour-blind readers keep.

    Parameters
    ----------
    matrix : Matrix
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw: two panels. By default, in a new figure.

    Returns
    -------
    list of Axes

    Raises
    ------
    ValueError
        If the matrix is empty.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.experiments.personal import Matrix
    >>> from lora_np.experiments.personal.picture import plot_matrix
    >>> losses = np.array([[[2.0, 2.2]], [[0.1, 0.2]]])
    >>> matrix = Matrix(("base", "anna/who"), ("anna/who",), losses, losses < 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     axes = plot_matrix(matrix, f"{folder}/matrix.png")
    ...     os.listdir(folder)
    ['matrix.png']
    """
    if not matrix.losses.size:
        raise ValueError("the matrix is empty: score an adapter on a sample of a pair first")
    wide = 2.2 + 0.6 * len(matrix.pairs)
    high = 2 * (1.7 + 0.34 * len(matrix.adapters))
    loss, exact = matrix.losses.mean(axis=2), 100 * matrix.exact.mean(axis=2)
    size = min(wide, LARGEST), min(high, LARGEST)
    with plots.drawing(path, ax, size, rows=2, sharex=True) as picture:
        above, below = picture.axes
        _heat_map(above, matrix, loss, float(loss.max()), ".2f")
        _heat_map(below, matrix, exact, 100.0, ".0f")
        above.set_title("loss [nats a token]: lower is better", fontsize="medium")
        below.set_title("exact answers [%]: higher is better", fontsize="medium")
        below.set_xlabel("held-out samples of")
        n = matrix.losses.shape[2]
        picture.title(f"Every adapter on {n} samples of every pair; framed: its own")
    return picture.axes


def _heat_map(axis: Any, matrix: Matrix, cells: np.ndarray, top: float, form: str) -> None:
    from matplotlib.patches import Rectangle

    image = axis.imshow(cells, cmap="cividis", vmin=0, vmax=max(top, 1e-9), aspect="auto")
    plots.write_cells(
        axis, image, {at: format(x, form) for at, x in np.ndenumerate(cells)}, "medium"
    )
    for i, j in np.ndindex(cells.shape):
        if matrix.adapters[i] == matrix.pairs[j]:
            frame = {"fill": False, "edgecolor": ORANGE, "linewidth": 2.5}
            axis.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, **frame))
    axis.set_xticks(range(len(matrix.pairs)), matrix.pairs, rotation=90)
    axis.set_yticks(range(len(matrix.adapters)), matrix.adapters)
    axis.set_ylabel("adapter")
