"""The linear map y = x W^T + b: the gradients of x, W and b."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.task import Draw, Task, count, samples

LEADING = ((5,), (4,), (2, 3), (3, 3), (1,))  # the batch's axes, one entry a draw


def _linear_backward(dy: Any, x: Any, W: Any) -> Any:
    """Return (dx, dW, db)."""
    _, cache = ops.linear_forward(x, W, np.zeros(W.shape[0]))
    return ops.linear_backward(dy, cache)


def _linear_draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs: W wide, square (a transpose fits), tall, as large as the batch, and a row."""
    n, sides = rng.standard_normal, ((4, 3), (4, 4), (2, 5), (3, 3), (1, 3))
    return [
        {"dy": n((*batch, out)), "x": n((*batch, in_)), "W": n((out, in_))}
        for batch, (out, in_) in zip(LEADING, sides)
    ]


def _sizes(dy: Any) -> dict[str, Any]:
    return {"N": count(dy), "first": dy.shape[0]}


LINEAR = Task("linear_backward", ("dx", "dW", "db"), _linear_backward, _linear_draws, _sizes)
LINEAR.usual_mistakes(but=("db transposed",))


@LINEAR.mistake("dx")
def _dx_by_W_transposed(dy: Any, W: Any) -> Any:
    """Your dx is dy W^T: W is (out, in) already, so dx = dy W."""
    return dy @ W.T


@LINEAR.mistake("dx")
def _dx_without_dy(dy: Any, W: Any) -> Any:
    """Your dx leaves dy out: it is the gradient of sum(y); multiply by dy, dx = dy W."""
    return np.ones_like(dy) @ W


@LINEAR.mistake("dx")
def _dx_over_N(dx: Any, N: Any) -> Any:
    """Your dx equals the right one times 1/N: dy holds the loss's 1/N already, if it has one."""
    return dx / N


@LINEAR.mistake("dW")
def _dW_mean(dW: Any, N: Any) -> Any:
    """Your dW equals the right one times 1/N: samples are summed, not averaged."""
    return dW / N


@LINEAR.mistake("dW")
def _dW_over_the_first_axis(dW: Any, first: Any) -> Any:
    """Your dW equals the right one over the length of the first axis: samples are summed."""
    return dW / first


@LINEAR.mistake("dW")
def _dW_not_summed(dy: Any, x: Any) -> Any:
    """Your dW has one matrix a sample: the sum over the samples is missing."""
    return dy[..., :, None] * x[..., None, :]


@LINEAR.mistake("dW")
def _dW_of_the_last_sample(dy: Any, x: Any) -> Any:
    """Your dW is that of the last sample alone: add up with += over the samples."""
    return np.outer(samples(dy)[-1], samples(x)[-1])


@LINEAR.mistake("dW")
def _dW_of_the_first_sample(dy: Any, x: Any) -> Any:
    """Your dW is that of the first sample alone: sum over all samples."""
    return np.outer(samples(dy)[0], samples(x)[0])


@LINEAR.mistake("dW")
def _dW_of_sums(dy: Any, x: Any) -> Any:
    """Your dW is the product of the sums: multiply sample by sample first, then sum."""
    return np.outer(samples(dy).sum(0), samples(x).sum(0))


@LINEAR.mistake("dW")
def _dW_without_dy(dy: Any, x: Any) -> Any:
    """Your dW leaves dy out: it is the gradient of sum(y); dW = dy^T x."""
    return np.ones_like(samples(dy)).T @ samples(x)


@LINEAR.mistake("dW")
def _dW_keeps_the_batch_axis(dy: Any, x: Any) -> Any:
    """Your dW still has the batch's first axis: x may have several batch axes; sum over all."""
    return np.swapaxes(dy, -1, -2) @ x


@LINEAR.mistake("dW")
def _dW_by_dy_T(dy: Any, x: Any) -> Any:
    """Your dW is dy.T @ x, right for one batch axis: .T turns all; reshape to (N, ...) first."""
    return dy.T @ x


@LINEAR.mistake("db")
def _db_not_summed(dy: Any) -> Any:
    """Your db is dy itself: the bias reaches every sample, so sum over the samples."""
    return dy


@LINEAR.mistake("db")
def _db_mean(db: Any, N: Any) -> Any:
    """Your db equals the right one times 1/N: samples are summed, not averaged."""
    return db / N


@LINEAR.mistake("db")
def _db_keeps_the_batch_axis(dy: Any) -> Any:
    """Your db sums over the first axis alone: x may have several batch axes; sum over all."""
    return dy.sum(axis=0)


@LINEAR.mistake("db")
def _db_over_the_wrong_axis(dy: Any) -> Any:
    """Your db sums over the outputs and keeps the samples: sum over the samples."""
    return samples(dy).sum(axis=1)


@LINEAR.mistake()
def _db_forgotten(dx: Any, dW: Any) -> Any:
    """Your dx and dW are right, but db is missing: return (dx, dW, db)."""
    return dx, dW
