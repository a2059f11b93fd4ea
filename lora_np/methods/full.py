"""Full fine-tuning: the weights themselves are trained, all of them or those of some blocks.

::

    theta = theta0 - sum of the steps         every entry of the chosen weights is free

It is what the other methods are compared with. Like BitFit it has no layer: the adapted model holds
its own copies of the chosen Parameters, so merging has nothing to do, and its file is as large as
these Parameters are.

Source: Hu et al. (2021), arXiv:2106.09685, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_np.layers import Layer
from lora_np.methods.contract import MethodConfig
from lora_np.methods.targets import block_of, matches, module_paths
from lora_np.parameters import Parameter


@dataclass(frozen=True)
class FullConfig(MethodConfig):
    """The layers whose Parameters are trained; by default all.

    Parameters
    ----------
    target_modules : sequence of str, or str
        Names of layers of any kind, or an expression for the whole path; by default every path.
    layers_to_transform : int or sequence of int, optional
        Only layers in these blocks: embeddings and a last normalisation are then left out.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, inject
    >>> from lora_np.methods import FullConfig
    >>> rng = np.random.default_rng(0)
    >>> base = GPT(GPTConfig(9, 4, 2, 2, 8), rng)
    >>> adapted = inject(base, FullConfig(("q_proj", "ln_1"), layers_to_transform=1), rng)
    >>> [name for name, p in adapted.parameters().items() if p.trainable][:2]
    ['h.1.ln_1.gamma', 'h.1.ln_1.beta']
    """

    target_modules: Sequence[str] | str = ".*"
    layers_to_transform: int | Sequence[int] | None = None

    name = "full"

    def prepare(self, model: Layer) -> Layer:
        """Return the model; raise ValueError if a chosen weight is stored in few bits."""
        for name, p in model.parameters().items():
            if p.stored_as and self.trains(name):
                raise ValueError(
                    f"full fine-tuning trains {name}, which is stored as {p.stored_as}: keep the "
                    "weights as arrays (no --keep-quantised), or train an adapter over them"
                )
        return model

    def places(self, model: Layer) -> list[str]:
        """Return no path, as no layer is wrapped; every target must match a layer."""
        module_paths(
            model, self.target_modules, self.layers_to_transform, _holds, "layer with weights"
        )
        return []

    def trains(self, name: str) -> bool:
        """Whether `name` is a Parameter of a chosen layer."""
        path, blocks = name.rpartition(".")[0], self.layers_to_transform
        chosen = blocks if blocks is None or not isinstance(blocks, int) else (blocks,)
        return matches(self.target_modules, path) and (chosen is None or block_of(path) in chosen)


def _holds(layer: Layer) -> bool:
    return any(isinstance(value, Parameter) for value in vars(layer).values())
