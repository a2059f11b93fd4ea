"""lora_np.rank.randomised against the dense SVD, and against what Halko et al. promise."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st

from lora_np.backend import ShapeError
from lora_np.rank import dense_svd, randomised_svd

TOL = 1e-12  # float64 results of a few dozen operations on numbers of order 1


def with_values(sigma, shape, seed=0):
    """Return a matrix with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((n, len(sigma))))[0] for n in shape)
    return (U * sigma) @ V.T


def error_of(M, found):
    U, sigma, Vt = found[:3]
    return M - (U * sigma) @ Vt


# --- the dense one ---------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32))
def test_dense_svd_is_a_thin_svd(out, in_, seed):
    M = np.random.default_rng(seed).standard_normal((out, in_))
    U, sigma, Vt = dense_svd(M)
    k = min(out, in_)
    assert U.shape == (out, k) and Vt.shape == (k, in_)
    np.testing.assert_allclose((U * sigma) @ Vt, M, atol=TOL)
    np.testing.assert_allclose(sigma, np.linalg.svd(M, compute_uv=False), rtol=TOL, atol=TOL)


def test_dense_svd_falls_back_when_divide_and_conquer_does_not_converge(monkeypatch):
    real, drivers = scipy.linalg.svd, []

    def fails_first(matrix, full_matrices, lapack_driver):
        drivers.append(lapack_driver)
        if lapack_driver == "gesdd":
            raise np.linalg.LinAlgError("SVD did not converge")
        return real(matrix, full_matrices=full_matrices, lapack_driver=lapack_driver)

    monkeypatch.setattr(scipy.linalg, "svd", fails_first)
    M = np.diag([3.0, 1.0])
    assert dense_svd(M)[1] == pytest.approx([3, 1]) and drivers == ["gesdd", "gesvd"]


# --- the randomised one ----------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_a_matrix_of_rank_k_is_found_to_rounding(out, in_, k, seed):
    k = min(k, out, in_)
    M = with_values(np.linspace(2, 1, k), (out, in_), seed)
    found = randomised_svd(M, k, np.random.default_rng(seed))
    U, sigma, Vt, bound = found
    assert U.shape == (out, k) and sigma.shape == (k,) and Vt.shape == (k, in_)
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=TOL)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), atol=TOL)
    np.testing.assert_allclose(error_of(M, found), 0, atol=TOL)
    np.testing.assert_allclose(sigma, np.linspace(2, 1, k), rtol=TOL)
    assert bound.frobenius < TOL and bound.spectral < 100 * TOL


def test_on_a_decaying_spectrum_it_is_nearly_the_truncated_svd():
    M = with_values(1 / np.arange(1, 101), (150, 100))
    found = randomised_svd(M, 10, np.random.default_rng(0))
    true = np.linalg.svd(M, compute_uv=False)
    best = math.sqrt(np.sum(true[10:] ** 2))
    assert best <= found[3].frobenius <= 1.001 * best
    np.testing.assert_allclose(found[1], true[:10], rtol=1e-3)
    assert np.all(found[1] <= true[:10] * (1 + TOL))  # a projection's values are no larger


def test_the_bound_holds_in_every_trial_and_the_frobenius_error_is_exact():
    M = with_values(np.exp(-0.1 * np.arange(60)), (80, 60))
    ratios = []
    for seed in range(300):
        found = randomised_svd(M, 8, np.random.default_rng(seed), oversample=2, power=0)
        error = error_of(M, found)
        ratios.append(found[3].spectral / np.linalg.norm(error, 2))
        assert found[3].frobenius == pytest.approx(np.linalg.norm(error), rel=1e-10)
    assert min(ratios) >= 1  # fails with probability 3e-8 if the bound is what it says
    assert np.median(ratios) < 60  # and it is of use


def test_the_bound_rests_on_fresh_probes_and_not_on_those_that_made_the_basis():
    # with the first probes again, what the basis misses would look like nothing
    M = with_values(np.ones(40), (40, 40))
    found = randomised_svd(M, 12, np.random.default_rng(0), oversample=0, power=0)
    assert found[3].spectral >= np.linalg.norm(error_of(M, found), 2) > 0.99


