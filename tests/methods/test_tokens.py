"""Trainable tokens: rows that replace those of a table, in the lookup and in a tied head."""

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    Grads,
    account,
    check_gradients,
    check_layer,
    evaluate,
    fit,
    inject,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)
from lora_np.files import CheckpointError, load_json
from lora_np.files.names import PREFIX
from lora_np.files.tensors import save_tensors
from lora_np.layers import Embedding, as_pair, copy_model
from lora_np.methods import TokensConfig
from lora_np.methods.tokens import tokens_backward, tokens_forward
from lora_np.selfcheck import at_random
from tests.compare import close, values

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, d_model=8)
TOKENS = np.array([[3, 3, 0, 12, 3], [0, 5, 5, 5, 1]])  # several occur more than once
TARGETS = (TOKENS + 1) % 13
INDICES = (12, 3, 7)  # 7 does not occur in the text, but its logit does


def make_gpt(rng):
    model = GPT(CONFIG, rng, np.float64)
    at_random(model, rng, 0.3)
    return model


def adapted_gpt(rng):
    adapted = inject(make_gpt(rng), TokensConfig(INDICES), rng)
    adapted.wte.rows.value = rng.standard_normal((3, 8))
    return adapted


def arguments(rng):
    return TOKENS, rng.standard_normal((13, 4)), rng.standard_normal((3, 4))


# -------------------------------------------------------------------------------------- the pair


def test_the_pair_looks_up_the_replaced_rows(rng):
    tokens, W, R = arguments(rng)
    dy = rng.standard_normal((2, 5, 4))
    y, cache = tokens_forward(tokens, W, R, indices=INDICES)
    table = W.copy()
    table[list(INDICES)] = R
    np.testing.assert_array_equal(y, table[tokens])
    dW, dR = tokens_backward(dy, cache)
    expected = np.zeros_like(W)
    np.add.at(expected, tokens, dy)
    close(dR, expected[list(INDICES)])
    expected[list(INDICES)] = 0.0
    close(dW, expected)


@pytest.mark.parametrize("method, limit", [("central", 1e-7), ("complex", 1e-12)])
@pytest.mark.parametrize("indices", [INDICES, (2, 6, 7)], ids=["some occur", "none occurs"])
def test_gradients_are_right(rng, method, limit, indices):
    report = check_gradients(
        tokens_forward, tokens_backward, arguments(rng), method=method, indices=indices
    )
    assert report.ok and report.max_error < limit and len(report.rows) == 2


def test_a_wrong_derivation_is_caught(rng):
    """The planted mistake: the rows are added to those of the table, as a difference would be."""

    def wrong(dy, cache, need=None):
        _, dR = tokens_backward(dy, cache, need)
        dW = np.zeros((13, 4))
        np.add.at(dW, TOKENS, dy)
        return dW, dR

    assert not check_gradients(tokens_forward, wrong, arguments(rng), indices=INDICES).ok


def test_the_layer_keeps_the_contract_of_layers(rng):
    layer = inject(Embedding(13, 4, rng, dtype=np.float64), TokensConfig(INDICES, [""]), rng)
    assert len(check_layer(layer, TOKENS)) == 7


# ---------------------------------------------------------------------------------- the tied head


def test_the_start_is_the_base_and_the_head_has_the_rows_too(rng):
    base = make_gpt(rng)
    adapted = inject(base, TokensConfig(INDICES), rng)
    np.testing.assert_array_equal(adapted.forward(TOKENS)[0], base.forward(TOKENS)[0])
    adapted.wte.rows.value[...] = rng.standard_normal((3, 8))
    plain = copy_model(base)
    plain.wte.W.value[list(INDICES)] = adapted.wte.rows.value
    np.testing.assert_array_equal(adapted.forward(TOKENS)[0], plain.forward(TOKENS)[0])
    start = TOKENS[0, :3]
    found = adapted.generate(start, 5, temperature=0)
    np.testing.assert_array_equal(found, plain.generate(start, 5, temperature=0))


def test_the_gradient_of_the_rows_is_the_sum_of_lookup_and_head(rng):
    adapted = adapted_gpt(rng)
    grads, whole = Grads(), Grads()
    adapted.backward(1.0, adapted.loss(TOKENS, TARGETS)[1], grads)
    assert len(grads) == 1
    plain = merge(adapted)
    plain.backward(1.0, plain.loss(TOKENS, TARGETS)[1], whole)
    close(grads[adapted.wte.rows], whole[plain.wte.W][list(INDICES)])
    assert np.abs(grads[adapted.wte.rows][2]).max() > 1e-4  # of token 7, through the head alone


