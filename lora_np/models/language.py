"""What all language models share: from embeddings to logits, the loss, and generation.

A model defines the table of its tokens, how rows get their positions, its body, and the matrix of
its head::

    x      = start(table(tokens))            (..., m + T, d)   m rows before the text: usually none
    x      = place(x, positions)             (..., m + T, d)
    y      = body(x)                         (..., m + T, d)
    logits = y[m:] W^T                       (..., T, V)   W = head(): may be the table itself

``start`` is a layer (layers/start.py). This file has the rest: forward, the cross-entropy,
backward, and ``generate``, which remembers keys and values so that each step computes one position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, like, to_host
from lora_np.layers import (
    Chain,
    Embedding,
    Flops,
    Layer,
    Recompute,
    Rng,
    TextStart,
    lean,
    product_flops,
)
from lora_np.layers.attention import for_packed_rows, positions_after
from lora_np.layers.memory import shortened
from lora_np.layers.packing import Packing
from lora_np.models.head import head_loss, head_loss_backward
from lora_np.models.sampling import Text, check_sampling, prompts_of, sample_token
from lora_np.ops.contract import expect_same
from lora_np.ops.fast import linear_backward, linear_forward
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.parameters import Grads, Parameter


class EmbeddingCache(NamedTuple):
    """Caches of the table, of what stands before the text, and of the positions."""

    table: Any
    start: Any
    place: Any


class LogitsCache(NamedTuple):
    """Caches from the embeddings up to the logits."""

    embedding: Any
    body: Any
    head: Any


class LossCache(NamedTuple):
    """Caches from the embeddings up to the loss."""

    embedding: Any
    body: Any
    loss: Any
    positions: Array | None  # of packed rows


class TextMemory(NamedTuple):
    """The memory of generation."""

    lengths: tuple[int, ...]  # how many positions each row uses, with those before the text
    body: Any  # the memories of its layers


class LanguageModel(Layer):
    """A model of the next token; a subclass defines the methods of the first section below.

    Attributes
    ----------
    start : TextStart
        What stands before the text; a method may replace it.
    recompute : bool
        Whether training keeps only the inputs of the body's layers and computes their caches again
        in backward (:class:`lora_np.Recompute`), by default False.
    """

    recompute: bool = False

    def __init__(self) -> None:
        self.start = TextStart()

    # ----------------------------------------------------------------- defined by a subclass

    @property
    def block_size(self) -> int:
        """The longest sequence."""
        raise TypeError(f"{type(self).__name__} has no block_size of its own")

    def table(self) -> Embedding:
        """Return the layer that turns tokens into rows."""
        raise TypeError(f"{type(self).__name__} has no table of its own")

    def place(self, x: Array, positions: Array, rng: Rng = None) -> tuple[Array, Any]:
        """Return rows x (..., T, d) that know their `positions`, and the cache.

        By default x itself, for a body that knows the order.
        """
        return x, None

    def place_backward(self, dy: Array, cache: Any, grads: Grads) -> Array:
        """Add the gradients of what place reads; return dx (..., T, d)."""
        return dy

    def embeddings(self) -> list[Parameter]:
        """Return the Parameters that table and place read."""
        raise TypeError(f"{type(self).__name__} has no embeddings of its own")

    def body(self) -> Chain:
        """Return the layers between the embeddings and the head."""
        raise TypeError(f"{type(self).__name__} has no body of its own")

    def head(self) -> Parameter:
        """Return the matrix (V, d) that turns outputs of the body into logits."""
        raise TypeError(f"{type(self).__name__} has no head of its own")

    # --------------------------------------------------------------------- logits and loss

    @property
    def vocab_size(self) -> int:
        """The number of tokens, V."""
        return self.head().shape[0]

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
        y, c_embedding, c_body = self.outputs(tokens, rng=rng)  # (..., T, d)
        logits, c_head = linear_forward(y, self.head().value)  # (..., T, V)
        return logits, LogitsCache(c_embedding, c_body, lean(c_head, self.head()))

    def outputs(
        self, tokens: Array, positions: Array | None = None, rng: Rng = None
    ) -> tuple[Array, Any, Any]:
        """Return the body's outputs (..., T, d) at the tokens, and the caches below and of it."""
        self._check_length(tokens, positions)
        x, c_embedding = self.embed(tokens, rng, positions)  # (..., m + T, d)
        layers = self.layers_for(positions)
        y, c_body = layers.forward(x, rng, need_dx=self._embeddings_trained())
        return y[..., self.start.rows :, :], c_embedding, c_body

    def layers_for(self, positions: Array | None) -> Chain:
        """Return the body as training runs it; positions (B, T) are those of packed rows."""
        body = self.body()
        if positions is not None:
            body = for_packed_rows(body, Packing(positions))
        return Chain(*map(Recompute, body.layers)) if self.recompute else body

    def embed(
        self, tokens: Array, rng: Rng = None, positions: Array | None = None
    ) -> tuple[Array, EmbeddingCache]:
        """Return the rows (..., m + T, d) of a text and of what stands before it, and the cache."""
        rows, c_table = self.table().forward(tokens)  # (..., T, d)
        x, c_start = self.start.forward(rows, rng)  # (..., m + T, d)
        first = self.start.first
        at = np.arange(first, first + x.shape[-2]) if positions is None else positions
        x, c_place = self.place(x, like(at, x), rng)
        return x, EmbeddingCache(c_table, c_start, c_place)

    def embed_backward(self, dx: Array, cache: EmbeddingCache, grads: Grads) -> None:
        """Add the gradients of all that embed reads; dx (..., m + T, d)."""
        table = self.table()
        d = self.place_backward(dx, cache.place, grads)  # (..., m + T, d)
        d = self.start.backward(d, cache.start, grads, table.trainable)  # (..., T, d)
        if d is not None:
            table.backward(d, cache.table, grads)

    def loss(
        self,
        tokens: Array,
        targets: Array,
        positions: Array | None = None,
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
        positions : integer array, shape (B, T), optional
            For packed rows, in which several samples stand end to end: 0, 1, 2, ... from the start
            of each sample, or s, s + 1, ... if it shares the first s tokens of an earlier one
            (layers/packing.py). A sample attends to nothing else of the row.
        rng : numpy.random.Generator, optional
            Turns dropout on.
        ignore_index, count : int
            As in :func:`lora_np.ops.cross_entropy_forward`.

        Returns
        -------
        loss : scalar array
        cache : LossCache
        """
        y, c_embedding, c_body = self.outputs(tokens, positions, rng)  # (..., T, d)
        need_dx = self._embeddings_trained() or self.body().trainable
        loss, c_loss = head_loss(self.head(), y, targets, ignore_index, count, need_dx)
        return loss, LossCache(c_embedding, c_body, c_loss, positions)

    def number(self, batch: Sequence[Array]) -> int:
        """Return the number of targets in a batch, the arguments of loss."""
        return int((batch[1] != IGNORE_INDEX).sum())

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
        of_loss = isinstance(cache, LossCache)
        body = self.layers_for(cache.positions if of_loss else None)
        head, below = self.head(), self._embeddings_trained()
        need = (below or body.trainable, head.trainable)
        if of_loss:
            dx = head_loss_backward(head, dy, cache.loss, grads, need[0])
        else:
            dx, dW, _ = linear_backward(dy, cache.head, (*need, False))
            grads.add(head, dW)  # if the head is tied, the embedding's share is added below
        if dx is not None:
            dx = body.backward(self._with_start(dx), cache.body, grads, below)  # (..., m + T, d)
        if dx is not None:
            self.embed_backward(dx, cache.embedding, grads)

    def _with_start(self, dy: Array) -> Array:
        """Return dy (..., m + T, d): zero in the rows before the text, whose outputs are cut."""
        m = self.start.rows
        if m == 0:
            return dy
        xp = get_xp(dy)
        zeros = xp.zeros((*dy.shape[:-2], m, dy.shape[-1]), dy.dtype)
        return xp.concatenate((zeros, dy), axis=-2)

    def flops(self, T: int, need_dx: bool = False) -> Flops:
        """Return the cost of the matrix products for one token in a sequence of `T`.

        Rows before the text pass through the body too: the T tokens share their cost, rounded to a
        whole number of operations.
        """
        body, below = self.layers_for(None), self._embeddings_trained()
        rows = T + self.start.rows
        head = product_flops(self.head(), below or body.trainable)
        shares = ((2 * cost * rows + T) // (2 * T) for cost in body.flops(rows, below))  # rounded
        return Flops(*shares).plus(head)

    def _embeddings_trained(self) -> bool:
        return self.start.trainable or any(p.trainable for p in self.embeddings())

    def _check_length(self, tokens: Array, positions: Array | None = None) -> None:
        T, before = tokens.shape[-1] if tokens.ndim else 0, self.start.length
        if positions is not None:
            if before:
                raise ValueError(
                    "packed rows have no room for what stands before each text: pad them instead"
                )
            expect_same("positions", positions, "tokens", tokens)
            T = int(positions.max(initial=0)) + 1  # of the longest sample
        if not 1 <= T <= self.block_size - before:
            taken = f" less {before} before the text" if before else ""
            raise ShapeError(
                f"tokens has shape {tuple(tokens.shape)}, "
                f"expected (..., T) with T from 1 to block_size = {self.block_size}{taken}"
            )

    # -------------------------------------------------------------------------- generation

    def extend(self, x: Array, memory: TextMemory | None = None) -> tuple[Array, TextMemory]:
        """Return the logits (B, T, V) at the newest tokens `x` (B, T), and the memory."""
        y, memory = self.read(x, memory)
        return self.head().product(y), memory

    def advance(self, tokens: Array, memory: TextMemory | None = None) -> tuple[Array, TextMemory]:
        """Return the logits (B, V) of what follows the newest tokens (B, T), and the memory.

        The logits of earlier positions, which :meth:`extend` returns too, are not formed.
        """
        y, memory = self.read(tokens, memory)  # (B, T, d)
        return self.head().product(y[:, -1]), memory

    def read(self, tokens: Array, memory: TextMemory | None = None) -> tuple[Array, TextMemory]:
        """Return the body's output (B, T, d) at the newest tokens (B, T), and the memory."""
        tokens = like(tokens, self.head().held)
        if memory is None:
            x, _ = self.embed(tokens)  # (B, m + T, d)
            y, known = self.body().extend(x, None)
            used = self.start.first + x.shape[1]
            return y[:, self.start.rows :], TextMemory((used,) * len(tokens), known)
        rows, _ = self.table().forward(tokens)  # (B, T, d)
        T = tokens.shape[1]
        positions = positions_after(memory.lengths, T)  # (T,) or (B, T)
        x, _ = self.place(rows, like(positions, rows))
        y, known = self.body().extend(x, memory.body)
        return y, TextMemory(tuple(n + T for n in memory.lengths), known)

    def generate(
        self,
        tokens: Array | Sequence[Array],
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
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
        top_p : float, optional
            Draw only from the most likely tokens whose probabilities add up to p.
        stop : int or sequence of int
            Tokens that end a row; the stop token itself is returned.
        rng : numpy.random.Generator
            Needed unless temperature is 0.

        Returns
        -------
        numpy.ndarray, shape (T + n,) or (B, T + n), or list of numpy.ndarray
            A list if rows may differ in length: for a list of prompts, and for (B, T) with `stop`.
        """
        prompts, alone = prompts_of(tokens)
        check_sampling(prompts, n, temperature, top_k, rng, top_p)
        stops = np.atleast_1d(stop)
        if stops.size and stops.dtype.kind not in "iu":
            raise TypeError(f"stop = {stop!r}, expected tokens: an integer, or a sequence of them")
        text = Text(prompts, n)
        memory: TextMemory | None = None
        for _ in range(n):
            logits, memory = self._next(text, memory)  # (B, V)
            text.append(sample_token(to_host(logits), temperature, top_k, rng, top_p))
            if stops.size and text.has_ended(stops):
                break
        ended = text.until(stops)
        if alone:
            return ended[0]
        return ended if isinstance(tokens, list | tuple) or stops.size else np.stack(ended)

    def _next(self, text: Text, memory: TextMemory | None) -> tuple[Array, TextMemory]:
        """Return the logits (B, V) of the token that follows each row."""
        if memory is not None and max(memory.lengths) < self.block_size:
            return self.advance(text.newest(), memory)
        before = self.start.length
        window, lengths = text.last(self.block_size - before)
        y, memory = self.read(window)  # (B, T, d)
        rows, ends = (like(np.array(i), y) for i in (range(len(y)), [n - 1 for n in lengths]))
        if min(lengths) < max(lengths):
            used = tuple(before + n for n in lengths)
            memory = TextMemory(used, shortened(memory.body, used))
        return self.head().product(y[rows, ends]), memory
