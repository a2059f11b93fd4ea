"""LoRA on a model: which modules, the zero start, sharing, merging, and the account."""

import hashlib
import math

import numpy as np
import pytest

from lora_np.costs import account, known_models
from lora_np.layers import MLP, Chain, Linear, Residual, copy_model
from lora_np.methods import LoraConfig, LoRALinear, adapters, inject, merge, target_paths, unmerge
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Grads, Parameter, pack
from lora_np.selfcheck import at_random
from lora_np.train import fit
from tests.counting import Counting, unmerged

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-12}
CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=3, n_head=2, d_model=16)
BLOCK = [f"attn.{p}_proj" for p in "qkvo"] + ["mlp.up_proj", "mlp.down_proj"]


def make_gpt(rng, dtype=np.float64):
    return GPT(CONFIG, rng, dtype)


def bare_linear(d_out, d_in, dtype=np.float32):
    """One linear layer, and no model around it; zeros that are never written cost no memory."""
    linear = Linear(1, 1, np.random.default_rng(0), bias=False)
    linear.W = Parameter(np.zeros((d_out, d_in), dtype))
    return linear


def batch(rng, B=4, T=8):
    tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, B, T))
    return tokens, targets


def randomise_B(adapted, rng, std=0.05):
    for layer in adapters(adapted).values():
        layer.B.value = (rng.standard_normal(layer.B.shape) * std).astype(layer.B.dtype)


def hashes(model):
    return {
        name: hashlib.sha256(p.value.tobytes()).hexdigest()
        for name, p in model.parameters().items()
    }


def train(model, seed, steps=5):
    rng = np.random.default_rng(seed)
    return fit(model, lambda: batch(rng), steps=steps, lr=1e-2)


# ------------------------------------------------------------------------- the configuration


def test_defaults_are_those_of_the_paper_and_of_peft(rng):
    config = LoraConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.0)
    assert list(adapters(inject(make_gpt(rng), config, rng))) == [
        f"h.{i}.attn.{p}_proj" for i in range(3) for p in "qv"
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 0}, "rank r = 0, expected a whole number from 1 to min"),
        ({"r": -2}, "rank r = -2"),
        ({"r": 2.5}, "r = 2.5, expected a whole number"),
        ({"rank_pattern": {"q_proj": 0}}, "rank q_proj = 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout = 1.0, expected 0 <= p < 1"),
        ({"lora_dropout": -0.1}, "lora_dropout = -0.1"),
    ],
)
def test_configuration_refuses_what_means_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)


@pytest.mark.parametrize(
    "options, scale",
    [
        ({"r": 4, "lora_alpha": 16}, 4.0),
        ({"r": 32, "lora_alpha": 16}, 0.5),
        ({"r": 4, "lora_alpha": 16, "use_rslora": True}, 8.0),
        ({"r": 2, "lora_alpha": 3, "use_rslora": True}, 3 / math.sqrt(2)),
    ],
)
def test_scale_is_alpha_over_r_or_over_its_root(rng, options, scale):
    config = LoraConfig(target_modules=["up_proj"], **options)
    layer = inject(MLP(32, 64, rng), config, rng).up_proj
    assert layer.scale == pytest.approx(scale, rel=1e-15)
    at_random(layer, rng)
    np.testing.assert_allclose(layer.delta(), scale * layer.B.value @ layer.A.value, rtol=1e-12)


def test_patterns_change_rank_and_alpha_of_the_modules_they_match(rng):
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules="all-linear",
        rank_pattern={"q_proj": 3, r"h\.1\.attn\..*": 5, r"h\.2\..*up_proj": 7},
        alpha_pattern={"mlp.up_proj": 21},
    )
    found = {
        path: (a.r, a.scale) for path, a in adapters(inject(make_gpt(rng), config, rng)).items()
    }
    assert found["h.0.attn.q_proj"] == (3, 4 / 3)
    assert found["h.1.attn.q_proj"] == (3, 4 / 3)  # the first key that matches counts
    assert found["h.1.attn.k_proj"] == (5, 4 / 5)
    assert found["h.2.attn.k_proj"] == (2, 2.0)
    assert found["h.0.mlp.up_proj"] == (2, 10.5)
    assert found["h.2.mlp.up_proj"] == (7, 3.0)
    assert found["h.2.mlp.down_proj"] == (2, 2.0)


