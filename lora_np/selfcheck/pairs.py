"""The rows of the table that are pairs of ops, with their fast twins, and pairs of methods."""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np

from lora_np import ops
from lora_np.gradcheck import Case
from lora_np.methods.adalora import triplet_backward, triplet_forward
from lora_np.methods.bottleneck import bottleneck_backward, bottleneck_forward
from lora_np.methods.encoder import encoder_backward, encoder_forward
from lora_np.methods.ia3 import gain_backward, gain_forward
from lora_np.methods.subspace import subspace_backward, subspace_forward
from lora_np.methods.vera import vera_backward, vera_forward
from lora_np.methods.virtual import prepend_backward, prepend_forward
from lora_np.ops import fast
from lora_np.ops.fastfood import Fastfood

IM2COL: dict[str, Any] = {
    "kernel": (2, 3),
    "stride": (2, 1),
    "padding": (1, 2),
    "dilation": (2, 1),
}


def of_ops(rng: np.random.Generator) -> list[Case]:
    """Return every pair of ops, and its fast twin."""
    n = rng.standard_normal
    x, W0, A, B, b = n((2, 3, 5)), n((4, 5)), n((2, 5)), n((4, 2)), n(4)
    mask = (rng.random(x.shape) < 0.7) / 0.7
    tokens = rng.integers(0, 6, (2, 4))
    some = np.where(tokens == tokens[0, 0], -100, tokens)  # some targets are ignored
    every = {"causal": False}
    table = [
        _pair("linear", x, W0, b),
        _pair("linear", x, W0, label=", no bias"),
        _pair("lora_linear", x, W0, A, B, b, scale=0.7),
        _pair("lora_linear", x, W0, A, B, label=", dropout, no bias", scale=0.7, mask=mask),
        _pair("lora_linear", x[0, :1], W0, A, B, label=", one sample", scale=0.7),
        *(_pair(name, n((3, 4))) for name in ("gelu", "relu", "silu", "softmax")),
        _pair("layernorm", x, n(5), n(5)),
        _pair("rmsnorm", x, n(5)),
        _pair("modulated_norm", x, n(x.shape), n(x.shape)),
        _pair("modulated_norm", x, n((2, 1, 5)), n((2, 1, 5)), label=", shared by positions"),
        *_llama(rng),
        _rows_pair(rng),
        _pair("embedding", tokens, n((6, 3))),
        _pair("dropout", x, mask=mask),
        _pair("attention", n((2, 2, 4, 3)), n((2, 2, 4, 3)), n((2, 2, 4, 3))),
        _pair("attention", n((2, 2, 3)), n((2, 5, 3)), n((2, 5, 4)), label=", 2 queries, 5 keys"),
        _pair("attention", n((1, 1, 1)), n((1, 1, 1)), n((1, 1, 1)), label=", one of each"),
        _pair("attention", n((2, 4, 3)), n((2, 4, 3)), n((2, 4, 3)), label=", all keys", **every),
        _pair("attention", n((2, 5, 3)), n((2, 2, 3)), n((2, 2, 4)), label=", all 2 keys", **every),
        _pair("cross_entropy", n((2, 4, 6)), tokens),
        _pair("cross_entropy", n((2, 4, 6)), some, label=", some ignored"),
        _pair("mse", n((3, 4)), n((3, 4))),
        _pair("im2col", n((2, 4, 3, 2)), kernel=(2, 3)),
        _pair("im2col", n((1, 5, 4, 3)), label=", all options", **IM2COL),
        _pair("rnn_cell", n((2, 3)), n((2, 3))),
        _pair("gru_cell", n((2, 9)), n((2, 9)), n((2, 3))),
    ]
    return [case for forms in table for case in forms]


def of_methods(rng: np.random.Generator) -> list[Case]:
    """Return the pairs that belong to one method."""
    n = rng.standard_normal
    moves = {"P": Fastfood(7, 3, rng, np.float64), "layer": np.array([0, 0, 1, 1, 1, 0, 0])}
    encoder = n((2, 3)), n((5, 3)), n(5), n((4, 5)), n(4)
    bottleneck = n((2, 3, 5)), n((2, 5)), n(2), n((5, 2)), n(5)
    vera = n((4, 5)), n((3, 5)), n((4, 3)), n(3), n(4)
    return [
        Case("bottleneck", bottleneck_forward, bottleneck_backward, bottleneck, {"scale": 0.7}),
        Case(
            "bottleneck, gelu", bottleneck_forward, bottleneck_backward, bottleneck, {"gelu": True}
        ),
        Case("gain", gain_forward, gain_backward, (n((2, 3, 5)), n((1, 5))), {}),
        Case("triplet", triplet_forward, triplet_backward, (n((3, 5)), n((3, 1))), {}),
        Case("vera", vera_forward, vera_backward, (n((2, 3, 5)), *vera, n(4)), {}),
        Case("prepend", prepend_forward, prepend_backward, (n((2, 3, 4)), n((2, 4))), {}),
        Case("encoder", encoder_forward, encoder_backward, encoder, {}),
        Case("subspace", subspace_forward, subspace_backward, (n(7), n(3), n(2)), moves),
        Case("subspace, no scales", subspace_forward, subspace_backward, (n(7), n(3)), moves),
    ]


