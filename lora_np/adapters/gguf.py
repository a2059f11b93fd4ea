"""LoRA adapters of Llama models as GGUF files, for llama.cpp.

A file has the fields general.type = "adapter", adapter.type = "lora", general.architecture and
adapter.lora.alpha, and two tensors for each module::

    blk.3.attn_q.weight.lora_a   A (r, in)         W = W0 + alpha / r B A
    blk.3.attn_q.weight.lora_b   B (out, r)

There is one alpha for all modules. A module whose scale is another multiple of 1 / r has the
difference in its B. The rows of the B of queries and keys are in the order of llama.cpp's weights
(:mod:`lora_np.pretrained.gguf_names`).

Source: convert_lora_to_gguf.py and src/llama-adapter.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.file import open_adapter
from lora_np.adapters.write import Written, as_written, named_tensors
from lora_np.files import CheckpointError, GgufFile, write_gguf
from lora_np.files.gguf import GgufTensor
from lora_np.files.names import matched
from lora_np.pretrained.find import base_of_adapter, expect_base, find_model
from lora_np.pretrained.gguf_names import (
    gguf_name,
    is_permuted,
    path_of,
    permuted_rows,
    unpermuted_rows,
)
from lora_np.pretrained.llama import load_llama
from lora_np.pretrained.llama_out import architecture_of, config_at, linear_shapes
from lora_np.reading import shown
from lora_np.tables import listed

ALPHA, ARCHITECTURE = "adapter.lora.alpha", "general.architecture"
KINDS = {"general.type": "adapter", "adapter.type": "lora"}
PERMUTES = {"llama": True, "qwen2": False}  # by architecture
HALVES = {".weight.lora_a": "A", ".weight.lora_b": "B"}


def write_gguf_adapter(
    path: str | Path,
    modules: Iterable[Written],
    *,
    n_head: int,
    n_kv_head: int,
    architecture: str = "llama",
    dtype: Any = np.float32,
) -> None:
    """Write a LoRA adapter of a Llama model as a GGUF file that llama.cpp loads.

    Parameters
    ----------
    path : str or Path
        A new file.
    modules : iterable of (name, B, A, scale)
        As for :func:`~lora_np.adapters.write.write_adapter`, with Hugging Face's paths.
    n_head, n_kv_head : int
        The model's heads of queries, and of keys and values.
    architecture : {"llama", "qwen2"}
        llama.cpp's name of the model's kind.
    dtype : dtype
        float32 or float16.

    Raises
    ------
    CheckpointError
        If the file exists: no adapter is overwritten.
    ValueError
        If there is no module, one is not a linear layer of a Llama, or factors cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.adapters import read_gguf_adapter, write_gguf_adapter
    >>> name, heads = "model.layers.0.self_attn.q_proj", {"n_head": 1, "n_kv_head": 1}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     modules = [(name, np.arange(4.0).reshape(4, 1), np.ones((1, 3)), 2.0)]
    ...     write_gguf_adapter(f"{folder}/sql.gguf", modules, **heads)
    ...     ((found, B, A, scale),) = read_gguf_adapter(f"{folder}/sql.gguf", **heads)
    >>> found == name, B[:, 0].tolist(), A.tolist(), scale
    (True, [0.0, 1.0, 2.0, 3.0], [[1.0, 1.0, 1.0]], 2.0)
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} already exists: give the adapter a new file")
    if architecture not in PERMUTES:
        raise ValueError(f"architecture {architecture!r}: expected one of {', '.join(PERMUTES)}")
    heads = (n_head, n_kv_head) if PERMUTES[architecture] else None
    alpha, tensors = _alpha_and_tensors(modules, heads, dtype)
    write_gguf(path, {ARCHITECTURE: architecture, **KINDS, ALPHA: alpha}, tensors)


def adapter_to_gguf(adapter: str | Path, base: str | Path, path: str | Path) -> list[str]:
    """Write an adapter of a Llama model, such as a folder of PEFT's, as a GGUF file.

    Parameters
    ----------
    adapter : str or Path
        A LoRA adapter that :func:`~lora_np.adapters.open_adapter` can open.
    base : str or Path
        The model, as for :func:`lora_np.pretrained.find_model`. Its weights are read only if the
        adapter has a record of the base that it was trained on.
    path : str or Path
        A new file that ends in ".gguf".

    Returns
    -------
    list of str
        The modules, by Hugging Face's paths.

    Raises
    ------
    CheckpointError
        If the adapter is of another method, model or base, a file is broken, or `path` exists.
    ValueError
        If GGUF cannot hold the factors, or `path` has another ending.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.adapters import adapter_to_gguf, write_adapter
    >>> from lora_np.files import save_json
    >>> sizes = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1}
    >>> sizes |= {"model_type": "llama", "num_attention_heads": 2, "vocab_size": 9}
    >>> name = "model.layers.0.mlp.up_proj"
    >>> with tempfile.TemporaryDirectory() as d:
    ...     save_json(f"{d}/config.json", sizes)
    ...     write_adapter(f"{d}/sql", [(name, np.ones((6, 1)), np.ones((1, 4)), 2.0)])
    ...     adapter_to_gguf(f"{d}/sql", d, f"{d}/sql.gguf")
    ['model.layers.0.mlp.up_proj']
    """
    if not is_gguf(path):
        raise ValueError(f"{path}: expected a name that ends in .gguf")
    source = find_model(base)
    config = config_at(source)
    if base_of_adapter(adapter) is not None:
        expect_base(adapter, load_llama(source, keep_quantised=True))
    shapes = linear_shapes(config)
    with open_adapter(adapter) as file:
        file.require_scale()
        called = matched(file.modules, shapes, adapter)
        others = [n for n, m in file.modules.items() if shapes.get(called[n]) != m.shape]
        if others:
            raise CheckpointError(
                f"{adapter} adapts {listed(others)}: {base} has no linear layer of that name and "
                "shape"
            )
        modules = [(called[name], *m.factors(), m.scale) for name, m in file.modules.items()]
    heads = {"n_head": config.n_head, "n_kv_head": config.n_kv_head}
    write_gguf_adapter(path, modules, **heads, architecture=architecture_of(config))
    return [name for name, *_ in modules]


