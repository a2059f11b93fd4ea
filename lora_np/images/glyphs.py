"""Letters as images: A to Z from the fonts that matplotlib ships, no two images alike.

An image (size, size) holds -1 for paper and +1 for ink. Each glyph is drawn once, as a master with
OVER times the resolution, and averaged over windows of 1.5 pixels of the image. An image is a small
random affine map of the master: pixel p shows what the master holds at A p + b, by bilinear
interpolation. The map changes size, width, slant, rotation and position a little.

The styles regular, bold and italic are fonts. An outline is a rim around the regular glyph, where
a pixel depends on its neighbourhood alone. An inverted image is minus the regular image.

An image is made from the master and the generator's draws by sums, products and quotients alone,
entry by entry, without sines and matrix products, whose last bits depend on the processor.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import lcm
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_np.methods.table import hint

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FAMILIES = ("sans", "serif", "mono")
STYLES = ("regular", "bold", "italic", "outline", "inverted")
NO_LETTER, NO_FAMILY = len(LETTERS), len(FAMILIES)  # the words of a prompt that names none

FILES = {  # by family, what follows in the file's name for regular, bold and italic
    "sans": ("DejaVuSans", "", "-Bold", "-Oblique"),
    "serif": ("DejaVuSerif", "", "-Bold", "-Italic"),
    "mono": ("DejaVuSansMono", "", "-Bold", "-Oblique"),
}
OVER = 4  # pixels of a master along a pixel of an image
WINDOW = 6  # pixels of a master that are averaged along each axis: edges become smooth
SMALLEST = 8  # pixels along an image
CAP_HEIGHT, WIDEST, BASELINE = 0.64, 0.80, 0.80  # shares of the size; the last one from the top
CAP_OF_EM = 0.729  # height of a capital in these fonts, over the size of the font
RIM = 0.08  # width of an outline, as a share of the size
SIZE, WIDTH, SLANT, TURN, SHIFT = 0.08, 0.05, 0.05, 0.026, 0.035  # largest change, both ways
BLOCK = 4096  # images drawn at once


class Letters(NamedTuple):
    """Images and the words that describe them."""

    images: np.ndarray  # (n, size, size) float32, -1 paper, +1 ink
    words: np.ndarray  # (n, 2) int64, the letter's and the family's index


def letters(
    rng: np.random.Generator,
    n: int,
    style: str = "regular",
    size: int = 16,
    *,
    of: str = LETTERS,
    families: Sequence[str] = FAMILIES,
) -> Letters:
    """Draw images of letters, evenly spread over letters and families, in random order.

    Parameters
    ----------
    rng : numpy.random.Generator
        Everything random comes from it.
    n : int
        Number of images. Two letters differ in their counts by at most one, and so do two families.
    style : {"regular", "bold", "italic", "outline", "inverted"}
    size : int
        Pixels along an image.
    of : str
        The letters to draw.
    families : sequence of {"sans", "serif", "mono"}

    Returns
    -------
    Letters

    Raises
    ------
    ValueError
        If a style, family or letter is unknown, or n or size is too small.
    FileNotFoundError
        If no font is found. If some are, a warning names each missing one.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.glyphs import letters, prompt_of
    >>> drawn = letters(np.random.default_rng(0), 4, of="LORA", families=["serif"])
    >>> drawn.images.shape, drawn.images.dtype
    ((4, 16, 16), dtype('float32'))
    >>> sorted(prompt_of(*words) for words in drawn.words.tolist())
    ['serif A', 'serif L', 'serif O', 'serif R']
    """
    if n < 1 or size < SMALLEST:
        raise ValueError(f"n = {n} and size = {size}, expected at least 1 and {SMALLEST} pixels")
    _expect_known("style", style, STYLES)
    chosen = np.array([_letter(letter) for letter in _some("of", of)])
    masters = _masters_by_family(_some("families", families), style, size)
    words = _spread_evenly(rng, n, chosen, np.array(list(masters)))  # (n, 2)
    images = _images(masters, words, _maps(rng, n), size)
    return Letters(-images if style == "inverted" else images, words)


def check_images(images: np.ndarray, size: int | None = None) -> np.ndarray:
    """Return `images` as float32; raise ValueError if they are not images.

    Parameters
    ----------
    images : ndarray, shape (n, size, size)
        Every entry lies in [-1, 1].
    size : int, optional
        The expected size; by default any.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.glyphs import check_images
    >>> try:
    ...     check_images(np.full((2, 16, 16), 255.0))
    ... except ValueError as error:
    ...     print(error)
    images reach from 255 to 255, expected -1 (paper) to 1 (ink)
    """
    side = "size" if size is None else size
    images = np.asarray(images)
    shape = images.shape
    if len(shape) != 3 or shape[1] != shape[2] or size not in (None, shape[1]) or not shape[0]:
        raise ValueError(f"images have shape {shape}, expected (n, {side}, {side}) with n > 0")
    if images.dtype.kind not in "fiu":
        raise ValueError(f"images have dtype {images.dtype}, expected real numbers")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1.0 and high <= 1.0):  # nan too
        reach = "hold nan" if low != low or high != high else f"reach from {low:.4g} to {high:.4g}"
        raise ValueError(f"images {reach}, expected -1 (paper) to 1 (ink)")
    return images.astype(np.float32, copy=False)


# -------------------------------------------------------------------------------- prompts


def words_of(prompt: str) -> tuple[int, int]:
    """Return the indices of the letter and the family that a prompt names.

    Parameters
    ----------
    prompt : str
        A letter, a family, both or neither, such as "serif R", "R", "mono" or "".

    Returns
    -------
    (int, int)
        NO_LETTER and NO_FAMILY stand for what the prompt does not name.

    Raises
    ------
    ValueError
        If a word is unknown, with the nearest known word, or there are two of a kind.

    Examples
    --------
    >>> from lora_np.images.glyphs import words_of
    >>> words_of("serif R"), words_of("mono"), words_of("")
    ((17, 1), (26, 2), (26, 3))
    """
    letter, family = NO_LETTER, NO_FAMILY
    for word in prompt.split():
        if (len(word) == 1 and letter != NO_LETTER) or (word in FAMILIES and family != NO_FAMILY):
            raise ValueError(f"prompt {prompt!r} names two of a kind: give one letter, one family")
        if len(word) == 1:
            letter = _letter(word)
        elif word in STYLES:
            raise ValueError(f"{word!r} is a style: a style is an adapter, not a word of a prompt")
        else:
            _expect_known("word", word, FAMILIES)
            family = FAMILIES.index(word)
    return letter, family


def prompt_of(letter: int, family: int) -> str:
    """Return the prompt that names a letter and a family by their indices.

    Examples
    --------
    >>> from lora_np.images.glyphs import NO_FAMILY, NO_LETTER, prompt_of
    >>> prompt_of(17, 1), prompt_of(17, NO_FAMILY), prompt_of(NO_LETTER, NO_FAMILY)
    ('serif R', 'R', '')
    """
    if not (0 <= letter <= NO_LETTER and 0 <= family <= NO_FAMILY):
        raise ValueError(
            f"letter {letter} and family {family}, expected 0 to {NO_LETTER} and 0 to {NO_FAMILY}"
        )
    return f"{(*FAMILIES, '')[family]} {(*LETTERS, '')[letter]}".strip()


def _letter(letter: str) -> int:
    """Return the index of a letter; raise ValueError, which suggests it without its accents."""
    if letter in LETTERS:
        return LETTERS.index(letter)
    near = unicodedata.normalize("NFKD", letter)[0].upper()  # a to A, and Ä to A
    way_out = f"did you mean {near}?" if near in LETTERS else "expected one of A to Z"
    raise ValueError(f"letter {letter!r} is unknown: {way_out}")


def _expect_known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"{kind} {name!r} is unknown: {hint(name, names)}")


def _some(name: str, items: Sequence[str]) -> Sequence[str]:
    if not items or len(set(items)) < len(items):
        raise ValueError(f"{name} = {items!r}, expected one or more, each of them once")
    return items


# -------------------------------------------------------------------------------- masters


def _masters_by_family(families: Iterable[str], style: str, size: int) -> dict[int, np.ndarray]:
    """Return the masters (26, m, m) of every family whose font is found."""
    found = {}
    for family in families:
        _expect_known("family", family, FAMILIES)
        masters = _masters(family, style, size, _folder())
        if masters is not None:
            found[FAMILIES.index(family)] = masters
    if not found:
        raise FileNotFoundError(
            f"{_folder()} holds no font of {', '.join(families)}: install matplotlib again"
        )
    return found


def _folder() -> Path:
    """Return the folder of matplotlib's fonts."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=64)
