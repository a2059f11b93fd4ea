"""One name for several adapters, to compare them on real requests (an A/B test).

A request names the alias, and the alias picks one of its adapters, in proportion to weights. The
user's name decides: the first 48 bits of sha256(alias, user), over 2^48, are uniform in [0, 1), and
the adapters share [0, 1) in their order::

    a:0.9,b:0.1      [ . . . . . . a . . . . . . | b )
                     0                          0.9  1

So a user always gets the same adapter, without a table of users, on every server and after every
restart. A change of the weights moves only the users between the old and the new boundaries.
Another alias hashes the same users anew, so that two tests are independent.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from lora_np.reading import shown


@dataclass(frozen=True)
class Alias:
    """A name, and the adapters that answer for it.

    Parameters
    ----------
    name : str
    weights : tuple of (str, float)
        Adapters and their shares, which need not add up to 1.

    Raises
    ------
    ValueError
        If a weight is not positive, their sum is not finite, or an adapter is listed twice.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.serve.alias import Alias
    >>> alias, rng = Alias("sql", (("old", 0.9), ("new", 0.1))), np.random.default_rng(0)
    >>> picks = [alias.pick(f"user {i}", rng) for i in range(1000)]
    >>> picks.count("new"), alias.pick("user 7", rng) == picks[7]
    (94, True)
    """

    name: str
    weights: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        names = [adapter for adapter, _ in self.weights]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"alias {shown(self.name)}: expected different adapters, each once")
        for adapter, weight in self.weights:
            if not 0 < weight < math.inf:
                raise ValueError(
                    f"alias {shown(self.name)}: the weight of {shown(adapter)} is {weight}, "
                    "expected a positive number"
                )
        if sum(weight for _, weight in self.weights) == math.inf:
            raise ValueError(f"alias {shown(self.name)}: the weights have no finite sum")

    def pick(self, user: str | None, rng: np.random.Generator) -> str:
        """Return the adapter for a user; without a user, draw one."""
        at = rng.random() if user is None else _uniform(self.name, user)
        left = at * math.fsum(weight for _, weight in self.weights)
        for adapter, weight in self.weights:
            left -= weight
            if left < 0:
                return adapter
        return self.weights[-1][0]  # rounding at the upper end


def _uniform(alias: str, user: str) -> float:
    """Return a number in [0, 1) that depends on the two names alone."""
    text = f"{alias}\0{user}".encode("utf-8", "surrogatepass")  # JSON may hold half a pair
    return int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48  # exact in a float


def alias_of(text: str) -> Alias:
    """Return the alias that is written NAME=a:0.9,b:0.1.

    Raises
    ------
    ValueError
        If it is written otherwise.

    Examples
    --------
    >>> from lora_np.serve.alias import alias_of
    >>> alias_of("sql=old:9,new:1").weights
    (('old', 9.0), ('new', 1.0))
    """
    name, equals, rest = text.partition("=")
    pairs = [part.rpartition(":") for part in rest.split(",")]
    try:
        weights = tuple((adapter, float(weight)) for adapter, _, weight in pairs)
    except ValueError:
        weights = ()
    if not name or not equals or not weights or not all(adapter for adapter, _ in weights):
        raise ValueError(f"alias {shown(text)}: expected NAME=ADAPTER:WEIGHT,ADAPTER:WEIGHT")
    return Alias(name, weights)
