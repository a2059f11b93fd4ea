"""lora_np.forms.gguf: every type against a slow decoder written from its description."""

import pickle

import numpy as np
import pytest

from lora_np.forms import BLOCKS, Q8_0, Bfloat16, Float16, Nf4
from lora_np.layers.stored import StoredParameter
from lora_np.parameters import Parameter
from tests.naive_gguf import NAIVE, random_blocks

every_type = pytest.mark.parametrize("name", BLOCKS)


def random_form(name, shape, seed=0):
    kind = BLOCKS[name]
    n = int(np.prod(shape)) // kind.block_size
    return kind.over(shape, random_blocks(name, n, np.random.default_rng(seed)).reshape(-1))


def bits(x):
    return np.ascontiguousarray(x).view({4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


# --- decoding ------------------------------------------------------------------------------------


@every_type
def test_the_numbers_are_those_of_the_slow_decoder_bit_for_bit(name):
    kind = BLOCKS[name]
    form = random_form(name, (3, 2 * kind.block_size))
    blocks = form.parts["blocks"].reshape(-1, kind.block_bytes)
    slow = np.array([NAIVE[name](bytes(block)) for block in blocks], np.float32)
    found = form.decode(np.float32)
    assert found.shape == (3, 2 * kind.block_size) and found.dtype == np.float32
    assert np.isfinite(found).all() and len(np.unique(found)) > 50
    np.testing.assert_array_equal(bits(found), bits(slow.reshape(found.shape)))
    np.testing.assert_array_equal(form.decode(np.float64), found.astype(np.float64))


@every_type
def test_many_blocks_are_decoded_as_each_is_alone(name):
    kind = BLOCKS[name]
    form = random_form(name, (70, 16 * 256))  # more numbers than are decoded at once
    whole = form.decode(np.float32)
    for row in (0, 31, 32, 69):
        alone = kind.over((1, 16 * 256), form.parts["blocks"][row])
        np.testing.assert_array_equal(alone.decode(np.float32)[0], whole[row])


@every_type
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_found_and_raises_no_warning(name, bad):
    kind = BLOCKS[name]
    form = random_form(name, (3, 512))
    assert form.finite()
    for start in kind.scales_at:
        blocks = form.parts["blocks"].copy().reshape(-1, kind.block_bytes)
        blocks[-1, start : start + 2] = np.array([bad], np.float16).view(np.uint8)
        broken = kind.over((3, 512), blocks)
        assert not broken.finite() and not np.isfinite(broken.decode(np.float32)).all()
        assert np.isfinite(broken.decode(np.float32)[:2]).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_narrow_number_that_is_not_finite_is_found(bad):
    x = np.linspace(-3e38, 3e38, 8, dtype=np.float32).reshape(2, 4)
    for form in (Float16.encode(x / 1e34), Bfloat16.encode(x), Nf4.encode(x)):
        assert form.finite()
    x[1, 2] = bad
    assert not Float16((2, 4), {"numbers": (x / 1e34).astype(np.float16)}).finite()
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    assert not Bfloat16((2, 4), {"bits": bits | np.isnan(x) * np.uint16(1)}).finite()


@every_type
def test_rows_must_be_whole_blocks(name):
    size = BLOCKS[name].block_size
    with pytest.raises(ValueError, match=rf"\(2, 16\): rows of {name} are whole blocks of {size}"):
        BLOCKS[name].over((2, 16), np.zeros(32, np.uint8))


# --- some of the rows ----------------------------------------------------------------------------

FORMS = {
    **{name: lambda name=name: random_form(name, (7, 512)) for name in BLOCKS},
    "float16": lambda: Float16.encode(np.random.default_rng(0).standard_normal((7, 5))),
    "bfloat16": lambda: Bfloat16.encode(np.random.default_rng(0).standard_normal((7, 5))),
    "nf4": lambda: Nf4.encode(np.random.default_rng(0).standard_normal((7, 5))),
    "three axes": lambda: random_form("Q4_1", (7, 3, 64)),
}
INDICES = [
    np.array([3, 0, 3, -1]),
    np.array([[1, 2, 2], [0, 6, 5]]),
    np.array(4),
    np.zeros((0,), int),
    slice(2, 5),
    slice(None, None, 3),
]


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_taken_rows_are_those_of_the_decoded_array(make, index):
    form = make()
    whole = form.decode(np.float32)
    found = form.take(index, np.float32)
    assert found.shape == whole[index].shape
    np.testing.assert_array_equal(found, whole[index])
    for parameter in (StoredParameter(form), Parameter(whole)):
        np.testing.assert_array_equal(parameter.take(index), whole[index])


def test_a_vector_is_taken_from_entry_by_entry():
    form = random_form("Q8_0", (64,))
    index = np.array([[63, 0], [5, 5]])
    np.testing.assert_array_equal(form.take(index, np.float32), form.decode(np.float32)[index])
    with pytest.raises(ValueError, match=r"an array of shape \(64,\) has no rows"):
        form.rows(index)


@every_type
def test_only_the_rows_that_are_taken_are_decoded(name, monkeypatch):
    form, decoded = random_form(name, (100, 512)), []
    fill = BLOCKS[name].fill

    def counting(out, blocks):
        decoded.append(len(blocks))
        fill(out, blocks)

    monkeypatch.setattr(BLOCKS[name], "fill", staticmethod(counting))
    StoredParameter(form).take(np.array([[5, 7, 5]]))
    assert sum(decoded) == 3 * 512 // BLOCKS[name].block_size


@every_type
def test_rows_in_another_order_stay_packed(name):
    form = random_form(name, (6, 256))
    order = np.array([5, 4, 0, 1, 3, 2])
    turned = form.rows(order)
    assert type(turned) is type(form) and turned.shape == (6, 256)
    assert turned.parts["blocks"].nbytes == form.parts["blocks"].nbytes
    np.testing.assert_array_equal(turned.decode(np.float32), form.decode(np.float32)[order])


# --- what stays as it is -------------------------------------------------------------------------


@every_type
def test_the_bytes_are_kept_and_never_changed(name):
    data = random_blocks(name, 8, np.random.default_rng(1)).reshape(-1)
    before, shape = data.copy(), (2, 4 * BLOCKS[name].block_size)
    data.flags.writeable = False
    form = BLOCKS[name].over(shape, data)
    assert np.shares_memory(form.parts["blocks"], data)
    p = StoredParameter(form)
    assert p.nbytes == data.nbytes and not p.value.flags.writeable
    assert not p.take(np.array([0])).flags.writeable
    np.testing.assert_array_equal(data, before)


@every_type
def test_a_stored_parameter_over_read_only_bytes_is_pickled_copied_and_shared(name):
    form = random_form(name, (4, 256))
    form.parts["blocks"].flags.writeable = False
    p = StoredParameter(form)
    for twin in (pickle.loads(pickle.dumps(p, protocol=5)), p.copy(), p.share()):
        assert repr(twin) == f"StoredParameter((4, 256), float32 from {name.lower()})"
        np.testing.assert_array_equal(twin.value, p.value)
    assert np.shares_memory(p.share().form.parts["blocks"], form.parts["blocks"])
    assert p.copy().form.parts["blocks"].flags.writeable
    assert p.copy(np.float64).value.dtype == np.float64


# --- encoding Q8_0 -------------------------------------------------------------------------------


def test_encoding_is_exact_to_half_a_code():
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    form = Q8_0.encode(x)
    assert form.parts["blocks"].shape == (9, 68) and form.shape == (9, 64)
    d = np.abs(x).reshape(9, 2, 32).max(-1) / 127
    error = np.abs(form.decode(np.float64) - x).reshape(9, 2, 32).max(-1)
    assert (error < 0.5 * d + 127 * d * 2.0**-11).all()  # d is rounded to float16, too
    assert error.max() > 0.4 * d.max()


def test_zeros_and_tiny_numbers_become_zero_without_a_warning():
    x = np.zeros((2, 32), np.float32)
    x[1] = 1e-41
    assert not Q8_0.encode(x).decode(np.float32).any()


def test_a_number_halfway_is_rounded_away_from_zero():
    x = np.zeros(32)
    x[:5] = 127.0, 0.5, -0.5, 1.5, 2.5
    assert Q8_0.encode(x).decode(np.float64)[:5].tolist() == [127.0, 1.0, -1.0, 2.0, 3.0]


def test_numbers_that_have_no_code_are_refused():
    with pytest.raises(ValueError, match="the largest number is 1e\\+08, too large for Q8_0"):
        Q8_0.encode(np.full((1, 32), 1e8))
    with pytest.raises(ValueError, match="some numbers are not finite"):
        Q8_0.encode(np.full((1, 32), np.nan))
    with pytest.raises(ValueError, match=r"shape \(3, 40\): rows of Q8_0 are whole blocks of 32"):
        Q8_0.encode(np.zeros((3, 40)))
