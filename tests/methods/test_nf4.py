"""lora_np.methods.nf4: QLoRA is inject() with a method over weights in NF4."""

from dataclasses import dataclass

import numpy as np
import pytest

from lora_np.adapters import load_adapter, save_adapter
from lora_np.checks import check_method
from lora_np.costs import account
from lora_np.files import load_json
from lora_np.forms import Bfloat16
from lora_np.layers import Linear, copy_model
from lora_np.layers.stored import store_model
from lora_np.methods import LoraConfig, MethodConfig, adapters, inject, merge, method_of, unmerge
from lora_np.methods.nf4 import Nf4Config, quantise
from lora_np.models import GPT, GPTConfig
from lora_np.train import evaluate, fit
from tests.methods.own_gains import GainConfig

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=16)
TOKENS = np.arange(12).reshape(2, 6) % 13
TARGETS = (TOKENS + 1) % 13
LORA = LoraConfig(r=2, target_modules="all-linear")


def make_gpt():
    return GPT(CONFIG, np.random.default_rng(0))


def injected(model, config, seed=1):
    return inject(model, config, np.random.default_rng(seed))


def stored(model):
    return {name for name, p in model.parameters().items() if p.stored_as == "nf4"}


def linear_weights(model):
    return {f"{path}.W" for path, layer in model.modules().items() if isinstance(layer, Linear)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [Nf4Config(), Nf4Config(LORA, 32, False), Nf4Config(GainConfig(r=2))]
)
def test_qlora_keeps_the_whole_contract(config):
    assert len(check_method(config)) == 15


def test_all_linear_weights_become_nf4_and_nothing_else():
    base = make_gpt()
    adapted = injected(base, Nf4Config(LoraConfig(r=2)))  # q_proj and v_proj
    names = {f"h.{i}.attn.{p}_proj.W0" for i in (0, 1) for p in "qv"}
    assert names < stored(adapted) and stored(base) == set()
    whole = injected(base, Nf4Config(LORA))
    assert len(stored(adapted)) == len(stored(whole)) == len(linear_weights(base)) == 12
    for name, p in base.parameters().items():
        if name not in linear_weights(base):
            assert np.shares_memory(whole.parameters()[name].value, p.value)


def test_qlora_is_lora_over_the_quantised_base():
    base = make_gpt()
    one, two = injected(base, Nf4Config(LORA)), injected(quantise(base), LORA)
    for model in (one, two):
        fit(model, lambda: (TOKENS, TARGETS), steps=5, lr=0.05)
    np.testing.assert_array_equal(one.forward(TOKENS)[0], two.forward(TOKENS)[0])
    assert account(one) == account(two)


@pytest.mark.parametrize("double", [True, False])
def test_the_adapted_model_starts_at_the_quantised_base(double):
    base = make_gpt()
    adapted = injected(base, Nf4Config(LORA, double=double))
    found, at_base = adapted.forward(TOKENS)[0], base.forward(TOKENS)[0]
    np.testing.assert_array_equal(found, quantise(base, double=double).forward(TOKENS)[0])
    error = np.linalg.norm(found - at_base) / np.linalg.norm(at_base)
    assert 0.005 < error < 0.2 and Nf4Config.starts_at_base is False


def test_training_changes_the_adapter_alone_and_lowers_the_loss():
    base = quantise(make_gpt())
    before = [a.copy() for p in base.parameters().values() for a in p.arrays().values()]
    adapted = injected(base, LORA)
    start = evaluate(adapted, TOKENS, TARGETS)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=30, lr=0.05)
    assert evaluate(adapted, TOKENS, TARGETS) < start - 0.1
    after = [a for p in base.parameters().values() for a in p.arrays().values()]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_base_that_is_stored_already_stays_as_it_is():
    base = quantise(make_gpt(), block_size=32, double=False)
    adapted = injected(base, Nf4Config(LORA, block_size=64))
    for layer in adapters(adapted).values():
        assert layer.W0.form.block_size == 32 and "mean" not in layer.W0.form.parts
    np.testing.assert_array_equal(adapted.forward(TOKENS)[0], base.forward(TOKENS)[0])


def test_merging_dequantises_and_unmerging_finds_the_quantised_base():
    base = quantise(make_gpt())
    adapted = injected(base, LORA)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=5, lr=0.05)
    plain = merge(adapted)
    assert stored(plain) == set() and all(p.trainable for p in plain.parameters().values())
    np.testing.assert_allclose(plain.forward(TOKENS)[0], adapted.forward(TOKENS)[0], atol=1e-5)
    again = unmerge(plain, adapted)
    for name, p in base.parameters().items():
        np.testing.assert_allclose(again.parameters()[name].value, p.value, atol=1e-6)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_a_decoded_model_merges_whatever_was_adapted(targets):
    base = store_model(quantise(make_gpt()), Bfloat16.encode, ["wte.W", "wpe.W"])
    adapted = injected(base, LoraConfig(r=2, target_modules=targets))
    fit(adapted, lambda: (TOKENS, TARGETS), steps=5, lr=0.05)
    plain = merge(copy_model(adapted, decode=True))
    assert not any(p.stored_as for p in plain.parameters().values())
    np.testing.assert_allclose(plain.forward(TOKENS)[0], adapted.forward(TOKENS)[0], atol=1e-5)


