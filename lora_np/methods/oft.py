"""OFT: the inputs of a frozen layer are rotated, part by part.

::

    y = u W0^T + b,   u = x R             x in parts of k entries, each with a rotation R (k, k)
    R = (I - Q)(I + Q)^-1 = 2 M - I       M = (I + Q)^-1,  Q = -Q^T: Cayley's map

So W = W0 R^T part by part; q holds Q above its diagonal, and q = 0 gives R = I. With du = dy W0,
and since M becomes M - M E M to first order when Q becomes Q + E::

    dx = du R^T      dR = x^T du      dQ = -2 M^T dR M^T      dq_ij = dQ_ij - dQ_ji,  i < j

By default, PEFT cuts the series of C = (I + Q)(I - Q)^-1 to I + 2Q + ... + 2Q^(p-1) + Q^p, which is
C (I - Q^p): nearly a rotation if Q is small. Horner's rule: H_p = I, H_i = c_i I + Q H_(i+1), where
c_0 = 1, else 2, and R = H_0. Backwards: dH_0 = dR, dQ += dH_i H_(i+1)^T, dH_(i+1) = Q^T dH_i.

Sources: Qiu et al. (2023), arXiv:2306.07280; options, names and start of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lora_np.backend import Array, get_xp, like
from lora_np.layers import Flops, Linear
from lora_np.methods.contract import METHOD_FIELD, Fields
from lora_np.methods.options import check_whole
from lora_np.methods.paired import PairedLinear
from lora_np.methods.peft import PeftMethod
from lora_np.methods.start import parameter_like
from lora_np.ops import linear_backward, linear_forward
from lora_np.ops.contract import Need, expect_last, wanted
from lora_np.parameters import Parameter


class OFTCache(NamedTuple):
    """What :func:`oft_backward` reads."""

    linear: Any  # without u
    x: Array  # (parts, N, k)
    R: Array  # (parts or 1, k, k)
    Q: Array  # (parts or 1, k, k)
    steps: list[Array]  # M alone, or H_p to H_1
    shape: tuple[int, ...]  # of x


def rotations(q: Array, k: int, terms: int | None) -> tuple[Array, Array, list[Array]]:
    """Return R (parts, k, k) of q (parts, k (k - 1) / 2), Q, and the steps between them."""
    xp, (i, j) = get_xp(q), (like(n, q) for n in np.triu_indices(k, 1))
    expect_last("q", q, len(i))
    Q, unit = xp.zeros((len(q), k, k), dtype=q.dtype), xp.eye(k, dtype=q.dtype)
    Q[:, i, j], Q[:, j, i] = q, -q
    if terms is None:
        M = xp.linalg.inv(unit + Q)
        return 2.0 * M - unit, Q, [M]
    steps = [xp.zeros_like(Q) + unit]  # H_p, where PEFT has p = 3 for 3 and for 4 terms
    for _ in range(1, max(3, terms - 1)):
        steps.append(2.0 * unit + Q @ steps[-1])
    return unit + Q @ steps[-1], Q, steps


def oft_forward(
    x: Array, W0: Array, q: Array, b: Array | None = None, *, k: int, terms: int | None = None
) -> tuple[Array, OFTCache]:
    """Compute y = u W0^T + b, where each part of u is a part of x times its rotation.

    Parameters
    ----------
    x, W0, b : arrays, shapes (..., parts k), (out, parts k) and (out,)
    q : array, shape (parts, k (k - 1) / 2), or (1, k (k - 1) / 2) for one rotation of all parts
    k, terms : int
        The length of a part; PEFT's number of terms of the series, None for the exact rotation.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.oft import oft_forward
    >>> oft_forward(np.array([[2.0, 0.0]]), np.eye(2), np.array([[1.0]]), k=2)[0].tolist()
    [[0.0, -2.0]]
    """
    R, Q, steps = rotations(q, k, terms)
    parts = x.reshape(-1, x.shape[-1] // k, k).swapaxes(0, 1)  # (parts, N, k)
    y, linear = linear_forward(_joined(parts @ R, x.shape), W0, b)
    return y, OFTCache(linear._replace(x=None), parts, R, Q, steps, x.shape)


def oft_backward(dy: Array, cache: OFTCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dx, dW0, dq, db) of :func:`oft_forward`."""
    linear, x, R, Q, steps, shape = cache
    need_x, need_W0, need_q, need_b = wanted(need, 4)
    dx = dq = None
    linear = linear._replace(x=_joined(x @ R, shape)) if need_W0 else linear
    du, dW0, db = linear_backward(dy, linear, (need_x or need_q, need_W0, need_b))
    if du is not None:
        d = du.reshape(-1, *x.shape[::2]).swapaxes(0, 1)  # (parts, N, k)
        dx = _joined(d @ R.swapaxes(1, 2), shape) if need_x else None
        dq = _of_rotations(x.swapaxes(1, 2) @ d, Q, steps) if need_q else None
    return dx, dW0, dq, db


