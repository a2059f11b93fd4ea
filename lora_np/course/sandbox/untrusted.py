"""Read files that a student, or a student's code, has written, without trusting any byte.

For any file with any contents, the functions here return or raise :class:`Unreadable`, in bounded
time and memory. They open only regular files: a pipe can block, a device may never end, and a link
can lead to a file of another student.

An answer consists of two files that child.py writes. ``answer.json`` contains one object for each
draw, either ``{"raised": [type, message]}`` or
``{"outputs": [[dtype, shape], ...], "changed": {name: by}}``. ``answer.bin`` contains the bytes of
the outputs, one array after another.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.reading import brief

MOST_JSON = 2**20  # bytes: an answer's own JSON takes a few hundred
NUMBERS = {  # allowed names of a dtype; np.dtype itself accepts many more
    dtype.str: dtype
    for plain in map(np.dtype, "?bBhHiIlLqQefdgFDG")
    for dtype in (plain, plain.newbyteorder())  # both byte orders
}
KINDS = {
    stat.S_IFLNK: "a link: replace it by the file itself",
    stat.S_IFDIR: "a folder: replace it by the file itself",
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


class Unreadable(ValueError):
    """A file cannot be read; the message gives the reason in one printable line."""


def read_regular(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file.

    Parameters
    ----------
    path : Path
    most : int
        The largest size allowed, in bytes.

    Returns
    -------
    bytes

    Raises
    ------
    Unreadable
        If `path` does not exist, is too large, is not a regular file, or cannot be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from lora_np.course.sandbox.untrusted import Unreadable, read_regular
    >>> try:
    ...     read_regular(Path("/"), 10)
    ... except Unreadable as error:
    ...     print(error)
    / is a folder: replace it by the file itself
    """
    name = brief(path.name or str(path), 48)
    flags = [getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
    try:
        _check_kind(os.lstat(path))  # before opening it, which can set a device in motion
        with open(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
            _check_kind(os.fstat(file.fileno()))  # it may have been replaced since
            data = file.read(most + 1)
    except Unreadable as error:
        raise Unreadable(f"{name} is {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        why = getattr(error, "strerror", None) or error
        raise Unreadable(f"{name} cannot be read: {why}") from error
    if len(data) > most:
        raise Unreadable(f"{name} is larger than {most / 2**20:.3g} MiB: hand in only the code")
    return data


def _check_kind(found: os.stat_result) -> None:
    """Raise an Unreadable that names the kind of a file, unless it is a regular file."""
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise Unreadable(KINDS.get(kind, "not a regular file"))


def read_answers(folder: Path, n: int, most: int) -> list[dict[str, Any]]:
    """Return the answers that the child has written.

    Parameters
    ----------
    folder : Path
        Contains ``answer.json`` and ``answer.bin``.
    n : int
        The number of draws. A single answer that raised stands for all of them.
    most : int
        The largest size of all outputs together, in bytes.

    Returns
    -------
    list of dict
        As from :func:`lora_np.course.sandbox.child.attempt`.

    Raises
    ------
    Unreadable
        If the files contain anything else.
    """
    text = read_regular(folder / "answer.json", MOST_JSON)
    unread = memoryview(read_regular(folder / "answer.bin", most))
    try:
        rows = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable("answer.json is not JSON") from error
    _need(isinstance(rows, list) and len(rows) in (1, n), "one answer for each draw is expected")
    answers = []
    for row in rows:
        _need(isinstance(row, dict), "an answer is not an object")
        if "raised" in row:
            answers.append({"raised": _raised(row["raised"])})
            continue
        outputs = []
        for header in _list(row.get("outputs")):
            array, unread = _array(header, unread)
            outputs.append(array)
        answers.append({"outputs": outputs, "changed": _changed(row.get("changed"))})
    if len(rows) < n:
        _need("raised" in answers[0], "one answer for each draw is expected")
        return answers * n  # there is no function to call
    return answers


def _need(holds: bool, what: str) -> None:
    """Raise an Unreadable with the message `what`, unless the condition holds."""
    if not holds:
        raise Unreadable(what)


def _list(value: Any) -> list[Any]:
    """Return a value if it is a list; otherwise raise an Unreadable."""
    _need(isinstance(value, list), f"a list is expected, not {type(value).__name__}")
    return value


def _raised(value: Any) -> tuple[str, str]:
    """Return the type and the message of an exception, each as one printable line."""
    pair = _list(value)
    _need(len(pair) == 2 and all(isinstance(text, str) for text in pair), "two texts are expected")
    return brief(pair[0], 100), brief(pair[1])


def _changed(value: Any) -> dict[str, float]:
    """Return the largest change of every input."""
    _need(isinstance(value, dict), "an object is expected")
    _need(all(isinstance(by, float) for by in value.values()), "real numbers are expected")
    return value


def _array(header: Any, unread: memoryview) -> tuple[np.ndarray, memoryview]:
    """Return the array that a header describes, and the bytes after it."""
    pair = _list(header)
    _need(len(pair) == 2 and isinstance(pair[0], str), "a dtype and a shape are expected")
    _need(pair[0] in NUMBERS, "an output is not an array of numbers")
    dtype, shape = NUMBERS[pair[0]], _list(pair[1])
    _need(len(shape) <= 32, "an output has too many axes")  # NumPy 1's limit
    _need(all(type(d) is int and 0 <= d < 2**31 for d in shape), "a shape holds whole numbers")
    count = math.prod(shape)
    _need(math.prod(d or 1 for d in shape) < 2**31, "an empty output has axes that are too long")
    _need(count * dtype.itemsize <= len(unread), "answer.bin is too short")
    array = np.frombuffer(unread, dtype, count).reshape(shape).copy()  # aligned, writable
    return array, unread[count * dtype.itemsize :]
