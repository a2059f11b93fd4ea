"""Is a pair right? Compare its backward with numeric derivatives of its forward.

Take a pair of pure functions and random numbers dy with the shape of the output y. Backward claims
to return the gradient of the scalar L(inputs) = sum(dy * y). Three methods check that, in float64::

    central      dL/dx_i = (L(x + h e_i) - L(x - h e_i)) / 2h + O(h^2)    two calls per entry
    complex      dL/dx_i = Im L(x + i h e_i) / h, h = 1e-30               one call per entry, exact
    directional  <v, J^T dy> = <dy, J v>, v random                        two calls per input

Central differences lose a third of the digits to cancellation; the complex step subtracts nothing
and keeps all digits, but needs an analytic forward (no abs, no conjugation). The directional method
is the dot-product identity of a Jacobian J and its transpose: one number checks a whole array, so
the method scales to a whole model. The error of a gradient is ``max|analytic - numeric|`` over the
largest ``|numeric|`` of that input, or over 1 if 1 is larger: relative for large gradients,
absolute for small ones, so that a gradient that is identically zero is checked too.

At a kink, such as relu's at 0, there is no derivative. Backward may return any slope between the
left and the right one: the entry passes, and a note names it. A wrong gradient of a smooth function
does not pass as a kink: as the step shrinks, the two slopes of a smooth function meet, those of a
kink do not. The complex step follows one of the two branches; the same rule applies.

Source: Squire and Trapp (1998), SIAM Review 40(1), for the complex step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.gradcheck.report import GradientError, GradientReport, GradientRow

TOLERANCE = {"central": 1e-7, "complex": 1e-12, "directional": 1e-7}
STEP = {"central": 6e-6, "complex": 1e-30, "directional": 1e-6}  # central: cube root of epsilon
MOST_KINKS = 100  # entries that may be kinks: if more disagree, the others are wrong


def check_gradients(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[..., Sequence[Any]],
    inputs: Mapping[str, Any] | Sequence[Any],
    *,
    method: str = "central",
    wrt: Sequence[str] | None = None,
    rng: np.random.Generator | None = None,
    **kwargs: Any,
) -> GradientReport:
    """Compare ``backward`` with a numeric derivative of ``forward``, in float64.

    Parameters
    ----------
    forward : callable
        ``forward(*inputs, **kwargs) -> (y, cache)``.
    backward : callable
        ``backward(dy, cache, need) -> gradients``, in the order of the inputs.
    inputs : mapping or sequence
        The arguments of forward, in order; the names of a sequence come from forward's signature.
        Only floating-point arrays are checked; they are converted to float64.
    method : {"central", "complex", "directional"}
    wrt : sequence of str, optional
        Names of the inputs to check; `need` is False for the others. By default all are checked.
    rng : numpy.random.Generator, optional
        Draws dy and the directions; by default seeded with 0.
    **kwargs
        Arguments of forward without a gradient, such as a scale or a mask.

    Returns
    -------
    GradientReport

    Raises
    ------
    ValueError, GradientError
        If the method or a name in `wrt` is unknown, or there is nothing to check; if backward
        returns too few gradients, or one that is not needed.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import check_gradients
    >>> from lora_np.ops import linear_backward, linear_forward
    >>> rng = np.random.default_rng(0)
    >>> x, W = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    >>> check_gradients(linear_forward, linear_backward, (x, W)).ok
    True
    """
    if method not in TOLERANCE:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(TOLERANCE)}")
    rng = rng if rng is not None else np.random.default_rng(0)
    named = _named_float64(forward, inputs)
    checked = _names_to_check(named, wrt)
    given = {name: x.copy() if _is_float(x) else x for name, x in named.items()}
    y, cache = forward(*given.values(), **kwargs)
    probe = _Probe(forward, kwargs, named, rng.standard_normal(np.shape(y)), method)
    gradients, notes = _analytic(backward, cache, given, probe, checked, wrt)
    rows = [_row(probe, name, gradients[name], notes.get(name, ""), rng) for name in checked]
    return GradientReport(tuple(rows), method, TOLERANCE[method])


class _Probe(NamedTuple):
    """The scalar L = sum(dy * forward(inputs)), and how to differentiate it numerically."""

    forward: Callable
    kwargs: dict[str, Any]
    named: dict[str, Any]
    dy: np.ndarray
    method: str

    def slope(self, name: str, v: np.ndarray) -> float:
        """Return the derivative of L along `v` in the input `name`."""
        x, h = self.named[name], STEP[self.method]
        if self.method == "complex":
            lifted = {k: u.astype(complex) if _is_float(u) else u for k, u in self.named.items()}
            y = self._output({**lifted, name: x + 1j * h * v})
            return float((self.dy * y).sum().imag) / h
        y_plus = self._output({**self.named, name: x + h * v})
        y_minus = self._output({**self.named, name: x - h * v})
        return float((self.dy * (y_plus - y_minus)).sum()) / (2.0 * h)

    def one_sided(self, name: str, v: np.ndarray, h: float) -> tuple[float, float]:
        """Return the slopes of L to the left and to the right along `v`, over steps of `h`."""
        x, y = self.named[name], self._output(self.named)
        left = y - self._output({**self.named, name: x - h * v})
        right = self._output({**self.named, name: x + h * v}) - y
        return float((self.dy * left).sum()) / h, float((self.dy * right).sum()) / h

    def _output(self, values: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(self.forward(*values.values(), **self.kwargs)[0])


def _named_float64(forward: Callable, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Return forward's arguments by name; floating-point ones are copied to float64 arrays."""
    if not isinstance(inputs, Mapping):
        names = list(inspect.signature(forward).parameters)
        if len(inputs) > len(names):
            raise ValueError(f"{len(inputs)} inputs for a forward that takes {len(names)}")
        inputs = dict(zip(names, inputs))
    return {
        name: np.array(x, dtype=np.float64)
        if x is not None and np.issubdtype(np.asarray(x).dtype, np.floating)
        else x
        for name, x in inputs.items()
    }


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.float64


