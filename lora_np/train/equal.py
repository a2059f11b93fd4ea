"""Which of several losses is the lowest, by a rule that rounding cannot turn.

The last bits of a loss differ from processor to processor, and must decide nothing. So losses that
differ by less than a millionth of the loss before training count as equal. (A share of the loss
itself would not do: where training ends at zero, all that is left of the loss is rounding.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

SAME = 1e-6  # of the loss before training: losses no further apart count as equal

Key = TypeVar("Key")


def lowest(losses: Mapping[Key, float], base: float) -> list[Key]:
    """Return the keys whose losses count as the lowest: rounding does not decide between them.

    Parameters
    ----------
    losses : mapping to float
    base : float
        The loss before training, which sets the scale.

    Examples
    --------
    >>> from lora_np.train.equal import lowest
    >>> lowest({0.1: 2e-16, 0.2: 1e-16, 0.4: 1e-3}, base=3.0)
    [0.1, 0.2]
    """
    least = min(losses.values(), default=0.0)
    return [key for key, loss in losses.items() if loss <= least + SAME * abs(base)]


def is_gain(base: float, loss: float) -> bool:
    """Return whether a loss lies below the loss before training by more than counts as equal."""
    return base - loss > SAME * abs(base)
