"""The random subspace as a method: injected, merged, saved, loaded; the projection has its own."""

import json

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    IntrinsicConfig,
    IntrinsicModel,
    account,
    check_gradients,
    copy_model,
    evaluate,
    fit,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lora_np.files import CheckpointError
from lora_np.layers import MLP, Linear, as_pair
from lora_np.methods import intrinsic
from lora_np.methods.subspace import subspace_backward, subspace_forward
from lora_np.ops.fastfood import Fastfood
from lora_np.parameters import freeze
from lora_np.selfcheck import at_random

V, T, D = 7, 5, 8
TEXT = np.array([[1, 6, 3, 3, 0], [2, 2, 4, 1, 5]])
VARIANTS = {"plain": IntrinsicConfig(d=40), "structured": IntrinsicConfig(d=40, structured=True)}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))


def make_gpt(dtype=np.float64, dropout=0.0):
    config = GPTConfig(V, T, n_layer=1, n_head=2, d_model=D, dropout=dropout)
    model = GPT(config, np.random.default_rng(0), np.float64)
    at_random(model, np.random.default_rng(1), 0.3)
    return copy_model(model, dtype=dtype)


def moved(config, rng, **options):
    """An adapted model whose z and scales are away from their start."""
    adapted = inject(make_gpt(**options), config, rng)
    for p in adapted.own().values():
        p.value = p.value + 0.5 * rng.standard_normal(p.shape).astype(p.dtype)
    return adapted


def loss_of(model, tokens):
    return model.loss(tokens, (tokens + 1) % V, rng=np.random.default_rng(4))


@every_variant
def test_all_parameters_of_a_lent_base_move_and_only_z_and_scales_are_trained(config, rng):
    base = make_gpt()
    adapted = inject(base, config, rng)
    assert adapted.theta0.size == sum(p.size for p in base.parameters().values())
    trained = {name: p.size for name, p in adapted.parameters().items() if p.trainable}
    assert trained == ({"scales": 11, "z": 29} if config.structured else {"z": 40})
    assert all(np.shares_memory(p.value, base.parameters()[n].value)
               for n, p in adapted.base.parameters().items())  # fmt: skip
    change = merge(moved(config, rng)).parameters()
    for name, p in base.parameters().items():
        assert np.abs(change[name].value - p.value).max() > 1e-3, name


@pytest.mark.slow
@every_variant
@pytest.mark.parametrize("method", ["complex", pytest.param("central", marks=pytest.mark.slow)])
def test_gradients_are_right_with_dropout_those_of_the_base_too(config, method, rng):
    adapted = moved(config, rng, dropout=0.2)
    forward, backward, inputs = as_pair(adapted, loss_of)
    report = check_gradients(forward, backward, inputs(TEXT), method=method)
    assert report.max_error < (1e-7 if method == "central" else 1e-12)
    assert len(report.rows) == len(adapted.parameters())


def without_scales(dtheta, cache, need=None):
    return subspace_backward(dtheta, cache._replace(scale=np.ones_like(dtheta)), need)


def with_the_scaled_direction(dtheta, cache, need=None):
    wrong = cache._replace(direction=cache.direction * cache.scale)
    return subspace_backward(dtheta, wrong, need)


def forward_again(dtheta, cache, need=None):
    dtheta0, _, dscales = subspace_backward(dtheta, cache, need)
    return dtheta0, cache.P.forward(dtheta[: cache.P.d])[: cache.P.d], dscales


@pytest.mark.parametrize("wrong", [without_scales, with_the_scaled_direction, forward_again])
def test_a_wrong_derivation_is_caught(wrong, rng):
    options = {"P": Fastfood(9, 4, rng, np.float64), "layer": np.array([0, 0, 1, 1, 1, 0, 0, 2, 2])}
    inputs = tuple(rng.standard_normal(n) for n in (9, 4, 3))
    right = check_gradients(
        subspace_forward, subspace_backward, inputs, method="complex", **options
    )
    assert right.max_error < 1e-12
    assert not check_gradients(subspace_forward, wrong, inputs, **options).ok


def test_a_wrong_derivation_in_a_model_is_caught(rng, monkeypatch):
    monkeypatch.setattr(intrinsic, "subspace_backward", without_scales)
    forward, backward, inputs = as_pair(moved(VARIANTS["structured"], rng), loss_of)
    assert not check_gradients(forward, backward, inputs(TEXT), method="directional").ok


