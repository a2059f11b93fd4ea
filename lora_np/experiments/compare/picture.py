"""Pictures of the comparison: loss against trainable numbers, and against latency.

Thirty points cannot be told apart by colour. Each has its name in a column on the right, joined to
it by a thin line; colour and marker say the family. Names stand in the order of the losses, so that
the lines hardly cross.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np import plots
from lora_np.experiments.compare.report import over
from lora_np.experiments.compare.rows import FAMILIES
from lora_np.experiments.study.losses import Results, losses
from lora_np.plots import AMBER, BLUE, GREEN, GREY, ORANGE, PURPLE
from lora_np.tables import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = dict(
    zip(
        FAMILIES,
        ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "v"), (AMBER, "^"), (GREY, "X")),
        strict=True,
    )
)
ROW = 0.19  # inches that a name takes
Point = tuple[str, float, float, float]  # label, x, y, deviation


def plot_losses(
    results: Results, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the test loss against the number of trainable numbers.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    path : str or Path, optional
        The PNG to write.
    ax : Axes, optional
        Where to draw. By default, in a new figure.

    Returns
    -------
    Axes
    """
    costs = results["measured"]
    points = _points(results, {label: costs[label]["trainable"] for label in results["best"]})
    with plots.drawing(path, ax, _size(points)) as picture:
        axis = picture.axes[0]
        _draw(picture, results, points, "Loss against trainable numbers")
        axis.set(xscale="log", xlabel="trainable numbers")
        _names(axis, points, results["settings"]["rows"])
    return axis


def plot_latency(
    results: Results, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the test loss against the latency at batch 1, over that of full fine-tuning.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    path : str or Path, optional
        The PNG to write.
    ax : Axes, optional
        Where to draw. By default, in a new figure.

    Returns
    -------
    Axes
    """
    ratio = {label: over(results, label, "full", "latency_1") for label in results["best"]}
    what = "latency at batch 1 / that of the plain model"
    if None in ratio.values():
        what = "latency at batch 1 [ms]"
        times = {label: results["measured"][label]["latency_1"] for label in results["best"]}
        ratio = {label: 1000 * statistics.median(values) for label, values in times.items()}
    points = _points(results, ratio)
    with plots.drawing(path, ax, _size(points)) as picture:
        axis = picture.axes[0]
        _draw(picture, results, points, "Loss against latency, merged where the method merges")
        axis.set_xlabel(what)
        _names(axis, points, results["settings"]["rows"])
    return axis


def _points(results: Results, x: Mapping[str, Any]) -> list[Point]:
    """Return the contenders that did not diverge, the highest loss first."""
    points = []
    for label in results["best"]:
        found = list(losses(results, label).values())
        if found and all(map(math.isfinite, found)):
            sd = statistics.stdev(found) if len(found) > 1 else math.nan
            points.append((label, x[label], statistics.mean(found), sd))
    return sorted(points, key=lambda point: -point[2])


def _size(points: Sequence[Point]) -> tuple[float, float]:
    return 9.0, max(4.6, 1.6 + ROW * len(points))


def _draw(picture: plots.Picture, results: Results, points: Sequence[Point], title: str) -> None:
    """Draw the points of every family, and the base."""
    axis, rows = picture.axes[0], results["settings"]["rows"]
    for family, (colour, marker) in STYLES.items():
        own = [point for point in points if rows[point[0]]["family"] == family]
        if own:
            _, xs, ys, bars = zip(*own)
            style = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 2}
            axis.errorbar(xs, ys, bars, label=family, markerfacecolor="none", **style)
    base = results["base_test_loss"]
    axis.axhline(base, color=GREY, linestyle=":", linewidth=1, label="base, not adapted")
    axis.set_ylabel("test loss [nats a byte]")
    seeds = counted(results["settings"]["seeds"], "seed")
    axis.set_title(f"{title}; mean and s.d. over {seeds}")
    axis.grid(alpha=0.25)
    picture.legend(axis, 4, fontsize="medium")


def _names(axis: Any, points: Sequence[Point], rows: Mapping[str, Any]) -> None:
    """Write the names beside the axis near their points' heights, each joined to its point."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    inches = _size(points)[1] - 1.4  # about the height of the axis
    heights = [(y - low) / (high - low) for _, _, y, _ in points]
    for (label, x, y, _), height in zip(points, spread_out(heights, ROW / inches)):
        colour, _ = STYLES[rows[label]["family"]]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0.0, 0.5)}
        axis.annotate(
            label,
            (x, y),
            (1.04, height),
            textcoords="axes fraction",
            fontsize=8,
            verticalalignment="center",
            arrowprops=line,
            annotation_clip=False,
        )


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Return descending heights between 0 and 1, moved so that neighbours are `gap` apart.

    Examples
    --------
    >>> from lora_np.experiments.compare.picture import spread_out
    >>> spread_out([0.75, 0.75, 0.125], 0.25)
    [0.75, 0.5, 0.125]
    """
    found: list[float] = []
    for height in heights:
        found.append(height if not found else min(height, found[-1] - gap))
    for i in reversed(range(len(found))):
        lowest = gap / 2 if i == len(found) - 1 else found[i + 1] + gap
        found[i] = max(found[i], lowest)
    return found
