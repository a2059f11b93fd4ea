"""Read what a student, or a student's code, has left: no byte of it is trusted.

Whatever a file holds, and whatever it is, the functions here return or raise :class:`Unreadable`,
in bounded time and memory. They open regular files alone: a pipe would be waited for, a device
never ends, and a link may lead to a file that is not the student's.

An answer is two files that child.py writes. ``answer.json`` holds one object a draw, either
``{"raised": [type, message]}`` or ``{"outputs": [[dtype, shape], ...], "changed": {name: by}}``;
``answer.bin`` holds the outputs' bytes, one array after the other.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

MOST_JSON = 2**20  # bytes: an answer's own JSON takes a few hundred
NUMBERS = {  # what the child may call a dtype; np.dtype itself reads far more than these
    dtype.str: dtype
    for plain in map(np.dtype, "?bBhHiIlLqQefdgFDG")
    for dtype in (plain, plain.newbyteorder())  # of this machine's byte order, and of the other
}
KINDS = {
    stat.S_IFLNK: "a link, which is not followed: put the file itself in its place",
    stat.S_IFDIR: "a folder: put the file itself in its place",
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


class Unreadable(ValueError):
    """A file that is not what it must be; the message says why in one printable line."""


def read_regular(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file.

    Parameters
    ----------
    path : Path
    most : int
        Bytes that the file may hold.

    Returns
    -------
    bytes

    Raises
    ------
    Unreadable
        If `path` is missing, larger, a link or no regular file, or may not be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from lora_np.course.sandbox.untrusted import Unreadable, read_regular
    >>> try:
    ...     read_regular(Path("/"), 10)
    ... except Unreadable as error:
    ...     print(error)
    / is a folder: put the file itself in its place
    """
    name = printable(path.name or str(path), 48)
    flags = [getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
    try:
        _check_kind(os.lstat(path))  # before it is opened, as that alone may move a device
        with open(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
            _check_kind(os.fstat(file.fileno()))  # it may have been replaced in between
            data = file.read(most + 1)
    except Unreadable as error:
        raise Unreadable(f"{name} is {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        why = getattr(error, "strerror", None) or error
        raise Unreadable(f"{name} cannot be read: {why}") from error
    if len(data) > most:
        raise Unreadable(f"{name} is larger than {most / 2**20:.3g} MiB: hand in the code alone")
    return data


def _check_kind(found: os.stat_result) -> None:
    """Raise an Unreadable that says what a file is, unless it is a regular one."""
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise Unreadable(KINDS.get(kind, "no regular file"))


def read_answers(folder: Path, n: int, most: int) -> list[dict[str, Any]]:
    """Return the answers that the child left.

    Parameters
    ----------
    folder : Path
        Holds ``answer.json`` and ``answer.bin``.
    n : int
        How many draws there were. One answer that raised stands for all of them.
    most : int
        Bytes that all outputs together may take.

    Returns
    -------
    list of dict
        As from :func:`lora_np.course.sandbox.child.attempt`.

    Raises
    ------
    Unreadable
        If the files hold anything else.
    """
    text = read_regular(folder / "answer.json", MOST_JSON)
    unread = memoryview(read_regular(folder / "answer.bin", most))
    try:
        rows = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable("answer.json is no JSON") from error
    _need(isinstance(rows, list) and len(rows) in (1, n), "one answer a draw is expected")
    answers = []
    for row in rows:
        _need(isinstance(row, dict), "an answer is no object")
        if "raised" in row:
            answers.append({"raised": _raised(row["raised"])})
            continue
        outputs = []
        for header in _list(row.get("outputs")):
            array, unread = _array(header, unread)
            outputs.append(array)
        answers.append({"outputs": outputs, "changed": _changed(row.get("changed"))})
    if len(rows) < n:
        _need("raised" in answers[0], "one answer a draw is expected")
        return answers * n  # there is no function to call
    return answers


def _need(holds: bool, what: str) -> None:
    """Raise an Unreadable that says `what`, unless it holds."""
    if not holds:
        raise Unreadable(what)


def _list(value: Any) -> list[Any]:
    """Return a value that must be a list."""
    _need(isinstance(value, list), f"a list is expected, not {type(value).__name__}")
    return value


def _raised(value: Any) -> tuple[str, str]:
    """Return an exception's type and message, so that both print in one line."""
    pair = _list(value)
    _need(len(pair) == 2 and all(isinstance(text, str) for text in pair), "two texts are expected")
    return printable(pair[0], 100), printable(pair[1])


def _changed(value: Any) -> dict[str, float]:
    """Return by how much inputs were changed."""
    _need(isinstance(value, dict), "an object is expected")
    _need(all(isinstance(by, float) for by in value.values()), "real numbers are expected")
    return value


def _array(header: Any, unread: memoryview) -> tuple[np.ndarray, memoryview]:
    """Return the array that a header describes, and what follows it."""
    pair = _list(header)
    _need(len(pair) == 2 and isinstance(pair[0], str), "a dtype and a shape are expected")
    _need(pair[0] in NUMBERS, "an output is no array of numbers")
    dtype, shape = NUMBERS[pair[0]], _list(pair[1])
    _need(len(shape) <= 32, "an output has too many axes")  # NumPy 1's limit
    _need(all(type(d) is int and 0 <= d < 2**31 for d in shape), "a shape holds whole numbers")
    count = math.prod(shape)
    _need(math.prod(d or 1 for d in shape) < 2**31, "an empty output has axes that are too long")
    _need(count * dtype.itemsize <= len(unread), "answer.bin is too short")
    array = np.frombuffer(unread, dtype, count).reshape(shape).copy()  # aligned, writable
    return array, unread[count * dtype.itemsize :]


def printable(text: str, most: int = 400) -> str:
    r"""Return a text in one line that steers no terminal and fits any encoding of Unicode.

    Parameters
    ----------
    text : str
    most : int
        Characters of the result; of a longer text the middle is left out.

    Returns
    -------
    str

    Examples
    --------
    >>> from lora_np.course.sandbox.untrusted import printable
    >>> print(printable("anna\x1b[2J\n.py"))
    anna\x1b[2J\n.py
    >>> print(printable("abcdefghij" * 1000, 20))
    abcdefghijabc...ghij
    """
    if len(text) > 2 * most:
        text = text[:most] + text[-most:]  # more than is shown, whatever the length
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    last = most // 5
    return shown if len(shown) <= most else f"{shown[: most - 3 - last]}...{shown[-last:]}"
