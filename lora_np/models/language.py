"""What all language models share: from embeddings to logits, the loss, and generation.

A model defines how tokens are embedded, its body, and the matrix of its head::

    x      = embed(tokens, positions)        (..., T, d)
    y      = body(x)                         (..., T, d)
    logits = y W^T                           (..., T, V)   W = head(): may be the embedding's table

This file has the rest: forward, the cross-entropy, backward, and ``generate``, which remembers keys
and values so that each step computes one position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, like, to_host
from lora_np.layers import Chain, Flops, Layer, Rng, lean, product_flops
from lora_np.layers.memory import Lengths, shortened
from lora_np.ops import (
    cross_entropy_backward,
    cross_entropy_forward,
    linear_backward,
    linear_forward,
)
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.parameters import Grads, Parameter


class LogitsCache(NamedTuple):
    """Caches from the embeddings up to the logits."""

    embedding: Any
    body: Any
    head: Any


class LossCache(NamedTuple):
    """The logits' caches and the loss's."""

    logits: LogitsCache
    loss: Any


class TextMemory(NamedTuple):
    """The memory of generation: the length of each row, and the memories of the body's layers."""

    lengths: Lengths
    body: Any


class LanguageModel(Layer):
    """A model of the next token; a subclass defines the methods of the first section below."""

    # ----------------------------------------------------------------- defined by a subclass

    @property
    def block_size(self) -> int:
        """The longest sequence."""
        raise TypeError(f"{type(self).__name__} has no block_size of its own")

    def embed(self, tokens: Array, positions: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return x (..., T, d) of `tokens` (..., T) at `positions`, and the cache."""
        raise TypeError(f"{type(self).__name__} has no embed of its own")

    def embed_backward(self, dx: Array, cache: Any, grads: Grads) -> None:
        """Add the embeddings' gradients."""
        raise TypeError(f"{type(self).__name__} has no embed_backward of its own")

    def embeddings(self) -> list[Parameter]:
        """Return the Parameters that embed reads."""
        raise TypeError(f"{type(self).__name__} has no embeddings of its own")

    def body(self) -> Chain:
        """Return the layers between the embeddings and the head."""
        raise TypeError(f"{type(self).__name__} has no body of its own")

    def head(self) -> Parameter:
        """Return the matrix (V, d) that turns outputs of the body into logits."""
        raise TypeError(f"{type(self).__name__} has no head of its own")

    # --------------------------------------------------------------------- logits and loss

    def forward(self, tokens: Array, rng: Rng = None) -> tuple[Array, LogitsCache]:
        """Compute the logits of the next token at every position.

        Parameters
        ----------
        tokens : integer array, shape (..., T)
            T at most block_size.
        rng : numpy.random.Generator, optional
            Turns dropout on.

        Returns
        -------
        logits : array, shape (..., T, V)
        cache : LogitsCache
        """
        positions = like(np.arange(self._length(tokens)), self.head().value)  # (T,)
        x, c_embedding = self.embed(tokens, positions, rng)  # (..., T, d)
        y, c_body = self.body().forward(x, rng, need_dx=self._embeddings_trained())  # (..., T, d)
        logits, c_head = linear_forward(y, self.head().value)  # (..., T, V)
        return logits, LogitsCache(c_embedding, c_body, lean(c_head, self.head()))

    def loss(
        self,
        tokens: Array,
        targets: Array,
        rng: Rng = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        count: int | None = None,
    ) -> tuple[Array, LossCache]:
        """Compute the cross-entropy of `targets` in nats per token.

        Parameters
        ----------
        tokens, targets : integer arrays, shape (..., T)
            ``targets[..., t]`` is the token that should follow ``tokens[..., : t + 1]``.
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

    def number(self, batch: Sequence[Array]) -> int:
        """Return the number of targets of a batch (tokens, targets) that the loss averages over."""
        _, targets = batch
        return int((targets != IGNORE_INDEX).sum())

    def backward(self, dy: Array, cache: Any, grads: Grads, need_dx: bool = False) -> None:
        """Add all trainable Parameters' gradients to `grads`.

        Parameters
        ----------
        dy : array
            dL/dlogits (..., T, V) with forward's cache; dL/dloss, usually 1.0, with the loss's.
        cache : LogitsCache or LossCache
        grads : Grads
        need_dx : bool
            Not used: tokens have no gradient, so backward returns None.
        """
        if isinstance(cache, LossCache):
            (dlogits,) = cross_entropy_backward(dy, cache.loss)
            assert dlogits is not None  # by default all gradients are formed
            dy = dlogits
            cache = cache.logits
        body, head, below = self.body(), self.head(), self._embeddings_trained()
        need = (below or body.trainable, head.trainable, False)
        dx, dW, _ = linear_backward(dy, cache.head, need)
        grads.add(head, dW)  # if the head is tied, the embedding's share is added below
        if dx is not None:
            dx = body.backward(dx, cache.body, grads, below)
        if dx is not None:
            self.embed_backward(dx, cache.embedding, grads)  # dx (..., T, d)

    def flops(self, T: int, need_dx: bool = False) -> Flops:
        """Return the cost of the matrix products for one token in a sequence of `T`."""
        body, below = self.body(), self._embeddings_trained()
        head = product_flops(self.head(), below or body.trainable)
        return body.flops(T, below).plus(head)

    def _embeddings_trained(self) -> bool:
        return any(p.trainable for p in self.embeddings())

    def _length(self, tokens: Array) -> int:
        T = tokens.shape[-1] if tokens.ndim else 0
        if not 1 <= T <= self.block_size:
            raise ShapeError(
                f"tokens has shape {tuple(tokens.shape)}, "
                f"expected (..., T) with T from 1 to block_size = {self.block_size}"
            )
        return T

    # -------------------------------------------------------------------------- generation

    def extend(self, x: Array, memory: TextMemory | None = None) -> tuple[Array, TextMemory]:
        """Return the logits (B, T, V) at the newest tokens `x` (B, T), and the memory."""
        y, memory = self._newest(x, memory)
        return linear_forward(y, self.head().value)[0], memory

    def _newest(self, tokens: Array, memory: TextMemory | None) -> tuple[Array, TextMemory]:
        """Return the body's output (B, T, d) at the newest tokens (B, T)."""
        lengths, known = ((0,) * len(tokens), None) if memory is None else memory
        T, W, first = tokens.shape[1], self.head().value, lengths[0]
        if all(n == first for n in lengths):
            positions = np.arange(first, first + T)  # (T,)
        else:
            positions = np.array(lengths)[:, None] + np.arange(T)  # (B, T)
        x, _ = self.embed(like(tokens, W), like(positions, W))
        y, known = self.body().extend(x, known)
        return y, TextMemory(tuple(n + T for n in lengths), known)

    def generate(
        self,
        tokens: Array | Sequence[Array],
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        stop: int | Sequence[int] = (),
        rng: Rng = None,
    ) -> Any:
        """Continue `tokens` by up to `n` tokens, each drawn from the model's distribution.

        Keys and values of earlier positions are remembered, so a step computes one position. Beyond
        block_size positions the window slides: all positions change at each step, so every step
        then computes the whole window.

        Parameters
        ----------
        tokens : integer array, shape (T,) or (B, T), or a list of arrays (T_i,)
            One prompt, several of equal length, or several of different lengths.
        n : int
        temperature : float
            Divides the logits; 0 takes the most likely token.
        top_k : int, optional
            Draw only from the k most likely tokens.
        stop : int or sequence of int
            Tokens that end a row; the stop token itself is returned.
        rng : numpy.random.Generator
            Needed unless temperature is 0.

        Returns
        -------
        numpy.ndarray, shape (T + n,) or (B, T + n), or list of numpy.ndarray
            A list if rows may differ in length: for a list of prompts, and for (B, T) with `stop`.
        """
        prompts, alone = _prompts(tokens)
        _check_sampling(prompts, n, temperature, top_k, rng)
        stops = np.atleast_1d(stop)
        if stops.size and stops.dtype.kind not in "iu":
            raise TypeError(f"stop = {stop!r}, expected tokens: an integer, or a sequence of them")
        text = _Text(prompts, n)
        memory: TextMemory | None = None
        for _ in range(n):
            logits, memory = self._next(text, memory)  # (B, V)
            text.append(sample_token(to_host(logits), temperature, top_k, rng))
            if stops.size and text.has_ended(stops):
                break
        ended = text.until(stops)
        if alone:
            return ended[0]
        return ended if isinstance(tokens, list | tuple) or stops.size else np.stack(ended)

    def _next(self, text: _Text, memory: TextMemory | None) -> tuple[Array, TextMemory]:
        """Return the logits (B, V) of the token that follows each row."""
        W = self.head().value
        if memory is not None and max(memory.lengths) < self.block_size:
            y, memory = self._newest(text.newest(), memory)  # (B, 1, d)
            return linear_forward(y[:, 0], W)[0], memory
        window, lengths = text.last(self.block_size)
        y, memory = self._newest(window, None)  # (B, T, d)
        rows, ends = (like(np.array(i), y) for i in (range(len(y)), [n - 1 for n in lengths]))
        if min(lengths) < max(lengths):
            memory = TextMemory(lengths, shortened(memory.body, lengths))
        return linear_forward(y[rows, ends], W)[0], memory


class _Text:
    """Rows of tokens of different lengths, with room for `n` more in each."""

    def __init__(self, prompts: list[np.ndarray], n: int) -> None:
        self.starts = tuple(map(len, prompts))
        self.tokens = np.zeros((len(prompts), max(self.starts) + n), np.int64)
        for row, prompt in zip(self.tokens, prompts):
            row[: len(prompt)] = prompt
        self.ends, self.rows = np.array(self.starts), np.arange(len(prompts))

    def append(self, new: np.ndarray) -> None:
        """Append a token to each row: `new` (B,)."""
        self.tokens[self.rows, self.ends] = new
        self.ends += 1

    def newest(self) -> np.ndarray:
        """Return the last token (B, 1) of each row."""
        return self.tokens[self.rows, self.ends - 1, None]

    def last(self, width: int) -> tuple[np.ndarray, Lengths]:
        """Return the last `width` tokens of each row, padded on the right, and their numbers."""
        ends = self.ends.tolist()
        lengths = tuple(min(end, width) for end in ends)
        window = np.zeros((len(ends), max(lengths)), np.int64)
        for row, (tokens, end, n) in enumerate(zip(self.tokens, ends, lengths)):
            window[row, :n] = tokens[end - n : end]  # padding on the right is never attended to
        return window, lengths

    def has_ended(self, stops: np.ndarray) -> bool:
        """Whether every row has a stop token after its prompt."""
        found = np.isin(self.tokens, stops)  # (B, room)
        columns = np.arange(self.tokens.shape[1])
        written = (columns >= np.array(self.starts)[:, None]) & (columns < self.ends[:, None])
        return bool((found & written).any(axis=1).all())

    def until(self, stops: np.ndarray) -> list[np.ndarray]:
        """Return each row up to and including its first stop token after the prompt."""
        texts = []
        for tokens, start, end in zip(self.tokens, self.starts, self.ends):
            found = np.flatnonzero(np.isin(tokens[start:end], stops))
            texts.append(tokens[: start + found[0] + 1 if len(found) else end])
        return texts


def _prompts(tokens: Any) -> tuple[list[np.ndarray], bool]:
    """Return the prompts as a list of arrays (T_i,), and whether there was a single prompt (T,)."""
    if isinstance(tokens, list | tuple) and all(np.ndim(text) == 1 for text in tokens):
        return [to_host(np.asarray(text)) for text in tokens], False
    array = to_host(np.asarray(tokens) if isinstance(tokens, list | tuple) else tokens)
    if array.ndim not in (1, 2):
        raise ShapeError(f"tokens has shape {array.shape}, expected (T,) or (B, T) with T >= 1")
    return list(np.atleast_2d(array)), array.ndim == 1


def sample_token(logits: np.ndarray, temperature: float, top_k: int | None, rng: Rng) -> np.ndarray:
    """Draw a token from softmax(logits / temperature) for each row.

    Parameters
    ----------
    logits : array, shape (B, V)
    temperature : float
        0 takes the most likely token.
    top_k : int, optional
    rng : numpy.random.Generator

    Returns
    -------
    array of int64, shape (B,)
    """
    if temperature == 0:
        return logits.argmax(axis=1)
    if rng is None:
        raise ValueError("to draw a token, pass rng, or temperature=0 for the most likely token")
    z = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < z.shape[1]:
        others = np.argpartition(-z, top_k, axis=1)[:, top_k:]  # all but the k largest
        np.put_along_axis(z, others, -np.inf, axis=1)
    cumulative = np.cumsum(np.exp(z - z.max(axis=1, keepdims=True)), axis=1)  # (B, V)
    draw = rng.random((len(z), 1)) * cumulative[:, -1:]
    return (cumulative <= draw).sum(axis=1)


def _check_sampling(
    prompts: list[np.ndarray], n: int, temperature: float, top_k: int | None, rng: Rng
) -> None:
    if n < 0:
        raise ValueError(f"n = {n} tokens to generate, expected at least 0")
    if not prompts:
        raise ShapeError("tokens is empty: pass at least one prompt")
    for text in prompts:
        if text.ndim != 1 or len(text) == 0:
            raise ShapeError(f"tokens has shape {text.shape}, expected (T,) or (B, T) with T >= 1")
        if text.dtype.kind not in "iu":
            raise TypeError(f"tokens are {text.dtype}, expected integers")
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
        raise ValueError(
            f"temperature = {temperature} and top_k = {top_k}, expected >= 0 and >= 1 (or None)"
        )
    if temperature > 0 and rng is None:
        raise ValueError("to draw tokens, pass rng, or temperature=0 for the most likely tokens")
