r"""How does a change compare with the matrix that it changes? Amplification and intruders.

Amplification (Hu et al. 2021, section 7.3, table 7): does a change repeat what W0 already does?
Let U (out, r) and V (r, in) be the top r singular directions of the change. ||U^T W0 V^T||_F
measures how much of W0 lies in these directions; ||delta||_F over that is the amplification. Two
values to compare with: W0's own top directions hold the most, sqrt(sum_{i<=r} sigma_i^2). Random
directions hold r ||W0||_F / sqrt(out in) in root mean square: each of the r^2 entries u^T W0 v has
the mean square ||W0||_F^2 / (out in), because a coordinate of a random unit vector in n dimensions
has the mean square 1/n (subspaces.py), for both u and v.

Intruders (Shuttleworth et al. 2024, algorithm 1): top singular vectors of the changed matrix that
resemble no singular vector of the pretrained matrix.

Hu et al.: LoRA, arXiv:2106.09685. Shuttleworth, Andreas, Torralba, Sharma: LoRA vs full
fine-tuning: an illusion of equivalence, arXiv:2410.21228.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lora_np.backend import Array, ShapeError, to_host
from lora_np.rank.factors import svd_of_factors
from lora_np.rank.inputs import (
    in_range,
    prepare,
    prepare_factors,
    require_pair,
    require_scale,
    spacing,
)
from lora_np.rank.randomised import dense_svd


@dataclass(frozen=True)
class Amplification:
    """How a change compares with the matrix that it changes (LoRA's table 7).

    Attributes
    ----------
    r : int
        Number of directions.
    in_delta, in_W0, in_random : float
        ||U^T W0 V^T||_F for the top r singular directions of the change, for those of W0 (the
        largest possible value), and for random directions (root mean square, in closed form).
    norm_W0, norm_delta : float
        ||W0||_F and ||delta||_F.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import amplification
    >>> found = amplification(np.diag([8.0, 4.0, 1.0]), np.diag([0.0, 0.0, 5.0]), r=1)
    >>> round(found.factor, 6), round(found.in_random, 6)  # 5 / 1; 9 / 3, by chance
    (5.0, 3.0)
    """

    r: int
    in_delta: float
    in_W0: float
    in_random: float
    norm_W0: float
    norm_delta: float

    @property
    def factor(self) -> float:
        """||delta||_F / ||U^T W0 V^T||_F; inf where W0 has nothing in the change's directions."""
        return self.norm_delta / self.in_delta if self.in_delta > 0 else math.inf


def amplification(
    W0: Array, delta: Array | tuple[Array, Array], r: int, scale: float = 1.0
) -> Amplification:
    """Return how much of W0 lies in the top r directions of a change, for table 7 of LoRA.

    Parameters
    ----------
    W0 : array, shape (out, in)
    delta : array, shape (out, in), or a tuple (B, A) of shapes (out, r') and (r', in)
        The change; a tuple stands for B A, which is never formed.
    r : int
        From 1 to the numerical rank of the change: further directions would be arbitrary.
    scale : float
        Multiplies `delta`.

    Returns
    -------
    Amplification

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    ValueError
        If `r` is outside its range, or an entry or `scale` is not finite.
    TypeError
        If the entries are not real numbers.

    References
    ----------
    Hu et al.: LoRA. arXiv:2106.09685, section 7.3, table 7.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import amplification
    >>> W0, delta = np.diag([8.0, 4.0, 1.0]), np.diag([0.0, 0.0, 5.0])
    >>> found = amplification(W0, delta, r=1)  # the change lies where W0 has little
    >>> round(found.in_delta, 6), round(found.in_W0, 6), round(found.factor, 6)
    (1.0, 8.0, 5.0)
    """
    W, unit, _ = prepare("W0", to_host(W0))
    U, sigma, Vt = _svd_of_change("delta", delta, scale)
    _require_shape("delta", (U.shape[0], Vt.shape[1]), W.shape)
    rank = int(np.sum(sigma > max(W.shape) * _spacing_of(delta) * sigma[0]))
    if not 1 <= r <= rank:
        raise ValueError(f"r is {r}: it must be from 1 to the numerical rank of delta, {rank}")
    own = np.linalg.svd(W, compute_uv=False)  # (min(out, in),)
    norm_W0 = unit * float(np.linalg.norm(own))
    return Amplification(
        r=r,
        in_delta=unit * float(np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T)),
        in_W0=unit * float(np.linalg.norm(own[:r])),
        in_random=r * norm_W0 / math.sqrt(W.size),
        norm_W0=norm_W0,
        norm_delta=float(np.linalg.norm(sigma)),
    )


