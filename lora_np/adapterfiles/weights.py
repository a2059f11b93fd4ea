"""Two checkpoints of one model, side by side: which tensors can be compared, and by how much
each has changed. One pair of tensors is in memory at a time.

Weights are (out, in) here as everywhere. Hugging Face's GPT and GPT-2 alone keep their Conv1D
weights as (in, out); whether a checkpoint is of theirs is read from the config.json in its folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.checkpoint import load_json, open_weights
from lora_np.checkpoint.tensors import FLOATS
from lora_np.rank import ResidualBound, dense_svd, randomised_svd

CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")  # layers of that kind
CONV1D_MODELS = ("gpt2", "openai-gpt")  # the model types that have them
DENSE_WORK = 2**31  # short side^2 * long side: a dense SVD of some seconds, 768 x 3072


def model_type(weights: str | Path) -> str | None:
    """Return what the config.json beside a checkpoint calls its model; None without one.

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
    found = fields.get("model_type") if isinstance(fields, dict) else None
    return found if isinstance(found, str) else None


def is_conv1d(kind: str | None, tensor: str) -> bool:
    """Whether a tensor of a model of this type is kept as (in, out).

    Parameters
    ----------
    kind : str or None
        From :func:`model_type`.
    tensor : str
        Its name, as in "h.0.attn.c_attn.weight".
    """
    return kind in CONV1D_MODELS and tensor.removesuffix(".weight").split(".")[-1] in CONV1D


class CheckpointPair:
    """Two checkpoints of one model, to be used in a ``with`` block.

    Parameters
    ----------
    base, tuned : str or Path
        As :func:`lora_np.checkpoint.open_weights` takes them.

    Attributes
    ----------
    names : list of str
        Tensors of floats that both have, in equal shape, in the base's order.
    unmatched : list of str
        Those that are in one alone or differ in shape, each with the reason.
    kind : str or None
        The model's type, by the base's config or else the tuned one's.

    Raises
    ------
    CheckpointError
        If a file is broken.
    ValueError
        If they have no tensor in common.
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
        for name in dict.fromkeys((*self.base.names, *self.tuned.names)):
            self._sort(name)
        if not self.names:
            self.close()
            raise ValueError(f"{base} and {tuned} have no tensor of equal name and shape")

    def _sort(self, name: str) -> None:
        files = [file for file in (self.base, self.tuned) if name in file.names]
        if len(files) < 2:
            self.unmatched.append(f"{name}: only in {files[0].path}")
        elif self.base.shape(name) != self.tuned.shape(name):
            shapes = f"{self.base.shape(name)} and {self.tuned.shape(name)}"
            self.unmatched.append(f"{name}: of shapes {shapes}")
        elif all(file.dtype(name) in FLOATS.values() for file in files):
            self.names.append(name)
        else:
            types = " and ".join(file.dtype(name) for file in files)
            self.unmatched.append(f"{name}: of types {types}, floats are compared")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, as the files have it."""
        return self.base.shape(name)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Read W0 and W, in float64; matrices as (out, in).

        Raises
        ------
        CheckpointError
            If an entry is not finite.
        """
        W0, W = (file.read(name, np.float64) for file in (self.base, self.tuned))
        return (W0.T, W.T) if is_conv1d(self.kind, name) else (W0, W)

    def close(self) -> None:
        """Close both."""
        self.base.close()
        self.tuned.close()

    def __enter__(self) -> CheckpointPair:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def is_small(shape: tuple[int, ...]) -> bool:
    """Whether a dense SVD of such a matrix takes seconds rather than minutes."""
    return min(shape) ** 2 * max(shape) <= DENSE_WORK


def leading_svd(
    delta: np.ndarray, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, ResidualBound | None]:
    """Return the SVD of a change: whole where it is small, else the k largest values, nearly.

    Parameters
    ----------
    delta : ndarray, shape (out, in)
    k : int
        How many to find in a large matrix; at most all.
    rng : numpy.random.Generator
        For the randomised SVD.

    Returns
    -------
    U, sigma, Vt : ndarray
        Shapes (out, k'), (k',) and (k', in).
    bound : ResidualBound or None
        How far U diag(sigma) Vt is from `delta`; None where it is delta to rounding.
    """
    if is_small(delta.shape) or k >= min(delta.shape):
        found: tuple[Any, ...] = (*dense_svd(delta, "the change"), None)
        return found
    return randomised_svd(delta, k, rng)
