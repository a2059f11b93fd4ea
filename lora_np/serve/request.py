"""A request to the engine, and the engine's counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


@dataclass(eq=False)
class Request:
    """What was asked, and what has become of it.

    Attributes
    ----------
    adapter : str or None
        The adapter's name; None is the base alone.
    prompt : tuple of int
    n : int
        The most new tokens.
    stop : frozenset of int
        Tokens that end the answer.
    temperature, top_k, top_p, rng
        How a token is drawn; without a generator, the likeliest is taken.
    on_token : callable or None
        Called with each new token.
    tokens : list of int
        The new tokens so far, the stop token included.
    state : {"waiting", "running", "done", "failed", "cancelled"}
    finish : {"stop", "length"} or None
        Why it is done.
    error : Exception or None
        Why it failed.
    submitted, first, last : float or None
        When it was submitted, and when its first and its last token came: ``time.monotonic()``.
    overtaken : int
        How many later requests have started before it.
    """

    adapter: str | None
    prompt: tuple[int, ...]
    n: int
    stop: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    rng: np.random.Generator | None = None
    on_token: Callable[[int], object] | None = None
    tokens: list[int] = field(default_factory=list)
    state: str = "waiting"
    finish: str | None = None
    error: Exception | None = None
    submitted: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    overtaken: int = 0

    @property
    def over(self) -> bool:
        """Whether no more tokens will come."""
        return self.state not in ("waiting", "running")


class Counts(NamedTuple):
    """The engine's numbers.

    Attributes
    ----------
    waiting, running : int
        Requests.
    pages, free, held : int
        Pages of the pool, those that are free, and those of adapters.
    loaded : int
        Adapters in the pool.
    """

    waiting: int
    running: int
    pages: int
    free: int
    held: int
    loaded: int