@pytest.mark.parametrize("method", ["complex", "directional"])
def test_gradients_of_a_model_with_a_tied_head_are_right(rng, method):
    """The table's own gradient too, which comes from both uses without the replaced rows."""
    adapted = adapted_gpt(rng)
    forward, backward, inputs = as_pair(adapted, lambda model, x: model.loss(x, TARGETS))
    report = check_gradients(forward, backward, inputs(TOKENS), method=method)
    assert report.ok and {"wte.base.W", "wte.rows"} <= {row.name for row in report.rows}


def test_only_the_rows_of_these_tokens_move(rng):
    base = make_gpt(rng)
    before = values(base)
    adapted = inject(base, TokensConfig(INDICES), rng)
    start = evaluate(adapted, TOKENS, TARGETS)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=20, lr=0.05)
    assert evaluate(adapted, TOKENS, TARGETS) < start - 0.1
    assert account(adapted).trainable == account(adapted).adapter == 3 * 8
    plain = merge(adapted)
    changed = np.flatnonzero((plain.wte.W.value != before["wte.W"]).any(axis=1))
    assert changed.tolist() == sorted(INDICES)
    close(plain.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    close(unmerge(plain, adapted).wte.W.value, before["wte.W"])
    for name, value in before.items():
        np.testing.assert_array_equal(base.parameters()[name].value, value)


@pytest.mark.parametrize("options", [{"threads": 2}, {"accumulate": 2}])
def test_a_split_batch_trains_the_same(rng, options):
    found = []
    for crew in ({}, options):
        adapted = inject(make_gpt(np.random.default_rng(0)), TokensConfig(INDICES), rng)
        fit(adapted, lambda: (TOKENS, TARGETS), steps=4, lr=0.05, **crew)
        found.append(adapted.wte.rows.value)
    close(found[1], found[0], 1e-10)


# -------------------------------------------------------------------------------------- files


def test_a_file_has_pefts_names_and_is_read_back(rng, tmp_path):
    adapted = adapted_gpt(rng)
    base = make_gpt(np.random.default_rng(7))
    for name, p in base.parameters().items():
        p.value = adapted.parameters()[name.replace("wte.W", "wte.base.W")].value.copy()
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    fields = load_json(tmp_path / "one" / "adapter_config.json")
    assert fields["peft_type"] == "TRAINABLE_TOKENS" and fields["token_indices"] == [12, 3, 7]
    assert fields["target_modules"] == ["transformer.wte"]
    again = load_adapter(base, tmp_path / "one")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    save_adapter(again, tmp_path / "two", peft_only=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_rows_of_a_head_are_read_if_they_are_the_tables(rng, tmp_path):
    """PEFT writes them twice if the head is tied."""
    base, adapted = make_gpt(rng), adapted_gpt(rng)
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    file, rows = tmp_path / "one" / "adapter_model.safetensors", adapted.wte.rows.value
    for head in (rows, rows + 1.0):
        names = ("transformer.wte", "lm_head")
        tensors = {
            f"{PREFIX}{name}.trainable_tokens_delta": x for name, x in zip(names, (rows, head))
        }
        save_tensors(file, tensors, {})
        if head is rows:
            np.testing.assert_array_equal(load_adapter(base, tmp_path / "one").wte.rows.value, rows)
        else:
            with pytest.raises(CheckpointError, match="rows of a head that is not tied"):
                load_adapter(base, tmp_path / "one")


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, r"token_indices = \[\], expected each token to train once"),
        ({"token_indices": [4, 2, 4, 2, 2]}, r"token_indices = \[4, 2, 4, 2, 2\], expected each"),
        ({"token_indices": [1, 13]}, r"token_indices 1 \.\. 13 for wte, expected 0 \.\. 12"),
        ({"token_indices": [-1]}, r"token_indices -1 \.\. -1 for wte, expected 0 \.\. 12"),
        ({"token_indices": [1], "target_modules": ["q_proj"]}, "matches no embedding: .*wte"),
    ],
    ids=str,
)  # fmt: skip
def test_what_means_nothing_is_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(make_gpt(rng), TokensConfig(**options), rng)