def test_the_weights_take_less_than_a_seventh_of_their_bytes():
    layer = Linear(512, 512, np.random.default_rng(0), bias=False)
    plain, double, single = layer, quantise(layer), quantise(layer, double=False)
    bits = [8 * account(m).weight_bytes / layer.W.size for m in (plain, single, double)]
    assert bits[:2] == [32.0, 4.5] and bits[2] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), 1e-3)


def test_files_hold_the_adapter_and_how_the_base_was_quantised(tmp_path):
    base = make_gpt()
    adapted = injected(base, Nf4Config(LORA, block_size=32))
    fit(adapted, lambda: (TOKENS, TARGETS), steps=5, lr=0.05)
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(base, tmp_path / "adapter")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    assert (method_of(again).block_size, method_of(again).of.r) == (32, 2)
    assert stored(again) == stored(adapted)
    assert "peft_type" not in load_json(tmp_path / "adapter" / "adapter_config.json")


def test_lora_over_a_quantised_base_writes_a_plain_lora_file(tmp_path):
    base = quantise(make_gpt())
    adapted = injected(base, LORA)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=5, lr=0.05)
    save_adapter(adapted, tmp_path / "adapter")
    assert load_json(tmp_path / "adapter" / "adapter_config.json")["peft_type"] == "LORA"
    again = load_adapter(base, tmp_path / "adapter")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    assert len(stored(again)) == 12


def test_the_other_method_gives_rates_ranks_and_what_follows_a_step():
    calls = []

    @dataclass(frozen=True)
    class Watched(LoraConfig):
        def lr_factor(self, name):
            return 16.0 if name.endswith(".B") else 1.0

        def after_step(self, model, step, gradient):
            calls.append(step)

    config = Nf4Config(Watched(r=2))
    adapted = injected(make_gpt(), config)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=3, lr=0.01)
    assert calls == [0, 1, 2] and config.lr_factor("q.B") == 16.0 and config.merges
    assert config.of_rank(4).of.r == 4 and config.of_rank(4).block_size == 64
    other = dataclass(frozen=True)(type("Other", (MethodConfig,), {"merges": False}))
    assert Nf4Config(other()).merges is False


@dataclass(frozen=True)
class TrainsW(LoraConfig):
    def trains(self, name):
        return name == "h.0.attn.q_proj.W"


def test_what_cannot_be_quantised_is_refused_in_one_line():
    base = make_gpt()
    with pytest.raises(ValueError, match=r"^h\.0\.attn\.q_proj\.W is trained, but only frozen"):
        injected(base, Nf4Config(TrainsW(r=2)))
    with pytest.raises(ValueError, match="adapted already: quantise its base, then inject"):
        quantise(injected(base, LORA))
    with pytest.raises(ValueError, match="block_size = 48, expected a power of 2"):
        Nf4Config(block_size=48)
    with pytest.raises(ValueError, match="block_size = 48, expected a power of 2"):
        quantise(base, block_size=48)
    base.h[1].mlp.up_proj.W.value[2, 3] = np.inf
    for attempt in (lambda: quantise(base), lambda: injected(base, Nf4Config(LORA))):
        with pytest.raises(ValueError, match=r"^h\.1\.mlp\.up_proj\.W: some numbers are not fin"):
            attempt()


def test_a_method_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"of = 'lora', expected a MethodConfig"):
        Nf4Config("lora")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"of": None}, "must have 'of', a method's fields, and 'double'"),
        ({"of": [1]}, "must have 'of', a method's fields, and 'double'"),
        ({"double": 3}, "must have 'of', a method's fields, and 'double'"),
        ({"of": {"lora_np_method": "magic"}}, "method 'magic' is not defined"),
        ({"block_size": "64"}, "block_size = '64', expected a whole number"),
        ({"block_size": "6" * 10**6}, r"^block_size = '6{39}\S+, expected a whole number"),
        ({"block_size": None}, "block_size = None, expected a whole number"),
    ],
)
def test_damaged_fields_are_refused(change, message):
    fields = {**Nf4Config(LORA).fields(), **change}
    with pytest.raises(ValueError, match=message):
        Nf4Config.of_fields(fields)
    assert Nf4Config.of_fields({"peft_type": "LORA"}) is None


def test_a_quantised_weight_is_not_trained_by_mistake():
    base = quantise(make_gpt())
    with pytest.raises(ValueError, match="stored as nf4 cannot be trained or changed: train an"):
        base.h[0].attn.q_proj.W.trainable = True
    plain = copy_model(base, decode=True)
    plain.h[0].attn.q_proj.W.trainable = True
    fit(plain, lambda: (TOKENS, TARGETS), steps=2, lr=0.01)
