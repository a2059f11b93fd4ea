"""LoRA on an embedding: targets, start, gradients, the tied head, merging, and bad input."""

import re

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    Grads,
    LoraConfig,
    Parameter,
    account,
    check_gradients,
    check_layer,
    fit,
    inject,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)
from lora_np.files import CheckpointError, load_json, save_json
from lora_np.files.names import PREFIX
from lora_np.files.tensors import TensorFile, save_tensors
from lora_np.layers import Embedding, as_pair
from lora_np.methods import DoraConfig, LoRAEmbedding, adapters, target_paths
from lora_np.methods.lora_embedding import lora_embedding_backward, lora_embedding_forward
from lora_np.selfcheck import at_random
from tests.compare import close

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, d_model=8)
TOKENS = np.array([[3, 3, 0, 12, 3], [0, 5, 5, 5, 1]])  # several occur more than once
TARGETS = (TOKENS + 1) % 13


def make_gpt(rng):
    model = GPT(CONFIG, rng, np.float64)
    at_random(model, rng, 0.3)
    return model


def adapted_gpt(rng, targets=("wte", "wpe", "q_proj"), **options):
    return inject(make_gpt(rng), LoraConfig(r=3, target_modules=targets, **options), rng)


def arguments(rng):
    n = rng.standard_normal
    return TOKENS, n((13, 4)), n((3, 13)), n((4, 3))  # tokens, W, A, B


# -------------------------------------------------------------------------------------- the pair


def test_the_pair_is_loras_equation_on_one_hot_rows(rng):
    tokens, W, A, B = arguments(rng)
    dy, H = rng.standard_normal((2, 5, 4)), np.eye(13)[tokens]  # (2, 5, 13)
    y, cache = lora_embedding_forward(tokens, W, A, B, scale=0.7)
    close(y, H @ (W.T + 0.7 * B @ A).T)
    dW, dA, dB = lora_embedding_backward(dy, cache)
    H, g = H.reshape(10, 13), dy.reshape(10, 4)
    close(dW, H.T @ g)
    close(dA, 0.7 * (g @ B).T @ H)
    close(dB, 0.7 * g.T @ (H @ A.T))


@pytest.mark.parametrize("method, limit", [("central", 1e-7), ("complex", 1e-12)])
def test_gradients_are_right(rng, method, limit):
    report = check_gradients(
        lora_embedding_forward, lora_embedding_backward, arguments(rng), method=method, scale=0.7
    )
    assert report.ok and report.max_error < limit and len(report.rows) == 3


def test_a_wrong_derivation_is_caught(rng):
    """The planted mistake: a repeated token counts once."""

    def wrong(dy, cache, need=None):
        dW, dA, dB = lora_embedding_backward(dy, cache, need)
        if dA is not None:
            dA = np.zeros_like(dA)
            dA[:, TOKENS] = np.moveaxis(cache.scale * (dy @ cache.B), -1, 0)
        return dW, dA, dB

    assert not check_gradients(lora_embedding_forward, wrong, arguments(rng), scale=0.7).ok


def test_the_layer_keeps_the_contract_of_layers(rng):
    table = Embedding(13, 4, rng, dtype=np.float64)
    layer = inject(table, LoraConfig(r=2, target_modules=[""]), rng)
    assert len(check_layer(layer, TOKENS)) == 7


# --------------------------------------------------------------------------- targets and the start


