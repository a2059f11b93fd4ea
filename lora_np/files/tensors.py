"""Tensors by name in safetensors files: read one at a time, written in one step.

A safetensors file is a JSON header (tensor_header.py) followed by the numbers. Opening a file reads
and checks only the header, so that a file larger than the memory can be read tensor by tensor. A
safetensors file cannot run code. A pickle can, so pickles are refused.

NumPy does not have bfloat16, the upper half of a float32. The package ml_dtypes adds it; only
arrays of this dtype need the package: to read bfloat16 as float32, the bits suffice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files.arrays import CheckpointError, load_json
from lora_np.files.atomic import replacing
from lora_np.files.gguf_header import MAGIC
from lora_np.files.mapped import mapped
from lora_np.files.tensor_header import BITS, Entry, header_bytes, read_header
from lora_np.forms import Bfloat16, bfloat16_numbers
from lora_np.reading import brief, is_name, open_file, shown

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}
NUMPY = {  # of what can be read: little-endian
    **{code: np.dtype(name).newbyteorder("<") for code, name in INTEGERS.items()},
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def float_dtype(name: Any) -> np.dtype:
    """Return the NumPy dtype of a float type that these files may hold.

    Parameters
    ----------
    name : str or dtype
        float64, float32, float16 or bfloat16.

    Raises
    ------
    ValueError
        If `name` is another type, or is bfloat16 and the package ml_dtypes is missing.

    Examples
    --------
    >>> from lora_np.files import float_dtype
    >>> float_dtype("float16").itemsize, float_dtype("bfloat16").itemsize  # bytes
    (2, 2)
    """
    text = name if isinstance(name, str) else np.dtype(name).name
    if text not in FLOATS.values():
        raise ValueError(f"dtype {text}: expected one of {', '.join(FLOATS.values())}")
    if text != "bfloat16":
        return np.dtype(text)
    try:
        import ml_dtypes  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("arrays of bfloat16 need ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


class TensorFile:
    """The tensors of a safetensors file, or of a checkpoint in several such files.

    Use a TensorFile in a ``with`` block; the end of the block closes the file.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file, or the ``.safetensors.index.json`` that lists the files of a
        checkpoint.

    Attributes
    ----------
    names : tuple of str
        In the order of the tensors in the file.
    metadata : dict of str to str
        The notes in the header; empty for a checkpoint in several files.

    Raises
    ------
    CheckpointError
        If the file is missing, broken or a pickle.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.files import TensorFile, save_tensors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(f"{folder}/x.safetensors", {"W": np.ones((2, 3), np.float16)})
    ...     with TensorFile(f"{folder}/x.safetensors") as file:
    ...         file.names, file.shape("W"), file.dtype("W"), file.read("W").dtype.name
    (('W',), (2, 3), 'float16', 'float32')
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._home: dict[str, _OneFile] = {}  # the open file in which each tensor lies
        self._open_files = ExitStack()
        try:
            if self.path.suffix == ".json":
                self._open_shards()
            else:
                file = self._open(self.path)
                self.metadata = file.metadata
                self._home = dict.fromkeys(file.entries, file)
        except BaseException:
            self.close()
            raise
        self.names = tuple(self._home)

    def _open(self, path: Path) -> _OneFile:
        file = _OneFile(path)
        self._open_files.callback(file.close)
        for name in file.entries:
            if not is_name(name):
                raise CheckpointError(f"{path} holds {shown(name)}, not a valid name of a tensor")
        return file

    def _open_shards(self) -> None:
        for shard, names in _shards(self.path).items():
            file = self._open(self.path.parent / shard)
            found = file.entries
            for odd in sorted(names ^ set(found)):
                where = f"{self.path} lists" if odd in names else f"{shard} holds"
                raise CheckpointError(f"{where} {shown(odd)}, which the other does not have")
            self._home.update(dict.fromkeys(found, file))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype: "float32", "bfloat16", ...; the file's code for non-floats."""
        code = self._entry(name).code
        return FLOATS.get(code, code)

    def read(self, name: str, dtype: Any = np.float32) -> np.ndarray:
        """Read one tensor.

        Parameters
        ----------
        name : str
        dtype : dtype, optional
            The dtype of the result; None keeps the file's, even bfloat16.

        Returns
        -------
        numpy.ndarray
            An array with its own memory.

        Raises
        ------
        CheckpointError
            If the tensor is absent, does not hold floats, or has an entry that is not finite in
            `dtype`.
        """
        stored = self.dtype(name)
        if stored not in FLOATS.values():
            raise CheckpointError(f"{self.path} holds {name!r} as {stored}, expected floats")
        if stored == "bfloat16" and dtype is None:
            return self.read_bits(name).view(float_dtype(stored))
        x = self._whole(name)
        if stored == "bfloat16":
            x = bfloat16_numbers(x)
        if dtype is not None:
            # Too large entries become inf, which is refused below, as is nan.
            with np.errstate(over="ignore", invalid="ignore"):
                x = x.astype(float_dtype(dtype), copy=False)
        if not np.isfinite(x).all():
            raise CheckpointError(
                f"{self.path} holds {name!r} with entries not finite in {x.dtype}"
            )
        return x

    def read_bits(self, name: str) -> np.ndarray:
        """Read one tensor of bfloat16 as whole numbers of 16 bits, the upper halves of float32."""
        stored, bits = self.dtype(name), self._whole(name)
        if stored != "bfloat16":
            raise CheckpointError(f"{self.path} holds {name!r} as {stored}, expected bfloat16")
        if not Bfloat16(bits.shape, {"bits": bits}).finite():
            raise CheckpointError(f"{self.path} holds {name!r} with entries not finite in bfloat16")
        return bits

    def read_any(self, name: str) -> np.ndarray:
        """Read one tensor of floats or of integers, in the file's dtype."""
        return self._whole(name) if self.dtype(name) in INTEGERS else self.read(name, None)

    def read_number(self, name: str) -> float:
        """Read a tensor with a single entry other than 0, a float or an integer.

        Raises
        ------
        CheckpointError
            If the tensor is not such a number.
        """
        x = self._whole(name) if self.dtype(name) in INTEGERS else self.read(name, np.float64)
        if x.size != 1 or x.item() == 0:
            raise CheckpointError(f"{self.path} holds {name!r}, expected one number other than 0")
        return float(x.item())

    def _whole(self, name: str) -> np.ndarray:
        """Return a tensor in the file's dtype; of bfloat16, the bits."""
        entry = self._entry(name)
        try:
            return self._home[name].array(entry)
        except (ValueError, OverflowError):  # more than 64 axes, or one beyond 2^63
            shape = shown(entry.shape)
            raise CheckpointError(
                f"{self.path} holds {name!r} with shape {shape}, which no array has"
            ) from None

    def _entry(self, name: str) -> Entry:
        if name not in self._home:
            state = (
                "is closed: read within its with block" if self._closed else f"lacks {shown(name)}"
            )
            raise CheckpointError(f"{self.path} {state}")
        return self._home[name].entries[name]

    @property
    def _closed(self) -> bool:
        return not self._home and bool(self.names)

    def close(self) -> None:
        """Close the file; reading it afterwards is an error."""
        self._home = {}
        self._open_files.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_weights(path: str | Path) -> TensorFile:
    """Open a model's weights: a file, or a folder written by Hugging Face's save_pretrained.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file or an index, or a folder with model.safetensors or
        model.safetensors.index.json.

    Returns
    -------
    TensorFile
        To be used in a ``with`` block.

    Raises
    ------
    CheckpointError
        If the file is missing, broken or a pickle.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.files import open_weights, save_tensors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(f"{folder}/model.safetensors", {"W": np.ones((2, 3))})
    ...     with open_weights(folder) as file:
    ...         file.names
    ('W',)
    """
    path = Path(path)
    if not os.path.isdir(path):  # False, not an error, where the name is too long for a path
        return TensorFile(path)
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    files = [path / name for name in names]
    if (path / "adapter_config.json").exists() and not any(file.exists() for file in files):
        raise CheckpointError(f"{path} is an adapter, where a checkpoint is expected")
    return TensorFile(next((file for file in files if file.exists()), files[0]))


