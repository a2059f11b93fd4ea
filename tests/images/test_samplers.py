"""Samplers against data for which the best denoiser and the ODE's paths are known exactly."""

import inspect
import sys

import numpy as np
import pytest

from lora_np.images import mlp_denoiser, samplers
from lora_np.images.samplers import (
    NONE,
    SAMPLERS,
    consistency,
    ddim,
    ddpm,
    dpm_solver,
    guided,
)
from lora_np.images.schedule import T_MAX, alpha_sigma, grid, x0_of
from lora_np.layers import Layer
from lora_np.parameters import Parameter
from tests import fake_cupy
from tests.images.exact import Gaussian, GaussianFlow, Mixture

M, S = (0.5, -1.0), (0.3, 0.8)  # of the Gaussian data
START = float(np.float32(T_MAX))
each = pytest.mark.parametrize("name", SAMPLERS)


def no_words(n):
    return np.tile(np.array([NONE]), (n, 1))


def sample(f, denoiser, n=300, steps=4, seed=0, words=None, **more):
    words = no_words(n) if words is None else words
    return f(denoiser, words, steps=steps, rng=np.random.default_rng(seed), **more)


def noise(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k), np.float32).astype(float)


def distance(a, b):
    return float(np.sqrt(((a - b) ** 2).mean()))


# --- the ODE ------------------------------------------------------------------------------------


def errors_between(f, denoiser, counts, monkeypatch, t=0.9, s=0.1):
    """Return the distance from the exact path at time s, for each count of steps from t."""
    monkeypatch.setattr(samplers, "grid", lambda steps: np.linspace(t, s, steps + 1))
    m, (a, _), (b, _) = denoiser.m.value, alpha_sigma(t), alpha_sigma(s)
    ratio = np.sqrt(denoiser.variance(s) / denoiser.variance(t))
    exact = b * m + ratio * (noise(300, 2) - a * m)
    return np.array([distance(sample(f, denoiser, steps=n), exact) for n in counts])


@pytest.mark.parametrize("f, order", [(ddim, 1), (dpm_solver, 2)])
def test_half_the_step_divides_the_error_by_two_to_the_order(f, order, monkeypatch):
    errors = errors_between(f, Gaussian(M, S), (64, 128, 256), monkeypatch)
    found = np.log2(errors[:-1] / errors[1:])
    print(f.__name__, errors, found)
    np.testing.assert_allclose(found, order, atol=0.03)


@pytest.mark.parametrize("f, order", [(ddim, 1.0), (dpm_solver, 1.6)])
@pytest.mark.parametrize("data", ["Gaussian", "mixture"])
def test_the_whole_grid_leads_to_the_end_of_the_exact_path(f, order, data):
    if data == "Gaussian":
        denoiser = Gaussian(M, S)
        exact = denoiser.flow(noise(300, 2), START, no_words(300))
    else:
        denoiser = Mixture((-1.0, 0.6), (0.3, 0.7), 0.25)
        exact = denoiser.flow(noise(300, 1), START)
    coarse, fine = (distance(sample(f, denoiser, steps=n), exact) for n in (250, 1000))
    print(f.__name__, data, coarse, fine)
    assert fine < 1e-3 and coarse / fine > 4**order * 0.95  # the first step is long in lambda


@pytest.mark.parametrize("steps", [4, 8, 16, 32])
def test_dpm_solver_is_nearer_to_the_path_than_ddim(steps):
    denoiser = Mixture((-1.0, 0.6), (0.3, 0.7), 0.25)
    exact = denoiser.flow(noise(300, 1), START)
    solver, plain = (distance(sample(f, denoiser, steps=steps), exact) for f in (dpm_solver, ddim))
    assert solver < 0.85 * plain


def test_with_one_step_all_samplers_are_the_predicted_picture():
    denoiser = Gaussian(M, S)
    z, t = noise(300, 2), np.full(300, START)
    x0 = x0_of(z, guided(denoiser, z, t, no_words(300)), t)
    for f in SAMPLERS.values():
        np.testing.assert_allclose(sample(f, denoiser, steps=1), x0, atol=1e-12)


def test_the_first_and_the_last_step_of_dpm_solver_are_ddims():
    two, three = ([sample(f, Gaussian(M, S), steps=n) for f in (ddim, dpm_solver)] for n in (2, 3))
    np.testing.assert_allclose(*two, atol=1e-12)
    assert distance(*three) > 1e-3  # the step between them is not


