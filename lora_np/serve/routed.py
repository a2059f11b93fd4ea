"""A model whose layers know which adapter each row of the batch uses.

The tree is made when the batch changes. Its layers share the base's Parameters, hold the batch's
adapters and rows, and have no other state: two batches are two trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers import Layer, Linear, Rng
from lora_np.methods.rows import route
from lora_np.ops import Rows
from lora_np.ops.fast import lora_rows_forward
from lora_np.serve.adapters import Loaded


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

    @property
    def d_out(self) -> int:
        """The length of an output."""
        return self.W0.shape[0]

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (n, ..., out), and no cache: there is no backward."""
        b = None if self.b is None else self.b.value
        y, _ = lora_rows_forward(x, self.W0.value, self.pairs, self.rows, b, scale=self.scales)
        return y, None


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
    pairs = [held.pairs() for held in adapters]

    def layer_of(path: str, linear: Linear, here: Sequence[int], rows: Rows) -> Layer:
        scales = np.array([adapters[a].scales[path] for a in here])
        return RowsLinear(linear, [pairs[a][path] for a in here], scales, rows)

    return route(model, pairs, ids, layer_of)
