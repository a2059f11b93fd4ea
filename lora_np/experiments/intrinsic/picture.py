"""The picture of an intrinsic dimension: the loss against the number of trained dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np import plots
from lora_np.experiments.intrinsic.dimension import VARIANTS, losses_of
from lora_np.experiments.intrinsic.text import STARTS
from lora_np.plots import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_intrinsic(
    results: dict[str, Any], path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw the loss against the dimension d, for both starts, with the loss that d90 must reach.

    Parameters
    ----------
    results : dict
        What :func:`lora_np.experiments.intrinsic.intrinsic_run` returns.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw: two panels. By default, in a new figure.

    Returns
    -------
    list of Axes

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np.experiments.intrinsic.picture import plot_intrinsic
    >>> found = {"D": 1000, "base": 5.0, "target": 2.3, "full": 2.0,
    ...          "d90": {"plain": 100, "structured": None},
    ...          "rows": [{"variant": "plain", "d": d, "loss": 2.0 + 20 / d} for d in (10, 100)]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     axes = plot_intrinsic({"pretrained": found, "random": found}, f"{folder}/intrinsic.png")
    ...     os.listdir(folder)
    ['intrinsic.png']
    """
    with plots.drawing(path, ax, (10, 4.4), columns=2) as picture:
        for axis, start in zip(picture.axes, STARTS):
            _draw(axis, start, results[start])
    return picture.axes


def _draw(axis: Any, start: str, found: dict[str, Any]) -> None:
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
    axis.legend(fontsize="small")
    axis.set_ylabel("validation loss [nats a byte]")
