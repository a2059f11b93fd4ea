"""What every pair shares: which gradients are needed, and the checks of shapes.

An operation is a pair of pure functions::

    y, cache = op_forward(x, W)
    dx, dW = op_backward(dy, cache, need)

``need`` holds one bool per array argument, in forward's order. A gradient that is not needed is not
formed: backward returns None in its place. ``need=None`` asks for all gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_np.backend import Array, ShapeError, get_xp

Need = Sequence[bool] | None


def wanted(need: Need, n: int) -> Sequence[bool]:
    """Return `need` as `n` bools, all true when it is None."""
    if need is None:
        return (True,) * n
    if len(need) != n:
        raise ValueError(f"need has {len(need)} entries, expected {n}: one per array argument")
    return need


def expect_shape(name: str, x: Array, *shape: int | None) -> None:
    """Raise unless `x` has this shape; None stands for any length of an axis."""
    if x.shape == shape:  # the usual case: this runs ten times a layer and token
        return
    fits = x.ndim == len(shape)
    for length, expected in zip(x.shape, shape):
        fits = fits and (expected is None or length == expected)
    if not fits:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {_spell(shape)}")


def expect_last(name: str, x: Array, size: int) -> None:
    """Raise unless the last axis of `x` has this length."""
    if x.ndim == 0 or x.shape[-1] != size:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected (..., {size})")


def expect_some(name: str, x: Array) -> None:
    """Raise unless the last axis of `x` has at least one entry."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected at least 1 in the last axis")


def expect_finite(name: str, largest: Array) -> None:
    """Raise FloatingPointError unless `largest`, the row maxima of `name`, are all finite."""
    if not bool(get_xp(largest).isfinite(largest).all()):
        raise FloatingPointError(f"{name} has a row whose largest number is inf, -inf or nan")


def expect_same(name: str, x: Array, other: str, y: Array) -> None:
    """Raise unless `x` and `y` have the same shape."""
    if x.shape != y.shape:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, expected {tuple(y.shape)}, the shape of {other}"
        )


def _spell(shape: tuple[int | None, ...]) -> str:
    sizes = ["any" if s is None else str(s) for s in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
