"""The gradient by central differences: (f(x + h e_i) - f(x - h e_i)) / 2h for every entry i."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lora_np.course.task import Draw, Task


def _entrywise(slope: Callable, x: Any) -> Any:
    """Return slope(x, step) for the step of length 1 along every entry of x."""
    g = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1.0
        g[i] = slope(x, step)
    return g


def _numeric_gradient(f: Callable, x: Any, h: Any) -> Any:
    """Return (f(x + h e_i) - f(x - h e_i)) / 2h for every entry i of x."""
    return _entrywise(lambda x, e: (f(x + h * e) - f(x - h * e)) / (2.0 * h), x)


def _numeric_draws(rng: np.random.Generator) -> list[Draw]:
    """Return coefficients of cubics. h is large, so that any other formula gives other numbers."""
    n = rng.standard_normal
    return [
        {"f": n(shape), "x": n(shape), "h": h}
        for shape, h in (((4,), 0.1), ((2, 3), 0.02), ((3, 3), 0.3))
    ]


NUMERIC = Task("numeric_gradient", ("g",), _numeric_gradient, _numeric_draws, keeps_dtype=False)
NUMERIC.usual_mistakes(but=("doubled",))


@NUMERIC.mistake("g")
def _forward_difference(f: Callable, x: Any, h: Any) -> Any:
    """Your g is the forward difference, whose error is of order h: step to both sides."""
    return _entrywise(lambda x, e: (f(x + h * e) - f(x)) / h, x)


@NUMERIC.mistake("g")
def _backward_difference(f: Callable, x: Any, h: Any) -> Any:
    """Your g is the backward difference, whose error is of order h: step to both sides."""
    return _entrywise(lambda x, e: (f(x) - f(x - h * e)) / h, x)


@NUMERIC.mistake("g")
def _half_the_step(f: Callable, x: Any, h: Any) -> Any:
    """Your g steps by h/2 to each side: step by h to each side, and divide by 2h."""
    return _numeric_gradient(f, x, h / 2)


@NUMERIC.mistake("g")
def _entries_left_moved(f: Callable, x: Any, h: Any) -> Any:
    """Your g leaves entries moved: restore each entry before you move the next."""
    z, g = x.copy(), np.zeros_like(x)
    for i in np.ndindex(x.shape):
        z[i] += h
        up = f(z)
        z[i] -= 2 * h
        g[i] = (up - f(z)) / (2 * h)
    return g


@NUMERIC.mistake("g")
def _not_over_h(g: Any, h: Any) -> Any:
    """Your g is the difference f(x + h) - f(x - h): divide it by 2h."""
    return g * 2 * h


@NUMERIC.mistake("g")
def _over_two_only(g: Any, h: Any) -> Any:
    """Your g is divided by 2 but not by h: divide by 2h."""
    return g * h


@NUMERIC.mistake("g")
def _times_h_over_two(g: Any, h: Any) -> Any:
    """Your g is divided by 2 and then multiplied by h: write / (2 * h), with brackets."""
    return g * h * h


@NUMERIC.mistake("g")
def _all_entries_at_once(f: Callable, x: Any, h: Any) -> Any:
    """Your g moves all entries at once: move one entry at a time."""
    return np.full_like(x, (f(x + h) - f(x - h)) / (2 * h))


@NUMERIC.mistake("g")
def _half_the_forward_difference(f: Callable, x: Any, h: Any) -> Any:
    """Your g is half the forward difference: the step from x + h to x - h is -2h, not -h."""
    return _forward_difference(f, x, h) / 2


@NUMERIC.mistake("g")
def _not_over_two(g: Any) -> Any:
    """Your g equals the correct g times 2: the two points are 2h apart, so divide by 2h."""
    return 2 * g


@NUMERIC.mistake("g")
def _own_step(f: Callable, x: Any, h: Any) -> Any:
    """Your g hardly depends on h: use the given h, and two values of f per entry."""
    return (4 * _numeric_gradient(f, x, h / 2) - _numeric_gradient(f, x, h)) / 3  # a cubic's slope


@NUMERIC.mistake("g")
def _one_number(f: Callable, x: Any, h: Any) -> Any:
    """Your g is a single number: the gradient has the shape of x, one slope per entry."""
    return np.array((f(x + h) - f(x - h)) / (2 * h))
