"""Bottleneck adapters: the pair, the three placements, generation with memory, bad options."""

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    account,
    check_gradients,
    check_layer,
    inject,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)
from lora_np.layers import MLP
from lora_np.methods import BottleneckConfig, adapters
from lora_np.methods.bottleneck import bottleneck_backward, bottleneck_forward
from lora_np.methods.contract import NoPeftForm
from lora_np.parameters import Grads
from lora_np.selfcheck import at_random

CONFIG = GPTConfig(vocab_size=13, block_size=12, n_layer=2, n_head=2, d_model=16)
TOKENS = np.arange(12).reshape(2, 6) % 13
PLACEMENTS = ["houlsby", "pfeiffer", "parallel"]
every_placement = pytest.mark.parametrize("placement", PLACEMENTS)


@pytest.fixture
def base(rng):
    model = GPT(CONFIG, rng, np.float64)
    at_random(model, rng, 0.3)
    return model


def moved(base, rng, **options):
    """A model whose bottlenecks are away from their start."""
    adapted = inject(base, BottleneckConfig(r=3, **options), rng)
    for layer in adapters(adapted).values():
        for p in layer.own().values():
            p.value[...] = 0.5 * rng.standard_normal(p.shape)
    return adapted


def arguments(rng, d=5, r=3):
    return [rng.standard_normal(shape) for shape in ((2, 4, d), (r, d), (r,), (d, r), (d,))]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("method", ["central", "complex"])
def test_gradients_agree_at_random_parameters(rng, gelu, method):
    inputs = arguments(rng)
    report = check_gradients(
        bottleneck_forward, bottleneck_backward, inputs, method=method, gelu=gelu, scale=0.7
    )
    assert report.max_error < (1e-7 if method == "central" else 1e-12)


def test_a_derivation_that_forgets_the_scale_of_de_is_caught(rng):
    def wrong(dh, cache, need=None):
        dx, dD, dc, dU, _ = bottleneck_backward(dh, cache, need)
        return dx, dD, dc, dU, dh.reshape(-1, 5).sum(axis=0)

    inputs = arguments(rng)
    assert not check_gradients(bottleneck_forward, wrong, inputs, scale=0.7).ok


def test_the_bottleneck_is_its_definition(rng):
    x, D, c, U, e = arguments(rng)
    expected = 0.7 * (np.maximum(x @ D.T + c, 0.0) @ U.T + e)
    np.testing.assert_allclose(bottleneck_forward(x, D, c, U, e, scale=0.7)[0], expected)


# ----------------------------------------------------------------------------------- placements


def test_the_placement_chooses_the_sublayers(base, rng):
    places = {
        placement: list(adapters(inject(base, BottleneckConfig(placement), rng)))
        for placement in PLACEMENTS
    }
    mlps = ["h.0.mlp", "h.1.mlp"]
    assert places == {
        "houlsby": ["h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp"],
        "pfeiffer": mlps,
        "parallel": mlps,
    }


@pytest.mark.parametrize(
    "targets, blocks, expected",
    [
        (("attn",), None, ["h.0.attn", "h.1.attn"]),
        (("0.attn", "h.1.mlp"), None, ["h.0.attn", "h.1.mlp"]),
        (r"h\.1\..*", None, ["h.1.attn", "h.1.mlp"]),
        (("mlp",), 0, ["h.0.mlp"]),
    ],
)
def test_sublayers_are_named_by_ends_of_paths_or_a_pattern(base, rng, targets, blocks, expected):
    config = BottleneckConfig(target_modules=targets, layers_to_transform=blocks)
    assert list(adapters(inject(base, config, rng))) == expected


@every_placement
def test_a_serial_one_reads_the_sublayers_output_and_a_parallel_one_its_input(rng, placement):
    base, x = MLP(6, 12, rng, dtype=np.float64), rng.standard_normal((4, 6))
    adapted = moved(base, rng, placement=placement, scale=2.0)
    a = base.forward(x)[0]
    D, c, U, e = (p.value for p in (adapted.D, adapted.c, adapted.U, adapted.e))
    z = np.maximum((x if placement == "parallel" else a) @ D.T + c, 0.0)
    np.testing.assert_allclose(adapted.forward(x)[0], a + 2.0 * (z @ U.T + e), atol=1e-12)


