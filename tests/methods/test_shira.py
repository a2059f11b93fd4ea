"""SHiRA: its pair, its places, files of places, and what its configuration refuses."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_np import GPT, GPTConfig, Linear, check_gradients, inject, load_adapter, save_adapter
from lora_np.files import CheckpointError
from lora_np.layers import MLP, copy_model
from lora_np.methods import ShiraConfig, adapters, make_method
from lora_np.methods.shira import shira_weight_backward, shira_weight_forward
from tests.methods.pairs import assert_exact

PLACES = np.array([[0, 0, 3, 4], [1, 2, 0, 3]])
INDICES = "base_model.model.up_proj.shira_indices"


def inputs(rng):
    return {"W0": rng.standard_normal((5, 4)), "w": rng.standard_normal(4)}


def test_the_pair_is_right_at_random_numbers(rng):
    assert_exact(shira_weight_forward, shira_weight_backward, inputs(rng), places=PLACES)


def test_a_planted_wrong_derivation_is_caught(rng):
    def backward(dW, cache, need=None):  # rows and columns are mixed up
        return shira_weight_backward(dW, cache._replace(places=cache.places[::-1] % 4), need)

    report = check_gradients(shira_weight_forward, backward, inputs(rng), places=PLACES)
    assert {row.name for row in report.rows if row.error > report.tolerance} == {"w"}


def test_the_places_are_as_many_as_loras_numbers_and_all_different(rng):
    base = Linear(6, 8, rng)
    layer = inject(base, ShiraConfig(r=3, target_modules="all-linear"), rng)
    np.testing.assert_array_equal(layer.merged().W.value, base.W.value)
    places = layer.options["places"]
    assert places.shape == (2, 3 * 14) and len(set(zip(*places.tolist()))) == 42
    layer.shira_weight.value = np.ones(42, np.float32)
    assert np.count_nonzero(layer.delta()) == 42


def test_a_seed_draws_the_same_places_again(rng):
    base = Linear(6, 8, rng)
    config = ShiraConfig(r=1, random_seed=5, target_modules="all-linear")
    one, two = (inject(base, config, np.random.default_rng(i)).options["places"] for i in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_places_that_a_copy_takes_from_a_file_stay_its_own(rng):
    layer = inject(Linear(6, 8, rng), ShiraConfig(r=1, target_modules="all-linear"), rng)
    before = layer.options["places"].copy()
    copy_model(layer).tensors()["shira_indices"].value = before[:, ::-1]
    np.testing.assert_array_equal(layer.options["places"], before)


def written(rng, folder):
    base = MLP(6, 24, rng)
    adapted = inject(base, ShiraConfig(r=1, target_modules=["up_proj"]), rng)
    adapters(adapted)["up_proj"].shira_weight.value = rng.standard_normal(30).astype(np.float32)
    save_adapter(adapted, folder, dtype=np.float16)
    return base, adapted, folder / "adapter_model.safetensors"


def test_places_are_written_as_integers_and_read_as_floats_too(rng, tmp_path):
    """PEFT writes floats on Windows."""
    base, adapted, file = written(rng, tmp_path)
    tensors = load_file(file)
    assert tensors[INDICES].dtype == np.int32
    save_file({**tensors, INDICES: tensors[INDICES].astype(np.float32)}, file)
    found = adapters(load_adapter(base, tmp_path))["up_proj"].options["places"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, adapters(adapted)["up_proj"].options["places"])


@pytest.mark.parametrize("place", [(24, 0), (0, 6), (-1, 0), "twice"])
def test_places_that_are_none_are_refused(rng, tmp_path, place):
    base, _, file = written(rng, tmp_path)
    tensors = load_file(file)
    tensors[INDICES][:, 0] = tensors[INDICES][:, 1] if place == "twice" else place
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"different places of a weight \(24, 6\)"):
        load_adapter(base, tmp_path)


def test_floats_that_became_integers_are_refused(rng, tmp_path):
    base, _, file = written(rng, tmp_path)
    save_file({name: x.astype(np.int32) for name, x in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match="shira_weight' holds int32 in the file, expected"):
        load_adapter(base, tmp_path)


def test_our_own_form_keeps_the_places(rng, tmp_path):
    """GPT-2's files stack q, k and v, of which PEFT cannot adapt one alone."""
    base = GPT(GPTConfig(9, 4, 1, 2, 8), rng)
    adapted = inject(base, ShiraConfig(r=1, target_modules=["q_proj"]), rng)
    layer = adapters(adapted)["h.0.attn.q_proj"]
    layer.shira_weight.value = rng.standard_normal(16).astype(np.float32)
    save_adapter(adapted, tmp_path)
    again = load_adapter(base, tmp_path)
    tokens = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(again.forward(tokens)[0], adapted.forward(tokens)[0])
    twin = copy_model(again, dtype=np.float64)
    assert np.abs(twin.forward(tokens)[0] - adapted.forward(tokens)[0]).max() < 1e-5


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "r = 32 is 320 places, but the layer has 24 entries: r is at most 2 here"),
        ({"r": 0}, "r = 0, expected a whole number from 1 on"),
        ({"mask_type": "magnitude"}, "method 'shira' has no option 'mask_type'"),
    ],
)
def test_what_means_nothing_is_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(Linear(6, 4, rng), make_method("shira", target_modules="all-linear", **options), rng)
