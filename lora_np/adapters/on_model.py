"""Save a model's adapters to a folder, in PEFT's format if PEFT has the method, and load them.

The method defines the fields and tensors (:mod:`lora_np.methods.file_form`). The model defines the
names of its layers in other people's files (``file_layout``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.file import CONFIG, TENSORS, open_adapter
from lora_np.adapters.gguf import is_gguf, read_gguf_adapter
from lora_np.adapters.peft_config import PeftConfig
from lora_np.adapters.write import named_tensors, write_folder
from lora_np.files.arrays import CheckpointError, load_json
from lora_np.files.names import PREFIX, matched
from lora_np.files.tensors import TensorFile
from lora_np.layers import Layer
from lora_np.methods import check_adapted, is_adapted
from lora_np.methods.contract import METHOD_FIELD, head_of, name_in
from lora_np.methods.file_form import method_of_fields, of_file, to_file
from lora_np.methods.peft_lora import OURS, as_fields
from lora_np.methods.stacked import Factors, homes_of, model_factors
from lora_np.pretrained.find import expect_base, fingerprint
from lora_np.pretrained.places import file_layout

LEAVING_OUT = (METHOD_FIELD, "exclude_modules", "layers_to_transform", "layers_pattern")


def save_adapter(
    adapted: Layer,
    folder: str | Path,
    *,
    base_model: str | None = None,
    dtype: Any = None,
    peft_only: bool = False,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's adapters as a folder, in PEFT's format if PEFT has the method.

    LoRA layers that the file stacks into one matrix become one adapter. Its rank is the sum of
    their ranks, or their common rank if their A and scale are equal. What PEFT cannot hold is
    written in lora_np's own format, which :func:`load_adapter` reads and PEFT refuses.

    Parameters
    ----------
    adapted : Layer
        From ``inject`` or :func:`load_adapter`. The base itself is not written.
    folder : str or Path
        A new or an empty folder.
    base_model : str, optional
        The name of the base, such as "gpt2".
    dtype : dtype or str, optional
        Type of the numbers in the file; by default the model's.
    peft_only : bool
        Whether to raise an error if PEFT cannot hold the adapter.
    record : mapping, optional
        The content of ``training.json``, which names the base; by default there is no such file.

    Raises
    ------
    CheckpointError
        If the folder is not empty: no adapter is overwritten.
    ValueError
        If there is no adapter, if the model trains a Parameter that the file cannot hold, if a
        number is not finite, or if PEFT cannot hold the adapter and `peft_only` is true.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject, open_adapter, save_adapter
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(GPT(GPTConfig(9, 4, 1, 2, 8), rng), LoraConfig(r=2), rng)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(adapted, folder)
    ...     with open_adapter(folder) as file:  # GPT-2's files stack q, k and v
    ...         {name: (module.r, module.shape) for name, module in file.modules.items()}
    {'transformer.h.0.attn.c_attn': (4, (24, 8))}
    """
    check_adapted(adapted)
    layout = file_layout(adapted)
    fields, tensors = to_file(adapted, layout.places, peft_only, layout.fan_in_fan_out)
    fields |= _of_base(adapted, fields, layout.fan_in_fan_out, base_model)
    of_model = method_of_fields(fields).of_model
    named = {n if n in of_model else f"{PREFIX}{n}": x for n, x in tensors.items()}
    whole = [n for n, x in named.items() if x.dtype.kind in "iu"]
    write_folder(folder, fields, named, dtype, whole, record)


def _of_base(
    adapted: Layer, fields: Mapping[str, Any], fan_in_fan_out: bool, base_model: str | None
) -> dict[str, Any]:
    """Return the fields of an adapter's config that describe its base."""
    found: dict[str, Any] = {"base_model_name_or_path": base_model}
    if "peft_type" in fields and head_of(adapted) is not None:  # a language model
        found["task_type"] = "CAUSAL_LM"
    if fan_in_fan_out and "target_modules" in fields:  # PEFT has it for linear layers alone
        found["fan_in_fan_out"] = True
    return found