@every_placement
def test_the_start_is_exactly_the_base_and_the_last_product_learns(base, rng, placement):
    adapted, grads = inject(base, BottleneckConfig(placement), rng), Grads()
    np.testing.assert_array_equal(adapted.forward(TOKENS)[0], base.forward(TOKENS)[0])
    _, cache = adapted.loss(TOKENS, (TOKENS + 1) % 13)
    adapted.backward(1.0, cache, grads)
    for layer in adapters(adapted).values():
        assert not grads[layer.D].any() and grads[layer.U].any()


@pytest.mark.slow
@every_placement
@pytest.mark.parametrize("path", ["h.0.mlp", "h.0.attn"])
def test_a_sublayer_with_a_bottleneck_keeps_the_contract_of_layers(base, rng, placement, path):
    found = adapters(moved(base, rng, placement=placement))
    if path in found:
        assert len(check_layer(found[path], rng.standard_normal((2, 3, 16)))) == 7
    else:
        assert placement != "houlsby"


@every_placement
def test_generation_with_memory_computes_what_the_whole_text_does(base, rng, placement):
    adapted = moved(base, rng, placement=placement)
    text = rng.integers(0, 13, (2, 9))
    whole, memory = adapted.forward(text)[0], None
    for start, end in ((0, 4), (4, 5), (5, 9)):
        y, memory = adapted.extend(text[:, start:end], memory)
        np.testing.assert_allclose(y, whole[:, start:end], atol=1e-10)
    tokens = adapted.generate(text[0, :3], 6, temperature=0)
    for n in range(3, 9):
        assert tokens[n] == adapted.forward(tokens[None, :n])[0][0, -1].argmax()


def test_the_account_counts_the_bottlenecks_and_their_thin_products(base, rng):
    found = account(inject(base, BottleneckConfig(r=3), rng))
    each, thin = 3 * 16 + 3 + 16 * 3 + 16, 2 * 3 * 16
    assert (found.trainable, found.adapter) == (4 * each, 4 * each)
    assert found.flops.forward == account(base).flops.forward + 4 * 2 * thin
    one = BottleneckConfig("parallel", r=3, target_modules=("0.mlp",))  # nothing below is trained
    one_serial = BottleneckConfig("pfeiffer", r=3, target_modules=("0.mlp",))
    parallel, serial = (account(inject(base, c, rng)).flops.backward for c in (one, one_serial))
    assert parallel == serial


@every_placement
def test_files_have_our_own_form_alone(tmp_path, base, rng, placement):
    adapted = moved(base, rng, placement=placement)
    with pytest.raises(NoPeftForm, match="PEFT does not have the method 'bottleneck'"):
        save_adapter(adapted, tmp_path / "peft", peft_only=True)
    save_adapter(adapted, tmp_path / "ours")
    again = load_adapter(base, tmp_path / "ours")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])


def test_merging_says_what_stands_in_the_way(base, rng):
    adapted = moved(base, rng, nonlinearity="gelu")
    for merging in (lambda: merge(adapted), lambda: unmerge(base, adapted)):
        with pytest.raises(ValueError, match="does not merge: gelu stands between its two prod"):
            merging()


# --------------------------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"placement": "beside"}, "'beside', expected 'houlsby' or 'pfeiffer' or 'parallel'"),
        ({"nonlinearity": "tanh"}, "nonlinearity = 'tanh', expected 'relu' or 'gelu'"),
        ({"r": 0}, "r = 0, expected a whole number from 1 on"),
        ({"scale": 0.0}, r"scale = 0\.0, expected a number above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BottleneckConfig(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 17}, r"r = 17 for h\.0\.attn is above its width 16"),
        (
            {"target_modules": ("atn",)},
            "target module 'atn' matches no layer with o_proj or down_proj: did you mean attn",
        ),
        (
            {"target_modules": ("attn",), "placement": "pfeiffer"},
            "target module 'attn' matches no layer with down_proj: the model has mlp",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(base, rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(base, BottleneckConfig(**options), rng)


def test_of_rank_changes_the_width_alone():
    config = BottleneckConfig("parallel", scale=4.0)
    assert config.of_rank(2) == BottleneckConfig("parallel", r=2, scale=4.0)
