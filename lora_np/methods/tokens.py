"""Trainable tokens: a few rows of an embedding's table are trained, and replace those of the table.

Shapes: tokens t (...) integers, W (V, d) frozen, k trained rows R (k, d) for the tokens of
`indices`, y (..., d). E (V, k) is the one-hot matrix that puts row j of R at its token::

    W' = (I - E E^T) W + E R           W with R in the rows of `indices`;  y = W'[t]
    dR = E^T dW'                       row j: the sum of dy over the positions of its token
    dW = (I - E E^T) dW'               zero in these rows; not formed if W is frozen

A head that is tied to the table computes with W' too, so dR is a sum of two: that of the lookup,
and the rows of the head's dW' (:class:`ReplacedRows`). So new tokens, such as the marks of a
dialogue, are learned with k d numbers, and all other rows stay exactly as they are.

Source: the method TRAINABLE_TOKENS of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lora_np.backend import Array, like, to_host
from lora_np.layers import Embedding, Layer, Rng
from lora_np.methods.contract import Adapter, Fields, FileForm, Places, Tensors, head_of
from lora_np.methods.peft import PeftMethod
from lora_np.ops import embedding_backward, embedding_forward
from lora_np.ops.contract import Need, wanted
from lora_np.ops.embedding import EmbeddingCache
from lora_np.parameters import Grads, Parameter
from lora_np.reading import shown

HEAD = "lm_head.trainable_tokens_delta"


class TokensCache(NamedTuple):
    """What :func:`tokens_backward` reads."""

    table: Any
    replaced: Array  # (...), whether the token's row is one of R
    place: Array  # (n,), which one, for those that are
    k: int


def tokens_forward(
    tokens: Array, W: Array, R: Array, *, indices: Sequence[int]
) -> tuple[Array, TokensCache]:
    """Look up `tokens` (...) in W (V, d) with the rows of `indices` replaced by R (k, d)."""
    y, c_table = embedding_forward(tokens, W)  # (..., d)
    match = tokens[..., None] == like(np.asarray(indices), tokens)  # (..., k)
    replaced = match.any(axis=-1)  # (...)
    place = (match * like(np.arange(len(R)), match)).sum(axis=-1)[replaced]  # (n,)
    y = y.astype((W[:0] + R[:0]).dtype)
    y[replaced] = R[place]
    return y, TokensCache(c_table, replaced, place, len(R))


def tokens_backward(
    dy: Array, cache: TokensCache, need: Need = None
) -> tuple[Array | None, Array | None]:
    """Return (dW, dR) of :func:`tokens_forward`."""
    need_W, need_R = wanted(need, 2)
    dW = dR = None
    if need_W:
        others = dy.copy()
        others[cache.replaced] = 0.0
        (dW,) = embedding_backward(others, cache.table)
    if need_R:
        found = EmbeddingCache(cache.place, (cache.k, dy.shape[-1]))
        (dR,) = embedding_backward(dy[cache.replaced], found)
    return dW, dR


class ReplacedRows(Parameter):
    """The table W' (V, d) as a tied head sees it, made at each use; W and R get its gradient."""

    def __init__(self, layer: TokensEmbedding) -> None:
        self.layer, self.borrowed = layer, False
        self.trainable = layer.rows.trainable or layer.base.W.trainable

    @property
    def value(self) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        """W with the trained rows."""
        return self.layer.table()

    @property
    def shape(self) -> tuple[int, ...]:
        """The table's shape."""
        return self.layer.base.W.shape

    def spread(self, gradient: Array) -> Iterator[tuple[Parameter, Array]]:
        """Yield the gradients of R and of W."""
        at = like(np.asarray(self.layer.indices), gradient)
        if self.layer.rows.trainable:
            yield self.layer.rows, gradient[at]
        if self.layer.base.W.trainable:
            dW = gradient.copy()
            dW[at] = 0.0
            yield self.layer.base.W, dW


class TokensEmbedding(Adapter):
    """An embedding whose rows of the tokens `indices` are replaced by `rows` (k, d)."""

    def __init__(self, base: Embedding, rows: Parameter, indices: Sequence[int]) -> None:
        self.base, self.rows, self.indices = base, rows, tuple(indices)

    @property
    def W(self) -> Parameter:
        """The table with the trained rows, to which a head may be tied."""
        return ReplacedRows(self)

    def table(self) -> Array:
        """Return W' (V, d)."""
        W, R = self.base.W.value, self.rows.value
        table = W.astype((W[:0] + R[:0]).dtype)  # a copy
        table[like(np.asarray(self.indices), W)] = R
        return table

    def forward(self, tokens: Array, rng: Rng = None) -> tuple[Array, TokensCache]:
        """Return the rows (..., d) of `tokens` (...), and the cache."""
        return tokens_forward(tokens, self.base.W.value, self.rows.value, indices=self.indices)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add dR, and dW if the table is trained; tokens have no gradient."""
        held = (self.base.W, self.rows)
        grads.add_all(held, tokens_backward(dy, cache, [p.trainable for p in held]))

    def merged(self) -> Embedding:
        """Return the plain embedding with the table W'."""
        return Embedding.over(Parameter(self.table()))

    def tensors(self) -> dict[str, Parameter]:
        """Return R by PEFT's name, which holds rows and no difference."""
        return {"trainable_tokens_delta": self.rows}


@dataclass(frozen=True)
class TokensConfig(PeftMethod):
    """Which tokens are trained (`token_indices`), and in which embeddings."""

    token_indices: Sequence[int] = ()
    target_modules: Sequence[str] | str = ("wte",)

    name = "tokens"
    kinds = (Embedding,)
    peft_type: ClassVar[str] = "TRAINABLE_TOKENS"

    def __post_init__(self) -> None:
        indices = list(self.token_indices)
        if not 0 < len(indices) == len(set(indices)):
            raise ValueError(f"token_indices = {shown(indices)}, expected each token to train once")

    def wrap(self, path: str, layer: Embedding, rng: np.random.Generator) -> TokensEmbedding:
        """Return the embedding with rows of its own for these tokens, equal to the table's."""
        W, indices = layer.W.value, [int(i) for i in self.token_indices]
        if not 0 <= min(indices) <= max(indices) < layer.d_in:
            raise ValueError(
                f"token_indices {min(indices)} .. {max(indices)} for {path or 'the layer'}, "
                f"expected 0 .. {layer.d_in - 1}: its table has {layer.d_in} rows"
            )
        return TokensEmbedding(layer, Parameter(W[like(np.asarray(indices), W)]), indices)

    def to_peft(self, adapted: Layer, places: Places) -> FileForm:
        """Return PEFT's fields and tensors, those of a tied head a second time, as PEFT does."""
        fields, tensors = super().to_peft(adapted, places)
        if isinstance(head := head_of(adapted), ReplacedRows):
            tensors[HEAD] = to_host(head.layer.rows.value)
        return fields, tensors

    @classmethod
    def of_peft(cls, saved: Fields, tensors: Tensors, base: Layer, places: Places) -> Any:
        """Return `base` with the rows of a PEFT file."""
        own = {name: x for name, x in tensors.items() if name != HEAD}
        if HEAD in tensors and not any(np.array_equal(tensors[HEAD], x) for x in own.values()):
            raise ValueError(f"the file holds {HEAD!r}, rows of a head that is not tied")
        return super().of_peft(saved, own, base, places)
