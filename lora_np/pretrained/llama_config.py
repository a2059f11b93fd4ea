"""The sizes of a Llama-type model, from a config.json of Hugging Face or the fields of a GGUF file.

A field that would change the mathematics is refused by its name: a model that is read in part
computes something else without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.files import CheckpointError
from lora_np.models import LlamaConfig
from lora_np.ops.rope import Llama3Scaling
from lora_np.reading import is_one_of, shown
from lora_np.tables import first_of

KINDS = ("llama", "qwen2")  # model types of Hugging Face, and architectures of GGUF
ALLOWED = {  # fields of config.json; an absent field means the first value
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "attention_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None, {}),
    "pretraining_tp": (1, None),
}
FULL, WINDOW = "full_attention", "attention of a window is not supported"
SCALINGS = ("default", "llama3")
FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
ROPE = (*FACTORS, "rope_type", "type", "rope_theta", "original_max_position_embeddings")


class _Fields:
    """The fields of a file; each is read with its type and range, or refused by name."""

    def __init__(self, fields: Mapping[str, Any], source: Any, prefix: str = "") -> None:
        self.fields, self.source, self.prefix = fields, source, prefix

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(self.prefix + name, default)

    def whole(self, name: str, default: int | None = None) -> int:
        """Return a whole number of at least 1."""
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise self.wrong(name, value, "a whole number of at least 1")
        return value

    def number(self, name: str, default: float | None) -> float:
        """Return a number above 0."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, value, "a number above 0")
        if not 0.0 < value < math.inf:
            raise self.wrong(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: {self.prefix}{name} = {shown(value)}, expected {expected}"
        )


def _config(source: Any, **sizes: Any) -> LlamaConfig:
    try:
        return LlamaConfig(**sizes)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None


# ------------------------------------------------------------------------ config.json


def config_of_json(content: Any, source: Any) -> LlamaConfig:
    """Return the sizes in a config.json; `source` is its path, for errors.

    Raises
    ------
    CheckpointError
        If the model is of another type, or a field asks for other mathematics.

    Examples
    --------
    >>> from lora_np.pretrained.llama_config import config_of_json
    >>> sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 12,
    ...          "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    >>> config = config_of_json({"model_type": "llama", "rope_theta": 1e5, **sizes}, "config.json")
    >>> config.n_kv_head, config.rope_base
    (2, 100000.0)
    """
    if not isinstance(content, dict) or content.get("model_type") not in KINDS:
        found = content.get("model_type") if isinstance(content, dict) else None
        expected = " or ".join(map(repr, KINDS))
        raise CheckpointError(f"{source}: model_type = {shown(found)}, expected {expected}")
    read = _Fields(content, source)
    for name, allowed in ALLOWED.items():
        if not is_one_of(read.get(name, allowed[0]), allowed):
            raise read.wrong(name, read.get(name), shown(allowed[0]))
    _refuse_window(read)
    base, scaling = _rope(read)
    n_head = read.whole("num_attention_heads")
    head_dim = read.get("head_dim")
    return _config(
        source,
        vocab_size=read.whole("vocab_size"),
        block_size=read.whole("max_position_embeddings", 2048),
        n_layer=read.whole("num_hidden_layers"),
        n_head=n_head,
        n_kv_head=n_head if read.get("num_key_value_heads") is None
        else read.whole("num_key_value_heads"),
        d_model=read.whole("hidden_size"),
        d_hidden=read.whole("intermediate_size"),
        d_head=None if head_dim is None else read.whole("head_dim"),
        rope_base=base,
        rope_scaling=scaling,
        eps=read.number("rms_norm_eps", 1e-6),
        tied=read.flag("tie_word_embeddings", False),
        qkv_bias=content["model_type"] == "qwen2",
    )  # fmt: skip


def _refuse_window(read: _Fields) -> None:
    """Raise if attention has a window; a width beside ``use_sliding_window: false`` is not used."""
    if read.get("use_sliding_window") is not None and read.flag("use_sliding_window", False):
        raise read.wrong("use_sliding_window", True, f"False: {WINDOW}")
    kinds = read.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and set(map(str, kinds)) <= {FULL}):
        raise read.wrong("layer_types", kinds, f"a list of {FULL!r}: {WINDOW}")


