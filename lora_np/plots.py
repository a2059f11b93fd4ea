"""What all pictures share: the figure, its look, the file and the colours.

Each picture is drawn by a file beside its experiment. ``plot_x(data, path=None, *, ax=None)``
returns the Axes that it drew on, and writes a PNG only if it is given a path.

One picture serves a white page, a dark page and a print. Its ground is transparent, and its ink is
the grey that stands out equally from white and from a dark page: 4.2 to 1, by the rule of WCAG 2.
The colours of curves stand out from both by at least 3 to 1. They are Okabe and Ito's, which
colour-blind readers can distinguish, but for SKY and AMBER, whose originals fade on white. Every
series also has its own marker or dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import lora_np

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, AMBER = "#CC79A7", "#3797D3", "#B98000"
INK = GREY = "#7B7B7B"  # of text, axes and reference lines
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = {
    **dict.fromkeys(INKED, INK),
    "axes.grid": False,  # a style with a grid would rule it through heat maps
    "grid.color": INK,
    "axes.facecolor": "none",
    "legend.frameon": False,
}
_styled = RLock()  # matplotlib's settings are the process's: one thread at a time changes them
LOOKS = tuple(  # colour, marker and dash of series that are told apart by them
    zip(
        (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER) * 2,
        "osDv^<>pXhP*",
        ("-", "--", "-.", ":") * 3,
        strict=True,
    )
)


def figure(width: float, height: float) -> Any:
    """Return a figure made without pyplot: it needs no screen and keeps a notebook's settings.

    Parameters
    ----------
    width, height : float
        In inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


class Picture(NamedTuple):
    """The Axes of a picture, and whether their figure is ours or the caller's."""

    axes: list[Any]
    own: bool

    @property
    def figure(self) -> Any:
        """The figure that the Axes are in."""
        return self.axes[0].figure.canvas.figure  # the root, also of an Axes in a subfigure

    def title(self, text: str) -> None:
        """Write a title above all panels; a caller's figure keeps its own."""
        if self.own:
            self.figure.suptitle(text)

    def note(self, text: str) -> None:
        """Write a line below all panels; not into a caller's figure."""
        if self.own:
            self.figure.supxlabel(text, fontsize="small")

    def legend(self, axis: Any, columns: int, **style: Any) -> None:
        """Write the legend of an axis below all panels; in a caller's figure, into that axis."""
        handles, labels = axis.get_legend_handles_labels()
        if handles and self.own:
            style = {"fontsize": "small", **style}
            self.figure.legend(handles, labels, loc="outside lower center", ncols=columns, **style)
        elif handles:
            axis.legend(fontsize="small")


@contextmanager
def drawing(
    path: str | Path | None,
    ax: Any,
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    **subplots: Any,
) -> Iterator[Picture]:
    """Give a picture the Axes to draw on; afterwards, write it if it has a path.

    Parameters
    ----------
    path : str or Path, optional
        The PNG to write. A figure without a path is pyplot's, which shows it below a notebook's
        cell, and in a program by ``matplotlib.pyplot.show()``.
    ax : Axes or sequence of Axes, optional
        Where to draw: one for each panel. By default, in a new figure.
    size : (float, float)
        Width and height of a new figure, in inches.
    rows, columns : int
        Of panels.
    **subplots
        For matplotlib's ``Figure.subplots``.

    Raises
    ------
    ValueError
        If `ax` does not hold an Axes for each panel.
    """
    from matplotlib import rc_context

    if ax is not None:
        picture = Picture(_given(ax, rows * columns), own=False)
        yield picture
    else:
        made = _shown(*size) if path is None else figure(*size)
        with _styled, rc_context(STYLE):
            axes = made.subplots(rows, columns, squeeze=False, **subplots)
            picture = Picture(list(axes.flat), own=True)
            yield picture
            _ink_ticks(made)
    if path is not None:
        save(picture.figure, path)


