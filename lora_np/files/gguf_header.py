"""The header of a GGUF file: fields and the list of tensors, read and written.

All numbers are little-endian; a string is its length (uint64) and UTF-8::

    header    "GGUF" | version uint32 | number of tensors uint64 | number of fields uint64
    field     name string | kind uint32 | value
    tensor    name string | number of axes uint32 | axes uint64 each, the fastest first
              | type uint32 | offset uint64, from the start of the data
    data      at the next multiple of the field general.alignment (by default 32)

A value is a number, a boolean, a string, or an array: kind uint32 | length uint64 | values. A file
may come from anyone: every count is compared with the bytes that are left before it is used.

Source: docs/gguf.md of ggml.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.files.arrays import CheckpointError
from lora_np.reading import is_name, shown

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {  # kinds of values: NumPy's dtypes
    **{0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
KINDS = {np.dtype(dtype): kind for kind, dtype in NUMBERS.items()}
STRING, ARRAY = 8, 9
DEEPEST = 4  # arrays within arrays
MOST_AXES = 4  # as in ggml
ALIGNMENT = "general.alignment"


class TensorPlace(NamedTuple):
    """A tensor in the header: its shape in NumPy's order, the number of its type, its offset."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class Header(NamedTuple):
    """The header of a file; the data starts at byte `start`."""

    version: int
    alignment: int
    fields: dict[str, Any]
    tensors: list[TensorPlace]
    start: int


def read_header(data: np.ndarray, source: str) -> Header:
    """Return the header of a file.

    Parameters
    ----------
    data : array of uint8
        The whole file.
    source : str
        The file's name, for the errors.

    Raises
    ------
    CheckpointError
        If the file is not GGUF, has another version or byte order, or is cut off or broken.
    """
    reader = _Reader(data, source)
    if bytes(data[:4]) != MAGIC:
        raise CheckpointError(f"{source} is not a GGUF file")
    reader.at = 4
    version = reader.number(4)
    if version and version % 2**16 == 0:
        raise CheckpointError(f"{source} is big-endian, expected a little-endian GGUF file")
    if version not in VERSIONS:
        raise CheckpointError(f"{source} has version {version} of GGUF, expected 2 or 3")
    n_tensors, n_fields = reader.number(10), reader.number(10)
    fields = reader.fields(n_fields)
    tensors = reader.tensors(n_tensors)
    alignment = fields.get(ALIGNMENT, 32)
    if not is_alignment(alignment):
        raise CheckpointError(
            f"{source} has {ALIGNMENT} = {shown(alignment)}, expected 8, 16, 32, ... or 65536"
        )
    return Header(version, alignment, fields, tensors, reader.at + -reader.at % alignment)


def is_alignment(value: Any) -> bool:
    """Whether a value can be the alignment of a file: a power of two from 8 to 65536."""
    return type(value) is int and value in [2**k for k in range(3, 17)]


