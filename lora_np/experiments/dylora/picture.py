"""The picture of the ranks: test loss of DyLoRA, of LoRA of each rank, and of one LoRA, cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.experiments.dylora.claims import at
from lora_np.experiments.study.losses import Results
from lora_np.plots import AMBER, BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY
from lora_np.tables import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DYLORA = ((BLUE, "o", "-"), (SKY, "^", "--"), (PURPLE, "v", "-"), (AMBER, "<", "--"))
APART = 0.05  # between two labels, as a share of the axis
ABOVE = 0.25  # how far above the base the axis goes, as a share of what training gains

Point = tuple[float, float]
Label = tuple[Point, Point, str, str]  # the first and the last point of a line, its text and colour


def plot_dylora(
    results: Results, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the test loss against the rank, means over seeds.

    LoRA of each rank has bars of one standard deviation over seeds. What lies far above the base
    is cut off.

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
    with plots.drawing(path, ax, (8.4, 5.4)) as picture:
        _draw(picture.axes[0], results)
    return picture.axes[0]


def _draw(axis: Any, results: Results) -> None:
    s = results["settings"]
    every, right, left = range(1, s["r_max"] + 1), [], []
    for label, (colour, marker, dash) in zip(s["dylora"], DYLORA):
        style = {"color": colour, "marker": marker, "linestyle": dash}
        right.append(_line(axis, results, label, every, label, style))
    cuts = {"svd": ("LoRA, cut by SVD", ORANGE, "D"), "naive": ("LoRA, cut naively", GREEN, "s")}
    for cut, (text, colour, marker) in cuts.items():
        style = {"color": colour, "marker": marker, "linestyle": "-."}
        left.append(_line(axis, results, cut, every, text, style))
    style = {"color": INK, "marker": "X", "linestyle": "none", "markerfacecolor": INK}
    left.append(_line(axis, results, "LoRA", s["ranks"], "LoRA, trained at r", style, bars=True))
    _scale(axis, results)
    _labels(axis, [line for line in left if line], first=True)
    _labels(axis, [line for line in right if line], first=False)


def _line(
    axis: Any,
    results: Results,
    label: str,
    ranks: Iterable[int],
    text: str,
    style: dict[str, Any],
    bars: bool = False,
) -> Label | None:
    """Draw means over seeds; return what labels the line, None where every rank diverged."""
    rows = {r: list(at(results, label, r).values()) for r in ranks}
    rows = {r: row for r, row in rows.items() if row and all(map(math.isfinite, row))}
    if not rows:
        return None
    points = [(r, float(np.mean(row))) for r, row in rows.items()]
    deviations = [np.std(row, ddof=1) if len(row) > 1 else math.nan for row in rows.values()]
    axis.errorbar(
        *zip(*points),
        deviations if bars else None,
        capsize=4,
        **{"markersize": 5, "linewidth": 1.4, "markerfacecolor": "none", **style},
    )
    return points[0], points[-1], text, style["color"]


def _scale(axis: Any, results: Results) -> None:
    """Set the axes: ranks in factors of two, and room for the labels on both sides."""
    s, base = results["settings"], results["base_test_loss"]
    low, high = axis.get_ylim()
    axis.set_ylim(low, min(high, base + ABOVE * max(base - low, 0.0)) if low < base else high)
    if low < base <= axis.get_ylim()[1]:
        axis.axhline(base, color=GREY, linestyle=":", linewidth=1)
        axis.text(s["r_max"], base, "base, not adapted", color=GREY, va="bottom", ha="right")
    span = math.log2(s["r_max"])
    axis.set_xscale("log", base=2)
    axis.set_xlim(2 ** (-0.42 * span), 2 ** (1.5 * span))
    axis.set_xticks(s["ranks"], [str(r) for r in s["ranks"]])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="rank r", ylabel="test loss [nats a byte]")
    seeds = counted(s["seeds"], "seed")
    axis.set_title(f"Which rank? {counted(s['steps'], 'step')}, mean over {seeds}; bars: s.d.")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _labels(axis: Any, lines: Sequence[Label], first: bool) -> None:
    """Write the labels beside the first or the last points of lines, none over another."""
    low, high = axis.get_ylim()
    past = axis.get_xlim()[0 if first else 1]
    ends: list[tuple[float, float, str, str]] = []
    for start, end, text, colour in lines:
        x, y = start if first else end
        ends.append((min(y, high), x, text, colour))
    ends.sort()
    placed = _apart([y for y, *_ in ends], APART * (high - low))
    for (y, x, text, colour), beside in zip(ends, placed):
        axis.annotate(
            text,
            (x, y),
            (x * (past / x) ** 0.12, beside),
            va="center",
            ha="right" if first else "left",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2},
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights; those that are too near are spread around their mean.

    Examples
    --------
    >>> from lora_np.experiments.dylora.picture import _apart
    >>> _apart([1.0, 1.0, 5.0], 0.5)
    [0.75, 1.25, 5.0]
    """
    groups: list[list[float]] = []  # heights of labels that touch, each group around its mean
    for y in heights:
        groups.append([y])
        while len(groups) > 1 and _stack(groups[-1], gap)[0] - _stack(groups[-2], gap)[-1] < gap:
            last = groups.pop()
            groups[-1] += last
    return [y for group in groups for y in _stack(group, gap)]


def _stack(group: Sequence[float], gap: float) -> list[float]:
    middle = sum(group) / len(group)
    return [middle + gap * (i - (len(group) - 1) / 2) for i in range(len(group))]
