"""Cross-entropy, backward: the gradient of the mean loss over the tokens that are not ignored."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.misconceptions.softmax import softmax
from lora_np.course.task import Draw, Task


def _cross_entropy_backward(logits: Any, targets: Any) -> Any:
    """Return dlogits of the mean over the tokens whose target is not -100."""
    _, cache = ops.cross_entropy_forward(logits, targets)
    return ops.cross_entropy_backward(1.0, cache)[0]


def _cross_entropy_draws(rng: np.random.Generator) -> list[Draw]:
    """Return logits, some large, and targets, some ignored."""
    draws = []
    for shape, size in (((5, 4), 1.0), ((4, 4), 1.0), ((2, 3, 5), 1.0), ((3, 6), 900.0)):
        logits = size * rng.standard_normal(shape)
        draws.append({"logits": logits, "targets": rng.integers(0, shape[-1], shape[:-1])})
    draws[0]["targets"][1] = -100
    draws[2]["targets"][0, 1:] = -100
    return draws


def _cross_entropy_quantities(logits: Any, targets: Any) -> dict[str, Any]:
    """Return softmax, which tokens are kept, how many, N, and the one-hot targets."""
    kept = targets != -100
    hot = (targets[..., None] == np.arange(logits.shape[-1])).astype(np.float64)
    p = softmax(logits)
    return {"p": p, "hot": hot, "kept": kept[..., None], "M": int(kept.sum()), "N": kept.size}


ENTROPY = Task(
    "cross_entropy_backward",
    ("dlogits",),
    _cross_entropy_backward,
    _cross_entropy_draws,
    _cross_entropy_quantities,
)
ENTROPY.usual_mistakes()


@ENTROPY.mistake("dlogits")
def _target_not_subtracted(p: Any, kept: Any, M: Any) -> Any:
    """Your dlogits is only the softmax: subtract 1 at the target."""
    return p * kept / M


@ENTROPY.mistake("dlogits")
def _softmax_missing(hot: Any, M: Any) -> Any:
    """Your dlogits is -1 at the target and 0 elsewhere: add the softmax."""
    return -hot / M


@ENTROPY.mistake("dlogits")
def _sum_for_mean(dlogits: Any, M: Any) -> Any:
    """Your dlogits is the gradient of the summed loss: divide by the number of tokens."""
    return dlogits * M


@ENTROPY.mistake("dlogits")
def _ignored_tokens_counted(dlogits: Any, M: Any, N: Any) -> Any:
    """Your dlogits is divided by the number of all tokens: do not count the targets -100."""
    return dlogits * M / N


@ENTROPY.mistake("dlogits")
def _over_the_first_axis(dlogits: Any, M: Any, logits: Any) -> Any:
    """Your dlogits is divided by the length of the first axis: divide by the kept tokens."""
    return dlogits * M / len(logits)


@ENTROPY.mistake("dlogits")
def _over_the_vocabulary_too(dlogits: Any, logits: Any) -> Any:
    """Your dlogits is divided by the vocabulary size too: divide only by the tokens."""
    return dlogits / logits.shape[-1]


@ENTROPY.mistake("dlogits")
def _ignored_tokens_not_zero(p: Any, hot: Any, M: Any) -> Any:
    """Your dlogits is not zero for ignored tokens: their loss is 0, and so is their gradient."""
    return (p - hot) / M


@ENTROPY.mistake()
def _ignored_target_as_an_index(dlogits: Any, N: Any, M: Any) -> Any:
    """Your code uses the target -100 as an index: leave out the ignored tokens first."""
    if N != M:
        raise IndexError("-100 is out of bounds")
    return dlogits


@ENTROPY.mistake("dlogits")
def _largest_not_subtracted(logits: Any, hot: Any, kept: Any, M: Any) -> Any:
    """Your exp overflows: subtract the largest logit of each row first."""
    e = np.exp(logits)
    return (e / e.sum(-1, keepdims=True) - hot) * kept / M


@ENTROPY.mistake("dlogits")
def _softmax_over_the_first_axis(logits: Any, hot: Any, kept: Any, M: Any) -> Any:
    """Your softmax runs over the first axis: it must run over the vocabulary, the last axis."""
    return (softmax(logits, 0) - hot) * kept / M


@ENTROPY.mistake("dlogits")
def _softmax_over_everything(logits: Any, hot: Any, kept: Any, M: Any) -> Any:
    """Your softmax divides by the sum over all tokens: sum over the last axis, keepdims=True."""
    e = np.exp(logits - logits.max())
    return (e / e.sum() - hot) * kept / M
