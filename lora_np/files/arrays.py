"""Arrays, JSON and text in files; a file is replaced in one step or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files.atomic import replacing
from lora_np.files.npz import NotAnArray, read_npz
from lora_np.reading import brief, open_file

LARGEST_JSON = 2**25  # bytes; the index of a model of 90,000 tensors has 2^23


class CheckpointError(ValueError):
    """A file does not have the expected content; the message names the file and the reason."""


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to an ``.npz`` file.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.files import load_arrays, save_arrays
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(f"{folder}/two.npz", {"x": np.arange(3), "y": np.ones(1)})
    ...     {name: array.tolist() for name, array in load_arrays(f"{folder}/two.npz").items()}
    {'x': [0, 1, 2], 'y': [1.0]}
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **dict(arrays))  # pyright: ignore[reportArgumentType]


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file by name; they hold numbers or booleans, not objects.

    Raises
    ------
    CheckpointError
        If the file is missing or is not an ``.npz`` file of such arrays.

    Examples
    --------
    >>> from lora_np.files import CheckpointError, load_arrays
    >>> try:
    ...     load_arrays("no_such_file.npz")
    ... except CheckpointError as error:
    ...     print(error)
    no_such_file.npz does not exist
    """
    with open_file(path, CheckpointError) as raw:
        try:
            return read_npz(raw)
        except NotAnArray as error:
            raise CheckpointError(
                f"{path} is not a readable .npz file ({error}): remove it"
            ) from None


def save_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np.files import load_json, save_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/settings.json", {"ranks": [1, 2]})
    ...     load_json(f"{folder}/settings.json")
    {'ranks': [1, 2]}
    """
    save_text(path, json.dumps(content, indent=1) + "\n")


def save_text(path: str | Path, text: str) -> None:
    """Write `text` to a file, in UTF-8.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.files import save_text
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_text(f"{folder}/notes.txt", "r = 8")
    ...     Path(f"{folder}/notes.txt").read_text(encoding="utf-8")
    'r = 8'
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    CheckpointError
        If the file is missing, is not JSON, is larger than 32 MiB, or holds a number that is not
        finite.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np.files import load_json, save_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/settings.json", {"ranks": [1, 2]})
    ...     load_json(f"{folder}/settings.json")["ranks"]
    [1, 2]
    """
    with open_file(path, CheckpointError) as raw:
        if os.fstat(raw.fileno()).st_size > LARGEST_JSON:
            raise CheckpointError(f"{path} has more than {LARGEST_JSON} bytes, the limit for JSON")
        content = raw.read()
    try:
        return json.loads(content.decode(), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file: {error}") from None


def _finite(text: str) -> float:
    """Return a number in JSON; refuse nan, which is not JSON, and 1e999, which becomes inf."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{brief(text)} is not a finite number")
    return number