# --- the samplers with fresh noise --------------------------------------------------------------


def expect_moments(z, mean, variance):
    """The sample's mean and variance are within four standard errors, in every coordinate."""
    n = len(z)
    assert np.abs((z.mean(axis=0) - mean) / np.sqrt(variance / n)).max() < 4
    assert np.abs((z.var(axis=0) / variance - 1) / np.sqrt(2 / n)).max() < 4


def test_many_steps_of_ddpm_draw_from_the_data():
    z = sample(ddpm, Gaussian(M, S), n=10_000, steps=400)
    expect_moments(z, np.array(M), np.array(S) ** 2)


@pytest.mark.parametrize("steps", [1, 3])
def test_ddpm_stays_on_the_distributions_of_a_single_picture(steps, monkeypatch):
    monkeypatch.setattr(samplers, "grid", lambda n: np.linspace(1.0, 0.3, n + 1))
    denoiser, (alpha, sigma) = Gaussian(M, (0.0, 0.0)), alpha_sigma(0.3)  # x0 is always M
    z = sample(ddpm, denoiser, n=20_000, steps=steps)
    expect_moments(z, alpha * np.array(M), np.full(2, sigma**2))


def test_a_step_of_ddpm_keeps_the_noise_that_two_times_have_in_common(monkeypatch):
    t, s, n = 0.6, 0.4, 40_000
    monkeypatch.setattr(samplers, "grid", lambda steps: np.array([t, s]))
    z = sample(ddpm, Gaussian((0.0,), (0.0,)), n=n, steps=1)  # x0 is always 0
    (alpha, sigma), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    # z_t = (alpha / alpha') z_s + more noise, so Cov(z_s, z_t) = (alpha / alpha') sigma'^2
    slope = alpha / alpha_s * sigma_s**2 / sigma**2
    assert abs((z * noise(n, 1)).mean() - slope) < 4 / np.sqrt(n)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_consistency_function_draws_from_the_data(steps):
    z = sample(consistency, GaussianFlow(M, S), n=20_000, steps=steps)
    expect_moments(z, np.array(M), np.array(S) ** 2)


def test_one_step_of_the_consistency_function_is_the_whole_path():
    flow = GaussianFlow(M, S)
    z = sample(consistency, flow, steps=1)
    np.testing.assert_allclose(z, flow.flow(noise(300, 2), START, no_words(300)), atol=1e-12)


def test_a_denoiser_that_is_not_distilled_blurs_in_one_step():
    z = sample(consistency, Gaussian(M, S), n=20_000, steps=1)
    assert z.std(axis=0).max() < 0.01 < min(S)


# --- guidance -----------------------------------------------------------------------------------

WORDS = np.array([[3, 1], [0, 0], [26, 2], [5, 3]])


@pytest.mark.parametrize("guidance, rows", [(1.0, 4), (1, 4), (0.0, 4), (0, 4), (1.5, 8), (-1, 8)])
def test_guidance_of_zero_or_one_costs_one_evaluation(guidance, rows):
    denoiser = Gaussian(M, S)
    sample(ddim, denoiser, steps=3, words=WORDS, guidance=guidance)
    assert denoiser.rows == [rows] * 3


@each
def test_guidance_zero_ignores_the_words(name):
    f, denoiser = SAMPLERS[name], Gaussian(M, S)
    ignored = sample(f, denoiser, words=WORDS, guidance=0.0)
    assert np.array_equal(ignored, sample(f, denoiser, n=4))
    assert distance(ignored, sample(f, denoiser, words=WORDS)) > 0.1


def test_guidance_goes_from_no_words_through_the_words_and_beyond(rng):
    denoiser, z, t = Gaussian(M, S), rng.standard_normal((4, 2)), np.full(4, 0.7)
    at = {w: guided(denoiser, z, t, WORDS, w) for w in (0, 0.5, 1, 3)}
    np.testing.assert_allclose(at[0.5], (at[0] + at[1]) / 2, atol=1e-12)
    np.testing.assert_allclose(at[3], at[0] + 3 * (at[1] - at[0]), atol=1e-12)
    assert distance(at[0], at[1]) > 0.1


