"""Chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class TemplateError(ValueError):
    """A chat template that is broken, refuses a conversation, or asks for too much."""


class ChatTemplate:
    """Interim."""

    def __init__(self, source: str, *, bos: str | None, eos: str | None):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self._t = env.from_string(source)
        self._tokens = {"bos_token": bos or "", "eos_token": eos or ""}

    def render(self, messages: Sequence[Mapping[str, Any]], answer_follows: bool) -> str:
        """Interim."""
        return self._t.render(
            messages=messages, add_generation_prompt=answer_follows, **self._tokens
        )
