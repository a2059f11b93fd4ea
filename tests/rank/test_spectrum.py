"""lora_np.rank: the spectrum agrees with SciPy and NumPy, the measures with cases known by hand."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from lora_np.backend import ShapeError, get_device
from lora_np.rank import Spectrum, eckart_young_floor, spectrum

EPS = float(np.finfo(np.float64).eps)
TOL = 1e-12  # relative, for float64 results of a few dozen operations
sides = st.integers(1, 9)
seeds = st.integers(0, 2**32)
values = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(seed, n):
    return np.linalg.qr(normal(seed, n, n))[0]


def measures(s):
    return [s.stable_rank, s.participation_ratio, s.effective_rank]


def of_values(sigma):
    sigma = np.sort(np.asarray(sigma, dtype=float))[::-1]
    return Spectrum(sigma, (sigma.size, sigma.size), EPS)


# --- singular values -------------------------------------------------------------------------


@given(sides, sides, seeds)
def test_spectrum_equals_scipy_svdvals(out, in_, seed):
    M = normal(seed, out, in_)
    s = spectrum(M)
    assert s.shape == (out, in_)
    assert s.singular_values.dtype == np.float64 and s.singular_values.shape == (min(out, in_),)
    np.testing.assert_allclose(s.singular_values, scipy.linalg.svdvals(M), rtol=TOL, atol=TOL)


@given(sides, sides, st.integers(1, 12), seeds, st.floats(-4, 4))
def test_spectrum_of_factors_equals_spectrum_of_product(out, in_, r, seed, scale):
    B, A = normal(seed, out, r), normal(seed + 1, r, in_)
    s = spectrum((B, A), scale)
    assert s.shape == (out, in_) and s.singular_values.shape == (min(out, in_, r),)
    expected = scipy.linalg.svdvals(scale * (B @ A))
    atol = TOL * np.linalg.norm(B) * np.linalg.norm(A)  # what rounding is relative to
    np.testing.assert_allclose(s.singular_values, expected[: min(out, in_, r)], rtol=0, atol=atol)
    np.testing.assert_allclose(expected[r:], 0, atol=4 * atol)  # what was left out is zero


def test_spectrum_of_factors_never_forms_the_product():
    out = in_ = 200_000
    r = 4
    B, A = normal(0, out, r), normal(1, r, in_)
    tracemalloc.start()
    s = spectrum((B, A))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * (B.nbytes + A.nbytes) < out * in_ * 8 / 1000
    # the squared values are the eigenvalues of the r x r matrix B^T B A A^T
    squares = np.sort(np.linalg.eigvals(B.T @ B @ A @ A.T).real)[::-1]
    np.testing.assert_allclose(s.singular_values**2, squares, rtol=1e-10)


def test_scale_multiplies_singular_values_by_its_absolute_value():
    M = np.diag([3.0, 2.0])
    assert spectrum(M, scale=-2.0).singular_values == pytest.approx([6.0, 4.0])
    assert spectrum((M, np.eye(2)), scale=-2.0).singular_values == pytest.approx([6.0, 4.0])
    assert spectrum(M, scale=0.0).numerical_rank == 0


def test_spectrum_leaves_its_arguments_alone():
    B, A = normal(0, 5, 2), normal(1, 2, 4)
    B_before, A_before = B.copy(), A.copy()
    spectrum((B, A))
    spectrum(B)
    assert np.array_equal(B, B_before) and np.array_equal(A, A_before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, np.bool_])
def test_spectrum_of_any_real_dtype_is_computed_in_float64(dtype):
    M = np.array([[1, 1], [0, 1]], dtype=dtype)  # singular values: the golden ratio and its inverse
    golden = (1 + math.sqrt(5)) / 2
    np.testing.assert_allclose(spectrum(M).singular_values, [golden, 1 / golden], rtol=1e-15)


# --- numerical rank --------------------------------------------------------------------------


@given(sides, sides, st.integers(1, 9), seeds, st.sampled_from([np.float32, np.float64]))
def test_numerical_rank_equals_numpy_matrix_rank(out, in_, r, seed, dtype):
    M = (normal(seed, out, r) @ normal(seed + 1, r, in_)).astype(dtype)
    assert spectrum(M).numerical_rank == np.linalg.matrix_rank(M)
    assert spectrum(M).numerical_rank == min(out, in_, r)


@pytest.mark.parametrize("dtype, rank", [(np.float16, 2), (np.float32, 3), (np.float64, 4)])
def test_numerical_rank_tolerance_is_that_of_the_input_dtype(dtype, rank):
    # tolerances, relative to sigma_1 = 1 : 4e-3 in float16, 5e-7 in float32, 9e-16 in float64
    M = np.diag([1.0, 1e-2, 1e-4, 1e-7]).astype(dtype)
    assert spectrum(M).numerical_rank == rank
    assert spectrum((M, np.eye(4))).numerical_rank == rank  # the coarser factor decides


def test_numerical_rank_of_integers_uses_the_tolerance_of_float64():
    M = np.diag([10**9, 1])
    assert spectrum(M).numerical_rank == 2
    assert spectrum(M.astype(np.float32)).numerical_rank == 1


def test_numerical_rank_tolerance_follows_the_longer_side_of_the_product():
    A = np.zeros((2, 3), dtype=np.float32)
    A[0, 0], A[1, 1] = 1.0, 1e-5
    B = np.eye(1000, 2, dtype=np.float32)
    assert spectrum(A).numerical_rank == 2  # 3 * 1.2e-7 < 1e-5
    assert spectrum((B, A)).numerical_rank == 1  # 1000 * 1.2e-7 > 1e-5
    assert spectrum(B @ A).numerical_rank == 1


def test_numerical_rank_may_be_far_below_the_effective_rank():
    s = Spectrum(np.array([1.0] + [1e-4] * 999), (1000, 1000), eps=1.2e-7)
    assert s.numerical_rank == 1 and s.effective_rank > 2.5


# --- measures known by hand ------------------------------------------------------------------


def test_measures_of_a_diagonal_matrix_equal_the_hand_calculation():
    s = spectrum(np.diag([1.0, -2.0, 0.0, 1.0]))  # sigma = 2, 1, 1, 0
    assert s.singular_values == pytest.approx([2, 1, 1, 0], abs=TOL)
    assert s.numerical_rank == 3
    assert s.stable_rank == pytest.approx(6 / 4)
    assert s.participation_ratio == pytest.approx(36 / 18)
    assert s.effective_rank == pytest.approx(math.sqrt(8))  # q = 1/2 1/4 1/4: H = 3/2 log 2
    assert [s.energy_rank(f) for f in (0.5, 0.7, 0.8, 0.9, 1.0)] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize("n", [1, 2, 10, 20, 70, 100])
def test_orthogonal_matrix_has_every_rank_n(n):
    s = spectrum(orthogonal(n, n))
    assert s.numerical_rank == n
    assert measures(s) == pytest.approx([n, n, n])
    nines = {0.90: math.ceil(90 * n / 100), 0.95: math.ceil(95 * n / 100)}
    assert s.energy_ranks == {**nines, 0.99: math.ceil(99 * n / 100)}


@given(sides, sides, seeds)
def test_rank_one_matrix_has_every_rank_one(out, in_, seed):
    b, a = normal(seed, out, 1), normal(seed + 1, 1, in_)
    for s in (spectrum(b @ a), spectrum((b, a))):
        assert s.numerical_rank == 1
        assert measures(s) == pytest.approx([1, 1, 1])
        assert s.energy_ranks == {0.90: 1, 0.95: 1, 0.99: 1}
        assert s.singular_values[0] == pytest.approx(np.linalg.norm(b) * np.linalg.norm(a))


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_measures_of_a_geometric_spectrum_equal_their_closed_forms(q):
    s = of_values(q ** np.arange(2000))  # sums are those of the infinite series to rounding
    assert s.stable_rank == pytest.approx(1 / (1 - q**2))
    assert s.participation_ratio == pytest.approx((1 + q**2) / (1 - q**2))
    assert s.effective_rank == pytest.approx(q ** (-q / (1 - q)) / (1 - q))
    for fraction, k in s.energy_ranks.items():  # the first k hold 1 - q^(2k)
        assert k == math.ceil(math.log(1 - fraction) / (2 * math.log(q)))


@pytest.mark.parametrize(
    "M", [np.zeros((3, 5)), np.zeros((3, 5), dtype=int), (np.zeros((3, 2)), np.ones((2, 5)))]
)
def test_zero_matrix_has_zero_of_each_measure(M):
    s = spectrum(M)
    assert s.numerical_rank == 0 and measures(s) == [0.0, 0.0, 0.0]
    assert s.energy_ranks == {0.90: 0, 0.95: 0, 0.99: 0}
    assert "sigma_1 = 0" in str(s)


# --- theorems --------------------------------------------------------------------------------


@given(values)
def test_measures_stand_in_the_order_the_module_states(sigma):
    s = of_values(sigma)
    if s.singular_values[0] == 0:
        return
    chain = [1, *measures(s), np.count_nonzero(s.singular_values)]
    assert all(low <= high * (1 + TOL) for low, high in itertools.pairwise(chain))


@given(values, st.floats(0, 1, exclude_min=True))
def test_energy_rank_is_the_least_k_and_at_least_fraction_times_stable_rank(sigma, fraction):
    s = of_values(sigma)
    if s.singular_values[0] == 0:
        return
    k = s.energy_rank(fraction)
    held = np.cumsum((s.singular_values / s.singular_values[0]) ** 2)
    assert held[k - 1] >= (fraction - TOL) * held[-1]
    assert k == 1 or held[k - 2] < fraction * held[-1]
    assert k >= (fraction - TOL) * s.stable_rank


@given(sides, sides, seeds, st.floats(1e-3, 1e3))
def test_measures_do_not_change_under_rotation_and_scale(out, in_, seed, scale):
    M = normal(seed, out, in_)
    s = spectrum(M)
    turned = spectrum(orthogonal(seed + 1, out) @ M @ orthogonal(seed + 2, in_), scale)
    np.testing.assert_allclose(
        turned.singular_values, scale * s.singular_values, atol=TOL * scale * s.singular_values[0]
    )
    assert measures(turned) == pytest.approx(measures(s))


@pytest.mark.parametrize("factor", [1e-320, 1e-200, 1e200, 1e306])
def test_measures_neither_overflow_nor_underflow(factor):
    M = orthogonal(0, 6) @ np.diag([4.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    rel = 2e-3 if factor < 1e-307 else TOL  # near 1e-320 numbers are 5e-324 apart
    s, tiny_or_huge = spectrum(M), spectrum(M * factor)
    assert measures(tiny_or_huge) == pytest.approx(measures(s), rel=rel)
    assert tiny_or_huge.energy_ranks == s.energy_ranks
    assert tiny_or_huge.singular_values[0] == pytest.approx(4 * factor, rel=rel, abs=0)
    if factor > 1e-307:
        assert tiny_or_huge.numerical_rank == 4


def test_factors_of_opposite_extremes_give_the_product_between_them():
    B, A = normal(0, 5, 3), normal(1, 3, 4)
    expected = spectrum((B, A))
    s = spectrum((B * 1e200, A * 1e-200))
    np.testing.assert_allclose(s.singular_values, expected.singular_values, rtol=TOL)


def test_a_product_outside_the_range_of_float64_is_refused():
    B, A = normal(0, 5, 3), normal(1, 3, 4)
    for factor in (1e200, 1e-200):
        with pytest.raises(ValueError, match="float64's range"):
            spectrum((B * factor, A * factor))
    with pytest.raises(ValueError, match="float64's range"):
        spectrum(np.full((9, 9), 1e308))


# --- Eckart-Young ----------------------------------------------------------------------------


@given(sides, sides, st.integers(0, 10), seeds)
def test_eckart_young_floor_is_reached_by_the_truncated_svd(out, in_, r, seed):
    M = normal(seed, out, in_)
    U, sigma, Vt = np.linalg.svd(M, full_matrices=False)
    N = (U[:, :r] * sigma[:r]) @ Vt[:r]
    loss = 0.5 * np.sum((M - N) ** 2)
    floor = eckart_young_floor(spectrum(M).singular_values, r)
    assert type(floor) is float
    assert floor == pytest.approx(loss, rel=TOL, abs=TOL)


@given(sides, sides, st.integers(1, 9), seeds)
def test_no_matrix_of_rank_r_goes_below_the_eckart_young_floor(out, in_, r, seed):
    M, B = normal(seed, out, in_), normal(seed + 1, out, r)
    A = np.linalg.lstsq(B, M, rcond=None)[0]  # the best A for this B: the strongest rival at hand
    floor = eckart_young_floor(spectrum(M).singular_values, r)
    assert 0.5 * np.sum((M - B @ A) ** 2) >= floor - TOL


def test_eckart_young_floor_at_rank_zero_is_half_the_squared_norm_and_at_full_rank_zero():
    assert eckart_young_floor(np.array([3.0, 2.0, 1.0]), 0) == 7.0
    assert eckart_young_floor(np.array([3.0, 2.0, 1.0]), 1) == 2.5
    assert eckart_young_floor(np.array([3.0, 2.0, 1.0]), 3) == 0.0


def test_eckart_young_floor_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="descend"):
        eckart_young_floor(np.array([1.0, 2.0]), 1)
    with pytest.raises(ValueError, match="r is -1"):
        eckart_young_floor(np.array([2.0, 1.0]), -1)
    with pytest.raises(ShapeError, match="singular_values"):
        eckart_young_floor(np.eye(2), 1)


# --- errors and the table --------------------------------------------------------------------


@pytest.mark.parametrize(
    "M, message",
    [
        (np.ones(3), r"M has shape \(3,\)"),
        (np.ones((2, 3, 4)), r"M has shape \(2, 3, 4\)"),
        (np.ones((0, 3)), r"M has shape \(0, 3\)"),
        ((np.ones((3, 0)), np.ones((0, 3))), r"B has shape \(3, 0\)"),
        ((np.ones((3, 2)), np.ones(2)), r"A has shape \(2,\)"),
        ((np.ones((3, 2)), np.ones((3, 4))), r"A has shape \(3, 4\): \(2, in\) is expected"),
        ((np.ones((3, 2)),), "tuple of 1"),
    ],
)
def test_wrong_shapes_are_named_with_what_was_expected(M, message):
    with pytest.raises(ShapeError, match=message):
        spectrum(M)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused_by_name(bad):
    M = np.ones((2, 2))
    M[1, 0] = bad
    for argument, name in ((M, "M"), ((M, np.eye(2)), "B"), ((np.eye(2), M), "A")):
        with pytest.raises(ValueError, match=f"{name} has entries that are not finite"):
            spectrum(argument)
    with pytest.raises(ValueError, match="scale is"):
        spectrum(np.eye(2), scale=bad)


def test_complex_matrices_are_refused():
    with pytest.raises(TypeError, match="M has dtype complex128"):
        spectrum(1j * np.eye(2))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_energy_rank_refuses_fractions_outside_its_range(fraction):
    with pytest.raises(ValueError, match="fraction is"):
        spectrum(np.eye(2)).energy_rank(fraction)


def test_the_printed_table_states_every_measure():
    lines = str(spectrum(np.diag([2.0, 1.0, 1.0, 0.0]))).splitlines()
    assert lines[0] == "4 x 4 matrix, sigma_1 = 2"
    assert {line[2:22].strip(): float(line[22:]) for line in lines[1:]} == {
        "numerical rank": 3,
        "stable rank": 1.5,
        "participation ratio": 2.0,
        "effective rank": 2.83,
        "90% energy rank": 3,
        "95% energy rank": 3,
        "99% energy rank": 3,
    }


@pytest.mark.gpu
def test_spectrum_on_the_gpu_equals_that_on_the_host():
    cupy = get_device("cuda")  # an error, and not a skip, where there is none
    B, A = normal(0, 30, 4), normal(1, 4, 20)
    pairs = [
        (spectrum(B), spectrum(cupy.asarray(B))),
        (spectrum((B, A), 2.0), spectrum((cupy.asarray(B), cupy.asarray(A)), 2.0)),
    ]
    for host, device in pairs:
        assert isinstance(device.singular_values, np.ndarray)
        np.testing.assert_allclose(device.singular_values, host.singular_values, rtol=1e-10)
