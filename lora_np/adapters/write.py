"""Write a LoRA adapter as a new folder, completely or not at all.

:func:`write_adapter` writes PEFT's format; :func:`write_like` writes the format of another adapter,
PEFT's or kohya's.

Source: the formats of PEFT 0.21 and of kohya-ss/sd-scripts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.file import CONFIG, TENSORS, AdapterFile
from lora_np.files.arrays import CheckpointError, save_json
from lora_np.files.atomic import replacing_folder
from lora_np.files.names import PREFIX
from lora_np.files.tensors import float_dtype, save_tensors
from lora_np.methods.peft_lora import as_fields
from lora_np.pretrained.find import RECORD, kept_of_records

Written = tuple[str, np.ndarray, np.ndarray, float]  # name, B (out, r), A (r, in), scale


def write_adapter(
    folder: str | Path,
    modules: Iterable[Written],
    *,
    base_model: str | None = None,
    dtype: Any = np.float32,
    fan_in_fan_out: bool = False,
    lora_dropout: float = 0.0,
    origin: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter as a folder that PEFT loads.

    Parameters
    ----------
    folder : str or Path
        A new or an empty folder.
    modules : iterable of (name, B, A, scale)
        The module's path, B (out, r), A (r, in), and the scale of ``scale * B A``, above 0. Ranks
        and scales may differ between modules. All factors are in memory before the file is written.
    base_model : str, optional
        The name of the adapted model.
    dtype : dtype or str, optional
        Type of the numbers in the file: float64, float32, float16 or "bfloat16"; None keeps the
        type of each array.
    fan_in_fan_out : bool
        Whether that model stores its weights as (in, out), as Hugging Face's GPT-2 does.
    lora_dropout : float
        With which PEFT continues training.
    origin, record : mapping, optional
        Further fields of the config, as an AdapterFile has them; as for :func:`write_folder`.

    Raises
    ------
    CheckpointError
        If the folder is not empty: no adapter is overwritten.
    ValueError
        If there is no module, a name occurs twice, shapes do not fit, or a number is not finite.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from lora_np import write_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(folder, [("layer", np.ones((3, 1)), np.ones((1, 2)), 2.0)])
    ...     sorted(os.listdir(folder))
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    folder = new_folder(folder)
    tensors, ranks, scales = named_tensors(modules)
    fields = {
        **as_fields(ranks, scales),
        "base_model_name_or_path": base_model,
        "fan_in_fan_out": fan_in_fan_out,
        "lora_dropout": float(lora_dropout),
        **(origin or {}),
    }
    named = {f"{PREFIX}{name}": x for name, x in tensors.items()}
    write_folder(folder, fields, named, dtype, record=record)


def write_folder(
    folder: str | Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    dtype: Any,
    as_they_are: Collection[str] = (),
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the configuration and the tensors of an adapter as a folder, or nothing.

    Parameters
    ----------
    folder : str or Path
        A new or an empty folder.
    fields : mapping
        The fields of adapter_config.json.
    tensors : mapping of str to ndarray
        The tensors by their names in the file.
    dtype : dtype or str, optional
        Type of the numbers in the file; None keeps the type of each tensor.
    as_they_are : collection of str
        The tensors that are not converted: integers, such as places in a weight.
    record : mapping, optional
        The content of ``training.json``, which names the base; by default there is no such file.
    """
    folder = new_folder(folder)
    written = {
        n: x if n in as_they_are else as_written(n.removeprefix(PREFIX), x, dtype)
        for n, x in tensors.items()
    }
    with replacing_folder(folder) as temporary:
        save_tensors(temporary / TENSORS, written, {"format": "pt"})
        save_json(temporary / CONFIG, dict(fields))
        if record:
            save_json(temporary / RECORD, dict(record))


def named_tensors(
    modules: Iterable[Written],
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, float]]:
    """Return the factors by PEFT's names, and the ranks and scales of the modules.

    Parameters
    ----------
    modules : iterable of (name, B, A, scale)
        As for :func:`write_adapter`.
    """
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for name, B, A, scale in modules:
        _check_written(name, B, A, scale)
        if name in ranks:
            raise ValueError(f"module {name!r} occurs twice")
        ranks[name], scales[name] = A.shape[0], float(scale)
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    if not ranks:
        raise ValueError("there is no module to write")
    return tensors, ranks, scales