def test_an_embedding_is_adapted_only_if_it_is_named(rng):
    model = make_gpt(rng)
    assert not any("wte" in p for p in target_paths(model, LoraConfig(target_modules="all-linear")))
    named = LoraConfig(target_modules=["wte", "v_proj"])
    assert target_paths(model, named) == ["wte", "h.0.attn.v_proj"]
    assert target_paths(model, LoraConfig(target_modules="w.e")) == ["wte", "wpe"]
    with pytest.raises(ValueError, match="'wte' matches no linear layer: the model has q_proj"):
        target_paths(model, DoraConfig(target_modules=["wte"]))


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_A_starts_at_zero_and_B_at_random(init):
    rng = np.random.default_rng(0)
    base = GPT(GPTConfig(200, 4, 1, 2, 64), rng, np.float64)
    config = LoraConfig(r=16, target_modules=["wte"], init_lora_weights=init)
    adapted = inject(base, config, rng)
    layer = adapted.wte
    assert (layer.A.shape, layer.B.shape) == ((16, 200), (64, 16))
    assert not layer.A.value.any() and layer.B.value.std() == pytest.approx(1.0, abs=0.1)
    tokens = np.array([[1, 199]])
    np.testing.assert_array_equal(adapted.forward(tokens)[0], base.forward(tokens)[0])
    added = account(adapted).adapter
    assert added == account(adapted).trainable == 16 * (200 + 64)


def test_controls_start_at_random_and_at_zero(rng):
    both = adapted_gpt(rng, ["wte"], init_lora_weights=False).wte
    none = adapted_gpt(rng, ["wte"], init_lora_weights="zero").wte
    assert both.A.value.all() and both.B.value.all()
    assert not none.A.value.any() and not none.B.value.any()


# --------------------------------------------------------------------------------- on a model


def test_gradients_reach_both_embeddings_of_a_model(rng):
    adapted = adapted_gpt(rng)
    at_random(adapted, rng, 0.3)
    forward, backward, inputs = as_pair(adapted, lambda model, x: model.loss(x, TARGETS))
    report = check_gradients(forward, backward, inputs(TOKENS), method="complex")
    assert report.ok and report.max_error < 1e-12
    assert {"wte.A", "wte.B", "wpe.A", "wpe.B", "wte.base.W"} <= {row.name for row in report.rows}


@pytest.mark.parametrize("target", ["wte", "wpe"])
def test_an_adapter_on_an_embedding_alone_is_trained(rng, target):
    base = make_gpt(rng)
    adapted = inject(base, LoraConfig(r=3, target_modules=[target]), rng)
    history = fit(adapted, lambda: (TOKENS, TARGETS), steps=20, lr=0.05)
    assert history.loss[-1] < history.loss[0] - 0.1
    assert adapters(adapted)[target].A.value.any()


def test_a_tied_head_keeps_the_table(rng):
    adapted = adapted_gpt(rng, ["wte"])
    adapted.wte.A.value[...] = 1.0
    assert adapted.head() is adapted.wte.W and adapted.head() is adapted.wte.base.W
    grads = Grads()
    adapted.backward(1.0, adapted.loss(TOKENS, TARGETS)[1], grads)
    assert {p for p in adapted.parameters().values() if p in grads} == {
        adapted.wte.A,
        adapted.wte.B,
    }


