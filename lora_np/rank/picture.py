"""Pictures of rank: one spectrum, and the answers of estimators for matrices of known rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.plots import AMBER, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from lora_np.rank.noise import marchenko_pastur_edge
from lora_np.rank.planted import Recovery
from lora_np.rank.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ESTIMATORS = {  # a colour for each family, a marker and a dash for each estimator
    "numerical rank": (GREY, "x", ":"),
    "stable rank": (GREEN, "v", "-."),
    "participation ratio": (PURPLE, "^", "-."),
    "effective rank": (SKY, "d", "-."),
    "90% energy rank": (AMBER, "<", "--"),
    "95% energy rank": (AMBER, ">", ":"),
    "99% energy rank": (AMBER, "p", "-."),
    "bulk edge": (ORANGE, "o", "-"),
    "Gavish-Donoho": (BLUE, "s", "-"),
    "Gavish-Donoho, known noise": (BLUE, "D", ":"),
}


def plot_recovery(
    rows: Sequence[Recovery], path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw the answers of rank estimators for matrices of known rank, against signal-to-noise.

    There is a column for each planted rank. The upper panel shows the mean answer, whose 95 %
    interval is mostly smaller than its marker, and the planted rank as a line. The lower panel
    shows the percentage of trials with the exact answer.

    Parameters
    ----------
    rows : sequence of Recovery
        From :func:`lora_np.rank.recovery`.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw: all upper panels, then all lower ones. By default, in a new figure.

    Returns
    -------
    list of Axes

    Raises
    ------
    ValueError
        If there is no row.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.rank.picture import plot_recovery
    >>> from lora_np.rank import recovery
    >>> rows = recovery((20, 20), [2], [1.0, 4.0], trials=2, rng=np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     axes = plot_recovery(rows, f"{folder}/recovery.png")
    ...     os.listdir(folder)
    ['recovery.png']
    """
    if not rows:
        raise ValueError("there is no row to draw: recovery() was asked for no rank or ratio")
    ks = list(dict.fromkeys(row.k for row in rows))
    how = {"sharex": True, "sharey": "row"}
    size = 1.5 + 4.2 * max(len(ks), 2), 6.6
    with plots.drawing(path, ax, size, 2, len(ks), **how) as picture:
        upper, lower = picture.axes[: len(ks)], picture.axes[len(ks) :]
        for above, below, k in zip(upper, lower, ks):
            _draw_recovery(above, below, [row for row in rows if row.k == k], k)
        upper[0].set_ylabel("mean answer [directions]")
        lower[0].set_ylabel("trials answered exactly [%]")
        picture.legend(upper[0], 4)
    return picture.axes


def _draw_recovery(above: Any, below: Any, rows: Sequence[Recovery], k: int) -> None:
    for name, (colour, marker, dash) in ESTIMATORS.items():
        found = sorted((row for row in rows if row.estimator == name), key=_ratio)
        x, means = [r.ratio for r in found], [r.mean for r in found]
        style = {"color": colour, "marker": marker, "linestyle": dash, "markerfacecolor": "none"}
        bars = [[r.mean - r.low for r in found], [r.high - r.mean for r in found]]
        above.errorbar(x, means, yerr=bars, label=name, **style)
        below.plot(x, [100 * r.exact for r in found], **style)
    above.axhline(k, color=GREY, linewidth=1, label="planted rank k")
    above.set(title=f"planted rank k = {k}", xscale="log", yscale="log")
    below.set(xlabel="signal-to-noise: weakest direction / edge of the noise", xscale="log")
    ratios = sorted({row.ratio for row in rows})
    below.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    below.set_xticks([], minor=True)
    for axis in (above, below):
        axis.grid(alpha=0.25)


def _ratio(row: Recovery) -> float:
    return row.ratio


def plot_singular_values(
    spectrum: Spectrum, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw singular values in descending order, and the ranks that keep 90 and 99 % of the energy.

    Where the spectrum has a noise floor, a line shows its edge; see ``bulk_rank``.

    Parameters
    ----------
    spectrum : Spectrum
    path : str or Path, optional
        The PNG to write.
    ax : Axes, optional
        Where to draw. By default, in a new figure.

    Returns
    -------
    Axes

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import spectrum
    >>> from lora_np.plots import figure
    >>> axis = spectrum(np.diag([3.0, 2.0, 1.0])).plot(ax=figure(5, 4).subplots())
    >>> axis.lines[0].get_ydata().tolist()
    [3.0, 2.0, 1.0]
    """
    sigma = spectrum.singular_values
    with plots.drawing(path, ax, (6.4, 4.2)) as picture:
        axis = picture.axes[0]
        i, positive = np.arange(1, len(sigma) + 1), sigma[sigma > 0]
        axis.plot(i, sigma, color=BLUE, marker="o", markersize=4, linewidth=1)
        if positive.size:
            lowest = max(float(positive[-1]), float(sigma[0]) * spectrum.eps)
            axis.set(yscale="log", ylim=(lowest / 2, 2 * float(sigma[0])))
        for fraction, dash in ((0.90, "--"), (0.99, ":")):
            k = spectrum.energy_rank(fraction)
            label = f"{100 * fraction:.0f} % of the energy: rank {k}"
            axis.axvline(k + 0.5, color=ORANGE, linestyle=dash, linewidth=1.3, label=label)
        if spectrum.noise is not None:
            edge = marchenko_pastur_edge(spectrum.noise, spectrum.shape)
            label = f"edge of the noise: rank {spectrum.bulk_rank}"
            axis.axhline(edge, color=GREEN, linestyle="-.", linewidth=1.3, label=label)
        plots.count_from_one(axis, len(sigma))
        out, in_ = spectrum.shape
        axis.set(xlabel="index i", ylabel=r"singular value $\sigma_i$")
        axis.set_title(f"Spectrum of a {out} x {in_} matrix", fontsize="medium")
        axis.grid(alpha=0.3)
        picture.legend(axis, 3)
    return axis
