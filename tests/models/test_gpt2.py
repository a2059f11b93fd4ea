"""The GPT: gradients, causality, the tied head, the start, and generation with a KV cache."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from lora_np.backend import ShapeError
from lora_np.gradcheck import TOLERANCE, check_gradients
from lora_np.layers import as_pair, copy_model
from lora_np.methods import LoraConfig, inject, target_paths
from lora_np.models import GPT, GPTConfig, sample_token
from lora_np.ops import softmax_forward
from lora_np.parameters import Grads
from lora_np.selfcheck import at_random
from tests.naive import generate_without_cache

TIGHT = 1e-12  # float64: the same number by another order of summation
CONFIG = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, d_model=8)


def make_gpt(rng, std=0.5, **changes):
    """A float64 GPT with all Parameters, biases and gains too, from N(0, std^2)."""
    model = GPT(replace(CONFIG, **changes), rng, np.float64)
    at_random(model, rng, std)
    return model


def batch(rng, B=3, T=5):
    tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, B, T))
    return tokens, targets


def gradients(model, *args, **kwargs):
    loss, cache = model.loss(*args, **kwargs)
    grads = Grads()
    model.backward(1.0, cache, grads)
    return float(loss), {name: grads.get(p) for name, p in model.parameters().items()}


# ------------------------------------------------------------------------------------ gradients


SMALL = {"vocab_size": 5, "n_layer": 1, "d_model": 4}  # the complex step walks every entry


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize(
    "method, sizes",
    [("directional", {}), ("directional", {"n_head": 1, "dropout": 0.2}), ("complex", SMALL)],
)
def test_gradients_of_the_whole_gpt_match_numeric_ones(rng, method, lora, sizes):
    model = make_gpt(rng, **sizes)
    if lora:
        config = LoraConfig(r=2, lora_dropout=0.3, target_modules="all-linear")
        model = inject(model, config, rng)
        at_random(model, rng, 0.5)  # B too: at B = 0 most wrong gradients look right
    tokens, targets = rng.integers(0, model.config.vocab_size, (2, 2, 5))

    def loss(twin, x):
        return twin.loss(x, targets, rng=np.random.default_rng(1))

    forward, backward, inputs = as_pair(model, loss)
    report = check_gradients(forward, backward, inputs(tokens), method=method)
    report.raise_if_wrong()
    assert report.tolerance == TOLERANCE[method] <= 1e-7
    assert [row.name for row in report.rows] == list(model.parameters())


def test_gradient_of_logits_and_of_loss_take_the_same_road(rng):
    model = make_gpt(rng)
    tokens, targets = batch(rng)
    logits, cache = model.forward(tokens)
    p = softmax_forward(logits)[0]
    dlogits = (p - np.eye(CONFIG.vocab_size)[targets]) / targets.size
    grads = Grads()
    model.backward(dlogits, cache, grads)
    _, expected = gradients(model, tokens, targets)
    for name, parameter in model.parameters().items():
        np.testing.assert_allclose(grads[parameter], expected[name], rtol=0, atol=TIGHT)


def test_tied_head_receives_the_sum_of_both_gradients(rng):
    model = make_gpt(rng)
    tokens, targets = batch(rng)
    W = model.wte.W.value
    y, cache = model.body().forward(W[tokens] + model.wpe.W.value[: tokens.shape[1]])
    p = softmax_forward(y @ W.T)[0]
    dlogits = (p - np.eye(CONFIG.vocab_size)[targets]) / targets.size
    of_head = np.einsum("btv,btd->vd", dlogits, y)
    of_embedding = np.zeros_like(W)
    np.add.at(of_embedding, tokens, model.body().backward(dlogits @ W, cache, Grads()))
    _, found = gradients(model, tokens, targets)
    assert min(np.abs(of_head).max(), np.abs(of_embedding).max()) > 1e-3  # both matter
    np.testing.assert_allclose(found["wte.W"], of_head + of_embedding, rtol=0, atol=TIGHT)


def test_frozen_embeddings_receive_no_gradient_and_change_no_other(rng):
    model = make_gpt(rng)
    tokens, targets = batch(rng)
    _, expected = gradients(model, tokens, targets)
    model.wte.W.trainable = model.wpe.W.trainable = False
    _, found = gradients(model, tokens, targets)
    assert found.pop("wte.W") is None and found.pop("wpe.W") is None
    for name, gradient in found.items():  # to rounding: the loss of a frozen head has a twin
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-10, atol=1e-16)


def test_halves_with_the_whole_count_add_up_to_the_batch(rng):
    model = make_gpt(rng)
    tokens, targets = batch(rng, B=4)
    targets[0, 1:] = -100  # the halves keep different numbers of targets
    kept = int((targets != -100).sum())
    loss, whole = gradients(model, tokens, targets)
    a_loss, a = gradients(model, tokens[:2], targets[:2], count=kept)
    b_loss, b = gradients(model, tokens[2:], targets[2:], count=kept)
    assert a_loss + b_loss == pytest.approx(loss, abs=TIGHT)
    for name in whole:
        np.testing.assert_allclose(a[name] + b[name], whole[name], rtol=0, atol=TIGHT)


# ----------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("changed", range(1, 6))
def test_a_later_token_leaves_earlier_logits_as_they_were(rng, changed):
    model = make_gpt(rng)
    tokens, _ = batch(rng, T=6)
    before = model.forward(tokens)[0]
    tokens[:, changed] = (tokens[:, changed] + 1) % CONFIG.vocab_size
    after = model.forward(tokens)[0]
    np.testing.assert_allclose(after[:, :changed], before[:, :changed], rtol=0, atol=TIGHT)
    assert np.abs(after[:, changed] - before[:, changed]).max() > 1e-3


def test_every_position_of_the_past_matters(rng):
    model = make_gpt(rng)
    tokens, _ = batch(rng, T=6)
    last = model.forward(tokens)[0][:, -1]
    for t in range(6):
        other = tokens.copy()
        other[:, t] = (other[:, t] + 1) % CONFIG.vocab_size
        assert np.abs(model.forward(other)[0][:, -1] - last).max() > 1e-6, t


def test_leading_axes_are_batch(rng):
    model = make_gpt(rng)
    tokens = rng.integers(0, CONFIG.vocab_size, (2, 3, 5))
    logits = model.forward(tokens)[0]
    assert logits.shape == (2, 3, 5, CONFIG.vocab_size)
    np.testing.assert_allclose(logits[1, 2], model.forward(tokens[1, 2])[0], rtol=0, atol=TIGHT)


def test_dropout_needs_a_generator_and_changes_the_logits(rng):
    model = make_gpt(rng, dropout=0.5)
    tokens, _ = batch(rng)
    plain = model.forward(tokens)[0]
    np.testing.assert_array_equal(model.forward(tokens)[0], plain)
    one, same, other = (model.forward(tokens, np.random.default_rng(s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - plain).max() > 0.1 and np.abs(one - other).max() > 0.1


def test_float32_stays_float32(rng):
    model = GPT(CONFIG, rng)
    tokens, targets = batch(rng)
    loss, found = model.loss(tokens, targets)[0], gradients(model, tokens, targets)[1]
    assert model.forward(tokens)[0].dtype == loss.dtype == np.float32
    assert {g.dtype for g in found.values()} == {np.dtype(np.float32)}


# ------------------------------------------------------------------------------------- the start


def test_loss_of_a_fresh_model_is_that_of_guessing(rng):
    config = GPTConfig(vocab_size=256, block_size=16, n_layer=2, n_head=4, d_model=64)
    tokens, targets = rng.integers(0, 256, (2, 16, 16))
    loss, _ = GPT(config, rng).loss(tokens, targets)
    assert float(loss) == pytest.approx(math.log(256), abs=0.05)


def test_fresh_weights_have_gpt2s_spread(rng):
    n_layer = 8
    model = GPT(GPTConfig(256, 32, n_layer, 4, 64), rng)
    for name, p in model.parameters().items():
        to_residual = name.endswith(("o_proj.W", "down_proj.W"))
        std = 0.02 / math.sqrt(2 * n_layer) if to_residual else 0.02
        if name.endswith(".W"):
            assert float(p.value.std()) == pytest.approx(std, rel=0.06), name
        else:
            assert (p.value == (1.0 if name.endswith("gamma") else 0.0)).all(), name


def test_parameters_come_named_and_in_order(rng):
    block = ["ln_1.gamma", "ln_1.beta"]
    block += [f"attn.{p}_proj.{x}" for p in "qkvo" for x in "Wb"]
    block += ["ln_2.gamma", "ln_2.beta"]
    block += [f"mlp.{p}_proj.{x}" for p in ("up", "down") for x in "Wb"]
    expected = ["wte.W", "wpe.W"]
    expected += [f"h.{i}.{name}" for i in range(2) for name in block]
    expected += ["ln_f.gamma", "ln_f.beta"]
    model = GPT(CONFIG, rng)
    assert list(model.parameters()) == expected
    d, V = CONFIG.d_model, CONFIG.vocab_size
    count = V * d + CONFIG.block_size * d + 2 * (12 * d * d + 13 * d) + 2 * d  # the head is tied
    assert sum(p.size for p in model.parameters().values()) == count


def test_all_linear_never_means_the_tied_head(rng):
    paths = target_paths(GPT(CONFIG, rng), LoraConfig(target_modules="all-linear"))
    names = ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"]
    names += ["mlp.up_proj", "mlp.down_proj"]
    assert paths == [f"h.{i}.{name}" for i in range(2) for name in names]


# ------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("T", [1, 3, 6, 9], ids=lambda T: f"prompt of {T}")
@pytest.mark.parametrize("sampling", [(0, None), (0.7, None), (1.5, 3), (1.0, 1)], ids=str)
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_generation_with_the_kv_cache_gives_the_same_tokens(rng, T, sampling, lora):
    temperature, top_k = sampling
    model = make_gpt(rng)
    if lora:
        model = inject(model, LoraConfig(r=2), rng)
        at_random(model, rng, 0.5)
    prompt = rng.integers(0, CONFIG.vocab_size, (4, T))
    n = 2 * CONFIG.block_size + 1  # far enough for the window to slide
    expected = generate_without_cache(
        model, prompt, n, temperature, top_k, np.random.default_rng(5)
    )
    found = model.generate(
        prompt, n, temperature=temperature, top_k=top_k, rng=np.random.default_rng(5)
    )
    assert found.shape == (4, T + n)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[:, :T], prompt)


def test_kv_cache_gives_the_logits_of_the_whole_sequence(rng):
    model = make_gpt(rng)
    tokens = rng.integers(0, CONFIG.vocab_size, (2, 6))
    expected = model.forward(tokens)[0]
    memory = None
    for start, end in ((0, 2), (2, 3), (3, 6)):  # two at once, one, three at once
        logits, memory = model.extend(tokens[:, start:end], memory)
        np.testing.assert_allclose(logits, expected[:, start:end], rtol=0, atol=TIGHT)


@pytest.mark.parametrize("sampling", [(0, None), (0.9, 4)], ids=str)
def test_prompts_of_different_lengths_go_on_as_each_alone(rng, sampling):
    temperature, top_k = sampling
    model = make_gpt(rng)
    prompts = [rng.integers(0, CONFIG.vocab_size, T) for T in (3, 1, 6, 1, 2, 8)]
    n = 2 * CONFIG.block_size  # far enough for the window of each to slide
    options = {"temperature": temperature, "top_k": top_k}
    found = model.generate(prompts, n, rng=np.random.default_rng(5), **options)
    for row, (prompt, text) in enumerate(zip(prompts, found)):
        draws = RowOf(np.random.default_rng(5), row, len(prompts))
        alone = generate_without_cache(model, prompt[None], n, temperature, top_k, draws)
        np.testing.assert_array_equal(text, alone[0])


class RowOf:
    """Draws what a row of the batch draws."""

    def __init__(self, rng, row, rows):
        self.rng, self.row, self.rows = rng, row, rows

    def random(self, shape):
        return self.rng.random((self.rows, *shape[1:]))[self.row : self.row + 1]


def test_a_row_ends_with_its_first_stop_token(rng):
    model = make_gpt(rng)
    prompts = rng.integers(0, CONFIG.vocab_size, (5, 2))
    whole = model.generate(prompts, 9, rng=np.random.default_rng(3))
    stop = int(whole[0, 4])
    found = model.generate(prompts, 9, stop=stop, rng=np.random.default_rng(3))
    for text, uncut in zip(found, whole):
        ends = np.flatnonzero(uncut[2:] == stop)  # a stop token in the prompt is none
        np.testing.assert_array_equal(text, uncut[: 3 + ends[0]] if len(ends) else uncut)
    assert found[0][-1] == stop and len({len(text) for text in found}) > 1
    one = model.generate(prompts[0], 9, stop=[stop, 0], rng=np.random.default_rng(3))
    assert one.ndim == 1


def test_one_prompt_comes_back_as_one_sequence(rng):
    model = make_gpt(rng)
    prompt = np.array([1, 2, 3])
    found = model.generate(prompt, 4, temperature=0)
    assert found.shape == (7,)
    np.testing.assert_array_equal(found, model.generate(prompt[None], 4, temperature=0)[0])
    np.testing.assert_array_equal(model.generate(prompt, 0, temperature=0), prompt)


def test_sampled_tokens_follow_the_softmax_at_the_temperature(rng):
    z, draws = np.array([1.0, 0.0, -1.0, 2.0]), 40_000
    found = sample_token(np.tile(z, (draws, 1)), 0.5, None, rng)
    p = np.exp(z / 0.5) / np.exp(z / 0.5).sum()
    np.testing.assert_allclose(np.bincount(found, minlength=4) / draws, p, rtol=0, atol=0.01)


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"top_p": 1e-300}])
def test_a_temperature_near_zero_draws_the_likeliest(rng, temperature, how):
    z = np.array([[1.0, -3e38, 2.0, 1.5]], np.float32)
    assert sample_token(z, temperature, how.get("top_k"), rng, how.get("top_p")).tolist() == [2]


def test_top_k_draws_from_the_k_likeliest_in_their_proportion(rng):
    z, draws = np.array([1.0, 0.0, -1.0, 2.0]), 40_000
    share = np.bincount(sample_token(np.tile(z, (draws, 1)), 1.0, 2, rng), minlength=4) / draws
    assert share[1] == share[2] == 0.0
    assert share[3] / share[0] == pytest.approx(math.e, rel=0.05)


@pytest.mark.parametrize(
    "top_p, drawn",
    [(0.01, [3]), (0.6, [3]), (0.7, [0, 3]), (0.9, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_draws_from_the_likeliest_that_reach_p_in_their_proportion(rng, top_p, drawn):
    z, draws = np.array([1.0, 0.0, -1.0, 2.0]), 20_000  # probabilities 0.24, 0.09, 0.03, 0.64
    found = sample_token(np.tile(z, (draws, 1)), 1.0, None, rng, top_p)
    p = np.where(np.isin(np.arange(4), drawn), np.exp(z), 0.0)
    np.testing.assert_allclose(
        np.bincount(found, minlength=4) / draws, p / p.sum(), rtol=0, atol=0.015
    )
    assert np.unique(found).tolist() == drawn


def test_top_p_counts_what_top_k_leaves(rng):
    z = np.tile(np.log([0.4, 0.3, 0.2, 0.1]), (20_000, 1))
    assert set(sample_token(z, 1.0, 2, rng, 0.5)) == {0}  # 0.4 of the 0.7 that are left
    assert set(sample_token(z, 1.0, None, rng, 0.5)) == {0, 1}


def test_generate_draws_from_the_likeliest_share(rng):
    model, prompt = make_gpt(rng), np.array([1, 2])
    options = {"temperature": 2.0, "rng": np.random.default_rng(0)}
    greedy = model.generate(prompt, 12, temperature=0)
    np.testing.assert_array_equal(model.generate(prompt, 12, top_p=1e-9, **options), greedy)
    assert (model.generate(prompt, 12, top_p=1.0, **options) != greedy).any()


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "prompt, options, error, message",
    [
        ([1, 2], {}, ValueError, "pass rng, or temperature=0"),
        ([], {"temperature": 0}, ShapeError, r"shape \(0,\), expected \(T,\) or \(B, T\)"),
        ([[[1]]], {"temperature": 0}, ShapeError, r"shape \(1, 1, 1\)"),
        ([1], {"temperature": -1.0}, ValueError, "temperature = -1.0"),
        ([1], {"temperature": 0, "top_k": 0}, ValueError, "top_k = 0"),
        ([1], {"temperature": 0, "top_p": 0}, ValueError, "top_p = 0"),
        ([1], {"temperature": 0, "top_p": 1.1}, ValueError, "top_p = 1.1"),
        ([1], {"temperature": 0, "top_p": math.nan}, ValueError, "top_p = nan"),
        ([11], {"temperature": 0}, IndexError, r"expected 0 \.\. 10"),
    ],
)
def test_generate_refuses_what_it_cannot_do(rng, prompt, options, error, message):
    with pytest.raises(error, match=message):
        make_gpt(rng).generate(np.array(prompt, dtype=int), 3, **options)


@pytest.mark.parametrize("shape", [(2, 7), (2, 0), ()])
def test_sequences_that_do_not_fit_the_block_name_both_numbers(rng, shape):
    message = re.escape(f"tokens has shape {shape}") + ".*1 to block_size = 6"
    with pytest.raises(ShapeError, match=message):
        make_gpt(rng).forward(np.zeros(shape, int))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_layer": 0}, "n_layer is 0, expected at least 1"),
        ({"vocab_size": -3}, "vocab_size is -3, expected at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0, expected 0 <= dropout < 1"),
        ({"d_model": 9}, "d_model = 9 does not divide into n_head = 2"),
    ],
)
def test_bad_sizes_are_named(rng, changes, message):
    with pytest.raises(ValueError, match=message):
        GPT(replace(CONFIG, **changes), rng)


def test_a_copy_gives_the_same_logits_from_memory_of_its_own(rng):
    model = make_gpt(rng)
    twin = copy_model(model)
    tokens, _ = batch(rng)
    np.testing.assert_array_equal(twin.forward(tokens)[0], model.forward(tokens)[0])
    pairs = zip(twin.parameters().values(), model.parameters().values())
    assert not any(np.shares_memory(a.value, b.value) for a, b in pairs)


@pytest.mark.parametrize(
    "tokens, stop, message",
    [
        (np.array([1.5]), (), "tokens are float64, expected integers"),
        ([np.array([1]), np.array([True])], (), "tokens are bool, expected integers"),
        (np.array([1]), 2.5, "stop = 2.5, expected tokens"),
        (np.array([1]), None, "stop = None, expected tokens"),
        (np.array([1]), "ab", "stop = 'ab', expected tokens"),
    ],
)
def test_what_is_no_token_is_refused_and_not_rounded(rng, tokens, stop, message):
    with pytest.raises(TypeError, match=message):
        make_gpt(rng).generate(tokens, 2, temperature=0, stop=stop)