class _OneFile:
    """An open file: its header, and its bytes, which stay where they are."""

    def __init__(self, path: Path) -> None:
        if path.suffix in PICKLES:
            raise CheckpointError(
                f"{path} may be a pickle, which can run code when it is read: convert it to "
                "safetensors"
            )
        with open_file(path, CheckpointError) as file:
            if file.read(len(MAGIC)) == MAGIC:
                raise CheckpointError(
                    f"{path} is a GGUF file: write the model as a folder with lora-np export, or "
                    "name the folder that the adapter was written from"
                )
            file.seek(0)
            try:
                length = os.fstat(file.fileno()).st_size
                self.metadata, self.entries = read_header(file, length)
                self.bytes = mapped(file)
            except (ValueError, OSError) as error:
                reason = brief(" ".join(str(error).split()))  # may quote text from the file
                raise CheckpointError(
                    f"{path} is not a readable .safetensors file: {reason}"
                ) from None

    def array(self, entry: Entry) -> np.ndarray:
        """Return a tensor as an array with its own memory; of bfloat16, the bits."""
        dtype = np.dtype(NUMPY[entry.code])
        found = np.empty(entry.shape, dtype.newbyteorder("="))
        found.reshape(-1)[:] = np.frombuffer(self.bytes, dtype, found.size, entry.start)
        return found

    def close(self) -> None:
        self.bytes.close()