class _Reader:
    """Reads the parts of a header one after the other, and names the part that is cut off."""

    def __init__(self, data: np.ndarray, source: str) -> None:
        self.data, self.source = memoryview(data), source  # pyright: ignore[reportArgumentType]
        self.at, self.part = 0, "its header"

    def wrong(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.source} holds {self.part} {problem}")

    def need(self, count: int) -> None:
        """Raise CheckpointError unless so many bytes are left."""
        missing = self.at + count - len(self.data)
        if missing > 0:
            raise CheckpointError(
                f"{self.source} is cut off in {self.part}: {missing} bytes are missing"
            )

    def number(self, kind: int) -> Any:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(NUMBERS[kind])
        self.need(count * dtype.itemsize)
        boolean = dtype.kind == "b"
        found = np.frombuffer(self.data, "u1" if boolean else dtype, count, self.at)
        if boolean and (found > 1).any():
            raise self.wrong("with a boolean that is neither 0 nor 1")
        self.at += count * dtype.itemsize
        return found.astype(dtype).tolist()

    def strings(self, count: int) -> list[str]:
        self.need(8 * count)
        data, length = self.data, struct.Struct("<Q").unpack_from
        found, at, end = [], self.at, len(data)
        start = at
        try:
            for _ in range(count):
                start = at + 8
                at = start + length(data, at)[0]
                if at > end:
                    break
                found.append(str(data[start:at], "utf-8"))
        except struct.error:  # the length itself is cut off
            at = start
        except UnicodeDecodeError:
            raise self.wrong("with a string that is not UTF-8") from None
        self.need(at - self.at)
        self.at = at
        return found

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.strings(1)[0]
        if kind != ARRAY:
            self.expect_kind(kind)
            return self.number(kind)
        inner, count = self.number(4), self.number(10)
        if inner == STRING:
            return self.strings(count)
        if inner != ARRAY:
            self.expect_kind(inner)
            return self.numbers(inner, count)
        if depth == DEEPEST:
            raise self.wrong(f"with arrays nested more than {DEEPEST} deep")
        self.need(12 * count)
        return [self.value(ARRAY, depth + 1) for _ in range(count)]

    def expect_kind(self, kind: int) -> None:
        if kind not in NUMBERS:
            raise self.wrong(f"with a value of kind {kind}, which GGUF does not have")

    def name(self, part: str, taken: Any) -> str:
        """Read the name of a field or a tensor."""
        self.part = f"the name of a {part}"
        (name,) = self.strings(1)
        if not is_name(name):
            raise CheckpointError(
                f"{self.source} holds {shown(name)}, not a valid name of a {part}"
            )
        if name in taken:
            raise CheckpointError(f"{self.source} holds the {part} {shown(name)} twice")
        self.part = f"the {part} {shown(name)}"
        return name

    def fields(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.part = "its fields"
        self.need(13 * count)  # at least
        for _ in range(count):
            name = self.name("field", found)
            found[name] = self.value(self.number(4))
        return found

    def tensors(self, count: int) -> list[TensorPlace]:
        found: dict[str, TensorPlace] = {}
        self.part = "the list of its tensors"
        self.need(24 * count)  # at least
        for _ in range(count):
            name = self.name("tensor", found)
            axes = self.number(4)
            if not 1 <= axes <= MOST_AXES:
                raise self.wrong(f"with {axes} axes, expected 1 to {MOST_AXES}")
            shape = tuple(reversed(self.numbers(10, axes)))
            if 0 in shape:
                raise self.wrong(f"with shape {shape}")
            found[name] = TensorPlace(name, shape, self.number(4), self.number(10))
        return list(found.values())


def header_bytes(fields: Mapping[str, Any], tensors: Sequence[TensorPlace]) -> bytes:
    """Return the header of a file of version 3, up to the padding before the data.

    Raises
    ------
    ValueError
        If a name or a field cannot be written.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(fields))]
    for name, value in fields.items():
        try:
            parts += [_string(_checked(name)), _value_bytes(value)]
        except ValueError as error:
            raise ValueError(f"the field {shown(name)} cannot be written: {error}") from None
    for name, shape, type_, offset in tensors:
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [_string(name), axes, struct.pack("<IQ", type_, offset)]
    return b"".join(parts)


def _checked(name: Any) -> str:
    if not is_name(name):
        raise ValueError("its name is not a short, printable string")
    return name


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value_bytes(value: Any) -> bytes:
    """Return a field's kind and value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list | tuple | np.ndarray):
        return struct.pack("<I", ARRAY) + _array_bytes(value)
    number = _typed(value, np.uint32 if type(value) is int and value >= 0 else np.int32)
    return struct.pack("<I", KINDS[number.dtype]) + number.tobytes()


def _array_bytes(values: Any) -> bytes:
    """Return the kind of an array's values, their number, and the values."""
    if len(values) and all(isinstance(value, str) for value in values):
        content, kind = b"".join(map(_string, values)), STRING
    else:
        numbers = _typed(values, np.int32)
        if numbers.ndim != 1:
            raise ValueError("it is an array of arrays")
        content, kind = numbers.tobytes(), KINDS[numbers.dtype]
    return struct.pack("<IQ", kind, len(values)) + content


def _typed(values: Any, integers: Any) -> np.ndarray:
    """Return numbers in the dtype to write: their own if they are NumPy's, else 32 bits.

    `integers` is the dtype of Python's whole numbers.
    """
    try:
        found = np.asarray(values)
    except ValueError:
        found = np.array(None)
    plain = not isinstance(values, np.ndarray | np.generic)
    dtype = found.dtype
    if plain and found.size == 0:
        dtype = np.dtype(np.int32)
    elif plain and dtype.kind in "iuf":
        dtype = np.dtype(np.float32 if dtype.kind == "f" else integers)
        limits = np.finfo(np.float32) if dtype.kind == "f" else np.iinfo(integers)
        if (np.isfinite(found) & ((found < limits.min) | (found > limits.max))).any():
            raise ValueError(f"a number does not fit in {dtype}: give it a dtype of NumPy's")
    if dtype not in KINDS:
        raise ValueError("expected numbers, booleans, strings, or a list of one of these")
    return found.astype(dtype.newbyteorder("<"))
