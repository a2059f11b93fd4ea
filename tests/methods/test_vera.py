"""VeRA: the pair, one A and B for the whole model, and PEFT's files."""

import json

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    account,
    check_gradients,
    copy_model,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lora_np.files import CheckpointError
from lora_np.files.tensors import TensorFile
from lora_np.layers import MLP
from lora_np.methods import VeraConfig, adapters, tensors_of
from lora_np.methods.contract import NoPeftForm
from lora_np.methods.vera import vera_backward, vera_forward, vera_weight

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=16)
TOKENS = np.arange(12).reshape(2, 6) % 13


@pytest.fixture
def base(rng):
    return MLP(6, 24, rng, dtype=np.float64)


@pytest.fixture
def adapted(base, rng):
    """Both layers with VeRA of rank 5 at random vectors."""
    model = inject(base, VeraConfig(r=5, target_modules="all-linear"), rng)
    for layer in adapters(model).values():
        for p in (layer.d, layer.c):
            p.value[...] = rng.standard_normal(p.shape)
    return model


def arguments(rng, n, d_in=5, d_out=4, r=3):
    """x, W0, A, B, d, c, b."""
    shapes = [(2, n, d_in), (d_out, d_in), (r, d_in), (d_out, r), (r,), (d_out,), (d_out,)]
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("r", [1, 3, 30])
@pytest.mark.parametrize("method", ["central", "complex"])
def test_gradients_agree_for_few_and_many_samples_and_every_rank(rng, n, r, method):
    inputs = arguments(rng, n, r=r)
    report = check_gradients(vera_forward, vera_backward, inputs, method=method)
    assert report.max_error < (1e-7 if method == "central" else 1e-12)
    assert (vera_forward(*inputs)[1].W is None) == (n == 1)
    np.testing.assert_allclose(
        vera_forward(*inputs)[0], inputs[0] @ vera_weight(*inputs[1:6]).T + inputs[6], atol=1e-12
    )


def test_a_derivation_that_forgets_d_in_the_gradient_of_c_is_caught(rng):
    def wrong(dy, cache, need=None):
        dx, dW0, dA, dB, dd, _, db = vera_backward(dy, cache, need)
        x, (_, A, B, _, _), *_ = cache
        G = dy.reshape(-1, 4).T @ x.reshape(-1, 5) @ A.T
        return dx, dW0, dA, dB, dd, (G * B).sum(axis=1), db

    assert not check_gradients(vera_forward, wrong, arguments(rng, 3)).ok


# ------------------------------------------------------------------------- one A and B for all


def test_every_layer_holds_the_same_A_and_B_as_wide_as_the_widest(adapted):
    up, down = adapted.up_proj, adapted.down_proj
    assert up.A is down.A and up.B is down.B
    assert (up.A.shape, up.B.shape) == ((5, 24), (24, 5))
    assert np.shares_memory(up.values()[1], up.A.value)  # a slice, not a copy
    assert np.shares_memory(down.values()[2], down.B.value)


def test_copies_and_the_account_do_not_multiply_A_and_B(base, adapted):
    twin = copy_model(adapted)
    assert twin.up_proj.A is twin.down_proj.A is not adapted.up_proj.A
    found, vectors = account(adapted), 5 + 24 + 5 + 6
    assert (found.trainable, found.adapter) == (vectors, vectors + 5 * 24 + 24 * 5)
    assert found.base == account(base).base
    assert found.weight_bytes == 8 * (found.base + found.adapter)
    thin = 2 * 5 * (6 + 24)  # A and B, in each of two layers
    assert found.flops.forward == account(base).flops.forward + 2 * thin
    assert found.flops.backward == 3 * thin + 2 * 24 * 6  # dx is needed in the second layer alone


def test_A_and_B_stay_as_drawn_and_gradients_are_those_of_the_vectors(adapted):
    names = {name for name, p in adapted.parameters().items() if p.trainable}
    assert names == {f"{layer}_proj.{p}" for layer in ("up", "down") for p in "dc"}


