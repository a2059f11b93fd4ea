"""Softmax, backward: dx = y (dy - sum_j dy_j y_j), with y = softmax(x) given instead of x."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.task import Draw, Task
from lora_np.ops.activation import SoftmaxCache


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the softmax of `x` over one axis."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _softmax_backward(dy: Any, y: Any) -> Any:
    """Return dx of y = softmax(x) over the last axis."""
    return ops.softmax_backward(dy, SoftmaxCache(y))[0]


def _softmax_draws(rng: np.random.Generator) -> list[Draw]:
    n = rng.standard_normal
    return [{"dy": n(s), "y": softmax(n(s))} for s in ((3, 4), (5,), (3, 3), (2, 3, 4))]


SOFTMAX = Task("softmax_backward", ("dx",), _softmax_backward, _softmax_draws)
SOFTMAX.usual_mistakes()


@SOFTMAX.mistake("dx")
def _jacobian_diagonal(dy: Any, y: Any) -> Any:
    """Your dx uses only the diagonal of the Jacobian, y (1 - y): every x_j changes every y_i."""
    return dy * y * (1 - y)


@SOFTMAX.mistake("dx")
def _sum_missing(dy: Any, y: Any) -> Any:
    """Your dx lacks the sum: subtract y sum_j dy_j y_j."""
    return dy * y


@SOFTMAX.mistake("dx")
def _sum_not_weighted(dy: Any, y: Any) -> Any:
    """Your dx subtracts y sum_j dy_j: weight the sum by y, sum_j dy_j y_j."""
    return y * (dy - dy.sum(-1, keepdims=True))


@SOFTMAX.mistake("dx")
def _mean_for_sum(dy: Any, y: Any) -> Any:
    """Your dx subtracts a mean: subtract the sum over j of dy_j y_j."""
    return y * (dy - (dy * y).mean(-1, keepdims=True))


@SOFTMAX.mistake("dx")
def _sum_not_times_y(dy: Any, y: Any) -> Any:
    """Your dx subtracts the sum without its factor y_i: dx = dy y - y sum_j dy_j y_j."""
    return dy * y - (dy * y).sum(-1, keepdims=True)


@SOFTMAX.mistake("dx")
def _y_missing(dy: Any, y: Any) -> Any:
    """Your dx lacks the factor y: dx = y (dy - sum_j dy_j y_j)."""
    return dy - (dy * y).sum(-1, keepdims=True)


@SOFTMAX.mistake("dx")
def _sum_over_everything(dy: Any, y: Any) -> Any:
    """Your dx sums over all rows: every row has its own softmax, so sum over the last axis."""
    return y * (dy - (dy * y).sum())


@SOFTMAX.mistake("dx")
def _sum_over_the_first_axis(dy: Any, y: Any) -> Any:
    """Your dx sums over the first axis: softmax runs over the last axis."""
    return y * (dy - (dy * y).sum(0, keepdims=True))


@SOFTMAX.mistake("dx")
def _sum_without_keepdims(dy: Any, y: Any) -> Any:
    """Your dx sums without keepdims=True: each row needs the sum of that row."""
    return y * (dy - (dy * y).sum(-1))


@SOFTMAX.mistake("dx")
def _softmax_of_y(dy: Any, y: Any) -> Any:
    """Your dx applies softmax to y: y already contains the probabilities."""
    p = softmax(y)
    return p * (dy - (dy * p).sum(-1, keepdims=True))
