"""The judge: a small convolutional net that reads letter, family and style from an image.

Three convolutions, the first two of stride 2, make features h of unit variance; one product
W h + b gives the logits of three heads: 26 letters, 3 families, 5 styles. The loss is the sum of
the heads' cross-entropies::

    image (16, 16) -> (8, 8, 16) -> (4, 4, 32) -> h (128,) -> (26 + 3 + 5,)

:mod:`lora_np.images.distance` compares sets of images by their features. Such a distance depends on
the judge, so all sets that are compared must have the same judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array
from lora_np.crew import one_blas_thread
from lora_np.files import CheckpointError, load_arrays, save_arrays
from lora_np.images.glyphs import FAMILIES, LETTERS, SMALLEST, STYLES, check_images, letters
from lora_np.layers import Chain, Conv2d, Gelu, Layer, LayerNorm, Linear, Rng
from lora_np.ops import cross_entropy_backward, cross_entropy_forward
from lora_np.parameters import Grads
from lora_np.train import fill, fit

HEADS = (len(LETTERS), len(FAMILIES), len(STYLES))
NOISE = 0.3  # on the training images, so that the judge does not rely on details nobody sees
BLOCK = 1024  # images judged at once


class LossCache(NamedTuple):
    """What backward reads after a loss."""

    logits: Any  # forward's
    heads: list[Any]  # the cross-entropies'


class Judge(Layer):
    """A convolutional net with a head for the letter, one for the family and one for the style.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the weights.
    size : int
        Pixels along an image.
    channels : (int, int)
        Of the first two convolutions.
    d : int
        Number of features.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.judge import Judge
    >>> judge = Judge(np.random.default_rng(0))
    >>> paper = -np.ones((3, 16, 16), np.float32)
    >>> judge.features(paper).shape, judge.letters(paper).shape, judge.styles(paper).shape
    ((3, 128), (3, 26), (3, 5))
    """

    def __init__(
        self,
        rng: np.random.Generator,
        size: int = 16,
        channels: tuple[int, int] = (16, 32),
        d: int = 128,
    ) -> None:
        c1, c2 = channels
        self.size = size
        quarter = -(-size // 4)  # each convolution of stride 2 halves the sides
        self.body = Chain(
            Conv2d(1, c1, 3, rng, stride=2, padding=1),
            Gelu(),
            Conv2d(c1, c2, 3, rng, stride=2, padding=1),
            Gelu(),
            Conv2d(c2, d, quarter, rng),  # one position is left
            Gelu(),
            LayerNorm(d),
        )
        self.head = Linear(d, sum(HEADS), rng, std=d**-0.5)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return the logits (n, 34) of images (n, size, size), and the cache."""
        h, of_body = self.body.forward(x[..., None], rng)  # (n, 1, 1, d)
        y, of_head = self.head.forward(h[:, 0, 0], rng)
        return y, (of_body, of_head)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients to `grads`; return dx, or None with a cache of the loss.

        Parameters
        ----------
        dy : array
            dL/dlogits (n, 34) with forward's cache; dL/dloss, usually 1.0, with the loss's.
        cache : tuple or LossCache
        grads : Grads
        need_dx : bool
        """
        if isinstance(cache, LossCache):
            parts: list[Any] = [cross_entropy_backward(dy, head)[0] for head in cache.heads]
            dy, cache, need_dx = np.concatenate(parts, axis=1), cache.logits, False
        of_body, of_head = cache
        dh = self.head.backward(dy, of_head, grads)  # (n, d)
        if dh is None:
            return None
        dx = self.body.backward(dh[:, None, None], of_body, grads, need_dx)
        return None if dx is None else dx[..., 0]

    def loss(
        self, x: Array, targets: Array, rng: Rng = None, count: int | None = None
    ) -> tuple[Array, LossCache]:
        """Return the sum of the heads' mean cross-entropies, in nats, and the cache.

        Parameters
        ----------
        x : array, shape (n, size, size)
        targets : integer array, shape (n, 3)
            The indices of letter, family and style.
        count : int, optional
            What the sums are divided by; by default n.
        """
        logits, cache = self.forward(x, rng)
        parts = zip(_by_head(logits), targets.T)
        losses, heads = zip(*(cross_entropy_forward(u, t, count=count) for u, t in parts))
        return np.sum(losses), LossCache(cache, list(heads))

    def number(self, batch: Sequence[Array]) -> int:
        """Return the number of images in a batch, the arguments of loss."""
        return len(batch[0])

    # ---------------------------------------------------------------------- what the judge says

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features (n, d), float32, of images (n, size, size)."""
        images = check_images(images, self.size)[..., None]
        starts = range(0, len(images), BLOCK)
        parts = [self.body.forward(images[i : i + BLOCK])[0] for i in starts]
        return np.concatenate(parts)[:, 0, 0]

    def letters(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the letters, (n, 26)."""
        return self._probabilities(images)[0]

    def families(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the families, (n, 3)."""
        return self._probabilities(images)[1]

    def styles(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the styles, (n, 5)."""
        return self._probabilities(images)[2]

    def _probabilities(self, images: np.ndarray) -> list[np.ndarray]:
        logits, _ = self.head.forward(self.features(images))
        e = [np.exp(u - u.max(axis=1, keepdims=True)) for u in _by_head(logits)]
        return [part / part.sum(axis=1, keepdims=True) for part in e]


def _by_head(logits: Array) -> list[Array]:
    """Cut the logits (n, 34) into those of the letters, the families and the styles."""
    return np.split(logits, [HEADS[0], HEADS[0] + HEADS[1]], axis=1)


# ------------------------------------------------------------------------------- training


def examples(rng: np.random.Generator, n: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Draw `n` images of every style, with their letters, families and styles.

    Returns
    -------
    images : ndarray, shape (5 n, size, size)
    targets : ndarray of int, shape (5 n, 3)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.judge import examples
    >>> images, targets = examples(np.random.default_rng(0), 78)
    >>> images.shape, targets.max(axis=0).tolist()
    ((390, 16, 16), [25, 2, 4])
    """
    drawn = [letters(rng, n, style, size) for style in STYLES]
    styles = np.repeat(np.arange(len(STYLES)), n)
    words = np.concatenate([of.words for of in drawn])
    return np.concatenate([of.images for of in drawn]), np.column_stack([words, styles])


def train_judge(
    rng: np.random.Generator,
    *,
    size: int = 16,
    n: int = 12_000,
    steps: int = 2000,
    batch: int = 128,
    lr: float = 5e-3,
) -> Judge:
    """Train a judge on letters of all styles.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the weights, the images and the batches.
    size : int
        Pixels along an image.
    n : int
        Number of training images of each style.
    steps, batch, lr : int, int, float
        Of the training.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.judge import train_judge
    >>> judge = train_judge(np.random.default_rng(0), n=78, steps=2)
    >>> judge.letters(-np.ones((1, 16, 16))).sum().round(4).item()
    1.0
    """
    judge = Judge(rng, size)
    images, targets = examples(rng, n, size)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        rows = rng.integers(0, len(images), batch)
        noise = rng.standard_normal((batch, size, size), np.float32)
        return images[rows] + NOISE * noise, targets[rows]

    with one_blas_thread():
        fit(judge, sample, steps=steps, lr=lr, warmup=min(50, steps), options={"weight_decay": 0.1})
    return judge


# ---------------------------------------------------------------------------------- files


def save_judge(path: str | Path, judge: Judge) -> None:
    """Write a judge to an ``.npz`` file.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.images.judge import Judge, load_judge, save_judge
    >>> judge, paper = Judge(np.random.default_rng(0)), -np.ones((1, 16, 16))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_judge(f"{folder}/judge.npz", judge)
    ...     again = load_judge(f"{folder}/judge.npz")
    >>> np.array_equal(again.features(paper), judge.features(paper))
    True
    """
    arrays = {name: p.value for name, p in judge.parameters().items()}
    save_arrays(path, {"size": np.array(judge.size), **arrays})


def load_judge(path: str | Path) -> Judge:
    """Read a judge from a file of :func:`save_judge`.

    Raises
    ------
    CheckpointError
        If the file cannot be read or does not hold a judge.
    """
    arrays = load_arrays(path)
    size = arrays.pop("size", np.array(0))
    if size.shape != () or size.dtype.kind != "i" or not SMALLEST <= size <= 1024:
        raise CheckpointError(f"{path} is not a judge: it lacks the size of its images")
    judge = Judge(np.random.default_rng(0), int(size))
    fill(judge, arrays, str(path))
    return judge
