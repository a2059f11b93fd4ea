"""LoRA with an adapter for each row: y_n = x_n W0^T + b + s_a (x_n A_a^T) B_a^T, a = ids[n].

Shapes: x (n, ..., in), ids (n,), W0 (out, in), A_a (r_a, in), B_a (out, r_a), b (out,),
y (n, ..., out). Row n of x, with all its samples, has the adapter ids[n]; -1 is the base alone. The
large product, with W0, is computed once for all rows, whatever their adapters; the products with
A_a and B_a are thin. So a batch may mix adapters, and W0 never changes.

Derivation. Given the ids, a row's output depends on its own adapter alone, as in lora.py, so for
each row::

    u_n = x_n A_a^T                    (..., r_a)
    du_n = s_a dy_n B_a                (..., r_a)
    dx_n = dy_n W0 + du_n A_a          (..., in)

A_a and B_a are used by the rows of adapter a and by no other row; their gradients are sums over
these rows::

    dB_a = s_a sum over ids[n] = a of dy_n^T u_n       (out, r_a)
    dA_a = sum over ids[n] = a of du_n^T x_n           (r_a, in)

W0 and b are used by all rows: dW0 = dy^T x and db = 1^T dy, over all of them.

The code copies A and B for every row and multiplies row by row. It takes the rows of one rank at a
time, so that a small rank is never padded with zeros to a larger one.

Source: Chen et al. (2023), Punica, arXiv:2310.18547 (the gathered product, and SGMV, which is
ops/fast/many.py); Sheng et al. (2023), S-LoRA, arXiv:2311.03285, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, like, to_host
from lora_np.ops.contract import Need, expect_last, expect_shape, wanted
from lora_np.ops.linear import rows, sum_rows

Adapters = Sequence[tuple[Array, Array]]  # A (r_i, in) and B (out, r_i)
OfEach = list[Array | None] | None  # gradients of each adapter, if they are needed
Gradients = tuple[Array | None, Array | None, OfEach, OfEach, Array | None]
BASE = -1  # the id of a row without an adapter


class Rows:
    """The adapter of each row, and the rows sorted by adapter.

    One object is made for a batch, and all layers of a model can share it.

    Parameters
    ----------
    ids : integer array, shape (n,)
        The number of each row's adapter; -1 is the base alone.
    number : int
        How many adapters there are.

    Attributes
    ----------
    ids : integer array, shape (n,)
    number : int
    here : slice or integer array
        An index: ``x[here]`` are the k rows that have an adapter, sorted by adapter. It is a slice,
        which copies nothing, if the rows are already in this order.
    sorted : integer array, shape (k,)
        The adapters of these rows, ``ids[here]``.
    segments : list of (int, int, int)
        For each adapter that has a row: its number, and the start and end of its rows in
        ``x[here]``.

    Raises
    ------
    TypeError
        If ids are not integers.
    ShapeError
        If ids are not of shape (n,).
    IndexError
        If an id is not in -1 .. number - 1.

    Examples
    --------
    >>> from lora_np.ops import Rows
    >>> rows = Rows([2, 0, -1, 2], 3)
    >>> rows.here.tolist(), rows.segments
    ([1, 0, 3], [(0, 0, 1), (2, 1, 3)])
    >>> Rows([-1, 0, 0, 1], 2).here
    slice(1, 4, None)
    """

    def __init__(self, ids: Array | Sequence[int], number: int) -> None:
        self.ids, self.number = _checked(to_host(ids), number), number
        first = int((self.ids == BASE).sum())
        self.here: Any = slice(first, len(self.ids))
        if (np.diff(self.ids) < 0).any():
            self.here = np.argsort(self.ids, kind="stable")[first:]
        self.sorted = self.ids[self.here]  # (k,)
        starts = np.flatnonzero(np.diff(self.sorted, prepend=BASE))
        ends = [*starts[1:].tolist(), len(self.sorted)]
        self.segments = list(zip(self.sorted[starts].tolist(), starts.tolist(), ends))
        self._spans = [slice(start, end) for _, start, end in self.segments]

    def __len__(self) -> int:
        return len(self.ids)

    def spans(self, m: int) -> list[slice]:
        """Return the slice of each segment's samples, if every row has m samples."""
        if m == 1:  # as in generation, for every layer and token
            return self._spans
        return [slice(start * m, end * m) for _, start, end in self.segments]


