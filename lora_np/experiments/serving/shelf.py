"""Adapters to serve: one is written by ``save_adapter``, the others have its shapes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters import save_adapter
from lora_np.adapters.file import TENSORS
from lora_np.methods import LoraConfig, inject

DEVIATION = 0.1  # standard deviation of an adapter's numbers: large enough to change answers


class Shelf:
    """Folders of adapters over one base, written when they are asked for.

    The first folder is that of a real adapter. All others have its files, with random numbers of
    their own in place of its numbers: real adapters, written quickly.

    Parameters
    ----------
    model : LanguageModel
    folder : Path
        An empty folder.
    r : int
    target_modules : sequence of str or str

    Attributes
    ----------
    numbers : int
        How many numbers an adapter has.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.experiments.serving.shelf import Shelf
    >>> base = Llama(LlamaConfig(9, 8, 1, 1, 1, 4, 6), np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shelf = Shelf(base, Path(folder), 2, ["q_proj"])
    ...     shelf.numbers, [path.name for path in shelf.folders(3)]
    (16, ['a00000', 'a00001', 'a00002'])
    """

    def __init__(self, model: Any, folder: Path, r: int, target_modules: Any) -> None:
        self._folder, self._rng, self._written = folder, np.random.default_rng(5), 1
        adapted = inject(model, LoraConfig(r=r, target_modules=target_modules), self._rng)
        save_adapter(adapted, self._path(0), dtype="float32")
        content = (self._path(0) / TENSORS).read_bytes()
        # safetensors: the length of the header in 8 bytes, the header, the numbers.
        start = 8 + int.from_bytes(content[:8], "little")
        self._header, self.numbers = content[:start], (len(content) - start) // 4
        self._write(0)  # its B was zero

    def folders(self, count: int) -> list[Path]:
        """Return the first `count` folders; those that do not exist yet are written."""
        for number in range(self._written, count):
            shutil.copytree(self._path(0), self._path(number), ignore=lambda *_: {TENSORS})
            self._write(number)
        self._written = max(self._written, count)
        return [self._path(number) for number in range(count)]

    def _path(self, number: int) -> Path:
        return self._folder / f"a{number:05d}"

    def _write(self, number: int) -> None:
        numbers = DEVIATION * self._rng.standard_normal(self.numbers, np.float32)
        (self._path(number) / TENSORS).write_bytes(self._header + numbers.tobytes())
