"""W = R G: the weight itself as a product of two thin factors, of which R is trained.

Some articles describe LoRA in this way. It is another method: it compresses W0, whereas LoRA keeps
W0 and factors the change. R is (out, r), G (r, in), and W0 is not read any more::

    u  = x G^T                         (N, r)
    y  = u R^T + b                     (N, out)
    dR = dy^T u                        (out, r)
    dx = (dy R) G                      (N, in)   and dG = (dy R)^T x, if G is trained

Two starts, G frozen in both. "svd" takes W0 = U S V^T: R = U_r S_r, G = V_r^T, which is the best
product of rank r. "gaussian" draws G and fits R by least squares, R = W0 G^T (G G^T)^-1, so that
R G is the projection of W0's rows on r random directions. A Gaussian W0 (out, in) keeps a part
r / in of its squared length there, hence the relative error sqrt(1 - r / in). Neither start is the
base, because a trained weight has full rank: low rank is a property of changes, not of weights.

A file holds R and G, not a seed for G: NumPy does not promise that a generator gives the same
numbers in every version, and an SVD is rounded differently on another machine.

Source of the best product: Eckart and Young (1936), Psychometrika 1, 211.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, like, to_host
from lora_np.layers import Flops, Linear, Rng, product_flops
from lora_np.methods.contract import Adapter, MethodConfig
from lora_np.methods.options import check_whole
from lora_np.methods.targets import check_rank
from lora_np.ops import linear_backward, linear_forward
from lora_np.ops.contract import Need, wanted
from lora_np.parameters import Grads, Parameter

Factors = tuple[np.ndarray, np.ndarray]  # R (out, r), G (r, in)


class WRGCache(NamedTuple):
    """What :func:`wrg_backward` reads."""

    inner: Any  # of u = x G^T
    outer: Any  # of y = u R^T + b


def wrg_forward(x: Array, R: Array, G: Array, b: Array | None = None) -> tuple[Array, WRGCache]:
    """Compute y = (x G^T) R^T + b.

    Parameters
    ----------
    x : array, shape (..., in)
    R, G : arrays, shapes (out, r) and (r, in)
    b : array, shape (out,), optional

    Returns
    -------
    y : array, shape (..., out)
    cache : WRGCache
    """
    u, inner = linear_forward(x, G)  # (..., r)
    y, outer = linear_forward(u, R, b)  # (..., out)
    return y, WRGCache(inner, outer)


def wrg_backward(dy: Array, cache: WRGCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dx, dR, dG, db) of :func:`wrg_forward`."""
    need_x, need_R, need_G, need_b = wanted(need, 4)
    du, dR, db = linear_backward(dy, cache.outer, (need_x or need_G, need_R, need_b))
    dx = dG = None
    if du is not None:
        dx, dG, _ = linear_backward(du, cache.inner, (need_x, need_G, False))
    return dx, dR, dG, db


class WRGLinear(Adapter):
    """y = (x G^T) R^T + b in place of a linear layer, whose W0 is kept and not read."""

    def __init__(self, base: Linear, R: Parameter, G: Parameter) -> None:
        self.base, self.R, self.G = base, R, G

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, WRGCache]:
        """Return y (..., out) and the cache."""
        b = None if self.base.b is None else self.base.b.value
        return wrg_forward(x, self.R.value, self.G.value, b)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dR, and dG and db if they are trained; return dx. The gradient of W0 is zero."""
        held = (self.R, self.G, self.base.b)
        need = (need_dx, *(p is not None and p.trainable for p in held))
        dx, *gradients = wrg_backward(dy, cache, need)
        grads.add_all(held, gradients)
        if self.base.W.trainable:
            grads.add(self.base.W, get_xp(dy).zeros(self.base.W.shape, dy.dtype))
        return dx

    def merged(self) -> Linear:
        """Return the plain linear layer with W = R G, as large as the base's."""
        return Linear.over(Parameter(self.R.value @ self.G.value), self.base.b)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of the two thin products."""
        outer = product_flops(self.R, need_dx or self.G.trainable)
        return product_flops(self.G, need_dx).plus(outer)


def truncated(W0: np.ndarray, r: int, rng: np.random.Generator) -> Factors:
    """Return R = U_r S_r and G = V_r^T of the singular value decomposition of W0."""
    U, S, Vh = np.linalg.svd(W0, full_matrices=False)
    return U[:, :r] * S[:r], Vh[:r]


def fitted(W0: np.ndarray, r: int, rng: np.random.Generator) -> Factors:
    """Draw G from N(0, 1 / in) and return the R that brings R G nearest to W0, and G."""
    G = rng.standard_normal((r, W0.shape[1])) / W0.shape[1] ** 0.5
    return np.linalg.lstsq(G.T, W0.T, rcond=None)[0].T, G


FACTORS: dict[str, Callable[..., Factors]] = {"svd": truncated, "gaussian": fitted}


@dataclass(frozen=True)
class WRGConfig(MethodConfig):
    """The options of W = R G.

    Parameters
    ----------
    r : int
        The rank of the product.
    factor : {"svd", "gaussian"}
        How R and G are made of W0.
    target_modules, layers_to_transform
        As for :class:`lora_np.LoraConfig`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, inject
    >>> from lora_np.methods import WRGConfig
    >>> rng = np.random.default_rng(0)
    >>> base = Linear(64, 64, rng, dtype=np.float64)
    >>> for factor in ("svd", "gaussian"):  # how much of a Gaussian W0 is lost at r = 8
    ...     lost = inject(base, WRGConfig(8, factor, "all-linear"), rng).delta()
    ...     print(round(float(np.linalg.norm(lost) / np.linalg.norm(base.W.value)), 2))
    0.78
    0.94
    """

    r: int = 8
    factor: Literal["svd", "gaussian"] = "svd"
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None

    name = "wrg"
    starts_at_base = False

    def __post_init__(self) -> None:
        check_whole("r", self.r)

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> WRGLinear:
        """Return the product in place of `layer`, with G frozen."""
        W0 = layer.W.value
        check_rank(self.r, path, W0.shape)
        made = FACTORS[self.factor](to_host(W0).astype(np.float64), self.r, rng)
        R, G = (like(x.astype(W0.dtype), W0) for x in made)
        return WRGLinear(layer, Parameter(R), Parameter(G, trainable=False))
