r"""Read the arrays of an ``.npz`` file; every size in it is checked before memory is allocated.

An ``.npz`` file is a zip file of ``.npy`` files, each with magic bytes, a version, the length of a
header, the header, and then the numbers::

    \x93NUMPY 1 0   118   {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   ...

The zip file and the header both state sizes, and both may be wrong. Here a member takes no more
memory than its bytes in the file can stand for, and the header's shape must fit them exactly. The
header is matched, not evaluated; arrays of objects, which are pickles and can run code, are
refused.

Source: the formats of numpy.lib.format and of APPNOTE.TXT 6.3, PKWARE.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
import zlib
from typing import IO, Any, BinaryIO

import numpy as np

from lora_np.reading import brief, is_name, shown

CHUNK = 2**24  # bytes read at once
LONGEST_HEADER = 10_000  # bytes, as in NumPy; 64 axes take about 1,000
DENSEST = 1032  # bytes that one byte of deflate can stand for
ENCRYPTED = 1  # bit of a member's flags
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
LENGTH = {b"\x93NUMPY\x01\0": "<H", b"\x93NUMPY\x02\0": "<I"}  # of a header: format by version
SIZE = r"(?:0|[1-9][0-9]{0,18})"
HEADER = re.compile(
    r"\{'descr': '(?P<descr>[<>|=][biufc][0-9]{1,2})', 'fortran_order': (?P<order>True|False), "
    rf"'shape': \((?P<shape>|{SIZE},|{SIZE}(?:, {SIZE})+,?)\),? ?\}} *\n?"
)
BROKEN = (  # errors that zipfile and zlib raise for a broken file
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError),
    *(OverflowError, LookupError, ValueError),
)


class NotAnArray(ValueError):
    """A file or a member is not valid; the message says why."""


def read_npz(raw: BinaryIO) -> dict[str, np.ndarray]:
    """Return the arrays of an open file by name.

    Parameters
    ----------
    raw : binary file
        A file of numpy.savez or numpy.savez_compressed, whose arrays hold numbers or booleans.

    Raises
    ------
    NotAnArray
        If the file is not valid, or an array does not fit in memory.
    """
    if raw.read(2) != b"PK":
        raise NotAnArray("it is not a zip file")
    try:
        with zipfile.ZipFile(raw) as file:
            members = file.infolist()
            check_members(members, os.fstat(raw.fileno()).st_size)
            return {_name(member): _read_member(file, member) for member in members}
    except NotAnArray:
        raise
    except BROKEN as error:
        reason = brief(str(error) or type(error).__name__)
        raise NotAnArray(f"it is not a valid zip file: {reason}") from None
    except MemoryError:
        raise NotAnArray("its arrays do not fit in memory") from None


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse members that cannot be read, or claim more memory than their bytes can stand for."""
    names = [_name(member) for member in members]
    for name, member in zip(names, members):
        if not is_name(name):
            raise NotAnArray(f"{shown(name)} is not a valid name of an array")
        if member.flag_bits & ENCRYPTED or member.compress_type not in (STORED, DEFLATED):
            raise NotAnArray(f"{shown(name)} is encrypted, or compressed in a way NumPy never uses")
        if member.file_size > DENSEST * member.compress_size:
            raise NotAnArray(f"{shown(name)} claims more bytes than its place in the file can hold")
    if len(set(names)) < len(names):
        raise NotAnArray("two of its arrays have the same name")
    if sum(member.compress_size for member in members) > size:
        raise NotAnArray("its members claim more bytes than the file has")


def _read_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    name = shown(_name(member))
    with file.open(member) as stream:
        dtype, shape, order, start = _header(stream, name)
        if start + math.prod(shape) * dtype.itemsize != member.file_size:
            raise NotAnArray(f"{name} claims shape {shown(shape)}, which its data does not fit")
        try:
            array = np.empty(shape, dtype, order)
        except ValueError:  # too many axes, or one too long beside one of length 0
            raise NotAnArray(f"{name} claims shape {shown(shape)}, which no array has") from None
        fill(array.reshape(-1, order="A").view(np.uint8), stream, name)
    return array


def fill(place: np.ndarray, stream: IO[bytes], name: str) -> None:
    """Read bytes into a one-dimensional array of them, or raise NotAnArray if there are fewer."""
    for begin in range(0, len(place), CHUNK):
        piece = place[begin : begin + CHUNK]
        content = stream.read(len(piece))  # zipfile checks the checksum at the member's end
        if len(content) != len(piece):
            raise NotAnArray(f"{name} ends early")
        piece[...] = np.frombuffer(content, np.uint8)


def _header(stream: IO[bytes], name: str) -> tuple[np.dtype, tuple[int, ...], Any, int]:
    """Return dtype, shape and order of an ``.npy`` file, and where its numbers begin."""
    start = stream.read(8)
    form = LENGTH.get(start)
    if form is None:
        raise NotAnArray(f"{name} is not an array of numbers")
    (length,) = struct.unpack(form, stream.read(struct.calcsize(form)))
    text = stream.read(min(length, LONGEST_HEADER)).decode("latin-1")
    found = HEADER.fullmatch(text)
    if found is None or len(text) != length:
        raise NotAnArray(f"{name} has the header {shown(text)}: it is not an array of numbers")
    try:
        dtype = np.dtype(found["descr"])
    except TypeError:
        raise NotAnArray(f"{name} has the unknown dtype {found['descr']!r}") from None
    shape = tuple(int(size) for size in found["shape"].split(",") if size)
    order = "F" if found["order"] == "True" else "C"
    return dtype, shape, order, len(start) + struct.calcsize(form) + length
