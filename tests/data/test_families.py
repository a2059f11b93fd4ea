"""Samples that begin alike: which they are, and what they share."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_np.data import Sample, packed
from lora_np.data.families import common_start, families, prompt_length
from lora_np.data.packing import packing_plan
from lora_np.layers.packing import Packing
from lora_np.ops.loss import IGNORE_INDEX


def sample(prompt, answer):
    return Sample([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


PROMPTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 1), min_size=1, max_size=12),
        st.lists(st.integers(0, 3), max_size=4),
    ),
    min_size=1,
    max_size=9,
)


def test_a_common_start_ends_before_the_first_target():
    one, other = sample([1, 2, 3], [4, 5]), sample([1, 2, 3], [4, 5])
    assert prompt_length(other) == 2  # the third token writes the answer
    assert common_start(one, other) == 2
    assert common_start(sample([1, 2, 9], [4]), other) == 2
    assert common_start(sample([9, 2, 3], [4]), other) == 0
    assert common_start(sample([1], []), other) == 1


def test_samples_whose_tokens_are_all_learned_share_nothing():
    text = Sample([1, 2, 3, 4], [True] * 4)
    assert common_start(text, text) == 0
    assert packing_plan([text, text], 1) == [[(0, 0), (1, 0)]]


def test_a_family_agrees_in_half_of_the_prompt():
    start = [7] * 6
    asked = [sample([*start, i], [1]) for i in range(3)]
    long = sample([*start, 9, 9, 9, 9, 9, 9, 9, 9], [1])
    assert families([*asked, long]) == [[0, 1, 2], [3]]


@given(PROMPTS, st.integers(1, 4))
def test_packed_rows_hold_what_each_sample_needs(drawn, rows):
    """Each sample is found again: what it shares, then its own tokens, and every target once."""
    samples = [sample(*parts) for parts in drawn]
    tokens, targets, positions = packed(samples, rows)
    plan = packing_plan(samples, rows)
    assert sorted(i for row in plan for i, _ in row) == list(range(len(samples)))
    segments = iter(Packing(positions).segments)
    for b, row in enumerate(plan):
        for i, start in row:
            segment = next(segments)
            while segment.row < b:  # padding
                segment = next(segments)
            assert segment.shared == start
            before = tokens[b, segment.root : segment.root + start]
            own = tokens[b, segment.start : segment.stop]
            assert np.concatenate((before, own)).tolist() == samples[i].tokens.tolist()
            found = targets[b, segment.start : segment.stop]
            assert found.tolist() == samples[i].targets[start:].tolist()
            assert (samples[i].targets[:start] == IGNORE_INDEX).all()


def test_no_row_waits_for_the_one_that_holds_a_family():
    asked = [sample([7] * 20 + [i], [1]) for i in range(8)]
    tokens, _, _ = packed(asked, 2)
    assert tokens.shape == (2, 22 + 3 * 2)
