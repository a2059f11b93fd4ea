"""Images on a sheet: dark ink on white paper, in a PNG that says how they were drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lora_np.files import replacing
from lora_np.images.glyphs import check_images

SCALE = 6  # pixels of the sheet along a pixel of an image
MARGIN = 6  # pixels of white around every image


def sheet(images: np.ndarray, columns: int, scale: int = SCALE) -> np.ndarray:
    """Return images in rows of `columns` as one grey image, 0 for ink to 255 for paper.

    Parameters
    ----------
    images : ndarray, shape (n, size, size)
        The last row is filled up with paper.
    columns : int
    scale : int
        Each pixel becomes a square of `scale` x `scale`.

    Returns
    -------
    ndarray of uint8, shape (height, width)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.sheet import sheet
    >>> sheet(np.ones((3, 16, 16)), columns=2, scale=1).shape
    (50, 50)
    """
    images = check_images(images)
    if columns < 1 or scale < 1:
        raise ValueError(f"columns = {columns} and scale = {scale}, expected at least 1")
    grey = np.rint((1.0 - images) * 127.5).astype(np.uint8)  # (n, size, size)
    grey = grey.repeat(scale, axis=1).repeat(scale, axis=2)
    rows, side, gap = math.ceil(len(grey) / columns), grey.shape[1], MARGIN
    paper = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap), 255, np.uint8)
    for i, image in enumerate(grey):
        top, left = (gap + place * (side + gap) for place in divmod(i, columns))
        paper[top : top + side, left : left + side] = image
    return paper


def save_png(
    path: str | Path,
    images: np.ndarray,
    columns: int,
    about: Mapping[str, str],
    scale: int = SCALE,
) -> None:
    """Write images as a PNG with text in its metadata.

    Parameters
    ----------
    path : str or Path
    images, columns, scale
        As for :func:`~lora_np.images.sheet.sheet`.
    about : mapping of str to str
        The text chunks of the file, by keyword.
    """
    from matplotlib.image import imsave

    pixels = np.repeat(sheet(images, columns, scale)[..., None], 3, axis=2)  # (height, width, 3)
    with replacing(path) as temporary:
        imsave(temporary, pixels, format="png", metadata=dict(about))
