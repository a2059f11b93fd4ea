"""Checks of the analyser's inputs: real, finite matrices, pairs of factors, singular values."""

from __future__ import annotations

import math

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, to_host


def prepare(name: str, x: Array) -> tuple[Array, float, float]:
    """Return (matrix, unit, eps): x = matrix * unit in float64, and eps of the dtype of x.

    The matrix is float64 because an SVD has a rounding error of eps sigma_1 in EVERY singular
    value: in float32 it would hide values below 1e-7 sigma_1, which the measures of the tail need.
    `unit` is a power of two near the largest entry, so that later products neither overflow nor
    underflow.

    Parameters
    ----------
    name : str
        The name of `x` in errors.
    x : array, 2-D

    Raises
    ------
    ShapeError
        If `x` is not 2-D or is empty.
    TypeError
        If its entries are not real numbers.
    ValueError
        If an entry is not finite.
    """
    xp = get_xp(x)
    x = xp.asarray(x)
    if x.ndim != 2 or x.size == 0:
        raise ShapeError(f"{name} has shape {x.shape}: 2-D is expected, no side of 0")
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {x.dtype}: real numbers are expected")
    matrix = x.astype(xp.float64)
    largest = float(xp.abs(matrix).max())
    if not math.isfinite(largest):  # max hands on both inf and nan
        raise ValueError(f"{name} has entries that are not finite (nan or inf)")
    unit = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0
    return matrix / unit, unit, spacing(x.dtype)


def prepare_factors(B: Array, A: Array) -> tuple[Array, Array, float, float]:
    """Return (B, A, unit, eps): the product is B A unit, and eps the coarser eps of the two.

    Parameters
    ----------
    B : array, shape (out, r)
    A : array, shape (r, in)

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`prepare`, or if the inner sizes differ.
    """
    B64, unit_B, eps_B = prepare("B", B)  # (out, r)
    A64, unit_A, eps_A = prepare("A", A)  # (r, in)
    r = B64.shape[1]
    if A64.shape[0] != r:
        raise ShapeError(f"A has shape {A64.shape}: ({r}, in) is expected, as B is {B64.shape}")
    return B64, A64, unit_B * unit_A, max(eps_B, eps_A)  # the coarser factor limits B A


def require_pair(name: str, factors: tuple) -> tuple[Array, Array]:
    """Return the two factors of a tuple.

    Raises
    ------
    ShapeError
        If the tuple does not have two entries.
    """
    if len(factors) != 2:
        raise ShapeError(f"{name} is a tuple of {len(factors)}: one matrix or (B, A) is expected")
    return factors


def require_scale(scale: float) -> None:
    """Raise ValueError if the scale is not finite."""
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}: it must be finite")


def in_range(values: np.ndarray, unit: float, scale: float) -> np.ndarray:
    """Return ``values * unit * |scale|``, from the singular values of a prepared matrix.

    Parameters
    ----------
    values : ndarray, shape (k,)
        Descending.
    unit, scale : float

    Raises
    ------
    ValueError
        If the largest value overflows, or ``unit * scale`` underflows.
    """
    factor = unit * abs(float(scale))
    if not math.isfinite(float(values[0]) * factor) or (factor == 0 and scale != 0):
        raise ValueError("the singular values leave float64's range: rescale the matrix first")
    return values * factor


def require_descending(singular_values: Array) -> np.ndarray:
    """Return singular values on the host, in float64.

    Parameters
    ----------
    singular_values : array, shape (k,)

    Raises
    ------
    ShapeError
        If they are not 1-D.
    ValueError
        If they do not descend.
    """
    sigma = to_host(singular_values).astype(np.float64)  # (k,)
    if sigma.ndim != 1:
        raise ShapeError(f"singular_values has shape {sigma.shape}: (k,) is expected")
    if not np.all(sigma[:-1] >= sigma[1:]):
        raise ValueError("singular_values do not descend: sort them, largest first")
    return sigma


def spacing(dtype: np.dtype) -> float:
    """Return the relative spacing of a dtype's numbers, or float64's if that is larger."""
    eps64 = float(np.finfo(np.float64).eps)  # integers are exact: only float64's rounding counts
    return max(float(np.finfo(dtype).eps), eps64) if dtype.kind == "f" else eps64