def is_gguf(path: str | Path) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return Path(path).suffix == ".gguf"


def _alpha_and_tensors(
    modules: Iterable[Written], heads: tuple[int, int] | None, dtype: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the alpha of all modules, and their factors by the names in a file.

    The rows of queries and keys are permuted if `heads`, n_head and n_kv_head, are given.
    """
    held, ranks, scales = named_tensors(modules)
    first = next(iter(ranks))
    alpha = scales[first] * ranks[first]
    if not 1e-30 < alpha < 1e30:
        raise ValueError(f"module {first!r} has alpha {alpha:g}, beyond the range of float32")
    alpha = float(np.float32(alpha))
    tensors: dict[str, np.ndarray] = {}
    for name, r in ranks.items():
        A, B = held[f"{name}.lora_A.weight"], held[f"{name}.lora_B.weight"]
        module = _module_name(name)
        if heads and is_permuted(module):
            B = B[permuted_rows(*_heads(name, len(B), module, *heads))]
        factor = scales[name] * r / alpha
        if factor != 1.0:
            B = B.astype(np.float64) * factor
        for end, half in zip(HALVES, (A, B)):
            tensors[f"{module}{end}"] = as_written(name, half, dtype)
    return alpha, tensors


def read_gguf_adapter(path: str | Path, *, n_head: int, n_kv_head: int) -> list[Written]:
    """Read a LoRA adapter of a Llama model from a GGUF file.

    Parameters
    ----------
    path : str or Path
    n_head, n_kv_head : int
        The model's heads of queries, and of keys and values, which the file does not say.

    Returns
    -------
    list of (name, B, A, scale)
        As for :func:`write_gguf_adapter`, in float32.

    Raises
    ------
    CheckpointError
        If the file is broken, or is not a LoRA adapter of a Llama.
    """
    file, found = GgufFile.open(path), []
    permutes, alpha = _checked_fields(file)
    for module, halves in _by_module(file).items():
        A, B = (halves[half].array() for half in "AB")
        if not (A.ndim == B.ndim == 2 and len(A) == B.shape[1]):
            raise CheckpointError(
                f"{path} holds {shown(module)} with A {A.shape} and B {B.shape}, expected (r, in) "
                "and (out, r)"
            )
        try:
            name = path_of(module)
            if permutes and is_permuted(module):
                B = B[unpermuted_rows(*_heads(name, len(B), module, n_head, n_kv_head))]
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None
        found.append((name, B, A, alpha / len(A) if alpha else 1.0))  # as llama.cpp does
    return found


def _module_name(path: str) -> str:
    """Return the name in GGUF of a linear layer that an adapter may change."""
    module = gguf_name(path)
    if module.endswith("_norm") or module == "token_embd":
        raise ValueError(f"module {path!r} is not a linear layer: GGUF has no LoRA of it")
    return module


def _heads(name: str, out: int, module: str, n_head: int, n_kv_head: int) -> tuple[int, int]:
    """Return the number of heads of a projection with `out` rows, and their width."""
    heads = n_head if module.endswith("attn_q") else n_kv_head
    if heads < 1 or out % (2 * heads):
        raise ValueError(f"module {name!r} has {out} rows, not {heads} heads of an even width")
    return heads, out // heads


def _checked_fields(file: GgufFile) -> tuple[bool, float]:
    """Return whether rows are permuted, and alpha."""
    for field, expected in (*KINDS.items(), (ARCHITECTURE, tuple(PERMUTES))):
        value = file.fields.get(field)
        allowed = expected if isinstance(expected, tuple) else (expected,)
        if value not in allowed:
            raise CheckpointError(
                f"{file.path} has {field} = {shown(value)}, expected {' or '.join(allowed)}"
            )
    alpha = file.fields.get(ALPHA)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise CheckpointError(f"{file.path} has {ALPHA} = {shown(alpha)}, expected a number")
    return PERMUTES[file.fields[ARCHITECTURE]], alpha


def _by_module(file: GgufFile) -> dict[str, dict[str, GgufTensor]]:
    """Return the tensors "A" and "B" of each module."""
    found: dict[str, dict[str, GgufTensor]] = {}
    for name, tensor in file.tensors.items():
        module, end = name[: -len(".weight.lora_a")], name[-len(".weight.lora_a") :]
        if end not in HALVES:
            raise CheckpointError(f"{file.path} holds {shown(name)}, which is no factor of LoRA")
        found.setdefault(module, {})[HALVES[end]] = tensor
    for module, halves in found.items():
        if len(halves) < 2:
            raise CheckpointError(f"{file.path} holds {shown(module)} with one of its two factors")
    if not found:
        raise CheckpointError(f"{file.path} holds no tensor")
    return found
