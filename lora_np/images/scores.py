"""What a judge says of a set of drawn images, beside real ones of the same prompts.

A letter that is read right says little: a blurred mean of all images of a letter is read right,
too. So distances to real images and the spread always stand beside it. A Fréchet distance depends
on the number of images; that between two sets of real images is its floor.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lora_np.images.distance import frechet, kernel_distance, nearest, spread
from lora_np.images.glyphs import LETTERS, STYLES, letters
from lora_np.images.judge import Judge

FLOORS = 4  # further sets of real images that the floor is a mean over
SURE = 0.9  # probability from which on the judge is sure


class Reference(NamedTuple):
    """Real images of a style, what the judge sees in them, and their prompts."""

    style: str
    words: np.ndarray  # (n, 2)
    features: np.ndarray  # (n, d)


def reference(judge: Judge, seed: int, n: int, style: str, of: str = LETTERS) -> Reference:
    """Draw `n` real images."""
    drawn = letters(np.random.default_rng(seed), n, style, judge.size, of=of)
    return Reference(style, drawn.words, judge.features(drawn.images))


def floor(judge: Judge, real: Reference, seed: int, of: str = LETTERS) -> dict[str, float]:
    """Return the mean scores of other sets of real images."""
    n = len(real.words)
    found = []
    for i in range(FLOORS):
        drawn = letters(np.random.default_rng(seed + 1 + i), n, real.style, judge.size, of=of)
        found.append(scored(judge, drawn.images, drawn.words, real))
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def scored(
    judge: Judge, images: np.ndarray, words: np.ndarray, real: Reference
) -> dict[str, float]:
    """Return the scores of drawn images (n, size, size) for the prompts `words` (n, 2).

    Returns
    -------
    dict
        ``fd`` and ``kid``, distances to the real images; ``letter``, ``family`` and ``style``, the
        shares that the judge reads as asked for; ``spread``, within a prompt.
    """
    features = judge.features(images)
    style = STYLES.index(real.style)
    return {
        "fd": frechet(features, real.features),
        "kid": kernel_distance(features, real.features),
        "letter": _right(judge.letters(images), words[:, 0]),
        "family": _right(judge.families(images), words[:, 1]),
        "style": _right(judge.styles(images), np.full(len(images), style)),
        "spread": spread(images, words),
    }


def sure(judge: Judge, images: np.ndarray) -> float:
    """Return the share of images in which the judge is sure of a letter, whichever it is."""
    return float((judge.letters(images).max(axis=1) >= SURE).mean())


def nearness(images: np.ndarray, fresh: np.ndarray, training: np.ndarray) -> dict[str, float]:
    """Return median distances to the nearest training image: of drawn images, and of fresh ones.

    A model that copies what it was trained on draws images nearer to it than fresh ones are.
    """
    return {
        "drawn": float(np.median(nearest(images, training)[0])),
        "fresh": float(np.median(nearest(fresh, training)[0])),
    }


def _right(probabilities: np.ndarray, asked: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == asked).mean())
