"""HiRA: its pair, the rank of its change, and what its configuration refuses."""

import numpy as np
import pytest

from lora_np import Linear, check_gradients, inject
from lora_np.methods import HiraConfig, make_method
from lora_np.methods.hira import hira_weight_backward, hira_weight_forward
from tests.methods.pairs import assert_exact


def inputs(rng, d_out=5, d_in=4, r=2):
    n = rng.standard_normal
    return {"W0": n((d_out, d_in)), "A": n((r, d_in)), "B": n((d_out, r))}


def test_the_pair_is_right_at_random_factors(rng):
    assert_exact(hira_weight_forward, hira_weight_backward, inputs(rng))


def test_a_planted_wrong_derivation_is_caught(rng):
    def backward(dW, cache, need=None):  # dP = dW: the weight is forgotten
        return hira_weight_backward(dW, cache._replace(W0=np.ones_like(cache.W0)), need)

    report = check_gradients(hira_weight_forward, backward, inputs(rng))
    assert {row.name for row in report.rows if row.error > report.tolerance} == {"A", "B"}


def test_the_change_has_full_rank_and_zeros_stay(rng):
    made = inputs(rng, 6, 6, r=1)
    made["W0"][2, 3] = 0.0
    W, _ = hira_weight_forward(**made)
    assert np.linalg.matrix_rank(W - made["W0"]) == 6
    assert W[2, 3] == 0.0


def test_it_starts_at_the_base(rng):
    base = Linear(6, 4, rng)
    layer = inject(base, HiraConfig(r=3, target_modules="all-linear"), rng)
    np.testing.assert_array_equal(layer.merged().W.value, base.W.value)
    assert layer.hira_A.value.any() and not layer.hira_B.value.any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "rank 32 for the layer is above the limit 4 of its 4 x 6 weight"),
        ({"r": 0}, "r = 0, expected a whole number from 1 on"),
        ({"alpha": 3}, "method 'hira' has no option 'alpha'"),
    ],
)
def test_what_means_nothing_is_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(Linear(6, 4, rng), make_method("hira", target_modules="all-linear", **options), rng)
