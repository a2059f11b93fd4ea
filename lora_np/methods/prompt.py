"""Prompt tuning: n trainable rows P stand before the embedded text; nothing else is trained.

With E the rows of the text's tokens, from the embedding's table::

    x = [P; E]                (..., n + T, d)      P (n, d), E (..., T, d)
    y = f(x)[n:]              (..., T, V)          f: positions, body and head of the base

The text's positions start at n, because the rows use the positions 0 to n - 1. The outputs at the
rows are cut off, so no gradient enters there: P gets its gradient through the text's positions,
which attend to the rows. All texts of a batch have the same P, so its gradients add up::

    dP = sum over the batch of dx[:n]          dE = dx[n:]

It does not merge: no weight of the base adds a row to its input. It does not start at the base,
because attention sees the rows from the first step on. P starts at N(0, 1), as PEFT's RANDOM, or at
the table's rows of given tokens, as PEFT's TEXT.

Source: Lester, Al-Rfou and Constant (2021), arXiv:2104.08691, section 2. Names follow PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.backend import Array, like
from lora_np.layers import Layer, Rng, TextStart, rebuild
from lora_np.methods.virtual import (
    VirtualAdapter,
    VirtualTokens,
    prepend_backward,
    prepend_forward,
)
from lora_np.parameters import Grads, Parameter


class PromptRows(TextStart, VirtualAdapter):
    """The start of a text with the trainable rows P (n, d); `base` is the start without them."""

    def __init__(self, base: TextStart, P: Parameter) -> None:
        super().__init__(base.first)
        self.base, self.P = base, P

    @property
    def rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows."""
        return len(self.P.value)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return [P; x] (..., n + T, d) and the cache."""
        return prepend_forward(x, self.P.value)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dP; return dx (..., T, d)."""
        dx, dP = prepend_backward(dy, cache, (need_dx, self.P.trainable))
        grads.add(self.P, dP)
        return dx

    def virtual_tokens(self) -> tuple[Array, Any]:
        """Return P."""
        return self.P.value, None


@dataclass(frozen=True)
class PromptConfig(VirtualTokens):
    """The options of prompt tuning.

    Parameters
    ----------
    num_virtual_tokens : int
        n, the number of rows. A text may be n tokens shorter than the base's block_size.
    init_tokens : sequence of int, optional
        Start at the table's rows of these tokens, repeated or cut to n. By default N(0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, PromptConfig, inject
    >>> rng = np.random.default_rng(0)
    >>> base = GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=2, d_model=4), rng)
    >>> adapted = inject(base, PromptConfig(num_virtual_tokens=5), rng)
    >>> {name: p.shape for name, p in adapted.parameters().items() if p.trainable}
    {'start.P': (5, 4)}
    >>> adapted.forward(np.array([[1, 2, 3]]))[0].shape
    (1, 3, 9)
    """

    num_virtual_tokens: int = 20
    init_tokens: Sequence[int] | None = None

    name = "prompt"
    peft_type = "PROMPT_TUNING"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_tokens is not None:
            if not self.init_tokens:
                raise ValueError("init_tokens is empty: name at least one token, or None to draw")
            object.__setattr__(self, "init_tokens", tuple(self.init_tokens))  # a list from a file

    def wrap(self, path: str, layer: Any, rng: np.random.Generator) -> Layer:
        """Return the model with rows before its texts."""
        table, n = layer.table().W.value, self.num_virtual_tokens  # (V, d)
        if self.init_tokens is None:
            P = like(rng.standard_normal((n, table.shape[1])).astype(table.dtype), table)
        elif not 0 <= min(self.init_tokens) <= max(self.init_tokens) < len(table):
            found, last = f"{min(self.init_tokens)} .. {max(self.init_tokens)}", len(table) - 1
            raise ValueError(f"init_tokens {found}, expected 0 .. {last}: the vocabulary")
        else:
            P = layer.table().forward(like(np.resize(self.init_tokens, n), table))[0].copy()
        start = self.start_of(layer)
        rows = PromptRows(start, Parameter(P))
        return rebuild(layer, lambda p: p, lambda _, part: rows if part is start else None)
