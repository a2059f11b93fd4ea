"""MiSS: its pair, what it adds to a weight, and what its configuration refuses."""

import json

import numpy as np
import pytest

from lora_np import Linear, check_gradients, inject, load_adapter, save_adapter
from lora_np.backend import ShapeError
from lora_np.layers import MLP
from lora_np.methods import MissConfig, make_method
from lora_np.methods.miss import miss_backward, miss_forward
from tests.methods.pairs import assert_exact

SHAPES = pytest.mark.parametrize("r, m", [(2, 6), (3, 6), (5, 6), (2, 3), (3, 1)])


def inputs(rng, r=2, m=6, n=3):
    draw = rng.standard_normal
    return {"x": draw((2, n, 5)), "W0": draw((6, 5)), "M": draw((r, m)), "b": draw(6)}


@SHAPES
@pytest.mark.parametrize("n", [1, 20])  # few samples and many: LoRA's pair has two forms
def test_the_pair_is_right_at_random_parameters(rng, r, m, n):
    assert_exact(miss_forward, miss_backward, inputs(rng, r, m, n))


def test_a_planted_wrong_derivation_is_caught(rng):
    def backward(dy, cache, need=None):  # the repetitions are not summed, the first is taken
        dx, dW0, dM, db = miss_backward(dy, cache._replace(shape=(2, 6)), need)
        return dx, dW0, dM[:, :3], db

    report = check_gradients(miss_forward, backward, inputs(rng, m=3))
    assert {row.name for row in report.rows if row.error > report.tolerance} == {"M"}


@SHAPES
def test_every_part_of_the_weight_is_changed_alike(rng, r, m):
    made = inputs(rng, r, m)
    W = np.array(made["W0"])
    for column in range(5):
        W[:, column] += np.resize(made["M"][column % r], 6)
    y, _ = miss_forward(**made)
    np.testing.assert_allclose(y, made["x"] @ W.T + made["b"], rtol=1e-12)


def test_it_starts_at_the_base(rng):
    base = Linear(6, 4, rng)
    layer = inject(base, MissConfig(r=4, target_modules="all-linear"), rng)
    np.testing.assert_array_equal(layer.merged().W.value, base.W.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "r = 64 is above the 6 inputs of up_proj"),
        ({"r": 0}, "r = 0, expected a whole number from 1 on"),
        ({"r": 2, "init_weights": "bat"}, "'bat', expected True or 'mini'"),
        (
            {"r": 2, "init_weights": "mini", "mini_r": 5},
            "mini_r = 5 does not divide the 24 outputs",
        ),
        ({"r": 2, "mini": 5}, "has no option 'mini': did you mean mini_r"),
    ],
)
def test_what_means_nothing_is_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(MLP(6, 24, rng), make_method("miss", target_modules=["up_proj"], **options), rng)


def test_columns_that_do_not_divide_the_outputs_are_named(rng):
    with pytest.raises(ShapeError, match="M has 4 columns, which do not divide the 6 outputs"):
        miss_forward(**inputs(rng, m=4))


def test_a_file_of_another_start_is_read(rng, tmp_path):
    base = MLP(6, 24, rng)
    save_adapter(inject(base, MissConfig(r=2, target_modules=["up_proj"]), rng), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_weights": False}))
    assert load_adapter(base, tmp_path).method.init_weights is True
