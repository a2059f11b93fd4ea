"""An adapter for each row: gathered, by segments, and as a loop; bad input; what is not copied."""

import itertools
import sys
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ops
from lora_np.backend import ShapeError
from lora_np.gradcheck import check_gradients
from lora_np.ops import Rows, fast
from lora_np.ops import many as textbook
from lora_np.ops.fast import many as segments
from lora_np.selfcheck import flat_pair
from tests import fake_cupy, naive
from tests.compare import close

TOL = 1e-12
both_forms = pytest.mark.parametrize("form", [ops, fast], ids=["textbook", "fast"])


@dataclass
class Batch:
    """The arguments of forward at random numbers, and a dy."""

    ids: list
    ranks: list
    middle: tuple = ()
    n_in: int = 4
    n_out: int = 3
    bias: bool = True
    one_scale: bool = False
    seed: int = 0

    def __post_init__(self):
        n = np.random.default_rng(self.seed).standard_normal
        lead = (len(self.ids), *self.middle)
        self.x, self.W0 = n((*lead, self.n_in)), n((self.n_out, self.n_in))
        self.adapters = [(n((r, self.n_in)), n((self.n_out, r))) for r in self.ranks]
        self.b = n(self.n_out) if self.bias else None
        self.scale = -0.7 if self.one_scale else [0.5 + a for a in range(len(self.ranks))]
        self.dy = n((*lead, self.n_out))

    def args(self):
        return self.x, self.W0, self.adapters, self.ids, self.b

    def both(self, form):
        """Return the output and the gradients of a form."""
        y, cache = form.lora_rows_forward(*self.args(), scale=self.scale)
        return y, form.lora_rows_backward(self.dy, cache)

    def loop(self):
        y = naive.lora_rows_forward(*self.args(), scale=self.scale)
        return y, naive.lora_rows_backward(self.dy, *self.args(), scale=self.scale)


def flat(y, gradients):
    dx, dW0, dA, dB, db = gradients
    return [y, dx, dW0, db, *dA, *dB]


def all_close(found, expected):
    for a, e in zip(flat(*found), flat(*expected), strict=True):
        assert (a is None) == (e is None)  # an adapter without rows, an absent bias
        if e is not None:
            close(a, e, TOL)


@st.composite
def batches(draw):
    ranks = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    ids = draw(st.lists(st.integers(-1, len(ranks) - 1), max_size=6))
    if draw(st.booleans()):
        ids.sort()
    axis = st.integers(1, 4)
    middle = draw(st.lists(st.integers(1, 3), max_size=2).map(tuple))
    flags = st.booleans()
    seed = draw(st.integers(0, 2**32))
    return Batch(ids, ranks, middle, draw(axis), draw(axis), draw(flags), draw(flags), seed)


MIXED = Batch([2, 0, -1, 3, 2, 0], [1, 2, 1, 3], (2,))


# --- gathered, sorted and the loop are equal ---------------------------------------------------


@both_forms
@given(batches())
def test_output_and_gradients_equal_a_loop_of_lora_linear(form, batch):
    all_close(batch.both(form), batch.loop())


@given(batches())
def test_the_segments_equal_the_gathered_product(batch):
    all_close(batch.both(fast), batch.both(ops))


def test_the_segments_are_taken_and_not_the_textbook():
    _, cache = fast.lora_rows_forward(*MIXED.args(), scale=1.0)
    assert isinstance(cache, segments.SegmentsCache)


@both_forms
@given(batches())
def test_the_order_of_the_rows_changes_nothing(form, batch):
    y, (dx, dW0, dA, dB, db) = batch.both(form)
    order = np.random.default_rng(batch.seed).permutation(len(batch.ids))
    batch.x, batch.dy = batch.x[order], batch.dy[order]
    batch.ids = [batch.ids[i] for i in order]
    all_close(batch.both(form), (y[order], (dx[order], dW0, dA, dB, db)))


@both_forms
@given(batches())
def test_rows_made_once_serve_as_ids(form, batch):
    expected = batch.both(form)
    batch.ids = Rows(batch.ids, len(batch.ranks))
    for a, e in zip(flat(*batch.both(form)), flat(*expected)):
        np.testing.assert_array_equal(a, e)


