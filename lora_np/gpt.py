"""GPT-2's architecture: a decoder-only transformer, with its loss and its generation.

From tokens to logits::

    x = wte[tokens] + wpe[0 .. T-1]                 token and position embeddings
    x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))    n_layer times: pre-norm residual blocks
    logits = ln_f(x) wte^T                          the head is tied to the token embedding

All linear layers have biases, the MLP is four times as wide as the model, and GELU is in its tanh
form. Weights are drawn from N(0, 0.02^2), those that write to the residual stream (o_proj,
down_proj) from N(0, 0.02^2 / (2 n_layer)), since 2 n_layer of them add up.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, like, to_host
from lora_np.layers import (
    MLP,
    CausalSelfAttention,
    Chain,
    Composed,
    Dropout,
    Embedding,
    Flops,
    Layer,
    LayerNorm,
    Residual,
    Rng,
    lean,
    product_flops,
)
from lora_np.ops import (
    cross_entropy_backward,
    cross_entropy_forward,
    linear_backward,
    linear_forward,
)
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.parameters import Grads


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
        Blocks, and heads a block.
    d_model : int
        Width, a multiple of n_head.
    dropout : float
        Probability on the embeddings and on what each block adds.

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

    def extend(self, x: Array, past: Any) -> tuple[Array, Any]:
        """Return y for the newest positions, and the attention's KV cache."""
        added, past = self.attn.extend(self.ln_1.forward(x)[0], past)
        x = x + added
        return x + self.mlp.forward(self.ln_2.forward(x)[0])[0], past


class GPTCache(NamedTuple):
    """Caches from the embeddings up to the logits."""

    wte: Any
    wpe: Any
    drop: Any
    body: Any
    head: Any


class LossCache(NamedTuple):
    """The logits' caches and the loss's."""

    logits: GPTCache
    loss: Any