@pytest.mark.parametrize("k, p", [(5, 5), (10, 5), (10, 10)])
def test_mean_errors_are_within_halkos_expectation(k, p):
    # theorems 10.5 and 10.6: for Q of k + p columns, no power, in expectation over the probes
    sigma = 0.8 ** np.arange(60)
    M = with_values(sigma, (90, 60))
    tail = math.sqrt(np.sum(sigma[k:] ** 2))
    frobenius, spectral = [], []
    for seed in range(60):  # k + p directions, none dropped: U spans what Q does
        found = randomised_svd(M, k + p, np.random.default_rng(seed), oversample=0, power=0)
        frobenius.append(found[3].frobenius)
        spectral.append(np.linalg.norm(error_of(M, found), 2))
    assert np.mean(frobenius) <= math.sqrt(1 + k / (p - 1)) * tail
    largest = (1 + math.sqrt(k / (p - 1))) * sigma[k] + math.e * math.sqrt(k + p) / p * tail
    assert np.mean(spectral) <= largest


def test_power_rounds_bring_the_error_down_where_values_fall_slowly():
    M = with_values(1 / np.sqrt(np.arange(1, 81)), (120, 80))
    errors = [
        np.mean(
            [randomised_svd(M, 10, np.random.default_rng(s), 0, q)[3].frobenius for s in range(5)]
        )
        for q in (0, 1, 2)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_an_operator_that_is_never_formed_gives_what_its_matrix_gives():
    rng = np.random.default_rng(0)
    W0, W = rng.standard_normal((2, 50, 30))
    difference = scipy.sparse.linalg.aslinearoperator(W) - scipy.sparse.linalg.aslinearoperator(W0)
    one = randomised_svd(difference, 5, np.random.default_rng(1))
    other = randomised_svd(W - W0, 5, np.random.default_rng(1))
    np.testing.assert_allclose(error_of(0, one), error_of(0, other), atol=1e-10)
    assert one[3].spectral == pytest.approx(other[3].spectral, rel=1e-10)
    assert one[3].frobenius is None


def test_equal_generators_give_equal_results_and_the_matrix_is_left_alone():
    M = np.random.default_rng(0).standard_normal((9, 7)).astype(np.float32)
    before = M.copy()
    one, other = (randomised_svd(M, 3, np.random.default_rng(4)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3])) and one[3] == other[3]
    assert np.array_equal(M, before) and one[0].dtype == np.float64


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_extreme_units_are_carried_through(unit):
    M = with_values(np.array([3.0, 2.0, 1.0]), (6, 5))
    found = randomised_svd(M * unit, 2, np.random.default_rng(0))
    assert found[1] / unit == pytest.approx([3, 2])
    assert found[3].frobenius / unit == pytest.approx(1)


def test_a_zero_matrix_has_zero_values_and_a_zero_bound():
    U, sigma, _, bound = randomised_svd(np.zeros((4, 3)), 2, np.random.default_rng(0))
    assert not sigma.any() and bound == (0.0, 0.0)
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=TOL)


class Broken:
    """An operator whose products are not finite."""

    shape = (3, 3)

    def __matmul__(self, x):
        return x * np.nan


@pytest.mark.parametrize(
    "M, options, error, message",
    [
        (np.eye(3), {"k": 0}, ValueError, "k is 0: it must be from 1 to 3"),
        (np.eye(3), {"k": 4}, ValueError, "k is 4"),
        (np.eye(3), {"k": 1, "oversample": -1}, ValueError, "oversample is -1"),
        (np.eye(3), {"k": 1, "power": -1}, ValueError, "power is -1"),
        (np.ones(3), {"k": 1}, ShapeError, r"M has shape \(3,\)"),
        (np.full((2, 2), np.nan), {"k": 1}, ValueError, "M has entries that are not finite"),
        (1j * np.eye(2), {"k": 1}, TypeError, "complex128"),
        (Broken(), {"k": 1}, ValueError, "a product with M is not finite"),
    ],
)
def test_what_is_wrong_is_said(M, options, error, message):
    with pytest.raises(error, match=message):
        randomised_svd(M, rng=np.random.default_rng(0), **options)


def test_dense_svd_says_what_is_wrong():
    with pytest.raises(ValueError, match="W0 has entries that are not finite"):
        dense_svd(np.full((2, 2), np.inf), "W0")
