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
    amplification,
    intruder_dimensions,
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


# --- amplification ---------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), seeds)
def test_amplification_equals_its_definition_through_dense_svds(out, in_, r, seed):
    r = min(r, out, in_)
    W0, B, A = normal(seed, out, in_), normal(seed + 1, out, r), normal(seed + 2, r, in_)
    delta = -2.0 * B @ A
    U, _, Vt = np.linalg.svd(delta)
    U0, _, V0t = np.linalg.svd(W0)
    expected = {
        "in_delta": np.linalg.norm(U[:, :r].T @ W0 @ Vt[:r].T),
        "in_W0": np.linalg.norm(U0[:, :r].T @ W0 @ V0t[:r].T),
        "norm_W0": np.linalg.norm(W0),
        "norm_delta": np.linalg.norm(delta),
    }
    for found in (amplification(W0, delta, r), amplification(W0, (B, A), r, scale=-2.0)):
        got = {name: getattr(found, name) for name in expected}
        assert got == pytest.approx(expected, rel=1e-7, abs=1e-9)
        factor = expected["norm_delta"] / expected["in_delta"]
        assert found.factor == pytest.approx(factor, rel=1e-6)
        assert found.in_delta <= found.in_W0 * (1 + TOL)


def test_random_directions_hold_the_stated_part_of_W0_in_root_mean_square():
    W0, r = normal(0, 12, 8) @ np.diag(np.arange(1.0, 9.0)), 3
    squares = [
        np.linalg.norm(orthonormal(2 * s, 12, r).T @ W0 @ orthonormal(2 * s + 1, 8, r)) ** 2
        for s in range(1, 2000)
    ]
    error = np.std(squares) / math.sqrt(len(squares))
    expected = amplification(W0, normal(1, 12, 8), r).in_random ** 2
    assert abs(np.mean(squares) - expected) < 4 * error < 0.05 * expected


def test_random_directions_agree_with_the_published_figure_of_gpt_3():
    # table 7: ||W_q||_F = 61.95 in 12288 x 12288; 0.02 is printed at r = 4, 0.33 at r = 64
    for r, published in ((4, 0.02), (64, 0.33)):
        assert r * 61.95 / 12288 == pytest.approx(published, abs=0.01)


def test_a_change_along_W0s_own_directions_and_one_across_them():
    W0 = np.diag([4.0, 3.0, 0.0, 0.0])
    along = amplification(W0, 2 * W0, 2)
    assert along.in_delta == along.in_W0 == pytest.approx(5) and along.factor == pytest.approx(2)
    across = amplification(W0, np.diag([0.0, 0.0, 1.0, 1.0]), 2)
    assert across.in_delta == 0 and across.factor == math.inf
    assert across.in_random == pytest.approx(2 * 5 / 4)


@pytest.mark.parametrize(
    "delta, r, error, message",
    [
        (np.eye(3), 0, ValueError, "r is 0: it must be from 1 to the numerical rank of delta, 3"),
        (np.diag([1.0, 1.0, 0.0]), 3, ValueError, "numerical rank of delta, 2"),
        (np.diag([1.0, 1.0, 1e-9]).astype(np.float32), 3, ValueError, "rank of delta, 2"),
        ((np.eye(3, 2), np.zeros((2, 3))), 1, ValueError, "numerical rank of delta, 0"),
        (np.eye(4), 1, ShapeError, r"delta has shape \(4, 4\): \(3, 3\) is expected"),
        ((np.eye(3),), 1, ShapeError, "delta is a tuple of 1"),
        (np.full((3, 3), np.nan), 1, ValueError, "delta has entries"),
    ],
)
def test_amplification_says_what_is_wrong(delta, r, error, message):
    with pytest.raises(error, match=message):
        amplification(np.eye(3), delta, r)


# --- intruders -------------------------------------------------------------------------------


def naive_intruders(W0, W, k, threshold):
    """Algorithm 1 with its two loops."""
    before, after = (np.linalg.svd(X, full_matrices=False)[0] for X in (W0, W))
    found = []
    for j in range(k):
        similar = False
        for i in range(before.shape[1]):
            similar = similar or abs(float(before[:, i] @ after[:, j])) >= threshold
        if not similar:
            found.append(j)
    return found


@given(st.integers(2, 10), st.integers(2, 10), seeds, st.floats(0.1, 0.9), st.floats(0, 5))
def test_intruders_equal_those_of_the_algorithms_two_loops(out, in_, seed, threshold, size):
    W0, B, A = normal(seed, out, in_), normal(seed + 1, out, 2), normal(seed + 2, 2, in_)
    k = min(out, in_, 4)
    expected = naive_intruders(W0, W0 + size * B @ A, k, threshold)
    for found in (
        intruder_dimensions(W0, W0 + size * B @ A, k, threshold),
        intruder_dimensions(W0, (B, A), k, threshold, scale=size),
    ):
        assert found.indices == expected and found.count == len(expected)
        assert found.cosines.shape == (k,) and 0 <= found.cosines.min() <= found.cosines.max() <= 1


def test_a_strong_new_direction_is_the_first_intruder_and_an_old_one_is_none():
    n = 40
    U, V = orthonormal(0, n, n), orthonormal(1, n, n)
    W0 = (U * np.linspace(2, 1, n)) @ V.T
    new = U.sum(axis=1, keepdims=True) / math.sqrt(n)  # cosine 0.16 with each of W0's
    found = intruder_dimensions(W0, (1e4 * new, V[:, :1].T))
    assert found.indices[0] == 0 and found.cosines[0] == pytest.approx(1 / math.sqrt(n), rel=0.01)
    stronger = intruder_dimensions(W0, (50 * U[:, :1], V[:, :1].T))
    assert stronger.count == 0 and stronger.cosines[0] == pytest.approx(1)


def test_directions_that_W0_does_not_have_at_all_are_intruders():
    W0 = np.diag([1.0, 1.0, 0.0, 0.0])  # rank 2: its other vectors are arbitrary and do not count
    found = intruder_dimensions(W0, np.diag([1.0, 1.0, 9.0, 0.0]), k=3)
    assert found.indices == [0] and found.cosines[0] == 0
    assert intruder_dimensions(np.zeros((3, 3)), np.eye(3), k=2).indices == [0, 1]


@pytest.mark.parametrize(
    "W, options, error, message",
    [
        (np.eye(3), {"k": 4}, ValueError, "k is 4: it must be from 1 to 3"),
        (np.eye(3), {"k": 0}, ValueError, "k is 0"),
        (np.eye(3), {"k": 1, "threshold": 1.5}, ValueError, "threshold is 1.5"),
        (np.eye(3), {"k": 1, "scale": 2.0}, ValueError, "scale is 2.0: it multiplies factors only"),
        (np.eye(4), {"k": 1}, ShapeError, r"W has shape \(4, 4\)"),
        ((np.eye(4, 1), np.eye(1, 3)), {"k": 1}, ShapeError, r"B A has shape \(4, 3\)"),
        ((np.eye(3), np.eye(3)), {"k": 1, "scale": math.nan}, ValueError, "scale is nan"),
        (np.full((3, 3), np.inf), {"k": 1}, ValueError, "W has entries"),
    ],
)
def test_intruder_dimensions_says_what_is_wrong(W, options, error, message):
    with pytest.raises(error, match=message):
        intruder_dimensions(np.eye(3), W, **options)
