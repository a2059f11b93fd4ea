"""Random batches to train on, drawn by a generator whose state can be saved and restored."""

from __future__ import annotations

import numpy as np

from lora_np.data.texts import Tokens, sample_batch


class Batches:
    """Random windows of a text: ``batches()`` returns the next (inputs, targets).

    Parameters
    ----------
    tokens : integers, shape (n,)
    batch_size, block_size : int
        Number of windows B, and of inputs T in each window.
    rng : numpy.random.Generator
        Draws the windows. A saved training run includes its state.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import Batches
    >>> batches = Batches(np.arange(100), batch_size=8, block_size=5, rng=np.random.default_rng(0))
    >>> inputs, targets = batches()
    >>> inputs.shape, bool((targets == inputs + 1).all())
    ((8, 5), True)
    """

    def __init__(
        self, tokens: Tokens, batch_size: int, block_size: int, rng: np.random.Generator
    ) -> None:
        self.tokens, self.batch_size, self.block_size = tokens, batch_size, block_size
        self.rng = rng

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the next batch (inputs, targets), each of shape (B, T)."""
        return sample_batch(self.tokens, self.batch_size, self.block_size, self.rng)