def load_adapter(base: Any, folder: str | Path) -> Any:
    """Return a model that shares the arrays of `base` and has the adapters of a file.

    `base` stays unchanged. A LoRA adapter on a matrix that stacks several of our layers becomes one
    adapter for each layer: A is copied, and the rows of B are split. If every column of B serves
    only one layer, as :func:`save_adapter` writes it, each layer takes its own columns, and a layer
    without columns gets no adapter.

    Parameters
    ----------
    base : Layer
        A plain model, for example from ``load_gpt2``.
    folder : str or Path
        From :func:`save_adapter`; an adapter of PEFT's, of a method in
        ``lora_np.methods.METHODS``; a LoRA adapter that
        :func:`~lora_np.adapters.file.open_adapter` reads; or, for a Llama, a GGUF file of
        llama.cpp's. The configuration class of a method of your own must be defined (or imported)
        first.

    Returns
    -------
    Layer
        Like a model from ``inject``: only the method's own Parameters are trainable. The dtype is
        that of the base.

    Raises
    ------
    CheckpointError
        If the file is broken, has an unknown method, adapts a layer that the model does not have in
        that shape, or lies beside a ``training.json`` that names another base.
    ValueError
        If the model already has adapters.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject, load_adapter, save_adapter
    >>> rng, tokens = np.random.default_rng(0), np.array([[1, 2, 3]])
    >>> base = GPT(GPTConfig(9, 4, 1, 2, 8), rng)
    >>> adapted = inject(base, LoraConfig(r=2), rng)
    >>> adapted.h[0].attn.q_proj.B.value[...] = 1.0  # as if it had been trained
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(adapted, folder)
    ...     again = load_adapter(base, folder)
    >>> np.allclose(again.forward(tokens)[0], adapted.forward(tokens)[0], atol=1e-6)
    True
    """
    reader = AdapterReader(base)
    fields, tensors = reader.read(folder)
    try:
        return of_file(fields, tensors, base, reader.places)
    except (ValueError, MemoryError) as error:  # a field may ask for any number of numbers
        raise CheckpointError(f"{folder}: {error}") from None


