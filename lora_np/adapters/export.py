"""A Llama model, with an adapter merged into it or without, in the files of other programs.

A .gguf file is what llama.cpp and Ollama run; a folder of Hugging Face is what transformers and
vLLM load. Vectors, such as the gains of RMSNorm, stay in float32 in a GGUF file; matrices are
rounded to the type that is asked for. Rounding can erase much of a small change, so the norms of
both are reported, as for :func:`lora_np.merge_adapter`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.cut import naming
from lora_np.adapters.merge import Merged
from lora_np.adapters.on_model import load_adapter
from lora_np.adapters.write import as_written
from lora_np.backend import to_host
from lora_np.files import (
    CheckpointError,
    GgufFile,
    float_dtype,
    load_json,
    save_json,
    save_tensors,
    write_gguf,
)
from lora_np.files.atomic import make_folder, replacing_folder
from lora_np.forms import Q8_0, Form
from lora_np.methods import merge
from lora_np.pretrained.find import find_model
from lora_np.pretrained.gguf_names import gguf_name, is_permuted, permuted
from lora_np.pretrained.llama import OURS, llama_of_folder, llama_of_gguf
from lora_np.pretrained.llama_out import (
    architecture_of,
    frequency_divisors,
    gguf_fields,
    json_fields,
    typed,
)
from lora_np.pretrained.tokenizer_out import tokenizer_fields, write_tokenizer
from lora_np.tables import first_of

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
OF_GGUF, OF_FOLDER = ("f32", "f16", "q8_0"), tuple(DTYPES)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
    "generation_config.json",
)

Tensors = dict[str, "np.ndarray | Form"]


def export_model(
    model: str | Path, out: str | Path, *, adapter: str | Path | None = None, kind: str = "f16"
) -> list[Merged]:
    """Write a model of the Llama family as a GGUF file, or as a folder of Hugging Face.

    The tokenizer and the chat template are written too. The whole model is in memory.

    Parameters
    ----------
    model : str or Path
        As for :func:`lora_np.pretrained.find_model`.
    out : str or Path
        A new file that ends in ".gguf", or a new folder.
    adapter : str or Path, optional
        An adapter that :func:`lora_np.load_adapter` can load, of a method that merges.
    kind : {"f32", "f16", "bf16", "q8_0"}
        The type of the matrices. A GGUF file may not be "bf16", a folder not "q8_0". A matrix whose
        rows are not whole blocks of 32 is float16 in a file of "q8_0".

    Returns
    -------
    list of Merged
        The norms of change and rounding of each tensor that the adapter changes.

    Raises
    ------
    CheckpointError
        If `out` exists, a file is broken or does not fit the other, or the adapter was trained on
        another base. Nothing is then written.
    ValueError
        If the method does not merge, the new file cannot hold what it changes, or `out` cannot be
        of type `kind`.

    Examples
    --------
    >>> from lora_np.adapters import export_model
    >>> export_model("smollm2", "model.gguf", kind="bf16")
    Traceback (most recent call last):
        ...
    ValueError: a GGUF file is written in f32, f16, q8_0, not in bf16
    """
    out = Path(out)
    _check_out(out, kind)
    path = find_model(model)
    file = None if path.is_dir() else GgufFile.open(path)
    if file is None:
        base = llama_of_folder(path, keep_quantised=True)
    else:
        base = llama_of_gguf(file, keep_quantised=True)
    plain = base if adapter is None else _merged(base, adapter)
    make_folder(out.parent)
    if out.suffix == ".gguf":
        tensors = _gguf_tensors(plain, kind)
        _write_gguf(out, plain, tensors, path, file, kind)
    else:
        tensors = _folder_tensors(plain, kind)
        _write_folder(out, plain, tensors, path, file, kind)
    return [] if plain is base else _changes(base, plain, tensors, out.suffix == ".gguf")


def _check_out(out: Path, kind: str) -> None:
    """Raise an error unless `out` is new and can be of type `kind`."""
    if out.suffix == ".safetensors":
        raise ValueError(
            f"{out}: expected a .gguf file or a folder; lora-np merge writes a .safetensors file"
        )
    what, kinds = (
        ("a GGUF file", OF_GGUF)
        if out.suffix == ".gguf"
        else ("a folder of Hugging Face", OF_FOLDER)
    )
    if kind not in kinds:
        raise ValueError(f"{what} is written in {', '.join(kinds)}, not in {kind}")
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.suffix == ".gguf"):
        raise CheckpointError(f"{out} already exists: give the result another name")


def _merged(base: Any, adapter: str | Path) -> Any:
    """Return the model with an adapter merged into it, of the same tensors as `base`."""
    plain = merge(load_adapter(base, adapter))
    before, after = base.parameters(), plain.parameters()
    others = [n for n, p in after.items() if n not in before or before[n].shape != p.shape]
    if others or len(after) < len(before):
        raise ValueError(
            f"{adapter} adds or reshapes {first_of(others or sorted(before.keys() - after))}: a "
            "file of a Llama has no place for that"
        )
    return plain


def _changes(base: Any, plain: Any, tensors: Tensors, of_gguf: bool) -> list[Merged]:
    """Return the norms of change and rounding of each Parameter that differs from the base's."""
    found, before = [], base.parameters()
    for name, p in plain.parameters().items():
        W0, W = (to_host(x.value) for x in (before[name], p))
        if np.array_equal(W0, W):
            continue
        theirs = _gguf_tensor(name) if of_gguf else _folder_tensor(name)
        written = tensors[theirs]
        stored = written.decode(np.float32) if isinstance(written, Form) else written
        exact = _as_in_gguf(W, name, plain) if of_gguf else W
        rounding = np.linalg.norm(stored.astype(np.float64) - exact)
        change = np.linalg.norm(W.astype(np.float64) - W0)
        dtype = written.dtype.name if isinstance(written, np.ndarray) else Q8_0.type
        found.append(Merged(theirs, dtype, float(change), float(rounding)))
    return found


