"""Compare two checkpoints of one model, with one pair of tensors in memory at a time.

Weights are (out, in), as everywhere in lora_np. Only Hugging Face's GPT and GPT-2 store Conv1D
weights as (in, out); the config.json in the folder of a checkpoint says whether it is one of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.rounding import is_narrower, is_rounded_copy, rounding_noise
from lora_np.files import CheckpointError, TensorFile, load_json, open_weights
from lora_np.files.names import matched, plain_names
from lora_np.files.tensors import FLOATS
from lora_np.rank import ResidualBound, dense_svd, randomised_svd
from lora_np.tables import MOST, counted, listed

CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")  # the Conv1D layers
CONV1D_MODELS = ("gpt2", "openai-gpt")  # the model types that have them
QUANTISED = re.compile(  # names beside quantised weights: bitsandbytes', GPTQ's and AWQ's, fp8's
    r"\.(?:quant_state\..*|absmax|quant_map|SCB|qweight|qzeros|weight_scale(?:_inv)?)$"
)
DENSE_WORK = 2**31  # short side^2 * long side: a dense SVD of some seconds, 768 x 3072


def model_type(weights: str | Path) -> str | None:
    """Return the model_type in the config.json beside a checkpoint; None without a config.

    Parameters
    ----------
    weights : str or Path
        A folder, or a file in it.

    Raises
    ------
    CheckpointError
        If the config is not readable.
    """
    found = model_config(weights).get("model_type")
    return found if isinstance(found, str) else None


def model_config(weights: str | Path) -> dict[str, Any]:
    """Return the fields of the config.json beside a checkpoint; an empty dict without a config.

    Parameters
    ----------
    weights : str or Path
        A folder, or a file in it.

    Raises
    ------
    CheckpointError
        If the config is not readable.
    """
    path = Path(weights)
    config = (path if os.path.isdir(path) else path.parent) / "config.json"
    fields = load_json(config) if os.path.exists(config) else None
    return fields if isinstance(fields, dict) else {}


def refuse_quantised(file: TensorFile) -> None:
    """Raise CheckpointError if the weights of a checkpoint are quantised.

    Parameters
    ----------
    file : TensorFile
        The config.json beside it is read too, if there is one.
    """
    codes = [name for name in file.names if QUANTISED.search(name)]
    config = model_config(file.path).get("quantization_config")
    if not codes and config:  # the config may be left over from a quantised checkpoint
        integers = (name for name in file.names if file.dtype(name) not in FLOATS.values())
        codes = [name for name in integers if name.endswith(".weight")]
    if codes:
        method = config.get("quant_method") if isinstance(config, dict) else None
        by = f", by {method}" if isinstance(method, str) else ""
        raise CheckpointError(
            f"{file.path} is quantised{by}: it holds {codes[0]!r}; use the float checkpoint "
            "that it was made from"
        )


def is_conv1d(kind: str | None, tensor: str) -> bool:
    """Whether a model of this type stores a tensor as (in, out).

    Parameters
    ----------
    kind : str or None
        From :func:`model_type`.
    tensor : str
        Name of the tensor, such as "h.0.attn.c_attn.weight".
    """
    return kind in CONV1D_MODELS and tensor.removesuffix(".weight").split(".")[-1] in CONV1D


def is_transposed(
    kind: str | None, tensor: str, shape: tuple[int, ...], fan_in_fan_out: bool
) -> bool:
    """Whether a weight is stored as (in, out), by the model's type or else by the adapter.

    Parameters
    ----------
    kind : str or None
        From :func:`model_type`.
    tensor : str
        Name of the weight.
    shape : tuple of int
        Its shape, in either order.
    fan_in_fan_out : bool
        What the adapter says of all its modules.

    Raises
    ------
    CheckpointError
        If neither the type nor the shape decides.
    """
    if kind is None or kind in CONV1D_MODELS:
        return is_conv1d(kind, tensor) if kind else fan_in_fan_out
    if fan_in_fan_out and len(set(shape)) == 1:
        raise CheckpointError(
            f"the adapter sets fan_in_fan_out, which is unknown for the model type {kind}, and the "
            f"square {tensor!r} fits both ways: merge it with PEFT"
        )
    return fan_in_fan_out


def require_floats(file: TensorFile, name: str) -> None:
    """Raise CheckpointError if a tensor does not hold floats.

    Parameters
    ----------
    file : TensorFile
    name : str
    """
    if file.dtype(name) not in FLOATS.values():
        refuse_quantised(file)
        raise CheckpointError(f"{file.path} holds {name!r} as {file.dtype(name)}, expected floats")


def tensors_of_modules(
    modules: Sequence[str], weights: TensorFile, source: str
) -> dict[str, tuple[str, str]]:
    """Return, for each module of an adapter, its weight's name in the file and its plain name.

    First parts of the modules' names that all of them share are left off if the checkpoint does not
    have them; "model." or "transformer." may be added or removed.

    Parameters
    ----------
    modules : sequence of str
        Names of modules, such as "model.layers.0.mlp.up_proj".
    weights : TensorFile
        The checkpoint.
    source : str
        The adapter, for the error.

    Raises
    ------
    CheckpointError
        If the checkpoint does not have a module's weight, or is quantised.
    """
    held = {plain: name for name, plain in plain_names(weights.names, weights.path).items()}
    stems = {plain.removesuffix(".weight") for plain in held}
    for count in range(1 + min(name.count(".") for name in modules)):
        parts = [name.split(".") for name in modules]
        if len({tuple(rest[:count]) for rest in parts}) > 1:
            break  # the names share no further first part
        rests = [".".join(rest[count:]) for rest in parts]
        called = matched(rests, stems, source)
        tensors = [f"{called[rest]}.weight" for rest in rests]
        if all(tensor in held for tensor in tensors):
            return {name: (held[tensor], tensor) for name, tensor in zip(modules, tensors)}
    called = matched(modules, stems, source)
    missing = [name for name in modules if f"{called[name]}.weight" not in held]
    raise _lacking(missing, len(missing) == len(modules), weights, source)


def _lacking(
    missing: list[str], none_meets: bool, weights: TensorFile, source: str
) -> CheckpointError:
    """Return the error for modules that a checkpoint lacks, with the likely cause."""
    refuse_quantised(weights)  # its weights have other names
    text = f"{weights.path} does not have modules that {source} adapts: {listed(missing)}"
    head = any(name.split(".")[-1] == "lm_head" for name in missing)
    if head and model_config(weights.path).get("tie_word_embeddings") is not False:
        text += (
            "; without lm_head.weight the head is tied to the embedding (tie_word_embeddings), "
            "and a merge would change both: untie them first"
        )
    elif none_meets:
        text += f"; it holds {listed(weights.names)}"
    return CheckpointError(text)


class CheckpointPair:
    """Two checkpoints of one model, for a ``with`` block.

    Parameters
    ----------
    base, tuned : str or Path
        Checkpoints that :func:`lora_np.files.open_weights` can open.

    Attributes
    ----------
    names : list of str
        Float tensors that both files hold in the same shape, in the order of the base, under the
        base's plain names (:func:`lora_np.files.names.plain_names`).
    unmatched : list of str
        All other tensors, each with the reason.
    kind : str or None
        The model type in the config of the base or, without one, of the tuned checkpoint.

    Raises
    ------
    CheckpointError
        If a file is broken, or quantised.
    ValueError
        If the files have no tensor in common.
    """

    def __init__(self, base: str | Path, tuned: str | Path) -> None:
        self.kind = model_type(base) or model_type(tuned)
        self.base = open_weights(base)
        try:
            self.tuned = open_weights(tuned)
        except BaseException:
            self.base.close()
            raise
        self.names: list[str] = []
        self.unmatched: list[str] = []
        try:
            refuse_quantised(self.base)
            refuse_quantised(self.tuned)
            self._held = self._match()
            for name in dict.fromkeys(name for held in self._held for name in held):
                self._sort(name)
            if not self.names:
                found = f"{base} and {tuned} have no tensor of the same name and shape"
                raise ValueError("; ".join([found, *unmatched_lines(self.unmatched)]))
        except BaseException:
            self.close()
            raise

    def _match(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return, for each of the two files, its tensor names by the base's plain names."""
        base, tuned = (plain_names(file.names, file.path) for file in (self.base, self.tuned))
        called = matched(tuned.values(), base.values(), self.tuned.path)
        return (
            {plain: name for name, plain in base.items()},
            {called[plain]: name for name, plain in tuned.items()},
        )

    def _sort(self, name: str) -> None:
        files = (self.base, self.tuned)
        both = [(file, held[name]) for file, held in zip(files, self._held) if name in held]
        shapes = [file.shape(own) for file, own in both]
        types = [file.dtype(own) for file, own in both]
        if len(both) < 2:
            file, own = both[0]
            self.unmatched.append(f"{own}: only in {file.path}")
        elif shapes[0] != shapes[1]:
            self.unmatched.append(f"{name}: of shapes {shapes[0]} and {shapes[1]}")
        elif all(dtype in FLOATS.values() for dtype in types):
            self.names.append(name)
        else:
            self.unmatched.append(f"{name}: of types {' and '.join(types)}, not floats")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the files."""
        return self.base.shape(self._held[0][name])

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Read W0 and W in float64, with matrices as (out, in).

        Raises
        ------
        CheckpointError
            If an entry is not finite.
        """
        files = zip((self.base, self.tuned), self._held)
        W0, W = (file.read(held[name], np.float64) for file, held in files)
        return (W0.T, W.T) if is_conv1d(self.kind, name) else (W0, W)

    def types(self, name: str) -> tuple[str, str]:
        """Return the types of a tensor in the base and in the tuned file."""
        base, tuned = (held[name] for held in self._held)
        return self.base.dtype(base), self.tuned.dtype(tuned)

    def rounding(self, name: str, W0: np.ndarray, W: np.ndarray) -> np.ndarray:
        """Return the standard deviation of the rounding in each entry of W - W0."""
        return rounding_noise(W0, W, self.types(name), self.base_is_rounded)

    @cached_property
    def base_is_rounded(self) -> bool:
        """Whether some matrix shows that the base is a narrow copy of the start of training."""
        return any(
            is_narrower(*self.types(name))
            and is_rounded_copy(*self.read(name), self.types(name)[0])
            for name in self.names
            if len(self.shape(name)) == 2
        )

    def no_change(self, what: str, compared: int) -> ValueError:
        """Return the error for a pair without any difference, or without anything to compare.

        Parameters
        ----------
        what : str
            The kind of tensor that was compared, such as "matrix".
        compared : int
            How many of them are in both files.
        """
        found = f"differ in no {what} by more than rounding, of {compared} compared"
        said = found if compared else f"have no {what} of the same name and shape"
        files = f"{self.base.path} and {self.tuned.path}"
        return ValueError("; ".join([f"{files} {said}", *unmatched_lines(self.unmatched)]))

    def close(self) -> None:
        """Close both files."""
        self.base.close()
        self.tuned.close()

    def __enter__(self) -> CheckpointPair:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def is_small(shape: tuple[int, ...]) -> bool:
    """Whether a dense SVD of a matrix of this shape takes seconds rather than minutes."""
    return min(shape) ** 2 * max(shape) <= DENSE_WORK


