"""lora_np.forms.nf4: codes are the nearest, blocks stand alone, and errors are within bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from lora_np.forms import Nf4
from lora_np.forms.nf4 import DYNAMIC, PAIRS, Q, block_codes


def codes_of(form):
    """Return the codes of all numbers, one by one."""
    packed = form.parts["codes"]
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: int(np.prod(form.shape))]


def slowly(x, block_size):
    """Return codes and absmax, a number at a time, in float64."""
    codes, absmax = [], []
    for start in range(0, x.size, block_size):
        block = x.reshape(-1)[start : start + block_size].astype(np.float64)
        absmax.append(np.abs(block).max())
        for w in block / (absmax[-1] or 1.0):
            codes.append(min(range(16), key=lambda i: (abs(w - float(Q[i])), i)))
    return np.array(codes), np.array(absmax)


def test_the_values_are_quantiles_of_a_normal_distribution():
    # The middle probability of the first and the last of 16 equal parts, averaged: bitsandbytes.
    outermost = 0.5 * (1 - 1 / 30) + 0.5 * (1 - 1 / 32)
    above = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])  # 8 values above zero, 7 below
    below = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, [0.0], below]))
    np.testing.assert_allclose(Q, values / values.max(), atol=1e-6)
    assert PAIRS[0x3C:0x3D].view(np.float32).tolist() == [Q[3], Q[12]]


def test_the_second_values_are_decimal_exponents_and_fractions():
    assert len(DYNAMIC) == 256 and (np.diff(DYNAMIC) > 0).all()
    np.testing.assert_array_equal(
        DYNAMIC[:127], -DYNAMIC[254:127:-1]
    )  # between them 0, at the end 1
    for exponent in range(7):
        scale = 10.0 ** (exponent - 6)
        low, high = np.searchsorted(DYNAMIC, [0.1 * scale, scale])
        inside = DYNAMIC[low:high]
        exact = scale * (0.1 + 0.9 * (np.arange(2**exponent) + 0.5) / 2**exponent)
        np.testing.assert_allclose(inside, exact, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.sampled_from([32, 64]),
    st.integers(0, 2**32 - 1),
)
def test_codes_and_absmax_are_those_of_a_loop(shape, block_size, seed):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    form = Nf4.encode(x, block_size, double=False)
    codes, absmax = slowly(x, block_size)
    np.testing.assert_array_equal(codes_of(form), codes)
    np.testing.assert_array_equal(form.parts["absmax"], absmax.astype(np.float32))
    exact = Q[codes] * np.repeat(absmax, block_size)[: x.size].astype(np.float32)
    np.testing.assert_array_equal(form.decode(np.float32).reshape(-1), exact)


def test_a_number_halfway_between_two_values_gets_the_lower_code():
    halves = (Q[:-1] + Q[1:]) / 2
    x = np.zeros(64, np.float32)
    x[:15], x[15], x[16:31] = halves, 1.0, np.nextafter(halves, np.float32(2.0))
    codes = codes_of(Nf4.encode(x))
    assert codes[:15].tolist() == list(range(15)) and codes[15] == 15
    assert codes[16:31].tolist() == list(range(1, 16))


def test_the_values_themselves_and_zeros_are_exact():
    x = np.concatenate([3.0 * Q, np.zeros(48), np.zeros(64), -0.5 * Q]).astype(np.float32)
    found = Nf4.encode(x, double=False).decode(np.float32)
    np.testing.assert_array_equal(found[:128], x[:128])
    assert found[128:].tolist() == (0.5 * Q[codes_of(Nf4.encode(-Q))]).tolist()


def test_the_error_is_at_most_half_the_widest_gap_of_the_block():
    x = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    error = np.abs(Nf4.encode(x, double=False).decode(np.float64) - x)
    absmax = np.abs(x).max(axis=1, keepdims=True)
    assert (error <= absmax * np.diff(Q).max() / 2 * (1 + 1e-6)).all()
    assert error.max() > 0.9 * (absmax * np.diff(Q).max() / 2).min()


def test_a_block_is_independent_of_the_others():
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    alone = Nf4.encode(x[2], double=False).decode(np.float32)
    x[1] *= 1e6
    np.testing.assert_array_equal(Nf4.encode(x, double=False).decode(np.float32)[2], alone)


def test_double_quantisation_changes_absmax_by_less_than_two_percent_of_their_spread():
    x = np.random.default_rng(0).standard_normal((300, 128)).astype(np.float32)
    one, two = Nf4.encode(x, double=False), Nf4.encode(x)
    np.testing.assert_array_equal(one.parts["codes"], two.parts["codes"])
    absmax = one.parts["absmax"]
    sure = np.abs(Q[codes_of(one)]) == 1  # where a block has its absmax
    assert sure.sum() >= absmax.size
    found = np.abs(two.decode(np.float64).reshape(-1)[sure])
    exact = np.abs(one.decode(np.float64).reshape(-1)[sure])
    spread = np.abs(absmax - absmax.mean()).max()
    worst = np.abs(found - exact).max()
    assert 1e-4 * spread < worst < 0.02 * spread
    assert two.parts["absmax"].dtype == np.uint8 and two.parts["scales"].shape == (3,)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 5), (64,), (65,), (127, 1), (2, 64, 3)])
def test_every_shape_is_stored_the_last_block_filled_up(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    form = Nf4.encode(x)
    blocks = -(-x.size // 64)
    assert form.parts["codes"].shape == (32 * blocks,) and form.parts["absmax"].shape == (blocks,)
    found = form.decode(np.float64)
    assert found.shape == shape and found.dtype == np.float64
    assert np.abs(found - x).max() < 0.2 * np.abs(x).max() + 1e-12


def test_sizes_beyond_float32_do_not_become_infinite_or_nan():
    tiny = np.full(64, 1e-40, np.float32)  # below the smallest normal number
    assert np.isfinite(Nf4.encode(tiny).decode(np.float32)).all()
    huge = np.full(64, 3e38, np.float32)
    np.testing.assert_allclose(Nf4.encode(huge).decode(np.float64), 3e38, rtol=1e-6)
    with pytest.raises(ValueError, match=r"largest number is 1e\+39, too large for float32"):
        Nf4.encode(np.full(64, 1e39))


@pytest.mark.parametrize("block_size", [0, 1, 16, 48, 8192, -64, 64.0, "64", None])
def test_a_block_size_that_bitsandbytes_lacks_is_refused(block_size):
    with pytest.raises(ValueError, match="expected a power of 2 from 32 to 4096"):
        Nf4.encode(np.zeros(64), block_size)


def test_normal_numbers_do_not_use_all_codes_equally_often(rng):
    """The shares that the derivation names, of blocks of 64 numbers."""
    codes, _ = block_codes(rng.standard_normal(64 * 4000).astype(np.float32), 64, Q)
    share = np.bincount(codes, minlength=16) / codes.size
    assert share.argmax() == 6 and round(float(Q[6]), 2) == -0.09  # not 1/16 = 6 % each
    assert abs(share[6] - 0.09) < 0.005 and abs(share[15] - 0.02) < 0.005
