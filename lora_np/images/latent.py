r"""A linear autoencoder of images, from a singular value decomposition: from pixels to latents.

Shapes: images X (n, d) with d = size^2 pixels, the mean image mu (d,), a basis V (k, d) with
orthonormal rows, and latents z (n, k)::

    z = (x - mu) V^T / scale           encode
    x = mu + scale z V                 decode

The rows of V are the first k right singular vectors of X - mu. Every linear autoencoder with k
latents turns X - mu into a matrix of rank k at most. By Eckart and Young (1936), none of these
matrices is nearer to X - mu than the one made here. The lost share of the energy ||X - mu||_F^2 is
that of the singular values from k + 1 on. The scale is the root mean square of (X - mu) V^T, so
that a latent has the size of the noise that a diffusion model adds to it.

With X - mu = Q R and Q^T Q = I, the matrix R (d, d) has the same singular values and right singular
vectors as X - mu, since R^T R = (X - mu)^T (X - mu). So R is decomposed in place of X - mu.

A singular vector is determined up to its sign. The sign chosen here makes its product with fixed
irrational weights positive. The sign of its largest entry would not do: a vector that is odd under
a mirror has two largest entries of opposite signs, and rounding decides between them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from lora_np.images.glyphs import check_images

GOLDEN = 0.6180339887498949  # its multiples modulo 1 never come back


class NotHeld(ValueError):
    """A codec loses too much of some images; the attribute `k` is a number that would do."""

    def __init__(self, message: str, k: int) -> None:
        super().__init__(message)
        self.k = k

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.k)


@dataclass(frozen=True)
class SvdCodec:
    """The best linear autoencoder of a set of images.

    Attributes
    ----------
    mean : ndarray, shape (size, size)
    basis : ndarray, shape (k, size * size)
        Orthonormal rows.
    scale : float
        What the products with the basis are divided by.
    rest : ndarray, shape (m, size * size)
        The directions that follow those of the basis; they tell which k holds enough.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.glyphs import letters
    >>> from lora_np.images.latent import SvdCodec
    >>> rng = np.random.default_rng(0)
    >>> codec = SvdCodec.fit(letters(rng, 2000).images, k=32)
    >>> images = letters(rng, 100).images
    >>> z = codec.encode(images)
    >>> z.shape, codec.decode(z).shape
    ((100, 32), (100, 16, 16))
    >>> 0.85 < codec.energy(images) < 0.95
    True
    """

    mean: np.ndarray
    basis: np.ndarray
    scale: float
    rest: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray, k: int) -> SvdCodec:
        """Fit a codec with k latents.

        Parameters
        ----------
        images : ndarray, shape (n, size, size)
        k : int
            At most n - 1 and size^2.

        Raises
        ------
        ValueError
            If images are not images, or k does not fit.
        """
        images = check_images(images)
        n, size, _ = images.shape
        most = min(n - 1, size * size)
        if not 1 <= k <= most:
            raise ValueError(f"k = {k}, expected 1 to {most} for {n} images of {size} x {size}")
        X = images.reshape(n, -1).astype(np.float64)
        mean = X.mean(axis=0)
        R = np.linalg.qr(X - mean, mode="r")  # (min(n, d), d)
        _, sigma, V = np.linalg.svd(R, full_matrices=False)
        V = _signed(V[:most])
        scale = float(np.linalg.norm(sigma[:k])) / (n * k) ** 0.5
        if scale < 1e-6:  # rounding
            raise ValueError(f"the {n} images are all equal: there is nothing to encode")
        mean, V = mean.reshape(size, size).astype(np.float32), V.astype(np.float32)
        return cls(mean, V[:k], scale, V[k:])

    @property
    def k(self) -> int:
        """The number of latents."""
        return len(self.basis)

    @property
    def size(self) -> int:
        """The number of pixels along an image."""
        return len(self.mean)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Return the latents (n, k), float32, of images (n, size, size)."""
        return self._centred(images) @ self.basis.T / self.scale

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Return the images (n, size, size), float32, of latents (n, k), cut off at -1 and 1."""
        if z.ndim != 2 or z.shape[1] != self.k:
            raise ValueError(f"latents have shape {z.shape}, expected (n, {self.k})")
        if not np.isfinite(z).all():
            raise ValueError("latents hold nan or inf: the model that made them has diverged")
        images = (z * self.scale) @ self.basis + self.mean.reshape(-1)  # (n, d)
        return np.clip(images, -1.0, 1.0).reshape(-1, *self.mean.shape).astype(np.float32)

    def energy(self, images: np.ndarray) -> float:
        """Return the share of the images' energy around the mean that the codec keeps."""
        return float(self._kept(images)[self.k - 1])

    def enough(self, images: np.ndarray, share: float) -> int:
        """Return the smallest k whose codec, fitted on the same set, would keep this share.

        Raises
        ------
        ValueError
            If no k does.
        """
        kept = self._kept(images)
        if not kept[-1] >= share:
            raise ValueError(
                f"no codec of these letters keeps {share:.1%} of the images' energy: "
                f"k = {len(kept)} keeps {kept[-1]:.1%}"
            )
        return int(np.argmax(kept >= share)) + 1

    def expect_held(self, images: np.ndarray, least: float = 0.9) -> None:
        """Raise NotHeld, with the k that would do, if less than this share is kept.

        Examples
        --------
        >>> import numpy as np
        >>> from lora_np.images.glyphs import letters
        >>> from lora_np.images.latent import SvdCodec
        >>> rng = np.random.default_rng(0)
        >>> codec = SvdCodec.fit(letters(rng, 2000).images, k=32)
        >>> codec.expect_held(letters(rng, 100).images, 0.8)
        >>> try:
        ...     codec.expect_held(letters(rng, 100, "outline").images, 0.8)
        ... except ValueError as error:
        ...     print(str(error).startswith("the codec cannot hold these images: k = 32 keeps"))
        True
        """
        share = self.energy(images)
        if share < least:
            k = self.enough(images, least)
            raise NotHeld(
                f"the codec cannot hold these images: k = {self.k} keeps {share:.1%} of their "
                f"energy, expected {least:.1%}; fit a codec with k = {k}",
                k,
            )

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the codec: a model fits one codec alone."""
        content = [np.ascontiguousarray(part, "<f4") for part in (self.mean, self.basis)]
        content.append(np.array([self.scale], "<f8"))
        return hashlib.sha256(b"".join(part.tobytes() for part in content)).hexdigest()[:16]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a file, for :meth:`of_arrays`."""
        scale = np.array(self.scale)
        return {"mean": self.mean, "basis": self.basis, "scale": scale, "rest": self.rest}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> SvdCodec:
        """Return the codec of :meth:`arrays`."""
        mean, basis, scale, rest = (arrays[name] for name in ("mean", "basis", "scale", "rest"))
        return cls(mean, basis, float(scale), rest)

    def _centred(self, images: np.ndarray) -> np.ndarray:
        images = check_images(images, self.size)
        return (images - self.mean).reshape(len(images), -1)  # (n, d)

    def _kept(self, images: np.ndarray) -> np.ndarray:
        """Return the share of the energy that the first 1, 2, ... directions keep, in float64."""
        X = self._centred(images).astype(np.float64)
        directions = np.concatenate([self.basis, self.rest]).astype(np.float64)
        whole = float((X * X).sum())
        if whole == 0.0:
            raise ValueError("the images equal the codec's mean: they have no energy around it")
        return np.cumsum(((X @ directions.T) ** 2).sum(axis=0)) / whole


def _signed(V: np.ndarray) -> np.ndarray:
    """Return the rows of V (m, d), each with the sign that makes its weighted sum positive."""
    weights = (np.arange(V.shape[1]) * GOLDEN) % 1.0 - 0.5
    return V * np.where(V @ weights < 0.0, -1.0, 1.0)[:, None]
