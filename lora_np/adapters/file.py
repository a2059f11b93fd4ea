"""Read the factors B and A of a LoRA adapter from its file, one module at a time.

No model is built. Two naming schemes are read::

    base_model.model.PATH.lora_A.weight, .lora_B.weight     PEFT: r and alpha in a config
    NAME.lora_down.weight, .lora_up.weight, .alpha          kohya: alpha beside the factors

The parts that wrappers add to names are removed (:mod:`lora_np.files.names`). A is (r, in), B is
(out, r), and the change of a weight is ``scale * B A``. ``write.py`` writes the same formats.

Source: the formats of PEFT 0.21 and of kohya-ss/sd-scripts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lora_np.adapters.peft_config import PeftConfig
from lora_np.files.arrays import CheckpointError
from lora_np.files.names import meaning_of, plain_names, wrappers_of
from lora_np.files.tensors import FLOATS, TensorFile

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
NAMING = re.compile(  # PEFT may put the adapter's own name before ".weight"
    r"(?P<module>.+)\.(?:lora_(?P<half>A|B|down|up)(?:\.[^.]+)?\.weight|(?P<alpha>alpha))",
    re.DOTALL,
)
WHOLE = {meaning_of("lm_head.weight"), meaning_of("lm_head.bias")}  # what a checkpoint holds
COMPARE = "a checkpoint after training is compared with the one before, as --base"
HALF = {"A": "A", "down": "A", "B": "B", "up": "B"}


@dataclass(frozen=True)
class AdapterModule:
    """One module of an adapter file.

    Attributes
    ----------
    name : str
        The module's path in its model, or kohya's name for it.
    r : int
        Rank.
    shape : (int, int)
        Shape (out, in) of the weight that the module changes; (out, in * kh * kw) for the kernel
        of a convolution.
    scale : float
        The change is ``scale * B A``.
    dtype : str
        Type of A in the file: "float32", "bfloat16", ...

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import open_adapter, write_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(folder, [("layer", np.ones((3, 1)), np.ones((1, 2)), 2.0)])
    ...     with open_adapter(folder) as adapter:
    ...         module = adapter.modules["layer"]
    ...         B, A = module.factors()
    >>> module.r, module.scale, (B @ A).shape == module.shape
    (1, 2.0, True)
    """

    name: str
    r: int
    shape: tuple[int, int]
    scale: float
    dtype: str
    _file: TensorFile = field(repr=False, compare=False)
    _names: dict[str, str] = field(repr=False, compare=False)

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Read B (out, r) and A (r, in) exactly, in float32, or in float64 if the file has float64.

        Raises
        ------
        CheckpointError
            If an entry is not finite, or the file is closed.
        """
        B, A = (self._read(self._names[half]) for half in "BA")
        return B.reshape(-1, self.r), A.reshape(self.r, -1)  # (out, r), (r, in)

    @property
    def has_alpha(self) -> bool:
        """Whether the file itself holds an alpha for this module."""
        return "alpha" in self._names

    def kernel(self, half: str) -> tuple[int, ...]:
        """Return the shape of "A" or "B" in the file without its first axis."""
        return self._file.shape(self._names[half])[1:]

    def _read(self, name: str) -> np.ndarray:
        wide = self._file.dtype(name) == "float64"
        return self._file.read(name, np.float64 if wide else np.float32)