def test_over_ranks_the_rank_alone_differs(rng):
    config = LoraConfig(
        r=2, use_rslora=True, rank_pattern={"q_proj": 3}, alpha_pattern={"k_proj": 5},
        target_modules="all-linear",
    )  # fmt: skip
    for r in (1, 4):
        found = adapters(inject(make_gpt(rng), config.of_rank(r), rng)).values()
        assert {(layer.r, layer.scale) for layer in found} == {(r, 1.0)}


def test_a_scale_of_numpys_keeps_the_models_dtype(rng):
    layer = Linear(3, 2, rng)
    factors = (Parameter(np.ones(shape, np.float32)) for shape in ((1, 3), (2, 1)))
    adapted = LoRALinear(layer, *factors, scale=np.float64(0.5))
    assert adapted.merged().W.dtype == np.float32


def test_block_1_is_not_the_end_of_block_11(rng):
    model = GPT(GPTConfig(5, 4, n_layer=12, n_head=1, d_model=4), rng)
    config = LoraConfig(r=2, target_modules=["q_proj"], rank_pattern={"1.attn.q_proj": 3})
    ranks = {path: layer.r for path, layer in adapters(inject(model, config, rng)).items()}
    assert [path for path, rank in ranks.items() if rank == 3] == ["h.1.attn.q_proj"]
    config = LoraConfig(r=2, target_modules=["1.attn.q_proj"])
    assert target_paths(model, config) == ["h.1.attn.q_proj"]


# ------------------------------------------------------------------------ which modules are meant


@pytest.mark.parametrize(
    "targets, expected",
    [
        (["k_proj"], [f"h.{i}.attn.k_proj" for i in range(3)]),
        (["mlp.up_proj"], [f"h.{i}.mlp.up_proj" for i in range(3)]),
        (["1.attn.q_proj"], ["h.1.attn.q_proj"]),
        (["h.2.mlp.down_proj", "o_proj"], [f"h.{i}.attn.o_proj" for i in range(3)]
         + ["h.2.mlp.down_proj"]),
        (r"h\.[02]\.attn\.(q|v)_proj", [f"h.{i}.attn.{p}_proj" for i in (0, 2) for p in "qv"]),
        (".*up_proj", [f"h.{i}.mlp.up_proj" for i in range(3)]),
        ("all-linear", [f"h.{i}.{name}" for i in range(3) for name in BLOCK]),
    ],
    ids=str,
)  # fmt: skip
def test_targets_are_names_ends_of_paths_or_a_pattern(rng, targets, expected):
    model = make_gpt(rng)
    config = LoraConfig(r=2, target_modules=targets)
    assert target_paths(model, config) == expected
    assert list(adapters(inject(model, config, rng))) == expected