class LoRARowsCache(NamedTuple):
    """What :func:`lora_rows_backward` reads."""

    x: Array  # (n, ..., in)
    W0: Array  # (out, in)
    adapters: Adapters
    rows: Rows
    scales: list[Any]  # by rank: a float, or (k, 1, 1) for its k rows
    us: list[Array]  # by rank: x A^T (k, m, r), with m samples in a row
    has_bias: bool


def lora_rows_forward(
    x: Array,
    W0: Array,
    adapters: Adapters,
    ids: Rows | Array | Sequence[int],
    b: Array | None = None,
    *,
    scale: float | Sequence[float] | Array,
) -> tuple[Array, LoRARowsCache]:
    """Compute y_n = x_n W0^T + b + scale (x_n A^T) B^T with the A and B of each row's adapter.

    Parameters
    ----------
    x : array, shape (n, ..., in)
        n rows; all samples of a row have one adapter.
    W0 : array, shape (out, in)
        The pretrained weight.
    adapters : sequence of (A (r_i, in), B (out, r_i))
    ids : integer array, shape (n,), or Rows
        The number of each row's adapter; -1 is the base alone.
    b : array, shape (out,), optional
    scale : float or sequence of float
        One scale, or one for each adapter.

    Returns
    -------
    y : array, shape (n, ..., out)
    cache : LoRARowsCache

    Raises
    ------
    ShapeError, TypeError, IndexError, ValueError
        If the shapes do not fit (an adapter without a row is not checked), or ids are not integers,
        are out of range, or are Rows for another number of adapters.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import lora_rows_backward, lora_rows_forward
    >>> x, W0, ones = np.ones((3, 2)), np.eye(2), np.ones((2, 1))
    >>> adapters = [(ones.T, ones), (np.ones((4, 2)), np.ones((2, 4)))]  # of rank 1 and 4
    >>> y, cache = lora_rows_forward(x, W0, adapters, [1, -1, 0], scale=0.5)
    >>> y.tolist()
    [[5.0, 5.0], [1.0, 1.0], [2.0, 2.0]]
    >>> dx, dW0, dA, dB, db = lora_rows_backward(np.ones((3, 2)), cache)
    >>> dA[0].tolist(), dB[0].tolist()
    ([[1.0, 1.0]], [[1.0], [1.0]])
    """
    which, scale = check_rows(x, W0, adapters, ids, b, scale)
    x_rows = by_row(x)  # (n, m, in)
    y = (rows(x) @ W0.T).reshape(*x_rows.shape[:2], len(W0))  # (n, m, out)
    us, scales = [], []
    for own, here, A, B in _gathered(x, adapters, which):
        scales.append(scale_of(scale, own, A))
        us.append(x_rows[here] @ A.swapaxes(1, 2))  # (k, m, r)
        y[here] += (scales[-1] * us[-1]) @ B.swapaxes(1, 2)  # (k, m, out)
    if b is not None:
        y += b
    cache = LoRARowsCache(x, W0, adapters, which, scales, us, b is not None)
    return y.reshape(*x.shape[:-1], len(W0)), cache


def lora_rows_backward(dy: Array, cache: LoRARowsCache, need: Need = None) -> Gradients:
    """Return (dx, dW0, dA, dB, db) of :func:`lora_rows_forward`.

    `need` has five entries, for x, W0, all A, all B, and b. dA and dB are lists with an entry for
    each adapter, which is None if the adapter has no row.
    """
    x, W0, adapters, which, scales, us, has_bias = cache
    need_x, need_W0, need_A, need_B, need_b = wanted(need, 5)
    expect_shape("dy", dy, *x.shape[:-1], len(W0))
    g, x_rows = by_row(dy), by_row(x)  # (n, m, out), (n, m, in)
    dx = (rows(dy) @ W0).reshape(x_rows.shape) if need_x else None  # (n, m, in)
    dA = none_yet(adapters, need_A)
    dB = none_yet(adapters, need_B)
    for (own, here, A, B), s, u in zip(_gathered(x, adapters, which), scales, us):
        du = s * (g[here] @ B)  # (k, m, r)
        if dx is not None:
            dx[here] += du @ A  # (k, m, in)
        if dA is not None:
            _add(dA, own, du.swapaxes(1, 2) @ x_rows[here])  # (k, r, in)
        if dB is not None:
            _add(dB, own, s * (g[here].swapaxes(1, 2) @ u))  # (k, out, r)
    dx = None if dx is None else dx.reshape(x.shape)
    dW0 = rows(dy).T @ rows(x) if need_W0 else None  # (out, in)
    return dx, dW0, dA, dB, sum_rows(dy) if need_b and has_bias else None


