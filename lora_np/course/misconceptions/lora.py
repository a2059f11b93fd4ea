"""What the two tasks of LoRA share: their inputs, their quantities, and wrong scales.

    y = x W0^T + scale ((x * mask) A^T) B^T        scale = alpha / r

Shapes: x, mask (..., in), W0 (out, in), A (r, in), B (out, r).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lora_np.course.misconceptions.linear import LEADING
from lora_np.course.task import Draw, Misconception, Task, count


def lora_draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs. In the fourth draw all sides are equal, so that A and B can change places."""
    n, sizes = (
        rng.standard_normal,
        ((4, 3, 2, 5.0), (4, 4, 3, 7.0), (2, 5, 1, 3.0), (3, 3, 3, 1.25), (1, 3, 2, 6.0)),
    )
    draws = []
    for batch, (out, in_, r, alpha) in zip(LEADING, sizes):
        mask = (rng.random((*batch, in_)) < 0.6) / 0.6
        mask.flat[0] = 0.0  # at least one entry of each kind
        mask.flat[1] = 1.0 / 0.6
        draw = {"x": n((*batch, in_)), "W0": n((out, in_)), "A": n((r, in_)), "B": n((out, r))}
        draws.append({**draw, "alpha": alpha, "mask": mask})
    return draws


def lora_quantities(x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any) -> dict[str, Any]:
    """Return r, the scale, N, the masked input, and the two parts of y."""
    r = len(A)
    seen, scale = x * mask, alpha / r
    parts = {"base": x @ W0.T, "adapter": scale * (seen @ A.T @ B.T)}
    return {"r": r, "scale": scale, "N": count(x), "seen": seen, **parts}


WRONG_SCALES: dict[str, tuple[str, Callable[..., Any]]] = {  # name: formula, value
    "alpha over root r": ("alpha / sqrt(r), as in rsLoRA", lambda a, r, m, n: a / r**0.5),
    "alpha floor r": ("alpha // r, which drops the fraction", lambda a, r, m, n: a // r),
    "alpha over in": ("alpha / in, but r is A.shape[0]", lambda a, r, m, n: a / n),
    "alpha over out": ("alpha / out, but r is B.shape[1]", lambda a, r, m, n: a / m),
    "r over alpha": ("r / alpha", lambda a, r, m, n: r / a),
    "one over r": ("1 / r", lambda a, r, m, n: 1 / r),
    "r for the scale": ("r", lambda a, r, m, n: r),
}


def add_wrong_scales(
    task: Task,
    output: str | None,
    scales: Mapping[str, tuple[str, Callable[..., Any]]],
    answer_with: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Register one misconception for each scale, whose answer is ``answer_with(value)``."""
    for name, (what, value) in scales.items():
        sentence = f"Your scale is {what}: it should be alpha / r"
        task.misconceptions.append(Misconception(name, output, sentence, answer_with(value)))
