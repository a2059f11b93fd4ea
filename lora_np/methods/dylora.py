"""DyLoRA: one LoRA of rank r from which every smaller rank can be taken.

Every step draws a rank k from 1 to r, the same for all layers and all parts of its batch, and uses
the first k rows A[:k] of A (r, in) and columns B[:, :k] of B (out, r)::

    y  = x W0^T + b + s_k (x A[:k]^T) B[:, :k]^T        s_k = alpha / k, or alpha / r ("constant")
    dA = [dA_k; 0],  dB = [dB_k, 0]                     LoRA's gradients of the parts in use

So the first ranks are trained most often, and each cut of the result is a LoRA of its own. The rule
``update="frozen"`` leaves what lower ranks have learned: of dA_k only the last row is kept, of dB_k
only the last column. They are the gradients of the loss in row and column k, the others constant.

Adam also moves an entry whose gradient is zero, by its momentum, and AdamW's decay shrinks it. In
the paper, a step changes only what it trains. So the ranks that received no gradient are restored
after each step, with any optimizer. (Adam's moments of these ranks still decay.)

Source: Valipour et al. (2022), arXiv:2210.07558, section 4 and algorithm 1; the paper calls k b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.layers import Layer, Linear, Rng, rebuild
from lora_np.methods.contract import MethodConfig, adapters, method_of, with_adapters
from lora_np.methods.lora import LoRALinear
from lora_np.methods.lora_config import LoraConfig
from lora_np.methods.start import STARTS, parameter_like
from lora_np.methods.targets import check_rank
from lora_np.ops.fast import lora_linear_backward
from lora_np.parameters import Grads, Parameter, gradients_of


class DyLoRALinear(LoRALinear):
    """LoRA whose first ranks can be used alone; `scales` has the scale of each rank 1 .. r."""

    def __init__(self, linear: Linear, A: Parameter, B: Parameter, config: DyLoraConfig) -> None:
        self.scales = tuple(config.at(rank).scale_of("") for rank in range(1, config.r + 1))
        super().__init__(linear, A, B, self.scales[-1], config.lora_dropout)
        self.frozen = config.update == "frozen"
        self.drawn: int | None = None
        self.before: tuple[Array, Array] | None = None  # A and B as the optimizer finds them

    def pair(self) -> tuple[Array, Array]:
        """Return A (k, in) and B (out, k)."""
        return self.A.value[: self.drawn], self.B.value[:, : self.drawn]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out), and the cache with the ranks whose gradients are kept."""
        y, cache = super().forward(x, rng)
        first = self.drawn - 1 if self.frozen and self.drawn else 0
        return y, (cache, first, self.drawn or self.r)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of A and B, zero for ranks that are not trained; return dx."""
        W0, A, B, b, (lora, first, k) = self.W0, self.A, self.B, self.b, cache
        need = (need_dx, *(p is not None and p.trainable for p in (W0, A, B, b)))
        dx, dW0, dA_k, dB_k, db = lora_linear_backward(dy, lora, need)
        xp = get_xp(dy)
        if dA_k is not None:
            dA = xp.zeros(A.shape, dA_k.dtype)  # (r, in)
            dA[first:k] = dA_k[first:]
            grads.add(A, dA)
        if dB_k is not None:
            dB = xp.zeros(B.shape, dB_k.dtype)  # (out, r)
            dB[:, first:k] = dB_k[:, first:]
            grads.add(B, dB)
        grads.add_all((W0, b), (dW0, db))
        return dx


@dataclass(frozen=True)
class DyLoraConfig(MethodConfig):
    """The options of DyLoRA; every step draws a rank, so ``fit`` needs an rng.

    Parameters
    ----------
    r : int
        The largest rank.
    lora_alpha, lora_dropout, target_modules, layers_to_transform
        As for :class:`lora_np.LoraConfig`.
    update : {"all", "frozen"}
        Whether a step trains all ranks up to the drawn one, or the drawn one alone.
    scale : {"drawn", "constant"}
        lora_alpha / k, or lora_alpha / r.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, inject
    >>> from lora_np.methods import DyLoraConfig, at_rank
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(Linear(6, 5, rng), DyLoraConfig(r=4, target_modules="all-linear"), rng)
    >>> adapted.r, at_rank(adapted, 2).r
    (4, 2)
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None
    update: Literal["all", "frozen"] = "all"
    scale: Literal["drawn", "constant"] = "drawn"

    name = "dylora"

    def __post_init__(self) -> None:
        LoraConfig(self.r, self.lora_alpha, self.lora_dropout, self.target_modules)  # checks them

    def at(self, rank: int) -> LoraConfig:
        """Return the options of the plain LoRA of this rank."""
        alpha = self.lora_alpha * (rank / self.r if self.scale == "constant" else 1)
        options = self.lora_dropout, self.target_modules, self.layers_to_transform
        return LoraConfig(rank, alpha, *options)

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> DyLoRALinear:
        """Return `layer` with LoRA of the largest rank at its start."""
        W0 = layer.W.value
        check_rank(self.r, path, W0.shape)
        A, B = (parameter_like(layer.W, x) for x in STARTS[True](rng, W0, self.r, 1.0))
        return DyLoRALinear(layer, A, B, self)

    def draw(self, rng: np.random.Generator | None) -> int:
        """Return the rank of a step, uniform from 1 .. r."""
        if rng is None:
            raise ValueError("DyLoRA draws a rank at every step: pass rng to fit or Trainer")
        return int(rng.integers(1, self.r + 1))

    def use(self, model: Layer, drawn: int | None) -> None:
        """Let all layers compute at the drawn rank; None is the largest.

        None comes after the gradients and before the optimizer, so the copies are made then.
        """
        for layer in adapters(model).values():
            layer.drawn, layer.scale = drawn, layer.scales[(drawn or self.r) - 1]
            layer.before = (layer.A.value.copy(), layer.B.value.copy()) if drawn is None else None

    def after_step(self, model: Layer, step: int, gradient: Array) -> None:
        """Restore the ranks of A and B that received no gradient."""
        of = gradients_of(model.parameters(), gradient)
        for layer in adapters(model).values():
            for p, before, axis in zip((layer.A, layer.B), layer.before, (1, 0)):
                if p in of:
                    still = get_xp(p.value).flatnonzero((of[p] == 0).all(axis=axis))
                    at = (still,) if axis else (slice(None), still)
                    p.value[at] = before[at]
            layer.before = None


def at_rank(adapted: Layer, rank: int) -> Any:
    """Return the model with plain LoRA of its first `rank` ranks, frozen, over the same arrays.

    To evaluate it, or for :func:`lora_np.save_adapter`: the file is PEFT's LoRA.
    """
    config = method_of(adapted)
    if not isinstance(config, DyLoraConfig) or not 1 <= rank <= config.r:
        raise ValueError(f"rank {rank} of {config}, expected DyLoRA and a rank from 1 to its r")
    plain, targets = config.at(rank), tuple(adapters(adapted))

    def cut(path: str, layer: Any) -> LoRALinear | None:
        if not isinstance(layer, DyLoRALinear):
            return None
        layer.A.value, layer.B.value = layer.A.value[:rank], layer.B.value[:, :rank]
        return LoRALinear(layer.base, layer.A, layer.B, layer.scales[rank - 1], layer.dropout)

    return with_adapters(
        rebuild(adapted, Parameter.share), cut, replace(plain, target_modules=targets)
    )
