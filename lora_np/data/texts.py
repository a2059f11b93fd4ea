"""Text to train on: two corpora, byte tokens, splits, random batches and consecutive windows.

Python comes with two corpora, so nothing has to be downloaded: its language reference (English
about Python) and the source of its standard library. A base model learns the first; LoRA adapts it
to the second.

A token is a byte of the text's UTF-8 form. Any text in any script is then a sequence over the same
256 tokens, with no vocabulary file and no unknown word; the price is a longer sequence. A language
model predicts the next token, so a window of T inputs needs T + 1 consecutive tokens::

    tokens    t0 t1 t2 t3 t4
    inputs    t0 t1 t2 t3
    targets      t1 t2 t3 t4        targets[i] follows inputs[i]
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_np.backend import to_host
from lora_np.reading import open_file

VOCAB_SIZE = 256  # one token for each value of a byte

Tokens = np.ndarray | Sequence[int]


class DataError(ValueError):
    """A text cannot be used as requested; the message says what is wrong and what to do."""


def language_reference() -> str:
    """Return Python's language reference, as shipped with ``help()``: about 0.5 MB of English.

    Returns
    -------
    str
        The chapters of ``pydoc_data.topics`` in the order of their names, separated by blank lines.
        The text is the same in every run of one Python version, and differs between versions.

    Raises
    ------
    DataError
        If this Python comes without the module, as some slimmed distributions do.

    Examples
    --------
    >>> from lora_np.data import language_reference
    >>> "keyword" in language_reference()
    True
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python comes without pydoc_data.topics: read your own files with read_text"
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def standard_library() -> str:
    """Return the source of the standard library's top-level modules: 4 to 5 MB of Python.

    Returns
    -------
    str
        The ``*.py`` files beside ``os.py`` in the order of their names, separated by blank lines.
        If the library lies in a zip file, as in a browser, they are read out of it. Files that are
        not UTF-8 are left out. The text is the same in every run of one Python version.

    Raises
    ------
    DataError
        If there are no such files.

    Examples
    --------
    >>> from lora_np.data import standard_library
    >>> "import sys" in standard_library()
    True
    """
    beside_os = Path(os.__file__).parent
    in_zips = (zipfile.Path(place) for place in sys.path if zipfile.is_zipfile(place))
    for folder in (beside_os, *in_zips):
        if sources := list(_sources(folder)):
            return "\n\n".join(sources)
    raise DataError(
        f"no standard library source in {beside_os}: read your own files with read_text"
    )


def _sources(folder: Path | zipfile.Path) -> Iterator[str]:
    """Yield the standard library's modules in a folder, in the order of their names."""
    files = folder.iterdir() if folder.is_dir() else ()
    for path in sorted(files, key=lambda path: path.name):
        # Some builds and distributions put their own files here (sitecustomize.py, build settings);
        # with them two machines with the same Python would have different corpora.
        if path.suffix != ".py" or path.stem not in sys.stdlib_module_names:
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def read_text(*paths: str | os.PathLike[str]) -> str:
    """Return the text of your own files, in the order given, separated by blank lines.

    Parameters
    ----------
    *paths : str or path
        Text files in UTF-8.

    Returns
    -------
    str
        The exact characters of each file, line endings included.

    Raises
    ------
    DataError
        If no path is given, or a file is missing, unreadable, a directory, empty or not UTF-8.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.data import read_text
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "mine.txt")
    ...     _ = path.write_text("To be", encoding="utf-8")
    ...     read_text(path, path).split()
    ['To', 'be', 'To', 'be']
    """
    if not paths:
        raise DataError("read_text got no path: name at least one text file")
    return "\n\n".join(_read_file(Path(path)) for path in paths)


def _read_file(path: Path) -> str:
    if os.path.isdir(path):  # False, not an error, where the name is too long for a path
        raise DataError(f"{path} is a directory: pass the text files in it one by one")
    with open_file(path, DataError) as file:
        raw = file.read()
    if not raw:
        raise DataError(f"{path} is empty: pass a file that holds text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8 first"
        ) from error


def encode(text: str) -> np.ndarray:
    """Return the tokens of a text: the bytes of its UTF-8 form.

    Parameters
    ----------
    text : str

    Returns
    -------
    ndarray, shape (n,), uint8
        One to four tokens per character; in English nearly always one.

    Examples
    --------
    >>> from lora_np.data import encode
    >>> encode("né").tolist()  # é takes two bytes
    [110, 195, 169]
    """
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).copy()  # (n,)


