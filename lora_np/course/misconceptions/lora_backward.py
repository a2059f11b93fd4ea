"""LoRA, backward: the gradients of x, A and B, where W0 is frozen.

du = scale dy B        dx = dy W0 + (du A) * mask        dA = du^T (x * mask)
u = (x * mask) A^T     dB = scale dy^T u
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.misconceptions.lora import (
    WRONG_SCALES,
    add_wrong_scales,
    lora_draws,
    lora_quantities,
)
from lora_np.course.task import Draw, Task, samples


def _lora_backward(dy: Any, x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any) -> Any:
    """Return (dx, dA, dB): W0 is frozen."""
    _, cache = ops.lora_linear_forward(x, W0, A, B, scale=alpha / len(A), mask=mask)
    dx, _, dA, dB, _ = ops.lora_linear_backward(dy, cache, (True, False, True, True, False))
    return dx, dA, dB


def _lora_backward_draws(rng: np.random.Generator) -> list[Draw]:
    draws = lora_draws(rng)
    return [{"dy": rng.standard_normal((*d["x"].shape[:-1], len(d["W0"]))), **d} for d in draws]


def _lora_backward_quantities(
    dy: Any, x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any
) -> dict[str, Any]:
    """Return the same for dx, whose two parts replace those of y, and du without its scale."""
    more = lora_quantities(x, W0, A, B, alpha, mask)
    du = dy @ B
    more.update(base=dy @ W0, adapter=more["scale"] * (du @ A) * mask)
    return {**more, "du": du}


def _gradients_with(value: Callable[..., Any]) -> Callable[..., Any]:
    """Return an answer whose three gradients are correct except for the scale."""

    def gradients(
        base: Any, adapter: Any, alpha: Any, r: Any, scale: Any, W0: Any, dA: Any, dB: Any
    ) -> Any:
        c = value(alpha, r, *W0.shape) / scale
        return base + adapter * c, dA * c, dB * c

    return gradients


THROUGHOUT = {  # for all gradients at once; lora_forward.py has these two as functions
    "alpha throughout": ("alpha", lambda a, r, m, n: a),
    "scale missing throughout": ("1, or missing", lambda a, r, m, n: 1.0),
}

BACKWARD = Task(
    "lora_linear_backward",
    ("dx", "dA", "dB"),
    _lora_backward,
    _lora_backward_draws,
    _lora_backward_quantities,
    parts={"dx": ("base", "adapter")},
)
BACKWARD.usual_mistakes()
add_wrong_scales(BACKWARD, None, WRONG_SCALES | THROUGHOUT, _gradients_with)


@BACKWARD.mistake("dx")
def _dx_without_the_adapter(base: Any) -> Any:
    """Your dx lacks the adapter's path: x reaches y through A and B too, so add (du A) * mask."""
    return base


@BACKWARD.mistake("dx")
def _dx_without_W0(adapter: Any) -> Any:
    """Your dx lacks the frozen path: W0 gets no gradient, but x gets dy W0."""
    return adapter


@BACKWARD.mistake("dx")
def _dx_without_scale(base: Any, adapter: Any, scale: Any) -> Any:
    """Your dx has no scale on the adapter's path: du = scale dy B."""
    return base + adapter / scale


@BACKWARD.mistake("dx")
def _dx_with_scale_squared(base: Any, adapter: Any, scale: Any) -> Any:
    """Your dx has the scale twice on the adapter's path: du already contains it."""
    return base + adapter * scale


@BACKWARD.mistake("dx")
def _dx_with_alpha(base: Any, adapter: Any, r: Any) -> Any:
    """Your dx scales the adapter's path by alpha: the scale is alpha / r."""
    return base + adapter * r


@BACKWARD.mistake("dx")
def _dx_scaled_throughout(base: Any, adapter: Any, scale: Any) -> Any:
    """Your dx scales the frozen path too: scale only the adapter's path."""
    return scale * base + adapter


@BACKWARD.mistake("dx")
def _dx_forgets_the_mask(base: Any, du: Any, A: Any, scale: Any) -> Any:
    """Your dx ignores the mask: a dropped entry of x gets no gradient from the adapter."""
    return base + scale * (du @ A)


@BACKWARD.mistake("dx")
def _dx_masked_throughout(base: Any, adapter: Any, mask: Any) -> Any:
    """Your dx masks the frozen path too: dropout acts only on the adapter's path."""
    return base * mask + adapter


@BACKWARD.mistake("dx")
def _dx_by_W0_transposed(dy: Any, W0: Any, adapter: Any) -> Any:
    """Your dx has dy W0^T: W0 is (out, in) already, so the frozen path is dy W0."""
    return dy @ W0.T + adapter


@BACKWARD.mistake("dA")
def _dA_over_scale(dA: Any, scale: Any) -> Any:
    """Your dA equals the correct dA times 1/scale: the scale is missing in du = scale dy B."""
    return dA / scale


@BACKWARD.mistake("dA")
def _dA_times_scale(dA: Any, scale: Any) -> Any:
    """Your dA equals the correct dA times scale: apply the scale once, in du."""
    return dA * scale


