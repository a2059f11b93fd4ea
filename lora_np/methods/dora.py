"""DoRA: the length of every row of W is trained apart from its direction.

::

    V = W0 + s B A                      (out, in)   LoRA's weight
    W = (m / n) V,  n_o = ||V_o||       m (out,)    row o of W has length m_o, whatever B A does
    y = x W^T + b = (m / n) * z + b                 z = x V^T is LoRA's output

So DoRA is LoRA with the gain k = m / n behind it. At the start B = 0 and m = n, so W = W0. From the
outside in::

    dk = sum over samples of dy * z     (out,)      dm = dk / n
    dz = dy * k                         (N, out)    from which LoRA's backward goes on

n depends on A and B too. The paper holds it constant (section 4.3), and so does PEFT: the gradients
above are then all, and not quite those of the loss. ``exact=True`` adds the path through n. The
derivative of n_o = ||V_o|| is V_o / n_o, so with dn = -dk m / n^2::

    dV = c V,  c = -dk m / n^3          (out,)      dA += s B^T dV, dB += s dV A^T, dW0 += dV

Source: Liu et al. (2024), arXiv:2402.09353, equations 5 and 11; rows of W (out, in), as in PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from lora_np.backend import Array, to_host
from lora_np.layers import Layer, Linear, Rng
from lora_np.methods.contract import Fields, FileForm, Places, Tensors
from lora_np.methods.lora import LoRALinear
from lora_np.methods.lora_config import LoraConfig
from lora_np.methods.peft_dora import dora_of_peft, dora_to_peft
from lora_np.methods.peft_lora import lora_options
from lora_np.methods.start import OF_W0
from lora_np.ops import dropout_mask
from lora_np.ops.contract import Need, wanted
from lora_np.ops.fast import lora_linear_backward, lora_linear_forward
from lora_np.ops.linear import row_lengths, rows, sum_rows
from lora_np.parameters import Grads, Parameter


class DoraCache(NamedTuple):
    """What :func:`dora_backward` reads."""

    lora: Any
    z: Array  # (..., out)
    m: Array  # (out,)
    n: Array  # (out,)
    V: Array | None  # (out, in), if n is differentiated
    has_bias: bool


def dora_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    m: Array,
    b: Array | None = None,
    *,
    scale: float,
    n: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, DoraCache]:
    """Compute y = (m / n) * (x V^T) + b with V = W0 + scale B A.

    The arguments are those of :func:`lora_np.ops.lora_linear_forward`, and m (out,). The lengths n
    (out,) are V's and are differentiated, unless they are given as constants.
    """
    V = None
    if n is None:
        V = W0 + scale * (B @ A)  # (out, in)
        n = row_lengths(V)
    z, c_lora = lora_linear_forward(x, W0, A, B, scale=scale, mask=mask)  # (..., out)
    y = (m / n) * z
    return y if b is None else y + b, DoraCache(c_lora, z, m, n, V, b is not None)


def dora_backward(dy: Array, cache: DoraCache, need: Need = None) -> tuple[Array | None, ...]:
    """Return (dx, dW0, dA, dB, dm, db) of :func:`dora_forward`."""
    c_lora, z, m, n, V, has_bias = cache
    need_x, need_W0, need_A, need_B, need_m, need_b = wanted(need, 6)
    dz = dy * (m / n)  # (..., out)
    dk = (rows(dy) * rows(z)).sum(axis=0)  # (out,)
    dx, dW0, dA, dB, _ = lora_linear_backward(dz, c_lora, (need_x, need_W0, need_A, need_B, False))
    if V is not None:
        dV = (-dk * m / n**3)[:, None] * V  # (out, in), through n
        dW0 = dW0 + dV if need_W0 else None
        dA = dA + c_lora.scale * (c_lora.B.T @ dV) if need_A else None
        dB = dB + c_lora.scale * (dV @ c_lora.A.T) if need_B else None
    db = sum_rows(dy) if need_b and has_bias else None
    return dx, dW0, dA, dB, dk / n if need_m else None, db


class DoraLinear(LoRALinear):
    """y = (m / n) * (x V^T) + b over a linear layer; V is LoRA's weight, n its rows' lengths."""

    file_names: ClassVar = {**LoRALinear.file_names, "m": "lora_magnitude_vector"}

    def __init__(
        self, linear: Linear, A: Parameter, B: Parameter, scale: float, dropout: float, exact: bool
    ) -> None:
        super().__init__(linear, A, B, scale, dropout)
        self.m, self.exact = Parameter(row_lengths(linear.W.value)), exact

    def weight(self) -> Array:
        """Return V (out, in)."""
        return self.W0.value + self.scale * (self.B.value @ self.A.value)

    def constants(self) -> dict[str, Array]:
        """Return n, unless it is differentiated."""
        return {} if self.exact else {"n": row_lengths(self.weight())}

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, DoraCache]:
        """Return y (..., out) and the cache."""
        n = (self.fixed or self.constants()).get("n")
        mask = dropout_mask(x, self.dropout, rng) if rng is not None and self.dropout else None
        W0, A, B, m = (p.value for p in (self.W0, self.A, self.B, self.m))
        b = None if self.b is None else self.b.value
        return dora_forward(x, W0, A, B, m, b, scale=self.scale, n=n, mask=mask)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of A, B and m, and of W0 and b if trained; return dx."""
        held = [self.W0, self.A, self.B, self.m, self.b]
        need = [need_dx, *(p is not None and p.trainable for p in held)]
        dx, *gradients = dora_backward(dy, cache, need)
        grads.add_all(held, gradients)
        return dx

    def delta(self) -> Array:
        """Return (m / n) V - W0 (out, in)."""
        V = self.weight()
        return (self.m.value / row_lengths(V))[:, None] * V - self.W0.value

    def factors(self) -> Any:
        """Return V's B, A and scale, which PEFT's files hold beside m."""
        return to_host(self.B.value), to_host(self.A.value), self.scale


@dataclass(frozen=True)
class DoraConfig(LoraConfig):
    """DoRA: the options of LoRA, and whether the rows' lengths are differentiated (`exact`).

    Dropout acts on LoRA's path only. (PEFT then computes W0 x twice, once with dropout.)
    """

    exact: bool = False

    name = "dora"
    kinds = (Linear,)
    trained_by = (*LoraConfig.trained_by, "exact")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_lora_weights in OF_W0 or not self.train_A:
            raise ValueError("DoRA starts at W0 and trains A: leave init_lora_weights and train_A")

    def over(self, layer: Linear, A: Parameter, B: Parameter, scale: float) -> DoraLinear:
        """Return the layer with these factors and with m at its start."""
        return DoraLinear(layer, A, B, scale, self.lora_dropout, self.exact)

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return LoRA's fields and tensors, and m."""
        return dora_to_peft(self, adapted, places)

    @classmethod
    def of_fields(cls, saved: Fields) -> Any:
        """Return the configuration in the fields of a file of LoRA with use_dora, or None."""
        if saved.get("peft_type") != "LORA":
            return super().of_fields(saved)
        return cls(**lora_options(saved, cls.trained_by)) if saved.get("use_dora") else None

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the adapters of a PEFT file."""
        return dora_of_peft(cls.of_fields(saved), tensors, base, places)
