"""LoRA: y = x W0^T + b + s (x A^T) B^T, with W0 frozen; the first method, on one page.

The change s B A of a weight has rank at most r: A (r, in), B (out, r), s = lora_alpha / r.
ops/lora.py derives the gradients. This file has the options, the start, the layer, merging, and the
form in PEFT's files.

Start: A is drawn kaiming-uniform with a = sqrt(5), that is from U(-1/sqrt(in), 1/sqrt(in)). B is
zero, so that the adapted model starts with exactly the outputs of the base.

Source: Hu et al. (2021), arXiv:2106.09685, section 4; rsLoRA: Kalajdzievski (2023),
arXiv:2312.03732. Names follow PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_np.backend import Array, like, to_host
from lora_np.layers import Flops, Layer, Linear, Rng, probability, product_flops, rebuild
from lora_np.methods.contract import Adapter, FilePlace, MethodConfig, adapters, with_adapters
from lora_np.methods.peft import as_fields
from lora_np.methods.stacked import Factors, file_factors, model_factors
from lora_np.methods.targets import check_patterns, check_used, lookup
from lora_np.ops import dropout_mask
from lora_np.ops.fast import lora_linear_backward, lora_linear_forward
from lora_np.parameters import Grads, Parameter
from lora_np.reading import brief, shown


@dataclass(frozen=True)
class LoraConfig(MethodConfig):
    """The options of LoRA: which modules to adapt, with which rank and scale.

    Parameters
    ----------
    r : int
        The rank.
    lora_alpha : float
        The change of a weight is ``lora_alpha / r * B @ A``.
    lora_dropout : float
        Probability of dropping an entry of the adapter's input.
    target_modules : sequence of str, or str
        A list of names ("q_proj") or longer ends of a path ("0.attn.q_proj"); or a string, either
        "all-linear" or a regular expression that must match the whole path of a module.
    layers_to_transform : int or sequence of int, optional
        Adapt only these blocks; a block is the first number in a module's path. By default all.
    use_rslora : bool
        Scale by ``lora_alpha / sqrt(r)`` instead.
    rank_pattern, alpha_pattern : mapping of str to number, optional
        Another r or lora_alpha for modules whose path ends with a match of the key, a name or a
        regular expression. The first matching key counts.

    Examples
    --------
    >>> from lora_np import LoraConfig
    >>> config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"v_proj": 16})
    >>> config.rank_of("h.0.attn.q_proj"), config.scale_of("h.0.attn.q_proj")
    (4, 2.0)
    >>> config.rank_of("h.0.attn.v_proj"), config.scale_of("h.0.attn.v_proj")
    (16, 0.5)
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None

    name = "lora"

    def __post_init__(self) -> None:
        for name, rank in {"r": self.r, **(self.rank_pattern or {})}.items():
            if not isinstance(rank, int | np.integer) or isinstance(rank, bool) or rank < 1:
                raise ValueError(
                    f"rank {brief(name)} = {shown(rank)}, expected a whole number from 1 to "
                    "min(in, out) of the matrices it adapts"
                )
        for alpha in (self.lora_alpha, *(self.alpha_pattern or {}).values()):
            if not isinstance(alpha, int | float | np.number) or not 0.0 < alpha < math.inf:
                raise ValueError(f"lora_alpha = {shown(alpha)}, expected a number above 0")
        p = self.lora_dropout
        if not isinstance(p, int | float | np.number) or not 0.0 <= p < 1.0:
            raise ValueError(f"lora_dropout = {shown(p)}, expected 0 <= p < 1")
        if not self.target_modules:
            raise ValueError("target_modules is empty: name at least one, or 'all-linear'")
        check_patterns(self._patterns())

    def _patterns(self) -> dict[str, Any]:
        return {**(self.rank_pattern or {}), **(self.alpha_pattern or {})}

    def rank_of(self, path: str) -> int:
        """Return the rank for the module at `path`."""
        return int(lookup(self.rank_pattern, path, self.r))

    def scale_of(self, path: str) -> float:
        """Return the scale for the module at `path`."""
        r, alpha = self.rank_of(path), float(lookup(self.alpha_pattern, path, self.lora_alpha))
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def of_rank(self, r: int) -> LoraConfig:
        """Return the configuration with rank `r` and scale 1 at every target.

        Only the rank differs between two of them: lora_alpha, rsLoRA and the patterns are dropped,
        because the scale would change with the rank, or the rank would stay.
        """
        return replace(
            self, r=r, lora_alpha=r, use_rslora=False, rank_pattern=None, alpha_pattern=None
        )

    def places(self, model: Layer) -> list[str]:
        """Return the targeted paths; every key of a pattern must match one of them."""
        chosen = super().places(model)
        check_used(self._patterns(), chosen)
        return chosen

    def wrap(self, path: str, layer: Linear, rng: np.random.Generator) -> LoRALinear:
        """Return `layer` with an adapter: A is drawn, B is zero."""
        W0 = layer.W.value
        (d_out, d_in), r = W0.shape, self.rank_of(path)
        if r > min(d_in, d_out):
            raise ValueError(
                f"rank {r} for {path or 'the layer'} is above the limit {min(d_in, d_out)} of its "
                f"{d_out} x {d_in} weight"
            )
        bound = 1.0 / math.sqrt(d_in)  # kaiming: sqrt(2 / (1 + a^2)) sqrt(3 / in), with a^2 = 5
        A = like(rng.uniform(-bound, bound, (r, d_in)).astype(W0.dtype), W0)
        B = like(np.zeros((d_out, r), W0.dtype), W0)
        return LoRALinear(layer, Parameter(A), Parameter(B), self.scale_of(path), self.lora_dropout)

    # ------------------------------------------------------------------------- PEFT's files

    @classmethod
    def of_fields(cls, saved: Mapping[str, Any]) -> LoraConfig | None:
        """Return the configuration in the fields of a PEFT file of type LORA, else None."""
        if saved.get("peft_type") != "LORA":
            return super().of_fields(saved)  # pyright: ignore[reportReturnType]
        known = ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern")
        given = {key: saved[key] for key in known if saved.get(key) is not None}
        return cls(**{"r": 8, "lora_alpha": 8, **given})  # PEFT's defaults

    def to_file(
        self, adapted: Layer, places: Mapping[str, FilePlace]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return PEFT's fields and tensors; adapters of stacked layers become one adapter."""
        factors = file_factors(adapted, places)
        dropouts = {layer.dropout for layer in adapters(adapted).values()}
        if len(dropouts) > 1:
            raise ValueError(f"the adapters have dropouts {sorted(dropouts)}: PEFT has one for all")
        ranks = {name: len(A) for name, (_, A, _) in factors.items()}
        scales = {name: scale for name, (_, _, scale) in factors.items()}
        tensors: dict[str, np.ndarray] = {}
        for name, (B, A, _) in factors.items():
            tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        fields = as_fields(ranks, scales, self.use_rslora)
        return {**fields, "lora_dropout": dropouts.pop()}, tensors

    @classmethod
    def of_file(
        cls,
        saved: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        base: Layer,
        places: Mapping[str, FilePlace],
    ) -> Any:
        """Return `base` with the adapters of a PEFT file; those of stacked layers are split."""
        config = cls.of_fields(saved)
        assert config is not None, "the caller has chosen the class by its fields"
        found = model_factors(base, tensors, places)

        def adapt(path: str, layer: Layer) -> Layer | None:
            if path not in found or not isinstance(layer, Linear):
                return None
            W0, (name, *factors) = layer.W.value, found[path]
            B, A = (Parameter(like(x.astype(W0.dtype), W0)) for x in factors)
            return LoRALinear(layer, A, B, config.scale_of(name), config.lora_dropout)

        ranks = {path: len(A) for path, (_, _, A) in found.items()}
        scales = {path: config.scale_of(name) for path, (name, _, _) in found.items()}
        ours = as_fields(ranks, scales, config.use_rslora)  # with the paths of this model
        method = cls.of_fields({**saved, **ours}) or config
        method = replace(method, target_modules=tuple(found))
        return with_adapters(rebuild(base, Parameter.share), adapt, method)


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
    """

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
        return lora_linear_forward(
            x, self.W0.value, self.A.value, self.B.value, b, scale=self.scale, mask=mask
        )

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dA and dB, and dW0 and db unless W0 and b are frozen; return dx."""
        held = [self.W0, self.A, self.B, self.b]
        need = [need_dx, *(p is not None and p.trainable for p in held)]
        dx, *gradients = lora_linear_backward(dy, cache, need)
        for parameter, gradient in zip(held, gradients):
            if parameter is not None:
                grads.add(parameter, gradient)
        return dx

    def delta(self) -> Array:
        """Return scale B A (out, in), for merging and analysis; training never forms it."""
        self._refuse_more_than_A_and_B("delta")
        return self.scale * (self.B.value @ self.A.value)

    def merged(self) -> Linear:
        """Return the plain linear layer with W = W0 + scale B A."""
        return Linear.over(Parameter(self.W0.value + self.delta()), self.b)

    def factors(self) -> Factors:
        """Return B (out, r), A (r, in) and the scale, on the host, as in PEFT's files."""
        self._refuse_more_than_A_and_B("factors")
        return to_host(self.B.value), to_host(self.A.value), self.scale

    def _refuse_more_than_A_and_B(self, method: str) -> None:
        """Raise ValueError if a subclass has further Parameters, so that B A is not its change."""
        if not set(self.own().values()) <= {self.A, self.B}:
            raise ValueError(
                f"{type(self).__name__} has Parameters besides A and B: it must define {method}()"
            )

    def config(self) -> LoraConfig:
        """Return a configuration with this layer's rank and scale."""
        return LoraConfig(self.r, self.scale * self.r, self.dropout)

    def flops(self, T: int, need_dx: bool = True) -> Flops:
        """Return the cost of W0 and of the adapter: two thin products, then du, dA, dB and dx.

        A large batch costs less: forward and backward form W0 + s B A (see ops/fast/lora.py).
        """
        a, b = 2 * self.A.size, 2 * self.B.size
        reach_u = b * (need_dx or self.A.trainable)
        thin = reach_u + a * (need_dx + self.A.trainable) + b * self.B.trainable
        return product_flops(self.W0, need_dx).plus(Flops(a + b, thin))
