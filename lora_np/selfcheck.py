"""The table of every pair, fast twin, layer and model, each ready for a gradient check.

``lora-np gradcheck`` checks and prints the table; the tests use it too. Every B is random: at
B = 0, where training starts, most wrong gradients look right.
"""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from lora_np import ops
from lora_np.backend import like
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
    Recompute,
    Residual,
    RMSNorm,
    RotaryAttention,
    as_pair,
)
from lora_np.layers.rotary import Angles
from lora_np.methods import (
    IntrinsicConfig,
    LoraConfig,
    LoRALinear,
    PrefixConfig,
    PromptConfig,
    inject,
    make_method,
)
from lora_np.methods.adalora import triplet_backward, triplet_forward
from lora_np.methods.bottleneck import bottleneck_backward, bottleneck_forward
from lora_np.methods.encoder import encoder_backward, encoder_forward
from lora_np.methods.ia3 import gain_backward, gain_forward
from lora_np.methods.subspace import subspace_backward, subspace_forward
from lora_np.methods.vera import vera_backward, vera_forward
from lora_np.methods.virtual import prepend_backward, prepend_forward
from lora_np.models import GPT, GPTConfig, Llama, LlamaConfig
from lora_np.ops import fast
from lora_np.ops.fastfood import Fastfood
from lora_np.parameters import Parameter
from lora_np.tables import text_row

IM2COL: dict[str, Any] = {
    "kernel": (2, 3),
    "stride": (2, 1),
    "padding": (1, 2),
    "dilation": (2, 1),
}


def cases(rng: np.random.Generator) -> list[Case]:
    """Return the whole table: pairs, layers, models.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.selfcheck import cases
    >>> first = cases(np.random.default_rng(0))[0]
    >>> first.name, first.check("complex").ok
    ('linear', True)
    """
    return [
        *_pairs(rng),
        *_methods(rng),
        *_layers(rng),
        *_llama_layers(rng),
        *_patches_and_time(rng),
        *_models(rng),
        *_adapted(rng),
    ]


def _pair(name: str, *inputs: Any, label: str = "", **kwargs: Any) -> list[Case]:
    """Return the textbook pair and its fast twin, if there is one, with the same inputs."""
    found = []
    for suffix, form in ((label, ops), (f"{label}, fast", fast)):
        if f"{name}_forward" in form.__all__:
            forward, backward = getattr(form, f"{name}_forward"), getattr(form, f"{name}_backward")
            found.append(Case(f"{name}{suffix}", forward, backward, inputs, kwargs))
    return found


def _pairs(rng: np.random.Generator) -> list[Case]:
    n = rng.standard_normal
    x, W0, A, B, b = n((2, 3, 5)), n((4, 5)), n((2, 5)), n((4, 2)), n(4)
    mask = (rng.random(x.shape) < 0.7) / 0.7
    tokens = rng.integers(0, 6, (2, 4))
    some = np.where(tokens == tokens[0, 0], -100, tokens)  # some targets are ignored
    table = [
        _pair("linear", x, W0, b),
        _pair("linear", x, W0, label=", no bias"),
        _pair("lora_linear", x, W0, A, B, b, scale=0.7),
        _pair("lora_linear", x, W0, A, B, label=", dropout, no bias", scale=0.7, mask=mask),
        _pair("lora_linear", x[0, :1], W0, A, B, label=", one sample", scale=0.7),
        *(_pair(name, n((3, 4))) for name in ("gelu", "relu", "silu", "softmax")),
        _pair("layernorm", x, n(5), n(5)),
        _pair("rmsnorm", x, n(5)),
        *_llama(rng),
        _rows_pair(rng),
        _pair("embedding", tokens, n((6, 3))),
        _pair("dropout", x, mask=mask),
        _pair("attention", n((2, 2, 4, 3)), n((2, 2, 4, 3)), n((2, 2, 4, 3))),
        _pair("attention", n((2, 2, 3)), n((2, 5, 3)), n((2, 5, 4)), label=", 2 queries, 5 keys"),
        _pair("attention", n((1, 1, 1)), n((1, 1, 1)), n((1, 1, 1)), label=", one of each"),
        _pair("cross_entropy", n((2, 4, 6)), tokens),
        _pair("cross_entropy", n((2, 4, 6)), some, label=", some ignored"),
        _pair("mse", n((3, 4)), n((3, 4))),
        _pair("im2col", n((2, 4, 3, 2)), kernel=(2, 3)),
        _pair("im2col", n((1, 5, 4, 3)), label=", all options", **IM2COL),
        _pair("rnn_cell", n((2, 3)), n((2, 3))),
        _pair("gru_cell", n((2, 9)), n((2, 9)), n((2, 3))),
    ]
    return [case for forms in table for case in forms]


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


def _methods(rng: np.random.Generator) -> list[Case]:
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


def _layers(rng: np.random.Generator) -> list[Case]:
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
        ("Residual", Residual(mlp), x),
        ("Chain", Chain(norm, attention, mlp), x),
        ("Chain, one layer twice", Chain(mlp, Residual(mlp)), x),
    ]
    return [_layer_case(name, layer, inputs, rng) for name, layer, inputs in table]


