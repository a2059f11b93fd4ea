"""The picture of the study of serving: tokens a second by distinct adapters in the batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np import plots
from lora_np.experiments.serving.report import rate
from lora_np.experiments.serving.run import ALONE, BASE, OURS, PEFT
from lora_np.plots import BLUE, GREEN, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {
    BASE: ("the base alone", GREY, "s--"),
    OURS: ("ours, one mixed batch", BLUE, "o-"),
    ALONE: ("ours, one adapter at a time", ORANGE, "^-"),
    PEFT: ("PEFT's adapter_names, one mixed batch", GREEN, "D-"),
}


def plot_serving(
    results: Mapping[str, Any], path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the throughput of all sides against the number of distinct adapters in the batch.

    Parameters
    ----------
    results : mapping
        What :func:`lora_np.experiments.serving.serving_study` returns, with ``distinct`` measured.
    path : str or Path, optional
        The PNG to write.
    ax : Axes, optional
        Where to draw. By default, in a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If ``distinct`` was not measured.
    """
    if not results["measured"].get("distinct"):
        raise ValueError("there is nothing to draw: the study did not measure distinct adapters")
    with plots.drawing(path, ax, (7.5, 4.8)) as picture:
        draw_serving(picture.axes[0], results)
    return picture.axes[0]


def draw_serving(axis: Any, results: Mapping[str, Any]) -> None:
    """Draw the curves on an axis."""
    rows, s = results["measured"]["distinct"], results["settings"]
    xs = [row["distinct"] for row in rows]
    for side, (label, colour, line) in LOOKS.items():
        if side in rows[0]["seconds"]:
            rates = [rate(row, side) for row in rows]
            axis.plot(xs, rates, line, color=colour, label=label)
    plots.rank_axis(axis, xs)
    axis.set_ylim(bottom=0)
    axis.set(
        xlabel=f"distinct adapters in a batch of {s['batch']} rows",
        ylabel="throughput [tokens / CPU second]",
        title=f"A mixed batch: prompts of {s['prompt']} tokens, {s['new']} new, r = {s['r']}",
    )
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="best")
