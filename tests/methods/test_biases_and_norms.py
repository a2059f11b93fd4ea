"""BitFit and LayerNorm tuning: which Parameters of the base train, and their files."""

import json

import numpy as np
import pytest

from lora_np import GPT, MLP, GPTConfig, account, inject, load_adapter, merge, save_adapter
from lora_np.files import CheckpointError
from lora_np.files.tensors import TensorFile
from lora_np.methods import BitFitConfig, LNTuningConfig, tensors_of
from lora_np.methods.contract import METHOD_FIELD, NoPeftForm
from lora_np.parameters import Grads

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=16)
TOKENS = np.arange(12).reshape(2, 6) % 13
BOTH = [BitFitConfig(), LNTuningConfig()]
both = pytest.mark.parametrize("config", BOTH, ids=lambda c: c.name)


@pytest.fixture
def base(rng):
    return GPT(CONFIG, rng, np.float64)


def trained(adapted):
    return {name for name, p in adapted.parameters().items() if p.trainable}


def moved(adapted, rng):
    for p in tensors_of(adapted).values():
        p.value[...] = rng.standard_normal(p.shape)
    return adapted


def test_bitfit_trains_every_bias_and_layernorm_tuning_every_gain_and_bias(base, rng):
    names = base.parameters()
    biases = {name for name in names if name.endswith((".b", ".beta"))}
    norms = {name for name in names if name.endswith((".gamma", ".beta"))}
    assert trained(inject(base, BitFitConfig(), rng)) == biases
    assert trained(inject(base, LNTuningConfig(), rng)) == norms
    d, d_ff = 16, 64
    assert account(inject(base, BitFitConfig(), rng)).trainable == 2 * (7 * d + d_ff) + d
    assert account(inject(base, LNTuningConfig(), rng)).trainable == (2 * 2 + 1) * 2 * d


def test_some_modules_are_named_by_ends_of_paths_or_a_pattern(base, rng):
    some = inject(base, BitFitConfig(target_modules=("q_proj", "1.mlp.up_proj")), rng)
    assert trained(some) == {"h.0.attn.q_proj.b", "h.1.attn.q_proj.b", "h.1.mlp.up_proj.b"}
    first = inject(base, LNTuningConfig(target_modules=r"h\.0\..*"), rng)
    assert trained(first) == {f"h.0.ln_{i}.{kind}" for i in (1, 2) for kind in ("gamma", "beta")}


@both
def test_a_step_forms_the_gradients_of_these_parameters_alone(base, rng, config):
    adapted, grads = inject(base, config, rng), Grads()
    _, cache = adapted.loss(TOKENS, TOKENS)
    adapted.backward(1.0, cache, grads)
    whole = Grads()
    _, cache = base.loss(TOKENS, TOKENS)
    base.backward(1.0, cache, whole)
    assert len(grads) == len(trained(adapted))
    for name in trained(adapted):
        ours, theirs = adapted.parameters()[name], base.parameters()[name]
        np.testing.assert_allclose(grads[ours], whole[theirs], atol=1e-13)


@both
def test_merging_gives_a_plain_model_with_the_trained_values(base, rng, config):
    adapted = moved(inject(base, config, rng), rng)
    plain = merge(adapted)
    np.testing.assert_array_equal(plain.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    assert trained(plain) == set(base.parameters())


@pytest.mark.parametrize(
    "config, message",
    [
        (BitFitConfig(target_modules=("q_prj",)), "'q_prj' matches no layer with a bias: did you"),
        (BitFitConfig(target_modules=("drop",)), "'drop' matches no layer with a bias"),
        (LNTuningConfig(target_modules=("ln_3",)), "'ln_3' matches no normalisation: did you mean"),
        (LNTuningConfig(target_modules="ln_1"), r"to name modules, pass \['ln_1'\]"),
    ],
)
def test_a_target_that_matches_nothing_is_named(base, rng, config, message):
    with pytest.raises(ValueError, match=message):
        inject(base, config, rng)


def test_a_model_without_normalisations_is_refused(rng):
    with pytest.raises(ValueError, match="the model has no normalisation to adapt"):
        inject(MLP(4, 8, rng), LNTuningConfig(), rng)


# --------------------------------------------------------------------------------------- files


def test_layernorms_have_pefts_names_in_gpt2s_files(tmp_path, base, rng):
    adapted = moved(inject(base, LNTuningConfig(target_modules=("ln_1", "ln_f")), rng), rng)
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    modules = ["transformer.h.0.ln_1", "transformer.h.1.ln_1", "transformer.ln_f"]
    fields = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["target_modules"]) == ("LN_TUNING", modules)
    with TensorFile(tmp_path / "one" / "adapter_model.safetensors") as file:
        assert set(file.names) == {
            f"base_model.model.{name}.ln_tuning_layers.{kind}"
            for name in modules
            for kind in ("weight", "bias")
        }
    again = load_adapter(base, tmp_path / "one")
    assert trained(again) == trained(adapted)
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])


def test_layernorm_files_that_do_not_fit_are_refused_by_a_name(tmp_path, base, rng):
    save_adapter(inject(base, LNTuningConfig(), rng), tmp_path / "one")
    small, narrow = (
        GPT(GPTConfig(**{**vars(CONFIG), **change}), rng)
        for change in ({"n_layer": 1}, {"d_model": 8})
    )
    with pytest.raises(CheckpointError, match=r"holds 'transformer\.h\.1\.ln_1\.ln_tuning_layers"):
        load_adapter(small, tmp_path / "one")
    with pytest.raises(CheckpointError, match=r"'h\.0\.ln_1\.gamma' has shape \(16,\)"):
        load_adapter(narrow, tmp_path / "one")


def test_what_is_trained_beside_the_layernorms_keeps_peft_out(tmp_path, base, rng):
    adapted = inject(base, LNTuningConfig(), rng)
    adapted.h[0].attn.q_proj.b.trainable = True
    with pytest.raises(NoPeftForm, match=r"also trains h\.0\.attn\.q_proj\.b"):
        save_adapter(adapted, tmp_path / "one", peft_only=True)


def test_bitfit_has_our_own_form(tmp_path, base, rng):
    adapted = moved(inject(base, BitFitConfig(target_modules=("q_proj",)), rng), rng)
    with pytest.raises(NoPeftForm, match="PEFT does not have the method 'bitfit'"):
        save_adapter(adapted, tmp_path / "peft", peft_only=True)
    save_adapter(adapted, tmp_path / "ours")
    fields = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (fields[METHOD_FIELD], fields["target_modules"]) == ("bitfit", ["q_proj"])
    again = load_adapter(base, tmp_path / "ours")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