def _masters(family: str, style: str, size: int, folder: Path) -> np.ndarray | None:
    """Return the averaged masters (26, m, m), paper -1; None, with a warning, without a font."""
    stem, *ends = FILES[family]
    path = folder / f"{stem}{ends[STYLES.index(style) if style in STYLES[:3] else 0]}.ttf"
    if not path.is_file():
        warnings.warn(
            f"the font {path} is missing: no {style} {family} letters are drawn",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    ink = _drawn(path, OVER * size)  # (26, m, m) in [0, 1]
    if style == "outline":
        ink = _widened(ink, RIM * OVER * size) - ink
    return 2.0 * _averaged(ink) - 1.0


def _drawn(path: Path, m: int) -> np.ndarray:
    """Return the ink (26, m, m) of the letters of one font, each centred along x."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    figure = Figure(figsize=(len(LETTERS), 1), dpi=m, facecolor="white")
    canvas, font = FigureCanvasAgg(figure), FontProperties(fname=path)
    for i, letter in enumerate(LETTERS):
        outline = TextPath((0, 0), letter, size=m * CAP_HEIGHT / CAP_OF_EM, prop=font)
        box = outline.get_extents()
        narrowed = min(1.0, m * WIDEST / box.width)  # a wide W is condensed
        centre = narrowed * (box.x0 + box.x1) / 2.0
        place = Affine2D().scale(narrowed, 1.0).translate(m * (i + 0.5) - centre, m - m * BASELINE)
        patch = PathPatch(outline, transform=place, facecolor="black", linewidth=0.0)
        patch.set_snap(False)  # edges stay between pixels
        figure.add_artist(patch)
    canvas.draw()
    grey = np.asarray(canvas.buffer_rgba())[..., 0]  # (m, 26 m)
    return (1.0 - grey / 255.0).astype(np.float32).reshape(m, -1, m).swapaxes(0, 1)


def _widened(ink: np.ndarray, radius: float) -> np.ndarray:
    """Return the largest ink within `radius` of every pixel."""
    r, (_, m, _) = int(radius), ink.shape
    padded = np.pad(ink, ((0, 0), (r, r), (r, r)))
    widest = ink
    for i in range(-r, r + 1):
        for j in range(-r, r + 1):
            if i * i + j * j <= radius * radius:
                widest = np.maximum(widest, padded[:, r + i : r + i + m, r + j : r + j + m])
    return widest


def _averaged(ink: np.ndarray) -> np.ndarray:
    """Return the mean over windows of the ink (26, m, m), with a margin of paper around it.

    Entry (i, j) of the result is the mean of the window that ends at pixel (i, j).
    """
    margin = WINDOW - 1
    for axis in (1, 2):
        pads = [(0, 0)] * 3
        pads[axis] = (margin, margin)
        padded, length = np.pad(ink, pads), ink.shape[axis] + margin
        windows = [np.take(padded, range(i, i + length), axis) for i in range(WINDOW)]
        ink = sum(windows[1:], windows[0]) / np.float32(WINDOW)
    return ink


# ----------------------------------------------------------------------------------- maps


def _spread_evenly(
    rng: np.random.Generator, n: int, chosen: np.ndarray, families: np.ndarray
) -> np.ndarray:
    """Return n pairs (letter, family): all pairs come equally often, up to one."""
    chosen, families = rng.permutation(chosen), rng.permutation(families)
    i = np.arange(n)
    shift = i // lcm(len(chosen), len(families))  # after this many, the same pairs would come again
    words = np.stack([chosen[i % len(chosen)], families[(i + shift) % len(families)]], axis=1)
    return words[rng.permutation(n)]


def _maps(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw n maps from an image to its master, around the middle of both: [A | b], (n, 2, 3).

    A = R [[1 / width, slant], [0, 1]] / size with the rotation R. With t the tangent of half its
    angle, its cosine is (1 - t^2) / (1 + t^2) and its sine is 2 t / (1 + t^2).
    """
    change = 2.0 * rng.random((6, n)) - 1.0  # uniform in [-1, 1)
    size, width = 1.0 + SIZE * change[0], 1.0 + WIDTH * change[1]
    slant, t = SLANT * change[2], TURN * change[3]
    cos, sin = (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
    x_of_x, x_of_y = cos / width, cos * slant - sin
    y_of_x, y_of_y = sin / width, sin * slant + cos
    rows = [[x_of_x / size, x_of_y / size, SHIFT * change[4]]]
    rows.append([y_of_x / size, y_of_y / size, SHIFT * change[5]])
    return np.array(rows).transpose(2, 0, 1)


def _images(
    masters: dict[int, np.ndarray], words: np.ndarray, maps: np.ndarray, size: int
) -> np.ndarray:
    """Return the images (n, size, size) of the letters and families in `words` (n, 2)."""
    stack = np.concatenate(list(masters.values()))  # (families 26, m, m)
    first = {family: i * len(LETTERS) for i, family in enumerate(masters)}
    glyph = words[:, 0] + np.array([first[family] for family in words[:, 1].tolist()])
    images = np.empty((len(words), size, size), np.float32)
    for start in range(0, len(words), BLOCK):
        part = slice(start, start + BLOCK)
        images[part] = _mapped(stack, glyph[part], maps[part], size)
    return images


def _mapped(stack: np.ndarray, glyph: np.ndarray, maps: np.ndarray, size: int) -> np.ndarray:
    """Return the images (n, size, size) that `maps` (n, 2, 3) make of the masters of `glyph`."""
    m = stack.shape[-1]
    middle = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5  # of the pixels
    x, y = middle[None, None, :], middle[None, :, None]
    scale, centre = np.float32(OVER * size), np.float32((m - 1) / 2)
    A = maps.astype(np.float32)[..., None, None]  # (n, 2, 3, 1, 1)
    u = (A[:, 0, 0] * x + A[:, 0, 1] * y + A[:, 0, 2]) * scale + centre  # (n, size, size)
    v = (A[:, 1, 0] * x + A[:, 1, 1] * y + A[:, 1, 2]) * scale + centre
    u, v = np.clip(u, 0.0, m - 1.001), np.clip(v, 0.0, m - 1.001)  # beyond it there is paper
    left, top = u.astype(np.int64), v.astype(np.int64)
    u, v = u - left.astype(np.float32), v - top.astype(np.float32)  # in [0, 1)
    flat, first = stack.reshape(-1), (glyph[:, None, None] * m + top) * m + left
    upper = flat[first] * (1.0 - u) + flat[first + 1] * u
    lower = flat[first + m] * (1.0 - u) + flat[first + m + 1] * u
    return np.clip(upper * (1.0 - v) + lower * v, -1.0, 1.0)
