"""Fastfood: the transform and the projection against dense twins; the laws of its entries."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.backend import ShapeError
from lora_np.ops.fastfood import Fastfood, walsh_hadamard

ROUNDING = 1e-12  # float64, relative: the same sum in another order


def hadamard(n):
    """The slow twin: H_2n = [[H_n, H_n], [H_n, -H_n]]."""
    if n == 1:
        return np.ones((1, 1))
    H = hadamard(n // 2)
    return np.block([[H, H], [H, -H]])


def dense(P):
    """P (D, d), column by column."""
    return np.stack([P.forward(e) for e in np.eye(P.d)], axis=1)


def dense_of_factors(P):
    """P (D, d) as its definition says it: S H G Pi H B, every factor a dense matrix."""
    n = P.signs.shape[1]
    H, blocks = hadamard(n), []
    for b in range(len(P.signs)):
        Pi = np.eye(n)[P.places[b] - b * n]
        blocks.append(
            np.diag(P.lengths[b]) @ H @ np.diag(P.gauss[b]) @ Pi @ H @ np.diag(P.signs[b])
        )
    return np.concatenate(blocks)[: P.D, : P.d]


def fastfood(D, d, seed=0):
    return Fastfood(D, d, np.random.default_rng(seed), np.float64)


@pytest.mark.parametrize("n", [1, 2, 4, 32])
@pytest.mark.parametrize("dtype", [np.float64, complex])
def test_the_transform_is_the_product_with_the_recursive_matrix(rng, n, dtype):
    x = rng.standard_normal((3, 2, n)) + (1j * rng.standard_normal(n) if dtype is complex else 0)
    before = x.copy()
    y = walsh_hadamard(x)
    np.testing.assert_allclose(y, x @ hadamard(n), rtol=0, atol=ROUNDING * n)
    np.testing.assert_allclose(walsh_hadamard(y), n * x, rtol=0, atol=ROUNDING * n * n)
    assert np.array_equal(x, before) and y is not x


def test_the_transform_keeps_float32_and_refuses_other_lengths():
    assert walsh_hadamard(np.ones(4, np.float32)).dtype == np.float32
    with pytest.raises(ShapeError, match="length 6, expected a power of two"):
        walsh_hadamard(np.ones(6))


@given(D=st.integers(1, 70), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_fast_projection_is_the_dense_one_and_the_adjoint_its_transpose(D, part, seed):
    d = 1 + int(part * (D - 1))
    P, rng = fastfood(D, d, seed), np.random.default_rng(seed)
    z, g = rng.standard_normal(d), rng.standard_normal(D)
    twin = dense_of_factors(P)
    np.testing.assert_allclose(P.forward(z), twin @ z, rtol=0, atol=ROUNDING * D)
    np.testing.assert_allclose(P.adjoint(g), twin.T @ g, rtol=0, atol=ROUNDING * D)


@pytest.mark.parametrize("D, d", [(1, 1), (100, 1), (1000, 33), (4096, 4096)])
def test_forward_and_adjoint_are_each_others(D, d, rng):
    P, z, g = fastfood(D, d), rng.standard_normal(d), rng.standard_normal(D)
    left, right = P.forward(z) @ g, z @ P.adjoint(g)
    assert left == pytest.approx(right, rel=0, abs=ROUNDING * np.linalg.norm(z) * np.linalg.norm(g))


@pytest.mark.parametrize("D, d", [(50, 1), (50, 5), (50, 50)])
def test_a_projection_keeps_the_squared_length_on_average(D, d, rng):
    z = rng.standard_normal(d)
    ratios = np.array([(fastfood(D, d, s).forward(z) ** 2).sum() / (z @ z) for s in range(2000)])
    assert ratios.mean() == pytest.approx(1.0, abs=4.0 * ratios.std() / math.sqrt(len(ratios)))
    assert ratios.std() < 1.5  # so that the mean above says something


def test_every_entry_is_gaussian_with_variance_one_over_D():
    from scipy.stats import kstest, norm

    D, d, draws = 20, 3, 3000
    entries = np.array([dense(fastfood(D, d, s))[[4, 17], [0, 2]] for s in range(draws)])
    for column in entries.T:
        assert kstest(column * math.sqrt(D), norm.cdf).pvalue > 1e-3
    # Without S the lengths of a block's rows would all be equal: no Gaussian has that.
    assert np.linalg.norm(fastfood(4, 4).lengths[0] / fastfood(4, 4).lengths[0, 0] - 1) > 0.1


@pytest.mark.parametrize("D", [1, 5, 16, 37])
def test_with_as_many_dimensions_as_parameters_every_direction_is_reached(D):
    assert np.linalg.matrix_rank(dense(fastfood(D, D))) == D
    d = max(1, D // 2)
    assert np.linalg.matrix_rank(dense(fastfood(D, d))) == d


def test_a_projection_follows_its_seed():
    z = np.ones(9)
    one, same, other = (fastfood(30, 9, seed).forward(z) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.allclose(one, other)


@pytest.mark.parametrize("d", [0, -1, 11])
def test_a_dimension_that_does_not_fit_is_refused(d):
    with pytest.raises(ValueError, match=rf"d = {d}, expected 1 <= d <= D = 10"):
        fastfood(10, d)


def test_vectors_of_other_lengths_are_refused():
    P = fastfood(10, 3)
    with pytest.raises(ShapeError, match=r"z has shape \(4,\), expected \(3,\)"):
        P.forward(np.ones(4))
    with pytest.raises(ShapeError, match=r"g has shape \(3,\), expected \(10,\)"):
        P.adjoint(np.ones(3))


def test_factors_of_another_dtype_are_cast():
    P, narrow = fastfood(30, 9), Fastfood(30, 9, np.random.default_rng(0), np.float32)
    z, g = np.ones(9, np.float32), np.ones(30, np.float32)
    assert P.forward(z).dtype == P.adjoint(g).dtype == np.float32
    np.testing.assert_array_equal(P.forward(z), narrow.forward(z))
    assert narrow.forward(z.astype(np.float64)).dtype == np.float64
    assert P.forward(z + 1j).dtype == np.complex64
