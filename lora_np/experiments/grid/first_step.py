"""How far does the first step move the weights, as a function of the scale s = lora_alpha / r?

The change of a weight is Delta W = s B A. At the start B = 0, so that dA = 0 and the first step
moves B alone. With G = dL/dW, the gradient is dB = s G A^T. SGD moves B by -lr s G A^T, and so

    Delta W = -lr s^2 G A^T A      ~ s^2

Adam's first step does not depend on the size of a gradient: it moves every entry of B by lr against
the sign of dB, and so

    Delta W = -lr s sign(G A^T) A  ~ s

Entries whose gradient is not large against Adam's eps move less. The measurement includes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora_np.crew import one_blas_thread
from lora_np.data import split
from lora_np.experiments.grid.claims import slope
from lora_np.experiments.rank_sweep.text import DeviceBatches, TextSettings, rebuild_base
from lora_np.experiments.runner import Arrays
from lora_np.methods import LoraConfig, inject
from lora_np.methods.contract import adapters
from lora_np.train import fit

LR = 1e-3  # any rate shows the same powers


def first_steps(
    text: TextSettings, arrays: Arrays, r: int, scales: Sequence[float]
) -> dict[str, dict[str, list]]:
    """Return how far a step moves the weights under SGD and Adam, and the exponents of s.

    Parameters
    ----------
    text : TextSettings
        The task; each of its seeds draws A and a batch.
    arrays : mapping of str to ndarray
        The base, and the text to adapt it to.
    r : int
        The rank.
    scales : sequence of float
        The values of s = lora_alpha / r.

    Returns
    -------
    dict
        By optimizer ("sgd", "adam"): ``norms``, ||Delta W||_F over all adapted matrices, a list
        over `scales` for each seed; ``exponents``, the fitted power of s for each seed.
    """
    found: dict[str, dict[str, list]] = {}
    with one_blas_thread():
        base = rebuild_base(text, arrays)
        tokens = split(arrays["adapt"]).train
        for optimizer in ("sgd", "adam"):
            norms = [
                [_moved(replace(text, steps=1), base, tokens, optimizer, r, s, k) for s in scales]
                for k in range(text.seeds)
            ]
            powers = [slope(list(zip(scales, row))) for row in norms]
            found[optimizer] = {"norms": norms, "exponents": powers}
    return found


def _moved(
    text: TextSettings,
    base: Any,
    tokens: np.ndarray,
    optimizer: str,
    r: int,
    scale: float,
    seed: int,
) -> float:
    """Return the norm of the change of all weights in one step."""
    config = LoraConfig(r=r, lora_alpha=r * scale, target_modules=text.target_modules)
    model = inject(base, config, np.random.default_rng([seed, 1]))
    batches = DeviceBatches(text, tokens, np.random.default_rng([seed, 0]))
    # Clipping would bound the step of SGD whatever s is.
    fit(model, batches, steps=1, lr=LR, optimizer=optimizer, schedule="constant", clip=None)
    changes = (layer.delta() for layer in adapters(model).values())
    return math.sqrt(sum(float((change**2).sum()) for change in changes))
