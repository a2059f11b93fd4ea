"""The JSON of a request, checked and made into a :class:`~lora_np.serve.api.Call`.

The fields are OpenAI's. A field that this server does not support is refused by name, because an
answer that ignores it would be wrong in silence; it passes if its value asks for nothing
(`n` = 1, `logprobs` = false). A field whose value is null counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lora_np.methods.table import hint
from lora_np.reading import brief, shown
from lora_np.serve.errors import Refusal

MOST_STOPS = 4  # strings, as in OpenAI's API
MOST = 2**63  # whole numbers are below
UNSUPPORTED = {  # fields of OpenAI's, and their values that ask for nothing
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
}
SHARED = (
    *("model", "max_tokens", "temperature", "top_p", "seed", "stop"),
    *("stream", "stream_options", "user"),
)
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Call:
    """One request for text.

    Parameters
    ----------
    model : str
        The name of the base, of an adapter or of an alias.
    prompt : str or tuple of int, optional
        A text to continue, or its tokens.
    messages : tuple of dict, optional
        A conversation to answer; there is either a prompt or a conversation.
    max_tokens : int, optional
    temperature, top_p : float
    seed : int, optional
    stop : tuple of str
        The answer ends before the first of them.
    stream, include_usage : bool
        Whether the answer comes in pieces, and whether the number of tokens follows them.
    user : str, optional
        Whom the request is from: an alias gives a user the same adapter each time.
    """

    model: str
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[dict[str, str], ...] | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    user: str | None = None


def object_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises
    ------
    Refusal
        If the body is not one.

    Examples
    --------
    >>> from lora_np.serve.api import object_of
    >>> object_of(b'{"model": "sql"}')
    {'model': 'sql'}
    """
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise Refusal("the body is not JSON: it nests too deep") from None
    except ValueError as error:  # bytes that are not UTF-8, a number of 5,000 digits
        raise Refusal(f"the body is not JSON: {brief(str(error))}") from None
    if not isinstance(found, dict):
        raise Refusal("the body is JSON, but not an object: send {...}")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def completion_of(body: bytes) -> Call:
    """Return the call in the body of ``/v1/completions``.

    Raises
    ------
    Refusal
        If a field is missing, wrong or not supported; ``param`` is its name.

    Examples
    --------
    >>> from lora_np.serve.api import completion_of
    >>> call = completion_of(b'{"model": "sql", "prompt": "how many", "stop": ";"}')
    >>> call.prompt, call.max_tokens, call.stop
    ('how many', 16, (';',))
    """
    fields = _known(object_of(body), ("prompt",))
    prompt = _prompt(_needed(fields, "prompt"))
    n = _whole(fields, "max_tokens", 1)
    return Call(**_shared(fields), prompt=prompt, max_tokens=16 if n is None else n)


def chat_of(body: bytes) -> Call:
    """Return the call in the body of ``/v1/chat/completions``.

    Raises
    ------
    Refusal
        If a field is missing, wrong or not supported; ``param`` is its name.

    Examples
    --------
    >>> from lora_np.serve.api import chat_of
    >>> chat_of(b'{"model": "sql", "messages": [{"role": "user", "content": "hi"}]}').messages
    ({'role': 'user', 'content': 'hi'},)
    """
    fields = _known(object_of(body), ("messages", "max_completion_tokens"))
    messages = _needed(fields, "messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", messages, "a list of at least one message")
    limits = [_whole(fields, name, 1) for name in ("max_completion_tokens", "max_tokens")]
    given = [n for n in limits if n is not None]
    if len(set(given)) > 1:
        raise Refusal(
            "max_tokens and max_completion_tokens differ: send one of the two", param="max_tokens"
        )
    return Call(
        **_shared(fields),
        messages=tuple(_message(i, m) for i, m in enumerate(messages)),
        max_tokens=given[0] if given else None,
    )


def words_of(body: bytes, needed: Iterable[str], optional: Iterable[str] = ()) -> dict[str, str]:
    """Return the fields of an object that holds only strings.

    Raises
    ------
    Refusal
        If a field is missing, unknown or no string.

    Examples
    --------
    >>> from lora_np.serve.api import words_of
    >>> words_of(b'{"lora_name": "sql"}', ["lora_name"], ["lora_path"])
    {'lora_name': 'sql'}
    """
    needed, optional = tuple(needed), tuple(optional)
    fields = _only(object_of(body), (*needed, *optional))
    for name in needed:
        _needed(fields, name)
    for name in fields:
        _typed(fields, name, str, "a string")
    return fields


# --- fields ---------------------------------------------------------------------------------------


