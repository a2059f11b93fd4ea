"""GPT-2's architecture: a decoder-only transformer.

From tokens to logits::

    x = wte[tokens] + wpe[0 .. T-1]                 token and position embeddings
    x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))    n_layer pre-norm residual blocks
    logits = ln_f(x) wte^T                          the head is tied to the token embedding

All linear layers have biases, the MLP is four times as wide as the model, and GELU has its tanh
form. Weights are drawn from N(0, 0.02^2). Those of o_proj and down_proj are drawn from
N(0, 0.02^2 / (2 n_layer)), because 2 n_layer of their outputs add up in the residual stream.

Here stand the parts. How they make logits and a loss, and how the gradient goes back, is the same
for every language model: models/language.py.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.backend import Array
from lora_np.layers import (
    MLP,
    CausalSelfAttention,
    Chain,
    Composed,
    Dropout,
    Embedding,
    LayerNorm,
    Residual,
    Rng,
)
from lora_np.models.language import LanguageModel
from lora_np.parameters import Grads, Parameter


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.

    Parameters
    ----------
    vocab_size : int
        Number of tokens.
    block_size : int
        Longest sequence.
    n_layer, n_head : int
        Number of blocks, and of heads per block.
    d_model : int
        Width, a multiple of n_head.
    dropout : float
        Probability of dropout on the embeddings and on the outputs of attention and MLP.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, account
    >>> config = GPTConfig(vocab_size=256, block_size=64, n_layer=2, n_head=4, d_model=64)
    >>> account(GPT(config, np.random.default_rng(0))).total
    120576
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    d_model: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}, expected 0 <= dropout < 1")


class Block(Composed):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, config: GPTConfig, rng: np.random.Generator, dtype: Any) -> None:
        d, std_out = config.d_model, 0.02 / math.sqrt(2 * config.n_layer)
        self.ln_1 = LayerNorm(d, dtype=dtype)
        self.attn = CausalSelfAttention(d, config.n_head, rng, std_out=std_out, dtype=dtype)
        self.ln_2 = LayerNorm(d, dtype=dtype)
        self.mlp = MLP(d, 4 * d, rng, std_down=std_out, dtype=dtype)
        self.drop = Dropout(config.dropout)

    def path(self) -> Chain:
        """Return the two residual branches."""
        return Chain(
            Residual(Chain(self.ln_1, self.attn, self.drop)),
            Residual(Chain(self.ln_2, self.mlp, self.drop)),
        )


class GPT(LanguageModel):
    """A GPT-2 model of any size.

    Parameters
    ----------
    config : GPTConfig
    rng : numpy.random.Generator
        Draws the weights.
    dtype : numpy dtype
        float32 to train, float64 to check.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig
    >>> rng = np.random.default_rng(0)
    >>> model = GPT(GPTConfig(vocab_size=256, block_size=8, n_layer=1, n_head=2, d_model=16), rng)
    >>> logits, cache = model.forward(np.array([[1, 2, 3]]))
    >>> logits.shape
    (1, 3, 256)
    >>> model.generate(np.array([1, 2, 3]), 4, temperature=0).shape
    (7,)
    """

    def __init__(
        self, config: GPTConfig, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.d_model, rng, dtype=dtype)
        self.wpe = Embedding(config.block_size, config.d_model, rng, dtype=dtype)
        self.drop = Dropout(config.dropout)
        self.h = [Block(config, rng, dtype) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.d_model, dtype=dtype)

    @property
    def block_size(self) -> int:
        """The longest sequence."""
        return self.config.block_size

    def embeddings(self) -> list[Parameter]:
        """Return the Parameters of the token and position embeddings."""
        return [*self.wte.parameters().values(), *self.wpe.parameters().values()]

    def table(self) -> Embedding:
        """Return the token embedding."""
        return self.wte

    def place(self, x: Array, positions: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return x + wpe[positions] with dropout.

        Shapes: x (..., T, d), positions (T,), or (B, T) if each row has its own.
        """
        position, c_wpe = self.wpe.forward(positions)  # (T, d) or (B, T, d)
        y, c_drop = self.drop.forward(x + position, rng)
        return y, (c_wpe, c_drop)

    def place_backward(self, dy: Array, cache: Any, grads: Grads) -> Array:
        """Add dwpe, for each position a sum over the batch; return dx (..., T, d)."""
        c_wpe, c_drop = cache
        d: Any = self.drop.backward(dy, c_drop, grads)  # (..., T, d)
        if self.wpe.trainable:
            over_batch = d.reshape(-1, *d.shape[-2:]).sum(axis=0)  # (T, d)
            self.wpe.backward(over_batch, c_wpe, grads)
        return d

    def body(self) -> Chain:
        """Return the blocks and the last LayerNorm."""
        return Chain(*self.h, self.ln_f)

    def head(self) -> Parameter:
        """Return the token embedding, to which the head is tied."""
        return self.wte.W
