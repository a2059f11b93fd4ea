"""lora_np.rank.noise against Monte Carlo, direct quadrature, published constants, first principles.

And what rank a tolerated error asks for, against the truncated SVD.
"""

import math

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st

from lora_np.backend import ShapeError
from lora_np.rank import (
    Spectrum,
    best_rank_error,
    eckart_young_floor,
    estimate_noise,
    gavish_donoho_threshold,
    marchenko_pastur_edge,
    marchenko_pastur_median,
    smallest_rank,
    spectrum,
)
from lora_np.rank.noise import optimal_coefficient

EPS = float(np.finfo(np.float64).eps)
TOL = 1e-12  # float64 results of a few dozen operations on numbers of order 1
BETAS = (0.001, 0.05, 0.3, 0.75, 1.0)
values = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)


def noise_values(seed, out, in_):
    """Singular values of noise of standard deviation 1."""
    return np.linalg.svd(np.random.default_rng(seed).standard_normal((out, in_)), compute_uv=False)


# --- pure noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
def test_half_of_the_marchenko_pastur_density_lies_below_the_median(beta):
    a, b = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(x):
        return math.sqrt(max((b - x) * (x - a), 0.0)) / (2 * math.pi * beta * x)

    mass = scipy.integrate.quad(density, a, marchenko_pastur_median(beta), limit=500)[0]
    assert mass == pytest.approx(0.5, abs=1e-7)  # the density is steep at a: quad's own error


@pytest.mark.parametrize("out, in_", [(240, 240), (100, 400), (400, 100)])
def test_noise_has_the_predicted_edge_and_median(out, in_):
    found = [noise_values(seed, out, in_) for seed in range(4)]
    long, beta = max(out, in_), min(out, in_) / max(out, in_)
    # the largest value lies beside the edge by about long^(-1/6), the median by 1 / long
    largest = np.mean([sigma[0] for sigma in found])
    edge = marchenko_pastur_edge(1.0, (out, in_))
    assert edge - 1.5 * long ** (-1 / 6) < largest < edge + 0.5 * long ** (-1 / 6)
    median = np.mean([np.median(sigma) for sigma in found])
    assert median == pytest.approx(math.sqrt(long * marchenko_pastur_median(beta)), rel=0.01)


def test_about_one_square_noise_matrix_in_six_reaches_above_the_edge():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((600, 60, 60))
    above = np.linalg.svd(draws, compute_uv=False)[:, 0] > marchenko_pastur_edge(1.0, (60, 60))
    assert 0.10 < above.mean() < 0.25  # Tracy and Widom: 0.17 for large ones


@pytest.mark.parametrize("noise", [1e-3, 1.0, 50.0])
def test_estimate_noise_finds_the_standard_deviation_under_a_signal(noise):
    rng = np.random.default_rng(3)
    shape = (300, 200)
    signal = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 200))
    M = noise * (10 * signal + rng.standard_normal(shape))
    found = estimate_noise(spectrum(M).singular_values, shape)
    assert found == pytest.approx(noise, rel=0.04)  # 5 of 200 directions push the median a little


def test_edge_and_threshold_do_not_care_which_side_is_longer():
    assert marchenko_pastur_edge(2.0, (9, 16)) == marchenko_pastur_edge(2.0, (16, 9)) == 14.0
    tall = gavish_donoho_threshold((30, 90), noise=1.0)
    assert gavish_donoho_threshold((90, 30), noise=1.0) == tall


# --- the threshold ---------------------------------------------------------------------------


def test_published_constants_of_the_square_case():
    assert optimal_coefficient(1.0) == pytest.approx(4 / math.sqrt(3), rel=TOL)
    threshold = gavish_donoho_threshold((1000, 1000), noise=1.0)
    assert threshold == pytest.approx(4 / math.sqrt(3) * math.sqrt(1000), rel=TOL)
    sigma = np.linspace(2.0, 1.0, 11)  # median 1.5
    assert gavish_donoho_threshold((11, 11), singular_values=sigma) / 1.5 == pytest.approx(
        2.858, abs=5e-4
    )