@both_forms
def test_one_adapter_for_all_rows_is_lora(form):
    batch = Batch([0, 0, 0], [2], (3,), one_scale=True)
    (A, B), scale = batch.adapters[0], batch.scale
    y, (dx, dW0, dA, dB, db) = batch.both(form)
    lora_y, cache = ops.lora_linear_forward(batch.x, batch.W0, A, B, batch.b, scale=scale)
    expected = lora_y, *ops.lora_linear_backward(batch.dy, cache)
    for a, e in zip((y, dx, dW0, dA[0], dB[0], db), expected):
        close(a, e, TOL)


@both_forms
def test_rows_of_the_base_alone_have_exactly_its_output(form):
    batch = Batch([-1, 1, -1, -1], [2, 2])
    y, (dx, *_) = batch.both(form)
    base, cache = form.linear_forward(batch.x, batch.W0, batch.b)
    theirs, _, _ = ops.linear_backward(batch.dy, cache)
    np.testing.assert_array_equal(y[[0, 2, 3]], base[[0, 2, 3]])
    np.testing.assert_array_equal(dx[[0, 2, 3]], theirs[[0, 2, 3]])
    assert np.abs(y[1] - base[1]).max() > 0.1


@both_forms
@pytest.mark.parametrize("ids", [[], [-1, -1]])
def test_without_a_row_of_an_adapter_its_gradients_are_none(form, ids):
    batch = Batch(ids, [1, 2])
    y, (dx, dW0, dA, dB, db) = batch.both(form)
    assert y.shape == (len(ids), 3) and dx.shape == (len(ids), 4)
    assert dA == dB == [None, None]
    close(dW0, batch.dy.T @ batch.x)
    close(db, batch.dy.sum(axis=0))


@both_forms
def test_no_adapters_at_all_are_the_base(form):
    batch = Batch([-1, -1], [])
    np.testing.assert_array_equal(batch.both(form)[0], batch.x @ batch.W0.T + batch.b)


# --- the contract of a pair --------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("method", ["complex", "central"])
@given(batches())
def test_gradients_match_numeric_ones(form, method, batch):
    if batch.b is None or not batch.ids:
        return
    used = [pair for a, pair in enumerate(batch.adapters) if a in batch.ids]
    number = {a: i for i, a in enumerate(sorted({a for a in batch.ids if a >= 0}))}
    inputs = {"x": batch.x, "W0": batch.W0, "b": batch.b}
    inputs |= {f"{name}{i}": f for i, pair in enumerate(used) for name, f in zip("AB", pair)}
    ids = [number.get(a, -1) for a in batch.ids]
    check_gradients(*flat_pair(form), inputs, method=method, ids=ids, scale=0.7).raise_if_wrong()


def times(factor, slot):
    """Return a backward whose gradients in one slot are wrong by a factor."""

    def backward(dy, cache, need=None, right=ops.lora_rows_backward):
        found = list(right(dy, cache, need))
        if isinstance(found[slot], list):
            found[slot] = [None if d is None else factor * d for d in found[slot]]
        elif found[slot] is not None:
            found[slot] = factor * found[slot]
        return tuple(found)

    return backward


@pytest.mark.parametrize("slot", range(5))
def test_a_planted_mistake_is_found(slot, monkeypatch):
    monkeypatch.setattr(ops, "lora_rows_backward", times(1.001, slot))
    found = MIXED.both(ops)
    with pytest.raises(AssertionError):
        all_close(found, MIXED.loop())
    inputs = {"x": MIXED.x, "W0": MIXED.W0, "b": MIXED.b}
    inputs |= dict(zip(("A0", "B0"), MIXED.adapters[0]))
    ids = [0, -1, 0, 0, -1, 0]
    report = check_gradients(*flat_pair(ops), inputs, method="complex", ids=ids, scale=0.7)
    assert not report.ok


@both_forms
def test_need_forms_what_is_wanted_and_nothing_else(form):
    _, cache = form.lora_rows_forward(*MIXED.args(), scale=MIXED.scale)
    everything = form.lora_rows_backward(MIXED.dy, cache)
    for need in itertools.product((True, False), repeat=5):
        for found, full, wanted in zip(
            form.lora_rows_backward(MIXED.dy, cache, need), everything, need, strict=True
        ):
            assert (found is not None) == wanted
            for a, e in zip(found, full) if isinstance(found, list) else [(found, full)]:
                if wanted:
                    np.testing.assert_array_equal(a, e)


