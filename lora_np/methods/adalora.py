"""AdaLoRA: LoRA in the form of an SVD; the triplets that matter least are cut while it trains.

::

    W = W0 + s B diag(E) A             A (r, in), E (r, 1), B (out, r),  s = lora_alpha / (r + 1e-5)
    loss += w sum over layers of ||A A^T - I||^2 + ||B^T B - I||^2     Frobenius norms

The weight is LoRA's with A' = diag(E) A in the place of A. So with LoRA's dA'::

    dA = diag(E) dA'                   dE_k = sum_i dA'_ki A_ki

and with C = A A^T - I, d||C||^2/dA = 4 C A. PEFT adds the norms themselves, averaged over all A and
B: ``orth_reg="norm"``, with d||C||/dA = 2 C A / ||C||. E starts at 0, A and B from N(0, 0.02^2).
adalora_ranks.py says which triplets (a row of A, an entry of E, a column of B) are cut, and when.

Source: Zhang et al. (2023), arXiv:2303.10512, equations 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.layers import Layer, Linear, probability
from lora_np.methods.adalora_ranks import allocate, check_options
from lora_np.methods.contract import Fields, FileForm, Places, Tensors, adapters
from lora_np.methods.lora import LoRALinear
from lora_np.methods.peft import PeftMethod
from lora_np.methods.peft_adalora import DEFAULTS, TENSORS, our_fields, with_cut, without_cut
from lora_np.methods.start import parameter_like
from lora_np.methods.targets import check_rank
from lora_np.ops.contract import Need, wanted
from lora_np.ops.fast import lora_linear_backward
from lora_np.parameters import Grads, Parameter, gradients_of


def triplet_forward(A: Array, E: Array) -> tuple[Array, tuple[Array, Array]]:
    """Compute A' = diag(E) A (r, in)."""
    return E * A, (A, E)


def triplet_backward(dEA: Array, cache: tuple[Array, Array], need: Need = None) -> Any:
    """Return (dA, dE) of :func:`triplet_forward`."""
    A, E = cache
    need_A, need_E = wanted(need, 2)
    return E * dEA if need_A else None, (dEA * A).sum(1, keepdims=True) if need_E else None


def orthogonality(A: Array, squared: bool = True) -> tuple[float, Array]:
    """Return ||A A^T - I||^2, or the norm itself, and its gradient (r, in)."""
    C = A @ A.T - get_xp(A).eye(len(A), dtype=A.dtype)  # (r, r)
    total = float((C * C).sum())
    norm = math.sqrt(total)
    return (total, 4.0 * (C @ A)) if squared else (norm, (2.0 / (norm or 1.0)) * (C @ A))


class AdaLoraLinear(LoRALinear):
    """LoRA with A' = diag(E) A, and the state by which its triplets are cut."""

    def __init__(
        self, linear: Linear, A: Parameter, E: Parameter, B: Parameter, scale: float, dropout: float
    ) -> None:
        super().__init__(linear, A, B, scale, dropout)
        xp, n, dtype = get_xp(E.value), A.size + E.size + B.size, E.dtype
        self.E, self.kept = E, Parameter(xp.ones(E.shape, dtype), trainable=False)  # 0: cut
        self.ema = Parameter(xp.zeros((2, n), dtype), trainable=False)  # I and U of A, E and B

    def triplets(self) -> tuple[Parameter, ...]:
        """Return A, E and B."""
        return self.A, self.E, self.B

    def moving(self) -> list[Parameter]:
        """Return what the cuts depend on."""
        return [self.kept, self.ema]

    def pair(self) -> tuple[Array, Array]:
        """Return A' and B."""
        return triplet_forward(self.A.value, self.E.value)[0], self.B.value

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add the gradients of A, E and B, and of W0 and b if trained; return dx."""
        A, E, held = self.A, self.E, (self.W0, self.B, self.b)
        need_W0, need_B, need_b = (p is not None and p.trainable for p in held)
        need = (need_dx, need_W0, A.trainable or E.trainable, need_B, need_b)
        dx, dW0, dEA, dB, db = lora_linear_backward(dy, cache, need)
        dA = dE = None
        if dEA is not None:
            dA, dE = triplet_backward(dEA, (A.value, E.value), (A.trainable, E.trainable))
        grads.add_all((A, E, *held), (dA, dE, dW0, dB, db))
        return dx

    def _refuse_more_than_A_and_B(self, method: str) -> None:
        """Do nothing: E is part of A', so that A' and B are the whole change."""

    def tensors(self) -> dict[str, Parameter]:
        """Return A, E and B by PEFT's names, and which triplets are kept."""
        return {**dict(zip(TENSORS, self.triplets())), "kept": self.kept}


@dataclass(frozen=True)
class AdaLoraConfig(PeftMethod):
    """AdaLoRA's options by PEFT's names, and `orth_reg`: "squared" (the paper's) or "norm"."""

    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None
    orth_reg: Literal["squared", "norm"] = "squared"

    name = "adalora"
    peft_type = "ADALORA"
    peft_defaults = DEFAULTS

    def __post_init__(self) -> None:
        check_options(self)
        probability(self.lora_dropout, "lora_dropout")

    def of_rank(self, r: int) -> AdaLoraConfig:
        """Return the configuration with target_r = `r` and init_r in about the same ratio."""
        start = -(-r * self.init_r // self.target_r)
        return replace(self, target_r=r, init_r=start, lora_alpha=start)  # scale 1 at every rank

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> AdaLoraLinear:
        """Return `layer` with init_r triplets whose E is zero."""
        (d_out, d_in), r = layer.W.shape, self.init_r
        check_rank(r, path, (d_out, d_in))
        drawn = (0.02 * rng.standard_normal(shape) for shape in ((r, d_in), (d_out, r)))
        A, B, E = (parameter_like(layer.W, x) for x in (*drawn, np.zeros((r, 1))))
        return AdaLoraLinear(layer, A, E, B, self.lora_alpha / (r + 1e-5), self.lora_dropout)

    def penalty(self, model: Layer, grads: Grads) -> float:
        """Return the orthogonality penalty, and add its gradients."""
        squared, layers, total = self.orth_reg == "squared", adapters(model).values(), 0.0
        weight = self.orth_reg_weight / (1 if squared else 2 * len(layers))
        for layer in layers if weight else ():
            for p, turn in ((layer.A, False), (layer.B, True)):
                value, d = orthogonality(p.value.T if turn else p.value, squared)
                total += weight * value
                if p.trainable:
                    grads.add(p, weight * (d.T if turn else d))
        return total

    def after_step(self, model: Layer, step: int, gradient: Array) -> None:
        """Update the scores, change the kept triplets if it is time, and cut the others."""
        gradients = gradients_of(model.parameters(), gradient)
        allocate(self, list(adapters(model).values()), step + 1, gradients)

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return PEFT's fields and tensors: those of the kept triplets."""
        fields, tensors = super().to_peft(adapted, places)
        return without_cut(fields, tensors)

    @classmethod
    def of_fields(cls, saved: Fields) -> Any:
        """Return the configuration in the fields of a file of PEFT's type, or of our own."""
        return super().of_fields(our_fields(saved))

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the adapters of a PEFT file; cut triplets are zero."""
        r = cls.of_fields(saved).init_r
        return super().of_peft(saved, with_cut(saved, tensors, r), base, places)
