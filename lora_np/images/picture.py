"""The pictures of the report on images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lora_np import plots
from lora_np.images.adapters import adapted
from lora_np.images.claims import Results, chosen_pair, pair_text, rows_of, scores
from lora_np.images.folder import load_base
from lora_np.images.glyphs import FAMILIES, LETTERS, letters
from lora_np.images.plan import BASE, LCM, LCM_FULL, OUTLINE, REFINED, STYLE, STYLE_FULL, SUM
from lora_np.images.report import sum_ratios
from lora_np.images.samplers import SAMPLERS
from lora_np.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from lora_np.pretrained.find import record_of_adapter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS, WEIGHT, PAIRS, SHEET = (
    f"images_{name}.png" for name in ("steps", "weight", "pairs", "letters")
)
DASHES = {"seen": "-", "unseen": "--"}
REAL_SEED = 7  # of the real letters on the sheet


class Curve(NamedTuple):
    """A curve: its label, its look, and the model, sampler and weights whose FD it shows."""

    label: str
    colour: str
    marker: str
    model: str
    sampler: str
    weights: list[float] | None = None


def pictures(results: Results, out: Path) -> dict[str, Callable[[Path], Any]]:
    """Return the function that writes each picture, by the picture's name.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    out : Path
        The folder of the run, with its models.
    """
    return {
        STEPS: partial(plot_steps, results),
        WEIGHT: partial(plot_weight, results),
        PAIRS: partial(plot_pairs, results),
        SHEET: partial(plot_letters, results, out),
    }


# ---------------------------------------------------------------------------- quality against steps


def plot_steps(
    results: Results, path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw FD against the number of steps: of regular letters, and of styled ones.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw: two panels. By default, in a new figure.

    Returns
    -------
    list of Axes
    """
    s = results["settings"]
    regular = (
        Curve("base, consistency sampler (control)", GREY, "x", BASE, "consistency"),
        Curve("base, DDIM", BLUE, "o", BASE, "ddim"),
        Curve("base, DPM-Solver", GREEN, "s", BASE, "dpm_solver"),
        Curve("LCM, all weights", PURPLE, "v", LCM_FULL, "consistency"),
        Curve(f"LCM-LoRA, r = {s['r_lcm']}", ORANGE, "^", LCM, "consistency"),
    )
    with plots.drawing(path, ax, (11, 5.6), columns=2) as picture:
        left, right = picture.axes
        for curve in regular:
            _curve(left, results, "regular", "all", curve, "-")
        _floor(left, scores(results, "regular", "all", "real"), "-", "real images (floor)")
        _draw_styled(right, results)
        left.set_title("Regular letters")
        right.set_title(f"{s['style']['style'].capitalize()}, a style of LoRA r = {s['r']}")
        for axis in (left, right):
            _finish(axis, s["steps"])
        picture.title(f"Quality against steps{_over_seeds(s)}")
    return picture.axes


def _draw_styled(axis: Any, results: Results) -> None:
    """Draw FD of styled letters against the steps: of letters seen, and never shown."""
    pair = chosen_pair(results)
    alone = Curve("style, consistency sampler (control)", GREY, "x", STYLE, "consistency")
    styled = [alone, Curve("style, DDIM", BLUE, "o", STYLE, "ddim")]
    if pair is not None:
        both = f"style + LCM-LoRA {pair_text(pair)}"
        styled.append(Curve(both, ORANGE, "^", SUM, "consistency", list(pair)))
    for part, dashes in DASHES.items():
        for curve in styled:
            label = curve.label if part == "seen" else None
            _curve(axis, results, "styled", part, curve._replace(label=label or ""), dashes)
        label = "real images (floor)" if part == "seen" else None
        _floor(axis, scores(results, "styled", part, "real"), dashes, label)
    axis.plot([], [], "-", color=INK, label="letters seen")
    axis.plot([], [], "--", color=INK, label="letters never shown")


def _curve(axis: Any, results: Results, work: str, part: str, curve: Curve, dashes: str) -> None:
    """Draw the means of a curve, and bars from the lowest seed to the highest."""
    how = {"sampler": curve.sampler, "weights": curve.weights}
    tried = results["settings"]["steps"]
    found = {n: scores(results, work, part, curve.model, steps=n, **how) for n in tried}
    found = {n: fds for n, fds in found.items() if fds}
    style = {"color": curve.colour, "marker": curve.marker, "linestyle": dashes, "capsize": 3}
    _bars(axis, found, curve.label, style)


