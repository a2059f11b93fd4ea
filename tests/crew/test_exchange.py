"""Exchanges between the members of a crew: what they return, what they count, who is missed."""

import os
import signal

import numpy as np
import pytest

from lora_np import crew
from lora_np.crew import CrewError, Exchange, MemberLost, Processes, Threads, exchange
from lora_np.crew.exchange import ROOM, shares

needs_fork = pytest.mark.skipif(not crew.can_fork(), reason="processes are forked on Linux only")
CREWS = [Threads, pytest.param(Processes, marks=needs_fork)]
every_crew = pytest.mark.parametrize("make", CREWS, ids=["threads", "processes"])


def own(member, n):
    """Numbers of a member, of which no two are alike."""
    return np.random.default_rng(member).standard_normal(n)


@every_crew
@pytest.mark.parametrize("n", [1, 5, ROOM, 2 * ROOM + 3])
@pytest.mark.parametrize("size", [2, 3])
def test_all_members_receive_the_same_sum(make, size, n):
    board = Exchange(size, float, ["sums", "rest"])
    with make(lambda member, x: board.all_reduce(member, x, "sums"), size) as members:
        first = members.map([own(m, n) for m in range(size)])
        again = members.map([own(m + size, n) for m in range(size)])
    assert np.array_equal(first[0], sum(own(m, n) for m in range(size)))  # in the members' order
    assert np.array_equal(again[0], sum(own(m + size, n) for m in range(size)))
    assert all(np.array_equal(y, first[0]) for y in first)
    assert board.sent() == {"sums": 2 * 2 * (size - 1) * n, "rest": 0}


@every_crew
@pytest.mark.parametrize("lengths", [[4, 3], [0, 2], [ROOM + 1, 0], [2, 0, 2 * ROOM + 5]])
def test_all_members_receive_all_parts(make, lengths):
    board = Exchange(len(lengths), float, ["parts"])

    def work(member, x):
        return [board.all_gather(member, x + i, lengths, "parts") for i in range(2)]

    held = [own(m, n) for m, n in enumerate(lengths)]
    with make(work, len(lengths)) as members:
        found = members.map(held)
    for once, twice in found:
        for x, y, z in zip(held, once, twice):
            assert np.array_equal(y, x) and np.array_equal(z, x + 1)
    assert board.sent() == {"parts": 2 * (len(lengths) - 1) * sum(lengths)}


def test_a_member_alone_sends_nothing():
    board = Exchange(1, float, ["sums"])
    assert board.all_reduce(0, np.ones((2, 2)), "sums").tolist() == [[1.0, 1.0]] * 2
    assert board.all_gather(0, np.ones(2), [2], "sums")[0].tolist() == [1.0, 1.0]
    assert board.sent() == {"sums": 0}


def waits(end):
    """A crew of two whose member 1 ends instead of taking part; the replies of `map`."""
    board = Exchange(2, float, ["sums"])

    def work(member, item):
        if member == 1:
            end(board)
        try:
            return board.all_reduce(member, np.ones(1), "sums")
        except MemberLost as lost:
            return lost

    with Processes(work, 2) as members:
        board.know([process.pid for process in members.processes])
        return members.map([0, 0])


@needs_fork
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_who_waits_for_a_member_that_is_gone_ends_too(sign, monkeypatch):
    for module in (exchange, crew.processes):  # seconds
        monkeypatch.setattr(module, "PATIENCE", 0.2)
        monkeypatch.setattr(module, "BEAT", 0.05)
    with pytest.raises(CrewError, match=r"killed|stopped from outside"):
        waits(lambda board: os.kill(os.getpid(), sign))


@needs_fork
def test_who_waits_for_a_member_that_failed_learns_it():
    def end(board):
        board.fail()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        waits(end)


def test_shares_are_as_equal_as_they_can_be():
    for n in range(12):
        for size in range(1, 6):
            widths = [s.stop - s.start for s in shares(n, size)]
            assert sum(widths) == n and max(widths) - min(widths) <= 1