def leading_svd(
    delta: np.ndarray, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, ResidualBound | None]:
    """Return the SVD of a change: all of it if it is small, else about k directions of it.

    Parameters
    ----------
    delta : ndarray, shape (out, in)
    k : int
        How many directions to compute for a large matrix.
    rng : numpy.random.Generator
        For the randomised SVD.

    Returns
    -------
    U, sigma, Vt : ndarray
        Shapes (out, k'), (k',) and (k', in), where k' is the number of computed directions.
    bound : ResidualBound or None
        Bound on the distance from U diag(sigma) Vt to `delta`; None if they are equal to rounding.
    """
    if is_small(delta.shape) or k >= min(delta.shape):
        found: tuple[Any, ...] = (*dense_svd(delta, "the change"), None)
        return found
    return randomised_svd(delta, k, rng)


def unmatched_lines(unmatched: Sequence[str]) -> list[str]:
    """Return a line for each reason why tensors of two files could not be compared, at most 9.

    Parameters
    ----------
    unmatched : sequence of str
        Lines "name: reason", as :class:`CheckpointPair` keeps them.

    Examples
    --------
    >>> from lora_np.adapters.weights import unmatched_lines
    >>> unmatched_lines(["q: only in a", "x: of shapes (2,) and (3,)", "k: only in a"])
    ['only in a: q, k', 'of shapes (2,) and (3,): x']
    """
    names: dict[str, list[str]] = {}
    for line in unmatched:
        name, reason = line.split(": ", 1)
        names.setdefault(reason, []).append(name)
    lines = [f"{reason}: {listed(found)}" for reason, found in names.items()]
    rest = len(lines) - MOST
    return [*lines[:MOST], f"and {counted(rest, 'other reason')}"] if rest > 0 else lines
