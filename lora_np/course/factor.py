"""Is an output the correct one times a factor, and which factor: "sqrt(r)", "alpha / N", "3.5"?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_np.course.comparison import same, tolerance
from lora_np.course.report import Finding
from lora_np.course.task import spell_draw
from lora_np.course.trial import Trial

POWERS = (1, -1, 0.5, -0.5, 2, -2)  # of a quantity, of which a factor may be made


def wrong_factor(trial: Trial, i: int) -> Finding | None:
    """Return a finding if output `i`, or its scaled part, is a multiple of the correct one."""
    name = trial.task.outputs[i]
    fixed, scaled = trial.task.parts.get(name, (None, name))
    answered = trial.answered()
    factors, sizes = [], []
    for n in answered:
        known, got = trial.known[n], trial.answers[n]["outputs"][i]
        base = known[fixed] if fixed else 0.0
        c = factor_between(got, base, known[scaled], tolerance(trial.draws[n]))
        if c is None:
            return None
        factors.append(c)
        sizes.append(known[scaled].size)
    if all(abs(c - 1) < 1e-5 for c in factors):
        return None  # correct up to rounding
    subject = f"The {scaled}'s part of your {name}" if fixed else f"Your {name}"
    sentence = f"{subject} equals the correct {'part' if fixed else name} times "
    numbers = [{k: v for k, v in trial.known[n].items() if is_number(v)} for n in answered]
    limits = [10 * tolerance(trial.draws[n]) for n in answered]
    if (spelled := spell_factor(factors, numbers, limits)) is not None:
        return Finding("factor", f"{sentence}{spelled}")
    if max(sizes) == 1:
        return None  # one number is always a multiple of another
    where = spell_draw(trial.draws[answered[0]])
    return Finding("factor", f"{sentence}{factors[0]:.4g}, where {where}")


def factor_between(got: np.ndarray, base: Any, right: np.ndarray, limit: float) -> float | None:
    """Return c such that got = base + c right; None if there is no such c."""
    norm = float((right * right).sum())
    if got.shape != right.shape or got.dtype.kind not in "iuf" or norm == 0.0:
        return None
    if not np.isfinite(got).all():
        return None
    c = float(((got - base) * right).sum()) / norm
    return c if same(got, base + c * right, limit) else None


def is_number(value: Any) -> bool:
    """Return whether a quantity is a positive number, of which a factor may be made."""
    return isinstance(value, int | float) and value > 0


def spell_factor(
    factors: Sequence[float], numbers: Sequence[Mapping[str, float]], limits: Sequence[float]
) -> str | None:
    """Return what the factors are on all draws: a number, or powers of one or two quantities."""

    def agree(values: Sequence[float]) -> bool:
        triples = zip(factors, values, limits)
        return all(abs(c - value) <= limit * abs(value) for c, value, limit in triples)

    if agree([factors[0]] * len(factors)):
        return f"{factors[0]:.6g}, on every input"
    powers = [(name, power) for name in numbers[0] for power in POWERS]
    for few in [*itertools.combinations(powers, 1), *itertools.combinations(powers, 2)]:
        if agree([math.prod(known[name] ** power for name, power in few) for known in numbers]):
            return spell_powers(few)
    return None


def spell_powers(powers: Sequence[tuple[str, float]]) -> str:
    """Return a product of powers as a formula, as in "r / sqrt(N)"."""
    words = {0.5: "sqrt({})", 1: "{}", 2: "{}^2"}
    above = [words[p].format(name) for name, p in powers if p > 0]
    below = [words[-p].format(name) for name, p in powers if p < 0]
    bottom = " * ".join(below) if len(below) < 2 else f"({' * '.join(below)})"
    return (" * ".join(above) or "1") + (f" / {bottom}" if below else "")
