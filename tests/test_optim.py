"""Optimizers against loops over single numbers, schedules at named steps, clipping."""

import math

import numpy as np
import pytest

from lora_np.optim import (
    OPTIMIZERS,
    SGD,
    Adam,
    AdamW,
    clip_by_global_norm,
    global_norm,
    schedule,
)
from lora_np.parameters import Parameter, pack
from tests import naive

TIGHT = 1e-13  # float64: the same formula in another order
STEPS = 7


def make_packed(rng, dtype=np.float64):
    """A matrix, a bias, a frozen matrix, and another matrix."""

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    return pack(
        {
            "W": Parameter(draw(3, 4)),
            "b": Parameter(draw(3)),
            "frozen": Parameter(draw(2, 2), trainable=False),
            "A": Parameter(draw(1, 5)),
        }
    )


def run(optimizer, packed, gradients, lr):
    for gradient in gradients:
        optimizer.step(gradient, lr)
    return packed.vector


def draw_gradients(rng, packed):
    return [rng.standard_normal(packed.vector.shape) for _ in range(STEPS)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_follows_the_loop_over_numbers(rng, momentum):
    packed = make_packed(rng)
    gradients, w = draw_gradients(rng, packed), packed.vector.tolist()
    u = [0.0] * len(w)
    for gradient in gradients:
        for i, g in enumerate(gradient.tolist()):
            u[i] = momentum * u[i] + g
            w[i] -= 0.05 * u[i]
    found = run(SGD(packed, momentum=momentum), packed, gradients, 0.05)
    np.testing.assert_allclose(found, w, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 1e-2}], ids=str)
def test_adam_follows_the_loop_over_numbers(rng, options):
    packed = make_packed(rng)
    gradients = draw_gradients(rng, packed)
    expected = naive.adam(packed.vector, gradients, 0.05, **options)
    found = run(Adam(packed, **options), packed, gradients, 0.05)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TIGHT)


def test_adamw_follows_the_loop_and_decays_matrices_only(rng):
    packed = make_packed(rng)
    gradients = draw_gradients(rng, packed)
    decay = [0.1] * 12 + [0.0] * 3 + [0.1] * 5  # W, b, A
    expected = naive.adam(packed.vector, gradients, 0.05, decay=decay)
    found = run(AdamW(packed, weight_decay=0.1), packed, gradients, 0.05)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TIGHT)


def test_weight_decay_is_decoupled_from_the_gradient(rng):
    packed = make_packed(rng)
    before = packed.vector.copy()
    AdamW(packed, weight_decay=0.1).step(np.zeros_like(before), 0.5)
    expected = before * ([0.95] * 12 + [1.0] * 3 + [0.95] * 5)
    np.testing.assert_allclose(packed.vector, expected, rtol=0, atol=TIGHT)


def test_adamw_without_decay_is_adam(rng):
    one, two = (make_packed(np.random.default_rng(0)) for _ in range(2))
    gradients = draw_gradients(rng, one)
    found = run(AdamW(one, weight_decay=0.0), one, gradients, 0.1)
    np.testing.assert_array_equal(found, run(Adam(two), two, gradients, 0.1))


