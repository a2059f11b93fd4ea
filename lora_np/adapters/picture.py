"""Draw an analysis: the rank of every module by layer and kind, and the spectra beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_np import plots
from lora_np.adapters.ranks import Analysis
from lora_np.plots import LOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST = 60.0  # inches, of either side of a picture
LETTER, CELL, SPECTRA = 0.09, 0.5, 5.6  # inches wide: a letter, a cell, the panel of the spectra
LOWEST = 1e-3  # of the largest singular value: below it there is no energy to see
IN_MODEL_ORDER = (  # what the names of a block's modules hold, in the order of their work
    *("emb", "wte", "qkv|query_key_value|c_attn", r"\bq|_q(_|$)|query", r"\bk|_k(_|$)|key"),
    *(r"\bv|_v(_|$)|value", r"\bo(_|$)|_o(_|$)|out_proj|to_out|attn.c_proj|dense$", "gate|w1"),
    *("up|w3|fc1|c_fc|fc_in|h_to_4h", "down|w2|fc2|c_proj|fc_out|4h_to_h", "head"),
)


def plot_rank_map(
    analysis: Analysis, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw a map of the ranks that keep 99 % of the energy, with the spectra beside it.

    The map has a row for each layer and a column for each kind, in the order of their work. Its
    colours go from 0 to the adapter's own r; for a change without factors, to the largest rank. The
    spectra (see :func:`plot_spectra`) are left out where `ax` is given.

    Parameters
    ----------
    analysis : Analysis
    path : str or Path, optional
        The PNG to write.
    ax : Axes, optional
        Where to draw the map. By default, in a new figure.

    Returns
    -------
    Axes
        The map.

    Raises
    ------
    ValueError
        If no module was analysed.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.adapters.picture import plot_rank_map
    >>> from lora_np.adapters.ranks import Analysis, ModuleRanks
    >>> from lora_np.plots import figure
    >>> from lora_np.rank import spectrum
    >>> found = spectrum((np.eye(6, 4), np.eye(4)))
    >>> module = ModuleRanks.of_spectrum("h.0.q_proj", found, r=4)
    >>> axis = plot_rank_map(Analysis({}, [module]), ax=figure(4, 3).subplots())
    >>> [text.get_text() for text in axis.texts]
    ['4']
    """
    _require_modules(analysis)
    layers, kinds = layers_of(analysis), kinds_of(analysis)
    under, beside = (LETTER * max(map(len, map(_label, names))) for names in (kinds, layers))
    width = 2.2 + beside + max(CELL * len(kinds), 2.4)
    height = max(1.3 + under + 0.3 * max(len(layers), 7), 0.8 + 0.21 * len(kinds))
    legend = LETTER * max(0, *(len(_label(kind)) - len("down_proj") for kind in kinds))
    size = min(width + SPECTRA + legend, LARGEST), min(height, LARGEST)
    how = {"columns": 2, "width_ratios": (width, SPECTRA + legend)} if ax is None else {}
    with plots.drawing(path, ax, size, **how) as picture:
        _draw_map(picture.axes[0], analysis, layers, kinds)
        if picture.own:
            _draw_spectra(picture.axes[1], analysis)
            if height > SPECTRA:  # beside a map of many layers: at the top, not drawn out
                picture.axes[1].set(box_aspect=1, anchor="N")
    return picture.axes[0]


