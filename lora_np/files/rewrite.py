"""Copy a checkpoint and replace some tensors, with one tensor in memory at a time.

A safetensors file has eight bytes with the length of the header, little-endian; the header, JSON
with each tensor's dtype, shape and place; then the bytes of the tensors. Tensors that are not
replaced are copied as bytes, whatever their type.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lora_np.files.arrays import CheckpointError, load_json
from lora_np.files.atomic import make_folder, replacing
from lora_np.files.tensors import TensorFile
from lora_np.reading import open_file

CHUNK = 2**24  # bytes copied at once


class _Place(NamedTuple):
    """The place of a tensor's bytes, and its entry in the header."""

    file: Path
    start: int
    size: int
    entry: dict[str, Any]


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
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, place in places.items():
        offsets = [start, start + place.size]
        header[name] = {**place.entry, "data_offsets": offsets}
        start += place.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight, as usual
    make_folder(path.parent)
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
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
            (length,) = struct.unpack("<Q", raw.read(8))
            header = json.loads(raw.read(length))  # checked when the TensorFile was opened
        metadata = {**header.pop("__metadata__", {}), **metadata}  # the first file's value counts
        for name, entry in header.items():
            begin, end = entry.pop("data_offsets")
            places[name] = _Place(file, 8 + length + begin, end - begin, entry)
    if len(places) != len(source.names):
        raise CheckpointError(f"{source.path} holds a tensor more than once")
    width = {name: _width(place) for name, place in places.items()}
    return metadata, {name: places[name] for name in sorted(source.names, key=lambda n: -width[n])}


def _files(path: Path) -> list[Path]:
    if path.suffix != ".json":
        return [path]
    return [path.parent / name for name in dict.fromkeys(load_json(path)["weight_map"].values())]


def _width(place: _Place) -> int:
    """Return the bytes per number; in descending order, all numbers are aligned."""
    count = int(np.prod(place.entry["shape"], dtype=np.int64))
    return place.size // count if count else 0


def _copy(place: _Place, out: BinaryIO) -> None:
    with open_file(place.file, CheckpointError) as raw:
        raw.seek(place.start)
        left = place.size
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
