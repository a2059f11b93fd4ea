"""HiRA: every entry of a weight is multiplied by 1 plus the entry of a matrix of rank r.

::

    W = W0 * (1 + P),  P = B A          (out, in)      B (out, r), A (r, in)

The change W0 * P usually has full rank: its rank is bounded by r times that of W0. Entry by entry,
dP = dW * W0, and from P the gradients of B and A are LoRA's::

    dB = dP A^T      dA = B^T dP      dW0 = dW * (1 + P)

B starts at zero, so W starts at W0. An entry of W0 that is zero stays zero.

A step forms dW = dy^T x, as full fine-tuning does: dP needs every entry of dW, because W0 is not a
product of thin matrices.

Sources: Huang et al. (2025), HiRA, ICLR 2025, https://openreview.net/forum?id=TwJrTz9cRS; names and
start of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Linear
from lora_np.methods.options import check_whole
from lora_np.methods.peft import PeftMethod
from lora_np.methods.reweighted import Reweighted
from lora_np.methods.start import kaiming, parameter_like
from lora_np.methods.targets import check_rank
from lora_np.ops.contract import Need, expect_shape, wanted


class HiraCache(NamedTuple):
    """What :func:`hira_weight_backward` reads."""

    W0: Array  # (out, in)
    A: Array  # (r, in)
    B: Array  # (out, r)
    P: Array  # (out, in)


def hira_weight_forward(W0: Array, A: Array, B: Array) -> tuple[Array, HiraCache]:
    """Compute W = W0 * (1 + B A).

    Parameters
    ----------
    W0, A, B : arrays, shapes (out, in), (r, in) and (out, r)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.hira import hira_weight_forward
    >>> W0, A, B = np.array([[1.0, 2.0]]), np.array([[1.0, -1.0]]), np.array([[0.5]])
    >>> hira_weight_forward(W0, A, B)[0].tolist()
    [[1.5, 1.0]]
    """
    expect_shape("A", A, None, W0.shape[1])
    expect_shape("B", B, W0.shape[0], A.shape[0])
    P = B @ A
    return W0 + W0 * P, HiraCache(W0, A, B, P)


def hira_weight_backward(
    dW: Array, cache: HiraCache, need: Need = None
) -> tuple[Array | None, ...]:
    """Return (dW0, dA, dB) of :func:`hira_weight_forward`."""
    W0, A, B, P = cache
    need_W0, need_A, need_B = wanted(need, 3)
    dP = dW * W0 if need_A or need_B else None  # (out, in)
    dW0 = dW + dW * P if need_W0 else None
    dA = B.T @ dP if need_A else None  # (r, in)
    dB = dP @ A.T if need_B else None  # (out, r)
    return dW0, dA, dB


class HiraLinear(Reweighted):
    """y = x W^T + b with W = W0 * (1 + B A); A and B have PEFT's names."""

    weight_forward = staticmethod(hira_weight_forward)
    weight_backward = staticmethod(hira_weight_backward)


@dataclass(frozen=True)
class HiraConfig(PeftMethod):
    """The options of HiRA, as in PEFT.

    Parameters
    ----------
    r : int
        The rank of B A.
    target_modules, layers_to_transform
        As in :class:`lora_np.LoraConfig`.
    """

    r: int = 32
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None

    name = "hira"
    peft_type = "HIRA"

    def __post_init__(self) -> None:
        check_whole("r", self.r)

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> HiraLinear:
        """Return `layer` with B = 0 and A random."""
        check_rank(self.r, path, layer.W.shape)
        d_out, d_in = layer.W.shape
        drawn = {"hira_A": kaiming(rng, (self.r, d_in)), "hira_B": np.zeros((d_out, self.r))}
        return HiraLinear(layer, {name: parameter_like(layer.W, x) for name, x in drawn.items()})
