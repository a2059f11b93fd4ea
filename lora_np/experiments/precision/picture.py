"""The picture of the study of precision: storage, merging, loss scaling, a panel each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np import plots
from lora_np.plots import BLUE, GREEN, GREY, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"float32": GREY, "bfloat16": BLUE, "float16": GREEN, "nf4": ORANGE}
MARKERS = {"float32": "s", "bfloat16": "o", "float16": "^", "nf4": "D"}


def plot_precision(
    results: dict[str, Any], path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw loss against bytes, what a merge leaves unchanged, and loss against small gradients.

    Parameters
    ----------
    results : dict
        What :func:`lora_np.experiments.precision.precision_study` returns.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw: three panels. By default, in a new figure.

    Returns
    -------
    list of Axes

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np.experiments.precision.picture import plot_precision
    >>> found = {"settings": {"sizes": [1e-4, 1e-2]}, "sizes": {"float32": [0.1, 0.0]},
    ...          "storage": [{"form": "float32", "bytes": 400, "before": 2.5, "after": 2.0}],
    ...          "scaling": [{"power": 0, "scale": None, "loss": 2.0}]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     axes = plot_precision(found, f"{folder}/precision.png")
    ...     os.listdir(folder)
    ['precision.png']
    """
    with plots.drawing(path, ax, (11.5, 4.6), columns=3) as picture:
        for axis, draw in zip(picture.axes, (_draw_storage, _draw_merging, _draw_scaling)):
            draw(axis, results)
            axis.grid(alpha=0.25)
            plots.legend_below(axis, 2)
    return picture.axes


def _draw_storage(axis: Any, results: dict[str, Any]) -> None:
    for row in results["storage"]:
        look = {"color": COLOURS[row["form"]], "marker": MARKERS[row["form"]]}
        kilobytes = row["bytes"] / 1000
        axis.plot(kilobytes, row["after"], linestyle="", label=row["form"], **look)
        axis.plot(kilobytes, row["before"], linestyle="", markerfacecolor="none", **look)
    axis.set(xlabel="base [kB]", ylabel="held-out loss [nats a byte]")
    axis.set_title("before LoRA (open) and after (filled)")


def _draw_merging(axis: Any, results: dict[str, Any]) -> None:
    for form, shares in results["sizes"].items():
        look = {"color": COLOURS[form], "marker": MARKERS[form], "label": form}
        axis.plot(results["settings"]["sizes"], [100 * share for share in shares], **look)
    axis.set(xscale="log", xlabel="|dW| / |W0|", ylabel="entries unchanged by a merge [%]")
    axis.set_title("merging a small change")


def _draw_scaling(axis: Any, results: dict[str, Any]) -> None:
    rows = results["scaling"]
    looks = (
        (None, "no loss scale", ORANGE, "D-"),
        (65536.0, "loss scale 2^16", BLUE, "o-"),
        ("dynamic", "loss scale dynamic", PURPLE, "s--"),
    )
    for scale, label, colour, line in looks:
        chosen = [row for row in rows if row["scale"] == scale]
        label = (
            "no loss scale" if scale is None else f"loss scale {scale}".replace("65536.0", "2^16")
        )
        hollow = "none" if scale == "dynamic" else colour  # it lies on the line below it
        look = {"color": colour, "markerfacecolor": hollow, "label": label}
        losses = [math.nan if row["loss"] is None else row["loss"] for row in chosen]
        diverged = [f"2^{row['power']}" for row in chosen if row["loss"] is None]
        look["label"] += f" (diverges at {', '.join(diverged)})" if diverged else ""
        axis.plot([row["power"] for row in chosen], losses, line, **look)
    axis.set(
        xlabel="k, where gradients are multiplied by 2^k", ylabel="held-out loss [nats a byte]"
    )
    axis.set_title("gradients in float16")