@pytest.mark.parametrize("beta", BETAS)
def test_at_the_threshold_keeping_and_dropping_a_direction_cost_the_same(beta):
    # A signal x shows up as y, in vectors at cosines c and d to its own (units of noise sqrt(n)).
    # Kept, it leaves x^2 - 2 x y c d + y^2 of error; dropped, x^2. So y = 2 x c d at the threshold.
    lambda_ = optimal_coefficient(beta)
    # y^2 = (x^2 + 1)(x^2 + beta) / x^2, solved for x^2
    b = lambda_**2 - 1 - beta
    x = math.sqrt((b + math.sqrt(b**2 - 4 * beta)) / 2)
    c = math.sqrt((x**4 - beta) / (x**4 + beta * x**2))
    d = math.sqrt((x**4 - beta) / (x**4 + x**2))
    assert lambda_ == pytest.approx(2 * x * c * d, rel=1e-10)


def test_the_threshold_beats_its_neighbours_in_a_simulation():
    rng = np.random.default_rng(0)
    n, k = 120, 12
    U, V = (np.linalg.qr(rng.standard_normal((n, k)))[0] for _ in range(2))
    # signals on both sides of what pays: x = sqrt(3) in units of sqrt(n)
    signal = (U * np.linspace(1.0, 2.6, k) * math.sqrt(n)) @ V.T
    losses = {0.7: 0.0, 0.85: 0.0, 1.0: 0.0, 1.15: 0.0, 1.3: 0.0}
    for _ in range(10):
        X, sigma, Yt = np.linalg.svd(signal + rng.standard_normal((n, n)))
        for factor in losses:
            kept = np.where(sigma > factor * gavish_donoho_threshold((n, n), 1.0), sigma, 0.0)
            losses[factor] += float(np.sum(((X * kept) @ Yt - signal) ** 2))
    assert min(losses, key=losses.__getitem__) == 1.0


# --- a spectrum's own answers ----------------------------------------------------------------


def test_ranks_above_the_noise_find_a_strong_planted_rank():
    rng = np.random.default_rng(7)
    U, V = (np.linalg.qr(rng.standard_normal((n, 6)))[0] for n in (150, 100))
    edge = marchenko_pastur_edge(1.0, (150, 100))
    s = spectrum(3 * edge * U @ V.T + rng.standard_normal((150, 100)))
    assert s.hard_threshold_rank == 6 and s.bulk_rank in (6, 7)  # see the test of the edge
    assert s.numerical_rank == 100
    assert s.noise == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    "M",
    [
        (np.eye(5, 2), np.eye(2, 4)),  # factors: what is left out is exactly zero
        np.eye(5, 2) @ np.eye(2, 5),  # a product of low rank, formed
        np.zeros((3, 3)),
        np.diag([1.0, 1e-9, 1e-9]).astype(np.float32),  # the rest is below float32's rounding
    ],
)
def test_ranks_above_the_noise_are_not_defined_where_there_is_no_noise_floor(M):
    s = spectrum(M)
    assert s.noise is None and s.bulk_rank is None and s.hard_threshold_rank is None


def test_a_product_has_no_noise_floor_even_with_factors_as_wide_as_the_matrix():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((30, 20)), rng.standard_normal((20, 20))
    product, matrix = spectrum((B, A)), spectrum(B @ A)
    np.testing.assert_allclose(product.singular_values, matrix.singular_values, rtol=1e-10)
    assert product.bulk_rank is product.hard_threshold_rank is product.noise is None
    assert matrix.bulk_rank is not None


def test_a_single_number_is_all_noise():
    s = spectrum(np.array([[3.0]]))
    assert s.noise == pytest.approx(3.0 / math.sqrt(marchenko_pastur_median(1.0)))
    assert s.bulk_rank == 0 == s.hard_threshold_rank


# --- what a tolerated error asks for ---------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 9), st.integers(0, 2**32))
def test_best_rank_error_is_that_of_the_truncated_svd(out, in_, r, seed):
    M = np.random.default_rng(seed).standard_normal((out, in_))
    U, sigma, Vt = np.linalg.svd(M, full_matrices=False)
    error = np.linalg.norm(M - (U[:, :r] * sigma[:r]) @ Vt[:r])
    assert best_rank_error(sigma, r, relative=False) == pytest.approx(error, abs=TOL)
    assert best_rank_error(sigma, r) == pytest.approx(error / np.linalg.norm(M), abs=TOL)
    half = 0.5 * best_rank_error(sigma, r, relative=False) ** 2
    assert eckart_young_floor(sigma, r) == pytest.approx(half, rel=TOL, abs=TOL)


