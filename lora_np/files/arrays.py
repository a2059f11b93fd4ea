"""Files in and out, never half-written: a file is replaced in one step or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class CheckpointError(ValueError):
    """A file that cannot be read as what it should be; the message names it and says why."""


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
    """Read the arrays of an ``.npz`` file by name.

    Examples
    --------
    >>> from lora_np.files import CheckpointError, load_arrays
    >>> try:
    ...     load_arrays("no_such_file.npz")
    ... except CheckpointError as error:
    ...     print(error)
    no_such_file.npz does not exist
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (ValueError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile):
        raise CheckpointError(f"{path} is not a readable .npz file: remove it") from None


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
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to write, which takes the place of `path` if all went well.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> from lora_np.files import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         with replacing(f"{folder}/a.txt") as temporary:
    ...             _ = temporary.write_text("half of i")
    ...             raise KeyboardInterrupt
    ...     except KeyboardInterrupt:
    ...         os.listdir(folder)  # no half of a file
    []
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_json(path: str | Path) -> Any:
    """Read a JSON file.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np.files import load_json, save_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/settings.json", {"ranks": [1, 2]})
    ...     load_json(f"{folder}/settings.json")["ranks"]
    [1, 2]
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file: {error}") from None