@both_forms
@pytest.mark.parametrize("length", [4, 6])
def test_need_of_the_wrong_length_is_refused(form, length):
    _, cache = form.lora_rows_forward(*MIXED.args(), scale=1.0)
    with pytest.raises(ValueError, match=f"need has {length} entries, expected 5"):
        form.lora_rows_backward(MIXED.dy, cache, (True,) * length)


@both_forms
@given(batches())
def test_nothing_is_written_to_and_no_memory_is_shared(form, batch):
    inputs = [batch.x, batch.W0, batch.dy, *(f for pair in batch.adapters for f in pair)]
    for array in inputs:
        array.flags.writeable = False
    found, again = batch.both(form), batch.both(form)
    for a, e in zip(flat(*found), flat(*again)):
        np.testing.assert_array_equal(a, e)
        assert a is None or not any(np.shares_memory(a, array) for array in inputs)


@both_forms
@pytest.mark.parametrize("scale", [np.float64(0.5), [np.float64(0.5)] * 4, np.full(4, 0.5)])
def test_float32_stays_float32_and_agrees_with_float64(form, scale):
    batch = Batch(MIXED.ids, MIXED.ranks, MIXED.middle)
    batch.scale = scale
    exact = batch.both(form)
    batch.x, batch.W0, batch.b, batch.dy = (
        a.astype(np.float32) for a in (batch.x, batch.W0, batch.b, batch.dy)
    )
    batch.adapters = [tuple(f.astype(np.float32) for f in pair) for pair in batch.adapters]
    for a, e in zip(flat(*batch.both(form)), flat(*exact)):
        if a is not None:
            assert a.dtype == np.float32
            close(a, e, 2e-5)


def test_adapters_of_another_dtype_are_computed_by_the_textbook():
    batch = Batch(MIXED.ids, MIXED.ranks)
    expected = batch.both(ops)
    batch.x, batch.W0, batch.b = (a.astype(np.float32) for a in (batch.x, batch.W0, batch.b))
    y, cache = fast.lora_rows_forward(*batch.args(), scale=batch.scale)
    assert not isinstance(cache, segments.SegmentsCache) and y.dtype == np.float32
    for a, e in zip(flat(y, fast.lora_rows_backward(batch.dy, cache)), flat(*expected)):
        if a is not None:
            close(a, e, 2e-5)


