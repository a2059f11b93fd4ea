"""BitFit: every bias of the base is trained, and nothing else.

::

    y = x W0^T + b                     b (out,) is trained: about 1 number in 1,000 of a transformer
    db = sum of dy over samples

The biases are Parameters of the base itself, and its layers compute db already. So the method has
no layer: the adapted model holds its own copies of the biases, and merging has nothing to do.

The paper trains all biases: those of linear layers (b) and of LayerNorms (beta). It also finds half
of them enough, those of the queries (its b_q) and of the MLP's first layer (its b_m2):
``target_modules=("q_proj", "up_proj")``.

Source: Ben Zaken, Ravfogel and Goldberg (2021), arXiv:2106.10199, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_np.layers import Layer
from lora_np.methods.contract import MethodConfig
from lora_np.methods.targets import matches, module_paths
from lora_np.parameters import Parameter

BIASES = ("b", "beta")


@dataclass(frozen=True)
class BitFitConfig(MethodConfig):
    """The modules whose biases are trained; by default a pattern that every path matches.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, inject
    >>> from lora_np.methods import BitFitConfig
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(MLP(4, 8, rng), BitFitConfig(), rng)
    >>> [name for name, p in adapted.parameters().items() if p.trainable]
    ['up_proj.b', 'down_proj.b']
    """

    target_modules: Sequence[str] | str = ".*"

    name = "bitfit"

    def places(self, model: Layer) -> list[str]:
        """Return no path, as no layer is wrapped; every target must match a layer with a bias."""
        module_paths(model, self.target_modules, None, _has_bias, "layer with a bias")
        return []

    def trains(self, name: str) -> bool:
        """Whether `name` is a bias of a targeted module."""
        path, _, kind = name.rpartition(".")
        return kind in BIASES and matches(self.target_modules, path)


def _has_bias(layer: Layer) -> bool:
    return any(isinstance(getattr(layer, name, None), Parameter) for name in BIASES)