@dataclass(frozen=True, eq=False)
class Intruders:
    """How closely the top singular vectors of a changed matrix resemble those of W0.

    Attributes
    ----------
    cosines : ndarray, shape (k,)
        For each of the top k left singular vectors of the changed matrix, in order: the largest
        ``|cosine|`` with a left singular vector of W0.
    threshold : float
        A vector with a smaller cosine is an intruder.
    """

    cosines: np.ndarray
    threshold: float

    @property
    def indices(self) -> list[int]:
        """The numbers of the intruders among the k vectors, from 0."""
        return [int(i) for i in np.flatnonzero(self.cosines < self.threshold)]

    @property
    def count(self) -> int:
        """The number of intruders among the k vectors."""
        return len(self.indices)


def intruder_dimensions(
    W0: Array,
    W: Array | tuple[Array, Array],
    k: int = 10,
    threshold: float = 0.5,
    scale: float = 1.0,
) -> Intruders:
    """Find the top singular vectors of a changed matrix that resemble no singular vector of W0.

    An intruder is one of the top k left singular vectors of W whose ``|cosine|`` with EVERY left
    singular vector of W0 is below the threshold. Only vectors of W0 whose singular value exceeds
    rounding (max(out, in) eps sigma_1) count, because the others are arbitrary. If W0 is tall or
    has a low rank, a vector of W may therefore be orthogonal to all vectors of W0.

    Parameters
    ----------
    W0 : array, shape (out, in)
    W : array, shape (out, in), or a tuple (B, A) of shapes (out, r) and (r, in)
        The changed matrix; a tuple stands for W0 + scale B A.
    k : int
        From 1 to min(out, in). The paper uses 10.
    threshold : float
        The paper's epsilon, from 0 to 1; mostly 0.5 there.
    scale : float
        Multiplies a change given as factors; must be 1 if `W` is a matrix.

    Returns
    -------
    Intruders

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    ValueError
        If an argument is outside its range, or an entry is not finite.
    TypeError
        If the entries are not real numbers.

    References
    ----------
    Shuttleworth et al.: arXiv:2410.21228, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import intruder_dimensions
    >>> W0, BA = np.diag(np.arange(9.0, 0.0, -1.0)), (np.ones((9, 1)), np.ones((1, 9)))
    >>> [intruder_dimensions(W0, BA, k=1, scale=s).count for s in (0.001, 100.0)]
    [0, 1]
    """
    base, unit, eps = prepare("W0", to_host(W0))
    _check_intruders(base.shape, k, threshold)
    W = _changed(base * unit, W, scale)  # (out, in)
    before, sigma, _ = dense_svd(base)
    before = before[:, sigma > max(base.shape) * eps * sigma[0]]  # (out, rank)
    after = dense_svd(W, "W")[0][:, :k]  # (out, k)
    cosines = np.abs(before.T @ after).max(axis=0, initial=0.0)  # (k,)
    return Intruders(np.minimum(cosines, 1.0), threshold)


def _check_intruders(shape: tuple[int, ...], k: int, threshold: float) -> None:
    if not 1 <= k <= min(shape):
        raise ValueError(f"k is {k}: it must be from 1 to {min(shape)}, W0's shorter side")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}: a cosine from 0 to 1 is expected")


def _changed(base: np.ndarray, W: Array | tuple[Array, Array], scale: float) -> Array:
    """Return the changed matrix: W itself, or base + scale B A."""
    if isinstance(W, tuple):
        B, A, unit, _ = prepare_factors(*(to_host(x) for x in require_pair("W", W)))
        require_scale(scale)
        _require_shape("B A", (B.shape[0], A.shape[1]), base.shape)
        return base + (scale * unit) * (B @ A)  # (out, in)
    if scale != 1:
        raise ValueError(f"scale is {scale}: it multiplies factors only, a matrix W needs scale=1")
    _require_shape("W", np.shape(W), base.shape)
    return W


def _svd_of_change(
    name: str, delta: Array | tuple[Array, Array], scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin SVD of ``scale`` times a matrix or a product."""
    if isinstance(delta, tuple):
        return svd_of_factors(*require_pair(name, delta), scale)
    require_scale(scale)
    U, sigma, Vt = dense_svd(delta, name)
    return (-U if scale < 0 else U), in_range(sigma, 1.0, scale), Vt


def _spacing_of(matrix: Array | tuple[Array, Array]) -> float:
    """Return the relative spacing of the numbers that a matrix or its factors are given in."""
    arrays = matrix if isinstance(matrix, tuple) else (matrix,)
    return max(spacing(to_host(x).dtype) for x in arrays)


def _require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(expected):
        raise ShapeError(f"{name} has shape {tuple(shape)}: {expected} is expected, that of W0")