def _given(ax: Any, n: int) -> list[Any]:
    """Return the caller's Axes as a list."""
    from matplotlib.axes import Axes

    several = list(getattr(ax, "flat", ax)) if isinstance(ax, Iterable) else [ax]
    if len(several) != n or not all(isinstance(axis, Axes) for axis in several):
        needed = "one matplotlib Axes" if n == 1 else f"a sequence of {n} matplotlib Axes"
        found = type(ax).__name__ if len(several) == 1 else f"{len(several)} of them"
        raise ValueError(f"ax must be {needed}, one for each panel of the picture, not {found}")
    return several


def _shown(width: float, height: float) -> Any:
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), layout="constrained", facecolor="none")


def _ink_ticks(figure: Any) -> None:
    """Colour ticks: many are made when the figure is painted, and forget the style by then."""
    for axis in figure.axes:
        for each in (axis, *axis.child_axes):
            each.tick_params(which="both", colors=INK, grid_color=INK)


def save(figure: Any, path: str | Path) -> None:
    """Write a figure as a PNG.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : str or Path
    """
    from lora_np.files import replacing

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def write_cells(
    axis: Any, image: Any, texts: Mapping[tuple[int, int], str], size: str = "small"
) -> None:
    """Write texts into the cells of a heat map, black or white: whichever stands out more.

    Parameters
    ----------
    axis : Axes
    image : matplotlib.image.AxesImage
        What ``axis.imshow`` returned.
    texts : mapping of (int, int) to str
        By row and column. Where the image has no value, the ground shows, and the text is in INK.
    size : str
        Of the font.
    """
    style = {"ha": "center", "va": "center", "fontsize": size}
    colours = image.to_rgba(image.get_array())  # (rows, columns, 4)
    for (row, column), text in texts.items():
        *rgb, alpha = colours[row, column]
        light = contrast(rgb, "white") < contrast(rgb, "black")
        colour = ("black" if light else "white") if alpha else INK
        axis.text(column, row, text, color=colour, **style)


def contrast(one: Any, other: Any) -> float:
    """Return how much two colours stand out from each other, 1 to 21, by the rule of WCAG 2.

    Parameters
    ----------
    one, other : colour
        As matplotlib takes them.

    Examples
    --------
    >>> from lora_np.plots import INK, contrast
    >>> round(contrast("black", "white")), round(contrast(INK, "white"), 1)
    (21, 4.2)
    """
    from matplotlib.colors import to_rgb

    def luminance(colour: Any) -> float:
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def count_from_one(axis: Any, n: int) -> None:
    """Let a horizontal axis count from 1 to n, with a tick at 1.

    Parameters
    ----------
    axis : Axes
    n : int

    Examples
    --------
    >>> from lora_np.plots import count_from_one, figure
    >>> axis = figure(4, 3).subplots()
    >>> count_from_one(axis, 64)
    >>> axis.get_xticks().tolist()
    [1, 20, 40, 60]
    """
    from matplotlib.ticker import MaxNLocator

    steps = MaxNLocator(4, integer=True).tick_values(0, max(n, 1))
    room = 0.02 * max(n - 1, 10)
    axis.set_xlim(1 - room, max(n, 1) + room)
    axis.set_xticks([1, *(int(tick) for tick in steps if 1 < tick <= n)])


def legend_below(axis: Any, columns: int) -> None:
    """Write the legend of an axis below it, where no curve can be.

    Parameters
    ----------
    axis : Axes
    columns : int
    """
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", ncols=columns, **below)


def rank_axis(axis: Any, ranks: Sequence[float]) -> None:
    """Let a horizontal axis be logarithmic, with a tick at every rank and no others.

    Parameters
    ----------
    axis : Axes
    ranks : sequence of number
        Ranks, or other numbers that are doubled from one to the next.
    """
    axis.set_xscale("log", base=2)
    axis.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
    axis.set_xticks([], minor=True)
    if len(set(ranks)) == 1:  # one point has no scale of its own
        axis.set_xlim(ranks[0] / 2, ranks[0] * 2)


def __getattr__(name: str) -> Any:
    return lora_np.moved("plots", name)  # a picture that an earlier release kept here
