"""One answer: from the engine's tokens to pieces of text that a client reads at its own pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from lora_np.serve.api import Call
from lora_np.serve.errors import Refusal, cannot_answer
from lora_np.serve.text import AnswerText

if TYPE_CHECKING:
    from lora_np.serve.http.service import Service


class Answer:
    """The answer to a call. All of it lives in the event loop.

    :meth:`take` turns each token into text as the engine makes it, so that a stop string ends the
    request although nobody reads yet. The pieces wait in a queue, which holds at most the tokens of
    one request.

    Parameters
    ----------
    service : Service
    call : Call
    model : str
        The name of the adapter or the base that answers.

    Attributes
    ----------
    finish : "stop", "length" or None
    prompt : int
        The number of tokens of the prompt.
    error : Refusal or None
        Why there is no answer.
    """

    def __init__(self, service: Service, call: Call, model: str) -> None:
        self._service, self.call, self.model = service, call, model
        self.arrived, self.created = time.monotonic(), int(time.time())
        self.text = AnswerText(service.tokenizer, call.stop)
        self.prompt, self.finish, self.error = 0, None, None
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()  # None: no more
        self._open = True

    def take(self, event: Any) -> None:
        """Take a token, the request once it is over, or what the engine raised."""
        if type(event) is not int:
            self._over(event)
        elif self._open:
            self._say(self.text.push(event))
            if self.text.stopped:
                self.finish = "stop"
                self._service.worker.cancel(self)
                self._close()

    def leave(self) -> None:
        """Read no more: the engine's request is cancelled unless it is over."""
        if self._open:
            self._service.worker.cancel(self)
            self._close()

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text, piece by piece, until the answer has ended.

        A reader that is slower than the engine gets what has gathered as one piece.

        Raises
        ------
        Refusal
            If the adapter or the engine has failed.
        """
        gathered: list[str | None] = [""]
        while gathered[-1] is not None:
            gathered = [await self._pieces.get()]
            while not self._pieces.empty():
                gathered.append(self._pieces.get_nowait())
            if text := "".join(piece for piece in gathered if piece):
                yield text
        if self.error is not None:
            raise self.error

    def usage(self) -> dict[str, int]:
        """Return the numbers of tokens."""
        return self.text.usage(self.prompt)

    def _say(self, piece: str) -> None:
        if piece:
            self._pieces.put_nowait(piece)

    def _close(self) -> None:
        self._open = False
        self._pieces.put_nowait(None)

    def _over(self, event: Any) -> None:
        """Take the end: a request that is over, or what the engine raised."""
        self.error = self._failure(event)
        if self._open and self.error is None and event.state == "done":
            self._say(self.text.flush())
            self.finish = "stop" if self.text.stopped else event.finish
        if self._open:
            self._close()
        outcome = "failed" if self.error is not None else self.finish or "cancelled"
        self._service.over(self, outcome, event)

    def _failure(self, event: Any) -> Refusal | None:
        """Return why there is no answer, as the client reads it, or None if nothing failed."""
        if isinstance(event, BaseException):
            return Refusal("the engine has stopped", 500, code="engine_stopped")
        if event.state != "failed":
            return None
        return cannot_answer(self.model, event.error)
