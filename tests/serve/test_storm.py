"""A thousand requests over HTTP, many of them broken: each is answered or refused by name."""

import pytest

from tests.serve.storm import EXPECTED, storm

pytestmark = pytest.mark.slow


def test_every_request_is_answered_or_refused_and_nothing_is_left():
    result = storm(1000)
    for (kind, status), times in result.found.items():
        assert status in EXPECTED[kind], (kind, status, times)
    assert {kind for kind, _ in result.found} == set(EXPECTED)
    assert sum(result.found.values()) == sum(result.outcomes.values()) == 1000
    assert min(result.outcomes.values()) > 10  # each way to end was taken
    assert result.pages == [(0, 0, 0), (0, 0, 0)]
    assert (result.left.files, result.left.alive) == (0, 0)
