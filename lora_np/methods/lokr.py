"""LoKr: the change of a weight is a Kronecker product.

::

    W = W0 + s kron(W1, W2)         W1 (a, c), W2 (k, j)      out = a k, in = c j,  s = alpha / r

Block (a, c) of the product is W1_ac W2. With x as c parts of j entries, and y and dy as a parts of
k entries, entry (n, a, k) of the change of y is::

    s sum_c W1_ac z_nck             z_nck = sum_j W2_kj x_ncj

Backwards, a sum runs over each index that the result does not have::

    dW1_ac = s sum_nk dy_nak z_nck                                  dx = dy W
    dW2_kj = s sum_nc h_nck x_ncj,   h_nck = sum_a W1_ac dy_nak     dW0 = dy^T x

z, h, dW1 and dW2 cost 2 c k (a + j) products a sample, without the in * out of dy^T x. Either side
may be a product of rank r: W1 = L1 R1, dL1 = dW1 R1^T, dR1 = L1^T dW1. L1 (or W1) starts at zero.

Sources: LyCORIS: Yeh et al. (2023), arXiv:2309.14859; sides, names and start of PEFT 0.21.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Flops, Linear, product_flops
from lora_np.methods.options import check_positive, check_whole
from lora_np.methods.paired import PairedLinear
from lora_np.methods.peft import PeftMethod
from lora_np.methods.start import kaiming, parameter_like
from lora_np.ops import linear_backward, linear_forward
from lora_np.ops.contract import Need, expect_shape, wanted
from lora_np.ops.linear import rows
from lora_np.parameters import Parameter


class LoKrCache(NamedTuple):
    """What :func:`lokr_backward` reads."""

    linear: Any
    sides: tuple[Array, ...]  # W1 (a, c), W2 (k, j)
    factors: tuple[Array | None, ...]  # L1, R1, L2, R2
    scale: float


def lokr_forward(
    x: Array, W0: Array, L1: Array, R1: Any, L2: Array, R2: Any, b: Any = None, *, scale: float
) -> tuple[Array, LoKrCache]:
    """Compute y = x W^T + b with W = W0 + scale kron(L1 R1, L2 R2).

    Parameters
    ----------
    x, W0, b : arrays, shapes (..., c j), (a k, c j) and (a k,)
    L1, R1 : arrays, shapes (a, r) and (r, c); or W1 (a, c) and None
    L2, R2 : arrays, shapes (k, r) and (r, j); or W2 (k, j) and None

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.lokr import lokr_forward
    >>> W1, W2 = np.array([[1.0, 2.0]]), np.array([[1.0], [10.0]])
    >>> lokr_forward(np.eye(2), np.zeros((2, 2)), W1, None, W2, None, scale=1.0)[0].T.tolist()
    [[1.0, 2.0], [10.0, 20.0]]
    """
    W1, W2 = L1 if R1 is None else L1 @ R1, L2 if R2 is None else L2 @ R2
    product = (float(scale) * W1)[:, None, :, None] * W2[:, None, :]  # (a, k, c, j)
    expect_shape("W0", W0, len(W1) * len(W2), W1.shape[1] * W2.shape[1])
    y, linear = linear_forward(x, W0 + product.reshape(W0.shape), b)
    return y, LoKrCache(linear, (W1, W2), (L1, R1, L2, R2), float(scale))


def lokr_backward(dy: Array, cache: LoKrCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dx, dW0, dL1, dR1, dL2, dR2, db) of :func:`lokr_forward`."""
    linear, (W1, W2), (L1, R1, L2, R2), scale = cache
    need_x, need_W0, *need_factors, need_b = wanted(need, 7)
    dx, dW0, db = linear_backward(dy, linear, (need_x, need_W0, need_b))
    dW1, dW2, (a, c), (k, j) = None, None, W1.shape, W2.shape
    x = rows(linear.x).reshape(-1, c, j).swapaxes(0, 1).reshape(-1, j)  # (c N, j)
    d = scale * rows(dy).reshape(-1, a, k).swapaxes(0, 1).reshape(a, -1)  # (a, N k)
    if any(need_factors[:2]):
        dW1 = d @ (x @ W2.T).reshape(c, -1).T  # (a, N k) (N k, c)
    if any(need_factors[2:]):
        dW2 = (W1.T @ d).reshape(-1, k).T @ x  # (k, c N) (c N, j)
    of_1, of_2 = _of(dW1, L1, R1, need_factors[:2]), _of(dW2, L2, R2, need_factors[2:])
    return dx, dW0, *of_1, *of_2, db


