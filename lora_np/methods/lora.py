"""LoRA: y = x W0^T + b + s (x A^T) B^T, with W0 frozen; the first method, on one page.

The change s B A of a weight has rank at most r: A (r, in), B (out, r), s = lora_alpha / r.
ops/lora.py derives the gradients. This file has the layer; lora_config.py has the options.

Source: Hu et al. (2021), arXiv:2106.09685, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lora_np.backend import Array, get_xp, to_host
from lora_np.layers import Flops, Linear, Rng, probability, product_flops
from lora_np.methods.contract import Adapter, MethodConfig
from lora_np.methods.stacked import FACTOR_NAMES, Factors
from lora_np.methods.start import STARTS
from lora_np.methods.table import make_method
from lora_np.ops import dropout_mask
from lora_np.ops.fast import lora_linear_backward, lora_linear_forward
from lora_np.parameters import Grads, Parameter


class LoRALinear(Adapter):
    """y = x W0^T + b + scale ((x * mask) A^T) B^T over a linear layer's W0 and b.

    Parameters
    ----------
    linear : Linear
        The adapted layer; its Parameters are used, not copied.
    A, B : Parameter
        Shapes (r, in) and (out, r).
    scale : float
    dropout : float
        Probability of dropping an entry of the adapter's input, if forward gets an rng.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoRALinear, Parameter
    >>> base = Linear(4, 3, np.random.default_rng(0), dtype=np.float64)
    >>> lora = LoRALinear(base, Parameter(np.ones((1, 4))), Parameter(np.ones((3, 1))), scale=0.5)
    >>> x = np.ones((2, 4))
    >>> (lora.forward(x)[0] - base.forward(x)[0]).round(12).tolist()  # 0.5 B (A x)
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    >>> lora.delta().tolist()[0]
    [0.5, 0.5, 0.5, 0.5]
    >>> lora
    LoRALinear(W0 (3, 4), b (3,), A (1, 4), B (3, 1), r=1, alpha=0.5, dropout=0)
    22 parameters, 22 trainable
    """

    file_names: ClassVar[Mapping[str, str]] = FACTOR_NAMES[Linear]
    starts: ClassVar = STARTS

    def __init__(
        self, linear: Linear, A: Parameter, B: Parameter, scale: float, dropout: float = 0.0
    ) -> None:
        self.W0, self.b = linear.W, linear.b
        self.A, self.B = A, B
        self.scale = float(scale)  # an np.float64 would lift float32 to float64
        self.dropout = probability(dropout)

    @property
    def base(self) -> Linear:
        """The linear layer without the adapter, over the same Parameters."""
        return Linear.over(self.W0, self.b)

    @property
    def r(self) -> int:
        """The rank."""
        return self.A.shape[0]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., out) and the cache."""
        mask = dropout_mask(x, self.dropout, rng) if rng is not None and self.dropout else None
        b = None if self.b is None else self.b.value
        return lora_linear_forward(x, self.W0.value, *self.pair(), b, scale=self.scale, mask=mask)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dA and dB, and dW0 and db unless W0 and b are frozen; return dx."""
        held = [self.W0, self.A, self.B, self.b]
        need = [need_dx, *(p is not None and p.trainable for p in held)]
        dx, *gradients = lora_linear_backward(dy, cache, need)
        grads.add_all(held, gradients)
        return dx

    def facts(self) -> dict[str, Any]:
        """Return the rank and lora_alpha in place of the scale."""
        found = super().facts()
        return {"r": self.r, "alpha": found.pop("scale") * self.r, **found}

    def pair(self) -> tuple[Array, Array]:
        """Return A and B."""
        return self.A.value, self.B.value

    def delta(self) -> Array:
        """Return scale B A (out, in), for merging and analysis; training never forms it."""
        self._refuse_more_than_A_and_B("delta")
        A, B = self.pair()
        return self.scale * (B @ A)

    def merged(self) -> Linear:
        """Return the plain linear layer with W = W0 + scale B A."""
        return Linear.over(Parameter(self.W0.value + self.delta()), self.b)

    def tensors(self) -> dict[str, Parameter]:
        """Return A and B by PEFT's names, and what a subclass adds by its own."""
        return {self.file_names.get(name, name): p for name, p in self.own().items()}

    def factors(self) -> Factors:
        """Return B (out, r), A (r, in) and the scale, on the host, as in PEFT's files."""
        self._refuse_more_than_A_and_B("factors")
        A, B = self.pair()
        return to_host(B), to_host(A), self.scale

    def config(self) -> MethodConfig:
        """Return a configuration with this layer's rank and scale."""
        options = {"lora_alpha": self.scale * self.r, "lora_dropout": self.dropout}
        return make_method("lora", r=self.r, **options)

    def _refuse_more_than_A_and_B(self, method: str) -> None:
        """Raise ValueError if a subclass has further Parameters, so that B A is not its change."""
        if not {p for p in self.own().values() if p.trainable} <= {self.A, self.B}:
            raise ValueError(
                f"{type(self).__name__} has Parameters besides A and B: it must define {method}()"
            )

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of W0 and of the adapter: two thin products, then du, dA, dB and dx.

        A large batch costs less: forward and backward form W0 + s B A (see ops/fast/lora.py).
        """
        a, b = 2 * self.A.size, 2 * self.B.size
        reach_u = b * (need_dx or self.A.trainable)
        thin = reach_u + a * (need_dx + self.A.trainable) + b * self.B.trainable
        return product_flops(self.W0, need_dx).plus(Flops(a + b, thin))


class StartedLoRA(LoRALinear):
    """LoRA whose product at the start is part of W0: y = x W0^T + b + s x (B A - B0 A0)^T.

    PiSSA and OLoRA start with factors of W0 itself, and train them over the residual W0 - s B0 A0.
    Here W0 stays as it is, shared with the base, and A0 and B0 are kept: the change is LoRA of rank
    2r, for files and forward alike, of which the first half is trained::

        B A - B0 A0 = [B, -B0] [A; A0]

    Source: Meng et al. (2024), arXiv:2404.02948, section 3 and appendix C.
    """

    def __init__(
        self, linear: Linear, A: Parameter, B: Parameter, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(linear, A, B, scale, dropout)
        self.A0, self.B0 = (Parameter(p.value.copy(), trainable=False) for p in (A, B))

    def pair(self) -> tuple[Array, Array]:
        """Return [A; A0] (2r, in) and [B, -B0] (out, 2r)."""
        xp, A, B = get_xp(self.A.value), self.A.value, self.B.value
        return xp.concatenate([A, self.A0.value]), xp.concatenate([B, -self.B0.value], axis=1)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of A and B, the first r of 2r; return dx."""
        W0, A, B, b, A0, B0, r = self.W0, self.A, self.B, self.b, self.A0, self.B0, self.r
        need_A, need_B = A.trainable or A0.trainable, B.trainable or B0.trainable
        need = (need_dx, W0.trainable, need_A, need_B, b is not None and b.trainable)
        dx, dW0, dA, dB, db = lora_linear_backward(dy, cache, need)  # dA (2r, in), dB (out, 2r)
        grads.add_all((W0, b), (dW0, db))
        grads.add(A, dA[:r] if dA is not None and A.trainable else None)
        grads.add(A0, dA[r:] if dA is not None and A0.trainable else None)
        grads.add(B, dB[:, :r] if dB is not None and B.trainable else None)
        grads.add(B0, -dB[:, r:] if dB is not None and B0.trainable else None)
        return dx
