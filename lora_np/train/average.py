"""A moving average of a model's weights, which follows training without being trained.

After every step::

    average = decay average + (1 - decay) weights

The average is the target of consistency distillation, and often the better model to evaluate.

Source: Polyak and Juditsky (1992), SIAM J. Control Optim. 30(4), who average with equal weights.
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
        At least 0, where the average equals the weights, and below 1.

    Attributes
    ----------
    model : Layer
        The frozen copy. A model whose loss reads the copy returns the copy's Parameters from
        ``moving()``, so that worker processes see their changes.

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
        """Return the averaged Parameters."""
        return [twin for _, twin in self._pairs]

    def update(self, *step: Any) -> None:
        """Update the average in place; can be the ``after_step`` of a training run."""
        for p, twin in self._pairs:
            twin.value *= self.decay
            twin.value += (1.0 - self.decay) * p.value
