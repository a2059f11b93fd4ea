"""A file of your own: JSON lines of conversations or texts, or one plain text.

The fields of the first line say what a file holds; the first row that fits counts, and other
fields are ignored::

    messages                           a conversation: a list of objects with role and content
    prompt, response (or completion)   a question and its answer
    instruction, input, output         the same, in Alpaca's form; input may be missing or empty
    text                               a text

All but the last become a conversation between a user and the assistant. Alpaca's instruction and
input are one message of the user: the instruction, a blank line, the input; the instruction alone
where there is no input.

A file whose name ends in .txt is one plain text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_np.data.texts import DataError, read_text
from lora_np.reading import brief, open_file, shown

KINDS = (  # the fields that a line must have
    ("messages",),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("text",),
)
ROLES = ("system", "user", "assistant")
LONGEST_LINE = 2**24  # bytes; a book has about a million
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TO_LINES = (  # the dumped line is ASCII, whatever the terminal's encoding
    'python3 -c "import json, sys; [print(json.dumps(x)) for x in json.load(sys.stdin)]" '
    "< array.json > lines.jsonl"
)
JSON_NAMES = {
    **{bool: "a boolean", int: "a number", float: "a number", str: "a string"},
    **{list: "a list", dict: "an object", type(None): "null"},
}

Message = dict[str, str]  # role and content


@dataclass(frozen=True)
class Record:
    """One conversation or one text of a file.

    Parameters
    ----------
    file : str
    line : int
        Where the record starts in the file, counted from 1.
    messages : tuple of dict
        The turns of a conversation, each a role and a content: a system message or none, then the
        user and the assistant in turn. Empty for a text.
    labelled : tuple of bool
        Whether the model should learn to write the answer, for each turn of the assistant.
    text : str
        Empty for a conversation.
    whole_file : bool
        Whether the text is a whole file, to be cut into samples, rather than one sample.
    """

    file: str
    line: int
    messages: tuple[Message, ...] = ()
    labelled: tuple[bool, ...] = ()
    text: str = ""
    whole_file: bool = False

    @property
    def place(self) -> str:
        """The file and the line, as an error names them."""
        return f"{self.file}, line {self.line}"

    @property
    def prompt(self) -> str:
        """What comes before the first answer, or the text; case and white space do not count."""
        roles = [message["role"] for message in self.messages]
        first = roles.index("assistant") if "assistant" in roles else len(roles)
        said = [f"{m['role']} {m['content']}" for m in self.messages[:first]]
        return " ".join("\n".join([*said, self.text]).split()).casefold()


def read_records(
    path: str | os.PathLike[str], *, turns: Literal["all", "last"] = "all"
) -> list[Record]:
    r"""Read a file of conversations or texts: one JSON object a line, or a plain text.

    Parameters
    ----------
    path : str or path
        A file in UTF-8 without a byte order mark. A name that ends in .txt is a plain text's.
        Blank lines are skipped.
    turns : {"all", "last"}
        Which turns of the assistant the model should learn to write, in files of messages.

    Returns
    -------
    list of Record
        In the order of the lines.

    Raises
    ------
    DataError
        If the file or one of its lines cannot be used. The message names the file, the line and the
        cause.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.data import read_records
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "mine.jsonl")
    ...     _ = path.write_text('{"prompt": "2 + 2?", "response": "4"}\n')
    ...     (record,) = read_records(path)
    >>> record.line, *record.messages
    (1, {'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': '4'})
    """
    if turns not in ("all", "last"):
        raise DataError(f"turns={turns!r}, expected 'all' or 'last'")
    name = brief(os.fspath(path))
    if os.fspath(path).lower().endswith(".txt"):
        return [_plain_text(path, name)]
    records: list[Record] = []
    kind: tuple[str, ...] | None = None
    for number, row in json_lines(path):
        fields = _kind_of(row, kind, f"{name}, line {number}")
        kind = kind or fields
        records.append(_record(row, kind, turns, name, number))
    return records


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Yield the number of every line that is not blank, from 1, and the object that it holds.

    Raises
    ------
    DataError
        If the file is empty or one of its lines is not a JSON object in UTF-8. The message names
        the file, the line and the cause.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.data.records import json_lines
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "mine.jsonl")
    ...     _ = path.write_text('{"a": 1}\n\n{"a": 2}\n')
    ...     list(json_lines(path))
    [(1, {'a': 1}), (3, {'a': 2})]
    """
    name, first = brief(os.fspath(path)), True
    for number, raw in _lines(path, name):
        yield number, _parsed(raw, f"{name}, line {number}", first)
        first = False
    if first:
        raise DataError(f"{name} is empty: expected one JSON object a line")


def _plain_text(path: str | os.PathLike[str], name: str) -> Record:
    text = read_text(path)
    if text.startswith("\ufeff"):
        raise DataError(_of_mark(name))
    _require_text(text, f"{name}: the text")
    if not text.strip():
        raise DataError(f"{name} holds only white space: pass a file that holds text")
    return Record(name, 1, text=text, whole_file=True)


def _of_mark(name: str) -> str:
    return f"{name} starts with a byte order mark: save it as UTF-8 without one"


