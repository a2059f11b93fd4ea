"""Which changes of a matrix can each method reach?

A linear layer y = W0 x + b0 has to become y = W x + b, where the change is planted: it has low
rank, or scales rows, or rotates, ... Every method is fitted with Adam at several learning rates,
without noise, and what remains is::

    residual = ||outputs - targets||_F / ||outputs of W0 - targets||_F

over the inputs sqrt(in) e_i and -sqrt(in) e_i, which are white and have mean 0: the numerator is
proportional to the root of ||error of W||_F^2 + ||error of b||^2. A residual of 0 means that the
change lies in the set of changes that the method can reach; a residual of 1 means that the method
finds nothing. Between them, a method comes so near, or Adam does: a fit that would take more steps
is not told apart from one that is impossible. So a residual below ``REACHED`` is a proof, and a
larger one is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np

from lora_np.crew import InProcess, one_blas_thread
from lora_np.experiments.compare.rows import RANK, Row
from lora_np.experiments.rank_sweep.linear import Regression
from lora_np.layers import Linear
from lora_np.methods import inject
from lora_np.tables import text_table
from lora_np.train import Diverged, fit

D_OUT, D_IN, LOW = 48, 32, 4
BLOCK = 16  # of a rotation
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
STEPS = 1000
REACHED = 0.01

Affine = tuple[np.ndarray, np.ndarray]  # W (out, in), b (out,)
Plant = Callable[[np.random.Generator, np.ndarray, np.ndarray], Affine]


def _low_rank(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    return W0 + _product(rng, W0.shape, LOW), b


def _full_rank(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    return W0 + _product(rng, W0.shape, min(W0.shape)), b


def _row_gain(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    gain = 1.0 + 0.5 * rng.standard_normal(len(W0))  # the bias is scaled too, as IA3 does
    return gain[:, None] * W0, gain * b


def _column_gain(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    return W0 * (1.0 + 0.5 * rng.standard_normal(W0.shape[1])), b


def _rotation(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    W = W0.copy()
    for start in range(0, W.shape[1], BLOCK):  # each block of inputs by itself, as OFT does
        S = 0.02 * rng.standard_normal((BLOCK, BLOCK))
        S, one = S - S.T, np.eye(BLOCK)  # the Cayley transform of S is a rotation
        part = slice(start, start + BLOCK)
        W[:, part] = W0[:, part] @ np.linalg.solve(one + S, one - S)
    return W, b


def _sparse(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    return W0 + (rng.random(W0.shape) < 0.05) * rng.standard_normal(W0.shape), b


def _bias(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    return W0, b + rng.standard_normal(len(b))


def _times_low_rank(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    return W0 * (1.0 + _product(rng, W0.shape, LOW)), b


def _two_products(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    return W0 + _product(rng, W0.shape, LOW) * _product(rng, W0.shape, LOW), b


def _kronecker(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    left, right = rng.standard_normal((len(W0) // 8, W0.shape[1] // 8)), rng.standard_normal((8, 8))
    return W0 + 0.3 * np.kron(left, right), b


def _repeated(rng: np.random.Generator, W0: np.ndarray, b: np.ndarray) -> Affine:
    part = 0.5 * rng.standard_normal((len(W0), RANK))  # the same for every part of the inputs
    return W0 + np.tile(part, (1, W0.shape[1] // RANK)), b


def _product(rng: np.random.Generator, shape: tuple[int, ...], r: int) -> np.ndarray:
    """Return a random matrix of rank r with entries of variance 1 / 4."""
    B, A = rng.standard_normal((shape[0], r)), rng.standard_normal((r, shape[1]))
    return 0.5 * B @ A / math.sqrt(r)


CHANGES: dict[str, tuple[Plant, str]] = {
    "rank 4": (_low_rank, "W0 plus a matrix of rank 4"),
    "dense": (_full_rank, "W0 plus a random matrix"),
    "rows": (_row_gain, "every row of W0 and entry of b0 times a factor"),
    "columns": (_column_gain, "every column of W0 times a factor"),
    "rotate": (_rotation, f"the inputs of W0 are rotated, in blocks of {BLOCK}"),
    "sparse": (_sparse, "W0 plus random numbers at one entry in 20"),
    "bias": (_bias, "another bias"),
    "W0*low": (_times_low_rank, "every entry of W0 times 1 plus an entry of a matrix of rank 4"),
    "low*low": (_two_products, "W0 plus the entrywise product of two matrices of rank 4"),
    "kron": (_kronecker, "W0 plus a Kronecker product of a 6 x 4 and an 8 x 8 matrix"),
    "repeat": (_repeated, f"W0 plus a matrix whose columns repeat every {RANK}"),
}


def reach(
    rows: Sequence[Row],
    executor: Executor | None = None,
    changes: Mapping[str, tuple[Plant, str]] | None = None,
    rates: Sequence[float] = RATES,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Fit every method to every planted change.

    Parameters
    ----------
    rows : sequence of Row
    executor : concurrent.futures.Executor, optional
        By default this process.
    changes : mapping of str to (callable, str), optional
        ``plant(rng, W0, b0)`` returns the W and b to reach; and what they are, in words. By default
        ``CHANGES``.
    rates, steps : sequence of float, int
        Learning rates, of which the best counts, and steps of each fit.

    Returns
    -------
    dict
        ``changes``, the words by name; ``trainable``, by label; ``residual``, by label a number for
        each change, or None for a method that does not stand on a linear layer.

    Raises
    ------
    ValueError
        If there is no method of a row's name, or it does not have its options.
    """
    for row in rows:
        row.contender()
    changes = changes or CHANGES
    work = partial(_row, [plant for plant, _ in changes.values()], rates, steps)
    found = list((executor or InProcess()).map(work, rows))
    return {
        "changes": described(changes),
        "trainable": {row.label: number for row, (number, _) in zip(rows, found)},
        "residual": {row.label: residuals for row, (_, residuals) in zip(rows, found)},
    }