# ------------------------------------------------------------------------------------- GGUF


def _gguf_tensor(name: str) -> str:
    """Return the name in a GGUF file of a Parameter of a Llama."""
    path, _, part = name.rpartition(".")
    return f"{gguf_name(path)}.{OURS[part]}"


def _as_in_gguf(x: np.ndarray, name: str, model: Any) -> np.ndarray:
    """Return a Parameter's numbers with rows in the order of GGUF."""
    config, module = model.config, gguf_name(name.rpartition(".")[0])
    if architecture_of(config) != "llama" or not is_permuted(module):
        return x
    return permuted(x, config.n_head if module.endswith("attn_q") else config.n_kv_head)


def _gguf_tensors(model: Any, kind: str) -> Tensors:
    """Return the tensors of a GGUF file: matrices of type `kind`, vectors of float32."""
    tensors: Tensors = dict(frequency_divisors(model.config))
    for name, p in model.parameters().items():
        theirs, x = _gguf_tensor(name), _as_in_gguf(to_host(p.value), name, model)
        if x.ndim < 2 or kind == "f32":
            tensors[theirs] = as_written(theirs, x, "float32")
        elif kind == "q8_0" and x.shape[1] % Q8_0.block_size == 0:
            with naming(theirs):
                tensors[theirs] = Q8_0.encode(x)
        else:
            tensors[theirs] = as_written(theirs, x, "float16")
    return tensors


def _write_gguf(
    out: Path, model: Any, tensors: Tensors, source: Path, file: GgufFile | None, kind: str
) -> None:
    if file is None:
        config = model.config
        fields = gguf_fields(config, source.resolve().name)
        fields |= tokenizer_fields(source, config.vocab_size)
    else:
        fields = file.fields
    write_gguf(out, typed(fields, kind), tensors)


# --------------------------------------------------------------------------- Hugging Face


def _folder_tensor(name: str) -> str:
    """Return Hugging Face's name of a Parameter of a Llama."""
    path, _, part = name.rpartition(".")
    return f"{path}.{OURS[part]}"


def _folder_tensors(model: Any, kind: str) -> dict[str, Any]:
    """Return the tensors of a folder of Hugging Face, all of one type."""
    named = {_folder_tensor(name): p for name, p in model.parameters().items()}
    return {n: as_written(n, to_host(p.value), float_dtype(DTYPES[kind])) for n, p in named.items()}


def _write_folder(
    out: Path, model: Any, tensors: dict[str, Any], source: Path, file: GgufFile | None, kind: str
) -> None:
    with replacing_folder(out.resolve()) as temporary:
        if file is None:
            config = load_json(source / "config.json")
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, temporary / name)
        else:
            config = json_fields(model.config, source)
            tokenizer = write_tokenizer(temporary, file.fields, str(source))
            config |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
        config.pop("dtype", None)  # transformers 5 reads torch_dtype too
        save_json(temporary / "config.json", {**config, "torch_dtype": DTYPES[kind]})
        save_tensors(temporary / "model.safetensors", tensors, {"format": "pt"})