@BACKWARD.mistake("dA")
def _dA_times_r(dA: Any, r: Any) -> Any:
    """Your dA equals the correct dA times r: the scale is alpha / r, not alpha."""
    return dA * r


@BACKWARD.mistake("dA")
def _dA_over_N(dA: Any, N: Any) -> Any:
    """Your dA equals the correct dA times 1/N: sum over the samples, do not average."""
    return dA / N


@BACKWARD.mistake("dA")
def _dA_forgets_the_mask(du: Any, x: Any, scale: Any) -> Any:
    """Your dA ignores the mask: the input of A is x * mask, so dA = du^T (x * mask)."""
    return scale * (samples(du).T @ samples(x))


@BACKWARD.mistake("dA")
def _dA_of_the_last_sample(du: Any, seen: Any, scale: Any) -> Any:
    """Your dA is the gradient of the last sample only: add up the samples with +=."""
    return scale * np.outer(samples(du)[-1], samples(seen)[-1])


@BACKWARD.mistake("dA")
def _dA_not_summed(du: Any, seen: Any, scale: Any) -> Any:
    """Your dA has one matrix per sample: sum over the samples."""
    return scale * (du[..., :, None] * seen[..., None, :])


@BACKWARD.mistake("dA")
def _dA_by_du_T(du: Any, seen: Any, scale: Any) -> Any:
    """Your dA is du.T @ (x * mask), which needs a single batch axis: reshape to (N, ...) first."""
    return scale * (du.T @ seen)


@BACKWARD.mistake("dA")
def _dA_by_B_transposed(dy: Any, seen: Any, B: Any, scale: Any) -> Any:
    """Your dA has dy B^T: B is (out, r), so du = scale dy B."""
    return scale * (samples(dy @ B.T).T @ samples(seen))


@BACKWARD.mistake("dA")
def _dA_as_if_A_were_W(dy: Any, seen: Any, scale: Any) -> Any:
    """Your dA is the gradient of Delta W = B A: multiply it by B^T to get dA."""
    return scale * (samples(dy).T @ samples(seen))


@BACKWARD.mistake("dB")
def _dB_over_scale(dB: Any, scale: Any) -> Any:
    """Your dB equals the correct dB times 1/scale: the scale is missing; dB = scale dy^T u."""
    return dB / scale


@BACKWARD.mistake("dB")
def _dB_times_scale(dB: Any, scale: Any) -> Any:
    """Your dB equals the correct dB times scale: apply the scale once."""
    return dB * scale


@BACKWARD.mistake("dB")
def _dB_times_r(dB: Any, r: Any) -> Any:
    """Your dB equals the correct dB times r: the scale is alpha / r, not alpha."""
    return dB * r


@BACKWARD.mistake("dB")
def _dB_over_N(dB: Any, N: Any) -> Any:
    """Your dB equals the correct dB times 1/N: sum over the samples, do not average."""
    return dB / N


@BACKWARD.mistake("dB")
def _dB_forgets_the_mask(dy: Any, x: Any, A: Any, scale: Any) -> Any:
    """Your dB ignores the mask: u = (x * mask) A^T."""
    return scale * (samples(dy).T @ samples(x @ A.T))


@BACKWARD.mistake("dB")
def _dB_of_the_last_sample(dy: Any, seen: Any, A: Any, scale: Any) -> Any:
    """Your dB is the gradient of the last sample only: add up the samples with +=."""
    return scale * np.outer(samples(dy)[-1], samples(seen @ A.T)[-1])


@BACKWARD.mistake("dB")
def _dB_by_dy_T(dy: Any, seen: Any, A: Any, scale: Any) -> Any:
    """Your dB is dy.T @ u, which needs a single batch axis: reshape both to (N, ...) first."""
    return scale * (dy.T @ (seen @ A.T))


@BACKWARD.mistake("dB")
def _dB_by_A_transposed(dy: Any, seen: Any, A: Any, scale: Any) -> Any:
    """Your dB has x A: A is (r, in), so u = (x * mask) A^T."""
    return scale * (samples(dy).T @ samples(seen @ A))


@BACKWARD.mistake()
def _mask_and_scale_forgotten_throughout(
    dy: Any, x: Any, A: Any, B: Any, base: Any, du: Any
) -> Any:
    """Your gradients ignore the mask and the scale: the input of A is x * mask, times alpha / r."""
    return base + du @ A, samples(du).T @ samples(x), samples(dy).T @ samples(x @ A.T)


@BACKWARD.mistake()
def _dW0_computed(dy: Any, x: Any, dx: Any, dA: Any, dB: Any) -> Any:
    """Your answer contains dW0: W0 is frozen, so return (dx, dA, dB)."""
    return dx, samples(dy).T @ samples(x), dA, dB


@BACKWARD.mistake()
def _dx_forgotten(dA: Any, dB: Any) -> Any:
    """Your dA and dB are correct, but dx is missing: the layers below need it."""
    return dA, dB