def _rows_pair(rng: np.random.Generator) -> list[Case]:
    """Return the pair with an adapter for each row: ranks 1 and 3, and two rows of the base."""
    n = rng.standard_normal
    x, W0, b = n((5, 2, 4)), n((3, 4)), n(3)
    factors = n((3, 4)), n((3, 3)), n((1, 4)), n((3, 1))
    named = dict(zip(("x", "W0", "b", "A0", "B0", "A1", "B1"), (x, W0, b, *factors)))
    options = {"ids": [1, -1, 0, 1, -1], "scale": [0.7, 2.0]}
    return [
        Case(f"lora_rows{suffix}", *flat_pair(form), named, options)
        for suffix, form in (("", ops), (", fast", fast))
    ]


def flat_pair(form: Any) -> tuple[Any, Any]:
    """Return lora_rows with A and B of every adapter as arguments of their own, in turn."""

    @wraps(form.lora_rows_forward)
    def forward(x: Any, W0: Any, b: Any, *factors: Any, ids: Any, scale: Any) -> tuple[Any, Any]:
        adapters = list(zip(factors[::2], factors[1::2]))
        return form.lora_rows_forward(x, W0, adapters, ids, b, scale=scale)

    @wraps(form.lora_rows_backward)
    def backward(dy: Any, cache: Any, need: Any = None) -> tuple:
        x, W0, b, *of_factors = need if need is not None else [True] * (3 + 2 * len(cache.adapters))
        needs = x, W0, any(of_factors[::2]), any(of_factors[1::2]), b
        dx, dW0, dA, dB, db = form.lora_rows_backward(dy, cache, needs)
        nothing = [None] * len(cache.adapters)
        found = [d for pair in zip(dA or nothing, dB or nothing) for d in pair]
        return dx, dW0, db, *(d if needed else None for d, needed in zip(found, of_factors))

    return forward, backward


def _llama(rng: np.random.Generator) -> list[list[Case]]:
    """Return the pairs of a Llama that no other model uses."""
    n = rng.standard_normal
    tokens = rng.integers(0, 6, (2, 4))
    some = np.where(tokens == tokens[0, 0], -100, tokens)  # some targets are ignored
    cos, sin = ops.rope_angles(5, 6, dtype=np.float64)
    places = np.array([[0, 1, 2, 0], [1, 2, 3, 4]])  # of two texts, the first row has two
    angles = {"cos": cos[places][:, None], "sin": sin[places][:, None]}  # (B, 1, T, d/2)
    return [
        _pair("rope", n((2, 5, 6)), cos=cos, sin=sin),
        _pair("rope", n((2, 3, 4, 6)), label=", positions by row", **angles),
        _pair("swiglu", n((3, 4)), n((3, 4))),
        _pair("gqa", n((2, 2, 3, 4, 3)), n((2, 2, 4, 3)), n((2, 2, 4, 3))),
        _pair("gqa", n((2, 1, 2, 2, 3)), n((2, 1, 5, 3)), n((2, 1, 5, 4)), label=", 2 of 5"),
        _pair("gqa", n((1, 1, 1, 1)), n((1, 1, 1)), n((1, 1, 1)), label=", one of each"),
        _pair("head_loss", n((2, 4, 5)), n((6, 5)), tokens),
        _pair("head_loss", n((2, 4, 5)), n((6, 5)), some, label=", some ignored"),
    ]


def _pair(name: str, *inputs: Any, label: str = "", **kwargs: Any) -> list[Case]:
    """Return the textbook pair and its fast twin, if there is one, with the same inputs."""
    found = []
    for suffix, form in ((label, ops), (f"{label}, fast", fast)):
        if f"{name}_forward" in form.__all__:
            forward, backward = getattr(form, f"{name}_forward"), getattr(form, f"{name}_backward")
            found.append(Case(f"{name}{suffix}", forward, backward, inputs, kwargs))
    return found