def test_every_row_may_have_its_own_guidance_and_time(rng):
    denoiser, z, t = Gaussian(M, S), rng.standard_normal((4, 2)), np.array([0.0, 0.2, 0.7, 0.9])
    guidance = np.array([[0.0], [1.0], [1.5], [3.0]])
    together = guided(denoiser, z, t, WORDS, guidance)
    for i in range(4):
        here = slice(i, i + 1)
        alone = guided(denoiser, z[here], t[here], WORDS[here], guidance[i].item())
        np.testing.assert_allclose(together[here], alone, atol=1e-12)


# --- one contract -------------------------------------------------------------------------------


def test_the_samplers_have_one_signature():
    assert len({str(inspect.signature(f)) for f in SAMPLERS.values()}) == 1
    assert list(SAMPLERS) == ["ddpm", "ddim", "dpm_solver", "consistency"]


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_dtype_of_the_denoiser_is_that_of_everything(name, dtype, guidance):
    denoiser = Gaussian(M, S, dtype)
    z = sample(SAMPLERS[name], denoiser, words=WORDS, guidance=guidance)
    assert z.dtype == dtype and denoiser.dtypes == {dtype}


@each
def test_float64_draws_the_pictures_of_float32(name):
    narrow, wide = (sample(SAMPLERS[name], Gaussian(M, S, d)) for d in ("float32", "float64"))
    np.testing.assert_allclose(narrow, wide, atol=1e-4)


@each
def test_a_seed_decides_the_pictures(name):
    first, again, other = (sample(SAMPLERS[name], Gaussian(M, S), seed=s) for s in (0, 0, 1))
    assert np.array_equal(first, again) and distance(first, other) > 1e-3


class Drift(Layer):
    """v = p z + t + the letter: operations that every array module has."""

    k = 2

    def __init__(self, asarray):
        self.p = Parameter(asarray(np.array([0.5, -0.2], np.float32)))

    def forward(self, z, t, words, rng=None):
        return self.p.value * z + t[:, None] + words[:, :1].astype(np.float32), None


@each
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_on_a_device_the_samples_are_the_hosts_and_stay_there(name, guidance, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    words = fake_cupy.asarray(WORDS)
    z = sample(SAMPLERS[name], Drift(fake_cupy.asarray), words=words, guidance=guidance)
    assert type(z) is fake_cupy.ndarray
    host = sample(SAMPLERS[name], Drift(np.asarray), words=WORDS, guidance=guidance)
    assert np.array_equal(fake_cupy.asnumpy(z), host)


@each
def test_every_step_asks_the_denoiser_once_at_a_time_of_the_grid(name):
    denoiser, seen = Gaussian(M, S), []
    forward = denoiser.forward
    denoiser.forward = lambda z, t, words: seen.append(set(t.tolist())) or forward(z, t, words)
    sample(SAMPLERS[name], denoiser, steps=5)
    assert seen == [{t} for t in grid(5).tolist()[:-1]]


@each
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, r"steps is 0: give a whole number from 1 to 1000"),
        ({"words": [[27, 0]]}, r"letter 27 is out of range: give 0 to 26 \(26: none\)"),
        ({"words": [[0, 1], [0, -1]]}, r"family -1 is out of range: give 0 to 3 \(3: none\)"),
        ({"words": np.zeros((0, 2), int)}, r"words is empty: give a row for each picture"),
        ({"words": [[0.0, 1.0]]}, r"words has dtype float64: give whole numbers"),
        ({"words": [1, 2]}, r"words has shape \(2,\), expected \(n, 2\)"),
        ({"guidance": np.nan}, r"guidance is nan: give a finite number"),
    ],
    ids=["steps", "letter", "family", "empty", "floats", "shape", "guidance"],
)
def test_arguments_that_make_no_picture_are_refused(name, wrong, message):
    wrong = {key: np.array(v) if key == "words" else v for key, v in wrong.items()}
    with pytest.raises(ValueError, match=f"^{message}"):
        sample(SAMPLERS[name], Gaussian(M, S), **wrong)


@each
def test_a_guidance_of_numpy_changes_no_dtype(name):
    denoiser = mlp_denoiser(np.random.default_rng(0), k=2, d=4, d_hidden=4, n_block=1)
    draw, rng = SAMPLERS[name], np.random.default_rng(0)
    z = draw(denoiser, no_words(2), steps=2, rng=rng, guidance=np.float64(1.5))
    assert z.dtype == np.float32
