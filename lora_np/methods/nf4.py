"""QLoRA: another method, trained over weights that are frozen in NF4.

With c the codes of a weight W0 and ``decode`` the rule of forms/nf4.py, LoRA's layer becomes::

    y = x decode(c)^T + b + s (x A^T) B^T            c: 4.127 bits a number; A (r, in), B (out, r)

The codes have no gradient. A and B have LoRA's gradients, with decode(c) in the place of W0. No
pair and no layer knows about NF4: a layer reads ``W0.value``, and a stored Parameter decodes at
that moment. So any method can stand in LoRA's place.

An adapted model starts at the quantised base and not at the base: the outputs differ by the
rounding to 4 bits. A merged model holds decode(c) plus the change, so it needs the memory of plain
weights. The paper adapts all linear layers: with fewer, it did not match full fine-tuning.

Source: Dettmers, Pagnoni, Holtzman and Zettlemoyer (2023), arXiv:2305.14314, equation 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.forms import Nf4, check_block
from lora_np.layers import Layer
from lora_np.layers.stored import store_model
from lora_np.methods.contract import METHOD_FIELD, MethodConfig, is_adapted
from lora_np.methods.file_form import method_of_fields
from lora_np.methods.lora_config import LoraConfig
from lora_np.methods.targets import linear_paths
from lora_np.parameters import Grads, Parameter

ALL_LINEAR = LoraConfig(target_modules="all-linear")


def quantise(model: Layer, block_size: int = 64, double: bool = True) -> Any:
    """Return a frozen model with the weights of all linear layers in NF4: a base for inject().

    Weights that are stored already, in any form, stay as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, account
    >>> from lora_np.methods.nf4 import quantise
    >>> layer = Linear(256, 256, np.random.default_rng(0), bias=False)
    >>> account(layer).weight_bytes / account(quantise(layer)).weight_bytes > 7.7
    True
    """
    if is_adapted(model):
        raise ValueError("the model is adapted already: quantise its base, then inject()")
    weights = {name: p for name, p in linear_weights(model).items() if not p.stored_as}
    return store_model(model, lambda x: Nf4.encode(x, block_size, double), weights)


def linear_weights(model: Layer) -> dict[str, Parameter]:
    """Return the weights of all linear layers by name."""
    names = [f"{path}.W" if path else "W" for path in linear_paths(model, "all-linear")]
    parameters = model.parameters()
    return {name: parameters[name] for name in names}


@dataclass(frozen=True)
class Nf4Config(MethodConfig):
    """QLoRA: the weights of all linear layers become NF4, and another method adapts the model.

    Weights that a base stores already, in any form, stay as they are.

    Parameters
    ----------
    of : MethodConfig
        The method that is trained over the weights.
    block_size, double : int, bool
        Numbers in a block, a power of 2 from 32 to 4096; whether their absmax take 8 bits or 32.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, Nf4Config, inject
    >>> rng = np.random.default_rng(0)
    >>> inject(Linear(64, 64, rng), Nf4Config(), rng).W0
    StoredParameter((64, 64), float32 from nf4)
    """

    of: MethodConfig = ALL_LINEAR
    block_size: int = 64
    double: bool = True

    name = "nf4"
    starts_at_base = False  # quantising changes the weights

    def __post_init__(self) -> None:
        check_block(self.block_size)

    @property
    def merges(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the other method merges: its change is then added to the decoded weights."""
        return self.of.merges

    def places(self, model: Layer) -> list[str]:
        """Return the places of the other method."""
        return self.of.places(model)

    def prepare(self, model: Layer) -> Layer:
        """Return the model with its linear weights in NF4."""
        trained = [name for name in linear_weights(model) if self.of.trains(name)]
        if trained:
            raise ValueError(f"{trained[0]} is trained, but only frozen weights become NF4")
        return quantise(self.of.prepare(model), self.block_size, self.double)

    def wrapper(self, layers: Mapping[str, Any], rng: np.random.Generator) -> Any:
        """Return the function that wraps a layer by the other method."""
        return self.of.wrapper(layers, rng)

    def with_drawn(self, drawn: MethodConfig) -> Nf4Config:
        """Return the configuration with the options that the other method has drawn."""
        return replace(self, of=drawn)

    def trains(self, name: str) -> bool:
        """Whether the other method trains this Parameter of the base."""
        return self.of.trains(name)

    def lr_factor(self, name: str) -> float:
        """Return the factor of the other method."""
        return self.of.lr_factor(name)

    def draw(self, rng: np.random.Generator | None) -> Any:
        """Return what the other method draws for a step."""
        return self.of.draw(rng)

    def use(self, model: Layer, drawn: Any) -> None:
        """Let the model compute with what the other method has drawn."""
        self.of.use(model, drawn)

    def penalty(self, model: Layer, grads: Grads) -> float:
        """Return the penalty of the other method."""
        return self.of.penalty(model, grads)

    def after_step(self, model: Layer, step: int, gradient: Array) -> None:
        """Do what the other method does after a step."""
        self.of.after_step(model, step, gradient)

    def of_rank(self, r: int) -> Nf4Config:
        """Return the configuration with the other method at rank `r`."""
        return replace(self, of=self.of.of_rank(r))

    def fields(self) -> dict[str, Any]:
        """Return the fields in adapter_config.json, with those of the other method in "of"."""
        own = {"block_size": self.block_size, "double": self.double}
        return {METHOD_FIELD: self.name, **own, "of": self.of.fields()}

    @classmethod
    def of_fields(cls, saved: Mapping[str, Any]) -> MethodConfig | None:
        """Return the configuration in the fields of a file, or None."""
        if saved.get(METHOD_FIELD) != cls.name:
            return None
        of, block_size, double = (saved.get(name) for name in ("of", "block_size", "double"))
        if not isinstance(of, Mapping) or not isinstance(double, bool):
            raise ValueError("the fields of NF4 must have 'of', a method's fields, and 'double'")
        method = method_of_fields(of).of_fields(of)
        return cls(method, block_size, double)  # pyright: ignore[reportArgumentType]