def _rope(read: _Fields) -> tuple[float, Llama3Scaling | None]:
    """Return the base and the scaling; transformers 5 writes both in rope_parameters."""
    found = {name: read.get(name) for name in ("rope_parameters", "rope_scaling")}
    for name, value in found.items():
        if not isinstance(value, dict | None):
            raise read.wrong(name, value, "an object")
    rope = found["rope_parameters"] or found["rope_scaling"] or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SCALINGS:
        expected = " or ".join(map(repr, SCALINGS))
        raise CheckpointError(f"{read.source}: rope_type = {shown(kind)}, expected {expected}")
    inner = _Fields(rope, read.source)
    if not is_one_of(inner.get("partial_rotary_factor"), (1.0, None)):
        raise inner.wrong("partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    others = [shown(name) for name in rope if name not in (*ROPE, "partial_rotary_factor")]
    if others:  # such as rotations of their own for each kind of layer
        raise CheckpointError(f"{read.source}: rope_parameters has {first_of(others)}, not read")
    base = inner.number("rope_theta", read.number("rope_theta", 10000.0))
    if kind == "default":
        return base, None
    factors = {name: inner.number(name, None) for name in FACTORS}
    original = inner.whole("original_max_position_embeddings")
    try:
        return base, Llama3Scaling(**factors, original_max_position_embeddings=original)
    except ValueError as error:
        raise CheckpointError(f"{read.source}: {error}") from None


# -------------------------------------------------------------------------------- GGUF

REFUSED = {  # fields that change the mathematics, and the value at which they do not; so does 0
    "attention.sliding_window": 0,
    "expert_count": 0,
    "rope.scaling.factor": 1,  # llama.cpp divides positions by it, whatever the type
    "rope.scale_linear": 1,
}


@dataclass(frozen=True)
class DividedFrequencies:
    """A change of the rotary frequencies as GGUF files hold it: one divisor for each pair.

    Attributes
    ----------
    divisors : tuple of float
        d_head / 2 numbers, the tensor ``rope_freqs.weight``.
    """

    divisors: tuple[float, ...]

    def stretched(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the frequencies (d_head / 2,) over the divisors."""
        return frequencies / np.array(self.divisors)


def config_of_gguf(
    fields: Mapping[str, Any], source: Any, *, tied: bool, divisors: np.ndarray | None = None
) -> LlamaConfig:
    """Return the sizes in the fields of a GGUF file.

    Parameters
    ----------
    fields : mapping
    source : path
        For errors.
    tied : bool
        Whether the file has no head of its own.
    divisors : array (d_head / 2,), optional
        The tensor ``rope_freqs.weight``.

    Raises
    ------
    CheckpointError
        If the model is of another architecture, or a field asks for other mathematics.

    Examples
    --------
    >>> from lora_np.pretrained.llama_config import config_of_gguf
    >>> sizes = {"context_length": 16, "embedding_length": 8, "feed_forward_length": 12,
    ...          "block_count": 1, "attention.head_count": 2, "vocab_size": 9}
    >>> fields = {"general.architecture": "llama", **{f"llama.{k}": v for k, v in sizes.items()}}
    >>> config_of_gguf(fields, "a.gguf", tied=True).d_hidden
    12
    """
    read = _gguf_fields(fields, source)
    if divisors is not None and not ((divisors > 0.0) & np.isfinite(divisors)).all():
        raise CheckpointError(f"{source} holds 'rope_freqs.weight', expected numbers above 0")
    n_head = read.whole("attention.head_count")
    d_head = read.whole("attention.key_length", read.whole("embedding_length") // n_head)
    if read.whole("rope.dimension_count", d_head) != d_head:
        raise read.wrong("rope.dimension_count", read.get("rope.dimension_count"), f"{d_head}")
    tokens = fields.get("tokenizer.ggml.tokens")
    vocabulary = len(tokens) if isinstance(tokens, list) else None
    return _config(
        source,
        vocab_size=read.whole("vocab_size", vocabulary),
        block_size=read.whole("context_length"),
        n_layer=read.whole("block_count"),
        n_head=n_head,
        n_kv_head=read.whole("attention.head_count_kv", n_head),
        d_model=read.whole("embedding_length"),
        d_hidden=read.whole("feed_forward_length"),
        d_head=d_head,
        rope_base=read.number("rope.freq_base", 10000.0),
        rope_scaling=None if divisors is None else DividedFrequencies(tuple(divisors.tolist())),
        eps=read.number("attention.layer_norm_rms_epsilon", 1e-5),
        tied=tied,
        qkv_bias=read.prefix == "qwen2.",
    )


def _gguf_fields(fields: Mapping[str, Any], source: Any) -> _Fields:
    """Return the fields of the architecture, or raise if one asks for other mathematics."""
    kind = fields.get("general.architecture")
    if kind not in KINDS:
        expected = " or ".join(map(repr, KINDS))
        raise CheckpointError(
            f"{source}: general.architecture = {shown(kind)}, expected {expected}"
        )
    read = _Fields(fields, source, f"{kind}.")
    scaling = read.get("rope.scaling.type", "none")
    if scaling != "none":
        raise read.wrong("rope.scaling.type", scaling, "'none'")
    for name, off in REFUSED.items():
        if not is_one_of(read.get(name, off), (0, off)):
            raise read.wrong(name, read.get(name), str(off))
    return read