def _of(dW: Any, L: Any, R: Any, need: Sequence[bool]) -> tuple[Array | None, ...]:
    """Return (dL, dR) of W = L R, or (dW, None) where R is None and L is W."""
    if R is None:
        return dW, None
    return dW @ R.T if need[0] else None, L.T @ dW if need[1] else None


class LoKrLinear(PairedLinear):
    """y = x W^T + b with W = W0 + scale kron(L1 R1, L2 R2)."""

    pair_forward, pair_backward = staticmethod(lokr_forward), staticmethod(lokr_backward)
    L1: Parameter
    R1: Parameter | None
    L2: Parameter
    R2: Parameter | None

    def tensors(self) -> dict[str, Parameter]:
        """Return the Parameters by PEFT's names: w1, or its factors w1_a and w1_b; w2 alike."""
        found = {}
        for side, L, R in (("lokr_w1", self.L1, self.R1), ("lokr_w2", self.L2, self.R2)):
            found |= {side: L} if R is None else {f"{side}_a": L, f"{side}_b": R}
        return found

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of the products with x and dy, without that of making W."""
        a, k, j = self.L1.shape[0], self.L2.shape[0], (self.R2 or self.L2).shape[1]
        thin = 4 * (self.base.W.shape[1] // j) * k * (a + j)
        return product_flops(self.base.W, need_dx).plus(Flops(0, thin))


def near(n: int, factor: int = -1) -> tuple[int, int]:
    """Return n as a product of two: of `factor`, or of the largest divisor up to it and sqrt(n)."""
    if factor > 0 and n % factor == 0:
        return factor, n // factor
    most = math.isqrt(n) if factor < 0 else min(factor, math.isqrt(n))
    first = max(m for m in range(1, most + 1) if n % m == 0)
    return first, n // first


@dataclass(frozen=True)
class LoKrConfig(PeftMethod):
    """The options of LoKr, as in PEFT.

    W2 has two factors if r is below half of its longer side, and so has W1 with `decompose_both`.
    `decompose_factor` is a and c, the sides of W1; -1 takes the divisors next to the roots.
    """

    r: int = 8
    alpha: float = 8
    decompose_both: bool = False
    decompose_factor: int = -1
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None

    name = "lokr"
    peft_type, peft_transposes = "LOKR", False

    def __post_init__(self) -> None:
        check_whole("r", self.r)
        check_positive("alpha", self.alpha)
        if self.decompose_factor != -1:
            check_whole("decompose_factor", self.decompose_factor)

    def sides(self, layer: Linear) -> list[tuple[int, ...]]:
        """Return the shapes (a, c) of W1 and (k, j) of W2."""
        return list(zip(*(near(n, self.decompose_factor) for n in layer.W.shape)))

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> LoKrLinear:
        """Return `layer` with L1 = 0 and the rest random."""
        r1, r2 = (self.r if self.r < max(side) / 2 else None for side in self.sides(layer))
        return self.over(layer, rng, r1 if self.decompose_both else None, r2)

    def over(self, layer: Linear, rng: np.random.Generator, *ranks: int | None) -> LoKrLinear:
        """Return `layer` with sides of these ranks; None is a whole matrix."""
        held: dict[str, Parameter | None] = {}
        for i, ((m, n), r) in enumerate(zip(self.sides(layer), ranks), start=1):
            L = np.zeros((m, r or n)) if i == 1 else kaiming(rng, (m, r or n))
            held[f"L{i}"] = parameter_like(layer.W, L)
            held[f"R{i}"] = parameter_like(layer.W, kaiming(rng, (r, n))) if r else None
        return LoKrLinear(layer, held, {"scale": self.alpha / self.r})

    def hold(self, adapter: LoKrLinear, tensors: Mapping[str, np.ndarray]) -> None:
        """Hold whole sides or factors, as the names in a file say."""
        rights = (tensors.get(name) for name in ("lokr_w1_b", "lokr_w2_b"))
        ranks = [None if R is None else len(R) for R in rights]
        vars(adapter).update(vars(self.over(adapter.base, np.random.default_rng(0), *ranks)))
