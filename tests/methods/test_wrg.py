"""W = R G compresses the weight; LoRA factors its change. The numbers, the pair, bad input."""

import math

import numpy as np
import pytest

from lora_np import (
    Linear,
    LoRALinear,
    Parameter,
    account,
    check_gradients,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lora_np.files import load_json
from lora_np.methods import WRGConfig
from lora_np.methods.contract import METHOD_FIELD
from lora_np.methods.wrg import wrg_backward, wrg_forward
from lora_np.rank import best_rank_error
from tests.compare import close

K, R = 64, 8


def gaussian_layer(rng, d_out=K, d_in=K):
    layer = Linear(d_in, d_out, rng, dtype=np.float64)
    layer.W.value = rng.standard_normal((d_out, d_in))
    return layer


def lost(layer, factor, rng, r=R):
    """The relative error of R G."""
    adapted = inject(layer, WRGConfig(r, factor, "all-linear"), rng)
    return np.linalg.norm(adapted.delta()) / np.linalg.norm(layer.W.value)


# -------------------------------------------------------- what an article says, and what is true


def test_a_gaussian_weight_is_not_of_low_rank(rng):
    """Of 64 x 64 at r = 8 the best product loses 0.79, one with a fixed Gaussian factor 0.935."""
    layers = [gaussian_layer(rng) for _ in range(40)]
    best = [lost(layer, "svd", rng) for layer in layers]
    fixed = [lost(layer, "gaussian", rng) for layer in layers]
    assert np.mean(best) == pytest.approx(0.7886, abs=0.003)  # of 1000 draws
    assert abs(0.785 - np.mean(best)) < 1.5 * np.std(best)  # a single draw that was reported
    assert np.mean(fixed) == pytest.approx(0.935, abs=0.003)
    assert max(best) < min(fixed)


@pytest.mark.parametrize("d_out, d_in, r", [(64, 64, 8), (96, 40, 10), (30, 80, 20)])
def test_a_fixed_gaussian_factor_keeps_a_share_r_over_in(rng, d_out, d_in, r):
    found = [lost(gaussian_layer(rng, d_out, d_in), "gaussian", rng, r) for _ in range(20)]
    assert np.mean(found) == pytest.approx(math.sqrt(1 - r / d_in), rel=0.01)


def test_no_product_of_that_rank_is_nearer_than_the_truncated_svd(rng):
    layer = gaussian_layer(rng, 20, 12)
    S = np.linalg.svd(layer.W.value, compute_uv=False)
    for r in (1, 5, 12):
        expected = math.sqrt((S[r:] ** 2).sum() / (S**2).sum())
        assert lost(layer, "svd", rng, r) == pytest.approx(expected, abs=1e-12)
        assert best_rank_error(S, r) == pytest.approx(expected, abs=1e-12)


def test_lora_recovers_a_change_of_rank_4_that_a_product_cannot(rng):
    layer = gaussian_layer(rng)
    change = rng.standard_normal((K, 4)) @ rng.standard_normal((4, K))
    U, S, Vh = np.linalg.svd(change)
    A, B = Parameter(Vh[:4]), Parameter(U[:, :4] * S[:4])
    W = layer.W.value + change
    lora = LoRALinear(layer, A, B, 1.0).merged().W.value
    assert np.linalg.norm(lora - W) / np.linalg.norm(W) < 1e-15
    tuned = Linear.over(Parameter(W), layer.b)
    assert lost(tuned, "svd", rng, 4) > 0.3  # with more numbers trained and fixed than LoRA's
    assert lost(tuned, "gaussian", rng, 4) > 0.9


def test_the_fit_is_the_nearest_product_with_that_factor(rng):
    layer = inject(gaussian_layer(rng, 9, 7), WRGConfig(3, "gaussian", "all-linear"), rng)
    rest = layer.base.W.value - layer.R.value @ layer.G.value
    close(rest @ layer.G.value.T, np.zeros((9, 3)))


# ------------------------------------------------------------------------------------ the method


@pytest.mark.parametrize("method, limit", [("central", 1e-7), ("complex", 1e-12)])
def test_gradients_are_right(rng, method, limit):
    n = rng.standard_normal
    inputs = n((2, 3, 5)), n((4, 2)), n((2, 5)), n(4)
    report = check_gradients(wrg_forward, wrg_backward, inputs, method=method)
    assert report.ok and report.max_error < limit and len(report.rows) == 4


def test_a_wrong_derivation_is_caught(rng):
    """The planted mistake: G is taken as orthonormal, so that dG forgets R."""

    def wrong(dy, cache, need=None):
        dx, dR, _, db = wrg_backward(dy, cache, need)
        u = cache.outer.x.reshape(-1, 2)
        return dx, dR, u.T @ cache.inner.x.reshape(-1, 5), db

    n = rng.standard_normal
    assert not check_gradients(wrg_forward, wrong, (n((2, 3, 5)), n((4, 2)), n((2, 5)), n(4))).ok


@pytest.mark.parametrize("factor", ["svd", "gaussian"])
def test_R_alone_is_trained_and_a_merged_model_is_as_large_as_before(rng, factor):
    base = gaussian_layer(rng)
    adapted = inject(base, WRGConfig(R, factor, "all-linear"), rng)
    found = account(adapted)
    assert (found.trainable, found.adapter) == (K * R, 2 * K * R)
    assert account(merge(adapted)).total == account(base).total
    assert found.flops.forward == 4 * K * R < account(base).flops.forward


def test_a_file_holds_both_factors_in_our_own_form(rng, tmp_path):
    base = gaussian_layer(rng)
    adapted = inject(base, WRGConfig(R, "gaussian", "all-linear"), rng)
    adapted.R.value = adapted.R.value + rng.standard_normal((K, R))
    save_adapter(adapted, tmp_path)
    assert load_json(tmp_path / "adapter_config.json")[METHOD_FIELD] == "wrg"
    again = load_adapter(base, tmp_path)
    np.testing.assert_array_equal(again.G.value, adapted.G.value)
    np.testing.assert_array_equal(again.R.value, adapted.R.value)
    assert not again.G.trainable


@pytest.mark.parametrize(
    "options, message",
    [
        ({"factor": "qr"}, "factor = 'qr', expected 'svd' or 'gaussian'"),
        ({"r": 0}, "r = 0, expected a whole number from 1 on"),
        ({"r": 2.5}, "r = 2.5, expected a whole number"),
        ({"r": 65}, "rank 65 for the layer is above the limit 64 of its 64 x 64 weight"),
    ],
)
def test_what_means_nothing_is_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        inject(gaussian_layer(rng), WRGConfig(target_modules="all-linear", **options), rng)
