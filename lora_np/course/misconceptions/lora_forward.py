"""LoRA, forward: y = x W0^T + scale ((x * mask) A^T) B^T."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_np import ops
from lora_np.course.misconceptions.lora import (
    WRONG_SCALES,
    add_wrong_scales,
    lora_draws,
    lora_quantities,
)
from lora_np.course.task import Task, samples


def _lora_forward(x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any) -> Any:
    """Return y."""
    return ops.lora_linear_forward(x, W0, A, B, scale=alpha / len(A), mask=mask)[0]


def _y_with(value: Callable[..., Any]) -> Callable[..., Any]:
    """Return an answer that is correct except for the scale."""

    def y(base: Any, adapter: Any, alpha: Any, r: Any, scale: Any, W0: Any) -> Any:
        return base + adapter * (value(alpha, r, *W0.shape) / scale)

    return y


FORWARD = Task(
    "lora_linear_forward",
    ("y",),
    _lora_forward,
    lora_draws,
    lora_quantities,
    parts={"y": ("base", "adapter")},
)
FORWARD.usual_mistakes()
add_wrong_scales(FORWARD, "y", WRONG_SCALES, _y_with)


@FORWARD.mistake("y")
def _scale_missing(base: Any, adapter: Any, scale: Any) -> Any:
    """Your y has no scale: multiply the adapter's part by alpha / r."""
    return base + adapter / scale


@FORWARD.mistake("y")
def _alpha_not_over_r(base: Any, adapter: Any, r: Any) -> Any:
    """Your y scales the adapter by alpha: the scale is alpha / r."""
    return base + adapter * r


@FORWARD.mistake("y")
def _scale_squared(base: Any, adapter: Any, scale: Any) -> Any:
    """Your y has the scale twice: apply it once, to A or to B."""
    return base + adapter * scale


@FORWARD.mistake("y")
def _scale_on_all(base: Any, adapter: Any, scale: Any) -> Any:
    """Your y scales the frozen path too: scale only the adapter's part."""
    return scale * base + adapter


@FORWARD.mistake("y")
def _adapter_missing(base: Any) -> Any:
    """Your y is only x W0^T: add the adapter's part."""
    return base


@FORWARD.mistake("y")
def _W0_missing(adapter: Any) -> Any:
    """Your y is only the adapter's part: add x W0^T."""
    return adapter


@FORWARD.mistake("y")
def _adapter_subtracted(base: Any, adapter: Any) -> Any:
    """Your y subtracts the adapter's part: add it."""
    return base - adapter


@FORWARD.mistake("y")
def _mask_forgotten(x: Any, base: Any, A: Any, B: Any, scale: Any) -> Any:
    """Your y ignores the mask: the input of the adapter is x * mask."""
    return base + scale * (x @ A.T @ B.T)


@FORWARD.mistake("y")
def _mask_and_scale_forgotten(x: Any, base: Any, A: Any, B: Any) -> Any:
    """Your y ignores the mask and the scale: send x * mask through A and B, times alpha / r."""
    return base + x @ A.T @ B.T


@FORWARD.mistake("y")
def _mask_on_both_paths(seen: Any, W0: Any, adapter: Any) -> Any:
    """Your y masks the frozen path too: dropout acts only on the input of the adapter."""
    return seen @ W0.T + adapter


@FORWARD.mistake("y")
def _mask_on_the_change_of_W(x: Any, base: Any, A: Any, B: Any, scale: Any, mask: Any) -> Any:
    """Your y masks Delta W with the mask of the first sample: every sample has its own mask."""
    return base + scale * (x @ ((B @ A) * samples(mask)[0]).T)


@FORWARD.mistake("y")
def _mask_of_ones(x: Any, base: Any, A: Any, B: Any, scale: Any, mask: Any) -> Any:
    """Your y drops entries without rescaling the others: the mask is 0 or 1/(1 - p)."""
    return base + scale * ((x * (mask > 0)) @ A.T @ B.T)


@FORWARD.mistake("y")
def _A_and_B_swapped(seen: Any, base: Any, A: Any, B: Any, scale: Any) -> Any:
    """Your y swaps A and B: multiply x by A (r, in) first, and then by B (out, r)."""
    return base + scale * (seen @ B.T @ A.T)


@FORWARD.mistake("y")
def _change_of_W_transposed(seen: Any, base: Any, A: Any, B: Any, scale: Any) -> Any:
    """Your y transposes Delta W = B A: the adapter's part is x (B A)^T."""
    return base + scale * (seen @ B @ A)


@FORWARD.mistake("y")
def _W0_transposed(x: Any, W0: Any, adapter: Any) -> Any:
    """Your y has x W0: W0 is (out, in), so the frozen path is x W0^T."""
    return x @ W0 + adapter
