"""How good are drawn images? Distances of features, the spread, and the nearest training image.

Fréchet distance (FD). A Gaussian is fitted to each set of features, with means m, m' and
covariances C, C'. The squared distance of the two, Fréchet's or Wasserstein's, is::

    |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)

FD depends on the number of images: two sets from one distribution also have a distance above zero,
the floor. So FD is read beside the floor for the same numbers of images. Sets that are balanced
over letters are more alike than independent images, and their floor is lower.

Kernel distance (KID). The squared difference of the means of the two sets in the space of a kernel,
here k(x, y) = (x . y / d + 1)^3. The sums leave out the pairs of an image with itself. That makes
KID unbiased: if the distributions are equal, its mean over many draws is zero for any sizes::

    mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j)

This holds for independent images; for balanced sets the mean is a little below zero.

Spread. A model that draws one image for each prompt may have perfect letters. The spread is the
root of the mean variance of the pixels over the images of one prompt, averaged over the prompts.

Sources: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter (2017), arXiv:1706.08500; Binkowski,
Sutherland, Arbel and Gretton (2018), arXiv:1801.01401.
"""

from __future__ import annotations

import numpy as np

from lora_np.images.glyphs import check_images, prompt_of

BLOCK = 1024  # rows of the matrices of pairs that are held at once


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Fréchet distance of the Gaussians fitted to two sets of features.

    Parameters
    ----------
    a, b : ndarray, shapes (n, d) and (m, d)
        At least two rows each; with fewer than d + 1 rows a covariance is singular.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.distance import frechet
    >>> x = np.random.default_rng(0).standard_normal((1000, 4))
    >>> abs(frechet(x, x)) < 1e-9, round(frechet(x, x + 0.5), 6)  # 4 x 0.5^2
    (True, 1.0)
    """
    a, b = _features(a, b)
    between = a.mean(axis=0) - b.mean(axis=0)
    C, D = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (a, b))  # (d, d)
    root = _root(C)
    product = root @ D @ root  # symmetric, with the eigenvalues of C D
    cross = np.trace(_root((product + product.T) / 2.0))
    return float(between @ between + np.trace(C) + np.trace(D) - 2.0 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased squared distance of two sets of features under the cubic kernel.

    Parameters
    ----------
    a, b : ndarray, shapes (n, d) and (m, d)
        At least two rows each.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.distance import kernel_distance
    >>> a, b = np.random.default_rng(0).standard_normal((2, 1000, 4))
    >>> abs(kernel_distance(a, b)) < 0.05 < kernel_distance(a, b + 0.5)
    True
    """
    a, b = _features(a, b)
    n, m = len(a), len(b)
    within = _kernel_sum(a, a) - _kernel_diagonal(a), _kernel_sum(b, b) - _kernel_diagonal(b)
    mean_a, mean_b = within[0] / (n * (n - 1)), within[1] / (m * (m - 1))
    return mean_a + mean_b - 2.0 * _kernel_sum(a, b) / (n * m)


def spread(images: np.ndarray, words: np.ndarray) -> float:
    """Return the root of the mean variance within a prompt, averaged over the prompts.

    Parameters
    ----------
    images : ndarray, shape (n, size, size)
    words : ndarray of int, shape (n, 2)
        The prompts; every prompt has two images or more.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.distance import spread
    >>> images = np.array([0.0, 1.0, 0.5, 0.5]).reshape(4, 1, 1) * np.ones((16, 16))
    >>> words = np.array([[0, 0], [0, 0], [1, 0], [1, 0]])  # sans A twice, sans B twice
    >>> round(spread(images, words), 4)  # the mean of 0.7071 and 0
    0.3536
    """
    images = check_images(images)
    if words.shape != (len(images), 2):
        raise ValueError(f"words have shape {words.shape}, expected ({len(images)}, 2)")
    prompts, which = np.unique(words, axis=0, return_inverse=True)
    total = 0.0
    for i, prompt in enumerate(prompts):
        own = images[which.reshape(-1) == i].astype(np.float64)  # (number, size, size)
        if len(own) < 2:
            raise ValueError(f"prompt {prompt_of(*prompt)!r} has one image: a spread needs two")
        total += float(own.var(axis=0, ddof=1).mean()) ** 0.5
    return total / len(prompts)


def nearest(images: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image the distance to the nearest training image, and its index.

    Parameters
    ----------
    images, training : ndarray, shapes (n, size, size) and (m, size, size)

    Returns
    -------
    distances : ndarray, shape (n,)
        The root of the summed squared differences of the pixels.
    indices : ndarray of int, shape (n,)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.distance import nearest
    >>> from lora_np.images.glyphs import letters
    >>> training = letters(np.random.default_rng(0), 100).images
    >>> distances, indices = nearest(training[[7, 3]], training)
    >>> distances.tolist(), indices.tolist()  # copies
    ([0.0, 0.0], [7, 3])
    """
    images = check_images(images)
    training = check_images(training, images.shape[1])
    x, y = images.reshape(len(images), -1), training.reshape(len(training), -1)
    half = 0.5 * (y * y).sum(axis=1)  # |x - y|^2 = |x|^2 + 2 (half - x . y)
    starts = range(0, len(x), BLOCK)
    indices = np.concatenate([np.argmin(half - x[i : i + BLOCK] @ y.T, axis=1) for i in starts])
    return np.linalg.norm(x - y[indices], axis=1), indices


def _features(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features in float64; raise ValueError if they are not comparable."""
    for x in (a, b):
        if x.ndim != 2 or len(x) < 2 or x.shape[1:] != a.shape[1:]:
            raise ValueError(
                f"features have shapes {a.shape} and {b.shape}, expected (n, d) and (m, d) with "
                "at least 2 rows"
            )
        if not np.isfinite(x).all():
            raise ValueError("features hold nan or inf")
    return a.astype(np.float64), b.astype(np.float64)


def _root(C: np.ndarray) -> np.ndarray:
    """Return the square root of a symmetric matrix whose eigenvalues are not negative."""
    values, vectors = np.linalg.eigh(C)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T  # rounding may make one < 0


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sum of (x . y / d + 1)^3 over all pairs of rows."""
    d = a.shape[1]
    starts = range(0, len(a), BLOCK)
    return sum(float(((a[i : i + BLOCK] @ b.T / d + 1.0) ** 3).sum()) for i in starts)


def _kernel_diagonal(a: np.ndarray) -> float:
    """Return the sum of the kernel of each row with itself."""
    return float((((a * a).sum(axis=1) / a.shape[1] + 1.0) ** 3).sum())