def test_first_adam_step_has_the_length_of_the_learning_rate(rng):
    packed = make_packed(rng)
    before = packed.vector.copy()
    gradient = draw_gradients(rng, packed)[0] * 1e6
    Adam(packed).step(gradient, 0.01)
    np.testing.assert_allclose(packed.vector - before, -0.01 * np.sign(gradient), rtol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_stays_float32_in_place(rng, name):
    packed = make_packed(rng, np.float32)
    vector, W = packed.vector, packed.parameters["W"]
    before, gradients = W.value.copy(), draw_gradients(rng, packed)
    optimizer = OPTIMIZERS[name](packed)
    run(optimizer, packed, [g.astype(np.float32) for g in gradients], 0.05)
    assert packed.vector is vector and vector.dtype == np.float32
    states = [s for s in vars(optimizer).values() if isinstance(s, np.ndarray)]
    assert all(s.dtype == np.float32 for s in states)
    assert np.shares_memory(W.value, vector) and not np.array_equal(W.value, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_is_not_written_to(rng, name):
    packed = make_packed(rng)
    gradient = draw_gradients(rng, packed)[0]
    before = gradient.copy()
    run(OPTIMIZERS[name](packed), packed, [gradient] * 3, 0.05)
    np.testing.assert_array_equal(gradient, before)


# ------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    "name, options, values",
    [
        ("constant", {}, {0: 1.0, 5: 1.0, 10: 1.0}),
        ("linear", {}, {0: 1.0, 5: 0.5, 10: 0.0}),
        ("cosine", {}, {0: 1.0, 5: 0.5, 10: 0.0, 2: (1 + math.cos(0.2 * math.pi)) / 2}),
        ("constant", {"warmup": 4}, {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 10: 1.0}),
        ("linear", {"warmup": 2}, {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 10: 0.0}),
        ("cosine", {"warmup": 2}, {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 10: 0.0}),
        ("linear", {"floor": 0.2}, {0: 1.0, 5: 0.6, 10: 0.2}),
        ("cosine", {"floor": 0.2, "warmup": 2}, {2: 1.0, 6: 0.6, 10: 0.2}),
        ("cosine", {"warmup": 10}, {0: 0.1, 9: 1.0}),
        ("linear", {"warmup": 9}, {8: 1.0, 9: 1.0}),
    ],
    ids=str,
)
def test_schedule_has_these_values_over_ten_steps(name, options, values):
    factor = schedule(name, 10, **options)
    found = {step: factor(step) for step in values}
    assert found == pytest.approx(values, abs=1e-15)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedule_of_one_step_is_one(name):
    assert schedule(name, 1)(0) == 1.0


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedule_rises_then_falls_and_stays_in_range(name):
    factor = schedule(name, 50, warmup=10, floor=0.1)
    values = [factor(step) for step in range(50)]
    assert values[:10] == sorted(set(values[:10]))
    assert values[10:] == sorted(set(values[10:]), reverse=True)
    assert max(values) == 1.0 and min(values) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("cosin", {}, "schedule 'cosin' is unknown: choose constant, linear or cosine"),
        ("linear", {"warmup": 12}, "warmup = 12, expected 0 to steps = 11"),
        ("linear", {"warmup": -1}, "warmup = -1"),
    ],
)
def test_schedule_refuses_what_it_does_not_know(name, options, message):
    with pytest.raises(ValueError, match=message):
        schedule(name, 11, **options)


# -------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype, rtol", [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_clipping_shortens_to_the_norm_and_keeps_the_direction(rng, size, dtype, rtol):
    direction = rng.standard_normal(1000)
    gradient = (size * direction).astype(dtype)  # 1e30 squared is no float32
    before = gradient.copy()
    expected = float(np.linalg.norm(gradient.astype(np.float64)))
    clipped, norm = clip_by_global_norm(gradient, 0.25 * expected)
    assert norm == pytest.approx(expected, rel=rtol)
    assert global_norm(clipped) == pytest.approx(0.25 * expected, rel=rtol)
    np.testing.assert_allclose(clipped, 0.25 * gradient, rtol=2 * rtol)
    np.testing.assert_array_equal(gradient, before)
    assert clipped.dtype == dtype and isinstance(norm, float)


@pytest.mark.parametrize("max_norm", [5.0, 6.0])
def test_a_short_gradient_is_left_as_it_is(max_norm):
    gradient = np.array([3.0, -4.0], np.float32)
    clipped, norm = clip_by_global_norm(gradient, max_norm)
    assert clipped is gradient and norm == 5.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_norm_of_a_gradient_that_is_not_finite_is_not_finite(bad):
    assert not math.isfinite(global_norm(np.array([1.0, bad, 2.0])))


def test_norm_of_a_zero_gradient_is_zero():
    clipped, norm = clip_by_global_norm(np.zeros(3), 1.0)
    assert norm == 0.0 and not clipped.any()
