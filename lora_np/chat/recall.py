"""What a model remembers of a conversation, so that only new tokens are computed.

A conversation grows at its end: the keys and values of its first tokens stay valid. If the tokens
changed further up (a turn was dropped), the longest common beginning is kept::

    known   a b c d e f
    asked   a b c x y         c and what precedes it are kept; x and y are computed
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_np.backend import to_host
from lora_np.layers.memory import shortened
from lora_np.models.language import LanguageModel, TextMemory

AT_ONCE = 256  # tokens computed in one pass: bounds the memory that a long text takes


class Recall:
    """The tokens that a model has read, and its memory of them.

    Parameters
    ----------
    model : LanguageModel

    Attributes
    ----------
    tokens : list of int
        What the memory holds.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.chat import Recall
    >>> config = LlamaConfig(9, 8, n_layer=1, n_head=1, n_kv_head=1, d_model=4, d_hidden=6)
    >>> recall = Recall(Llama(config, np.random.default_rng(0)))
    >>> recall.logits([1, 2, 3]).shape, recall.tokens
    ((1, 9), [1, 2, 3])
    >>> recall.kept([1, 2, 5, 6])  # of these tokens, 1 and 2 need not be computed
    2
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.tokens: list[int] = []
        self._memory: TextMemory | None = None

    def kept(self, tokens: Sequence[int]) -> int:
        """Return how many of the first tokens are remembered; never all, for the last has logits.

        Parameters
        ----------
        tokens : sequence of int
            At least one.
        """
        pairs = zip(self.tokens, tokens[:-1])
        same = min(len(self.tokens), len(tokens) - 1)
        return next((i for i, (known, new) in enumerate(pairs) if known != new), same)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the logits (1, V) of what follows `tokens`, and remember them.

        An interrupt leaves the memory as it was after the last pass.
        """
        first = self.kept(tokens)
        self._cut(first)
        logits: np.ndarray = np.empty(0)
        for start in range(first, len(tokens), AT_ONCE):
            new = list(tokens[start : start + AT_ONCE])
            out, self._memory = self.model.advance(np.array([new], np.int64), self._memory)
            self.tokens = self.tokens + new
            logits = to_host(out)
        return logits

    def _cut(self, n: int) -> None:
        """Forget all but the first `n` tokens."""
        if n < len(self.tokens):
            used = (self.model.start.length + n,)
            body = None if self._memory is None else self._memory.body
            self._memory = TextMemory(used, shortened(body, used)) if n else None
            self.tokens = self.tokens[:n]