class AdapterReader:
    """Reads the files of adapters for one base, whose names are looked up once.

    Parameters
    ----------
    base : Layer
        A plain model.

    Raises
    ------
    ValueError
        If the model already has adapters.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject, save_adapter
    >>> from lora_np.adapters import AdapterReader
    >>> rng = np.random.default_rng(0)
    >>> base = GPT(GPTConfig(9, 4, 1, 2, 8), rng)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(inject(base, LoraConfig(r=2, target_modules=["up_proj"]), rng), folder)
    ...     found = AdapterReader(base).factors(folder)
    >>> {path: (B.shape, A.shape, scale) for path, (B, A, scale) in found.items()}
    {'h.0.mlp.up_proj': ((32, 2), (2, 8), 8.0)}
    """

    def __init__(self, base: Any) -> None:
        if is_adapted(base):
            raise ValueError(
                "the model is adapted already: load onto its base, or merge() it first"
            )
        self.base, self.places = base, file_layout(base).places
        self._made_on = fingerprint(base)
        self._matrices = homes_of(base, self.places)
        self._modules = {name_in(path, self.places) for path in base.modules()}
        dtypes = {p.dtype for p in base.parameters().values()}
        self._dtype = min(dtypes, key=lambda dtype: dtype.itemsize)

    def read(self, path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the fields and tensors of an adapter of the base, in PEFT's names.

        Raises
        ------
        CheckpointError
            If the file is broken, has no place in the base, or was trained on another.
        """
        expect_base(path, self._made_on)
        with _in_memory(path):
            if is_gguf(path):
                fields, tensors = _of_gguf(self.base, path)
            else:
                fields, tensors = read_adapter(path, self._matrices)
            self._expect_ours(path, fields_in(path), tensors)
        return fields, tensors

    def factors(self, path: str | Path) -> dict[str, Factors]:
        """Return B (out, r), A (r, in) and the scale of each linear layer that a LoRA file adapts.

        Raises
        ------
        CheckpointError
            If the file is broken, does not fit the base, or is not LoRA of linear layers.
        """
        fields = fields_in(path)
        if is_gguf(path) or not is_plain_lora(fields):
            saved, tensors = self.read(path)
            config: Any = method_of_fields(saved).of_fields(saved)
            if config.name != "lora":
                raise CheckpointError(f"{path}: the method is {config.name!r}, expected LoRA")
            names = {name.rpartition(".lora_")[0] for name in tensors}
            scales = {name: config.scale_of(name) for name in names}
        else:
            expect_base(path, self._made_on)
            with _in_memory(path):
                tensors, _, scales, _ = _plain_factors(path, self._matrices)
                self._expect_ours(path, fields, tensors)
        try:
            found = model_factors(self._matrices, tensors)
        except (ValueError, MemoryError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        return {path: (B, A, scales[name]) for path, (name, B, A) in found.items()}

    def _expect_ours(
        self, path: str | Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
    ) -> None:
        """Raise CheckpointError unless a file's numbers fit the base, and none is missing."""
        try:
            self._expect_fit(tensors)
            _expect_complete(fields, tensors, self._modules)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def _expect_fit(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Raise ValueError unless every number of a file is one of the base's dtype too."""
        largest = np.finfo(self._dtype).max
        for name, x in tensors.items():
            if x.dtype.kind == "f" and x.size and np.abs(x).max() > largest:
                raise ValueError(f"{name!r} has entries too large for {self._dtype}")


@contextmanager
def _in_memory(path: str | Path) -> Iterator[None]:
    """Make an error of the file out of a MemoryError: a field may ask for any number of numbers."""
    try:
        yield
    except MemoryError:
        raise CheckpointError(f"{path}: its tensors do not fit in memory") from None


def _of_gguf(base: Any, path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return PEFT's fields and tensors of a GGUF adapter, whose rows depend on the base's heads."""
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "n_kv_head"):
        raise CheckpointError(f"{path}: a GGUF adapter fits a Llama, not a {type(base).__name__}")
    written = read_gguf_adapter(path, n_head=config.n_head, n_kv_head=config.n_kv_head)
    tensors, ranks, scales = named_tensors(written)
    return as_fields(ranks, scales), tensors


def fields_in(path: str | Path) -> dict[str, Any]:
    """Return the fields of the config in an adapter's folder; an empty dict without a config."""
    config = Path(path) / CONFIG
    fields = load_json(config) if config.is_file() else {}
    return fields if isinstance(fields, dict) else {}


def _expect_complete(
    fields: Mapping[str, Any], tensors: Collection[str], modules: Collection[str]
) -> None:
    """Raise ValueError if a module of the model that the fields name in full has no tensor."""
    named = fields.get("target_modules")
    if not isinstance(named, list) or any(fields.get(name) for name in LEAVING_OUT):
        return  # the names may be of modules that are not adapted
    for name in (name for name in named if isinstance(name, str)):
        if name in modules and not any(tensor.startswith(f"{name}.") for tensor in tensors):
            raise ValueError(f"the file lacks the tensors of {name!r}, which its fields name")


def read_adapter(
    folder: str | Path, homes: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields and tensors of an adapter; LoRA of any format gets PEFT's names.

    Parameters
    ----------
    folder : str or Path
    homes : collection of str
        A model's names in files. If only a prefix differs from them, modules get those names.
    """
    folder = Path(folder)
    config = folder / CONFIG
    fields = load_json(config) if config.is_file() else {}
    if isinstance(fields, dict) and not (is_plain_lora(fields) and _has_matrices_only(folder)):
        if fields.get("peft_type") == "LORA":
            PeftConfig(config, ("use_dora",))
        with TensorFile(folder / TENSORS) as file:
            return fields, {n.removeprefix(PREFIX): file.read_any(n) for n in file.names}
    tensors, ranks, scales, dropout = _plain_factors(folder, homes)
    ours = {OURS: fields[OURS]} if OURS in fields else {}
    return {**as_fields(ranks, scales), "lora_dropout": dropout, **ours}, tensors


def _plain_factors(
    folder: str | Path, homes: Collection[str]
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, float], float]:
    """Return the tensors of plain LoRA in PEFT's names, ranks and scales by module; the dropout."""
    tensors: dict[str, np.ndarray] = {}
    with open_adapter(folder) as adapter:
        adapter.require_scale()
        called = matched(adapter.modules, homes, folder)
        modules = {called[name]: module for name, module in adapter.modules.items()}
        for name, module in modules.items():
            B, A = module.factors()
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = A, B
        ranks = {name: module.r for name, module in modules.items()}
        scales = {name: module.scale for name, module in modules.items()}
        return tensors, ranks, scales, adapter.lora_dropout


def _has_matrices_only(folder: Path) -> bool:
    """Whether no factor in an adapter's folder is an embedding's."""
    if not (folder / TENSORS).is_file():
        return True  # the reader of matrices knows other formats, and says what is missing
    with TensorFile(folder / TENSORS) as file:
        return not any(".lora_embedding_" in name for name in file.names)


def is_plain_lora(fields: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is that of LoRA without variants, or is missing."""
    other = fields.get("peft_type", "LORA") != "LORA" or bool(fields.get("use_dora"))
    return not other and METHOD_FIELD not in fields
