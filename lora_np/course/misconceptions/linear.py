"""The linear map y = x W^T + b: the gradients of x, W and b."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.task import Draw, Task, count, samples

LEADING = ((5,), (4,), (2, 3), (3, 3), (1,))  # batch axes, one entry for each draw


def _linear_backward(dy: Any, x: Any, W: Any) -> Any:
    """Return (dx, dW, db)."""
    _, cache = ops.linear_forward(x, W, np.zeros(W.shape[0]))
    return ops.linear_backward(dy, cache)


def _linear_draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs where W is tall, square (a transpose fits), wide, square again, and a row."""
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
    """Your dx is the gradient of sum(y): multiply by dy, dx = dy W."""
    return np.ones_like(dy) @ W


@LINEAR.mistake("dx")
def _dx_over_N(dx: Any, N: Any) -> Any:
    """Your dx equals the correct dx times 1/N: dy already contains the 1/N of a mean loss."""
    return dx / N


@LINEAR.mistake("dW")
def _dW_mean(dW: Any, N: Any) -> Any:
    """Your dW equals the correct dW times 1/N: sum over the samples, do not average."""
    return dW / N


@LINEAR.mistake("dW")
def _dW_over_the_first_axis(dW: Any, first: Any) -> Any:
    """Your dW is divided by the length of the first axis: sum over the samples."""
    return dW / first


@LINEAR.mistake("dW")
def _dW_not_summed(dy: Any, x: Any) -> Any:
    """Your dW has one matrix per sample: sum over the samples."""
    return dy[..., :, None] * x[..., None, :]


@LINEAR.mistake("dW")
def _dW_of_the_last_sample(dy: Any, x: Any) -> Any:
    """Your dW is the gradient of the last sample only: add up the samples with +=."""
    return np.outer(samples(dy)[-1], samples(x)[-1])


@LINEAR.mistake("dW")
def _dW_of_the_first_sample(dy: Any, x: Any) -> Any:
    """Your dW is the gradient of the first sample only: sum over all samples."""
    return np.outer(samples(dy)[0], samples(x)[0])


@LINEAR.mistake("dW")
def _dW_of_sums(dy: Any, x: Any) -> Any:
    """Your dW is the product of two sums: multiply within each sample first, then sum."""
    return np.outer(samples(dy).sum(0), samples(x).sum(0))


@LINEAR.mistake("dW")
def _dW_without_dy(dy: Any, x: Any) -> Any:
    """Your dW is the gradient of sum(y): multiply by dy, dW = dy^T x."""
    return np.ones_like(samples(dy)).T @ samples(x)


@LINEAR.mistake("dW")
def _dW_keeps_the_batch_axis(dy: Any, x: Any) -> Any:
    """Your dW keeps the first batch axis: x may have several batch axes, so sum over all."""
    return np.swapaxes(dy, -1, -2) @ x


@LINEAR.mistake("dW")
def _dW_by_dy_T(dy: Any, x: Any) -> Any:
    """Your dW is dy.T @ x, which needs a single batch axis: reshape both to (N, ...) first."""
    return dy.T @ x


@LINEAR.mistake("db")
def _db_not_summed(dy: Any) -> Any:
    """Your db is dy itself: the bias is added to every sample, so sum over the samples."""
    return dy


@LINEAR.mistake("db")
def _db_mean(db: Any, N: Any) -> Any:
    """Your db equals the correct db times 1/N: sum over the samples, do not average."""
    return db / N


@LINEAR.mistake("db")
def _db_keeps_the_batch_axis(dy: Any) -> Any:
    """Your db sums over the first axis only: x may have several batch axes, so sum over all."""
    return dy.sum(axis=0)


@LINEAR.mistake("db")
def _db_over_the_wrong_axis(dy: Any) -> Any:
    """Your db sums over the outputs: sum over the samples instead."""
    return samples(dy).sum(axis=1)


@LINEAR.mistake()
def _db_forgotten(dx: Any, dW: Any) -> Any:
    """Your dx and dW are correct, but db is missing: return (dx, dW, db)."""
    return dx, dW
