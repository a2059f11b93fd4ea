"""A model whose layers know which adapter each row of the batch uses.

The tree is made when the batch changes. Its layers share the base's Parameters, hold the batch's
adapters and rows, and have no other state: two batches are two trees.

There are two kinds of layers. :class:`RowsLinear` multiplies the rows of each adapter where its A
and B lie (ops/fast/many.py): two products for each adapter. If adapters have few rows each, most of
the time goes into calling these products. So for a batch that stays, :class:`CopiedRows` keeps a
copy of A and B for each row, side by side, such as ops/many.py makes at each call. Two products
then serve all rows of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Layer, Linear, Rng
from lora_np.methods.rows import route
from lora_np.ops import Rows
from lora_np.ops.fast import linear_forward, lora_rows_forward
from lora_np.ops.many import by_row
from lora_np.serve.adapters import Loaded

FEW = 4  # rows an adapter, on average; with more, the products where A and B lie are faster
COPIED = 2**24  # numbers that are copied at most: 64 MB in float32


class RowsLinear(Layer):
    """y = x W0^T + b + s_i x A_i^T B_i^T, with the adapter i of each row; for no gradient.

    Parameters
    ----------
    linear : Linear
    pairs : sequence of (A, B)
    scales : numpy.ndarray
        One for each adapter.
    rows : Rows
        The adapter of each row of x (n, ..., in).
    """

    def __init__(
        self,
        linear: Linear,
        pairs: Sequence[tuple[Array, Array]],
        scales: np.ndarray,
        rows: Rows,
    ) -> None:
        self.W0, self.b = linear.W, linear.b
        self.pairs, self.scales, self.rows = pairs, scales, rows

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (n, ..., out), and no cache: there is no backward."""
        b = None if self.b is None else self.b.value
        y, _ = lora_rows_forward(x, self.W0.value, self.pairs, self.rows, b, scale=self.scales)
        return y, None


class CopiedRows(RowsLinear):
    """RowsLinear with copies of A and s B for every row, made once for all calls of forward."""

    def __init__(
        self,
        linear: Linear,
        pairs: Sequence[tuple[Array, Array]],
        scales: np.ndarray,
        rows: Rows,
    ) -> None:
        super().__init__(linear, pairs, scales, rows)
        ranks = np.array([len(A) for A, _ in pairs])[rows.sorted]
        places = np.arange(len(rows))[rows.here]
        self.copies = []  # of each rank: its k rows, their A (k, r, in) and s B (k, out, r)
        for r in np.unique(ranks):
            own, here = rows.sorted[ranks == r], places[ranks == r]  # (k,)
            A, B = (np.stack([pairs[i][half] for i in own.tolist()]) for half in (0, 1))
            B *= scales[own].astype(B.dtype)[:, None, None]
            every = np.array_equal(here, np.arange(len(rows)))
            self.copies.append((slice(None) if every else here, A, B))

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (n, ..., out), and no cache: there is no backward."""
        y, _ = linear_forward(x, self.W0.value, None if self.b is None else self.b.value)
        xs, ys = by_row(x), by_row(y)  # (n, m, in), (n, m, out)
        for here, A, B in self.copies:
            ys[here] += (B @ (A @ xs[here].swapaxes(1, 2))).swapaxes(1, 2)  # (k, m, out)
        return y, None


def routed(model: Any, adapters: Sequence[Loaded], ids: Sequence[int], stays: bool = False) -> Any:
    """Return the model for a batch whose row i uses ``adapters[ids[i]]``, or none at -1.

    Parameters
    ----------
    model : LanguageModel
        A plain model; its Parameters are shared.
    adapters : sequence of Loaded
    ids : sequence of int
    stays : bool
        Whether the model is used for many steps. Then copies pay, unless they are large.
    """
    if not adapters:
        return model
    stays = stays and sum(adapters[i].size for i in ids if i >= 0) <= COPIED
    pairs = [held.pairs() for held in adapters]

    def layer_of(path: str, linear: Linear, here: Sequence[int], rows: Rows) -> Layer:
        scales = np.array([adapters[a].scales[path] for a in here])
        few = 0 < len(rows.sorted) <= FEW * len(rows.segments)
        kind = CopiedRows if stays and few else RowsLinear
        return kind(linear, [pairs[a][path] for a in here], scales, rows)

    return route(model, pairs, ids, layer_of)
