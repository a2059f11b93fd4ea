"""The JSON of answers, whole and in pieces, as OpenAI's clients read it."""

from __future__ import annotations

import json
import uuid
from typing import Any

from lora_np.serve.http.answer import Answer


class Reply:
    """Writes one answer; a subclass says how a choice holds its text.

    Parameters
    ----------
    answer : Answer
    """

    prefix, whole_kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"

    def choice(self, text: str) -> dict[str, Any]:
        """Return what a choice of the whole answer holds."""
        return {"text": text}

    def piece(self, text: str, first: bool) -> dict[str, Any]:
        """Return what a choice of a piece holds."""
        return {"text": text}

    def whole(self, text: str) -> dict[str, Any]:
        """Return the whole answer."""
        answer = self.answer
        choice = self._choice(self.choice(text), answer.finish)
        return self._head(self.whole_kind) | {"choices": [choice], "usage": answer.usage()}

    def event(self, text: str, first: bool, finish: str | None = None) -> bytes:
        """Return a piece as a server-sent event."""
        piece = self._head(self.piece_kind)
        piece["choices"] = [self._choice(self.piece(text, first), finish)]
        return event_of(piece | ({"usage": None} if self.answer.call.include_usage else {}))

    def usage_event(self) -> bytes:
        """Return the event of the numbers of tokens; it has no choices."""
        head = self._head(self.piece_kind)
        return event_of(head | {"choices": [], "usage": self.answer.usage()})

    def _head(self, kind: str) -> dict[str, Any]:
        answer = self.answer
        return {"id": self._id, "object": kind, "created": answer.created, "model": answer.model}

    def _choice(self, content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


class ChatReply(Reply):
    """Writes an answer in a conversation."""

    prefix, whole_kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str) -> dict[str, Any]:
        """Return the assistant's message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def piece(self, text: str, first: bool) -> dict[str, Any]:
        """Return what the message gains."""
        role = {"role": "assistant"} if first else {}
        return {"delta": role | ({"content": text} if text or first else {})}


DONE = b"data: [DONE]\n\n"


def event_of(content: dict[str, Any]) -> bytes:
    r"""Return an object as a server-sent event.

    Examples
    --------
    >>> from lora_np.serve.http.replies import event_of
    >>> event_of({"a": "line\n"})
    b'data: {"a": "line\\n"}\n\n'
    """
    return b"data: " + json.dumps(content).encode() + b"\n\n"
