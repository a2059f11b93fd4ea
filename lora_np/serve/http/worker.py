"""The engine's own thread: commands arrive in an inbox, and tokens leave once a step.

The engine is not thread-safe, so one thread owns it, and the server's event loop never touches it::

    event loop                                    worker
      do(function) ------ inbox, in order ----->    function(engine)
      sink.take(event) <-- call_soon_threadsafe --  after each step: all its tokens, what is over

A step's tokens are delivered together, because waking the loop for each token would cost more than
a small model's step. The worker never waits for a reader, so a slow client holds nobody up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol


class Stopped(RuntimeError):
    """The worker has stopped: it takes no more commands."""


class Sink(Protocol):
    """Where the tokens of a request go."""

    def take(self, event: Any) -> None:
        """Take a token (an int), the request once it is over, or what the engine raised."""


class Worker(threading.Thread):
    """Runs an engine.

    Parameters
    ----------
    engine : Engine
        Used by this thread alone from now on.
    loop : asyncio.AbstractEventLoop
        Where the sinks live.
    on_crash : callable
        Called in the event loop, without arguments, if the engine raises an exception.

    Attributes
    ----------
    counts : Counts
        The engine's counts after the last step or command; any thread may read it.
    error : BaseException or None
        What the engine raised.
    """

    def __init__(
        self, engine: Any, loop: asyncio.AbstractEventLoop, on_crash: Callable[[], object]
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._engine, self._loop, self._on_crash = engine, loop, on_crash
        self._inbox: SimpleQueue[tuple[Callable[[Any], Any], Future] | None] = SimpleQueue()
        self._live: dict[Sink, Any] = {}  # and their requests
        self._events: list[tuple[Sink, Any]] = []
        self._closed, self._lock = False, threading.Lock()
        self.counts = engine.counts()
        self.error: BaseException | None = None

    # --- called from the event loop ---------------------------------------------------------------

    def do(self, function: Callable[[Any], Any]) -> Future:
        """Run ``function(engine)`` between two steps; return the future of its result.

        Raises
        ------
        Stopped
            If the worker has stopped.
        """
        future: Future = Future()
        with self._lock:  # so that nothing enters the inbox after _close has emptied it
            if self._closed:
                raise Stopped("the engine has stopped")
            self._inbox.put((function, future))
        return future

    def submit(self, sink: Sink, *arguments: Any, **options: Any) -> Future:
        """Submit a request whose tokens go to a sink.

        `arguments` and `options` are those of the engine's ``submit``. The future's result is the
        request, or the engine's ValueError.
        """

        def submit(engine: Any) -> Any:
            def on_token(token: int) -> None:
                self._events.append((sink, int(token)))

            self._live[sink] = request = engine.submit(*arguments, **options, on_token=on_token)
            return request

        return self.do(submit)

    def cancel(self, sink: Sink) -> None:
        """Cancel a sink's request, unless it is over."""

        def cancel(engine: Any) -> None:
            if sink in self._live:
                engine.cancel(self._live[sink])

        with suppress(Stopped):
            self.do(cancel)

    def stop(self) -> None:
        """End the thread after the commands in the inbox; what still runs is left."""
        self._inbox.put(None)

    # --- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Carry out commands and steps until told to stop."""
        try:
            busy = False
            while self._commands(wait=not busy):
                busy = self._engine.step()
                self._deliver()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            self.error = error
        self._close()

    def _commands(self, wait: bool) -> bool:
        """Carry out what is in the inbox, waiting for one if idle; return False at the end."""
        while True:
            try:
                command = self._inbox.get(wait)
            except Empty:
                return True
            if command is None:
                return False
            function, future = command
            wait = False
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(self._engine)
            except Exception as error:  # a command's fault is its caller's
                future.set_exception(error)
            else:
                future.set_result(result)

    def _deliver(self) -> None:
        """Send the step's tokens, and every request that is over, to their sinks."""
        for sink, request in list(self._live.items()):
            if request.over:
                del self._live[sink]
                self._events.append((sink, request))
        self.counts = self._engine.counts()
        if self._events:
            self._post(_take_all, self._events)
            self._events = []

    def _close(self) -> None:
        """Fail everything that waits, and report a crash."""
        with self._lock:
            self._closed = True
        with suppress(Empty):
            while True:
                command = self._inbox.get_nowait()
                if command is not None and command[1].set_running_or_notify_cancel():
                    command[1].set_exception(Stopped("the engine has stopped"))
        reason = self.error or Stopped("the engine has stopped")
        self._post(_take_all, [(sink, reason) for sink in self._live])
        if self.error is not None:
            self._post(self._on_crash)

    def _post(self, function: Callable[..., object], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it every reader
            self._loop.call_soon_threadsafe(function, *arguments)


def _take_all(events: list[tuple[Sink, Any]]) -> None:
    for sink, event in events:
        sink.take(event)
