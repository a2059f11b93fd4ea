"""The projection: P (D, d), random and fixed, applied without being formed.

A dense P would need D d numbers; Fastfood needs 4 D. The rows of P come in blocks of n, the
smallest power of two that is at least d, and a block is the first d columns of::

    S H G Pi H B

H is the Walsh-Hadamard transform, n log n additions; B has random signs on its diagonal, Pi
permutes, G is Gaussian on its diagonal, and S on its diagonal sets the rows' lengths.

The normalisation: a row of H G Pi H B has length sqrt(n) ||g||, g the diagonal of G, and its
direction is uniform on the sphere, since it is g, with some signs flipped, under the orthogonal map
Pi H B / sqrt(n). S gives row i the length s_i / sqrt(D), s_i drawn from the chi distribution of n
degrees of freedom, which is that of a Gaussian vector's length. Every row is then exactly
N(0, I / D), though the rows of one block are not independent, and E ||P z||^2 = ||z||^2: on average
a step in z moves theta as far as it moves z, at every d.

Source: Le, Sarlos and Smola, Fastfood, ICML 2013; the division by sqrt(D) is ours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_np.backend import ShapeError


def walsh_hadamard(x: np.ndarray) -> np.ndarray:
    """Return H x over the last axis, H the Walsh-Hadamard matrix of ones and minus ones.

    H_1 = [1] and H_2n = [[H_n, H_n], [H_n, -H_n]] (Sylvester's order); H^T = H and H H = n I.

    Each stage puts the sums of neighbours in the first half and their differences in the second.
    After log2(n) stages every entry depends on all inputs, and the shuffles of the stages have
    combined to the identity.

    Parameters
    ----------
    x : array, shape (..., n)
        n a power of two. Real or complex; it is not written to.

    Returns
    -------
    array, shape (..., n)

    Raises
    ------
    ShapeError
        If n is not a power of two.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops.fastfood import walsh_hadamard
    >>> walsh_hadamard(np.array([1.0, 2.0, 3.0, 4.0])).tolist()  # the first is the sum
    [10.0, -2.0, -4.0, 0.0]
    """
    n = x.shape[-1]
    if n < 1 or n & (n - 1):
        raise ShapeError(f"the last axis has length {n}, expected a power of two")
    y = x.copy()
    for _ in range(n.bit_length() - 1):
        even, odd = y[..., 0::2], y[..., 1::2]  # (..., n/2)
        y = np.empty_like(x)
        np.add(even, odd, out=y[..., : n // 2])
        np.subtract(even, odd, out=y[..., n // 2 :])
    return y


class Fastfood:
    """A random (D, d) projection P that is never formed; every row is N(0, I / D).

    Parameters
    ----------
    D, d : int
        Rows and columns, 1 <= d <= D.
    rng : numpy.random.Generator
    dtype : numpy dtype
        Type of the factors. They are cast where a vector has another one.

    Raises
    ------
    ValueError
        If d is not between 1 and D.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops.fastfood import Fastfood
    >>> P = Fastfood(1000, 10, np.random.default_rng(0), np.float64)
    >>> z, g = np.ones(10), np.ones(1000)
    >>> P.forward(z).shape, P.adjoint(g).shape
    ((1000,), (10,))
    >>> bool(np.isclose(g @ P.forward(z), P.adjoint(g) @ z))  # g . P z = P^T g . z
    True
    """

    def __init__(self, D: int, d: int, rng: np.random.Generator, dtype: Any = np.float32) -> None:
        if not 1 <= d <= D:
            raise ValueError(f"d = {d}, expected 1 <= d <= D = {D}")
        self.D, self.d = D, d
        n = 1 << (d - 1).bit_length()  # the smallest power of two that is at least d
        blocks = -(-D // n)
        shape = (blocks, n)
        self.signs = (2 * rng.integers(0, 2, shape) - 1).astype(dtype)  # B
        order = rng.permuted(np.tile(np.arange(n), (blocks, 1)), axis=1)
        self.places = order + n * np.arange(blocks)[:, None]  # Pi, in the flat vector
        g = rng.standard_normal(shape)
        length = np.sqrt(rng.chisquare(n, shape))  # of a Gaussian vector (n,)
        now = np.sqrt(n * (g * g).sum(axis=1, keepdims=True))  # length of a row of H G Pi H B
        self.gauss = g.astype(dtype)  # G
        self.lengths = (length / (now * math.sqrt(D))).astype(dtype)  # S

    def forward(self, z: np.ndarray) -> np.ndarray:
        """Return P z (D,) for z (d,), in O(D log d)."""
        _check_shape("z", z, self.d)
        signs, gauss, lengths = self._factors(z)
        x = np.zeros(signs.shape[1], z.dtype)
        x[: self.d] = z
        y = walsh_hadamard(signs * x)  # (blocks, n), H B
        y = y.reshape(-1)[self.places]  # Pi
        y = walsh_hadamard(gauss * y)  # H G
        return (lengths * y).reshape(-1)[: self.D]  # S

    def adjoint(self, g: np.ndarray) -> np.ndarray:
        """Return P^T g (d,) for g (D,), in O(D log d): the factors transposed, last one first."""
        _check_shape("g", g, self.D)
        signs, gauss, lengths = self._factors(g)
        x = np.zeros(signs.size, g.dtype)
        x[: self.D] = g
        x = walsh_hadamard(lengths * x.reshape(signs.shape))  # H S
        y = np.empty(signs.size, x.dtype)
        y[self.places] = gauss * x  # Pi^T G
        y = signs * walsh_hadamard(y.reshape(signs.shape))  # B H
        return y.sum(axis=0)[: self.d]  # every block has the same z

    def _factors(self, x: Any) -> tuple[np.ndarray, ...]:
        """Return the signs, G and S in the real type of `x`."""
        dtype = x.real.dtype
        return tuple(f.astype(dtype, copy=False) for f in (self.signs, self.gauss, self.lengths))


def _check_shape(name: str, x: np.ndarray, n: int) -> None:
    if x.shape != (n,):
        raise ShapeError(f"{name} has shape {x.shape}, expected ({n},)")
