"""The pool: leases never overlap, every page comes back, and moving changes no number."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np.serve.pool import Pool


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 7), st.integers(0, 99), st.booleans()), max_size=60
    )
)
def test_leases_keep_their_numbers_whatever_is_taken_and_given_back(turns):
    pool, held = Pool(20, 3), []
    for i, (take, pages, which, at_end) in enumerate(turns):
        if take or not held:
            lease = pool.take(pages, at_end)
            assert (lease is None) == (pages > pool.free + (pages if lease else 0))
            if lease is not None:
                lease.numbers[:] = i
                held.append((lease, i))
        else:
            lease, _ = held.pop(which % len(held))
            pool.give_back(lease)
        assert all((lease.numbers == number).all() for lease, number in held)
        assert pool.free == 20 - sum(lease.pages for lease, _ in held)
        places = [p for lease, _ in held for p in range(lease.start, lease.start + lease.pages)]
        assert len(set(places)) == len(places) and set(places) <= set(range(20))
    for lease, _ in held:
        pool.give_back(lease)
    assert pool.take(20).start == 0  # one run again


def test_leases_are_moved_only_if_no_run_is_long_enough():
    pool = Pool(10, 2)
    a, b, c, d = (pool.take(n) for n in (2, 3, 3, 2))
    c.numbers[:], d.numbers[:] = 1.0, 2.0
    pool.give_back(a)
    assert pool.take(2).start == 0 and pool.moves == 0
    pool.give_back(b)
    e = pool.take(3)
    assert (e.start, pool.moves) == (2, 0)
    pool.give_back(e)
    pool.give_back(d)
    long = pool.take(5)  # free: 2 to 4, and 8 to 9
    assert (pool.moves, long.start, c.start) == (1, 5, 2)
    assert (c.numbers == 1.0).all()


def test_two_kinds_of_leases_keep_to_two_sides():
    pool = Pool(12, 2)
    left, right = [pool.take(2) for _ in range(2)], [pool.take(3, at_end=True) for _ in range(2)]
    assert [lease.start for lease in (*left, *right)] == [0, 2, 9, 6]
    pool.give_back(left[0])
    pool.give_back(right[0])
    right[1].numbers[:], left[1].numbers[:] = 1.0, 2.0
    assert pool.take(6).start == 2  # free before: 0 to 1, 4 to 5, 9 to 11
    assert (left[1].start, right[1].start, pool.moves) == (0, 9, 1)
    assert (right[1].numbers == 1.0).all() and (left[1].numbers == 2.0).all()


def test_a_lease_is_an_array_of_the_pool_itself():
    pool = Pool(4, 5, np.float64)
    lease = pool.take(2)
    assert lease.numbers.shape == (10,) and np.shares_memory(lease.numbers, pool.memory)


def test_what_is_no_lease_is_refused():
    pool = Pool(4, 5)
    lease = pool.take(1)
    pool.give_back(lease)
    with pytest.raises(ValueError, match="given back before"):
        pool.give_back(lease)
    with pytest.raises(ValueError, match="at least 1"):
        pool.take(0)
    with pytest.raises(ValueError, match="0 pages of 5 numbers"):
        Pool(0, 5)


@pytest.mark.parametrize("pages", [10**13, 10**30])
def test_more_memory_than_there_is_is_refused(pages):
    with pytest.raises(ValueError, match=rf"{pages} pages take \d+ GiB, .* choose fewer"):
        Pool(pages, 1000)


def test_a_move_takes_no_second_memory():
    pool = Pool(1000, 100)
    first, long = pool.take(1), pool.take(900)
    long.numbers[:] = np.arange(90_000)
    pool.give_back(first)
    tracemalloc.start()
    pool.take(100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (pool.moves, long.start) == (1, 0) and peak < 90_000
    np.testing.assert_array_equal(long.numbers, np.arange(90_000))
