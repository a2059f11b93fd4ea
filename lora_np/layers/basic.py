"""Small layers: embedding, the two normalisations, dropout, GELU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers.base import Layer, Rng
from lora_np.layers.linear import normal
from lora_np.ops import (
    dropout_backward,
    dropout_forward,
    dropout_mask,
    embedding_backward,
    embedding_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from lora_np.ops.embedding import check_tokens
from lora_np.ops.fast import gelu_backward, gelu_forward
from lora_np.parameters import Grads, Parameter


class Embedding(Layer):
    """The row of a table W (V, d) for each token.

    Parameters
    ----------
    vocab_size, d : int
        Shape of the table, V and d.
    rng : numpy.random.Generator
        Draws the weights.
    std : float
        Standard deviation of the entries of W.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Embedding
    >>> layer = Embedding(10, 4, np.random.default_rng(0))
    >>> y, cache = layer.forward(np.array([[7, 7, 0]]))
    >>> y.shape, bool((y[0, 0] == layer.W.value[7]).all())
    ((1, 3, 4), True)
    """

    def __init__(
        self,
        vocab_size: int,
        d: int,
        rng: np.random.Generator,
        *,
        std: float = 0.02,
        dtype: Any = np.float32,
    ) -> None:
        self.W = Parameter(normal(rng, (vocab_size, d), std, dtype))

    @classmethod
    def over(cls, W: Parameter) -> Embedding:
        """Return an embedding that holds this table (V, d)."""
        embedding = cls.__new__(cls)
        embedding.W = W
        return embedding

    @property
    def d_in(self) -> int:
        """The length of a token's one-hot vector, V."""
        return self.W.shape[0]

    @property
    def d_out(self) -> int:
        """The length of an output, d."""
        return self.W.shape[1]

    def forward(self, tokens: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return the rows (..., d) of `tokens` (...)."""
        if self.W.stored_as:  # frozen: decode these rows alone
            check_tokens(tokens, self.d_in)
            return self.W.take(tokens), None
        return embedding_forward(tokens, self.W.value)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add dW; tokens have no gradient."""
        grads.add(self.W, embedding_backward(dy, cache, (self.W.trainable,))[0])


class LayerNorm(Layer):
    """Layer normalisation with gain gamma (d,) and bias beta (d,).

    Parameters
    ----------
    d : int
        Length of a sample.
    eps : float
        Added to the variance.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LayerNorm
    >>> y, cache = LayerNorm(3).forward(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))
    >>> y.round(2).tolist()  # the scale of a sample does not matter
    [[-1.22, 0.0, 1.22], [-1.22, 0.0, 1.22]]
    """

    def __init__(self, d: int, *, eps: float = 1e-5, dtype: Any = np.float32) -> None:
        self.gamma = Parameter(np.ones(d, dtype))
        self.beta = Parameter(np.zeros(d, dtype))
        self.eps = eps

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., d) and the cache."""
        return layernorm_forward(x, self.gamma.value, self.beta.value, self.eps)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dgamma and dbeta; return dx."""
        need = (need_dx, self.gamma.trainable, self.beta.trainable)
        dx, dgamma, dbeta = layernorm_backward(dy, cache, need)
        grads.add(self.gamma, dgamma)
        grads.add(self.beta, dbeta)
        return dx


class RMSNorm(Layer):
    """Division by the root of the mean square, with gain gamma (d,).

    Parameters
    ----------
    d : int
        Length of a sample.
    eps : float
        Added to the mean square.
    dtype : numpy dtype

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import RMSNorm
    >>> y, cache = RMSNorm(2).forward(np.array([[3.0, 4.0], [30.0, 40.0]]))
    >>> y.round(2).tolist()  # the root of the mean square of (3, 4) is 3.54
    [[0.85, 1.13], [0.85, 1.13]]
    """

    def __init__(self, d: int, *, eps: float = 1e-6, dtype: Any = np.float32) -> None:
        self.gamma = Parameter(np.ones(d, dtype))
        self.eps = eps

    @classmethod
    def over(cls, gamma: Parameter, eps: float) -> RMSNorm:
        """Return an RMSNorm that holds this gain (d,)."""
        norm = cls.__new__(cls)
        norm.gamma, norm.eps = gamma, eps
        return norm

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y (..., d) and the cache."""
        return rmsnorm_forward(x, self.gamma.value, self.eps)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Add dgamma; return dx."""
        dx, dgamma = rmsnorm_backward(dy, cache, (need_dx, self.gamma.trainable))
        grads.add(self.gamma, dgamma)
        return dx


class Dropout(Layer):
    """Dropout with probability p if forward gets an rng, else the identity.

    Parameters
    ----------
    p : float
        At least 0 and below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Dropout
    >>> x = np.ones(6)
    >>> y, cache = Dropout(0.5).forward(x)
    >>> y is x  # no rng, no dropout
    True
    >>> y, cache = Dropout(0.5).forward(x, np.random.default_rng(0))
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """

    def __init__(self, p: float) -> None:
        self.p = probability(p)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return x with dropped entries, and the cache (None without dropout)."""
        if rng is None or self.p == 0.0:
            return x, None
        return dropout_forward(x, dropout_mask(x, self.p, rng))

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Return dx."""
        if cache is None:
            return dy if need_dx else None
        return dropout_backward(dy, cache, (need_dx,))[0]


def probability(p: float, name: str = "dropout") -> float:
    """Return p, or raise unless it is at least 0 and below 1."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name} = {p}, expected 0 <= p < 1")
    return p


class Gelu(Layer):
    """GELU in its tanh form.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Gelu
    >>> y, cache = Gelu().forward(np.array([-1.0, 0.0, 1.0]))
    >>> y.round(3).tolist()
    [-0.159, 0.0, 0.841]
    """

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return y, like x, and the cache."""
        return gelu_forward(x)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = True) -> Array | None:
        """Return dx."""
        return gelu_backward(dy, cache, (need_dx,))[0]
