"""The picture of a recovery: the answers of rank estimators for matrices of known rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_np import plots
from lora_np.plots import AMBER, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from lora_np.rank.planted import Recovery

ESTIMATORS = {  # a colour for each family, a marker and a dash for each estimator
    "numerical rank": ("black", "x", ":"),
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


def plot_recovery(rows: Sequence[Recovery], path: str | Path) -> None:
    """Draw the answers of rank estimators for matrices of known rank, against signal-to-noise.

    There is a column for each planted rank. The upper panel shows the mean answer, whose 95 %
    interval is mostly smaller than its marker, and the planted rank as a line. The lower panel
    shows the percentage of trials with the exact answer.

    Parameters
    ----------
    rows : sequence of Recovery
        From :func:`lora_np.rank.recovery`.
    path : str or Path
        The PNG to write.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.rank.picture import plot_recovery
    >>> from lora_np.rank import recovery
    >>> rows = recovery((20, 20), [2], [1.0, 4.0], trials=2, rng=np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_recovery(rows, f"{folder}/recovery.png")
    ...     os.listdir(folder)
    ['recovery.png']
    """
    ks = list(dict.fromkeys(row.k for row in rows))
    figure = plots.figure(1.5 + 4.2 * len(ks), 6.6)
    axes = figure.subplots(2, len(ks), sharex=True, sharey="row", squeeze=False)
    for (above, below), k in zip(axes.T, ks):
        for name, (colour, marker, dash) in ESTIMATORS.items():
            found = sorted((r for r in rows if (r.estimator, r.k) == (name, k)), key=_ratio)
            x, means = [r.ratio for r in found], [r.mean for r in found]
            style = {
                "color": colour,
                "marker": marker,
                "linestyle": dash,
                "markerfacecolor": "none",
            }
            bars = [[r.mean - r.low for r in found], [r.high - r.mean for r in found]]
            above.errorbar(x, means, yerr=bars, label=name, **style)
            below.plot(x, [100 * r.exact for r in found], **style)
        above.axhline(k, color=GREY, linewidth=1, label="planted rank k")
        above.set(title=f"planted rank k = {k}", xscale="log", yscale="log")
        below.set_xlabel("signal-to-noise: weakest direction / edge of the noise")
        ratios = sorted({r.ratio for r in rows})
        below.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        below.set_xticks([], minor=True)
        for axis in (above, below):
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("mean answer [directions]")
    axes[1, 0].set_ylabel("trials answered exactly [%]")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize="small")  # fmt: skip
    plots.save(figure, path)


def _ratio(row: Recovery) -> float:
    return row.ratio
