"""Where the keys and values of running requests lie: in leases of the pool.

A page holds one token's keys and values in all layers. A request for a prompt of p tokens and n new
ones takes at least p + n pages, all at once when it starts, so it can never run out of memory
later. Inside a lease the numbers of a layer lie together::

    lease     (layers, 2, heads, tokens, d_head)       2: keys, values
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lora_np.layers.memory import KeyMemory
from lora_np.models.language import LanguageModel
from lora_np.serve.pool import Lease, Pool


class KeyLayout(NamedTuple):
    """The sizes of a model's keys.

    Attributes
    ----------
    layers, heads, d_head : int
        Attention layers, heads of keys in each, and their width.
    memory : nested list
        The shape of the body's memory: an attention layer's number in place of its keys, and None
        for layers that remember nothing.
    dtype : numpy dtype
    """

    layers: int
    heads: int
    d_head: int
    memory: Any
    dtype: Any

    @property
    def page(self) -> int:
        """How many numbers the keys and values of one token have, in all layers."""
        return self.layers * 2 * self.heads * self.d_head


def key_layout(model: LanguageModel) -> KeyLayout:
    """Return the sizes of a model's keys, from its memory of one token.

    Raises
    ------
    ValueError
        If a layer remembers something else than keys, keys differ in shape between layers, or the
        model puts rows of its own before the text.
    """
    if model.start.length or model.start.rows:
        raise ValueError("the model has rows before the text: serve its base")
    found: list[KeyMemory] = []

    def numbered(memory: Any) -> Any:
        if isinstance(memory, list):
            return [numbered(part) for part in memory]
        if memory is None:
            return None
        if not isinstance(memory, KeyMemory):
            raise ValueError(f"a layer remembers a {type(memory).__name__}: only keys are paged")
        found.append(memory)
        return len(found) - 1

    _, memory = model.read(np.zeros((1, 1), np.int64))
    layers = numbered(memory.body)
    shapes = {part.keys(0).shape for part in found}
    if len(shapes) != 1:
        raise ValueError(f"the attention layers have keys of {len(shapes)} shapes, expected one")
    _, heads, _, d_head = shapes.pop()
    return KeyLayout(len(found), heads, d_head, layers, found[0].keys(0).dtype)


class KeyRoom:
    """A request's lease, seen as keys and values.

    Parameters
    ----------
    pool : Pool
    lease : Lease
        One page for each token.
    layout : KeyLayout
    """

    def __init__(self, pool: Pool, lease: Lease, layout: KeyLayout) -> None:
        self.pool, self.lease, self.layout = pool, lease, layout
        self._moves, self._views = -1, np.empty(0)
        lease.numbers[:] = 0.0  # a nan that was left here would spread: 0 * nan is nan

    def views(self) -> np.ndarray:
        """Return the room as an array (layers, 2, heads, tokens, d_head)."""
        if self._moves != self.pool.moves:
            c = self.layout
            self._views = self.lease.numbers.reshape(c.layers, 2, c.heads, -1, c.d_head)
            self._moves = self.pool.moves
        return self._views

    @property
    def row(self) -> int:
        """Where the keys of layer 0 begin, in the pool as rows of d_head."""
        return self.lease.start * self.layout.layers * 2 * self.layout.heads
