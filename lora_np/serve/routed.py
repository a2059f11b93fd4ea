"""A model whose layers know which adapter each row of the batch uses.

The tree is made when the batch changes. Its layers share the base's Parameters and hold the batch's
adapters and rows: two batches are two trees.

A layer multiplies the rows of each adapter where its A and B lie (ops/fast/many.py): two products
for each adapter. Where an adapter has few rows, most of their time is NumPy's cost of calling a
product. So in a batch that stays for a second step, the layer copies the A and B of every row side
by side, as ops/many.py does, and keeps the copies: two products then do all rows of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Layer, Linear, Rng, rebuild
from lora_np.ops import Rows
from lora_np.ops.fast import linear_forward, lora_rows_forward
from lora_np.ops.many import by_row
from lora_np.serve.adapters import Loaded

FEW = 8  # rows an adapter, on average; with more, the products where A and B lie are faster


class RowsLinear(Layer):
    """y = x W0^T + b + s_i x A_i^T B_i^T, with the adapter i of each row; for no gradient.

    Parameters
    ----------
    linear : Linear
    pairs : sequence of (A, B)
    scales : numpy.ndarray
        One for each adapter.
    rows : Rows
        Which of them each row uses.
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
        self._steps = 0
        self._copies: list[tuple[Any, Array, Array]] = []  # of each rank: rows, A, s B

    @property
    def d_out(self) -> int:
        """The length of an output."""
        return self.W0.shape[0]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (n, ..., out), and no cache: there is no backward."""
        b = None if self.b is None else self.b.value
        self._steps += 1
        if self._steps == 1 or len(self.rows.sorted) > FEW * len(self.rows.segments):
            y, _ = lora_rows_forward(x, self.W0.value, self.pairs, self.rows, b, scale=self.scales)
            return y, None
        if self._steps == 2:
            self._copies = list(self._copied())
        y, _ = linear_forward(x, self.W0.value, b)  # (n, ..., out)
        xs, ys = by_row(x), by_row(y)  # (n, m, in), (n, m, out)
        for here, A, B in self._copies:
            ys[here] += (B @ (A @ xs[here].swapaxes(1, 2))).swapaxes(1, 2)  # (k, m, out)
        return y, None

    def _copied(self) -> Iterator[tuple[Any, Array, Array]]:
        """Yield for each rank its k rows, their A (k, r, in), and s B (k, out, r)."""
        ranks = np.array([len(A) for A, _ in self.pairs])[self.rows.sorted]
        places = np.arange(len(self.rows))[self.rows.here]
        for r in np.unique(ranks):
            own, here = self.rows.sorted[ranks == r], places[ranks == r]  # (k,)
            A, B = (np.stack([self.pairs[i][half] for i in own.tolist()]) for half in (0, 1))
            B *= self.scales[own].astype(B.dtype)[:, None, None]
            yield slice(None) if np.array_equal(here, np.arange(len(self.rows))) else here, A, B


def routed(model: Any, adapters: Sequence[Loaded], ids: Sequence[int]) -> Any:
    """Return the model for a batch whose row i uses ``adapters[ids[i]]``, or none at -1.

    Parameters
    ----------
    model : LanguageModel
        A plain model; its Parameters are shared.
    adapters : sequence of Loaded
    ids : sequence of int
    """
    if not adapters:
        return model
    owners = [(held.pairs(), held.scales) for held in adapters]
    adapted = {path for pairs, _ in owners for path in pairs}
    numbers, rows_of = np.asarray(ids), {}

    def replace(path: str, layer: Layer) -> Layer | None:
        if path not in adapted or not isinstance(layer, Linear):
            return None
        own = tuple(i for i, (pairs, _) in enumerate(owners) if path in pairs)
        if own not in rows_of:  # most often all of them: once for the whole model
            new = np.full(len(owners) + 1, -1)  # the last place is that of -1
            new[list(own)] = np.arange(len(own))
            rows_of[own] = Rows(new[numbers], len(own))
        pairs = [owners[i][0][path] for i in own]
        scales = np.array([owners[i][1][path] for i in own])
        return RowsLinear(layer, pairs, scales, rows_of[own])

    return rebuild(model, lambda p: p, replace)
