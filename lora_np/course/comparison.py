"""When two arrays count as the same: to a tolerance, relative to the largest entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lora_np.course.task import Draw, Outputs

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}  # relative to an array's largest entry


def same(got: np.ndarray, wanted: np.ndarray, limit: float) -> bool:
    """Return whether two arrays agree to `limit` of the largest entry, nan and inf included."""
    if got.shape != wanted.shape:
        return False
    finite = np.isfinite(wanted)
    if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True):
        return False
    got, wanted = got[finite], wanted[finite]
    error = largest(got - wanted)
    return math.isfinite(error) and error <= limit * (largest(wanted) or 1.0)


def all_same(got: Sequence[np.ndarray], wanted: Outputs | Sequence, limit: float) -> bool:
    """Return whether two answers have the same number of outputs, and the same outputs."""
    return len(got) == len(wanted) and all(same(a, b, limit) for a, b in zip(got, wanted))


def largest(x: np.ndarray) -> float:
    """Return the absolute value of the largest entry, or 0 for an empty array."""
    return float(np.abs(x).max(initial=0.0))


def dtype_of(draw: Draw) -> np.dtype:
    """Return the dtype of the floating-point arrays of a draw."""
    return next(v.dtype for v in draw.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f")


def tolerance(draw: Draw) -> float:
    """Return the largest error that an answer may have, relative to its largest entry."""
    return TOLERANCE[dtype_of(draw).name]