def _bars(
    axis: Any, found: Mapping[float, Sequence[float]], label: str, style: dict[str, Any]
) -> None:
    means = np.array([np.mean(values) for values in found.values()])
    ends = np.array([[min(values), max(values)] for values in found.values()]).reshape(-1, 2)
    down, up = means - ends[:, 0], ends[:, 1] - means
    error = np.maximum([down, up], 0.0)  # a mean of equal numbers may be rounded
    axis.errorbar(list(found), means, error, label=label or None, **style)


def _floor(axis: Any, fds: Sequence[float], dashes: str, label: str | None) -> None:
    if fds:
        axis.axhline(float(np.mean(fds)), color=GREY, linestyle=dashes, linewidth=1, label=label)


def _finish(axis: Any, steps: Sequence[int]) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(steps, [str(n) for n in steps])
    axis.minorticks_off()
    _plain_ticks(axis)
    axis.set(xlabel="steps of the sampler", ylabel="Fréchet distance (FD), logarithmic")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    plots.legend_below(axis, 2)


def _plain_ticks(axis: Any) -> None:
    """Label the vertical logarithmic axis at 1, 2 and 5 of every power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _over_seeds(settings: Mapping[str, Any]) -> str:
    n = settings["seeds"]
    return f": mean and range of {n} seeds" if n > 1 else ", one seed"


# --------------------------------------------------------------------------------------- weights


def plot_weight(
    results: Results, path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw FD and the share of images in the style against the weight of the style.

    Parameters
    ----------
    results, path, ax
        As for :func:`plot_steps`.

    Returns
    -------
    list of Axes
    """
    s = results["settings"]
    rows = rows_of(results, "weighed")
    weights = sorted({row["weight"] for row in rows if "weight" in row})
    looks = {"seen": (BLUE, "o", "letters seen"), "unseen": (ORANGE, "^", "letters never shown")}
    with plots.drawing(path, ax, (9.5, 4.2), columns=2) as picture:
        left, right = picture.axes
        for part, (colour, marker, label) in looks.items():
            style = {"color": colour, "marker": marker, "linestyle": DASHES[part], "capsize": 3}
            for axis, key in ((left, "fd"), (right, "style")):
                how = {"sampler": "ddim", "steps": 20}
                found = {
                    w: scores(results, "weighed", part, STYLE, key, weight=w, **how)
                    for w in weights
                }
                _bars(axis, found, label, style)
            _floor(left, scores(results, "weighed", part, "real"), DASHES[part], None)
        left.set_yscale("log")
        left.minorticks_off()
        _plain_ticks(left)
        left.set(ylabel="Fréchet distance (FD), logarithmic")
        read = f"share that the judge reads as {s['style']['style']}"
        right.set(ylim=(-0.03, 1.03), ylabel=read)
        for axis in (left, right):
            axis.set(xlabel="weight of the style")
            axis.set_xticks(weights)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        right.legend()
        picture.title(f"The weight of a style, DDIM in 20 steps{_over_seeds(s)}; grey: the floor")
    return picture.axes


