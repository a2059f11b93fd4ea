"""Pictures of the four questions: rates, layers, capacity, batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.experiments.regret.claims import (
    FULL,
    LAYERS,
    at_batch,
    at_steps,
    layer_label,
    lora,
)
from lora_np.experiments.study.losses import Results, curve, losses
from lora_np.plots import AMBER, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from lora_np.tables import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEST = "test loss [nats a byte]"
STYLES = (
    (ORANGE, "s", "-"),
    (BLUE, "o", "--"),
    (GREEN, "D", "-."),
    (PURPLE, "v", ":"),
    (SKY, "^", "-"),
    (AMBER, "<", "--"),
)


def plot_rates(results: Results, path: str | Path | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the validation loss against the learning rate: full fine-tuning and LoRA.

    Rates that were run on the first seed alone are drawn without an error bar.

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
    s = results["settings"]
    with _axis(path, ax, results) as axis:
        names = [FULL, *(lora(r) for r in s["rate_ranks"])]
        for name, (colour, marker, dash) in zip(names, cycle(STYLES)):
            rates, found = zip(*curve(results, name).items())
            style = {"color": colour, "marker": marker, "linestyle": dash}
            _line(axis, rates, [list(by_seed.values()) for by_seed in found], name, style)
        base = results["base_validation_loss"]
        axis.axhline(base, color=GREY, linestyle=":", label="base, not adapted")
        axis.set(xscale="log", xlabel="learning rate", ylabel="validation loss [nats a byte]")
        axis.set_title(f"Loss against the learning rate, lora_alpha = {s['alpha']:g}")
        axis.set_ylim(top=base + 0.25 * (base - axis.get_ylim()[0]))
    return axis


def plot_layers(
    results: Results, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the test loss of every seed for the choices of layers; equal seeds are joined.

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
    with _axis(path, ax) as axis:
        labels = [layer_label(results, where) for where in LAYERS]
        found = [losses(results, label) for label in labels]
        for seed in found[0]:
            y = [by_seed.get(seed, math.nan) for by_seed in found]
            name = "a seed" if seed == 0 else None
            axis.plot(range(3), y, color=GREY, marker="o", linewidth=1, markersize=4, label=name)
        means = [float(np.mean(list(by_seed.values()))) for by_seed in found]
        style = {"color": BLUE, "marker": "D", "linestyle": "none", "markersize": 9}
        axis.plot(range(3), means, markerfacecolor="none", label="mean over seeds", **style)
        ranks = results["settings"]["layers"]
        axis.set_xticks(range(3), [f"{where}\nr = {ranks[where]}" for where in LAYERS])
        axis.set(xlim=(-0.4, 2.4), ylabel=TEST)
        axis.set_title("Which layers, at equal trainable parameters")
    return axis


def plot_capacity(
    results: Results, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the test loss against the amount of data: where a rank falls off full's curve.

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
    s = results["settings"]
    data = {n: n * s["batch_size"] * s["block_size"] for n in s["capacity_steps"]}
    with _axis(path, ax, results) as axis:
        _full_and_ranks(
            axis,
            results,
            data.values(),
            lambda name: [list(at_steps(results, name, n).values()) for n in data],
        )
        axis.set_xscale("log")
        axis.set_xticks(list(data.values()), [f"{size:,}" for size in data.values()])
        axis.set_xticks([], minor=True)
        axis.set(xlabel="bytes of text, each read once", ylabel=TEST)
        axis.set_title("Capacity: loss as the data grow")
    return axis


def plot_batch(results: Results, path: str | Path | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the test loss against the batch size, after the same amount of data.

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
    sizes = results["settings"]["batch_sizes"]
    with _axis(path, ax, results) as axis:
        _full_and_ranks(
            axis,
            results,
            sizes,
            lambda name: [list(at_batch(results, name, n).values()) for n in sizes],
        )
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set(xlabel="batch size [windows]", ylabel=TEST)
        axis.set_title("Batch size: loss after the same amount of data")
    return axis


@contextmanager
def _axis(path: str | Path | None, ax: Axes | None, over: Results | None = None) -> Iterator[Any]:
    """Give the Axes of a picture; say of means, `over` how many seeds they are taken."""
    with plots.drawing(path, ax, (6.8, 4.6)) as picture:
        axis = picture.axes[0]
        axis.grid(alpha=0.25)
        yield axis
        if over is not None:
            picture.note(f"mean and s.d. over {counted(over['settings']['seeds'], 'seed')}")
        if axis.get_legend_handles_labels()[0]:  # none where every run diverged
            axis.legend()


def _full_and_ranks(
    axis: Any,
    results: Results,
    x: Iterable[float],
    read: Callable[[str], list[list[float]]],
) -> None:
    """Draw a line for full fine-tuning and for each of the two ranks."""
    names = [FULL, *(lora(r) for r in results["settings"]["ranks"])]
    for name, (colour, marker, dash) in zip(names, STYLES):
        style = {"color": colour, "marker": marker, "linestyle": dash}
        _line(axis, list(x), read(name), name, style)


def _line(
    axis: Any, x: Iterable[float], rows: list[list[float]], name: str, style: dict[str, Any]
) -> None:
    """Draw means over seeds with their deviations; a point where a seed diverged is left out."""
    points = [(at, row) for at, row in zip(x, rows) if row and all(map(math.isfinite, row))]
    if not points:
        return
    means = [float(np.mean(row)) for _, row in points]
    bars = [float(np.std(row, ddof=1)) if len(row) > 1 else math.nan for _, row in points]
    axis.errorbar(
        [at for at, _ in points],
        means,
        bars if np.isfinite(bars).any() else None,  # of one seed: no bars, in the legend neither
        capsize=3,
        markerfacecolor="none",
        label=name,
        **style,
    )