def described(changes: Mapping[str, tuple[Plant, str]]) -> dict[str, str]:
    """Return each change in words.

    Of a change of W and b, the words end in the residual that b leaves if W alone is right.
    """
    base, found = _base(), {}
    W0, b0 = base.W.value, _bias_of(base)
    for i, (name, (plant, words)) in enumerate(changes.items()):
        W, b = plant(np.random.default_rng([1, i]), W0, b0)
        of_W, of_b = float(((W - W0) ** 2).sum()), float(((b - b0) ** 2).sum())
        part = math.sqrt(of_b / (of_W + of_b))
        both = f"; {part:.2f} remains if W alone is reached" if 0 < part < 1 else ""
        found[name] = f"{words}{both}"
    return found


def reach_table(found: Mapping[str, Any]) -> str:
    """Return the residuals as a matrix; a dash where a method cannot stand on a linear layer."""
    columns: dict[str, list[str]] = {"": list(found["residual"])}
    columns["numbers"] = ["-" if n is None else f"{n:,}" for n in found["trainable"].values()]
    for i, name in enumerate(found["changes"]):
        column = [None if x is None else x[i] for x in found["residual"].values()]
        columns[name] = [_shown(value) for value in column]
    reached = f"* reached: below {REACHED}; a dash: the method does not stand on a linear layer"
    words = "\n".join(f"{name}: {said}" for name, said in found["changes"].items())
    return f"{text_table(columns)}\n{reached}\n\n{words}"


def _shown(residual: float | None) -> str:
    if residual is None:
        return "-"
    return f"{residual:.2f}{'*' if residual < REACHED else ' '}"


def _row(
    plants: Sequence[Plant], rates: Sequence[float], steps: int, row: Row
) -> tuple[int | None, list[float] | None]:
    """Return the number of trainable numbers, and the residual of every change."""
    base, residuals = _base(), []
    with one_blas_thread():
        for i, plant in enumerate(plants):
            target = plant(np.random.default_rng([1, i]), base.W.value, _bias_of(base))
            tried = [_fit(row, target, lr, steps) for lr in rates]
            if None in tried:
                return None, None
            residuals.append(min(x for x in tried if x is not None))
    return _trainable(row), residuals


def _fit(row: Row, target: Affine, lr: float, steps: int) -> float | None:
    """Return the residual after a fit; None if the method does not stand on a linear layer."""
    base, (W, b) = _base(), target
    x = math.sqrt(D_IN) * np.concatenate((np.eye(D_IN), -np.eye(D_IN)))  # (2 in, in)
    batch = x, x @ W.T + b
    model = _model(row, steps)
    if model is None:
        return None
    before = float(Regression(base).loss(*batch)[0])
    try:
        fit(
            model,
            lambda: batch,
            steps=steps,
            lr=lr,
            rng=np.random.default_rng(2),
            optimizer="adam",
            clip=None,
        )
    except Diverged:
        return 1.0
    return min(1.0, math.sqrt(float(model.loss(*batch)[0]) / before))


def _model(row: Row, steps: int = 1) -> Any:
    """Return the layer as the method trains it, or None."""
    model, config = Regression(_base()), row.contender(steps, row.on_linear).method
    if config is None:
        return model
    try:
        return inject(model, config, np.random.default_rng(0))
    except ValueError:
        return None


def _trainable(row: Row) -> int:
    return sum(p.size for p in set(_model(row).parameters().values()) if p.trainable)


def _base() -> Linear:
    """Return the layer of W0 and b0, in float64."""
    rng = np.random.default_rng(0)
    linear = Linear(D_IN, D_OUT, rng, dtype=np.float64)
    linear.W.value = rng.standard_normal((D_OUT, D_IN)) / math.sqrt(D_IN)
    _bias_of(linear)[...] = 0.3 * rng.standard_normal(D_OUT)
    return linear


def _bias_of(linear: Linear) -> np.ndarray:
    assert linear.b is not None  # a Linear has one unless it is told otherwise
    return linear.b.value