@every_variant
def test_the_model_trains_merges_and_generates_like_a_model(config, rng):
    base = make_gpt(np.float32)
    before = {name: p.value.copy() for name, p in base.parameters().items()}
    adapted = inject(base, config, rng)
    start = evaluate(adapted, TEXT, 6 - TEXT)
    assert start == evaluate(base, TEXT, 6 - TEXT)
    fit(adapted, lambda: (TEXT, 6 - TEXT), steps=40, lr=0.3)
    plain = merge(adapted)
    assert type(plain) is GPT and all(p.trainable for p in plain.parameters().values())
    assert evaluate(plain, TEXT, 6 - TEXT) == evaluate(adapted, TEXT, 6 - TEXT) < start - 0.2
    prompts = [np.array([1, 2]), np.array([3])]
    for one, other in zip(*(m.generate(prompts, 6, temperature=0) for m in (plain, adapted))):
        np.testing.assert_array_equal(one, other)
    first, memory = adapted.extend(TEXT[:, :2])
    rest, _ = adapted.extend(TEXT[:, 2:], memory)
    found = np.concatenate((first, rest), axis=1)
    np.testing.assert_allclose(found, plain.forward(TEXT)[0], rtol=0, atol=1e-5)
    for name, p in base.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])


def test_the_account_is_that_of_full_fine_tuning_with_d_trained_numbers(rng):
    base = make_gpt()
    whole, found = account(base), account(inject(base, VARIANTS["plain"], rng))
    assert (found.base, found.adapter, found.trainable) == (whole.base, 40, 40)
    assert found.T == whole.T == T and found.flops == whole.flops
    assert found.gradient_bytes == 40 * 8


@every_variant
def test_a_file_holds_z_and_the_seed_from_which_P_is_drawn_again(config, rng, tmp_path):
    adapted = moved(config, rng)
    save_adapter(adapted, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["lora_np_method"] == "intrinsic" and saved["seed"] == adapted.method.seed
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 1000  # for 944 parameters
    again = load_adapter(make_gpt(), tmp_path)
    z, ours, theirs = rng.standard_normal(adapted.z.size), adapted.projection, again.projection
    np.testing.assert_array_equal(theirs.forward(z), ours.forward(z))
    np.testing.assert_array_equal(again.forward(TEXT)[0], adapted.forward(TEXT)[0])
    assert again.method == adapted.method


def test_the_seed_is_drawn_when_a_model_is_made_unless_it_is_given(rng):
    first, second = (inject(make_gpt(), VARIANTS["plain"], rng).method.seed for _ in range(2))
    assert first != second
    given = inject(make_gpt(), IntrinsicConfig(40, seed=5), rng)
    assert given.method == IntrinsicConfig(40, seed=5, D=given.projection.D)
    same = IntrinsicModel(make_gpt(), 40, 5)
    z = rng.standard_normal(40)
    np.testing.assert_array_equal(same.projection.forward(z), given.projection.forward(z))


def test_a_model_made_by_hand_is_not_saved_without_its_configuration(rng, tmp_path):
    model = IntrinsicModel(make_gpt(), 40, rng)
    with pytest.raises(ValueError, match=r"made by hand: set model\.method"):
        save_adapter(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_d_is_refused(rng, tmp_path):
    save_adapter(moved(VARIANTS["plain"], rng), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"d": 40', '"d": 39'))
    with pytest.raises(CheckpointError, match=r"'z' has shape \(40,\) in the file, expected \(39,"):
        load_adapter(make_gpt(), tmp_path)
    with pytest.raises(CheckpointError, match=r"d = 39, expected 1 <= d <= D = 8"):
        load_adapter(Linear(3, 2, rng), tmp_path)


def test_a_d_that_does_not_fit_is_one_clear_error(rng):
    with pytest.raises(ValueError, match=r"d = 100, expected 1 <= d <= D = 8"):
        inject(Linear(3, 2, rng), IntrinsicConfig(100), rng)
    with pytest.raises(ValueError, match="d = 11, expected more than the 11 scales"):
        inject(make_gpt(), IntrinsicConfig(11, structured=True), rng)


def test_frozen_parameters_of_a_model_made_by_hand_stay_and_may_train_beside_it(rng):
    base = MLP(3, 4, rng, dtype=np.float64)
    freeze({"b": base.down_proj.b})
    model = IntrinsicModel(base, 5, rng)
    assert model.theta0.size == 3 * 4 + 4 + 4 * 3
    model.z.value[...] = 1.0
    np.testing.assert_array_equal(model.point().down_proj.b.value, base.down_proj.b.value)
    assert np.abs(model.point().up_proj.b.value - base.up_proj.b.value).max() > 0
    base.up_proj.W.value[...] = 7.0  # its values were copied
    assert np.abs(model.theta0).max() < 7.0
