"""A file of requests, one JSON object a line, answered in mixed batches: one line for each answer.

A line holds what the body of ``/v1/chat/completions`` or ``/v1/completions`` would hold (api.py): a
line with messages is a chat, and any other a completion. It may have a `custom_id`, which its
answer repeats. Every line is checked before the first is answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lora_np.data import DataError
from lora_np.data.records import json_lines
from lora_np.pretrained import Tokenizer
from lora_np.reading import brief
from lora_np.serve.api import Call, chat_of, completion_of
from lora_np.serve.engine import LOOKED_AT, Engine
from lora_np.serve.errors import Refusal, cannot_answer
from lora_np.serve.names import Names
from lora_np.serve.prompt import LONGEST, most_new, options_of, prompt_of
from lora_np.serve.request import Request
from lora_np.serve.text import AnswerText


@dataclass(frozen=True)
class Line:
    """A request of a file.

    Attributes
    ----------
    number : int
        The line, from 1.
    custom_id : str or None
    call : Call
    """

    number: int
    custom_id: str | None
    call: Call


def read_requests(path: str | Path, names: Names) -> list[Line]:
    """Return the requests of a file.

    Parameters
    ----------
    path : str or Path
    names : Names
        What a line may name as its model.

    Raises
    ------
    DataError
        If a line is not a request; the message names the file, the line and the cause.
    """
    lines = []
    for number, fields in json_lines(path):
        custom_id = fields.pop("custom_id", None)
        try:
            if custom_id is not None and not isinstance(custom_id, str):
                raise Refusal("custom_id: expected a string")
            of_body = chat_of if "messages" in fields else completion_of
            call = of_body(json.dumps(fields).encode())
            if call.stream:
                raise Refusal("stream: an answer in a file comes whole: leave it out")
            names.pick(call.model, call.user)
        except Refusal as error:
            raise DataError(f"{brief(str(path))}, line {number}: {error.message}") from None
        lines.append(Line(number, custom_id, call))
    return lines


def answers_to(
    lines: list[Line],
    engine: Engine,
    tokenizer: Tokenizer,
    names: Names,
    listen: Callable[[int], object] = lambda new: None,
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each line, as it is ready.

    The engine holds only as many requests as it looks at: a step costs the same however long the
    file is, and prompts are split into tokens when their turn comes.

    Parameters
    ----------
    lines : list of Line
    engine : Engine
    tokenizer : lora_np.pretrained.Tokenizer
    names : Names
    listen : callable, optional
        ``listen(new)`` is called after each step with the number of new tokens.

    Yields
    ------
    dict
        "line", "custom_id" if there is one, and either "model", "text", "finish_reason" and
        "usage", or "error" in OpenAI's shape.
    """
    later = iter(lines)
    running: list[_Answer] = []
    while True:
        for line in islice(later, 2 * engine.batch + LOOKED_AT - len(running)):
            running.append(_Answer(line, names))
            running[-1].submit(engine, tokenizer)
        if not running:
            return
        before = sum(answer.new for answer in running)
        engine.step()
        listen(sum(answer.new for answer in running) - before)
        ready = [answer for answer in running if answer.over]
        running = [answer for answer in running if not answer.over]
        yield from (answer.written() for answer in ready)


class _Answer:
    """What becomes of a line."""

    def __init__(self, line: Line, names: Names) -> None:
        self.line, self.adapter = line, names.pick(line.call.model, line.call.user)
        self.model = names.base if self.adapter is None else self.adapter
        self.request: Request | None = None
        self.error: Exception | None = None
        self.said, self.prompt = "", 0

    def submit(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """Put the request into the engine's queue; if it can never run, keep the error."""
        call = self.line.call
        self.text = AnswerText(tokenizer, call.stop)

        def take(token: int) -> None:
            self.said += self.text.push(token)
            if self.text.stopped and self.request is not None:
                engine.cancel(self.request)

        try:
            prompt = prompt_of(call, tokenizer)
            self.prompt = len(prompt)
            self.request = engine.submit(
                self.adapter,
                prompt,
                most_new(call, prompt, engine.longest, LONGEST),
                **options_of(call, tokenizer),
                on_token=take,
            )
        except ValueError as error:
            self.error = error

    @property
    def new(self) -> int:
        """How many tokens have come."""
        return 0 if self.request is None else len(self.request.tokens)

    @property
    def over(self) -> bool:
        """Whether no more tokens will come."""
        return self.request is None or self.request.over

    def written(self) -> dict[str, Any]:
        """Return the JSON object of the answer's line."""
        found: dict[str, Any] = {"line": self.line.number}
        if self.line.custom_id is not None:
            found["custom_id"] = self.line.custom_id
        if self.request is None:
            error = self.error
            return found | (error if isinstance(error, Refusal) else Refusal(str(error))).body()
        if self.request.error is not None:
            return found | cannot_answer(self.model, self.request.error).body()
        finish = "stop" if self.text.stopped else self.request.finish
        usage = self.text.usage(self.prompt)
        text = self.said + self.text.flush()
        return found | {"model": self.model, "text": text, "finish_reason": finish, "usage": usage}


def write_line(file: Any, answer: dict[str, Any]) -> None:
    """Write an answer as a line and flush it, so that it stays if the run is stopped."""
    file.write(json.dumps(answer, ensure_ascii=False) + "\n")
    file.flush()