def test_the_start_is_the_papers(base, rng):
    model = inject(base, VeraConfig(r=400, d_initial=0.25, target_modules=("up_proj",)), rng)
    layer = model.up_proj
    np.testing.assert_array_equal(layer.d.value, 0.25)
    np.testing.assert_array_equal(layer.c.value, 0.0)
    for shared, fan_in in ((layer.A, 6), (layer.B, 400)):  # kaiming-uniform: +-sqrt(6 / fan_in)
        assert np.abs(shared.value).max() == pytest.approx((6.0 / fan_in) ** 0.5, rel=1e-2)
        assert shared.value.std() == pytest.approx((2.0 / fan_in) ** 0.5, rel=5e-2)


# --------------------------------------------------------------------------------------- files


def test_a_file_holds_A_and_B_once_by_pefts_names(tmp_path, base, adapted):
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    with TensorFile(tmp_path / "one" / "adapter_model.safetensors") as file:
        shapes = {name: file.shape(name) for name in file.names}
    assert shapes == {
        "base_model.vera_A": (5, 24),
        "base_model.vera_B": (24, 5),
        "base_model.model.up_proj.vera_lambda_d": (5,),
        "base_model.model.up_proj.vera_lambda_b": (24,),
        "base_model.model.down_proj.vera_lambda_d": (5,),
        "base_model.model.down_proj.vera_lambda_b": (6,),
    }
    again, x = load_adapter(base, tmp_path / "one"), np.ones((1, 6))
    assert again.up_proj.A is again.down_proj.A
    np.testing.assert_array_equal(again.forward(x)[0], adapted.forward(x)[0])


def test_on_a_stacked_matrix_our_own_form_holds_A_and_B_once_too(tmp_path, rng):
    base = GPT(CONFIG, rng, np.float64)
    adapted = inject(base, VeraConfig(r=4), rng)
    for p in tensors_of(adapted).values():
        p.value[...] = rng.standard_normal(p.shape)
    with pytest.raises(NoPeftForm, match=r"adapts 'transformer\.h\.0\.attn\.c_attn' as a whole"):
        save_adapter(adapted, tmp_path / "peft", peft_only=True)
    save_adapter(adapted, tmp_path / "ours")
    with TensorFile(tmp_path / "ours" / "adapter_model.safetensors") as file:
        assert sum(name.endswith(("vera_A", "vera_B")) for name in file.names) == 2
    again = load_adapter(base, tmp_path / "ours")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    np.testing.assert_allclose(merge(again).forward(TOKENS)[0], again.forward(TOKENS)[0], atol=1e-9)


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_file_without_A_and_B_says_that_torch_draws_them(tmp_path, base, adapted):
    save_adapter(adapted, tmp_path / "one")
    edit(tmp_path / "one", projection_prng_key=7)  # of no effect: the draw is in the file
    load_adapter(base, tmp_path / "one")
    edit(tmp_path / "one", save_projection=False)
    with pytest.raises(CheckpointError, match=r"torch draws A and B, which the file lacks: save"):
        load_adapter(base, tmp_path / "one")
    edit(tmp_path / "one", save_projection=True, vera_dropout=0.5)
    with pytest.raises(CheckpointError, match=r"vera_dropout = 0\.5, which lora_np does not"):
        load_adapter(base, tmp_path / "one")


def test_a_file_for_a_wider_model_is_refused_by_the_name_of_A(tmp_path, adapted, rng):
    save_adapter(adapted, tmp_path / "one")
    with pytest.raises(CheckpointError, match=r"'base_model\.vera_A' has shape \(5, 24\)"):
        load_adapter(MLP(6, 12, rng), tmp_path / "one")


@pytest.mark.parametrize("r", [0, -1, 2.5])
def test_a_rank_that_means_nothing_is_refused(r):
    with pytest.raises(ValueError, match=f"r = {r}, expected a whole number"):
        VeraConfig(r=r)


def test_of_rank_keeps_the_start():
    assert VeraConfig(r=3, d_initial=0.5).of_rank(9) == VeraConfig(r=9, d_initial=0.5)