def _shards(index: Path) -> dict[str, set[str]]:
    """Return the names of the tensors in each file, according to an index."""
    content = load_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map, which says where each tensor lies")
    shards: dict[str, set[str]] = {}
    for name, shard in places.items():
        if not is_name(shard) or Path(shard).name != shard or "\\" in shard:
            raise CheckpointError(
                f"{index} puts {shown(name)} in {shown(shard)}, expected a file beside it"
            )
        shards.setdefault(shard, set()).add(name)
    return shards


def save_tensors(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays by name to a safetensors file, which is written whole or not at all.

    Parameters
    ----------
    path : str or Path
    arrays : mapping of str to numpy.ndarray
        Arrays of float64, float32, float16 or bfloat16, or of integers. The file has wide dtypes
        first, then the order of the names.
    metadata : mapping of str to str, optional
        Notes for the header.

    Raises
    ------
    ValueError
        If an array has another type.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.files import TensorFile, save_tensors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(f"{folder}/x.safetensors", {"W": np.ones((2, 3))}, {"from": "me"})
    ...     with TensorFile(f"{folder}/x.safetensors") as file:
    ...         file.metadata
    {'from': 'me'}
    """
    codes = {name: code for code, name in (FLOATS | INTEGERS).items()}
    for name, array in arrays.items():
        if array.dtype.name not in codes:
            raise ValueError(f"{name!r} is {array.dtype}, expected one of {', '.join(codes)}")
    order = list(BITS)
    by_width = sorted(arrays, key=lambda name: (order.index(codes[arrays[name].dtype.name]), name))
    tensors = {n: (codes[(x := arrays[n]).dtype.name], x.shape, x.nbytes) for n in by_width}
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header_bytes(metadata or {}, tensors))
        for name in by_width:
            file.write(_little_endian(arrays[name]))


def _little_endian(x: np.ndarray) -> bytes:
    """Return the bytes of an array as a file has them."""
    if sys.byteorder == "big":
        x = x.byteswap()
    return np.asarray(x, order="C").tobytes()
