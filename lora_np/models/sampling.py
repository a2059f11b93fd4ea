"""Generation, without the model: rows of tokens that grow, and the draw of the next token."""

from __future__ import annotations

import math
from operator import index
from typing import Any

import numpy as np

from lora_np.backend import ShapeError, to_host
from lora_np.layers import Rng
from lora_np.layers.memory import Lengths


class Text:
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


def prompts_of(tokens: Any) -> tuple[list[np.ndarray], bool]:
    """Return the prompts as a list of arrays (T_i,), and whether there was a single prompt (T,)."""
    if isinstance(tokens, list | tuple) and all(np.ndim(text) == 1 for text in tokens):
        return [to_host(np.asarray(text)) for text in tokens], False
    array = to_host(np.asarray(tokens) if isinstance(tokens, list | tuple) else tokens)
    if array.ndim not in (1, 2):
        raise ShapeError(f"tokens has shape {array.shape}, expected (T,) or (B, T) with T >= 1")
    return list(np.atleast_2d(array)), array.ndim == 1


def sample_token(
    logits: np.ndarray,
    temperature: float,
    top_k: int | None,
    rng: Rng,
    top_p: float | None = None,
) -> np.ndarray:
    """Draw a token from softmax(logits / temperature) for each row.

    Parameters
    ----------
    logits : array, shape (B, V)
    temperature : float
        0 takes the most likely token.
    top_k : int, optional
    rng : numpy.random.Generator
    top_p : float, optional
        Draw only from the most likely tokens whose probabilities add up to at least p, after
        `top_k` (nucleus sampling, Holtzman et al., arXiv:1904.09751).

    Returns
    -------
    array of int64, shape (B,)
    """
    if temperature == 0:
        return logits.argmax(axis=1)
    if rng is None:
        raise ValueError("to draw a token, pass rng, or temperature=0 for the most likely token")
    z = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0: all but the largest become -inf
        z = (z - z.max(axis=1, keepdims=True)) / temperature  # (B, V), at most 0
    if top_k is not None and top_k < z.shape[1]:
        others = np.argpartition(-z, top_k, axis=1)[:, top_k:]  # all but the k largest
        np.put_along_axis(z, others, -np.inf, axis=1)
    p = np.exp(z)  # (B, V), up to a factor
    if top_p is not None:
        order = np.argsort(-p, axis=1, kind="stable")
        ordered = np.take_along_axis(p, order, axis=1)
        before = np.cumsum(ordered, axis=1) - ordered  # of the more likely tokens
        ordered[before >= top_p * p.sum(axis=1, keepdims=True)] = 0.0
        np.put_along_axis(p, order, ordered, axis=1)
    cumulative = np.cumsum(p, axis=1)
    draw = rng.random((len(z), 1)) * cumulative[:, -1:]
    return (cumulative <= draw).sum(axis=1)


def check_sampling(
    prompts: list[np.ndarray],
    n: int,
    temperature: float,
    top_k: int | None,
    rng: Rng,
    top_p: float | None = None,
) -> None:
    """Raise unless texts can be continued with these arguments of generate."""
    if n < 0:
        raise ValueError(f"n = {n} tokens to generate, expected at least 0")
    if not prompts:
        raise ShapeError("tokens is empty: pass at least one prompt")
    for text in prompts:
        if text.ndim != 1 or len(text) == 0:
            raise ShapeError(f"tokens has shape {text.shape}, expected (T,) or (B, T) with T >= 1")
        if text.dtype.kind not in "iu":
            raise TypeError(f"tokens are {text.dtype}, expected integers")
    check_drawing(temperature, top_k, top_p)
    if temperature > 0 and rng is None:
        raise ValueError("to draw tokens, pass rng, or temperature=0 for the most likely tokens")


def check_drawing(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise unless tokens can be drawn with these arguments of generate."""
    top_k = None if top_k is None else index(top_k)
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
        raise ValueError(
            f"temperature = {temperature} and top_k = {top_k}, expected >= 0 and >= 1 (or None)"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}, expected above 0 and at most 1 (or None)")