def check_rows(
    x: Array,
    W0: Array,
    adapters: Adapters,
    ids: Rows | Array | Sequence[int],
    b: Array | None,
    scale: float | Sequence[float] | Array,
) -> tuple[Rows, float | Array]:
    """Return the Rows and the scale, or raise an error if an argument of forward does not fit."""
    which, each = check_ids(x, W0, adapters, ids, b, scale)
    for a, _, _ in which.segments:
        A, B = adapters[a]
        expect_shape(f"A of adapter {a}", A, None, W0.shape[1])
        expect_shape(f"B of adapter {a}", B, len(W0), len(A))
    return which, each


def check_ids(
    x: Array,
    W0: Array,
    adapters: Adapters,
    ids: Rows | Array | Sequence[int],
    b: Array | None,
    scale: float | Sequence[float] | Array,
) -> tuple[Rows, float | Array]:
    """Return the Rows and the scale; check all that :func:`check_rows` does but A and B."""
    expect_shape("W0", W0, None, None)
    expect_last("x", x, W0.shape[1])
    if b is not None:
        expect_shape("b", b, len(W0))
    which = ids if isinstance(ids, Rows) else Rows(ids, len(adapters))
    if which.number != len(adapters):
        raise ValueError(f"ids are for {which.number} adapters, but there are {len(adapters)}")
    if x.ndim < 2 or len(which) != len(x):
        raise ShapeError(
            f"ids has shape ({len(which)},), x has shape {tuple(x.shape)}: "
            f"expected x (n, ..., in) and ids (n,), one adapter for each row"
        )
    each = np.asarray(scale, np.float64)
    if each.ndim == 0:
        return which, float(each)  # an np.float64 would turn float32 into float64
    if each.shape != (len(adapters),):
        raise ShapeError(
            f"scale has shape {each.shape}, expected one float, or ({len(adapters)},): "
            f"one for each adapter"
        )
    return which, each


def scale_of(scale: float | Array, own: np.ndarray, x: Array) -> Any:
    """Return the scales of the adapters `own` (k,): one float, or (k, 1, 1) in the dtype of x."""
    if not isinstance(scale, np.ndarray):
        return scale
    return like(scale[own].astype(x.dtype), x)[:, None, None]


def _checked(ids: np.ndarray, number: int) -> np.ndarray:
    """Return ids (n,), or raise unless they are integers in -1 .. number - 1."""
    if ids.ndim != 1:
        raise ShapeError(f"ids has shape {ids.shape}, expected (n,): one adapter for each row")
    if ids.size == 0:
        return ids.astype(np.intp)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids has dtype {ids.dtype}, expected integers: numbers of adapters")
    low, high = int(ids.min()), int(ids.max())
    if low < BASE or high >= number:
        wrong = low if low < BASE else high
        raise IndexError(
            f"ids has the number {wrong}, expected {BASE} .. {number - 1}: "
            f"there are {number} adapters, and {BASE} is the base alone"
        )
    return ids.astype(np.intp)


def _gathered(
    x: Array, adapters: Adapters, which: Rows
) -> Iterator[tuple[np.ndarray, Any, Array, Array]]:
    """Yield, for the k rows of each rank, adapters and places (k,), A (k, r, in), B (k, out, r)."""
    xp, by_rank = get_xp(x), {}
    for n, a in enumerate(which.ids.tolist()):
        if a != BASE:
            by_rank.setdefault(len(adapters[a][0]), []).append(n)
    for _, here in sorted(by_rank.items()):
        own, place = which.ids[here], on_device(np.array(here), x)  # (k,)
        A, B = (xp.stack([adapters[a][i] for a in own.tolist()]) for i in (0, 1))
        yield own, place, A, B


def on_device(here: Any, x: Array) -> Any:
    """Return `here`, a slice or an array on the host, as an index of the rows of x."""
    return here if isinstance(here, slice) else like(here, x)


def by_row(x: Array) -> Array:
    """Return x (n, ..., d) as (n, m, d): the m samples of each row on one axis."""
    return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def none_yet(adapters: Adapters, needed: bool) -> OfEach:
    """Return a list with None for each adapter, or None if no gradient is needed."""
    nothing: list[Array | None] = [None] * len(adapters)
    return nothing if needed else None


def _add(sums: list[Array | None], own: np.ndarray, parts: Array) -> None:
    """Add the gradient of each row (k, ...) to the sum of its own adapter."""
    for a, part in zip(own.tolist(), parts):
        old = sums[a]
        sums[a] = part.copy() if old is None else old + part
