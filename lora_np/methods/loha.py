"""LoHa: the change of a weight is the product, entry by entry, of two matrices of rank r.

::

    W = W0 + s P1 * P2           (out, in)      s = alpha / r
    P1 = B1 A1,  P2 = B2 A2                     B (out, r), A (r, in)

Row o of P1 is sum_i B1_oi A1_i, with the rows A1_i of A1. So row o of P1 * P2 is a sum over the r^2
rows A1_i * A2_j, with the factors B1_oi B2_oj: the rank of the change is up to r^2, for twice the
numbers of LoRA. Backwards, by the product rule for each entry::

    dP1 = s dW * P2     dB1 = dP1 A1^T    dA1 = B1^T dP1
    dP2 = s dW * P1     dB2 = dP2 A2^T    dA2 = B2^T dP2       dW0 = dW

A2 starts at zero, so W starts at W0, and only A2 learns in the first step.

A step forms dW = dy^T x, as full fine-tuning does, and LoRA does not. Four thin products over the
r^2 rows A1_i * A2_j could take its place, but they cost less only if 2 r^2 (in + out) < in out: for
r = 8, only above a width of 256.

Sources: Hyeon-Woo et al. (2021), arXiv:2108.06098, proposition 1; as an adapter, LyCORIS: Yeh et
al. (2023), arXiv:2309.14859; names and start of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Linear
from lora_np.methods.options import check_positive, check_whole
from lora_np.methods.peft import PeftMethod
from lora_np.methods.reweighted import Reweighted
from lora_np.methods.start import kaiming, parameter_like
from lora_np.methods.targets import check_rank
from lora_np.ops.contract import Need, expect_shape, wanted


class LoHaCache(NamedTuple):
    """What :func:`loha_weight_backward` reads."""

    factors: tuple[Array, Array, Array, Array]  # B1, A1, B2, A2
    P1: Array  # (out, in)
    P2: Array  # (out, in)
    scale: float


def loha_weight_forward(
    W0: Array, B1: Array, A1: Array, B2: Array, A2: Array, *, scale: float
) -> tuple[Array, LoHaCache]:
    """Compute W = W0 + scale (B1 A1) * (B2 A2).

    Parameters
    ----------
    W0 : array, shape (out, in)
    B1, A1, B2, A2 : arrays, shapes (out, r), (r, in), (out, r) and (r, in)
    scale : float
        alpha / r.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.loha import loha_weight_forward
    >>> one = np.array([[1.0]])
    >>> loha_weight_forward(one, 2 * one, 3 * one, 4 * one, 5 * one, scale=0.5)[0].tolist()
    [[61.0]]
    """
    d_out, d_in = W0.shape
    for i, (B, A) in enumerate(((B1, A1), (B2, A2)), start=1):
        expect_shape(f"B{i}", B, d_out, None)
        expect_shape(f"A{i}", A, B.shape[1], d_in)
    P1, P2, scale = B1 @ A1, B2 @ A2, float(scale)
    return W0 + scale * (P1 * P2), LoHaCache((B1, A1, B2, A2), P1, P2, scale)


def loha_weight_backward(
    dW: Array, cache: LoHaCache, need: Need = None
) -> tuple[Array | None, ...]:
    """Return (dW0, dB1, dA1, dB2, dA2) of :func:`loha_weight_forward`."""
    (B1, A1, B2, A2), P1, P2, scale = cache
    need_W0, need_B1, need_A1, need_B2, need_A2 = wanted(need, 5)
    dB1 = dA1 = dB2 = dA2 = None
    if need_B1 or need_A1:
        dP1 = scale * (dW * P2)  # (out, in)
        dB1 = dP1 @ A1.T if need_B1 else None  # (out, r)
        dA1 = B1.T @ dP1 if need_A1 else None  # (r, in)
    if need_B2 or need_A2:
        dP2 = scale * (dW * P1)  # (out, in)
        dB2 = dP2 @ A2.T if need_B2 else None  # (out, r)
        dA2 = B2.T @ dP2 if need_A2 else None  # (r, in)
    return dW if need_W0 else None, dB1, dA1, dB2, dA2


class LoHaLinear(Reweighted):
    """y = x W^T + b with W = W0 + scale (B1 A1) * (B2 A2); its Parameters have PEFT's names."""

    weight_forward = staticmethod(loha_weight_forward)
    weight_backward = staticmethod(loha_weight_backward)


@dataclass(frozen=True)
class LoHaConfig(PeftMethod):
    """The options of LoHa, as in PEFT.

    Parameters
    ----------
    r : int
        The rank of each of the two matrices.
    alpha : float
        The change of a weight is ``alpha / r`` times their product.
    target_modules, layers_to_transform
        As in :class:`lora_np.LoraConfig`.
    """

    r: int = 8
    alpha: float = 8
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None

    name = "loha"
    peft_type, peft_transposes = "LOHA", False

    def __post_init__(self) -> None:
        check_whole("r", self.r)
        check_positive("alpha", self.alpha)

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> LoHaLinear:
        """Return `layer` with A2 = 0 and the other factors random."""
        check_rank(self.r, path, layer.W.shape)
        (d_out, d_in), r = layer.W.shape, self.r
        drawn = {
            "hada_w1_a": kaiming(rng, (d_out, r)),
            "hada_w1_b": kaiming(rng, (r, d_in)),
            "hada_w2_a": kaiming(rng, (d_out, r)),
            "hada_w2_b": np.zeros((r, d_in)),
        }
        held = {name: parameter_like(layer.W, x) for name, x in drawn.items()}
        return LoHaLinear(layer, held, {"scale": self.alpha / r})
