"""Serve an engine over HTTP on this machine, with the API that OpenAI's clients speak.

The parts, from the client to the engine:

- ``connection``: a connection, dropped if its client is too slow;
- ``app``: the endpoints, and the gate that refuses what is addressed to another host;
- ``serve/api``: the JSON of a request, checked;
- ``service``: what is accepted now; ``serve/names``: which adapter answers;
- ``worker``: the engine's own thread;
- ``answer``: tokens to text; ``replies``: text to JSON.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.pretrained import Tokenizer
from lora_np.serve.alias import Alias
from lora_np.serve.http.service import Limits, Service
from lora_np.serve.http.worker import Worker
from lora_np.serve.names import Names
from lora_np.tables import counted


def need_packages() -> None:
    """Raise ValueError if a package of the extra ``serve`` is missing."""
    for name in ("starlette", "uvicorn"):
        try:
            __import__(name)
        except ImportError:
            raise ValueError(
                f"the package {name} is missing: pip install 'lora_np[serve]'"
            ) from None


def _print(line: str) -> None:
    print(line, flush=True)  # the program that started this one may wait for the line


def serve_http(
    engine: Any,
    tokenizer: Tokenizer,
    *,
    model_name: str,
    folder: str | Path,
    port: int = 8000,
    aliases: Sequence[Alias] = (),
    limits: Limits | None = None,
    rng: np.random.Generator | None = None,
    say: Callable[[str], object] = _print,
) -> None:
    """Serve an engine on 127.0.0.1 until SIGTERM or Ctrl-C, then finish what runs.

    While it finishes, new requests are refused with 503. A second signal ends it at once.

    Parameters
    ----------
    engine : Engine
        A thread of its own uses it until this function returns.
    tokenizer : lora_np.pretrained.Tokenizer
    model_name : str
        The name under which clients ask for the base without an adapter.
    folder : str or Path
        The adapters' folder. A client may load the folders directly in it, and no others.
    port : int
        0 takes a free one.
    aliases : sequence of Alias
    limits : Limits, optional
    rng : numpy.random.Generator, optional
        Draws an alias's adapter where a request names no user.
    say : callable
        Takes a line when the server is ready, and when it begins to stop.

    Raises
    ------
    ValueError
        If a package is missing, two names are equal, or the port cannot be used.
    Exception
        What the engine raised, if that ended the server.
    KeyboardInterrupt
        If a second signal ended it.
    """
    need_packages()
    rng = np.random.default_rng() if rng is None else rng
    names = Names(model_name, engine.names, aliases, rng)
    with _listening(port) as listener:
        site = _Site(engine, listener, limits or Limits(), say)
        asyncio.run(site.run(tokenizer, names, Path(folder)))
    if site.worker.error is not None:
        raise site.worker.error
    if site.forced:
        raise KeyboardInterrupt


def _listening(port: int) -> socket.socket:
    """Return a socket that is bound to a port of 127.0.0.1."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()  # a client that connects from now on waits for the server
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or "0 to 65535 are ports"
        raise ValueError(f"port {port} cannot be used ({why}): choose another") from None
    return listener


class _Site:
    """The server, the worker and the service, tied together for one run."""

    worker: Worker

    def __init__(
        self, engine: Any, listener: socket.socket, limits: Limits, say: Callable[[str], object]
    ) -> None:
        self.engine, self.listener, self.limits, self.say = engine, listener, limits, say
        self.stopping = self.forced = False

    async def run(self, tokenizer: Tokenizer, names: Names, folder: Path) -> None:
        """Serve until the end."""
        from lora_np.serve.http.app import make_app

        self.loop = asyncio.get_running_loop()
        port = self.listener.getsockname()[1]
        self.worker = Worker(self.engine, self.loop, self._end)
        self.service = Service(
            self.worker, tokenizer, names, folder, self.engine.longest, self.limits, self._end
        )
        number = counted(len(names.adapters), "adapter")
        ready = f"serving {names.base} and {number} at http://127.0.0.1:{port}/v1"
        self.server = self._server(make_app(self.service, port), lambda: self.say(ready))
        self.worker.start()
        try:
            await self.server.serve(sockets=[self.listener])
        finally:
            self.worker.stop()
            await asyncio.to_thread(self.worker.join)

    def _server(self, app: Any, on_ready: Callable[[], object]) -> Any:
        import uvicorn

        from lora_np.serve.http.connection import PatientProtocol, SignalledServer

        seconds: Any = self.limits.patience  # uvicorn says int, and hands it on to asyncio
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=seconds,
            timeout_graceful_shutdown=seconds,
        )
        return SignalledServer(config, on_ready, self._on_signal)

    def _on_signal(self, signal: int) -> None:
        """Begin to stop at the first signal; stop at once at the second."""
        if self.stopping:
            self.forced = self.server.should_exit = self.server.force_exit = True
        self.stopping = True
        self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if not self.service.draining:
            self.say(f"stopping: {counted(self.service.live, 'request')} to finish")
        self.service.drain()

    def _end(self) -> None:
        """Let the server end: nothing runs any more, or the engine has crashed."""
        self.server.should_exit = True
