"""Between the HTTP requests and the engine: what is accepted, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_np.pretrained import Tokenizer
from lora_np.serve.api import Call
from lora_np.serve.errors import Refusal
from lora_np.serve.http.answer import Answer
from lora_np.serve.http.metrics import Metrics
from lora_np.serve.http.worker import Stopped, Worker
from lora_np.serve.names import Names, folder_of
from lora_np.serve.prompt import LONGEST, most_new, options_of, prompt_of


@dataclass(frozen=True)
class Limits:
    """What clients may take.

    Parameters
    ----------
    queue : int
        The most requests that wait or run at one time; one more is refused with 429.
    body : int
        The most bytes of a request; a longer one is refused with 413. While a text is split into
        tokens, nothing else runs. :func:`~lora_np.serve.http.service.body_for` returns a limit that
        suits a context.
    tokens : int
        The most tokens of an answer in a chat where the request gives no ``max_tokens``.
    patience : float
        Seconds that a client may take to send a request's head, its body, or to read what is
        written.

    Examples
    --------
    >>> from lora_np.serve.http.service import Limits
    >>> Limits(queue=8).body
    262144
    """

    queue: int = 1024
    body: int = 262_144
    tokens: int = LONGEST
    patience: float = 30.0

    def __post_init__(self) -> None:
        for name in ("queue", "body", "tokens", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive number")


def body_for(context: int) -> int:
    """Return a limit in bytes for a request that a prompt within the context does not reach.

    Most tokens have up to 5 bytes of text, or up to 18 where JSON escapes what is not ASCII.

    Examples
    --------
    >>> from lora_np.serve.http.service import body_for
    >>> body_for(8192)
    327680
    """
    return 65_536 + 32 * context


class Service:
    """Accepts calls, and keeps account of them. All of it lives in the event loop.

    Parameters
    ----------
    worker : Worker
    tokenizer : lora_np.pretrained.Tokenizer
    names : Names
    folder : Path
        Where adapters are loaded from.
    context : int
        The most tokens of a prompt and its answer.
    limits : Limits
    on_drained : callable
        Called once, without arguments, when nothing runs any more after :meth:`drain`.
    """

    def __init__(
        self,
        worker: Worker,
        tokenizer: Tokenizer,
        names: Names,
        folder: Path,
        context: int,
        limits: Limits,
        on_drained: Callable[[], object],
    ) -> None:
        self.worker, self.tokenizer, self.names = worker, tokenizer, names
        self.folder, self.context, self.limits = folder, context, limits
        self.metrics, self.live, self.draining = Metrics(), 0, False
        self._on_drained = on_drained

    # --- text -------------------------------------------------------------------------------------

    async def start(self, call: Call) -> Answer:
        """Submit a call; return its answer, which has just begun.

        Raises
        ------
        Refusal
            If the call can never run, or cannot run now.
        """
        self.expect_open()
        if self.live >= self.limits.queue:
            raise Refusal(
                f"{self.live} requests are waiting or running, which is the limit: try again",
                429,
                code="rate_limit_exceeded",
                retry_after=1,
            )
        adapter = self.names.pick(call.model, call.user)
        answer = Answer(self, call, self.names.base if adapter is None else adapter)
        self.live += 1  # before anything is awaited: the limit is exact
        try:
            await self._submit(answer, adapter)
        except BaseException:
            self._release()
            raise
        return answer

    async def _submit(self, answer: Answer, adapter: str | None) -> None:
        call = answer.call
        try:
            prompt = await asyncio.to_thread(prompt_of, call, self.tokenizer)
            n = most_new(call, prompt, self.context, self.limits.tokens)
            answer.prompt = len(prompt)
            options = options_of(call, self.tokenizer)
            await asyncio.wrap_future(self.worker.submit(answer, adapter, prompt, n, **options))
        except Refusal:
            raise
        except ValueError as error:  # of the tokenizer, the template or the engine
            raise Refusal(str(error)) from None
        except Stopped as error:
            raise Refusal(str(error), 500, code="engine_stopped") from None

    def over(self, answer: Answer, outcome: str, request: Any) -> None:
        """Count an answer whose request is over: the engine no longer holds anything of it."""
        times = [getattr(request, name, None) for name in ("first", "last")]
        first, last = (None if at is None else at - answer.arrived for at in times)
        self.metrics.answered(outcome, answer.prompt, answer.text.tokens, first, last)
        self._release()

    def _release(self) -> None:
        self.live -= 1
        self._tell_if_drained()

    # --- adapters ---------------------------------------------------------------------------------

    async def load(self, name: str, path: str) -> None:
        """Load an adapter from the adapters' folder; if that is impossible, a Refusal says why."""
        self.expect_open()
        self.names.expect_new(name)
        folder = folder_of(self.folder, name, path)
        await self._change(lambda engine: engine.load(folder))
        self.names.adapters[name] = None

    async def unload(self, name: str) -> None:
        """Forget an adapter; if that is impossible, a Refusal says why."""
        self.expect_open()
        self.names.adapter(name, "lora_name")
        self.names.expect_unused(name)
        await self._change(lambda engine: engine.unload(name))
        self.names.adapters.pop(name, None)

    async def _change(self, function: Callable[[Any], Any]) -> None:
        try:
            await asyncio.wrap_future(self.worker.do(function))
        except (ValueError, OSError) as error:
            raise Refusal(str(error), param="lora_name") from None
        except Stopped as error:
            raise Refusal(str(error), 500, code="engine_stopped") from None

    # --- the server -------------------------------------------------------------------------------

    def expect_open(self) -> None:
        """Raise Refusal if the server takes nothing new."""
        if self.draining:
            raise Refusal("the server is stopping: it only finishes what runs", 503, retry_after=5)

    def drain(self) -> None:
        """Take nothing new; what runs is finished."""
        self.draining = True
        self._tell_if_drained()

    def _tell_if_drained(self) -> None:
        if self.draining and self.live == 0:
            self._on_drained()
