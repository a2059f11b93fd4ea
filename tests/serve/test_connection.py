"""A connection whose client does not read is dropped, and one whose client reads again is not."""

from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.server import ServerState

from lora_np.serve.http.connection import PatientProtocol


class Transport:
    """Remembers that it was aborted."""

    def __init__(self):
        self.aborted = False

    def abort(self):
        self.aborted = True

    def get_extra_info(self, name):
        return None


class Clock:
    """A loop whose timers go off when told."""

    def __init__(self):
        self.timers = []

    def call_later(self, seconds, function):
        timer = SimpleNamespace(seconds=seconds, go=function)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer


@pytest.fixture
def connection():
    async def app(scope, receive, send):
        pass

    config = uvicorn.Config(app, timeout_keep_alive=7, log_config=None, ws="none")
    clock, transport = Clock(), Transport()
    protocol = PatientProtocol(config, ServerState(), {}, clock)
    protocol.connection_made(transport)
    return protocol, clock, transport


def test_a_connection_that_says_nothing_is_dropped(connection):
    protocol, clock, transport = connection
    (timer,) = clock.timers
    protocol.data_received(b"GET / HT")  # an incomplete head gains no time
    assert clock.timers == [timer] and timer.seconds == 7
    timer.go()
    assert transport.aborted


def test_a_client_that_does_not_read_is_dropped_unless_it_reads_in_time(connection):
    protocol, clock, transport = connection
    first = list(clock.timers)
    protocol.pause_writing()
    protocol.resume_writing()
    assert clock.timers == first  # nothing is left of the wait
    protocol.pause_writing()
    clock.timers[-1].go()
    assert transport.aborted


def test_a_lost_connection_leaves_no_timer(connection):
    protocol, clock, _ = connection
    protocol.pause_writing()
    assert len(clock.timers) == 2
    protocol.connection_lost(OSError())
    assert clock.timers == []
