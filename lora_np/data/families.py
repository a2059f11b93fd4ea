"""Samples that begin alike: what they have in common is computed once for all of them.

A causal model's rows at the first tokens of a text do not depend on what follows. Samples with one
system prompt, one table of a database or the same worked examples can therefore share the rows of
their common start, like the branches of a tree. This file finds such families.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Tokens(Protocol):
    """What is read of a sample."""

    @property
    def tokens(self) -> np.ndarray:
        """The tokens, (T,)."""
        raise NotImplementedError

    @property
    def labelled(self) -> np.ndarray:
        """Which tokens are learned, (T,)."""
        raise NotImplementedError


def prompt_length(sample: Tokens) -> int:
    """Return how many tokens have no target: those before the one that writes the first label."""
    learned = np.flatnonzero(sample.labelled[1:])  # the first token has no token before it
    return int(learned[0]) if learned.size else len(sample.tokens) - 1


def common_start(one: Tokens, other: Tokens) -> int:
    """Return how many tokens at the start of `other`, all without a target, begin `one` too.

    Examples
    --------
    >>> from lora_np.data import Sample
    >>> from lora_np.data.families import common_start
    >>> one, other = Sample([5, 6, 7, 8], [0, 0, 0, 1]), Sample([5, 6, 9, 8], [0, 0, 0, 1])
    >>> common_start(one, other)
    2
    """
    n = min(len(one.tokens), prompt_length(other))
    differ = np.flatnonzero(one.tokens[:n] != other.tokens[:n])
    return int(differ[0]) if differ.size else n


def families(samples: Sequence[Tokens]) -> list[list[int]]:
    """Return the indices of samples that begin alike, family by family.

    The samples of a family agree with its first in at least half of their own prompts.

    Parameters
    ----------
    samples : sequence of Sample

    Returns
    -------
    list of list of int
        Every index once; a family and its members in the order of their tokens.

    Examples
    --------
    >>> from lora_np.data import Sample
    >>> from lora_np.data.families import families
    >>> def ask(*tokens):
    ...     return Sample([*tokens, 0, 1], [False] * (len(tokens) + 1) + [True])
    >>> families([ask(5, 6, 7), ask(8, 8, 8), ask(5, 6, 9)])
    [[0, 2], [1]]
    """
    order = sorted(range(len(samples)), key=lambda i: samples[i].tokens.tolist())
    found: list[list[int]] = []
    for i in order:
        alike = 2 * common_start(samples[found[-1][0]], samples[i]) if found else 0
        if alike and alike >= prompt_length(samples[i]):
            found[-1].append(i)
        else:
            found.append([i])
    return found
