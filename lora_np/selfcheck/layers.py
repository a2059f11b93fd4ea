"""The rows of the table that are layers, plain and adapted."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.gradcheck import Case
from lora_np.layers import (
    GRU,
    MLP,
    RNN,
    CausalSelfAttention,
    Chain,
    Conv1d,
    Conv2d,
    Dropout,
    Embedding,
    GatedMLP,
    Gelu,
    Layer,
    LayerNorm,
    Linear,
    Modulated,
    Recompute,
    Residual,
    RMSNorm,
    RotaryAttention,
    SelfAttention,
    as_pair,
)
from lora_np.layers.rotary import Angles
from lora_np.methods import LoraConfig, LoRALinear, inject, make_method
from lora_np.parameters import Parameter
from lora_np.selfcheck.pairs import IM2COL


def plain(rng: np.random.Generator) -> list[Case]:
    """Return the layers that a GPT uses, and LoRA."""
    d, x = 4, rng.standard_normal((2, 3, 4))
    f64 = np.float64
    lora = _lora(Linear(d, 6, rng, dtype=f64), 2, 0.25, rng)
    norm, mlp = LayerNorm(d, dtype=f64), MLP(d, 8, rng, dtype=f64)
    attention = CausalSelfAttention(d, 2, rng, dtype=f64)
    tokens = rng.integers(0, 5, (2, 3))
    table: list[tuple[str, Layer, np.ndarray]] = [
        ("Linear", Linear(d, 6, rng, dtype=f64), x),
        ("Linear, no bias", Linear(d, 6, rng, bias=False, dtype=f64), x),
        ("LoRALinear", lora, x),
        ("Embedding", Embedding(5, d, rng, dtype=f64), tokens),
        ("LayerNorm", norm, x),
        ("Dropout", Dropout(0.3), x),
        ("Gelu", Gelu(), x),
        ("MLP", mlp, x),
        ("CausalSelfAttention", attention, x),
        ("CausalSelfAttention, T = 1", attention, x[:, :1]),
        ("SelfAttention", SelfAttention(d, 2, rng, dtype=f64), x),
        ("Residual", Residual(mlp), x),
        ("Chain", Chain(norm, attention, mlp), x),
        ("Chain, one layer twice", Chain(mlp, Residual(mlp)), x),
    ]
    return [layer_case(name, layer, inputs, rng) for name, layer, inputs in table]


def of_a_llama(rng: np.random.Generator) -> list[Case]:
    """Return the layers of a Llama that no other model uses, and a layer computed again."""
    d, f64, x = 4, np.float64, rng.standard_normal((2, 3, 4))

    def linear(d_in: int, d_out: int, bias: bool = False) -> Linear:
        return Linear(d_in, d_out, rng, bias=bias, dtype=f64)

    def attention(n_kv_head: int, bias: bool) -> RotaryAttention:
        q, k, v = (linear(d, 2 * n, bias) for n in (4, n_kv_head, n_kv_head))  # heads of width 2
        angles = Angles(2, 10000.0)
        return RotaryAttention(q, k, v, linear(8, d), n_head=4, n_kv_head=n_kv_head, angles=angles)

    mlp = GatedMLP(linear(d, 6), linear(d, 6), linear(6, d))
    table: list[tuple[str, Layer, np.ndarray]] = [
        ("RMSNorm", RMSNorm(d, dtype=f64), x),
        ("GatedMLP", mlp, x),
        ("RotaryAttention", attention(2, bias=False), x),
        ("RotaryAttention, one key", attention(1, bias=True), x),
        ("Recompute", Recompute(Chain(mlp, Dropout(0.3))), x),
    ]
    return [layer_case(name, layer, inputs, rng) for name, layer, inputs in table]


def patches_and_time(rng: np.random.Generator) -> list[Case]:
    """Return convolutions and recurrent layers, each plain and with LoRA on every linear layer."""
    f64, x, image = np.float64, rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 3, 2))
    table: list[tuple[str, Layer, np.ndarray]] = [
        ("Conv2d", Conv2d(2, 3, 2, rng, dtype=f64), image),
        ("Conv2d, all options", Conv2d(2, 4, rng=rng, groups=2, dtype=f64, **IM2COL), image),
        ("Conv1d", Conv1d(3, 4, 3, rng, stride=2, padding=1, dtype=f64), x),
        ("RNN", RNN(3, 4, rng, dtype=f64), x),
        ("GRU", GRU(3, 4, rng, dtype=f64), x),
    ]
    config = LoraConfig(2, lora_alpha=1, lora_dropout=0.2, target_modules="all-linear")
    with_lora = [(f"{name} with LoRA", inject(layer, config, rng), x) for name, layer, x in table]
    return [layer_case(name, layer, inputs, rng) for name, layer, inputs in [*table, *with_lora]]


def conditioned(rng: np.random.Generator) -> list[Case]:
    """Return layers with a condition, over samples with positions and without."""
    f64, x, c = np.float64, rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3))
    mlp = Modulated(MLP(4, 6, rng, dtype=f64), 4, 3, rng, f64)
    attention = Modulated(CausalSelfAttention(4, 2, rng, dtype=f64), 4, 3, rng, f64)
    config = LoraConfig(2, lora_alpha=1, lora_dropout=0.2, target_modules="all-linear")
    return [
        layer_case("Modulated", mlp, x, rng, c),
        layer_case("Modulated, one position", mlp, x[:, 0], rng, c),
        layer_case("Modulated attention", attention, x, rng, c),
        layer_case("Modulated with LoRA", inject(mlp, config, rng), x, rng, c),
    ]


def with_methods(rng: np.random.Generator) -> list[Case]:
    """Return layers that a method has adapted."""
    every: dict[str, Any] = {"target_modules": "all-linear"}
    exact: dict[str, Any] = {**every, "oft_block_size": 2, "use_cayley_neumann": False}
    on_linear = [
        ("DyLoRA", make_method("dylora", r=3, **every)),
        ("W = R G", make_method("wrg", r=3, factor="gaussian", **every)),
        ("LoHa", make_method("loha", r=2, **every)),
        ("LoKr", make_method("lokr", **every)),
        ("LoKr, factors", make_method("lokr", r=1, decompose_both=True, **every)),
        ("OFT", make_method("oft", **exact)),
        ("OFT, series", make_method("oft", oft_block_size=4, **every)),
        ("OFT, one rotation", make_method("oft", block_share=True, **exact)),
        ("HiRA", make_method("hira", r=2, **every)),
        ("MiSS", make_method("miss", r=3, **every)),
        ("MiSS, mini", make_method("miss", r=2, init_weights="mini", mini_r=2, **every)),
        ("SHiRA", make_method("shira", r=1, **every)),
    ]
    on_embedding = [
        ("LoRA, embedding", make_method("lora", r=3, target_modules=[""])),
        ("tokens", make_method("tokens", token_indices=(4, 0), target_modules=[""])),
    ]
    f64, x = np.float64, rng.standard_normal((2, 3, 4))
    linear, table = Linear(4, 6, rng, dtype=f64), Embedding(7, 4, rng, dtype=f64)
    tokens = np.array([[4, 1, 0], [6, 4, 3]])  # two are trained, one of them twice
    cases = [(name, linear, config, x) for name, config in on_linear]
    cases += [(name, table, config, tokens) for name, config in on_embedding]
    return [
        layer_case(name, inject(base, config, rng), inputs, rng)
        for name, base, config, inputs in cases
    ]


def layer_case(
    name: str, layer: Layer, x: np.ndarray, rng: np.random.Generator, *c: np.ndarray
) -> Case:
    """Return the case of a layer at x, or at x and a condition c."""
    at_random(layer, rng)
    forward, backward, inputs = as_pair(layer, seed=1)
    return Case(name, forward, backward, inputs(x, *c), {})


def _lora(linear: Linear, r: int, dropout: float, rng: np.random.Generator) -> LoRALinear:
    d_out, d_in = linear.W.shape
    A, B = Parameter(np.zeros((r, d_in))), Parameter(np.zeros((d_out, r)))
    return LoRALinear(linear, A, B, 0.7, dropout)


def at_random(layer: Layer, rng: np.random.Generator, std: float = 1.0) -> None:
    """Redraw every Parameter from N(0, std^2), biases, gains and B included."""
    for p in layer.parameters().values():
        p.value = rng.standard_normal(p.shape) * std
