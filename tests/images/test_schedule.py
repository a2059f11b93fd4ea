"""The schedule: a rotation, a grid from the noisiest time to 0, and no float64 by accident."""

import math

import numpy as np
import pytest

from lora_np.images.schedule import (
    STEPS_MAX,
    T_MAX,
    alpha_sigma,
    eps_of,
    grid,
    half_log_snr,
    v_of,
    x0_of,
    z_of,
)

TIMES = (0.0, 1e-9, 0.1, 0.5, T_MAX, 1.0)


def same(a, b):
    return a.shape == b.shape and np.abs(a - b).max() < 1e-12


@pytest.mark.parametrize("t", [*TIMES, np.resize(TIMES, 7)], ids=lambda t: str(t)[:5])
def test_picture_and_noise_come_back_from_z_and_v(t, rng):
    x0, eps = rng.standard_normal((2, 7, 3))
    z, v = z_of(x0, eps, t), v_of(x0, eps, t)
    assert same(x0_of(z, v, t), x0) and same(eps_of(z, v, t), eps)
    assert same(z**2 + v**2, x0**2 + eps**2)  # a rotation


def test_v_is_the_velocity_of_z(rng):
    x0, eps = rng.standard_normal((2, 7, 3))
    t, h = 0.3, 1e-5
    moved = (z_of(x0, eps, t + h) - z_of(x0, eps, t - h)) / (2 * h)
    np.testing.assert_allclose(moved, math.pi / 2 * v_of(x0, eps, t), atol=1e-8)


def test_the_ends_are_the_picture_and_the_noise(rng):
    x0, eps = rng.standard_normal((2, 7, 3))
    assert np.array_equal(z_of(x0, eps, 0.0), x0)
    assert same(z_of(x0, eps, 1.0), eps)
    assert np.array_equal(x0_of(x0, eps, 0.0), x0)  # whatever v is: a consistency model's boundary


def test_a_time_for_each_row_is_that_time_for_the_row(rng):
    z, v = rng.standard_normal((2, 6, 3))
    t = np.array(TIMES)
    for f in (z_of, v_of, x0_of, eps_of):
        alone = [f(z[i : i + 1], v[i : i + 1], float(t[i])) for i in range(6)]
        assert same(f(z, v, t), np.concatenate(alone))


def test_float32_stays_float32(rng):
    z, v = rng.standard_normal((2, 6, 3), np.float32)
    for t in (0.3, 1.0, np.array(TIMES, np.float32)):
        assert {f(z, v, t).dtype.name for f in (z_of, v_of, x0_of, eps_of)} == {"float32"}
    assert all(type(weight) is float for t in (0.3, 0, 1) for weight in alpha_sigma(t))
    assert grid(7).dtype == np.float32


def test_half_the_log_of_the_signal_to_noise_ratio_falls_from_infinity():
    values = [half_log_snr(t) for t in (0.0, 0.1, 0.5, 0.9, T_MAX)]
    assert values[0] == math.inf and values == sorted(values, reverse=True)
    alpha, sigma = alpha_sigma(0.1)
    assert math.isclose(math.exp(2 * values[1]), alpha**2 / sigma**2)


@pytest.mark.parametrize("steps", [1, 2, 7, np.int64(50), STEPS_MAX])
def test_the_grid_falls_from_the_noisiest_time_to_exactly_zero(steps):
    times = grid(steps)
    assert times.shape == (steps + 1,)
    assert times[0] == np.float32(T_MAX) and times[-1] == 0.0
    np.testing.assert_allclose(np.diff(times), -T_MAX / steps, rtol=1e-3)
    assert alpha_sigma(float(times[0]))[0] > 0.005  # the picture is never quite gone


@pytest.mark.parametrize("steps", [0, -1, STEPS_MAX + 1, 2.0, "4", None])
def test_a_count_of_steps_that_makes_no_grid_is_refused(steps):
    with pytest.raises(ValueError, match=r"^steps is .*: give a whole number from 1 to 1000$"):
        grid(steps)