@pytest.mark.parametrize("blocks, expected", [(1, [1]), ([2, 0], [0, 2]), (range(3), [0, 1, 2])])
def test_layers_to_transform_picks_blocks(rng, blocks, expected):
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=blocks)
    assert target_paths(make_gpt(rng), config) == [f"h.{i}.attn.q_proj" for i in expected]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"target_modules": ["q_prj"]},
            "'q_prj' matches no linear layer or embedding: did you mean q_proj",
        ),
        (
            {"target_modules": ["q_proj", "up"]},
            "'up' matches no linear layer or embedding: .*up_proj",
        ),
        (
            {"target_modules": ["zzzz"]},
            "the model has wte, wpe, q_proj, k_proj, v_proj, o_proj, up_proj",
        ),
        ({"target_modules": ["attn"]}, "'attn' matches no linear layer"),
        ({"target_modules": ["ln_f"]}, "'ln_f' matches no linear layer or embedding"),
        (
            {"target_modules": "q_proj"},
            r"is a string, read as a regular .*: to name modules, pass \['q_proj'\]",
        ),
        ({"target_modules": "h.(0"}, r"'h.\(0' cannot be used: missing"),
        ({"target_modules": []}, "target_modules is empty"),
        (
            {"layers_to_transform": 3},
            r"names blocks \[3\], but the targets are in blocks \[0, 1, 2\]",
        ),
        ({"layers_to_transform": [0, -1]}, r"names blocks \[-1\]"),
    ],
    ids=str,
)
def test_targets_that_match_nothing_are_errors_that_help(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(make_gpt(rng), LoraConfig(r=2, **options), rng)


def test_rank_above_the_smaller_side_names_the_limit(rng):
    message = r"rank 17 for h\.0\.mlp\.up_proj is above the limit 16 of its 64 x 16 weight"
    with pytest.raises(ValueError, match=message):
        inject(make_gpt(rng), LoraConfig(r=17, target_modules=["up_proj"]), rng)
    inject(make_gpt(rng), LoraConfig(r=16, target_modules=["up_proj"]), rng)  # the limit is fine


# --------------------------------------------------------------------------------- the start


def test_A_is_kaiming_uniform_and_B_is_zero(rng):
    d_in = 900
    layer = inject(bare_linear(400, d_in), LoraConfig(r=64, target_modules="all-linear"), rng)
    A, bound = layer.A.value, 1 / math.sqrt(d_in)
    assert 0.999 * bound < np.abs(A).max() <= bound * (1 + 1e-6)
    assert float(A.mean()) == pytest.approx(0.0, abs=0.02 * bound)
    assert float(A.var()) == pytest.approx(bound**2 / 3, rel=0.02)
    assert not layer.B.value.any()
    assert (A.shape, layer.B.shape, A.dtype) == ((64, d_in), (400, 64), np.float32)


def test_equal_seeds_give_equal_adapters(rng):
    model = make_gpt(rng)
    one, same, other = (
        inject(model, LoraConfig(), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert hashes(one) == hashes(same) != hashes(other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adapted_model_starts_exactly_at_the_base(rng, dtype):
    model = make_gpt(rng, dtype)
    adapted = inject(model, LoraConfig(r=4, target_modules="all-linear"), rng)
    tokens, _ = batch(rng)
    difference = adapted.forward(tokens)[0] - model.forward(tokens)[0]
    assert np.abs(difference).max() <= TOLERANCE[dtype]
    for layer in adapters(adapted).values():
        assert not layer.delta().any()
        assert layer.delta().dtype == layer.A.dtype == layer.B.dtype == dtype


def test_first_gradient_moves_B_and_not_A(rng):
    model = make_gpt(rng)
    adapted = inject(model, LoraConfig(r=4), rng)
    _, cache = adapted.loss(*batch(rng))
    grads = Grads()
    adapted.backward(1.0, cache, grads)
    for layer in adapters(adapted).values():
        assert not grads[layer.A].any()
        assert np.abs(grads[layer.B]).max() > 1e-6
    assert len(grads) == 2 * len(adapters(adapted)) == 12  # and nothing frozen has a gradient


def test_first_sgd_step_leaves_A_and_moves_B(rng):
    adapted = inject(make_gpt(rng), LoraConfig(r=4), rng)
    before = {path: layer.A.value.copy() for path, layer in adapters(adapted).items()}
    fit(adapted, lambda: batch(rng), steps=1, lr=0.1, optimizer="sgd")
    for path, layer in adapters(adapted).items():
        np.testing.assert_array_equal(layer.A.value, before[path])
        assert layer.B.value.any()


# ---------------------------------------------------------------------------- one frozen base


def test_injection_leaves_the_model_as_it_was(rng):
    model = make_gpt(rng)
    before, types = hashes(model), [type(layer) for layer in model.modules().values()]
    arrays = [p.value for p in model.parameters().values()]
    inject(model, LoraConfig(target_modules="all-linear"), rng)
    assert hashes(model) == before
    assert [type(layer) for layer in model.modules().values()] == types
    assert all(p.trainable and p.value.flags.writeable for p in model.parameters().values())
    assert all(p.value is a for p, a in zip(model.parameters().values(), arrays))


def test_adapted_model_lends_the_bases_memory_read_only(rng):
    model = make_gpt(rng)
    adapted = inject(model, LoraConfig(), rng)
    parameters, frozen = adapted.parameters(), 0
    for name, p in model.parameters().items():
        twin = parameters.get(name) or parameters[name.replace(".W", ".W0")]
        assert np.shares_memory(twin.value, p.value) and not twin.trainable
        with pytest.raises(ValueError, match="read-only"):
            twin.value[...] = 0.0
        frozen += 1
    assert [n for n, p in parameters.items() if p.trainable] == [
        f"{path}.{x}" for path in adapters(adapted) for x in "AB"
    ]
    assert frozen + 2 * len(adapters(adapted)) == len(parameters)


def test_base_is_bit_equal_after_an_adapter_was_trained(rng):
    model = make_gpt(rng, np.float32)
    before = hashes(model)
    adapted = inject(model, LoraConfig(r=4, target_modules="all-linear"), rng)
    history = train(adapted, seed=1)
    assert len(history.loss) == 5
    assert all(layer.A.value.any() and layer.B.value.any() for layer in adapters(adapted).values())
    assert hashes(model) == before


def test_three_adapters_on_one_base_do_not_touch_one_another(rng):
    model = make_gpt(rng, np.float32)
    tokens, _ = batch(rng)
    base = model.forward(tokens)[0]
    trio = [inject(model, LoraConfig(r=r, target_modules="all-linear"), rng) for r in (1, 2, 4)]
    after = []
    for seed, adapted in enumerate(trio):
        train(adapted, seed)
        after.append(adapted.forward(tokens)[0])
    for adapted, logits in zip(trio, after):
        np.testing.assert_array_equal(adapted.forward(tokens)[0], logits)
        assert np.abs(logits - base).max() > 1e-3
    np.testing.assert_array_equal(model.forward(tokens)[0], base)


def test_full_fine_tuning_of_a_base_that_lends_its_arrays_is_refused(rng):
    model = make_gpt(rng)
    adapted = inject(model, LoraConfig(), rng)
    with pytest.raises(ValueError, match=r"another model shares .* copy_model\(base\)"):
        pack(model.parameters())
    adapted.wte.W.trainable = True
    with pytest.raises(ValueError, match=r"another model shares wte\.W"):
        pack(adapted.parameters())  # nor may the borrower train what it borrows
    adapted.wte.W.trainable = False
    before = adapted.forward(batch(np.random.default_rng(1))[0])[0]
    train(copy_model(model), seed=1)
    np.testing.assert_array_equal(adapted.forward(batch(np.random.default_rng(1))[0])[0], before)


def test_injecting_twice_is_an_error(rng):
    adapted = inject(make_gpt(rng), LoraConfig(target_modules=["q_proj"]), rng)
    for targets in ("all-linear", ["up_proj"]):
        with pytest.raises(ValueError, match=r"adapted already: inject into its base, or merge"):
            inject(adapted, LoraConfig(target_modules=targets), rng)


def test_a_pattern_that_matches_no_adapted_module_is_an_error(rng):
    for pattern in ({"rank_pattern": {"up_proj": 4}}, {"alpha_pattern": {"q_prj": 4}}):
        with pytest.raises(ValueError, match=r"pattern '(up_proj|q_prj)' matches no adapted layer"):
            inject(make_gpt(rng), LoraConfig(**pattern), rng)


# ------------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=str)
def test_merged_model_computes_what_the_adapted_one_does(rng, dtype, targets):
    adapted = inject(make_gpt(rng, dtype), LoraConfig(r=4, target_modules=targets), rng)
    randomise_B(adapted, rng)
    before, tokens = hashes(adapted), batch(rng)[0]
    merged = merge(adapted)
    expected = adapted.forward(tokens)[0]
    found = merged.forward(tokens)[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert hashes(adapted) == before
    moved = np.abs(expected - inject(make_gpt(rng, dtype), LoraConfig(), rng).forward(tokens)[0])
    assert moved.max() > 1e-3  # the adapter does something


def test_merged_model_is_plain_trainable_and_owns_its_memory(rng):
    model = make_gpt(rng)
    adapted = inject(model, LoraConfig(), rng)
    randomise_B(adapted, rng)
    merged = merge(adapted)
    assert list(merged.parameters()) == list(model.parameters())
    assert not adapters(merged)
    lent = [p.value for p in (*model.parameters().values(), *adapted.parameters().values())]
    for p in merged.parameters().values():
        assert p.trainable and p.value.flags.writeable and not p.shared
        assert not any(np.shares_memory(p.value, other) for other in lent)
    before = hashes(adapted), hashes(model)
    train(merged, seed=1)
    assert (hashes(adapted), hashes(model)) == before


def test_merged_weight_is_W0_plus_the_scaled_product(rng):
    model = make_gpt(rng)
    adapted = inject(model, LoraConfig(r=2, lora_alpha=6), rng)
    randomise_B(adapted, rng)
    layer = adapted.h[1].attn.v_proj
    W = model.h[1].attn.v_proj.W.value + 3.0 * layer.B.value @ layer.A.value
    np.testing.assert_allclose(merge(adapted).h[1].attn.v_proj.W.value, W, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [1e-3, 0.15, 1.0, 30.0], ids=lambda s: f"change = {s} W0")
def test_unmerge_gives_W0_back_to_one_unit_in_the_last_place(rng, size):
    base = MLP(128, 256, rng)
    W0 = base.up_proj.W.value
    adapted = inject(base, LoraConfig(r=8, target_modules=["up_proj"]), rng)
    randomise_B(adapted, rng)
    layer = adapted.up_proj
    layer.B.value *= size * float(W0.std() / layer.delta().std())
    merged = merge(adapted)
    W, back = merged.up_proj.W.value, unmerge(merged, adapted).up_proj.W.value
    assert back.dtype == np.float32
    larger = np.maximum(np.abs(W0), np.abs(W))
    error = np.abs(back.astype(np.float64) - W0)
    assert (error <= np.spacing(larger)).all()
    assert (error <= 1.2e-7 * larger).all()
    changed = float((back != W0).mean())  # the larger the change, the more entries
    low, high = {1e-3: (0.0005, 0.02), 0.15: (0.1, 0.2), 1.0: (0.3, 0.4), 30.0: (0.8, 1.0)}[size]
    assert low < changed < high


def test_unmerge_leaves_both_models_as_they_were(rng):
    adapted = inject(make_gpt(rng), LoraConfig(), rng)
    randomise_B(adapted, rng)
    merged = merge(adapted)
    before = hashes(merged), hashes(adapted)
    plain = unmerge(merged, adapted)
    assert (hashes(merged), hashes(adapted)) == before
    for mine, other in zip(plain.parameters().values(), merged.parameters().values()):
        assert not np.shares_memory(mine.value, other.value)


def test_merge_and_unmerge_refuse_what_does_not_belong_together(rng):
    model = make_gpt(rng)
    adapted = inject(model, LoraConfig(), rng)
    with pytest.raises(ValueError, match="no adapters"):
        merge(model)
    with pytest.raises(ValueError, match="no adapters"):
        unmerge(model, model)
    with pytest.raises(ValueError, match=r"no layer of shape \(16, 16\) at 'h.0.attn.q_proj'"):
        unmerge(adapted, adapted)
    with pytest.raises(ValueError, match=r"no layer of shape \(16, 16\) at 'h.0.attn.q_proj'"):
        unmerge(GPT(GPTConfig(13, 8, 3, 2, 32), rng), adapted)


def test_a_bare_layer_is_a_model_too(rng):
    adapted = inject(bare_linear(6, 5), LoraConfig(r=2, target_modules="all-linear"), rng)
    assert isinstance(adapted, LoRALinear)
    randomise_B(adapted, rng)
    merged = merge(adapted)
    assert type(merged) is Linear
    np.testing.assert_array_equal(merged.W.value, adapted.delta())
    np.testing.assert_array_equal(unmerge(merged, adapted).W.value, np.zeros((6, 5)))


# --------------------------------------------------------------------------------- the account


def counted_flops(model, tokens, targets):
    """Return the FLOPs a token of the logits, and of the rest of a step.

    The loss of a frozen head forms a part of the gradient in its forward.
    """
    for p in model.parameters().values():
        p.value = p.value.view(Counting)
    Counting.flops = 0
    with unmerged():
        model.forward(tokens)
        forward, Counting.flops = Counting.flops, 0
        _, cache = model.loss(tokens, targets)
        model.backward(1.0, cache, Grads())
    return forward / tokens.size, (Counting.flops - forward) / tokens.size


d, T, V, L, r = 16, 8, 13, 3, 4
FORWARD = L * (24 * d * d + 4 * T * d) + 2 * V * d
BLOCK_DX = 24 * d * d + 8 * T * d  # dx through a whole block, attention included
# the lowest adapted block: q, k, v need no dx, and attention no dk
LOWEST = 24 * d * d - 6 * d * d + 6 * T * d


@pytest.mark.parametrize(
    "config, forward, backward",
    [
        (None, FORWARD, 2 * FORWARD),
        (
            LoraConfig(r=r),
            FORWARD + L * 8 * d * r,
            2 * V * d + (L - 1) * (BLOCK_DX + 16 * d * r) + LOWEST + 12 * d * r,
        ),
        (
            LoraConfig(r=r, layers_to_transform=2),
            FORWARD + 8 * d * r,
            2 * V * d + LOWEST + 12 * d * r,
        ),
        (
            LoraConfig(r=r, target_modules=["down_proj"], layers_to_transform=[1]),
            FORWARD + 10 * d * r,
            2 * V * d + BLOCK_DX + 12 * d * r,  # of down_proj only du, dA and dB
        ),
    ],
    ids=["full", "lora", "lora in the top block", "lora in down_proj of the middle block"],
)
def test_flops_equal_a_count_by_hand_and_the_products_that_are_made(rng, config, forward, backward):
    model = make_gpt(rng) if config is None else inject(make_gpt(rng), config, rng)
    found = account(model)
    assert found.T == T
    assert found.flops.forward == forward
    made = counted_flops(model, *batch(rng, T=T))
    assert (found.flops.forward, found.flops.backward) == made
    assert found.flops.backward == backward


def test_lora_costs_two_thirds_of_full_training_for_a_wide_matrix(rng):
    def ratio(n):
        full = bare_linear(n, n)
        lora = inject(full, LoraConfig(r=8, target_modules="all-linear"), rng)
        return sum(lora.flops(1, True)) / sum(full.flops(1, True))

    for n in (64, 1024, 4096):  # 6 n^2 against 4 n^2 + 12 r n
        assert ratio(n) == pytest.approx(2 / 3 + 2 * 8 / n, rel=1e-12)
    assert ratio(4096) == pytest.approx(0.67, abs=0.005)


def test_rank_8_is_039_percent_of_a_4096_square_matrix(rng):
    lora = inject(bare_linear(4096, 4096), LoraConfig(target_modules="all-linear"), rng)
    found = account(lora)
    assert (found.base, found.adapter, found.trainable) == (4096**2, 65_536, 65_536)
    assert found.total == 4096**2 + 65_536
    assert found.share == 0.00390625
    assert "0.39 %" in str(found)


@pytest.mark.parametrize("dtype, width", [(np.float32, 4), (np.float64, 8)])
@pytest.mark.parametrize("state", [0, 1, 2])
def test_bytes_are_counted_by_dtype_and_optimizer(rng, dtype, width, state):
    model = make_gpt(rng, dtype)
    base = V * d + T * d + L * (12 * d * d + 13 * d) + 2 * d
    adapter = L * 2 * r * 2 * d
    lora = account(inject(model, LoraConfig(r=r), rng), state_per_parameter=state)
    full = account(model, state_per_parameter=state)
    assert (full.base, full.adapter, full.trainable) == (base, 0, base)
    assert (lora.base, lora.adapter, lora.trainable) == (base, adapter, adapter)
    assert (full.weight_bytes, lora.weight_bytes) == (width * base, width * (base + adapter))
    assert (full.gradient_bytes, lora.gradient_bytes) == (width * base, width * adapter)
    assert lora.optimizer_bytes == state * width * adapter


def test_what_an_adapter_adds_is_booked_as_adapter_and_what_is_shared_once():
    class Gained(LoRALinear):
        def __init__(self, linear, A, g, B):
            super().__init__(linear, A, B, 1.0)
            self.g = g

    A, g = Parameter(np.zeros((2, 8))), Parameter(np.zeros(2))  # of both layers
    first, second = bare_linear(8, 8), bare_linear(8, 8)
    pair = Chain(*(Gained(m, A, g, Parameter(np.zeros((8, 2)))) for m in (first, second)))
    plain = Chain(*(LoRALinear(m, A, Parameter(np.zeros((8, 2))), 1.0) for m in (first, second)))
    assert (account(plain).base, account(plain).adapter) == (128, 16 + 2 * 16)
    assert (account(pair).base, account(pair).adapter) == (128, 16 + 2 + 2 * 16)
    assert account(pair).total == sum(p.size for p in pair.parameters().values())


def test_account_prints_as_a_table(rng):
    lines = str(account(inject(make_gpt(rng), LoraConfig(r=r), rng), T=4)).splitlines()
    assert len(lines) == 9 and len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["trainable", "768"]
    assert any("T = 4" in line for line in lines)


def bert(V=30522, T=512, d=768, h=3072):
    block = 4 * (d * d + d) + 2 * d * h + h + d + 4 * d
    return (V + T + 2) * d + 2 * d + 12 * block + d * d + d  # and the pooler


def llama(V=32000, d=4096, h=11008):
    return 2 * V * d + 32 * (4 * d * d + 3 * d * h + 2 * d) + d


def gpt3(V=50257, T=2048, d=12288):
    return (V + T) * d + 96 * (12 * d * d + 13 * d) + 2 * d


@pytest.mark.parametrize(
    "name, base, adapter, percent, megabytes",
    [
        ("one 4096 x 4096", 4096**2, 8 * 2 * 4096, "0.391", "0.1"),
        ("BERT-base", bert(), 12 * 4 * 8 * 2 * 768, "0.539", "1.2"),
        ("LLaMA-7B", llama(), 32 * 4 * 8 * 2 * 4096, "0.124", "16.8"),
        ("GPT-3 175B", gpt3(), 96 * 2 * 4 * 2 * 12288, "0.011", "37.7"),
    ],
)
def test_known_models_have_the_sizes_that_their_shapes_give(
    name, base, adapter, percent, megabytes
):
    (line,) = (line for line in str(known_models()).splitlines() if line.startswith(name))
    assert line.split()[-4:] == [f"{adapter:,}", percent, "%", megabytes]
    assert f"{100 * adapter / base:.3f}" == percent
    assert f"{2 * adapter / 1e6:.1f}" == megabytes


def test_a_layer_that_is_used_twice_gets_one_adapter(rng):
    twice = Linear(4, 4, rng, dtype=np.float64)
    config = LoraConfig(r=2, target_modules="all-linear")
    adapted = inject(Chain(twice, Residual(twice)), config, rng)
    first, second = adapted.layers[0], adapted.layers[1].layer
    assert first is second and isinstance(first, LoRALinear)
    plain = merge(adapted)
    assert plain.layers[0] is plain.layers[1].layer


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lora_alpha": math.nan}, "lora_alpha = nan, expected a finite number"),
        ({"lora_alpha": "16"}, "lora_alpha = '16', expected a finite number"),
        ({"r": True}, "r = True"),
        ({"rank_pattern": {"(": 2}}, "pattern '\\(' cannot be used: missing"),
        ({"target_modules": []}, "target_modules is empty"),
    ],
)
def test_configuration_says_which_value_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)
