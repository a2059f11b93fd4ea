"""Connections that are dropped when their client is too slow, and a server that finishes its work.

Only server.py imports this file: it needs the packages of the extra ``serve``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """A connection that waits for its client, but not for ever.

    uvicorn closes a connection that is idle after a response. This class also closes one whose
    request does not begin or whose head stays incomplete, and one whose client does not read.

    The seconds are ``timeout_keep_alive`` of uvicorn's configuration.
    """

    _head: asyncio.TimerHandle | None = None  # set while the head of a request is awaited
    _reader: asyncio.TimerHandle | None = None  # set while more is written than the client reads

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._head = self._drop_later()

    def data_received(self, data: bytes) -> None:
        """Take bytes; stop waiting once a request is being answered."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _stopped(self._head)
        elif self._head is None:
            self._head = self._drop_later()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._head = _stopped(self._head)  # uvicorn's own timer runs until bytes arrive

    def pause_writing(self) -> None:
        """Wait until the client has read enough."""
        super().pause_writing()
        self._reader = self._reader or self._drop_later()

    def resume_writing(self) -> None:
        """Stop waiting: the client has read enough."""
        super().resume_writing()
        self._reader = _stopped(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._head, self._reader = _stopped(self._head), _stopped(self._reader)

    def _drop_later(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.timeout_keep_alive, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer, and return None, which takes its place."""
    if timer is not None:
        timer.cancel()


class SignalledServer(uvicorn.Server):
    """A server that says when it is ready, and leaves it to a function what a signal means.

    Parameters
    ----------
    config : uvicorn.Config
    on_ready : callable
        Called without arguments once it listens and takes signals.
    on_signal : callable
        Called with the signal's number, between two instructions of the main thread.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], object],
        on_signal: Callable[[int], object],
    ) -> None:
        super().__init__(config)
        self._on_ready, self._on_signal = on_ready, on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Pass the signal on. uvicorn's own method would raise it again at the end."""
        self._on_signal(sig)
