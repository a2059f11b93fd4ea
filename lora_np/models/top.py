"""The trained top of a language model: the frozen layers below compute each text only once.

If nothing below layer k is trained, and nothing there draws at random, then what enters layer k is
the same in every epoch::

    h = layers 0 .. k - 1 of the embedded text       (..., T, d)       once for each text
    L = loss of layers k .. on h                                       at every step

A step then costs the share of the layers from k on, at the price of T d numbers kept for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_np.backend import Array
from lora_np.layers import Chain, Flops, Layer, Rng
from lora_np.models.head import head_loss, head_loss_backward
from lora_np.models.language import LanguageModel
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.parameters import Grads


class TopLayers(Layer):
    """A model whose input is what enters the lowest trained layer of a language model.

    It trains the language model's own Parameters, under their names.

    Parameters
    ----------
    model : LanguageModel
        Its embeddings are frozen, and nothing stands before its text.

    Attributes
    ----------
    first : int
        How many of the body's layers lie below.

    Raises
    ------
    ValueError
        If the embeddings are trained, or something stands before the text (prompt and prefix
        tuning).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig, LoraConfig, inject
    >>> from lora_np.models.top import TopLayers
    >>> rng, tokens = np.random.default_rng(0), np.array([[1, 2, 3]])
    >>> base = Llama(LlamaConfig(9, 8, 3, 2, 1, d_model=4, d_hidden=6), rng)
    >>> top = TopLayers(inject(base, LoraConfig(r=2, layers_to_transform=[2]), rng))
    >>> top.first, top.hidden(tokens).shape
    (2, (1, 3, 4))
    >>> loss = top.loss(top.hidden(tokens), tokens)[0]
    >>> bool(abs(loss - base.loss(tokens, tokens)[0]) < 1e-6)
    True
    """

    def __init__(self, model: LanguageModel) -> None:
        if (
            model.start.trainable
            or model.start.length
            or any(p.trainable for p in model.embeddings())
        ):
            raise ValueError(
                "the embeddings are trained, or something stands before the text: no frozen bottom"
            )
        layers = model.body().layers
        self.model = model
        self.first = next((i for i, part in enumerate(layers) if part.trainable), len(layers))

    def parts(self) -> Any:
        """Yield the model's parts: its Parameters keep their names."""
        return self.model.parts()

    @property
    def method(self) -> Any:
        """The method with which the model was adapted, or None."""
        return getattr(self.model, "method", None)

    def hidden(self, tokens: Array, positions: Array | None = None) -> Array:
        """Return what enters the lowest trained layer, (B, T, d), at tokens (B, T)."""
        x, _ = self.model.embed(tokens, positions=positions)
        below = Chain(*self.model.layers_for(positions).layers[: self.first])
        return below.forward(x, need_dx=False)[0]

    def loss(
        self,
        hidden: Array,
        targets: Array,
        positions: Array | None = None,
        rng: Rng = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        count: int | None = None,
    ) -> tuple[Array, Any]:
        """Return the loss and the cache; hidden (B, T, d), the rest as for the model's own loss."""
        above = self._above(positions)
        y, c_body = above.forward(hidden, rng, need_dx=False)
        loss, c_loss = head_loss(
            self.model.head(), y, targets, ignore_index, count, above.trainable
        )
        return loss, (positions, c_body, c_loss)

    def number(self, batch: Sequence[Array]) -> int:
        """Return the number of targets in a batch."""
        return self.model.number(batch)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add the gradients of the trained layers."""
        positions, c_body, c_loss = cache
        above = self._above(positions)
        dx = head_loss_backward(self.model.head(), dy, c_loss, grads, above.trainable)
        if dx is not None:
            above.backward(dx, c_body, grads, need_dx=False)

    def flops(self, T: int, need_dx: bool = False) -> Flops:
        """Return the cost of the layers above, and of the head, for one token."""
        whole = self.model.flops(T)
        below = Chain(*self.model.body().layers[: self.first]).flops(T, need_dx=False)
        return Flops(whole.forward - below.forward, whole.backward - below.backward)

    def _above(self, positions: Array | None) -> Chain:
        return Chain(*self.model.layers_for(positions).layers[self.first :])


def has_frozen_bottom(model: Any) -> bool:
    """Whether :class:`TopLayers` takes this model and leaves at least one layer below."""
    if not isinstance(model, LanguageModel):
        return False
    try:
        return TopLayers(model).first > 0
    except ValueError:
        return False