def plot_pairs(
    results: Results, path: str | Path | None = None, *, ax: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draw, for every pair of weights, the FD of the sum over that of the style alone.

    A frame marks the chosen pair. The colours go from light, which is good, to dark.

    Parameters
    ----------
    results, path, ax
        As for :func:`plot_steps`.

    Returns
    -------
    list of Axes
    """
    titles = {"seen": "letters seen: FD / style's with DDIM-2",
              "unseen": "letters never shown: FD / style's with DDIM-50"}  # fmt: skip
    pair = chosen_pair(results)
    with plots.drawing(path, ax, (10, 4.6), columns=2) as picture:
        for axis, (part, (styles, lcms, cells)) in zip(picture.axes, sum_ratios(results).items()):
            _heat_map(axis, cells)
            axis.set_xticks(range(len(lcms)), [f"{weight:g}" for weight in lcms])
            axis.set_yticks(range(len(styles)), [f"{weight:g}" for weight in styles])
            axis.set(xlabel="weight of LCM-LoRA", ylabel="weight of the style")
            axis.set_title(titles[part], fontsize="medium")
            if pair is not None:
                _frame(axis, lcms.index(pair[1]), styles.index(pair[0]))
        picture.title("Style + LCM-LoRA, 2 steps, on the style that chooses; framed: the choice")
    return picture.axes


def _heat_map(axis: Any, cells: np.ndarray) -> None:
    """Show ratios by the colour of their logarithm, and as digits."""
    shown = np.log(np.maximum(cells, 1e-9))
    low, high = float(shown.min()), float(shown.max())
    how = {"vmin": low, "vmax": high, "aspect": "auto", "origin": "lower"}
    image = axis.imshow(shown, cmap="cividis_r", **how)
    plots.write_cells(axis, image, {at: f"{x:.2f}" for at, x in np.ndenumerate(cells)}, "medium")


def _frame(axis: Any, column: int, row: int) -> None:
    from matplotlib.patches import Rectangle

    frame = {"fill": False, "edgecolor": ORANGE, "linewidth": 3}
    axis.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, **frame))


# --------------------------------------------------------------------------------------- letters


def plot_letters(
    results: Results,
    out: Path,
    path: str | Path | None = None,
    *,
    ax: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw a sheet: a row of letters for each way to draw them, with the models of seed 0.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``, complete.
    out : Path
        The folder of the run, with its models.
    path : str or Path, optional
        The PNG to write.
    ax : sequence of Axes, optional
        Where to draw, one for each row of letters. By default, in a new figure.

    Returns
    -------
    list of Axes
    """
    rows = sheet_rows(results, out)
    size = rows[0][1].shape[1]
    with plots.drawing(path, ax, (10, 0.75 + 0.62 * len(rows)), len(rows)) as picture:
        for axis, (label, images) in zip(picture.axes, rows):
            strip = np.full((size, len(images) * (size + 2)), -1.0)  # paper between the letters
            for i, image in enumerate(images):
                strip[:, i * (size + 2) + 1 : i * (size + 2) + 1 + size] = image
            axis.imshow(strip, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
            axis.set_ylabel(label, rotation=0, ha="right", va="center")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        picture.title("Seed 0, the first noise that comes: nothing is picked")
    return picture.axes


def sheet_rows(results: Results, out: Path) -> list[tuple[str, np.ndarray]]:
    """Return the labels and images of the sheet's rows."""
    style, of = (results["settings"]["style"][name] for name in ("style", "of"))
    seen = _words(of)
    unseen = _words("".join(letter for letter in LETTERS if letter not in of))
    models, base = out / "models", load_base(out / "models" / f"{BASE}-0")
    l1, l2 = chosen_pair(results) or (1.0, 1.0)

    def drawn(words: np.ndarray, sampler: str, steps: int, weights: dict[str, float]) -> np.ndarray:
        folders = [models / f"{what}-0" for what in weights]
        model = adapted(base, folders, list(weights.values()))
        z = SAMPLERS[sampler](model, words, steps=steps, rng=np.random.default_rng(0))
        return base.codec.decode(z)

    def student(steps: int, **weights: float) -> np.ndarray:
        return drawn(unseen, "consistency", steps, weights)

    size, both = base.codec.size, f"{style} + LCM-LoRA {pair_text((l1, l2))}"
    return [
        ("real", real(unseen, "regular", size)),
        ("base, DDIM, 50 steps", drawn(unseen, "ddim", 50, {})),
        ("base, DDIM, 1 step", drawn(unseen, "ddim", 1, {})),
        ("LCM-LoRA, 1 step", student(1, lcm=1.0)),
        ("LCM-LoRA, 2 steps", student(2, lcm=1.0)),
        ("LCM-LoRA, 4 steps", student(4, lcm=1.0)),
        (f"{style}, real", real(unseen, style, size)),
        (f"{style}, letters never shown", drawn(unseen, "ddim", 20, {STYLE: 1.0})),
        ("the same, all weights", drawn(unseen, "ddim", 20, {STYLE_FULL: 1.0})),
        (f"{both}, 2 steps", student(2, style=l1, lcm=l2)),
        ("the same without LCM-LoRA", student(2, style=l1)),
        (f"{style}, letters seen", drawn(seen, "ddim", 20, {STYLE: 1.0})),
        *_outlines(models, unseen, size),
    ]


def _words(of: str) -> np.ndarray:
    """Return a prompt (letter, family) for each letter; the families take turns."""
    return np.array([[LETTERS.index(x), i % len(FAMILIES)] for i, x in enumerate(of)])


def real(words: np.ndarray, style: str, size: int) -> np.ndarray:
    """Return a real image (size, size) of each prompt (n, 2)."""
    n = len(LETTERS) * len(FAMILIES)
    drawn = letters(np.random.default_rng(REAL_SEED), n, style, size)  # one of each prompt
    return np.stack([drawn.images[(drawn.words == prompt).all(axis=1)][0] for prompt in words])


def _outlines(models: Path, words: np.ndarray, size: int) -> list[tuple[str, np.ndarray]]:
    """Return a row of real outlines, and one for each model; its record names its base."""
    rows = [("outline, real", real(words, "outline", size))]
    for what, label in ((OUTLINE, "outline, MLP"), (REFINED, "outline, refiner")):
        folder = models / f"{what}-0"
        base = load_base(models / record_of_adapter(folder)["base"]["name"])
        model, rng = adapted(base, [folder], [1.0]), np.random.default_rng(0)
        z = SAMPLERS["ddim"](model, words, steps=20, rng=rng)
        rows.append((f"{label}, letters never shown", base.codec.decode(z)))
    return rows