class GPT(Layer):
    """A GPT-2 of any size.

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
        self.config = config
        self.wte = Embedding(config.vocab_size, config.d_model, rng, dtype=dtype)
        self.wpe = Embedding(config.block_size, config.d_model, rng, dtype=dtype)
        self.drop = Dropout(config.dropout)
        self.h = [Block(config, rng, dtype) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.d_model, dtype=dtype)

    def body(self) -> Chain:
        """Return what lies between the embeddings and the head."""
        return Chain(*self.h, self.ln_f)

    def forward(self, tokens: Array, rng: Rng = None) -> tuple[Array, GPTCache]:
        """Compute the logits of the next token at every position.

        Parameters
        ----------
        tokens : integer array, shape (..., T)
            T at most block_size.
        rng : numpy.random.Generator, optional
            Turns dropout on.

        Returns
        -------
        logits : array, shape (..., T, vocab_size)
        cache : GPTCache
        """
        T = self._length(tokens)
        token, c_wte = self.wte.forward(tokens)  # (..., T, d)
        position, c_wpe = self.wpe.forward(get_xp(tokens).arange(T))  # (T, d)
        e, c_drop = self.drop.forward(token + position, rng)
        below = self.wte.trainable or self.wpe.trainable
        y, c_body = self.body().forward(e, rng, below)  # (..., T, d)
        logits, c_head = linear_forward(y, self.wte.W.value)  # (..., T, V)
        head = lean(c_head, self.wte.W)
        return logits, GPTCache(c_wte, c_wpe, c_drop, c_body, head)

    def loss(
        self,
        tokens: Array,
        targets: Array,
        rng: Rng = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        count: int | None = None,
    ) -> tuple[Array, LossCache]:
        """Compute the cross-entropy of `targets` in nats a token.

        Parameters
        ----------
        tokens, targets : integer arrays, shape (..., T)
            ``targets[..., t]`` is what should follow ``tokens[..., : t + 1]``.
        rng : numpy.random.Generator, optional
            Turns dropout on.
        ignore_index, count : int
            As in :func:`lora_np.ops.cross_entropy_forward`.

        Returns
        -------
        loss : scalar array
        cache : LossCache
        """
        logits, c_logits = self.forward(tokens, rng)
        loss, c_loss = cross_entropy_forward(logits, targets, ignore_index, count)
        return loss, LossCache(c_logits, c_loss)

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add all trainable Parameters' gradients to `grads`.

        Parameters
        ----------
        dy : array
            dL/dlogits (..., T, vocab_size) with forward's cache; dL/dloss, usually 1.0, with the
            loss's.
        cache : GPTCache or LossCache
        grads : Grads
        need_dx : bool
            Tokens have no gradient: nothing returns in any case.
        """
        if isinstance(cache, LossCache):
            (dy,) = cross_entropy_backward(dy, cache.loss)
            cache = cache.logits
        embeddings = self.wte.trainable or self.wpe.trainable
        body = self.body()
        need = (embeddings or body.trainable, self.wte.W.trainable, False)
        dx, dW, _ = linear_backward(dy, cache.head, need)
        grads.add(self.wte.W, dW)  # the head's share; the embedding's is added below
        if dx is not None:
            dx = body.backward(dx, cache.body, grads, embeddings)
        if dx is not None:
            dx = self.drop.backward(dx, cache.drop, grads)  # (..., T, d)
        if dx is not None:
            self.wte.backward(dx, cache.wte, grads)
            if self.wpe.trainable:
                over_batch = dx.reshape(-1, *dx.shape[-2:]).sum(axis=0)  # (T, d)
                self.wpe.backward(over_batch, cache.wpe, grads)

    def flops(self, T: int, need_dx: bool = False) -> Flops:
        """Return the matrix products' cost for one token of a sequence of `T`."""
        embeddings = self.wte.trainable or self.wpe.trainable
        body = self.body()
        head = product_flops(self.wte.W, embeddings or body.trainable)
        return body.flops(T, embeddings).plus(head)

    def generate(
        self,
        tokens: Array,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        rng: Rng = None,
    ) -> np.ndarray:
        """Continue `tokens` by `n` more, each drawn from the model's distribution.

        Keys and values of earlier positions are kept (the KV cache), so a step costs one position.
        Once block_size positions are full the window slides: every position then changes its
        number, and the KV cache is rebuilt.

        Parameters
        ----------
        tokens : integer array, shape (T,) or (B, T)
        n : int
        temperature : float
            Divides the logits; 0 takes the likeliest token.
        top_k : int, optional
            Draw from the k likeliest tokens only.
        rng : numpy.random.Generator
            Needed unless temperature is 0.

        Returns
        -------
        numpy.ndarray, shape (T + n,) or (B, T + n)
        """
        start = to_host(tokens)
        _check_sampling(start, n, temperature, top_k, rng)
        text = np.atleast_2d(start)  # (B, T)
        past: list[Any] = [None] * len(self.h)
        known = 0  # positions in the KV cache
        for _ in range(n):
            if known == self.config.block_size or known == 0:
                past, known = [None] * len(self.h), 0
                fresh = text[:, -self.config.block_size :]
            else:
                fresh = text[:, -1:]
            logits, past = self._extend(fresh, past, known)  # (B, V)
            known += fresh.shape[1]
            new = sample_token(to_host(logits), temperature, top_k, rng)  # (B,)
            text = np.concatenate([text, new[:, None]], axis=1)
        return text if start.ndim == 2 else text[0]

    def _extend(self, fresh: np.ndarray, past: list[Any], known: int) -> tuple[Array, list[Any]]:
        """Return the logits (B, V) after the `fresh` tokens (B, T), which follow `known` others."""
        position = np.arange(known, known + fresh.shape[1])
        W = self.wte.W.value
        x = self.wte.forward(like(fresh, W))[0] + self.wpe.forward(like(position, W))[0]
        now = []
        for block, block_past in zip(self.h, past):
            x, block_past = block.extend(x, block_past)  # (B, T, d)
            now.append(block_past)
        y, _ = self.ln_f.forward(x[:, -1])  # (B, d)
        return linear_forward(y, W)[0], now

    def _length(self, tokens: Array) -> int:
        T = tokens.shape[-1] if tokens.ndim else 0
        if not 1 <= T <= self.config.block_size:
            raise ShapeError(
                f"tokens has shape {tuple(tokens.shape)}, "
                f"expected (..., T) with T from 1 to block_size = {self.config.block_size}"
            )
        return T


def sample_token(logits: np.ndarray, temperature: float, top_k: int | None, rng: Rng) -> np.ndarray:
    """Draw a token from softmax(logits / temperature) for each row.

    Parameters
    ----------
    logits : array, shape (B, V)
    temperature : float
        0 takes the likeliest.
    top_k : int, optional
    rng : numpy.random.Generator

    Returns
    -------
    array of int64, shape (B,)
    """
    if temperature == 0:
        return logits.argmax(axis=1)
    if rng is None:
        raise ValueError("a token is drawn: pass rng, or temperature=0 for the likeliest")
    z = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < z.shape[1]:
        others = np.argpartition(-z, top_k, axis=1)[:, top_k:]  # all but the k largest
        np.put_along_axis(z, others, -np.inf, axis=1)
    cumulative = np.cumsum(np.exp(z - z.max(axis=1, keepdims=True)), axis=1)  # (B, V)
    draw = rng.random((len(z), 1)) * cumulative[:, -1:]
    return (cumulative <= draw).sum(axis=1)


def _check_sampling(
    tokens: np.ndarray, n: int, temperature: float, top_k: int | None, rng: Rng
) -> None:
    if n < 0:
        raise ValueError(f"n = {n} tokens to write, expected at least 0")
    if tokens.ndim not in (1, 2) or tokens.shape[-1] == 0:
        raise ShapeError(f"tokens has shape {tokens.shape}, expected (T,) or (B, T) with T >= 1")
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
        raise ValueError(
            f"temperature = {temperature} and top_k = {top_k}, expected >= 0 and >= 1 (or None)"
        )
    if temperature > 0 and rng is None:
        raise ValueError("generate draws tokens: pass rng, or temperature=0 for the likeliest")
