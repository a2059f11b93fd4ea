"""Copy a checkpoint and replace some tensors, with one tensor in memory at a time.

Tensors that are not replaced are copied as bytes, whatever their type.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lora_np.files.arrays import CheckpointError, load_json
from lora_np.files.atomic import make_folder, replacing
from lora_np.files.tensor_header import BITS, Entry, header_bytes, read_header
from lora_np.files.tensors import TensorFile
from lora_np.reading import open_file

CHUNK = 2**24  # bytes copied at once


class _Place(NamedTuple):
    """The file of a tensor, and its entry in the header."""

    file: Path
    entry: Entry


def rewrite_tensors(
    source: TensorFile, path: str | Path, replacement: Callable[[str], np.ndarray | None]
) -> None:
    """Write a copy of a checkpoint with some tensors replaced, into one file.

    Parameters
    ----------
    source : TensorFile
        An open checkpoint. If it consists of several files, they are joined.
    path : str or Path
        A new file, which is written whole or not at all.
    replacement : callable
        ``replacement(name)`` returns an array of the same shape and dtype, or None to copy.

    Raises
    ------
    CheckpointError
        If `path` exists, or the source holds a tensor more than once.
    ValueError
        If a replacement has another shape or dtype.
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already: give the result another name")
    metadata, places = _places(source)
    tensors = {n: (e.code, e.shape, e.size) for n, (_, e) in places.items()}
    make_folder(path.parent)
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(header_bytes(metadata, tensors))
        for name, place in places.items():
            array = replacement(name)
            if array is None:
                _copy(place, out)
            else:
                out.write(_bytes_of(source, name, array))


def _places(source: TensorFile) -> tuple[dict[str, str], dict[str, _Place]]:
    """Return the metadata of all files, and the place of every tensor, wide dtypes first."""
    metadata, places = {}, {}
    for file in _files(source.path):
        with open_file(file, CheckpointError) as raw:
            notes, entries = read_header(raw, os.fstat(raw.fileno()).st_size)
        metadata = {**notes, **metadata}  # the first file's value counts
        places.update({name: _Place(file, entry) for name, entry in entries.items()})
    if len(places) != len(source.names):
        raise CheckpointError(f"{source.path} holds a tensor more than once")
    return metadata, {  # in descending order of width, all numbers are aligned
        name: places[name]
        for name in sorted(source.names, key=lambda name: -BITS[places[name].entry.code])
    }


def _files(path: Path) -> list[Path]:
    if path.suffix != ".json":
        return [path]
    return [path.parent / name for name in dict.fromkeys(load_json(path)["weight_map"].values())]


def _copy(place: _Place, out: BinaryIO) -> None:
    with open_file(place.file, CheckpointError) as raw:
        raw.seek(place.entry.start)
        left = place.entry.size
        while left:
            piece = raw.read(min(CHUNK, left))
            if not piece:
                raise CheckpointError(f"{place.file} ended while it was read")
            out.write(piece)
            left -= len(piece)


def _bytes_of(source: TensorFile, name: str, array: np.ndarray) -> bytes:
    expected = (source.shape(name), source.dtype(name))
    if (array.shape, array.dtype.name) != expected:
        raise ValueError(f"{name!r} became {array.dtype} {array.shape}, expected {expected}")
    return np.asarray(array, order="C").tobytes()