def plot_spectra(
    analysis: Analysis, path: str | Path | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the singular values of all modules over their largest: by kind, medians over layers.

    Parameters
    ----------
    analysis : Analysis
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
        If no module was analysed.
    """
    _require_modules(analysis)
    with plots.drawing(path, ax, (5.6, 4.4)) as picture:
        _draw_spectra(picture.axes[0], analysis)
    return picture.axes[0]


def _require_modules(analysis: Analysis) -> None:
    if not analysis.modules:
        raise ValueError("there is no module to draw: the analysis found no change of a matrix")


def layers_of(analysis: Analysis) -> list[str]:
    """Return the layers, as the modules are sorted.

    Parameters
    ----------
    analysis : Analysis
    """
    return list(dict.fromkeys(layer for layer, _ in analysis.places))


def kinds_of(analysis: Analysis) -> list[str]:
    """Return the kinds of modules in the order of their work in a block: q, k, v, o, MLP.

    Kinds whose work the name does not say come last, sorted as the modules are.

    Parameters
    ----------
    analysis : Analysis

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.adapters.picture import kinds_of
    >>> from lora_np.adapters.ranks import Analysis, ModuleRanks
    >>> from lora_np.rank import spectrum
    >>> names = "down_proj", "k_proj", "o_proj", "q_proj", "up_proj"
    >>> found = spectrum(np.eye(2))
    >>> kinds_of(Analysis({}, [ModuleRanks.of_spectrum(f"h.0.{n}", found) for n in names]))
    ['q_proj', 'k_proj', 'o_proj', 'up_proj', 'down_proj']
    """

    def work(kind: str) -> int:
        found = [i for i, part in enumerate(IN_MODEL_ORDER) if re.search(part, kind)]
        return found[0] if found else len(IN_MODEL_ORDER)

    return sorted(dict.fromkeys(kind for _, kind in analysis.places), key=work)


def _draw_map(axis: Any, analysis: Analysis, layers: Sequence[str], kinds: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    grid = np.full((len(layers), len(kinds)), np.nan)  # nan: no such module, or rank unknown
    marks = {}
    for (layer, kind), module in zip(analysis.places, analysis.modules):
        at = layers.index(layer), kinds.index(kind)
        rank = module.energy_ranks[0.99]
        grid[at] = np.nan if rank is None else rank
        marks[at] = f">{len(module.singular_values)}" if rank is None else str(rank)
    own = [module.r for module in analysis.modules if module.r is not None]
    top = max(own) if own else max(float(np.max(grid, initial=1, where=np.isfinite(grid))), 1)
    image = axis.imshow(grid, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    plots.write_cells(axis, image, marks, "medium")
    plain = {"parse_math": False}  # a name may hold dollar signs
    columns, rows = ([_label(name) for name in names] for names in (kinds, layers))
    short = LETTER * max(map(len, columns)) < max(CELL, 2.4 / len(kinds))
    axis.set_xticks(range(len(kinds)), columns, rotation=0 if short else 90, **plain)
    axis.set_yticks(range(len(layers)), [row or "-" for row in rows], **plain)
    axis.set(xlabel="module", ylabel="layer")
    axis.set_title("Rank that keeps 99 % of the change's energy", fontsize="medium")
    own_r = f" (the adapter has r {'up to' if len(set(own)) > 1 else '='} {top})" if own else ""
    bar = {"label": f"rank{own_r}", "ticks": MaxNLocator(integer=True), "anchor": (0.0, 1.0)}
    axis.figure.colorbar(image, ax=axis, **bar)


def _draw_spectra(axis: Any, analysis: Analysis) -> None:
    sigmas: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds_of(analysis)}
    for (_, kind), module in zip(analysis.places, analysis.modules):
        sigma = np.asarray(module.singular_values, dtype=float)
        if sigma.size and sigma[0] > 0:  # a change of zero has no spectrum
            sigmas[kind].append(sigma / sigma[0])
    longest = max((len(sigma) for found in sigmas.values() for sigma in found), default=1)
    i, lowest = np.arange(1, longest + 1), 1.0
    for n, (kind, found) in enumerate((k, f) for k, f in sigmas.items() if f):
        whole = np.zeros((len(found), longest))  # a shorter spectrum goes on with zeros
        for row, sigma in zip(whole, found):
            row[: len(sigma)] = sigma
        median = np.median(whole, axis=0)
        median[median < LOWEST / 10] = np.nan  # zero has no logarithm
        lowest = min(lowest, float(np.nanmin(median)))
        colour, marker, dash = LOOKS[n % len(LOOKS)]
        look = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4}
        axis.plot(i, median, label=_label(kind), markevery=max(1, longest // 16), **look)
    plots.count_from_one(axis, longest)
    bottom = max(LOWEST, 0.6 * lowest)
    axis.set(yscale="log", ylim=(bottom, 1.3), xlabel="index i", ylabel=r"$\sigma_i / \sigma_1$")
    several = len(layers_of(analysis)) > 1
    axis.set_title("Spectra" + ", medians over the layers" * several, fontsize="medium")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        legend = axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
        for text in legend.get_texts():
            text.set_parse_math(False)


def _label(name: str) -> str:
    """Return a name in ASCII, shortened to at most 60 characters."""
    text = name.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"