def _llama_layers(rng: np.random.Generator) -> list[Case]:
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
    return [_layer_case(name, layer, inputs, rng) for name, layer, inputs in table]


def _patches_and_time(rng: np.random.Generator) -> list[Case]:
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
    return [_layer_case(name, layer, inputs, rng) for name, layer, inputs in [*table, *with_lora]]


def _layer_case(name: str, layer: Layer, x: np.ndarray, rng: np.random.Generator) -> Case:
    at_random(layer, rng)
    forward, backward, inputs = as_pair(layer, seed=1)
    return Case(name, forward, backward, inputs(x), {})


def _lora(linear: Linear, r: int, dropout: float, rng: np.random.Generator) -> LoRALinear:
    d_out, d_in = linear.W.shape
    A, B = Parameter(np.zeros((r, d_in))), Parameter(np.zeros((d_out, r)))
    return LoRALinear(linear, A, B, 0.7, dropout)


def at_random(layer: Layer, rng: np.random.Generator, std: float = 1.0) -> None:
    """Redraw every Parameter from N(0, std^2), biases, gains and B included."""
    for p in layer.parameters().values():
        p.value = rng.standard_normal(p.shape) * std


def _adapted(rng: np.random.Generator) -> list[Case]:
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
        _layer_case(name, inject(base, config, rng), inputs, rng)
        for name, base, config, inputs in cases
    ]


def _models(rng: np.random.Generator) -> list[Case]:
    config = GPTConfig(vocab_size=7, block_size=5, n_layer=2, n_head=2, d_model=4, dropout=0.1)
    base = GPT(config, rng, np.float64)
    lora = LoraConfig(r=2, lora_dropout=0.2, target_modules="all-linear")
    table = {"GPT": base}
    for name, method in {
        "LoRA": lora,
        "a prompt": PromptConfig(1),
        "a prefix": PrefixConfig(1),
        "a prefix and its MLP": PrefixConfig(1, prefix_projection=True, encoder_hidden_size=3),
        "a random subspace": IntrinsicConfig(d=20, structured=True),
    }.items():
        table[f"GPT with {name}"] = inject(base, method, rng)
    tokens, targets = rng.integers(0, 7, (2, 3, 4))
    found = [_model_case(name, model, tokens, (targets,), rng) for name, model in table.items()]
    return [*found, *_llamas(tokens, targets, replace(lora, lora_alpha=1), rng)]


def _llamas(
    tokens: np.ndarray, targets: np.ndarray, lora: LoraConfig, rng: np.random.Generator
) -> list[Case]:
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 4, "n_kv_head": 2, "d_model": 4, "d_head": 2}
    tied = LlamaConfig(7, 5, d_hidden=3, **sizes)
    base = Llama(tied, rng, np.float64)
    untied = Llama(replace(tied, tied=False, qkv_bias=True), rng, np.float64)
    adapted, recomputed = inject(base, lora, rng), inject(base, lora, rng)
    recomputed.recompute = True
    whole = (targets,)
    packed = (targets, np.array([[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 1]]))
    table = [
        ("Llama", base, whole),
        ("Llama, untied, biases", untied, whole),
        ("Llama, packed rows", base, packed),
        ("Llama with LoRA", adapted, whole),
        ("Llama with LoRA, recomputed", recomputed, packed),
        ("Llama with a prefix", inject(base, PrefixConfig(1), rng), whole),
    ]
    return [_model_case(name, model, tokens, batch, rng) for name, model, batch in table]


def _model_case(
    name: str,
    model: Layer,
    tokens: np.ndarray,
    batch: tuple[np.ndarray, ...],
    rng: np.random.Generator,
) -> Case:
    """Return the loss of tokens; `batch` holds the targets, and the positions of packed rows."""

    def loss(model: Any, x: np.ndarray) -> tuple[Any, Any]:
        others = [like(part, x) for part in batch]
        return model.loss(x, *others, rng=np.random.default_rng(1))

    at_random(model, rng, 0.5)
    forward, backward, inputs = as_pair(model, loss)
    return Case(name, forward, backward, inputs(tokens), {}, ("directional", "complex"))


def table(rng: np.random.Generator) -> tuple[str, bool]:
    """Check every case; return the printed table and whether all cases passed."""
    lines = [_row("pair or layer", "gradients", "method", "error", "limit")]
    all_ok = True
    for case in cases(rng):
        for method in case.methods:
            report = case.check(method)
            all_ok = all_ok and report.ok
            error, limit = f"{report.max_error:.1e}", f"{report.tolerance:.0e}"
            line = _row(case.name, len(report.rows), method, error, limit)
            lines.append(line if report.ok else f"{line}  WRONG")
    return "\n".join(lines), all_ok


def _row(name: str, gradients: int | str, method: str, error: str, limit: str) -> str:
    return text_row((name, gradients, f"  {method:<12}", error, limit), (36, 10, 14, 9, 9))
