"""LoRA on an embedding: y = W[t] + s (A^T)[t] B^T, with the table W frozen.

Shapes: tokens t (...) integers, W (V, d), A (r, V), B (d, r), u (..., r), y (..., d). With the
one-hot rows H (N, V) of the tokens this is LoRA's equation: H is x, and W^T is W0. H is never
formed: u = H A^T is a lookup in A^T, and du^T H adds up the rows of du that belong to one token::

    u  = (A^T)[t]                      (..., r)
    y  = W[t] + s u B^T                (..., d)
    du = s dy B                        (N, r)
    dB = s dy^T u                      (d, r)
    dA = du^T H                        (r, V)    column v: the sum of du over the positions of v
    dW = H^T dy                        (V, d)    not formed if W is frozen

A starts at zero and B at random, not the other way round as on a linear layer: so a token that
training never sees keeps its row of W. A head that is tied to the table keeps W, as in PEFT: such a
model does not merge, because one table cannot serve both.

Source: microsoft/LoRA (loralib's Embedding), and PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from lora_np.backend import Array, to_host
from lora_np.layers import Embedding, Flops, Rng
from lora_np.methods.contract import Adapter
from lora_np.methods.stacked import FACTOR_NAMES, Factors
from lora_np.methods.start import EMBEDDING_STARTS
from lora_np.ops import embedding_backward, embedding_forward
from lora_np.ops.contract import Need, wanted
from lora_np.ops.linear import rows
from lora_np.parameters import Grads, Parameter


class LoRAEmbeddingCache(NamedTuple):
    """What :func:`lora_embedding_backward` reads."""

    table: Any
    lookup: Any
    u: Array  # (..., r)
    B: Array  # (d, r)
    scale: float


def lora_embedding_forward(
    tokens: Array, W: Array, A: Array, B: Array, *, scale: float
) -> tuple[Array, LoRAEmbeddingCache]:
    """Compute y = W[tokens] + scale (A^T)[tokens] B^T.

    Parameters
    ----------
    tokens : integer array, shape (...)
    W : array, shape (V, d)
    A, B : arrays, shapes (r, V) and (d, r)
    scale : float

    Returns
    -------
    y : array, shape (..., d)
    cache : LoRAEmbeddingCache
    """
    y, c_table = embedding_forward(tokens, W)  # (..., d)
    u, c_lookup = embedding_forward(tokens, A.T)  # (..., r)
    return y + scale * (u @ B.T), LoRAEmbeddingCache(c_table, c_lookup, u, B, scale)


def lora_embedding_backward(
    dy: Array, cache: LoRAEmbeddingCache, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dW, dA, dB) of :func:`lora_embedding_forward`."""
    need_W, need_A, need_B = wanted(need, 3)
    (dW,) = embedding_backward(dy, cache.table, (need_W,))
    dA = dB = None
    if need_A:
        du = cache.scale * (dy @ cache.B)  # (..., r)
        (dAT,) = embedding_backward(du, cache.lookup)  # (V, r)
        dA = None if dAT is None else dAT.T
    if need_B:
        dB = cache.scale * (rows(dy).T @ rows(cache.u))  # (d, r)
    return dW, dA, dB


class LoRAEmbedding(Adapter):
    """y = W[t] + scale (A^T)[t] B^T over an embedding.

    Parameters
    ----------
    base : Embedding
    A, B : Parameter
        Shapes (r, V) and (d, r).
    scale : float
    dropout : float
        Kept for files only: as in PEFT, nothing is dropped before a lookup.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Embedding, Parameter
    >>> from lora_np.methods import LoRAEmbedding
    >>> table = Embedding(3, 2, np.random.default_rng(0), dtype=np.float64)
    >>> A, B = np.array([[0.0, 5.0, 7.0]]), np.array([[1.0], [2.0]])
    >>> lora, t = LoRAEmbedding(table, Parameter(A), Parameter(B), scale=1.0), np.array([2, 0])
    >>> (lora.forward(t)[0] - table.forward(t)[0]).round(12).tolist()  # A's column of the token
    [[7.0, 14.0], [0.0, 0.0]]
    """

    file_names: ClassVar[Mapping[str, str]] = FACTOR_NAMES[Embedding]
    starts: ClassVar = EMBEDDING_STARTS

    def __init__(
        self, base: Embedding, A: Parameter, B: Parameter, scale: float, dropout: float = 0.0
    ) -> None:
        if not A.trainable and not A.value.any():
            raise ValueError("A starts at zero on an embedding: frozen by LoRA-FA, it never trains")
        self.base, self.A, self.B = base, A, B
        self.scale, self.dropout = float(scale), dropout

    @property
    def W(self) -> Parameter:
        """The table without the adapter, to which a head may be tied."""
        return self.base.W

    def forward(self, tokens: Array, rng: Rng = None) -> tuple[Array, LoRAEmbeddingCache]:
        """Return the rows (..., d) of `tokens` (...), and the cache."""
        W, A, B = self.base.W.value, self.A.value, self.B.value
        return lora_embedding_forward(tokens, W, A, B, scale=self.scale)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add dA and dB, and dW if the table is trained; tokens have no gradient."""
        held = (self.base.W, self.A, self.B)
        grads.add_all(held, lora_embedding_backward(dy, cache, [p.trainable for p in held]))

    def delta(self) -> Array:
        """Return scale (B A)^T (V, d)."""
        return self.scale * (self.B.value @ self.A.value).T

    def merged(self) -> Embedding:
        """Return the plain embedding with the table W + scale (B A)^T."""
        return Embedding.over(Parameter(self.base.W.value + self.delta()))

    def tensors(self) -> dict[str, Parameter]:
        """Return A and B by PEFT's names."""
        return {self.file_names[name]: getattr(self, name) for name in "AB"}

    def factors(self) -> Factors:
        """Return B (d, r), A (r, V) and the scale, on the host, as in PEFT's files."""
        return to_host(self.B.value), to_host(self.A.value), self.scale

    def flops(self, T: int, need_dx: bool = False) -> Flops:
        """Return the cost of u B^T, then of du and dB."""
        product = 2 * self.B.size
        return Flops(product, product * (self.A.trainable + self.B.trainable))
