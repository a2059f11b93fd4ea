"""The options of LoRA, and of the variants that train the same A and B.

rsLoRA scales by alpha / sqrt(r), LoRA+ has a learning rate of its own for B, LoRA-FA freezes A, and
PiSSA and OLoRA start from factors of W0 (start.py). Names follow PEFT. Sources: Hu et al. (2021),
arXiv:2106.09685, section 4; rsLoRA: Kalajdzievski (2023), arXiv:2312.03732; the others are named
beside their options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from lora_np.backend import like, to_host
from lora_np.layers import Embedding, Layer, Linear
from lora_np.layers.basic import probability
from lora_np.methods.contract import Fields, FileForm, MethodConfig, Places, Tensors
from lora_np.methods.lora import LoRALinear, StartedLoRA
from lora_np.methods.lora_embedding import LoRAEmbedding
from lora_np.methods.lora_fa import LoRAFALinear
from lora_np.methods.options import check_positive
from lora_np.methods.peft_lora import lora_of_peft, lora_options, lora_to_peft
from lora_np.methods.start import OF_W0, STARTS
from lora_np.methods.targets import check_patterns, check_rank, check_used, lookup
from lora_np.parameters import Parameter
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
        Names of linear layers and embeddings ("q_proj"), or longer ends of paths ("0.attn.q_proj");
        or a string: "all-linear", or a regular expression for the whole path of a module.
    layers_to_transform : int or sequence of int, optional
        Adapt only these blocks; a block is the first number in a module's path. By default all.
    use_rslora : bool
        Scale by ``lora_alpha / sqrt(r)`` instead.
    rank_pattern, alpha_pattern : mapping of str to number, optional
        Another r or lora_alpha for modules whose path ends with a match of the key, a name or a
        regular expression. The first matching key counts.
    init_lora_weights : bool or str
        The start of A and B, a key of ``lora_np.methods.start.STARTS``: True, False,
        "gaussian", "pissa", "olora" or "zero".
    loraplus_lr_ratio : float
        LoRA+: the learning rate of B over that of A (Hayou et al. 2024, arXiv:2402.12354).
    train_A : bool
        False is LoRA-FA: A stays as it was drawn (Zhang et al. 2023, arXiv:2308.03303).

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
    init_lora_weights: bool | str = True
    loraplus_lr_ratio: float = 1.0
    train_A: bool = True

    name = "lora"
    kinds = (Linear, Embedding)
    trained_by: ClassVar[tuple[str, ...]] = ("loraplus_lr_ratio", "train_A")  # not in PEFT's fields

    def __post_init__(self) -> None:
        if self.init_lora_weights not in STARTS:
            known = ", ".join(map(repr, STARTS))
            raise ValueError(f"init_lora_weights = {self.init_lora_weights!r}, expected {known}")
        if not self.train_A and self.init_lora_weights in OF_W0:
            raise ValueError(f"{self.init_lora_weights!r} trains A: set train_A=True")
        for name, rank in {"r": self.r, **(self.rank_pattern or {})}.items():
            if rank < 1:
                raise ValueError(
                    f"rank {brief(name)} = {shown(rank)}, expected a whole number from 1 to "
                    "min(in, out) of the matrices it adapts"
                )
        for alpha in (self.lora_alpha, *(self.alpha_pattern or {}).values()):
            check_positive("lora_alpha", alpha)
        check_positive("loraplus_lr_ratio", self.loraplus_lr_ratio)
        probability(self.lora_dropout, "lora_dropout")
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

    @property
    def starts_at_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the start computes what the base does: exactly, not only to rounding."""
        return self.init_lora_weights not in (False, *OF_W0)

    def lr_factor(self, name: str) -> float:
        """Return the factor on the learning rate: LoRA+'s for B, else 1."""
        return self.loraplus_lr_ratio if name.rpartition(".")[2] == "B" else 1.0

    def wrap(self, path: str, layer: Any, rng: np.random.Generator) -> Layer:
        """Return `layer` with an adapter at its start."""
        W0, r, scale = layer.W.value, self.rank_of(path), self.scale_of(path)
        check_rank(r, path, (layer.d_out, layer.d_in))
        draw = self.form(layer).starts[self.init_lora_weights]
        A, B = (like(x.astype(W0.dtype), W0) for x in draw(rng, to_host(W0), r, scale))
        return self.over(layer, Parameter(A, self.train_A), Parameter(B), scale)

    def over(self, layer: Any, A: Parameter, B: Parameter, scale: float) -> Layer:
        """Return the layer of these options with the factors A (r, in) and B (out, r)."""
        return self.form(layer)(layer, A, B, scale, self.lora_dropout)

    def form(self, layer: Layer) -> Any:
        """Return the class of the adapter for this kind of layer."""
        started = StartedLoRA if self.init_lora_weights in OF_W0 else LoRALinear
        of_linear = started if self.train_A else LoRAFALinear
        return LoRAEmbedding if isinstance(layer, Embedding) else of_linear

    # ------------------------------------------------------------------------- PEFT's files

    @classmethod
    def of_fields(cls, saved: Fields) -> LoraConfig | None:
        """Return the configuration in the fields of a PEFT file of type LORA, else None."""
        if saved.get("peft_type") != "LORA":
            return super().of_fields(saved)  # pyright: ignore[reportReturnType]
        return None if saved.get("use_dora") else cls(**lora_options(saved, cls.trained_by))

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return PEFT's fields and tensors; adapters of stacked layers become one adapter."""
        return lora_to_peft(self, adapted, places)

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the adapters of a PEFT file; those of stacked layers are split."""
        return lora_of_peft(cls.of_fields(saved), tensors, base, places)
