"""What the report says where no misconception fits: exceptions, differences, dtypes, writes."""

from __future__ import annotations

import math
from collections.abc import Container

import numpy as np

from lora_np.course.comparison import dtype_of, largest
from lora_np.course.report import Finding
from lora_np.course.task import spell_draw
from lora_np.course.trial import Trial

OFTEN = {  # exceptions that have sentences of their own
    "MemoryError": ("limit", "Your code needs more memory than it may use"),
    "OutputLimit": ("limit", "Your code prints or returns too much"),
    "SystemExit": ("raises", "Your code calls exit: return a result instead"),
    "KeyboardInterrupt": ("raises", "Your code calls exit: return a result instead"),
    "NotImplementedError": (
        "raises",
        "Your code still raises NotImplementedError: write your answer in its place",
    ),
}


def difference(trial: Trial, i: int) -> Finding:
    """Return how output `i` differs, on the first draw on which it is wrong."""
    n, name = trial.wrong(i)[0], trial.task.outputs[i]
    got, right = trial.answers[n]["outputs"][i], trial.right[n][i]
    where = f"where {spell_draw(trial.draws[n])}"
    if got.shape != right.shape:
        sentence = f"Your {name} has shape {got.shape}, expected {right.shape}, {where}"
        return Finding("shape", sentence)
    if not np.isfinite(got).all():
        return Finding("not finite", f"Your {name} contains nan or inf, {where}")
    error, size = largest(got - right), largest(right)
    if error < 1e-5 * size:
        return Finding(
            "value",
            f"Your {name} agrees in the first digits only: the error is {error:.1g}, the largest "
            f"entry is {size:.3g}, {where}; look for a small constant or a narrower dtype",
        )
    return Finding(
        "value",
        f"Your {name} differs from the correct {name} by up to {error:.3g}; its largest entry is "
        f"{size:.3g}, {where}; no known misconception fits: check your {name} numerically, entry "
        f"by entry, on the smallest input",
    )


def exception(trial: Trial, explained: Container[int]) -> Finding | None:
    """Return the first exception, apart from those on the draws that are `explained`."""
    for n, answer in enumerate(trial.answers):
        if "raised" in answer and n not in explained:
            kind, message = answer["raised"]
            if kind in OFTEN:
                return Finding(*OFTEN[kind])
            where = f", where {spell_draw(trial.draws[n])}" if trial.answered() else ""
            return Finding("raises", f"Your code raises {kind}: {message}{where}")
    return None


def wrong_dtype(trial: Trial) -> Finding | None:
    """Return a finding if an output has another dtype than the inputs."""
    if not trial.task.keeps_dtype:
        return None
    for n in trial.answered():
        expected = dtype_of(trial.draws[n])
        for name, got in zip(trial.task.outputs, trial.answers[n]["outputs"]):
            if got.dtype != expected:
                sentence = f"Your {name} is {got.dtype}, but the inputs are {expected}"
                return Finding("dtype", f"{sentence}: {how_to_keep_the_dtype(got)}")
    return None


def how_to_keep_the_dtype(got: np.ndarray) -> str:
    """Return what to do about an output of another dtype."""
    if got.dtype == np.float64:
        return (
            "a NumPy scalar, such as np.sqrt(2) or mask.sum(), turns float32 into float64; use "
            "math, float() or int() for numbers, and np.zeros_like for arrays"
        )
    return "keep the dtype of the inputs, as np.zeros_like does"


def written_input(trial: Trial) -> Finding | None:
    """Return a finding if an input was changed, and say if only the last digit is left changed."""
    changed = []
    for draw, answer in zip(trial.draws, trial.answers):
        for name, by in answer.get("changed", {}).items():
            if name in draw:
                last_digit = 16 * np.finfo(dtype_of(draw)).eps * largest(draw[name])
                changed.append((name, math.isfinite(by) and by <= last_digit))
    if not changed:
        return None
    name, in_the_last_digit = min(changed, key=lambda pair: pair[1])
    if in_the_last_digit:
        return Finding(
            "put back inexactly",
            f"Your function leaves its input {name} changed in the last digit, because x + h - h "
            f"is not x in floating point: save the value before you change it, and restore it",
        )
    return Finding("writes", f"Your function writes to its input {name}: work on a copy")
