"""The picture of the text-to-SQL study: accuracy by test split and contender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np import plots
from lora_np.experiments.sql.plan import BASE, FULL, LORA, SHOWN
from lora_np.experiments.sql.report import accuracy, tested
from lora_np.experiments.sql.task import TESTS
from lora_np.plots import BLUE, GREY, INK, ORANGE, SKY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {BASE: (GREY, ""), SHOWN: (SKY, ".."), LORA: (ORANGE, "//"), FULL: (BLUE, "")}
WIDTH = 0.2  # of a bar; the splits are 1 apart


def plot_sql(
    results: dict[str, Any], path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw execution accuracy on every test split, with its standard error over questions.

    Parameters
    ----------
    results : dict
        The content of ``results.json``, complete.
    path : str or Path, optional
        The PNG to write.
    ax : Axes, optional
        Where to draw. By default, in a new figure.

    Returns
    -------
    Axes
    """
    with plots.drawing(path, ax, (9, 4.8)) as picture:
        _draw(picture.axes[0], results)
    return picture.axes[0]


def _draw(axis: Any, results: dict[str, Any]) -> None:
    records = tested(results)
    for k, (contender, (colour, hatch)) in enumerate(STYLES.items()):
        for i, split in enumerate(TESTS):
            found = [r for r in records if (r["contender"], r["split"]) == (contender, split)]
            if not found:  # training diverged
                continue
            share, error, _ = accuracy(found)
            at = i + (k - 1.5) * WIDTH
            style = {"facecolor": (colour, 0.35), "edgecolor": colour, "hatch": hatch}
            bars = {"yerr": None if error is None else 100 * error, "capsize": 3, "ecolor": INK}
            label = contender if i == 0 else None
            axis.bar(at, 100 * share, WIDTH * 0.92, label=label, **style, **bars)
            top = 100 * (share + (error or 0.0)) + 1.5
            axis.text(at, top, f"{100 * share:.0f}", ha="center", fontsize="small")
    n = {len(results["questions"][split]) for split in TESTS}
    axis.set_xticks(range(len(TESTS)), TESTS)
    axis.set(ylim=(0, 112), ylabel="right answers [%]")
    axis.set_yticks(range(0, 101, 20))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.0))
    axis.set_title(f"Text-to-SQL: execution accuracy and its standard error (n = {min(n)})")
