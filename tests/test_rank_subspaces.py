"""lora_np.rank.subspaces against dense SVDs, SciPy, Monte Carlo, and cases known by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from lora_np.backend import ShapeError
from lora_np.rank import (
    principal_angles,
    random_similarity,
    subspace_similarity,
    svd_of_factors,
)

TOL = 1e-12  # float64 results of a few dozen operations on numbers of order 1
sides = st.integers(1, 9)
seeds = st.integers(0, 2**32)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def orthonormal(seed, n, k):
    return np.linalg.qr(normal(seed, n, k))[0]


# --- the SVD of factors ----------------------------------------------------------------------


@given(sides, sides, st.integers(1, 12), seeds, st.floats(-4, 4))
def test_svd_of_factors_is_a_thin_svd_of_the_product(out, in_, r, seed, scale):
    B, A = normal(seed, out, r), normal(seed + 1, r, in_)
    U, sigma, Vt = svd_of_factors(B, A, scale)
    k = min(out, in_, r)
    assert U.shape == (out, k) and sigma.shape == (k,) and Vt.shape == (k, in_)
    product = scale * B @ A
    atol = TOL * (1 + np.linalg.norm(B) * np.linalg.norm(A))
    np.testing.assert_allclose((U * sigma) @ Vt, product, rtol=0, atol=atol)
    np.testing.assert_allclose(sigma, scipy.linalg.svdvals(product)[:k], rtol=0, atol=atol)
    np.testing.assert_allclose(U.T @ U, np.eye(k), rtol=0, atol=TOL)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), rtol=0, atol=TOL)


def test_svd_of_factors_never_forms_the_product():
    out = in_ = 100_000
    B, A = normal(0, out, 4), normal(1, 4, in_)
    tracemalloc.start()
    U, sigma, Vt = svd_of_factors(B, A)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * (B.nbytes + A.nbytes) < out * in_ * 8 / 500
    rows = np.array([0, 7, out - 1])
    np.testing.assert_allclose((U[rows] * sigma) @ Vt, B[rows] @ A, rtol=0, atol=1e-11)


def test_svd_of_factors_survives_extreme_factors_and_refuses_an_extreme_product():
    B, A = normal(0, 5, 3), normal(1, 3, 4)
    expected = svd_of_factors(B, A)[1]
    np.testing.assert_allclose(svd_of_factors(B * 1e200, A * 1e-200)[1], expected, rtol=TOL)
    with pytest.raises(ValueError, match="float64's range"):
        svd_of_factors(B * 1e200, A * 1e200)


def test_svd_of_factors_with_a_zero_factor_has_zero_values_and_orthonormal_vectors():
    U, sigma, Vt = svd_of_factors(np.zeros((4, 2)), normal(0, 2, 3))
    assert not sigma.any()
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=TOL)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(2), atol=TOL)


@pytest.mark.parametrize(
    "B, A, scale, error, message",
    [
        (np.ones((3, 2)), np.ones((3, 4)), 1.0, ShapeError, r"\(2, in\) is expected"),
        (np.ones(3), np.ones((3, 4)), 1.0, ShapeError, r"B has shape \(3,\)"),
        (np.ones((3, 1)), np.full((1, 4), np.nan), 1.0, ValueError, "A has entries"),
        (np.ones((3, 1)), np.ones((1, 4)), np.inf, ValueError, "scale is inf"),
        (1j * np.ones((3, 1)), np.ones((1, 4)), 1.0, TypeError, "B has dtype complex128"),
    ],
)
def test_svd_of_factors_names_what_is_wrong(B, A, scale, error, message):
    with pytest.raises(error, match=message):
        svd_of_factors(B, A, scale)


# --- principal angles ------------------------------------------------------------------------


@given(st.integers(2, 9), sides, sides, seeds)
def test_principal_angles_equal_scipys(n, i, j, seed):
    U, V = normal(seed, n, min(i, n)), normal(seed + 1, n, min(j, n))
    found = principal_angles(U, V)
    # columns that are far from orthogonal cost digits on either side
    atol = TOL * (np.linalg.cond(U) + np.linalg.cond(V))
    expected = scipy.linalg.subspace_angles(U, V)[::-1]
    # By their cosines: where angles lie on both sides of pi/4, SciPy 1.17 takes the sine for the
    # large ones and the cosine for the small ones, which leaves it half of the digits there.
    np.testing.assert_allclose(np.cos(found), np.cos(expected), rtol=0, atol=atol)
    if found.size and (found.max() < math.pi / 4 or found.min() > math.pi / 4):
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-3, 0.7, math.pi / 4, 1.2, math.pi / 2])
def test_a_planted_angle_is_found_however_small(angle):
    Q = orthonormal(0, 6, 4)
    U = Q[:, :2]
    V = np.stack([Q[:, 0], math.cos(angle) * Q[:, 1] + math.sin(angle) * Q[:, 2]], axis=1)
    found = principal_angles(U, V @ normal(1, 2, 2))  # another basis of the same space
    np.testing.assert_allclose(found, [0.0, angle], rtol=0, atol=1e-14)


def test_small_and_large_angles_are_found_together():
    angles = np.array([1e-12, 1e-9, 1e-5, 0.7, 0.9, 1.5])
    Q = orthonormal(0, 15, 12)
    V = Q[:, :6] * np.cos(angles) + Q[:, 6:] * np.sin(angles)
    np.testing.assert_allclose(principal_angles(Q[:, :6], V), angles, rtol=0, atol=2e-15)


def test_principal_angles_count_what_columns_span_and_not_columns():
    u = normal(0, 5, 1)
    repeated = (u @ np.ones((1, 3))).astype(np.float32)
    assert principal_angles(repeated, np.eye(5)) == pytest.approx([0.0], abs=1e-6)
    assert principal_angles(np.zeros((5, 2)), np.eye(5)).shape == (0,)


def test_principal_angles_are_the_same_from_either_side():
    U, V = normal(0, 8, 2), normal(1, 8, 5)
    np.testing.assert_allclose(principal_angles(U, V), principal_angles(V, U), atol=TOL)


# --- similarity ------------------------------------------------------------------------------


def naive_similarity(U1, U2):
    """Equation 4 as it is written, one pair of i and j after the other."""
    grid = np.empty((U1.shape[1], U2.shape[1]))
    for i in range(1, grid.shape[0] + 1):
        for j in range(1, grid.shape[1] + 1):
            norm = np.linalg.norm(U1[:, :i].T @ U2[:, :j])
            grid[i - 1, j - 1] = norm**2 / min(i, j)
    return grid


@given(st.integers(1, 9), sides, sides, seeds)
def test_subspace_similarity_equals_equation_4_for_every_i_and_j(n, i, j, seed):
    U1, U2 = orthonormal(seed, n, min(i, n)), orthonormal(seed + 1, n, min(j, n))
    grid = subspace_similarity(U1, U2)
    np.testing.assert_allclose(grid, naive_similarity(U1, U2), rtol=0, atol=TOL)
    assert grid.min() >= 0 and grid.max() <= 1 + TOL


def test_subspace_similarity_is_the_mean_squared_cosine_of_the_principal_angles():
    U1, U2 = orthonormal(0, 12, 4), orthonormal(1, 12, 6)
    mean = np.mean(np.cos(principal_angles(U1, U2)) ** 2)
    assert subspace_similarity(U1, U2)[3, 5] == pytest.approx(mean, rel=TOL)


def test_identical_orthogonal_and_whole_spaces_have_similarity_one_zero_and_one():
    Q = orthonormal(0, 6, 6)
    np.testing.assert_allclose(np.diag(subspace_similarity(Q[:, :3], Q[:, :3])), 1, rtol=TOL)
    np.testing.assert_allclose(subspace_similarity(Q[:, :3], Q[:, 3:]), 0, atol=TOL)
    other = orthonormal(1, 6, 6)
    assert subspace_similarity(Q, other)[5, 5] == pytest.approx(1, rel=TOL)  # i = j = n
    # one direction, inside the plane of the other two: phi(1, 2) = 1 whatever the basis
    turned = Q[:, :2] @ orthonormal(2, 2, 2)
    assert subspace_similarity(Q[:, :1], turned)[0, 1] == pytest.approx(1, rel=TOL)


@pytest.mark.parametrize("n, i, j", [(10, 1, 1), (12, 2, 5), (8, 8, 3), (30, 4, 4)])
def test_random_similarity_is_the_mean_over_random_subspaces(n, i, j):
    rng = np.random.default_rng(n + i + j)
    draws = np.array(
        [
            subspace_similarity(*(np.linalg.qr(rng.standard_normal((n, k)))[0] for k in (i, j)))
            for _ in range(800)
        ]
    )[:, i - 1, j - 1]
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - random_similarity(n, i, j)) < 4 * error + TOL


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: subspace_similarity(np.ones((3, 2)), np.eye(3)), ValueError, "U1 are not ortho"),
        (lambda: subspace_similarity(np.eye(3), np.eye(4)), ShapeError, "U2 has shape"),
        (lambda: subspace_similarity(np.eye(3)[0], np.eye(3)), ShapeError, "U1 has shape"),
        (lambda: principal_angles(np.eye(3), np.eye(4)), ShapeError, "V has shape"),
        (lambda: principal_angles(np.eye(3) * np.nan, np.eye(3)), ValueError, "U has entries"),
        (lambda: random_similarity(4, 5, 1), ValueError, "i is 5: it must be from 1 to n = 4"),
        (lambda: random_similarity(4, 1, 0), ValueError, "j is 0"),
    ],
)
def test_what_is_wrong_with_the_spaces_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_float32_singular_vectors_are_orthonormal_enough():
    U = np.linalg.svd(normal(0, 50, 20).astype(np.float32), full_matrices=False)[0]
    assert subspace_similarity(U, U)[-1, -1] == pytest.approx(1, abs=1e-5)
