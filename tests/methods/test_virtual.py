"""Prompt and prefix tuning: what stands before a text, against the base's own tokens there."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    PrefixConfig,
    PromptConfig,
    account,
    check_gradients,
    check_method,
    copy_model,
    evaluate,
    fit,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lora_np.backend import ShapeError
from lora_np.checks import ContractError
from lora_np.files import CheckpointError
from lora_np.files.tensors import TensorFile
from lora_np.layers import MLP, Embedding, as_pair
from lora_np.methods import adapters, prefix, virtual
from lora_np.methods.encoder import encoder_backward, encoder_forward
from lora_np.methods.virtual import prepend_backward, prepend_forward
from lora_np.models import LanguageModel
from lora_np.selfcheck import at_random

V, T, N, D, LAYERS = 7, 5, 3, 4, 2
CONFIG = GPTConfig(vocab_size=V, block_size=N + T, n_layer=LAYERS, n_head=2, d_model=D)
METHODS = [
    PromptConfig(N),
    PrefixConfig(N),
    PrefixConfig(N, prefix_projection=True, encoder_hidden_size=6),
]
NAMES = ["prompt", "prefix", "prefix with the MLP"]
every_method = pytest.mark.parametrize("config", METHODS, ids=NAMES)
BEFORE, TEXT = np.array([5, 0, 2]), np.array([[1, 6, 3, 3, 0], [2, 2, 4, 1, 5]])
ROUNDING = 1e-13


def make_gpt(dtype=np.float64, dropout=0.0):
    model = GPT(dataclasses.replace(CONFIG, dropout=dropout), np.random.default_rng(0), np.float64)
    at_random(model, np.random.default_rng(1), 0.5)
    return copy_model(model, dtype=dtype)


def make_talkative(dtype=np.float64):
    """A model whose greedy texts do not stick to one token, and depend on what stands before."""
    sizes = dataclasses.replace(CONFIG, vocab_size=31, d_model=16)
    model = GPT(sizes, np.random.default_rng(0), np.float64)
    at_random(model, np.random.default_rng(1), 0.3)
    return copy_model(model, dtype=dtype)


def adapted_at_random(config, rng, **options):
    adapted = inject(make_gpt(**options), config, rng)
    at_random(adapted, rng, 0.5)
    return adapted


# --------------------------------------------------------- as if tokens stood before the text


def test_a_prompt_of_tokens_rows_is_these_tokens_before_the_text(rng):
    base = make_gpt()
    adapted = inject(base, PromptConfig(N, init_tokens=BEFORE), rng)
    whole = np.concatenate((np.tile(BEFORE, (2, 1)), TEXT), axis=1)
    expected = base.forward(whole)[0][:, N:]
    np.testing.assert_allclose(adapted.forward(TEXT)[0], expected, rtol=0, atol=ROUNDING)
    assert np.abs(base.forward(TEXT)[0] - expected).max() > 0.1


def test_a_prefix_of_the_bases_own_keys_is_these_tokens_before_the_text(rng):
    base = make_gpt()
    adapted = inject(base, PrefixConfig(N), rng)
    _, memory = base.extend(BEFORE[None])  # with the keys and values of the N tokens
    for (path, layer), block in zip(adapters(adapted).items(), memory.body):
        keys = block[0][1]  # of the residual branch's norm, attention and dropout
        k, v = (x[0, :, :N].swapaxes(0, 1).reshape(N, D) for x in (keys._room.k, keys._room.v))
        layer.P.value = np.concatenate((k, v), axis=1)
        assert path.endswith("attn")
    whole = np.concatenate((np.tile(BEFORE, (2, 1)), TEXT), axis=1)
    expected = base.forward(whole)[0][:, N:]
    np.testing.assert_allclose(adapted.forward(TEXT)[0], expected, rtol=0, atol=ROUNDING)


def test_tokens_to_start_at_are_repeated_or_cut(rng):
    base = make_gpt()
    for given, used in ((BEFORE, BEFORE), ([4], [4, 4, 4]), (range(6), [0, 1, 2])):
        adapted = inject(base, PromptConfig(N, init_tokens=given), rng)
        assert adapted.method == PromptConfig(N, init_tokens=tuple(given))
        P = adapted.start.P
        np.testing.assert_array_equal(P.value, base.wte.W.value[list(used)])
    before = base.wte.W.value.copy()
    P.value[...] = 9.0
    np.testing.assert_array_equal(base.wte.W.value, before)
    with pytest.raises(ValueError, match=r"init_tokens 0 \.\. 7, expected 0 \.\. 6"):
        inject(base, PromptConfig(N, init_tokens=[0, V]), rng)


def test_random_starts_have_the_spread_of_pefts(rng):
    wide = GPT(dataclasses.replace(CONFIG, d_model=64, block_size=600), rng)
    P = inject(wide, PromptConfig(500), rng).start.P
    assert P.value.std() == pytest.approx(1.0, abs=0.02) and P.dtype == np.float32
    layers = adapters(inject(wide, PrefixConfig(500), rng)).values()
    assert [layer.P.shape for layer in layers] == [(500, 128)] * LAYERS
    assert all(layer.P.value.std() == pytest.approx(1.0, abs=0.02) for layer in layers)
    mlp = PrefixConfig(500, prefix_projection=True, encoder_hidden_size=100)
    first = next(iter(adapters(inject(wide, mlp, rng)).values()))
    assert first.E.value.std() == pytest.approx(1.0, abs=0.02)
    for name, width in (("W1", 64), ("b1", 64), ("W2", 100), ("b2", 100)):
        largest = np.abs(getattr(first, name).value).max()
        assert 0.9 < largest * np.sqrt(width) <= 1.0


def test_the_lower_half_of_the_mlp_is_the_same_in_all_layers(rng):
    layers = list(adapters(inject(make_gpt(), METHODS[2], rng)).values())
    for name in ("E", "W1", "b1"):
        assert len({getattr(layer, name) for layer in layers}) == 1
    assert len({layer.W2 for layer in layers}) == LAYERS
    twins = list(adapters(copy_model(inject(make_gpt(), METHODS[2], rng))).values())
    assert len({layer.E for layer in twins}) == 1


# ----------------------------------------------------------------------------------- gradients


def loss_of(model, tokens):
    return model.loss(tokens, (tokens + 1) % V, rng=np.random.default_rng(4))


@every_method
@pytest.mark.parametrize("method", ["complex", pytest.param("central", marks=pytest.mark.slow)])
def test_gradients_are_right_at_random_parameters_with_dropout(config, method, rng):
    adapted = adapted_at_random(config, rng, dropout=0.2)
    forward, backward, inputs = as_pair(adapted, loss_of)
    report = check_gradients(forward, backward, inputs(TEXT), method=method)
    assert report.max_error < (1e-7 if method == "central" else 1e-12)
    assert len(report.rows) == len(adapted.parameters())


def mean_instead_of_sum(dy, cache, need=None):
    dx, dP = prepend_backward(dy, cache, need)
    return dx, None if dP is None else dP / 2


def rows_of_the_end(dy, cache, need=None):
    dx, _ = prepend_backward(dy, cache, need)
    return dx, dy[..., -cache.n :, :].reshape(-1, cache.n, dy.shape[-1]).sum(axis=0)


def without_the_square(dP, cache, need=None):
    return encoder_backward(dP, cache._replace(H=np.sqrt(np.abs(cache.H))), need)


@pytest.mark.parametrize("wrong", [mean_instead_of_sum, rows_of_the_end])
def test_a_wrong_derivation_of_the_rows_is_caught(wrong, rng):
    x, P = rng.standard_normal((2, T, D)), rng.standard_normal((N, D))
    assert check_gradients(prepend_forward, prepend_backward, (x, P), method="complex").ok
    assert not check_gradients(prepend_forward, wrong, (x, P)).ok


def test_a_wrong_derivation_of_the_mlp_is_caught(rng):
    shapes = (N, D), (6, D), (6,), (2 * D, 6), (2 * D,)
    inputs = tuple(rng.standard_normal(shape) for shape in shapes)
    assert check_gradients(encoder_forward, encoder_backward, inputs, method="complex").ok
    assert not check_gradients(encoder_forward, without_the_square, inputs).ok


@pytest.mark.parametrize(
    "config, module, wrong",
    [
        (METHODS[0], "prompt", mean_instead_of_sum),
        (METHODS[1], "prefix", rows_of_the_end),
        (METHODS[2], "prefix", mean_instead_of_sum),
    ],
)
def test_a_wrong_derivation_in_a_model_is_caught(config, module, wrong, rng, monkeypatch):
    monkeypatch.setattr(f"lora_np.methods.{module}.prepend_backward", wrong)
    forward, backward, inputs = as_pair(adapted_at_random(config, rng), loss_of)
    assert not check_gradients(forward, backward, inputs(TEXT), method="directional").ok


def test_keys_that_are_swapped_with_values_are_caught(rng, monkeypatch):
    right = prefix.PrefixAttention.keys_before_backward

    def swapped(self, dk, dv, cache, grads):
        return right(self, dv, dk, cache, grads)[::-1]

    monkeypatch.setattr(prefix.PrefixAttention, "keys_before_backward", swapped)
    forward, backward, inputs = as_pair(adapted_at_random(METHODS[1], rng), loss_of)
    assert not check_gradients(forward, backward, inputs(TEXT), method="directional").ok


@every_method
def test_only_what_the_method_adds_gets_a_gradient_and_the_loss_falls(config, rng):
    base = make_talkative(np.float32)
    adapted = inject(base, config, rng)
    before = {name: p.value.copy() for name, p in base.parameters().items()}
    start = evaluate(adapted, TEXT, 30 - TEXT)
    fit(adapted, lambda: (TEXT, 30 - TEXT), steps=40, lr=0.3)
    assert evaluate(adapted, TEXT, 30 - TEXT) < start - 0.1
    for name, p in base.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])


# ---------------------------------------------------------------------------------- generation


@every_method
@pytest.mark.parametrize("n", [2, 9])  # within the context, and beyond it, where the window slides
def test_generation_with_memory_is_a_run_without_it(config, n, rng):
    adapted = inject(make_talkative(), config, rng)
    prompts = [np.array([1, 2, 3]), np.array([4]), np.array([2, 2, 0, 1, 6])]
    found = adapted.generate(prompts, n, temperature=0)
    for prompt, text in zip(prompts, found):
        slow = list(prompt)
        for _ in range(n):
            slow.append(int(adapted.forward(np.array(slow[-T:]))[0][-1].argmax()))
        np.testing.assert_array_equal(text, slow)
    assert not np.array_equal(found[0], make_talkative().generate(prompts[0], n, temperature=0))


@every_method
def test_logits_of_the_newest_tokens_are_those_of_the_whole_text(config, rng):
    adapted = inject(make_gpt(), config, rng)
    whole, _ = adapted.forward(TEXT)
    first, memory = adapted.extend(TEXT[:, :2])
    rest, memory = adapted.extend(TEXT[:, 2:], memory)
    found = np.concatenate((first, rest), axis=1)
    np.testing.assert_allclose(found, whole, rtol=0, atol=ROUNDING)
    assert memory.lengths == (N + T, N + T)


# -------------------------------------------------------------------------- cost, errors, merge


def test_the_account_counts_what_is_added_and_what_it_costs(rng):
    base = make_gpt()
    whole = account(base, T)
    counts = [N * D, LAYERS * N * 2 * D, N * D + 6 * (D + 1) + LAYERS * 2 * D * (6 + 1)]
    for config, count in zip(METHODS, counts):
        found = account(inject(base, config, rng), T)
        assert (found.base, found.adapter, found.trainable) == (whole.base, count, count)
    head = 2 * V * D
    prompt, keys = (account(inject(base, config, rng), T).flops for config in METHODS[:2])
    body = base.body().flops(N + T, True).forward
    assert prompt.forward == round(Fraction(body * (N + T), T)) + head  # rows cost the body too
    assert keys.forward == whole.flops.forward + LAYERS * 4 * N * D  # two products with N keys


@pytest.mark.parametrize("number", [1, 2])
def test_the_cost_of_rows_before_the_text_is_shared_to_the_nearest_operation(number, rng):
    adapted = inject(make_gpt(), PromptConfig(number), rng)
    shares = []
    for length in range(1, T + 1):
        whole = adapted.body().flops(number + length, True).forward
        shares.append(Fraction(whole * (number + length), length))
        assert abs(adapted.flops(length).forward - 2 * V * D - shares[-1]) <= Fraction(1, 2)
    assert any(share % 1 > Fraction(1, 2) for share in shares)  # which would be rounded down


@every_method
def test_a_text_that_does_not_fit_behind_the_rows_is_one_clear_error(config, rng):
    adapted = inject(make_gpt(), config, rng)
    long = np.zeros((1, T + 1), int)
    message = (
        rf"shape \(1, {T + 1}\), expected .* T from 1 to block_size = 8 less 3 before the text"
    )
    with pytest.raises(ShapeError, match=message):
        adapted.forward(long)
    with pytest.raises(ShapeError, match="less 3 before the text"):
        fit(adapted, lambda: (long, long), steps=1, lr=0.1)
    full = dataclasses.replace(config, num_virtual_tokens=N + T)
    with pytest.raises(ValueError, match=r"num_virtual_tokens = 8 leaves no room .* at most 7"):
        inject(make_gpt(), full, rng)
    assert inject(make_gpt(), dataclasses.replace(full, num_virtual_tokens=7), rng) is not None


@every_method
def test_a_base_without_a_text_is_one_clear_error(config, rng):
    with pytest.raises(ValueError, match=rf"MLP has no place before a text: {config.name} tuning"):
        inject(MLP(4, 8, rng), config, rng)


def test_a_prefix_needs_attention(rng):
    class Words(LanguageModel):
        block_size = 9

        def __init__(self):
            super().__init__()
            self.wte = Embedding(V, D, rng)

        def table(self):
            return self.wte

    with pytest.raises(ValueError, match="Words has no attention layer to give a prefix to"):
        inject(Words(), PrefixConfig(N), rng)
    assert inject(Words(), PromptConfig(N), rng).start.P.shape == (N, D)


@every_method
def test_merging_says_why_it_is_refused(config, rng):
    with pytest.raises(ValueError, match="do not merge: no weight of the base adds rows"):
        merge(inject(make_gpt(), config, rng))


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (PromptConfig, {"num_virtual_tokens": 0}, "num_virtual_tokens = 0, expected a whole"),
        (PrefixConfig, {"num_virtual_tokens": -1}, "num_virtual_tokens = -1, expected a whole"),
        (PrefixConfig, {"encoder_hidden_size": 0}, "encoder_hidden_size = 0, expected a whole"),
        (PromptConfig, {"init_tokens": []}, "init_tokens is empty: name at least one token"),
    ],
)
def test_options_that_mean_nothing_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


# --------------------------------------------------------------------------------------- files


@every_method
def test_a_file_is_pefts_and_gives_the_outputs_back(config, rng, tmp_path):
    base = make_gpt()
    adapted = inject(base, config, rng)
    save_adapter(adapted, tmp_path, peft_only=True)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == config.peft_type and saved["num_virtual_tokens"] == N
    columns = D if config.name == "prompt" else LAYERS * 2 * D
    with TensorFile(tmp_path / "adapter_model.safetensors") as file:
        assert {name: file.shape(name) for name in file.names} == {
            "prompt_embeddings": (N, columns)
        }
    again = load_adapter(base, tmp_path)
    np.testing.assert_array_equal(again.forward(TEXT)[0], adapted.forward(TEXT)[0])


def test_of_the_mlp_only_its_product_is_saved_and_trained_further(rng, tmp_path):
    base = make_gpt()
    adapted = inject(base, METHODS[2], rng)
    save_adapter(adapted, tmp_path)
    again = load_adapter(base, tmp_path)
    assert again.method == PrefixConfig(N)
    ours, theirs = (list(adapters(model).values()) for model in (adapted, again))
    for one, other in zip(ours, theirs):
        np.testing.assert_array_equal(other.P.value, one.virtual_tokens()[0])
    trained = [name for name, p in again.parameters().items() if p.trainable]
    assert trained == ["h.0.attn.P", "h.1.attn.P"]
    small = GPT(GPTConfig(5, 6, 1, 2, 4), rng)
    with pytest.raises(ContractError) as caught:  # of 15 claims, that one
        check_method(PrefixConfig(2, prefix_projection=True), small)
    assert str(caught.value).count("\n- ") == 1 and "trainable in only one" in str(caught.value)


def test_a_file_of_another_size_or_with_other_tensors_is_refused(rng, tmp_path):
    base = make_gpt()
    save_adapter(inject(base, METHODS[1], rng), tmp_path)
    other = GPT(dataclasses.replace(CONFIG, n_layer=1), rng)
    expected = r"'prompt_embeddings' has shape \(3, 16\) in the file, expected \(3, 8\)"
    with pytest.raises(CheckpointError, match=expected):
        load_adapter(other, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace("PREFIX_TUNING", "PROMPT_TUNING"))
    with pytest.raises(
        CheckpointError, match=r"has shape \(3, 16\) in the file, expected \(3, 4\)"
    ):
        load_adapter(base, tmp_path)
    short = GPT(dataclasses.replace(CONFIG, block_size=N), rng)
    with pytest.raises(CheckpointError, match="num_virtual_tokens = 3 leaves no room"):
        load_adapter(short, tmp_path)


@pytest.mark.parametrize("n", ["null", "2.5", "true", '"many"', "0"])
def test_a_file_without_a_number_of_rows_is_refused(n, rng, tmp_path):
    base = make_gpt()
    save_adapter(inject(base, METHODS[0], rng), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('_tokens": 3', f'_tokens": {n}'))
    with pytest.raises(CheckpointError, match=r"num_virtual_tokens = .*, expected"):
        load_adapter(base, tmp_path)


def test_what_else_is_trained_is_refused_where_the_file_must_be_pefts(rng, tmp_path):
    base = make_gpt()
    adapted = inject(base, METHODS[0], rng)
    adapted.ln_f.gamma.value, adapted.ln_f.gamma.trainable = np.full(D, 2.0), True
    with pytest.raises(virtual.NoPeftForm, match=r"also trains ln_f\.gamma, which PEFT cannot"):
        save_adapter(adapted, tmp_path / "peft", peft_only=True)
