"""lora_np.data.packing: packing moves samples and changes nothing in them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.data import DataError, Epochs, Sample, packed, padded
from lora_np.ops.loss import IGNORE_INDEX

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def made(tokens, labelled):
    return Sample(np.array(tokens), np.array(labelled))


def drawn(lengths, seed=0):
    """Samples of random tokens and labels; token ids 0 and 2, usual as padding, are common."""
    rng = np.random.default_rng(seed)
    return [Sample(rng.integers(0, 4, n), rng.random(n) < 0.5) for n in lengths]


def naive_targets(sample):
    T = len(sample.tokens)
    return [
        int(sample.tokens[t + 1]) if t + 1 < T and sample.labelled[t + 1] else IGNORE_INDEX
        for t in range(T)
    ]


def unpacked(tokens, targets, positions):
    """Return every sample of the rows as (tokens, targets), in any order."""
    samples = []
    for row in zip(tokens, targets, positions, strict=True):
        starts = [0, *(np.flatnonzero(np.diff(row[2]) != 1) + 1), row[2].size]
        root = 0
        for start, stop in itertools.pairwise(starts):
            shared = int(row[2][start])
            root = root if shared else start
            before = row[0][root : root + shared].tolist()
            no_target = [IGNORE_INDEX] * shared
            own = (row[0][start:stop].tolist(), row[1][start:stop].tolist())
            samples.append((before + own[0], no_target + own[1]))
    return samples


@given(LENGTHS, st.integers(1, 6))
def test_packed_rows_hold_each_sample_once_and_padding_without_targets(lengths, rows):
    samples = drawn(lengths)
    tokens, targets, positions = packed(samples, rows)
    assert tokens.shape == targets.shape == positions.shape
    assert len(tokens) == min(rows, len(samples))
    found = unpacked(tokens, targets, positions)
    for sample in samples:  # in any order; list.remove raises if it is absent
        found.remove((sample.tokens.tolist(), naive_targets(sample)))
    assert len(found) <= len(tokens)  # what is left is the padding of a row
    for padding, no_targets in found:
        assert set(padding) == {0} and set(no_targets) == {IGNORE_INDEX}


@given(LENGTHS, st.integers(1, 6))
def test_padding_of_a_row_is_at_most_the_longest_sample(lengths, rows):
    samples = [made([7] * n, [True] * n) for n in lengths]
    tokens, targets, positions = packed(samples, rows)
    assert int(positions.max()) < max(lengths)
    assert int((tokens == 7).sum()) == sum(lengths)
    assert int((targets != IGNORE_INDEX).sum()) == sum(lengths) - len(lengths)
    assert int((tokens == 0).sum(1).max()) <= max(lengths)
    assert tokens.shape[1] * len(tokens) <= sum(lengths) + (len(tokens) - 1) * max(lengths)


def test_the_largest_sample_goes_first_into_the_shortest_row():
    samples = [made([k] * n, [True] * n) for k, n in enumerate((1, 2, 5, 2, 4), start=1)]
    tokens, _, positions = packed(samples, 2)
    assert tokens.tolist() == [[3, 3, 3, 3, 3, 4, 4], [5, 5, 5, 5, 2, 2, 1]]
    assert positions.tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 0, 1, 0]]


@given(LENGTHS)
def test_padded_rows_are_the_samples_in_order(lengths):
    samples = drawn(lengths)
    tokens, targets = padded(samples)
    assert tokens.shape == targets.shape == (len(lengths), max(lengths))
    for row, target, sample in zip(tokens, targets, samples, strict=True):
        T = len(sample)
        assert row.tolist() == sample.tokens.tolist() + [0] * (max(lengths) - T)
        assert target.tolist() == naive_targets(sample) + [IGNORE_INDEX] * (max(lengths) - T)


def ids(samples):
    return [int(sample.tokens[0]) for sample in samples]


def of_lengths(lengths):
    """Samples that their first token tells apart."""
    return [made([k] + [0] * (n - 1), [True] * n) for k, n in enumerate(lengths)]


@given(LENGTHS, st.integers(1, 25), st.integers(0, 3), st.booleans())
def test_every_epoch_holds_every_sample_once(lengths, batch_size, epoch, by_length):
    batches = Epochs(of_lengths(lengths), batch_size, seed=1, by_length=by_length)
    steps = range(batches.steps(epoch), batches.steps(epoch + 1))
    sizes = [len(batches.samples(step)) for step in steps]
    assert sorted(i for step in steps for i in ids(batches.samples(step))) == list(
        range(len(lengths))
    )
    whole, rest = divmod(len(lengths), batch_size)
    expected = [batch_size] * whole + [rest] * (rest > 0)
    assert (sorted(sizes, reverse=True) if by_length else sizes) == expected


def test_the_batches_depend_on_the_step_the_seed_and_nothing_else():
    samples = of_lengths([3] * 40)
    forward, other = Epochs(samples, 8, seed=5), Epochs(samples, 8, seed=5)
    in_order = [ids(forward.samples(step)) for step in range(15)]
    assert [ids(other.samples(step)) for step in reversed(range(15))] == in_order[::-1]
    epochs = [in_order[start : start + 5] for start in (0, 5, 10)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert ids(Epochs(samples, 8, seed=6).samples(0)) != in_order[0]


def test_an_epochs_order_is_the_permutation_of_its_seed_and_number():
    batches = Epochs(of_lengths([1] * 10), 4, seed=9)
    order = np.random.default_rng([9, 2]).permutation(10).tolist()
    assert [ids(batches.samples(step)) for step in (6, 7, 8)] == [order[:4], order[4:8], order[8:]]


def test_batches_by_length_need_less_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 300).tolist()
    sizes = []
    for by_length in (False, True):
        batches = Epochs(of_lengths(lengths), 8, seed=0, by_length=by_length)
        sizes.append(sum(padded(batches.samples(s))[0].size for s in range(batches.steps(1))))
    assert sum(lengths) <= sizes[1] < 0.7 * sizes[0]
    longest = [max(map(len, batches.samples(step))) for step in range(batches.steps(1))]
    assert longest != sorted(longest)  # the batches themselves come in random order


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: packed([], 2), "a batch of no samples: pass at least one"),
        (lambda: padded([]), "a batch of no samples: pass at least one"),
        (lambda: Epochs([], 2, 0), "a batch of no samples: pass at least one"),
        (lambda: packed(of_lengths([2]), 0), "rows=0, expected at least 1"),
        (lambda: Epochs(of_lengths([2]), 0, 0), "batch_size=0, expected at least 1"),
        (
            lambda: made([1, 2], [True]),
            "a sample has tokens of shape (2,) and labels of shape (1,), expected one label for "
            "each of at least one token",
        ),
        (
            lambda: made([], []),
            "a sample has tokens of shape (0,) and labels of shape (0,), expected one label for "
            "each of at least one token",
        ),
    ],
)
def test_what_is_no_batch_is_refused(call, message):
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value) == message


def test_samples_that_begin_alike_stay_together():
    prompts = [[1] * 9, [2] * 9, [3] * 9]
    samples = [made([*p, i, 0], [False] * 10 + [True]) for i in range(8) for p in prompts]
    batches = Epochs(samples, 4, seed=0, together=4)
    seen = []
    for step in range(batches.steps(1)):
        batch = batches.samples(step)
        assert len({sample.tokens[0] for sample in batch}) == 1
        seen += batch
    assert set(seen) == set(samples) and len(seen) == len(samples)
    kinds = [int(sample.tokens[0]) for sample in seen[::4]]
    assert kinds != sorted(kinds)
    other = [batches.samples(step) for step in range(batches.steps(1), batches.steps(2))]
    assert [s for batch in other for s in batch] != seen


@pytest.mark.parametrize("how", [{}, {"together": 2}, {"by_length": True}])
def test_an_epoch_is_drawn_once_and_every_step_asked_again_is_the_same(monkeypatch, how):
    """At 50,000 samples a draw at every step takes as long as a step of a small model."""
    epochs = Epochs(drawn([3, 1, 4, 1, 5, 9, 2]), 2, seed=0, **how)
    steps = range(3 * epochs.steps(1))
    asked = [ids(Epochs(epochs._samples, 2, seed=0, **how).samples(step)) for step in steps]
    calls, draw = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: calls.append(seed) or draw(seed))
    assert [ids(epochs.samples(step)) for step in steps] == asked
    assert calls == [[0, 0], [0, 1], [0, 2]]
    assert ids(epochs.samples(1)) == asked[1]
