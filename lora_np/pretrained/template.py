r"""Chat templates: how a model writes a conversation as one text.

A model's file brings its template, a program in Jinja2's language, and the file may be a
stranger's. ``jinja2`` reads the template here, but does not run it:
:mod:`~lora_np.pretrained.template_walk` walks through its syntax tree under a budget of steps and
characters. A template that loops without end, makes endless text or reaches for Python's internals
is refused with one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from lora_np.pretrained.template_values import Budget, TemplateError
from lora_np.pretrained.template_walk import Walk
from lora_np.reading import brief, open_file

LONGEST = 100_000  # characters of a template; long ones, which describe tools, have 20,000
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML}


class ChatTemplate:
    """How a model writes a conversation.

    Parameters
    ----------
    source : str
        A template in Jinja2's language, or the name of one of ``TEMPLATES``. It is read when it is
        first used.
    bos, eos : str or None
        The tokens that begin and end a text: a template writes them where it wants.

    Notes
    -----
    ``strftime_now`` returns 26 July 2024, the date in Llama 3's own template, on every day: what
    the model is asked should not depend on when. What templates for tools and documents need is
    there; recursive loops, ``%`` and ``format`` on strings, and imports are not.

    Examples
    --------
    >>> from lora_np.pretrained import ChatTemplate
    >>> template = ChatTemplate("chatml", bos=None, eos="<|im_end|>")
    >>> print(template.render([{"role": "user", "content": "Hi"}], answer_follows=True))
    <|im_start|>user
    Hi<|im_end|>
    <|im_start|>assistant
    <BLANKLINE>
    """

    def __init__(self, source: str, *, bos: str | None, eos: str | None):
        self.source = TEMPLATES.get(source, source)
        tokens = {"bos_token": bos, "eos_token": eos}
        self._tokens = {name: token for name, token in tokens.items() if token is not None}

    def render(self, messages: Sequence[Mapping[str, Any]], answer_follows: bool) -> str:
        """Return a conversation as one text.

        Parameters
        ----------
        messages : sequence of dict
            Each {"role": str, "content": str}.
        answer_follows : bool
            Whether the text ends where the assistant's answer begins.

        Raises
        ------
        TemplateError
            If the template is broken, refuses the conversation, uses what lora_np does not offer,
            or takes more time or memory than a template needs.
        """
        given = [_plain(message) for message in messages]
        names = {"tools": None, "documents": None, **self._tokens}
        names |= {"messages": given, "add_generation_prompt": answer_follows}
        walk = Walk(names, Budget(sum(len(m["content"]) for m in given)))
        body = self._body
        try:
            return walk.text(body, walk.scope)
        except TemplateError as problem:
            why = str(problem)
        except RecursionError:
            why = "it nests too deep"
        except Exception as problem:  # a template that adds a number to a text, ...
            why = brief(str(problem)) or type(problem).__name__
        raise TemplateError(f"the chat template cannot be used: line {walk.line}: {why}")

    @cached_property
    def _body(self) -> Any:
        """The statements of the template."""
        if len(self.source) > LONGEST:
            raise TemplateError(
                f"the chat template has {len(self.source)} characters, more than {LONGEST}"
            )
        environment = _environment()
        try:
            return environment.parse(self.source).body
        except RecursionError:
            why = "it nests too deep"
        except Exception as problem:  # TemplateSyntaxError; ValueError: a number of 5,000 digits
            why = f"line {getattr(problem, 'lineno', 1)}: {brief(str(problem))}"
        raise TemplateError(f"the chat template cannot be read: {why}")


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a message without the fields that are None, as transformers does."""
    copy = {key: value for key, value in message.items() if value is not None}
    if not isinstance(copy.get("role"), str) or not isinstance(copy.get("content"), str):
        raise TemplateError("a message needs a role and a content, both strings")
    return copy


def _environment() -> Any:
    """Return the Jinja2 environment that transformers reads templates in."""
    try:
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise TemplateError(
            "chat templates need the package jinja2: pip install 'lora_np[llm]'"
        ) from None

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's text; it prints nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )


def template_in(name: str) -> str:
    """Return the source of the template that a user names.

    Parameters
    ----------
    name : str
        One of ``TEMPLATES``, which is returned as it is, or a file that holds a template.

    Raises
    ------
    TemplateError
        If the file cannot be read or is not UTF-8.

    Examples
    --------
    >>> from lora_np.pretrained import template_in
    >>> template_in("chatml")
    'chatml'
    """
    if name in TEMPLATES:
        return name
    with open_file(name, TemplateError) as file:
        try:
            return file.read(4 * LONGEST + 1).decode("utf-8")
        except UnicodeDecodeError:
            raise TemplateError(f"{name} is not UTF-8: expected a chat template") from None
