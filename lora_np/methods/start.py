"""The starts of the factors A (r, in) and B (out, r), by PEFT's names (``init_lora_weights``).

::

    True        A kaiming-uniform, B = 0            Hu et al. (2021), as PEFT does it
    "gaussian"  A from N(0, 1 / r^2), B = 0         as PEFT does it
    "pissa"     s B A is the best approximation     Meng et al. (2024), arXiv:2404.02948
                of W0 of rank r
    "olora"     W0 = Q R: B = Q[:, :r], A = R[:r]   Buyukakyuz (2024), arXiv:2406.01775
    "zero"      A = 0, B = 0, which never trains:   a control
                dA = s (dy B)^T x = 0 and
                dB = s dy^T (x A^T) = 0
    False       A and B random: the start is not    a control
                the base

The product of "pissa" and "olora" is subtracted again (:class:`lora_np.methods.lora.StartedLoRA`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lora_np.backend import like
from lora_np.parameters import Parameter

Factors = tuple[np.ndarray, np.ndarray]  # A (r, in), B (out, r)
Draw = Callable[[np.random.Generator, np.ndarray, int, float], Factors]  # rng, W0, r, scale


def kaiming(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw (rows, in) from U(-1/sqrt(in), 1/sqrt(in)), kaiming-uniform with a = sqrt(5).

    The bound is sqrt(2 / (1 + a^2)) sqrt(3 / in).
    """
    bound = 1.0 / math.sqrt(shape[1])
    return rng.uniform(-bound, bound, shape)


def parameter_like(other: Parameter, value: np.ndarray) -> Parameter:
    """Return a Parameter of the host array `value`, in the dtype and on the device of another."""
    return Parameter(like(value.astype(other.dtype), other.value))


def _kaiming(rng: np.random.Generator, W0: np.ndarray, r: int, scale: float) -> Factors:
    return kaiming(rng, (r, W0.shape[1])), np.zeros((len(W0), r))


def _gaussian(rng: np.random.Generator, W0: np.ndarray, r: int, scale: float) -> Factors:
    return rng.standard_normal((r, W0.shape[1])) / r, np.zeros((len(W0), r))


def _both_random(rng: np.random.Generator, W0: np.ndarray, r: int, scale: float) -> Factors:
    return kaiming(rng, (r, W0.shape[1])), kaiming(rng, (len(W0), r))


def _zero(rng: np.random.Generator, W0: np.ndarray, r: int, scale: float) -> Factors:
    return np.zeros((r, W0.shape[1])), np.zeros((len(W0), r))


def _pissa(rng: np.random.Generator, W0: np.ndarray, r: int, scale: float) -> Factors:
    U, S, Vh = np.linalg.svd(W0.astype(np.float64), full_matrices=False)
    root = np.sqrt(S[:r] / scale)  # (r,)
    return root[:, None] * Vh[:r], U[:, :r] * root


def _olora(rng: np.random.Generator, W0: np.ndarray, r: int, scale: float) -> Factors:
    Q, R = np.linalg.qr(W0.astype(np.float64))
    return R[:r], Q[:, :r]


STARTS: dict[bool | str, Draw] = {
    True: _kaiming,
    False: _both_random,
    "gaussian": _gaussian,
    "pissa": _pissa,
    "olora": _olora,
    "zero": _zero,
}


def _embedding(rng: np.random.Generator, W: np.ndarray, r: int, scale: float) -> Factors:
    V, d = W.shape  # a table's W0 is W^T: A (r, V), B (d, r)
    return np.zeros((r, V)), rng.standard_normal((d, r))


def _embedding_random(rng: np.random.Generator, W: np.ndarray, r: int, scale: float) -> Factors:
    V, d = W.shape
    return rng.standard_normal((r, V)), rng.standard_normal((d, r))


def _embedding_zero(rng: np.random.Generator, W: np.ndarray, r: int, scale: float) -> Factors:
    V, d = W.shape
    return np.zeros((r, V)), np.zeros((d, r))


EMBEDDING_STARTS: dict[bool | str, Draw] = {  # as PEFT does it, which has one start for the others
    **dict.fromkeys(STARTS, _embedding),
    False: _embedding_random,
    "zero": _embedding_zero,
}
OF_W0 = ("pissa", "olora")  # their product is part of W0