class AdapterFile:
    """The modules of an open adapter file, for a ``with`` block; see :func:`open_adapter`.

    Attributes
    ----------
    modules : dict of str to AdapterModule
        The modules by name, in the order of the file.
    base_model : str or None
        The name of the adapted model in the config.
    fan_in_fan_out : bool
        Whether that model stores its weights as (in, out).
    lora_dropout : float
        The dropout that the adapter was trained with.
    naming : {"peft", "kohya"}
        The naming scheme of the file.
    metadata : dict of str to str
        The metadata in the file's header.
    path : Path
        The path of the file of tensors.
    origin : dict
        The fields task_type, auto_mapping and revision of PEFT's config that are set.
    notes : list of str
        Notes on ignored config fields and removed parts of names.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import open_adapter, write_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(folder, [("layer", np.ones((3, 1)), np.ones((1, 2)), 2.0)])
    ...     with open_adapter(folder) as adapter:
    ...         adapter.naming, adapter.lora_dropout, list(adapter.modules)
    ('peft', 0.0, ['layer'])
    """

    def __init__(self, path: str | Path) -> None:
        tensors, config = _parts(Path(path))
        self._config = PeftConfig(config) if config else None
        self.base_model = self._config.base_model if self._config else None
        self.fan_in_fan_out = self._config.fan_in_fan_out if self._config else False
        self.lora_dropout = self._config.lora.lora_dropout if self._config else 0.0
        self.origin = self._config.origin if self._config else {}
        self._file, self.path = TensorFile(tensors), Path(tensors)
        self.metadata = self._file.metadata
        try:
            plain = plain_names(self._file.names, self._file.path)
            self.notes = [*(self._config.notes if self._config else ()), *_wrapped(plain)]
            found = _by_module(self._file, plain, self._config is not None)
            if self._config is not None:
                self._config.check_work(len(found))
            self.modules = {name: self._module(name, names) for name, names in found.items()}
            kohya = any(".lora_down." in names["A"] for names in found.values())
            self.naming = "kohya" if kohya else "peft"
        except BaseException:
            self.close()
            raise

    @property
    def scale_known(self) -> bool:
        """Whether the file defines the scales: PEFT's names without a config do not."""
        alphas = all(module.has_alpha for module in self.modules.values())
        return self._config is not None or self.naming == "kohya" or alphas

    def require_scale(self) -> None:
        """Raise CheckpointError if the file does not define the scales."""
        if not self.scale_known:
            raise CheckpointError(
                f"{self.path} has no {CONFIG} beside it, which defines the scale of B A: give "
                "PEFT's folder"
            )

    def _module(self, name: str, names: dict[str, str]) -> AdapterModule:
        """Return one module, after a check of its names, shapes, rank and alpha."""
        for half in "AB":
            if half not in names:
                have = next(iter(names.values()))
                raise CheckpointError(f"{self._file.path} holds {have!r} without its factor {half}")
        d_in, r = _flat_A(self._file, names["A"])
        d_out = _flat_B(self._file, names["B"], r)
        return AdapterModule(
            name=name,
            r=r,
            shape=(d_out, d_in),
            scale=self._scale(name, names, r),
            dtype=self._file.dtype(names["A"]),
            _file=self._file,
            _names=names,
        )

    def _scale(self, name: str, names: dict[str, str], r: int) -> float:
        if self._config is not None:
            self._config.check_module(name)
            expected = self._config.lora.rank_of(name)
            if r != expected:
                raise CheckpointError(
                    f"{self._file.path} holds {names['A']!r} of rank {r}, but the config's r and "
                    f"rank_pattern say {expected}"
                )
            return self._config.lora.scale_of(name)
        if "alpha" not in names:
            return 1.0  # kohya's default: alpha = r
        return self._file.read_number(names["alpha"]) / r

    def close(self) -> None:
        """Close the file. Factors can no longer be read."""
        self._file.close()

    def __enter__(self) -> AdapterFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_adapter(path: str | Path) -> AdapterFile:
    """Open a LoRA adapter of any model. Factors are read on demand.

    Parameters
    ----------
    path : str or Path
        A PEFT folder (adapter_config.json and adapter_model.safetensors), or a single .safetensors
        file with PEFT's or kohya's names. A single file has no config: the scale is alpha / r with
        the alpha stored beside the factors, or 1 without an alpha.

    Returns
    -------
    AdapterFile
        A context manager, for a ``with`` block.

    Raises
    ------
    CheckpointError
        If the file is broken, or is not plain LoRA; the message names the tensor or the config
        field.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import open_adapter, write_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(folder, [("layer", np.ones((3, 1)), np.ones((1, 2)), 2.0)])
    ...     with open_adapter(folder) as adapter:
    ...         for name, module in adapter.modules.items():
    ...             B, A = module.factors()  # (out, r), (r, in)
    ...             print(name, module.shape, module.r, module.scale, (B @ A).tolist())
    layer (3, 2) 1 2.0 [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    return AdapterFile(path)


def _parts(path: Path) -> tuple[Path, Path | None]:
    """Return the file of tensors and, for a folder of PEFT's, the config."""
    if path.name == TENSORS and os.path.exists(path.parent / CONFIG):
        path = path.parent
    if not os.path.isdir(path):  # False, without an error, for a name too long for a path
        return path, None
    if not (path / CONFIG).exists():
        more = f"; {COMPARE}" if (path / "config.json").exists() else ""
        raise CheckpointError(f"{path} has no {CONFIG}: it is not a PEFT adapter{more}")
    if not (path / TENSORS).exists():
        pickle = path / "adapter_model.bin"
        return (pickle if pickle.exists() else path / TENSORS), path / CONFIG
    return path / TENSORS, path / CONFIG


