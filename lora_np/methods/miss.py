"""MiSS: LoRA with a fixed A, which adds up the parts of x.

::

    y = x W0^T + b + (x S^T) M          M (r, out), trained;  S (r, in) = [I I ... I], fixed

x S^T (N, r) is the sum of the parts of x, of r entries each; the last part is shorter where r does
not divide in. So W = W0 + M^T S: the same M^T (out, r) is added to every part of W0. This is LoRA
with A = S, B = M^T and s = 1, and its gradients are LoRA's, without dA::

    dx = dy W0 + (dy M^T) S      dM = (x S^T)^T dy      dW0 = dy^T x

M starts at zero, so y starts at the base's. PEFT's form "mini" repeats a narrower M (r, m) over the
outputs, out / m times; dM is then the sum over the repetitions.

Sources: Kang and Yin (2024), arXiv:2409.15371; names and start of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp
from lora_np.layers import Flops, Linear
from lora_np.methods.contract import Fields
from lora_np.methods.options import check_whole
from lora_np.methods.paired import PairedLinear
from lora_np.methods.peft import PeftMethod
from lora_np.methods.start import parameter_like
from lora_np.ops.contract import Need, wanted
from lora_np.ops.fast import lora_linear_backward, lora_linear_forward
from lora_np.parameters import Parameter


class MissCache(NamedTuple):
    """What :func:`miss_backward` reads."""

    lora: Any
    shape: tuple[int, int]  # of M


def miss_forward(x: Array, W0: Array, M: Array, b: Array | None = None) -> tuple[Array, MissCache]:
    """Compute y = x W0^T + b + (x S^T) M, where S adds up the parts of x.

    Parameters
    ----------
    x, W0, b : arrays, shapes (..., in), (out, in) and (out,)
    M : array, shape (r, out), or (r, m) to be repeated out / m times

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.miss import miss_forward
    >>> x, M = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[1.0], [10.0]])
    >>> miss_forward(x, np.zeros((1, 4)), M)[0].tolist()  # (1 + 3) 1 + (2 + 4) 10
    [[64.0]]
    """
    xp, (d_out, d_in), (r, m) = get_xp(x), W0.shape, M.shape
    if d_out % m:
        raise ShapeError(f"M has {m} columns, which do not divide the {d_out} outputs")
    S = xp.tile(xp.eye(r, dtype=M.dtype), -(-d_in // r))[:, :d_in]  # (r, in)
    y, lora = lora_linear_forward(x, W0, S, xp.tile(M, d_out // m).T, b, scale=1.0)
    return y, MissCache(lora, M.shape)


def miss_backward(dy: Array, cache: MissCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dx, dW0, dM, db) of :func:`miss_forward`."""
    need_x, need_W0, need_M, need_b = wanted(need, 4)
    of_lora = (need_x, need_W0, False, need_M, need_b)
    dx, dW0, _, dB, db = lora_linear_backward(dy, cache.lora, of_lora)  # dB (out, r)
    r, m = cache.shape
    dM = None if dB is None else dB.T.reshape(r, -1, m).sum(axis=1)
    return dx, dW0, dM, db


class MissLinear(PairedLinear):
    """y = x W0^T + b + (x S^T) M over a linear layer."""

    miss_block: Parameter
    pair_forward, pair_backward = staticmethod(miss_forward), staticmethod(miss_backward)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of W0 and of the products with S and M; a large batch merges them."""
        (d_out, d_in), r = self.base.W.shape, self.miss_block.shape[0]
        forward, of_M = 2 * r * (d_in + d_out), 2 * r * d_out
        return self.base.flops(T, need_dx).plus(Flops(forward, forward * need_dx + of_M))


@dataclass(frozen=True)
class MissConfig(PeftMethod):
    """The options of MiSS, as in PEFT.

    Parameters
    ----------
    r : int
        The length of a part of x.
    init_weights : bool or str
        True, or "mini": M has `mini_r` columns, which divide the outputs.
    mini_r : int
    target_modules, layers_to_transform
        As in :class:`lora_np.LoraConfig`.
    """

    r: int = 64
    init_weights: Literal[True, "mini"] = True
    mini_r: int = 1
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None

    name = "miss"
    peft_type, peft_transposes = "MISS", False

    def __post_init__(self) -> None:
        check_whole("r", self.r)
        check_whole("mini_r", self.mini_r)

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> MissLinear:
        """Return `layer` with M = 0."""
        (d_out, d_in), m = layer.W.shape, self.mini_r
        if self.r > d_in:
            raise ValueError(f"r = {self.r} is above the {d_in} inputs of {path or 'the layer'}")
        if self.init_weights != "mini":
            m = d_out
        elif d_out % m:
            raise ValueError(f"mini_r = {m} does not divide the {d_out} outputs of {path}")
        return MissLinear(layer, {"miss_block": parameter_like(layer.W, np.zeros((self.r, m)))})

    @classmethod
    def of_fields(cls, saved: Fields) -> Any:
        """Return the configuration in the fields of a file; False was a start of True's form."""
        plain = saved.get("init_weights") is False
        return super().of_fields({**saved, "init_weights": True} if plain else saved)