def _only(given: dict[str, Any], names: Iterable[str], also: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields that are not null; refuse those of other names, with the nearest names.

    Those of `also` pass, but are not proposed.
    """
    names, known = tuple(names), {*names, *also}
    for name in given:
        if name not in known:
            raise Refusal(
                f"the field {shown(name)} is not known: {hint(name[:100], names)}",
                param=brief(name),
                code="unknown_parameter",
            )
    return {name: value for name, value in given.items() if value is not None}


def _known(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields that are not null; refuse those that would ask for more than we do."""
    fields = _only(given, (*SHARED, *names), UNSUPPORTED)
    for name, value in fields.items():
        if name in UNSUPPORTED and not any(_same(value, idle) for idle in UNSUPPORTED[name]):
            idle = " or ".join(json.dumps(v) for v in UNSUPPORTED[name])
            raise Refusal(
                f"{name} = {_json(value)} is not supported: leave the field out, or send {idle}",
                param=name,
                code="unsupported_parameter",
            )
    return fields


def _same(value: Any, idle: Any) -> bool:
    """Whether two values of JSON are equal: true is not 1."""
    return value == idle and isinstance(value, bool) == isinstance(idle, bool)


def _shared(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that both kinds of call have."""
    seed = _whole(fields, "seed", -MOST)
    stream = _typed(fields, "stream", bool, "true or false") or False
    return {
        "model": _model(fields),
        "temperature": _number(fields, "temperature", lambda x: 0 <= x <= 2, "from 0 to 2"),
        "top_p": _number(fields, "top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
        "seed": None if seed is None else seed % (2 * MOST),  # a generator takes none below 0
        "stop": _stops(fields.get("stop", [])),
        "stream": stream,
        "include_usage": _include_usage(fields, stream),
        "user": _typed(fields, "user", str, "a string"),
    }


def _wrong(name: str, value: Any, expected: str) -> Refusal:
    return Refusal(f"{name} = {_json(value)}: expected {expected}", param=name)


def _json(value: Any) -> str:
    """Return a value as the client wrote it, on one short line."""
    try:
        return brief(json.dumps(value), 160)
    except ValueError:  # a whole number of thousands of digits
        return shown(value)


def _needed(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise Refusal(f"the field {name} is missing", param=name, code="missing_required_parameter")
    return fields[name]


def _typed(fields: dict[str, Any], name: str, kind: type, expected: str) -> Any:
    value = fields.get(name)
    if value is not None and type(value) is not kind:
        raise _wrong(name, value, expected)
    return value


def _model(fields: dict[str, Any]) -> str:
    _needed(fields, "model")
    return _typed(fields, "model", str, "the name of a model; GET /v1/models lists them")


def _whole(fields: dict[str, Any], name: str, least: int) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or not least <= value < MOST):
        raise _wrong(name, value, f"a whole number from {least} to {MOST - 1}")
    return value


def _number(
    fields: dict[str, Any], name: str, fits: Callable[[float], bool], expected: str
) -> float:
    value = fields.get(name, 1.0)  # OpenAI's default for both
    if type(value) not in (int, float) or not fits(value):
        raise _wrong(name, value, f"a number {expected}")
    return float(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    strings = isinstance(stops, list) and all(isinstance(s, str) and s for s in stops)
    if not strings or len(stops) > MOST_STOPS:
        raise _wrong("stop", value, f"a string or up to {MOST_STOPS} strings, none of them empty")
    return tuple(stops)


def _include_usage(fields: dict[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise Refusal("stream_options goes with stream = true only", param="stream_options")
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, 'an object, such as {"include_usage": true}')
    try:
        return (
            _typed(_only(options, ["include_usage"]), "include_usage", bool, "true or false")
            or False
        )
    except Refusal as problem:
        raise Refusal(f"stream_options: {problem.message}", param="stream_options") from None


def _prompt(value: Any) -> str | tuple[int, ...]:
    """Return one prompt: a string, tokens, or a list of exactly one of them."""
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(one, str):
        return one
    found = one if isinstance(one, list) else value
    if isinstance(found, list) and found and all(type(i) is int for i in found):
        return tuple(found)
    if isinstance(value, list) and len(value) > 1:
        raise Refusal(
            f"prompt holds {len(value)} prompts: send one, a string or the list of its tokens, "
            "in each request; they share a batch",
            param="prompt",
        )
    raise _wrong("prompt", value, "a string or a list of tokens")


def _message(i: int, message: Any) -> dict[str, str]:
    """Return a message with a role that chat templates know, and one text."""
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        raise _wrong(where, message, 'an object, such as {"role": "user", "content": "hi"}')
    fields = {name: value for name, value in message.items() if value is not None}
    for name in fields:
        if name not in ("role", "content"):
            param = f"{where}.{brief(name)}"
            raise Refusal(
                f"{param} is not supported: a message has a role and a content",
                param=param,
                code="unsupported_parameter",
            )
    role = fields.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _wrong(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": _content(f"{where}.content", fields.get("content"))}


def _content(where: str, content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of text parts."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise _wrong(where, content, 'a string, or parts {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)