def _names_to_check(named: Mapping[str, Any], wrt: Sequence[str] | None) -> list[str]:
    floats = [name for name, x in named.items() if _is_float(x)]
    names = floats if wrt is None else list(wrt)
    unknown = [name for name in names if name not in floats]
    if unknown or not names:
        raise ValueError(f"wrt names {unknown or 'nothing'}; floating-point inputs are {floats}")
    return names


def _analytic(
    backward: Callable,
    cache: Any,
    given: Mapping[str, Any],
    probe: _Probe,
    checked: Sequence[str],
    wrt: Sequence[str] | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return backward's gradients by name, and a note for each input where the pair is not pure.

    Backward is called twice: from the same cache and dy it must return the same gradients.
    """
    dy = probe.dy.copy()
    first = _slots(backward(dy, cache), probe.named)
    kept = {name: None if g is None else np.array(g) for name, g in first.items()}
    again = _slots(_call_again(backward, dy, cache, first, checked, wrt), probe.named)
    notes = {}
    for name in checked:
        if not _same(dy, probe.dy):
            notes[name] = "backward wrote to dy"
        elif not _same(given[name], probe.named[name]):
            notes[name] = "the pair wrote to this input"
        elif kept[name] is not None and again[name] is None:
            notes[name] = "a second call of backward does not return this gradient"
        elif kept[name] is not None and not _same(kept[name], again[name]):
            notes[name] = "a second call of backward returns another gradient: cache was changed"
    return kept, notes


def _same(x: Any, y: Any) -> bool:
    return np.array_equal(x, y, equal_nan=True)


def _slots(gradients: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return backward's gradients by the names of their inputs.

    In some pairs an input that is None has a gradient's place (the bias of linear), in others it
    does not: the number of gradients decides. Further gradients belong to arguments not passed.
    """
    floats = [name for name, x in named.items() if _is_float(x)]
    with_absent = [name for name, x in named.items() if x is None or _is_float(x)]
    names = floats if len(gradients) == len(floats) else with_absent
    names = names + [f"argument {i}" for i in range(len(names), len(gradients))]
    if len(gradients) < len(names):
        raise GradientError(f"backward returned {len(gradients)} gradients, expected {len(names)}")
    unasked = [n for n, g in zip(names, gradients) if n not in floats and g is not None]
    if unasked:
        raise GradientError(f"backward returned a gradient for {unasked}, not a float input")
    return dict(zip(names, gradients))


def _call_again(
    backward: Callable,
    dy: Any,
    cache: Any,
    gradients: Mapping[str, Any],
    checked: Sequence[str],
    wrt: Sequence[str] | None,
) -> Sequence[Any]:
    """Call backward once more; if `wrt` was given, ask only for the gradients in `checked`."""
    if wrt is None:
        return backward(dy, cache)
    need = [name in checked for name in gradients]
    some = backward(dy, cache, need)
    extra = [name for name, g, n in zip(gradients, some, need) if g is not None and not n]
    if extra:
        raise GradientError(f"backward formed the gradients of {extra}, which were not needed")
    return some


def _row(
    probe: _Probe, name: str, analytic: Any, note: str, rng: np.random.Generator
) -> GradientRow:
    """Return the verdict on one gradient."""
    x = probe.named[name]
    note = note or _misfit(x, analytic)
    if note:
        return GradientRow(name, x.shape, math.inf, None, math.nan, math.nan, note)
    if probe.method == "directional":
        v = rng.standard_normal(x.shape)
        along, slope = float((v * analytic).sum()), probe.slope(name, v)
        error = abs(along - slope) / max(1.0, abs(slope))
        return _verdict(name, x.shape, error, None, along, slope)
    return _entrywise(probe, name, analytic)


def _misfit(x: np.ndarray, analytic: Any) -> str:
    """Return the reason why a gradient cannot be compared, or ""."""
    if analytic is None or analytic.shape != x.shape:
        had = "None" if analytic is None else f"of shape {analytic.shape}"
        return f"the gradient is {had}, expected shape {x.shape}"
    return "" if np.isfinite(analytic).all() else "the gradient is not finite"


def _entrywise(probe: _Probe, name: str, analytic: np.ndarray) -> GradientRow:
    """Compare a gradient with the slope along every entry."""
    numeric = np.zeros(analytic.shape)
    for index in np.ndindex(analytic.shape):
        numeric[index] = probe.slope(name, _unit(analytic.shape, index))
    difference = np.abs(analytic - numeric)
    limit = TOLERANCE[probe.method] * max(1.0, float(np.abs(numeric).max()))
    kinks = _kinks(probe, name, analytic, np.argwhere(difference > limit))
    for index in kinks:
        difference[index] = 0.0
    worst = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    error = float(difference[worst]) / max(1.0, float(np.abs(numeric).max()))
    note = "" if difference[worst] <= limit else _likeness(analytic, numeric)
    here, there = float(analytic[worst]), float(numeric[worst])
    notes = [*([note] if note else []), *([_about(kinks)] if kinks else [])]
    return _verdict(name, numeric.shape, error, worst, here, there, "; ".join(notes))


def _unit(shape: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    """Return the direction of one entry."""
    direction = np.zeros(shape)
    direction[index] = 1.0
    return direction


def _kinks(
    probe: _Probe, name: str, analytic: np.ndarray, entries: np.ndarray
) -> dict[tuple[int, ...], tuple[float, float]]:
    """Return the entries at a kink whose gradient lies between the two slopes, with the slopes."""
    found: dict[tuple[int, ...], tuple[float, float]] = {}
    for entry in entries[:MOST_KINKS]:
        index = tuple(int(i) for i in entry)
        v = _unit(analytic.shape, index)
        sides = [probe.one_sided(name, v, factor * STEP["central"]) for factor in (1.0, 4.0, 16.0)]
        gaps = [right - left for left, right in sides]
        stays = max(gaps) - min(gaps) <= 0.1 * abs(gaps[0])  # a smooth one grows 4 and 16 times
        low, high = sorted(sides[0])
        slack = TOLERANCE["central"] * max(1.0, abs(low), abs(high))
        if stays and low - slack <= analytic[index] <= high + slack:
            found[index] = sides[0]
    return found


def _about(kinks: Mapping[tuple[int, ...], tuple[float, float]]) -> str:
    """Return a note that says where forward has kinks, and the slopes of the first."""
    index, (left, right) = next(iter(kinks.items()))
    more = f" and {len(kinks) - 1} more entries" if len(kinks) > 1 else ""
    return (
        f"not differentiable at {list(index)}{more}: a kink with slopes {left:.6g} and "
        f"{right:.6g}; any slope between them is right"
    )


def _verdict(
    name: str, shape: Any, error: float, index: Any, analytic: float, numeric: float, note: str = ""
) -> GradientRow:
    """Return a row; its error is infinite if the numeric derivative is not finite."""
    if not math.isfinite(error):
        error, note = math.inf, "the numeric derivative is not finite: forward fails here"
    return GradientRow(name, shape, error, index, analytic, numeric, note)


def _likeness(analytic: np.ndarray, numeric: np.ndarray) -> str:
    """Return how a wrong gradient resembles the right one: a multiple, its transpose, or ""."""
    close = 0.01 * float(np.abs(analytic - numeric).max())
    norm = float((numeric * numeric).sum())
    factor = float((analytic * numeric).sum()) / norm if norm > 0.0 else 0.0
    if factor != 0.0 and np.abs(analytic - factor * numeric).max() <= close:
        return f"it is {factor:.6g} times the numeric gradient"
    square = analytic.ndim == 2 and analytic.shape[0] == analytic.shape[1]
    if square and np.abs(analytic.T - numeric).max() <= close:
        return "it is the transpose of the numeric gradient"
    return ""