def _of_rotations(dR: Array, Q: Array, steps: list[Array]) -> Array:
    """Return dq of :func:`rotations`."""
    (i, j), dQ = (like(n, Q) for n in np.triu_indices(Q.shape[1], 1)), get_xp(Q).zeros_like(Q)
    dR = dR if len(Q) == len(dR) else dR.sum(axis=0, keepdims=True)  # one rotation of all parts
    if len(steps) == 1:
        M = steps[0].swapaxes(1, 2)
        dQ = -2.0 * (M @ dR @ M)
    else:
        for H in reversed(steps):
            dQ, dR = dQ + dR @ H.swapaxes(1, 2), Q.swapaxes(1, 2) @ dR
    return dQ[:, i, j] - dQ[:, j, i]


def _joined(parts: Array, shape: tuple[int, ...]) -> Array:
    """Return (parts, N, k) as (..., parts k)."""
    return parts.swapaxes(0, 1).reshape(shape)


class OFTLinear(PairedLinear):
    """y = u W0^T + b, where u holds the parts of x, each rotated."""

    pair_forward, pair_backward = staticmethod(oft_forward), staticmethod(oft_backward)
    q: Parameter

    def tensors(self) -> dict[str, Parameter]:
        """Return q by PEFT's name."""
        return {"oft_R.weight": self.q}

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the base's cost, which includes du, and the products for u, dR and dx."""
        rotation = 2 * self.base.W.shape[1] * self.options["k"]
        return self.base.flops(T).plus(Flops(rotation, rotation * (1 + need_dx)))


@dataclass(frozen=True)
class OFTConfig(PeftMethod):
    """The options of OFT, as in PEFT: parts of `oft_block_size` entries, or `r` parts."""

    r: int = 0
    oft_block_size: int = 32
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5
    block_share: bool = False
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None

    name, peft_type, peft_transposes = "oft", "OFT", False
    peft_defaults: ClassVar = {"coft": False, "eps": 6e-5, "peft_version": "0.21.0"}

    def __post_init__(self) -> None:
        check_whole("num_cayley_neumann_terms", self.num_cayley_neumann_terms, 3, 99)
        for name in ("r", "oft_block_size"):
            check_whole(name, getattr(self, name), 0)
        if (self.r == 0) == (self.oft_block_size == 0):
            raise ValueError("give r or oft_block_size, and set the other to 0")

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> OFTLinear:
        """Return `layer` with every rotation at I."""
        name, n = ("r", self.r) if self.r else ("oft_block_size", self.oft_block_size)
        d_in = layer.W.shape[1]
        k = 1 if d_in % n else d_in // n if self.r else n
        if k == 1:
            fits = [m for m in range(2, d_in + 1) if d_in % m == 0]
            what = f"{name} = {n}, but the {d_in} inputs of {path or 'the layer'}"
            raise ValueError(f"{what} divide into parts of {fits}")
        q = np.zeros((1 if self.block_share else d_in // k, k * (k - 1) // 2))
        terms = self.num_cayley_neumann_terms if self.use_cayley_neumann else None
        return OFTLinear(layer, {"q": parameter_like(layer.W, q)}, {"k": k, "terms": terms})

    @classmethod
    def of_fields(cls, saved: Fields) -> Any:
        """Return the configuration in the fields of a file of PEFT 0.18 or later."""
        found = super().of_fields(saved)
        if found and found.use_cayley_neumann and not {"peft_version", METHOD_FIELD} & saved.keys():
            raise ValueError("PEFT before 0.18 had another series: train this OFT anew")
        return found
