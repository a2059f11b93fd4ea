"""The header of a safetensors file: what lies where, checked before a tensor is read.

A safetensors file has eight bytes with the length of the header, little-endian; the header, JSON
with the dtype, the shape and the place of each tensor; then the numbers, little-endian::

    {"__metadata__": {"format": "pt"},
     "W": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

Places are counted from the end of the header. The tensors fill the rest of the file: no two
overlap, nothing lies between them, and none ends after the file. Headers that break a rule are
refused, as the package safetensors refuses them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from lora_np.reading import is_name, shown

MOST = 100_000_000  # bytes of a header
# Bits of a number, by the codes of the dtypes. Files are written in this order, wide dtypes first.
BITS = {
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32},
    **{"BF16": 16, "F16": 16, "U16": 16, "I16": 16, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8},
    **{"F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8},
    **{"F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8},
}


class Entry(NamedTuple):
    """What the header says of a tensor: the code of its dtype, its shape, its place in the file."""

    code: str
    shape: tuple[int, ...]
    start: int
    size: int  # bytes


def read_header(file: BinaryIO, length: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Read the header of an open file.

    Parameters
    ----------
    file : binary file
        At its start.
    length : int
        The bytes of the whole file.

    Returns
    -------
    metadata : dict of str to str
    entries : dict of str to Entry
        In the order of the tensors in the file.

    Raises
    ------
    ValueError
        If the header breaks a rule; the message says which.

    Examples
    --------
    >>> import io
    >>> from lora_np.files.tensor_header import header_bytes, read_header
    >>> header = header_bytes({}, {"W": ("F32", (2, 3), 24)})
    >>> read_header(io.BytesIO(header), len(header) + 24)
    ({}, {'W': Entry(code='F32', shape=(2, 3), start=72, size=24)})
    """
    _need(length >= 8, f"it has {length} bytes, too few for the length of a header")
    (count,) = struct.unpack("<Q", file.read(8))
    _need(count <= min(MOST, length - 8), f"its header would have {count} bytes")
    text = file.read(count)
    _need(text.startswith(b"{"), "its header is not a JSON object")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_twins)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    metadata = content.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    _need(
        isinstance(metadata, dict) and all(map(_is_text, [*metadata, *metadata.values()])),
        "its __metadata__ is not of texts",
    )
    found = {name: _entry(name, value, 8 + count) for name, value in content.items()}
    entries = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].size)))
    _check_places(entries, 8 + count, length)
    return metadata, entries


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of a JSON object, none of whose names stands twice."""
    found = dict(pairs)
    _need(len(found) == len(pairs), "a name stands twice in its header")
    return found


def _is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can hold: JSON can spell half a surrogate pair."""
    try:
        return isinstance(value, str) and len(value.encode("utf-8")) >= len(value)
    except UnicodeEncodeError:
        return False


def _entry(name: str, value: Any, after_header: int) -> Entry:
    """Return what the header says of one tensor."""
    fields = {"dtype", "shape", "data_offsets"}
    _need(isinstance(value, dict) and value.keys() == fields, f"its {shown(name)} lacks a field")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    _need(isinstance(code, str) and code in BITS, f"its {shown(name)} has dtype {shown(code)}")
    _need(_are_sizes(shape), f"its {shown(name)} has shape {shown(shape)}")
    _need(
        _are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1],
        f"its {shown(name)} has data_offsets {shown(offsets)}",
    )
    start, end = offsets
    _need(
        math.prod(shape) * BITS[code] == 8 * (end - start),
        f"its {shown(name)} has {end - start} bytes for shape {shown(shape)} in {code}",
    )
    return Entry(code, tuple(shape), after_header + start, end - start)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**64 for n in value)


def _check_places(entries: Mapping[str, Entry], start: int, length: int) -> None:
    """Check that the tensors, in the order of their places, fill the file after its header."""
    for name, entry in entries.items():
        _need(entry.start == start, f"its {shown(name)} overlaps another tensor, or leaves a gap")
        start += entry.size
    _need(start == length, f"its tensors end at byte {start}, the file at byte {length}")


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def header_bytes(
    metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...], int]]
) -> bytes:
    """Return the bytes of a file before its numbers.

    Parameters
    ----------
    metadata : mapping of str to str
    tensors : mapping
        The code of the dtype, the shape and the bytes of each tensor, in the order in which their
        numbers follow.

    Raises
    ------
    ValueError
        If a name is one that no reader here accepts.
    """
    for name in tensors:
        if not is_name(name):
            raise ValueError(f"{shown(name)} is not a valid name of a tensor")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (code, shape, size) in tensors.items():
        offsets = [start, start + size]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": offsets}
        start += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text
