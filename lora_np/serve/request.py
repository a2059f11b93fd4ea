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
    prompt : tuple of int
    n : int
        The most new tokens.
    tokens : list of int
        The new tokens so far, with the stop token.
    state : {"waiting", "running", "done", "failed", "cancelled"}
    finish : {"stop", "length"} or None
        Why it is done.
    error : Exception or None
        Why it failed.
    submitted, first, last : float or None
        When it was submitted, and when its first and its last token came: ``time.monotonic()``.
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
        """Whether nothing more will come."""
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