@given(values, st.floats(0, 1))
def test_smallest_rank_is_the_first_that_reaches_the_error(sigma, error):
    sigma = np.sort(np.array(sigma))[::-1]
    r = smallest_rank(sigma, error)
    assert best_rank_error(sigma, r) <= error * (1 + TOL)
    assert r == 0 or best_rank_error(sigma, r - 1) > error * (1 - TOL)


def test_an_energy_rank_is_the_smallest_rank_of_the_root_of_what_it_gives_away():
    sigma = 0.8 ** np.arange(40)
    s = Spectrum(sigma, (40, 40), EPS)
    for fraction in (0.5, 0.9, 0.99, 1 - 1e-6):
        assert s.energy_rank(fraction) == smallest_rank(sigma, math.sqrt(1 - fraction))


def test_smallest_rank_at_its_ends_and_at_ties():
    sigma = np.array([2.0, 2.0, 1.0, 0.0])
    assert smallest_rank(sigma, 1.0) == 0
    assert smallest_rank(sigma, 0.0) == 3  # exactly
    assert smallest_rank(sigma, 1 / 3) == 2  # 1 of 9 is missed: a tie is reached
    assert smallest_rank(sigma, 1 / 3 - 1e-9) == 3
    assert smallest_rank(np.ones(10), math.sqrt(0.1)) == 9
    assert smallest_rank(np.zeros(3), 0.0) == 0 == best_rank_error(np.zeros(3), 1)


def test_small_errors_are_not_lost_beside_a_large_first_value():
    sigma = np.array([1.0, 1e-9, 1e-12, 1e-15])
    assert [smallest_rank(sigma, e) for e in (1e-8, 1e-10, 1e-13, 1e-16)] == [1, 2, 3, 4]


def test_best_rank_error_neither_overflows_nor_underflows():
    for unit in (1e200, 1e-200):
        found = best_rank_error(unit * np.array([4.0, 3.0, 4.0 / 3]), 1, relative=False)
        assert found == pytest.approx(unit * math.hypot(3, 4 / 3), rel=TOL, abs=0)


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: marchenko_pastur_edge(-1.0, (2, 2)), ValueError, "noise is -1"),
        (lambda: marchenko_pastur_edge(math.nan, (2, 2)), ValueError, "noise is nan"),
        (lambda: marchenko_pastur_edge(1.0, (2, 0)), ShapeError, r"shape is \(2, 0\)"),
        (lambda: marchenko_pastur_median(0.0), ValueError, r"beta is 0.0.*\(0, 1\]"),
        (lambda: marchenko_pastur_median(1.5), ValueError, "beta is 1.5"),
        (lambda: optimal_coefficient(-0.5), ValueError, "beta is -0.5"),
        (lambda: estimate_noise([2.0, 1.0], (3, 3)), ValueError, "2 singular values of a 3 x 3"),
        (lambda: estimate_noise([1.0, 0.0, 0.0], (3, 3)), ValueError, "no noise floor"),
        (lambda: estimate_noise([1.0, 2.0], (2, 2)), ValueError, "do not descend"),
        (lambda: estimate_noise(np.eye(2), (2, 2)), ShapeError, "singular_values has shape"),
        (lambda: gavish_donoho_threshold((2, 2)), ValueError, "pass either"),
        (lambda: gavish_donoho_threshold((1, 1), 1.0, [1.0]), ValueError, "pass either"),
        (lambda: best_rank_error([1.0], -1), ValueError, "r is -1"),
        (lambda: best_rank_error([1.0, 2.0], 1), ValueError, "do not descend"),
        (lambda: smallest_rank([1.0], 1.1), ValueError, "error is 1.1"),
        (lambda: smallest_rank([1.0], math.nan), ValueError, "error is nan"),
    ],
)
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