def _lines(path: str | os.PathLike[str], name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of every line that is not blank."""
    with open_file(path, DataError) as file:
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                raise DataError(_of_mark(name))
            if len(raw) > LONGEST_LINE:
                raise DataError(
                    f"{name}, line {number} has more than {LONGEST_LINE:,} bytes: "
                    "expected one record a line"
                )
            if raw.strip():
                yield number, raw


def _parsed(raw: bytes, place: str, first: bool) -> dict[str, Any]:
    """Return the object that a line holds."""
    if first and raw.lstrip().startswith(b"["):
        raise DataError(
            f"{place} starts a JSON array, expected one object a line: convert it with {TO_LINES}"
        )
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except json.JSONDecodeError as error:
        said = error.msg.removesuffix(" at")  # as in "Invalid control character at"
        cause = f"{said[0].lower()}{said[1:]} at character {error.pos + 1}"
        raise DataError(
            f"{place} is not JSON ({cause}): expected one whole object a line; "
            "the name of a plain text ends in .txt"
        ) from None
    except (ValueError, RecursionError):
        raise DataError(f"{place} has a number too long or brackets too deep to read") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is {JSON_NAMES[type(row)]}, expected a JSON object")
    return row


def _kind_of(row: dict[str, Any], kind: tuple[str, ...] | None, place: str) -> tuple[str, ...]:
    """Return the fields that make a line a record: those of the first line, if there was one."""
    found = [fields for fields in KINDS if all(field in row for field in fields)]
    if kind in found or (kind is None and found):
        return kind or found[0]
    if kind is None:
        known = ", ".join(" + ".join(fields) for fields in KINDS)
        fields = brief(", ".join(row), 160) or "none"
        raise DataError(f"{place} has the fields {fields}, expected one of: {known}")
    if found:
        raise DataError(
            f"{place} has {' + '.join(found[0])} and the lines before it have "
            f"{' + '.join(kind)}: put different kinds into different files"
        )
    missing = next(field for field in kind if field not in row)
    raise DataError(f"{place} has no field {missing!r}, which the lines before it have")


def _record(row: dict[str, Any], kind: tuple[str, ...], turns: str, name: str, line: int) -> Record:
    place = f"{name}, line {line}"
    if kind == ("text",):
        if not _text_in(row, "text", place).strip():
            raise DataError(f"{place}: 'text' is empty")
        return Record(name, line, text=row["text"])
    if kind == ("messages",):
        messages = _conversation(row["messages"], place)
    else:
        asked, answered = (_text_in(row, field, place) for field in kind)
        if kind[0] == "instruction" and row.get("input") not in (None, ""):
            asked = f"{asked}\n\n{_text_in(row, 'input', place)}"
        messages = (
            {"role": "user", "content": asked},
            {"role": "assistant", "content": _answer(answered, f"{place}: {kind[1]!r}")},
        )
    answers = sum(message["role"] == "assistant" for message in messages)
    learned = [True] * answers if turns == "all" else [False] * (answers - 1) + [True]
    return Record(name, line, messages, tuple(learned))


def _conversation(found: Any, place: str) -> tuple[Message, ...]:
    """Return the checked turns of a conversation, without fields other than role and content."""
    if not isinstance(found, list):
        raise DataError(f"{place}: 'messages' is {JSON_NAMES[type(found)]}, expected a list")
    messages: list[Message] = []
    for i, message in enumerate(found, start=1):
        where = f"{place}, message {i}"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise DataError(f"{where} is not an object with role and content")
        role, content = message["role"], _text_in(message, "content", where)
        if role not in ROLES:
            raise DataError(f"{where} has the role {shown(role)}, expected {', '.join(ROLES)}")
        _require_turn(role, messages, where)
        if role == "assistant":
            _answer(content, f"{where}: 'content'")
        messages.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{place} has no turn of the assistant: there is nothing to learn")
    return tuple(messages)


def _require_turn(role: str, before: Sequence[Message], where: str) -> None:
    """Refuse a turn out of order: chat templates differ in what they make of one, or fail."""
    last = before[-1]["role"] if before else None
    allowed = {None: ("system", "user"), "user": ("assistant",)}.get(last, ("user",))
    if role not in allowed:
        follows = "comes first" if last is None else f"follows one of the {last}"
        raise DataError(
            f"{where} is of the {role} and {follows}, expected {' or '.join(allowed)}: a "
            "conversation has a system message or none, then user and assistant in turn"
        )


def _text_in(row: dict[str, Any], field: str, place: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{place}: {field!r} is {JSON_NAMES[type(value)]}, expected a string")
    _require_text(value, f"{place}: {field!r}")
    return value


def _require_text(text: str, what: str) -> None:
    if "\0" in text:
        raise DataError(f"{what} has a NUL character at {text.index(chr(0)) + 1}: remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} has half a surrogate pair at character {error.start + 1}: write the whole "
            "character"
        ) from None


def _answer(text: str, what: str) -> str:
    if not text.strip():
        raise DataError(f"{what} is empty: an answer of no tokens teaches nothing")
    return text


def data_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    DataError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.data import data_hash
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "mine.txt")
    ...     _ = path.write_bytes(b"abc")
    ...     data_hash(path)[:16]
    'ba7816bf8f01cfea'
    """
    with open_file(path, DataError) as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
        return digest.hexdigest()
