"""LayerNorm tuning: the gains and biases of the normalisations are trained, and nothing else.

::

    y = gamma * (x - mean) / sd + beta         gamma, beta (d,);  an RMSNorm has gamma alone

    dgamma = sum of dy * (x - mean) / sd over samples          dbeta = sum of dy over samples

Gamma and beta are Parameters of the base itself, and ops/norm.py computes their gradients already.
So the method has no layer: the adapted model holds its own copies of them, and merging has nothing
to do.

PEFT keeps a copy of each normalisation under the name ``ln_tuning_layers``, which replaces it.

Source: Zhao et al. (2023), arXiv:2312.11420, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_np.backend import to_host
from lora_np.layers import Layer
from lora_np.methods.contract import Fields, FileForm, NoPeftForm, Places, Tensors, inject, name_in
from lora_np.methods.file_form import fill_tensors, tensors_of
from lora_np.methods.peft import PeftMethod, by_module
from lora_np.methods.targets import matches, module_paths
from lora_np.parameters import Parameter
from lora_np.tables import first_of

PEFT_NAMES = {"gamma": "ln_tuning_layers.weight", "beta": "ln_tuning_layers.bias"}


@dataclass(frozen=True)
class LNTuningConfig(PeftMethod):
    """The normalisations that are trained; by default a pattern that every path matches.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, inject
    >>> from lora_np.methods import LNTuningConfig
    >>> rng = np.random.default_rng(0)
    >>> base = GPT(GPTConfig(9, 4, 1, 2, 8), rng)
    >>> adapted = inject(base, LNTuningConfig(target_modules=("ln_2", "ln_f")), rng)
    >>> [name for name, p in adapted.parameters().items() if p.trainable]
    ['h.0.ln_2.gamma', 'h.0.ln_2.beta', 'ln_f.gamma', 'ln_f.beta']
    """

    target_modules: Sequence[str] | str = ".*"

    name = "ln_tuning"
    peft_type = "LN_TUNING"

    def places(self, model: Layer) -> list[str]:
        """Return no path, as no layer is wrapped; every target must match a normalisation."""
        module_paths(model, self.target_modules, None, _normalises, "normalisation")
        return []

    def trains(self, name: str) -> bool:
        """Whether `name` is a gain or a bias of a targeted normalisation."""
        path, _, kind = name.rpartition(".")
        return kind in PEFT_NAMES and matches(self.target_modules, path)

    # ------------------------------------------------------------------------- PEFT's files

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return PEFT's fields and tensors."""
        trained, held = tensors_of(adapted), adapted.parameters()
        others = [name for name in trained if not self.trains(name)]
        if others:
            raise NoPeftForm(f"the model also trains {first_of(others)}, which PEFT does not save")
        paths = dict.fromkeys(name.rpartition(".")[0] for name in trained)
        if "" in paths:
            raise NoPeftForm("PEFT adapts the parts of a model, not the whole")
        tensors = {
            f"{name_in(path, places)}.{peft_name}": to_host(held[f"{path}.{kind}"].value)
            for path in paths
            for kind, peft_name in PEFT_NAMES.items()
            if f"{path}.{kind}" in held
        }
        modules = [name_in(path, places) for path in paths]
        return {**self.peft_fields(), "target_modules": modules}, tensors

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the normalisations of a PEFT file in place of its own."""
        layers = {path: layer for path, layer in base.modules().items() if _normalises(layer)}
        paths = {name_in(path, places): path for path in layers}
        ours = {name: kind for kind, name in PEFT_NAMES.items()}
        modules = by_module(tensors, paths)
        named = {
            f"{paths[module]}.{ours.get(name, name)}": value
            for module, own in modules.items()
            for name, value in own.items()
        }
        chosen = tuple(paths[module] for module in modules)
        config = replace(cls.of_fields(saved), target_modules=chosen)
        adapted = inject(base, config, np.random.default_rng(0))
        fill_tensors(tensors_of(adapted), named)
        return adapted


def _normalises(layer: Layer) -> bool:
    return isinstance(getattr(layer, "gamma", None), Parameter)
