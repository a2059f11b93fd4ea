"""The endpoints, as a Starlette application, and the gate before them.

Only server.py imports this file: it needs the packages of the extra ``serve``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lora_np.reading import shown
from lora_np.serve.api import Call, chat_of, completion_of, words_of
from lora_np.serve.errors import Refusal
from lora_np.serve.http.replies import DONE, ChatReply, Reply, event_of
from lora_np.serve.http.service import Limits, Service

HOSTS = ("localhost", "127.0.0.1", "[::1]")
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(service: Service, port: int) -> ASGIApp:
    """Return the application that serves HTTP at a port of this machine."""
    front = _Front(service)
    app = Starlette(
        routes=[
            Route("/v1/completions", front.completions, methods=["POST"]),
            Route("/v1/chat/completions", front.chat, methods=["POST"]),
            Route("/v1/models", front.models),
            Route("/v1/models/{name:path}", front.model),
            Route("/v1/load_lora_adapter", front.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", front.unload, methods=["POST"]),
            Route("/health", front.health),
            Route("/metrics", front.metrics),
        ],
        exception_handlers={
            Refusal: _refused,
            HTTPException: _no_endpoint,
            ClientDisconnect: _nobody,
            Exception: _fault,
        },
    )
    return Gate(app, port)


class Gate:
    """Lets a request pass only if its Host header names this machine.

    The server listens on 127.0.0.1, but a browser on the same machine runs pages of strangers. A
    page from http://evil.example may let that name point to 127.0.0.1 once it is loaded (DNS
    rebinding): the browser then takes our answers for the page's own and lets it read them. Such
    requests carry ``Host: evil.example``, and are refused. A page may also send a form to 127.0.0.1
    without reading the answer; so a body must be declared as JSON, which a browser sends only
    after asking this server, and the server does not agree.

    Parameters
    ----------
    app : ASGI application
    port : int
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self._hosts = {*HOSTS, *(f"{host}:{port}" for host in HOSTS)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        found = [v.decode("latin-1").lower() for k, v in scope["headers"] if k == b"host"]
        if len(found) == 1 and found[0] in self._hosts:
            await self.app(scope, receive, send)
            return
        problem = Refusal(
            f"the host {shown(', '.join(found))} is not this machine: use http://127.0.0.1", 403
        )
        await _refusal(problem)(scope, receive, send)


class _Front:
    """The endpoints of a service."""

    def __init__(self, service: Service) -> None:
        self.service, self.since = service, int(time.time())

    async def completions(self, request: Request) -> Any:
        return await self._answer(request, completion_of, Reply)

    async def chat(self, request: Request) -> Any:
        return await self._answer(request, chat_of, ChatReply)

    async def _answer(
        self, request: Request, call_of: Callable[[bytes], Call], kind: type[Reply]
    ) -> AnswerResponse:
        try:
            call = call_of(await body_of(request, self.service.limits))
            return AnswerResponse(kind(await self.service.start(call)))
        except Refusal:
            self.service.metrics.refused()
            raise

    async def models(self, request: Request) -> JSONResponse:
        names = self.service.names.all()
        return JSONResponse({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> JSONResponse:
        name = request.path_params["name"]
        if name not in self.service.names.aliases and name != self.service.names.base:
            self.service.names.adapter(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        base = self.service.names.base
        parent = None if name == base else base
        about = {"id": name, "object": "model", "created": self.since, "owned_by": "lora_np"}
        return about | {"root": base, "parent": parent}

    async def load(self, request: Request) -> PlainTextResponse:
        body = await body_of(request, self.service.limits)
        words = words_of(body, ["lora_name"], ["lora_path"])
        name = words["lora_name"]
        await self.service.load(name, words.get("lora_path", name))
        return PlainTextResponse(f"Success: LoRA adapter {shown(name)} added successfully.")

    async def unload(self, request: Request) -> PlainTextResponse:
        body = await body_of(request, self.service.limits)
        name = words_of(body, ["lora_name"])["lora_name"]
        await self.service.unload(name)
        return PlainTextResponse(f"Success: LoRA adapter {shown(name)} removed successfully.")

    async def health(self, request: Request) -> JSONResponse:
        self.service.expect_open()
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        text = self.service.metrics.text(self.service.worker.counts)
        return Response(text, media_type=METRICS_TYPE)


async def body_of(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises
    ------
    Refusal
        If it is not declared as JSON, is too long, or takes too long to arrive.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("send JSON, with the header Content-Type: application/json", 415)
    too_long = Refusal(f"the body has more than {limits.body} bytes", 413)
    length = request.headers.get("content-length", "0")  # digits: the server has checked
    if len(length) > 15 or int(length) > limits.body:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.patience):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body:
                    raise too_long
    except TimeoutError:
        raise Refusal(f"the body did not arrive within {limits.patience} s", 408) from None
    return bytes(body)


class AnswerResponse:
    """Sends an answer, whole or in pieces; cancels it if the client vanishes.

    Parameters
    ----------
    reply : Reply
    """

    def __init__(self, reply: Reply) -> None:
        self.reply, self.answer = reply, reply.answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            if self.answer.call.stream:
                await self._stream(send)
            else:
                text = "".join([piece async for piece in self.answer.pieces()])
                await JSONResponse(self.reply.whole(text))(scope, receive, send)
        finally:
            watcher.cancel()
            self.answer.leave()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.answer.leave()

    async def _stream(self, send: Send) -> None:
        """Send server-sent events.

        The head waits for the first piece, so that an earlier failure has a status of its own.
        """
        first = True
        try:
            async for piece in self.answer.pieces():
                await self._send(send, self.reply.event(piece, first), first)
                first = False
            last = self.reply.event("", first, self.answer.finish)
            usage = self.reply.usage_event() if self.answer.call.include_usage else b""
            await self._send(send, last + usage + DONE, first)
        except Refusal as problem:
            if first:
                raise
            await self._send(send, event_of(problem.body()), False)
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, data: bytes, first: bool) -> None:
        if first:
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await send({"type": "http.response.body", "body": data, "more_body": True})


# --- errors ---------------------------------------------------------------------------------------


def _refusal(problem: Any) -> JSONResponse:
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if problem.status in (408, 413, 415):  # the rest of the body is not read
        headers["Connection"] = "close"
    return JSONResponse(problem.body(), problem.status, headers)


async def _refused(request: Request, problem: Exception) -> JSONResponse:
    return _refusal(problem)


async def _no_endpoint(request: Request, problem: Any) -> JSONResponse:
    """Answer a path or a method that does not exist."""
    what = f"{request.method} {shown(request.url.path)}"
    message = f"there is no {what}: try POST /v1/chat/completions or GET /v1/models"
    response = _refusal(Refusal(message, problem.status_code))
    response.headers.update(problem.headers or {})
    return response


async def _nobody(request: Request, problem: Exception) -> Response:
    """Answer a client that has vanished while it sent its request."""
    return Response(status_code=400)


async def _fault(request: Request, problem: Exception) -> JSONResponse:
    """Answer what is a fault of this server; Starlette then raises it, and it is logged."""
    return _refusal(Refusal("the server has a fault; its log says more", 500))