def decode(tokens: Tokens) -> str:
    """Return the text of a sequence of tokens.

    Parameters
    ----------
    tokens : integers, shape (n,)
        Values from 0 to 255.

    Returns
    -------
    str
        Bytes that are not valid UTF-8 become U+FFFD, the replacement character: a model that
        generates bytes may stop inside a character, which is not an error.

    Raises
    ------
    DataError
        If `tokens` is not one row of integers from 0 to 255.

    Examples
    --------
    >>> from lora_np.data import decode, encode
    >>> decode(encode("naïve")), decode([110, 195])  # the second ends inside a character
    ('naïve', 'n�')
    """
    row = _as_row(to_host(tokens))  # (n,)
    if row.size and not (row.min() >= 0 and row.max() < VOCAB_SIZE):
        raise DataError(f"tokens lie in {row.min()} .. {row.max()}, expected bytes in 0 .. 255")
    return row.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class Splits(NamedTuple):
    """The three parts of a text, in their order in the text."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(tokens: Tokens, validation: float = 0.1, test: float = 0.1) -> Splits:
    """Cut a text by position into train | validation | test.

    Cut the text before you draw windows: otherwise windows of different parts would overlap, and
    the model would be tested on text that it was trained on.

    Parameters
    ----------
    tokens : integers, shape (n,)
    validation, test : float
        Fractions of the text, at least 0 and together less than 1; train is the rest.

    Returns
    -------
    Splits
        Three consecutive parts of `tokens`; views if `tokens` is an array.

    Raises
    ------
    DataError
        If the fractions leave nothing to train on, or `tokens` is not one row of integers.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import split
    >>> train, validation, test = split(np.arange(10), validation=0.2, test=0.1)
    >>> train.tolist(), validation.tolist(), test.tolist()
    ([0, 1, 2, 3, 4, 5, 6], [7, 8], [9])
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise DataError(
            f"validation={validation} and test={test}: each must be at least 0, their sum under 1"
        )
    row = _as_row(tokens)  # (n,)
    test_start = row.size - round(row.size * test)
    validation_start = test_start - round(row.size * validation)
    return Splits(row[:validation_start], row[validation_start:test_start], row[test_start:])


def sample_batch(
    tokens: Tokens, batch_size: int, block_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw random windows to train on; all possible starts are equally likely.

    Parameters
    ----------
    tokens : integers, shape (n,)
    batch_size, block_size : int
        Number of windows B, and of inputs T in each window.
    rng : numpy.random.Generator
        The same state draws the same windows.

    Returns
    -------
    inputs, targets : ndarray, shape (B, T), int64
        Targets are the inputs shifted by one.

    Raises
    ------
    DataError
        If the text is too short for one window, or a size is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import sample_batch
    >>> inputs, targets = sample_batch(np.arange(100), 8, 5, np.random.default_rng(0))
    >>> inputs.shape, bool((targets == inputs + 1).all())
    ((8, 5), True)
    """
    row = _as_row(tokens)  # (n,)
    _require_one_window(row, block_size)
    _require_positive("batch_size", batch_size)
    starts = rng.integers(0, row.size - block_size, size=batch_size)  # (B,)
    positions = starts[:, None] + np.arange(block_size)  # (B, T)
    return row[positions].astype(np.int64), row[positions + 1].astype(np.int64)


def windows(
    tokens: Tokens, block_size: int, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return consecutive windows that cover a text, to evaluate on without random choices.

    Parameters
    ----------
    tokens : integers, shape (n,)
    block_size : int
        Number of inputs T in each window.
    limit : int, optional
        Keep at most this many windows, evenly spaced over the text.

    Returns
    -------
    inputs, targets : ndarray, shape (N, T), int64
        N = (n - 1) // T windows, or `limit` if that is less. Without `limit`, each token except the
        first is a target once; an incomplete window at the end is dropped.

    Raises
    ------
    DataError
        If the text is too short for one window, or a size is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import windows
    >>> inputs, targets = windows(np.arange(8), 3)
    >>> inputs.tolist(), targets.tolist()  # 7 is left over
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    row = _as_row(tokens)  # (n,)
    _require_one_window(row, block_size)
    count = (row.size - 1) // block_size
    covered = count * block_size
    inputs = row[:covered].reshape(count, block_size)  # (N, T)
    targets = row[1 : covered + 1].reshape(count, block_size)  # (N, T)
    if limit is not None:
        _require_positive("limit", limit)
        keep = _evenly_spaced(count, min(limit, count))
        inputs, targets = inputs[keep], targets[keep]
    return inputs.astype(np.int64), targets.astype(np.int64)


def _evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Return the middle index of each of `limit` equal stretches of ``range(count)``."""
    # The subject of a text changes, so its first windows represent only its first chapters; windows
    # from everywhere estimate the loss on the whole text.
    return (2 * np.arange(limit) + 1) * count // (2 * limit)  # (limit,)


def _as_row(tokens: Tokens) -> np.ndarray:
    """Return `tokens` as an array, if it is one row of integers."""
    row = np.asarray(tokens)
    if row.ndim != 1:
        raise DataError(f"tokens have shape {row.shape}: one row of tokens (n,) is expected")
    if row.size == 0:
        return row.astype(np.uint8)  # NumPy makes an empty list float64
    if row.dtype.kind not in "iu":
        raise DataError(f"tokens have dtype {row.dtype}: integers are expected, encode(text) first")
    return row


def _require_one_window(row: np.ndarray, block_size: int) -> None:
    _require_positive("block_size", block_size)
    if row.size < block_size + 1:
        raise DataError(
            f"the text has {row.size} tokens, a window of block_size={block_size} needs "
            f"{block_size + 1}: use a longer text or a smaller block_size"
        )


def _require_positive(name: str, size: int) -> None:
    if size < 1:
        raise DataError(f"{name}={size}: at least 1 is needed")