def write_like(
    file: AdapterFile,
    folder: str | Path,
    modules: Iterable[Written],
) -> None:
    """Write an adapter in the format of another: a PEFT folder, or a folder with kohya's file.

    Parameters
    ----------
    file : AdapterFile
        The adapter whose names, kernel shapes and configuration are kept. Ranks may differ.
    folder : str or Path
        A new or an empty folder.
    modules : iterable of (name, B, A, scale)
        As for :func:`write_adapter`, with the names of `file`.

    Raises
    ------
    CheckpointError, ValueError
        As :func:`write_adapter` raises them.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import open_adapter, write_adapter
    >>> from lora_np.adapters import write_like
    >>> with tempfile.TemporaryDirectory() as d:
    ...     write_adapter(f"{d}/one", [("layer", np.ones((3, 1)), np.ones((1, 2)), 2.0)])
    ...     with open_adapter(f"{d}/one") as one:
    ...         write_like(one, f"{d}/two", [("layer", np.ones((3, 1)), np.zeros((1, 2)), 2.0)])
    """
    file.require_scale()
    if file.naming == "peft":
        require_matrices(file)
        write_adapter(
            folder,
            modules,
            base_model=file.base_model,
            dtype=None,
            fan_in_fan_out=file.fan_in_fan_out,
            lora_dropout=file.lora_dropout,
            origin=file.origin,
            record=kept_of_records([file.path]),
        )
        return
    folder = new_folder(folder)
    tensors: dict[str, np.ndarray] = {}
    for name, B, A, scale in modules:
        _check_written(name, B, A, abs(scale))  # kohya's alpha may be negative
        module, r = file.modules[name], len(A)
        A = A.reshape(r, *module.kernel("A"))  # (r, in) or (r, in, kh, kw)
        B = B.reshape(-1, r, *module.kernel("B")[1:])  # (out, r) or (out, r, 1, 1)
        down, up = f"{name}.lora_down.weight", f"{name}.lora_up.weight"
        tensors |= {down: as_written(down, A, None), up: as_written(up, B, None)}
        tensors[f"{name}.alpha"] = _narrowest(scale * r, (A.dtype, np.dtype(np.float32)))
    with replacing_folder(folder) as temporary:
        save_tensors(temporary / file.path.name, tensors, file.metadata)


def require_matrices(file: AdapterFile) -> None:
    """Raise CheckpointError if a module is a convolution: only matrices are written as PEFT's."""
    for name, module in file.modules.items():
        if len(module.kernel("A")) > 1:
            raise CheckpointError(
                f"{file.path} adapts {name!r}, a convolution: only matrices are written in PEFT's "
                "format"
            )


def _narrowest(x: float, dtypes: Iterable[np.dtype]) -> np.ndarray:
    """Return a number in the first type that holds it exactly, else in float64."""
    with np.errstate(over="ignore"):
        fits = [y for dtype in dtypes if float(y := np.array(x, dtype)) == x]
    return fits[0] if fits else np.array(x)


def new_folder(folder: str | Path) -> Path:
    """Return the path of a folder that an adapter may take; raise CheckpointError if it is not."""
    folder = Path(folder).resolve()  # "." has no name, and a link is not replaced
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} already exists: give the adapter a new folder")
    return folder


def _check_written(name: str, B: np.ndarray, A: np.ndarray, scale: float) -> None:
    if not name:
        raise ValueError("a module has no name: PEFT adapts modules of a model, not the whole")
    if not (A.ndim == B.ndim == 2 and A.size and B.size and B.shape[1] == A.shape[0]):
        raise ValueError(
            f"module {name!r} has B {B.shape} and A {A.shape}, expected (out, r) and (r, in)"
        )
    if not 0 < scale < 1e300:
        raise ValueError(f"module {name!r} has scale {scale}, expected a number above 0")


def as_written(name: str, x: np.ndarray, dtype: Any) -> np.ndarray:
    """Return a copy of a tensor in the type of the file, or raise ValueError if it overflows."""
    with np.errstate(over="ignore"):  # a number too large becomes inf, refused below
        y = np.array(x, float_dtype(x.dtype if dtype is None else dtype))  # a copy
    if not np.isfinite(y).all():
        raise ValueError(f"{name!r} has entries that are not finite in {y.dtype}")
    return y
