"""A server that is slow and obviously right: one request after the other, each by its own model.

The engine's greedy tokens are compared with its answers. Both compute the same numbers in another
order, so two logits that differ only in their last bits may change places: :func:`verdict` names
such a tie instead of calling the answer wrong.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np

from lora_np import load_adapter

LAST_BITS = 1e-5  # of the largest logit, in float32


def answers(base, folders: Mapping, requests: Sequence[tuple]) -> list[list[int]]:
    """Return the new tokens of each request (adapter or None, prompt, n, stop)."""
    models = {name: load_adapter(base, folders[name]) for name in {r[0] for r in requests} - {None}}
    models[None] = base
    found = []
    for adapter, prompt, n, stop in requests:
        tokens = models[adapter].generate(np.array(prompt), n, temperature=0, stop=stop)
        found.append(tokens[len(prompt) :].tolist())
    return found


def likeliest(model, prefix: Sequence[int]) -> tuple[list[int], float]:
    """Return the two likeliest next tokens, and how far apart their logits are, relatively."""
    logits = model.forward(np.array(prefix))[0][-1]  # (V,)
    first, second = np.argsort(-logits, kind="stable")[:2]
    apart = float(logits[first] - logits[second]) / float(abs(logits).max())
    return [int(first), int(second)], apart


def tie(model, prefix: Sequence[int]) -> bool:
    """Whether the two likeliest next tokens differ only in the last bits of their logits."""
    return likeliest(model, prefix)[1] <= LAST_BITS


def verdict(model, prompt: Sequence[int], tokens: Sequence[int], expected: Sequence[int]) -> str:
    """Return "equal", "tie" if tokens first differ where two are tied, or else "wrong"."""
    for i, pair in enumerate(zip_longest(tokens, expected)):
        if pair[0] != pair[1]:
            prefix = [*prompt, *expected[:i]]
            among = set(pair) == set(likeliest(model, prefix)[0])
            return "tie" if among and tie(model, prefix) else "wrong"
    return "equal"
