"""A running average of a model's weights, which follows training without being trained.

    average = decay average + (1 - decay) weights        after every step

It is the target of consistency distillation, and often the better model to evaluate.

Source: Polyak and Juditsky (1992), SIAM J. Control Optim. 30(4), for averaging at all.
"""

from __future__ import annotations

from typing import Any

from lora_np.layers import Layer, copy_model
from lora_np.parameters import Parameter, freeze


class MovingAverage:
    """The average of a model's trainable Parameters, in a frozen copy of the model.

    Parameters
    ----------
    model : Layer
    decay : float
        From 0, which follows at once, to below 1.

    Attributes
    ----------
    model : Layer
        The copy. A model whose loss reads it returns its Parameters from ``moving()``, so that
        processes see how it moves.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear
    >>> from lora_np.train import MovingAverage
    >>> layer = Linear(1, 1, np.random.default_rng(0))
    >>> average = MovingAverage(layer, decay=0.75)
    >>> layer.b.value[...] = 4.0
    >>> average.update()
    >>> average.model.b.value.tolist()
    [1.0]
    """

    def __init__(self, model: Layer, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay = {decay}, expected 0 <= decay < 1")
        self.decay, self.model = decay, copy_model(model)
        pairs = zip(model.parameters().values(), self.model.parameters().values())
        self._pairs = [(p, twin) for p, twin in pairs if p.trainable]
        freeze(self.model.parameters())

    def parameters(self) -> list[Parameter]:
        """Return the Parameters that move."""
        return [twin for _, twin in self._pairs]

    def update(self, *step: Any) -> None:
        """Follow the model by one step, in place; fits as ``after_step`` of a training run."""
        for p, twin in self._pairs:
            twin.value *= self.decay
            twin.value += (1.0 - self.decay) * p.value
