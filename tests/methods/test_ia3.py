"""IA3: the gradients of a gain, where gains stand, and their rows of a stacked matrix."""

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    Linear,
    account,
    check_gradients,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lora_np.files.tensors import TensorFile
from lora_np.methods import IA3Config, adapters
from lora_np.methods.contract import NoPeftForm
from lora_np.methods.ia3 import gain_backward, gain_forward

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=16)
TOKENS = np.arange(12).reshape(2, 6) % 13
C_ATTN = "base_model.model.transformer.h.0.attn.c_attn.ia3_l"


@pytest.fixture
def base(rng):
    model = GPT(CONFIG, rng, np.float64)
    for p in model.parameters().values():
        p.value = 0.3 * rng.standard_normal(p.shape)
    return model


def at_random(adapted, rng):
    for layer in adapters(adapted).values():
        layer.g.value[...] = rng.standard_normal(layer.g.shape)
    return adapted


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1)])
@pytest.mark.parametrize("method", ["central", "complex"])
def test_gradients_agree_at_random_gains(rng, shape, method):
    x, g = rng.standard_normal((2, 3, max(shape))), rng.standard_normal(shape)
    report = check_gradients(gain_forward, gain_backward, (x, g), method=method)
    assert report.max_error < (1e-7 if method == "central" else 1e-12)


def test_a_derivation_that_takes_the_output_for_the_input_is_caught(rng):
    def wrong(dz, cache, need=None):
        dx, _ = gain_backward(dz, cache, need)
        return dx, (dz * cache.x * cache.g.reshape(-1)).reshape(-1, 5).sum(0).reshape(cache.g.shape)

    inputs = rng.standard_normal((4, 5)), rng.standard_normal((1, 5))
    assert not check_gradients(gain_forward, wrong, inputs).ok


def test_gains_multiply_outputs_and_bias_or_the_input_of_a_feedforward_module(rng):
    base, x = Linear(3, 2, rng, dtype=np.float64), rng.standard_normal((4, 3))
    base.b.value = rng.standard_normal(2)
    W0, b = base.W.value, base.b.value
    behind = at_random(inject(base, IA3Config("all-linear", ()), rng), rng)
    np.testing.assert_allclose(behind.forward(x)[0], behind.g.value[:, 0] * (x @ W0.T + b))
    before = at_random(inject(base, IA3Config("all-linear", ".*"), rng), rng)
    np.testing.assert_allclose(before.forward(x)[0], (before.g.value[0] * x) @ W0.T + b)
    for adapted in (behind, before):
        np.testing.assert_allclose(merge(adapted).forward(x)[0], adapted.forward(x)[0], atol=1e-14)


def test_the_default_adds_one_number_to_each_key_value_and_hidden_unit(base, rng):
    adapted = inject(base, IA3Config(), rng)
    shapes = {path: layer.g.shape for path, layer in adapters(adapted).items() if "h.1" in path}
    assert shapes == {
        "h.1.attn.k_proj": (16, 1),
        "h.1.attn.v_proj": (16, 1),
        "h.1.mlp.down_proj": (1, 64),
    }
    assert account(adapted).trainable == 2 * (16 + 16 + 64)
    assert account(adapted).flops.forward == account(base).flops.forward


# --------------------------------------------------------------------------- a stacked matrix


def test_gains_of_k_and_v_are_rows_of_one_matrix_and_q_has_ones(tmp_path, base, rng):
    adapted = at_random(inject(base, IA3Config(), rng), rng)
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    with TensorFile(tmp_path / "one" / "adapter_model.safetensors") as file:
        g, attn = file.read(C_ATTN, None), adapted.h[0].attn
    np.testing.assert_array_equal(g[:16], 1.0)
    np.testing.assert_array_equal(g[16:32], attn.k_proj.g.value)
    np.testing.assert_array_equal(g[32:], attn.v_proj.g.value)
    again = load_adapter(base, tmp_path / "one")
    assert list(adapters(again)) == list(adapters(adapted))
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])


def test_at_the_start_every_part_of_a_stacked_matrix_gets_its_gains(tmp_path, base, rng):
    save_adapter(inject(base, IA3Config(("v_proj",), ()), rng), tmp_path / "one", peft_only=True)
    again = load_adapter(base, tmp_path / "one")
    assert [path for path in adapters(again) if path.startswith("h.0")] == [
        f"h.0.attn.{p}_proj" for p in "qkv"
    ]


def test_a_gain_in_front_of_part_of_a_stacked_matrix_has_our_own_form(tmp_path, base, rng):
    adapted = at_random(inject(base, IA3Config(("v_proj",), ("v_proj",)), rng), rng)
    with pytest.raises(NoPeftForm, match=r"one gain in front of 'transformer\.h\.0\.attn\.c_attn'"):
        save_adapter(adapted, tmp_path / "peft", peft_only=True)
    save_adapter(adapted, tmp_path / "ours")
    again = load_adapter(base, tmp_path / "ours")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])


# --------------------------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_modules": ("k_prj",)}, "target module 'k_prj' matches no linear layer: did you"),
        (
            {"target_modules": ("k_proj",)},
            "feedforward module 'down_proj' matches no target module: did you mean k_proj",
        ),
        ({"feedforward_modules": ("up_proj",)}, "feedforward module 'up_proj' matches no target"),
    ],
)
def test_a_module_that_is_none_of_the_targets_is_named(base, rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(base, IA3Config(**options), rng)


def test_ia3_has_no_rank():
    with pytest.raises(ValueError, match="'ia3' has no rank r"):
        IA3Config().of_rank(2)