def _wrapped(plain: dict[str, str]) -> list[str]:
    """Return a note that lists the parts of wrappers that were removed from names."""
    parts = ", ".join(repr(part) for part in wrappers_of(plain))
    return [f"names are read without {parts}, which PEFT does not remove"] if parts else []


def _by_module(
    file: TensorFile, plain: dict[str, str], with_config: bool
) -> dict[str, dict[str, str]]:
    """Return the tensor names of A, B and alpha of every module, by the module's plain name."""
    found: dict[str, dict[str, str]] = {}
    if not with_config and file.names and all(map(_is_whole, plain.values())):
        raise CheckpointError(f"{file.path} holds weights, and no factor of LoRA: {COMPARE}")
    for name in file.names:
        parts = NAMING.fullmatch(plain[name])
        if parts is None or (parts["alpha"] and with_config):
            raise CheckpointError(
                f"{file.path} holds {name!r}, not a factor of plain LoRA but "
                f"{meaning_of(plain[name])}"
            )
        module = found.setdefault(parts["module"], {})
        key = "alpha" if parts["alpha"] else HALF[parts["half"]]
        if key in module:
            raise CheckpointError(f"{file.path} holds {module[key]!r} again as {name!r}")
        module[key] = name
    if not found:
        raise CheckpointError(f"{file.path} holds no tensor")
    return found


def _is_whole(name: str) -> bool:
    return not NAMING.fullmatch(name) and meaning_of(name) in WHOLE


def _flat_A(file: TensorFile, name: str) -> tuple[int, int]:
    """Return (in, r) of A (r, in); for a kernel (r, in, kh, kw), in counts as in * kh * kw."""
    shape = _float_shape(file, name)
    if len(shape) not in (2, 4) or 0 in shape:
        raise CheckpointError(
            f"{file.path} holds {name!r} with shape {shape}, expected (r, in) or (r, in, kh, kw), "
            "all at least 1"
        )
    return int(np.prod(shape[1:])), shape[0]


def _flat_B(file: TensorFile, name: str, r: int) -> int:
    """Return out of B (out, r), or of a kernel (out, r, 1, 1)."""
    shape = _float_shape(file, name)
    if shape[1:] not in ((r,), (r, 1, 1)) or shape[0] < 1:
        raise CheckpointError(
            f"{file.path} holds {name!r} with shape {shape}, expected (out, {r}) or "
            f"(out, {r}, 1, 1): the rank of its other factor is {r}"
        )
    return shape[0]


def _float_shape(file: TensorFile, name: str) -> tuple[int, ...]:
    if file.dtype(name) not in FLOATS.values():
        raise CheckpointError(
            f"{file.path} holds {name!r} as {file.dtype(name)}, expected one of "
            f"{', '.join(FLOATS.values())}"
        )
    return file.shape(name)