def test_positions_merge_and_a_table_with_a_tied_head_does_not(rng):
    adapted = adapted_gpt(rng, ["wpe", "q_proj"])
    for layer in adapters(adapted).values():
        layer.A.value = rng.standard_normal(layer.A.shape)
    plain = merge(adapted)
    assert type(plain.wpe) is Embedding
    close(plain.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    again = unmerge(plain, adapted)
    close(again.wpe.W.value, adapted.wpe.W.value)
    adapted = adapted_gpt(rng, ["wte"])
    assert merge(adapted).wte.W.shape == (13, 8)  # A is zero: the head is what it was
    adapted.wte.A.value[...] = 1.0
    with pytest.raises(ValueError, match="does not merge: its head is tied to an embedding"):
        merge(adapted)


def test_a_table_alone_merges(rng):
    base = Embedding(13, 4, rng, dtype=np.float64)
    layer = LoRAEmbedding(
        base, *(Parameter(rng.standard_normal(s)) for s in ((2, 13), (4, 2))), 0.5
    )
    close(layer.merged().forward(TOKENS)[0], layer.forward(TOKENS)[0])
    close(layer.delta(), layer.merged().W.value - base.W.value)


# -------------------------------------------------------------------------------------- files


def test_a_file_has_pefts_names_and_is_read_back(rng, tmp_path):
    base = make_gpt(rng)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["wte", "v_proj"],
                        rank_pattern={"wte": 2}, loraplus_lr_ratio=4.0)  # fmt: skip
    adapted = inject(base, config, rng)
    for layer in adapters(adapted).values():
        layer.A.value = rng.standard_normal(layer.A.shape)
        layer.B.value = rng.standard_normal(layer.B.shape)
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    again = load_adapter(base, tmp_path / "one")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    assert again.method.loraplus_lr_ratio == 4.0 and again.wte.scale == 2.5
    assert [n for n, p in again.parameters().items() if p.trainable] == [
        "wte.A", "wte.B", "h.0.attn.v_proj.A", "h.0.attn.v_proj.B"
    ]  # fmt: skip
    save_adapter(again, tmp_path / "two", peft_only=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_file_that_does_not_fit_is_refused_by_name(rng, tmp_path):
    base = make_gpt(rng)
    save_adapter(inject(base, LoraConfig(r=3, target_modules=["wte"]), rng), tmp_path / "a")
    wide = GPT(GPTConfig(14, 8, 1, 2, 8), rng, np.float64)
    message = r"'transformer\.wte' with shape \(8, 13\), expected \(8, 14\)"
    with pytest.raises(CheckpointError, match=message):
        load_adapter(wide, tmp_path / "a")
    fields = load_json(tmp_path / "a" / "adapter_config.json")
    save_json(tmp_path / "a" / "adapter_config.json", {**fields, "r": 2})
    with pytest.raises(CheckpointError, match=r"'transformer\.wte' with rank 3, .* say 2"):
        load_adapter(base, tmp_path / "a")
    dora = inject(base, DoraConfig(r=3, target_modules=["o_proj"]), rng)
    save_adapter(dora, tmp_path / "d")
    fields = load_json(tmp_path / "d" / "adapter_config.json")
    save_json(tmp_path / "d" / "adapter_config.json", {**fields, "r": 2})
    with pytest.raises(CheckpointError, match=r"attn\.c_proj' with rank 3, .* say 2"):
        load_adapter(base, tmp_path / "d")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"base_layer.weight": "lora_embedding_A"}, "weight', a layer saved whole, as PEFT"),
        (
            {"lora_embedding_B": ""},
            "the file lacks 'transformer.wte.lora_embedding_B': LoRA",
        ),
        ({"lora_A.weight": "lora_embedding_A"}, "the file holds 'transformer.wte.lora_A.weight'"),
    ],
    ids=str,
)
def test_tensors_left_over_or_missing_are_named(rng, tmp_path, change, message):
    base = make_gpt(rng)
    save_adapter(inject(base, LoraConfig(r=3, target_modules=["wte"]), rng), tmp_path / "a")
    file, place = tmp_path / "a" / "adapter_model.safetensors", f"{PREFIX}transformer.wte."
    with TensorFile(file) as held:
        tensors = {name: held.read(name, None) for name in held.names}
    tensors |= {place + name: tensors.get(place + other) for name, other in change.items()}
    save_tensors(file, {name: x for name, x in tensors.items() if x is not None}, {})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_adapter(base, tmp_path / "a")


# ----------------------------------------------------------------------------------- bad input


def test_lora_fa_would_never_train_an_embedding(rng):
    with pytest.raises(ValueError, match="A starts at zero on an embedding: frozen by LoRA-FA"):
        adapted_gpt(rng, ["wte"], train_A=False)


def test_a_rank_above_the_table_and_a_token_outside_are_refused(rng):
    with pytest.raises(ValueError, match="rank 9 for wte is above the limit 8 of its 8 x 13"):
        inject(make_gpt(rng), LoraConfig(r=9, target_modules=["wte"]), rng)
    with pytest.raises(IndexError, match=r"tokens lie in 13 \.\. 13, expected 0 \.\. 12"):
        adapted_gpt(rng, ["wte"]).forward(np.array([[13]]))