@both_forms
def test_a_device_has_the_numbers_of_the_host(form, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    expected = MIXED.both(form)
    batch = Batch(MIXED.ids, MIXED.ranks, MIXED.middle)
    batch.x, batch.W0, batch.b, batch.dy = map(
        fake_cupy.asarray, (batch.x, batch.W0, batch.b, batch.dy)
    )
    batch.adapters = [tuple(map(fake_cupy.asarray, pair)) for pair in batch.adapters]
    for a, e in zip(flat(*batch.both(form)), flat(*expected)):
        assert (a is None) == (e is None)
        if a is not None:
            close(fake_cupy.asnumpy(a), e, TOL)


# --- what the fast form does not copy ----------------------------------------------------------


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_segments_copy_no_factor_and_pad_no_rank():
    n, d = 64, 200
    ids, ranks = np.arange(n), [1] * (n - 1) + [100]
    batch = Batch(ids.tolist(), ranks, n_in=d, n_out=d, one_scale=True)
    factors = sum(A.nbytes + B.nbytes for A, B in batch.adapters)
    x, W0, adapters, _, b = batch.args()
    rows = Rows(ids, n)

    def gathered():
        ops.lora_rows_forward(x, W0, adapters, rows, b, scale=1.0)

    def sorted_():
        fast.lora_rows_forward(x, W0, adapters, rows, b, scale=1.0)

    assert peak_of(gathered) > factors
    assert peak_of(sorted_) < 4 * x.nbytes < factors  # y, the change, and u


def test_sorted_rows_are_a_slice_of_x():
    rows = Rows([-1, -1, 0, 2, 2], 3)
    x = np.arange(10.0).reshape(5, 2)
    assert np.shares_memory(segments._sorted(x, rows), x)
    assert rows.segments == [(0, 0, 1), (2, 1, 3)]
    assert not np.shares_memory(segments._sorted(x, Rows([1, 0, 0, 0, 0], 3)), x)


# --- bad input ---------------------------------------------------------------------------------


def o(*shape):
    return np.ones(shape)


BAD = [  # what is changed in the arguments, the error, its message
    ({"ids": [0, 1]}, ShapeError, r"ids has shape \(2,\), x has shape \(3, 4\)"),
    ({"ids": [[0, 1, 0]]}, ShapeError, r"ids has shape \(1, 3\), expected \(n,\)"),
    ({"ids": [0, 1, 2]}, IndexError, r"ids has the number 2, expected -1 .. 1: there are 2 adap"),
    ({"ids": [0, -2, 1]}, IndexError, "ids has the number -2, expected -1 .. 1"),
    ({"ids": [0.0, 1.0, 0.0]}, TypeError, "ids has dtype float64, expected integers"),
    ({"ids": [True, False, True]}, TypeError, "ids has dtype bool, expected integers"),
    ({"ids": Rows([0, 1, 2], 3)}, ValueError, "ids are for 3 adapters, but there are 2"),
    ({"x": o(4)}, ShapeError, r"x has shape \(4,\): expected x \(n, ..., in\)"),
    ({"x": o(3, 5)}, ShapeError, r"x has shape \(3, 5\), expected \(..., 4\)"),
    ({"W0": o(4)}, ShapeError, r"W0 has shape \(4,\), expected \(any, any\)"),
    ({"b": o(4)}, ShapeError, r"b has shape \(4,\), expected \(3,\)"),
    ({"A": o(2, 3)}, ShapeError, r"A of adapter 1 has shape \(2, 3\), expected \(any, 4\)"),
    ({"A": o(4)}, ShapeError, r"A of adapter 1 has shape \(4,\), expected \(any, 4\)"),
    ({"B": o(3, 1)}, ShapeError, r"B of adapter 1 has shape \(3, 1\), expected \(3, 2\)"),
    ({"B": o(1, 2)}, ShapeError, r"B of adapter 1 has shape \(1, 2\), expected \(3, 2\)"),
    ({"B": o(2)}, ShapeError, r"B of adapter 1 has shape \(2,\), expected \(3, 2\)"),
    ({"scale": [1.0]}, ShapeError, r"scale has shape \(1,\), expected one float, or \(2,\)"),
    ({"scale": o(2, 1)}, ShapeError, r"scale has shape \(2, 1\), expected one float, or \(2,\)"),
]


@both_forms
@pytest.mark.parametrize("change, error, message", BAD, ids=[m for *_, m in BAD])
def test_bad_input_is_named(form, change, error, message):
    given = {"x": o(3, 4), "W0": o(3, 4), "ids": [0, 1, -1], "b": o(3), "scale": 1.0}
    given |= {"A": o(2, 4), "B": o(3, 2)} | change
    adapters = [(o(1, 4), o(3, 1)), (given.pop("A"), given.pop("B"))]
    with pytest.raises(error, match=message):
        form.lora_rows_forward(adapters=adapters, **given)


@both_forms
def test_an_adapter_without_rows_is_not_looked_at(form):
    y, _ = form.lora_rows_forward(
        o(1, 4), o(3, 4), [(o(2, 4), o(3, 2)), (o(1), o(1))], [0], scale=1
    )
    close(y, np.full((1, 3), 12.0))


@both_forms
def test_dy_has_the_shape_of_y(form):
    _, cache = form.lora_rows_forward(*MIXED.args(), scale=1.0)
    with pytest.raises(ShapeError, match=r"dy has shape \(6, 3\), expected \(6, 2, 3\)"):
        form.lora_rows_backward(o(6, 3), cache)


def test_rows_keep_what_they_were_given():
    ids = np.array([1, 0, -1])
    rows = Rows(ids, 2)
    ids[:] = 0
    assert rows.ids.tolist() == [1, 0, -1] and len(rows) == 3
    assert textbook.BASE == -1
