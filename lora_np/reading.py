"""Reading files that others may have made, and quoting names from them safely.

A name in a file may be long, or hold characters that move a terminal's cursor: an error message
quotes it with :func:`shown`.

Links are followed: a model's folder in Hugging Face's cache consists of links. A path written
INSIDE a file is never followed out of that file's folder.
"""

from __future__ import annotations

import os
import reprlib
import stat
from collections.abc import Iterable
from typing import Any, BinaryIO

LONGEST_NAME = 500  # characters of a tensor's or module's name; real names have about a hundred
KINDS = {  # paths that are not files, and the test for each kind
    "a folder": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
}

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 160
_BRIEF.maxlevel = 2


def shown(value: Any) -> str:
    r"""Return a name or a value from a file as an error message quotes it: short, on one line.

    Parameters
    ----------
    value : object
        Most often a str.

    Returns
    -------
    str
        The value's ``repr``, so that control characters and lone surrogates are escaped; the start
        and the end of a long one.

    Examples
    --------
    >>> from lora_np.reading import shown
    >>> print(shown("h.0.q_proj"), shown("two\nlines"), len(shown("x" * 100_000)))
    'h.0.q_proj' 'two\nlines' 160
    """
    return brief(_BRIEF.repr(value))


def printable(text: str) -> str:
    r"""Return a text whose unprintable characters are escaped as in ``repr``.

    Examples
    --------
    >>> from lora_np.reading import printable
    >>> print(printable("秩 \x1b[2J"))
    秩 \x1b[2J
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(text: str, most: int = 400) -> str:
    r"""Return a text as :func:`printable` does, without its middle if it is long.

    Parameters
    ----------
    text : str
    most : int
        The largest number of characters in the result.

    Examples
    --------
    >>> from lora_np.reading import brief
    >>> print(brief("anna\x1b[2J\n.py"))
    anna\x1b[2J\n.py
    >>> print(brief("abcdefghij" * 1000, 20))
    abcdefghijabc...ghij
    """
    if len(text) > 2 * most:
        text = text[:most] + text[-most:]  # more than is shown, however long the text is
    text, last = printable(text), most // 5
    return text if len(text) <= most else f"{text[: most - 3 - last]}...{text[-last:]}"


def is_name(value: Any) -> bool:
    r"""Whether a value can be the name of a tensor or a module: a printable, short enough string.

    Examples
    --------
    >>> from lora_np.reading import is_name
    >>> is_name("h.0.q_proj"), is_name("\x1b[2J"), is_name("x" * 1000), is_name(7)
    (True, False, False, False)
    """
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def folder_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a folder; of a link to a folder, the link's own name.

    Examples
    --------
    >>> from lora_np.reading import folder_name
    >>> folder_name("adapters/sql/"), folder_name("adapters/sql/../shops")
    ('sql', 'shops')
    """
    return os.path.basename(os.path.abspath(path))


def open_file(path: str | os.PathLike[str], error: type[ValueError]) -> BinaryIO:
    """Open a regular file to read its bytes; refuse folders, pipes, sockets and devices.

    A pipe or a device could block its reader for ever, or never end.

    Parameters
    ----------
    path : str or path
    error : type of ValueError
        The error to raise.

    Returns
    -------
    file
        To be used in a ``with`` block.

    Raises
    ------
    ValueError
        Of the type `error`, if the path is not a file or cannot be read.

    Examples
    --------
    >>> from lora_np.files import CheckpointError
    >>> from lora_np.reading import open_file
    >>> try:
    ...     open_file(".", CheckpointError)
    ... except CheckpointError as problem:
    ...     print(problem)
    . is a folder, expected a file
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    name = brief(str(path))
    try:
        _require_file(os.stat(path).st_mode, name, error)  # opening a device could start it
        file = os.fdopen(os.open(path, flags), "rb")  # does not wait if the path is now a pipe
    except error:
        raise
    except FileNotFoundError:
        raise error(f"{name} does not exist") from None
    except OSError as problem:
        raise error(f"{name} cannot be read ({problem.strerror}): check the path") from None
    except ValueError:  # a zero byte, a lone surrogate
        raise error(f"{name} cannot be the path of a file") from None
    try:
        _require_file(os.fstat(file.fileno()).st_mode, name, error)
    except error:
        file.close()
        raise
    return file


def _require_file(mode: int, name: str, error: type[ValueError]) -> None:
    if not stat.S_ISREG(mode):
        kind = next((kind for kind, test in KINDS.items() if test(mode)), "a device")
        raise error(f"{name} is {kind}, expected a file")


def is_one_of(value: object, allowed: Iterable[object]) -> bool:
    """Whether a value of a file is one of these; true is not 1, nor false 0.

    Examples
    --------
    >>> from lora_np.reading import is_one_of
    >>> is_one_of(1, (1.0, None)), is_one_of(1, (True,)), is_one_of([], (False, None))
    (True, False, False)
    """
    boolean = isinstance(value, bool)
    return any(value == known and isinstance(known, bool) == boolean for known in allowed)
