"""Which triplets AdaLoRA keeps: their scores, the budget, and the cut.

Triplet k is row k of A, entry k of E and column k of B. After each step, for every entry p of
these, with its gradient dp::

    now = |p dp|                                                   sensitivity
    I   = beta1 I + (1 - beta1) now                                its average, and
    U   = beta2 U + (1 - beta2) |now - I|                          its uncertainty
    score of a triplet = I U of E_k + mean of I U over A_k + mean over B_k

The budget is init_r a layer for `tinit` steps and target_r a layer in the last `tfinal` steps. In
between, what exceeds target_r falls with the cube of the time that is left. Every `deltaT` steps,
the triplets with the highest scores over all layers are kept, and the others are cut. A triplet
that is cut has E_k = 0, set after EVERY step, because the momentum of Adam would revive it. Its A_k
and B_k stay, so that it can be kept again.

Source: Zhang et al. (2023), arXiv:2303.10512, equations 7 to 12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp, like, to_host
from lora_np.parameters import Parameter

NEAR = 1e-6  # scores that differ by less, relatively, are equal: the lowest index is kept


def check_options(config: Any) -> None:
    """Raise ValueError unless the budget falls within the run, and the numbers are in range."""
    T, early = config.total_step, config.tinit + config.tfinal
    sizes = f"target_r = {config.target_r} and init_r = {config.init_r}"
    for ok, found, expected in (
        (1 <= config.target_r <= config.init_r, sizes, "1 <= target_r <= init_r: a budget falls"),
        (T is not None, "total_step = None", "the number of steps of the whole run"),
        (early < (T or 0), f"total_step = {T}", f"more than tinit + tfinal = {early}"),
        (config.tinit >= 0, f"tinit = {config.tinit}", "at least 0"),
        (config.tfinal >= 0, f"tfinal = {config.tfinal}", "at least 0"),
        (config.deltaT >= 1, f"deltaT = {config.deltaT}", "at least 1"),
        (0.0 < config.beta1 < 1.0, f"beta1 = {config.beta1}", "a number between 0 and 1"),
        (0.0 < config.beta2 < 1.0, f"beta2 = {config.beta2}", "a number between 0 and 1"),
        (config.orth_reg_weight >= 0, f"orth_reg_weight = {config.orth_reg_weight}", "at least 0"),
        (config.lora_alpha > 0, f"lora_alpha = {config.lora_alpha}", "a number above 0"),
    ):
        if not ok:
            raise ValueError(f"{found}, expected {expected}")


def budget_at(t: int, start: int, target: int, tinit: int, last: int) -> int:
    """Return how many triplets are kept after step `t`, counted from 1.

    Parameters
    ----------
    t : int
    start, target : int
        The budget up to step `tinit`, and from step `last` on.
    tinit, last : int

    Examples
    --------
    >>> from lora_np.methods.adalora_ranks import budget_at
    >>> [budget_at(t, start=24, target=16, tinit=2, last=6) for t in range(1, 8)]
    [24, 24, 19, 17, 16, 16, 16]
    """
    if t <= tinit:
        return start
    left, span = max(last - t, 0), last - tinit
    return target + (start - target) * left**3 // span**3  # in whole numbers: without rounding


def kept_triplets(scores: np.ndarray, budget: int) -> np.ndarray:
    """Return a bool for each score: whether it is one of the `budget` highest.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.methods.adalora_ranks import kept_triplets
    >>> kept_triplets(np.array([1.0, 3.0, 1.0 + 1e-15, 0.0]), budget=2).tolist()
    [True, True, False, False]
    """
    edge = np.sort(scores)[len(scores) - budget]
    kept, near = scores > edge * (1.0 + NEAR), scores >= edge * (1.0 - NEAR)
    equal = np.flatnonzero(near & ~kept)
    kept[equal[: budget - int(kept.sum())]] = True
    return kept


def allocate(
    config: Any, layers: Sequence[Any], t: int, gradients: Mapping[Parameter, Array]
) -> None:
    """Update the scores after step `t`, keep other triplets if it is time, and cut the rest.

    `gradients` are those of the step; `config` is an AdaLoraConfig.
    """
    last = config.total_step - config.tfinal
    if t < last:
        for layer in layers:
            follow(layer, gradients, config.beta1, config.beta2)
    if t == last or (config.tinit < t < last and t % config.deltaT == 0):
        start, target = (r * len(layers) for r in (config.init_r, config.target_r))
        keep(layers, budget_at(t, start, target, config.tinit, last))
    for layer in layers:
        layer.E.value[layer.kept.value == 0.0] = 0.0


def follow(layer: Any, gradients: Mapping[Parameter, Array], beta1: float, beta2: float) -> None:
    """Update I and U of a layer; a frozen Parameter has no gradient, and its entries score zero."""
    found = [(p.value, gradients.get(p)) for p in layer.triplets()]
    products = [(0.0 * x if g is None else x * g).reshape(-1) for x, g in found]
    now, (I, U) = abs(get_xp(products[0]).concatenate(products)), layer.ema.value
    I[...] = beta1 * I + (1.0 - beta1) * now
    U[...] = beta2 * U + (1.0 - beta2) * abs(now - I)


def scores_of(layer: Any) -> np.ndarray:
    """Return the scores (r,) of a layer's triplets, on the host."""
    I, U = to_host(layer.ema.value).astype(np.float64)
    A, E, B = np.split(I * U, np.cumsum([p.size for p in layer.triplets()])[:-1])
    return E + A.reshape(layer.r, -1).mean(axis=1) + B.reshape(-1, layer.r).mean(axis=0)


def keep(layers: Sequence[Any], budget: int) -> None:
    """Keep the `budget` best triplets of all layers."""
    kept = kept_triplets(np.concatenate([scores_of(layer) for layer in layers]), budget)
    ends = np.cumsum([layer.r for layer in layers])[:-1]
    for layer, own in zip(layers, np.split(kept, ends)):
        flags = own.astype(layer.kept.dtype).reshape(-1, 1)
        layer.kept.value[...] = like(flags, layer.kept.value)
