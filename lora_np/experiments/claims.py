"""A claim, and whether measured numbers support it; the rule for numbers that differ over seeds.

Contenders are compared seed by seed, because equal seeds see equal batches. The mean over seeds has
a confidence interval of 95 % (Student's t). A claim about the mean holds if the whole interval lies
where the claim says, it does not hold if no part of the interval does, and it is not decided if the
interval lies across the border, or if there are fewer than three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from textwrap import fill
from typing import Any

FEWEST = 3  # seeds that decide
# 97.5 % quantiles of Student's t by the number of seeds; from 10 on, that of 10, which is wider.
QUANTILES = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
WIDTH = 100  # characters of a line
VERDICTS = {True: "confirmed", False: "refuted", None: "not decided"}


@dataclass(frozen=True)
class Claim:
    """A claim, and what our numbers say of it.

    Attributes
    ----------
    of : str
        Where the claim is made: a figure, a table, a paper.
    says : str
        The claim.
    rule : str
        When our numbers agree with the claim.
    measured : str
        The numbers that decide.
    agrees : bool or None
        None if the numbers cannot tell.
    """

    of: str
    says: str
    rule: str
    measured: str
    agrees: bool | None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean of one number for each seed.

    Returns
    -------
    tuple of float, or None
        None for fewer than three numbers, or where some but not all are infinite: runs that
        diverged on some seeds do not have a mean.

    Examples
    --------
    >>> from lora_np.experiments.claims import interval
    >>> [round(end, 3) for end in interval([0.1, 0.2, 0.3])]
    [-0.048, 0.448]
    >>> interval([0.1, 0.2]) is None
    True
    """
    n = len(values)
    if n < FEWEST or any(math.isnan(value) for value in values):
        return None
    if any(math.isinf(value) for value in values):
        return (values[0], values[0]) if len(set(values)) == 1 else None
    half = QUANTILES[min(n, max(QUANTILES))] * stdev(values) / math.sqrt(n)
    return mean(values) - half, mean(values) + half


def lies_within(
    values: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> bool | None:
    """Return whether the mean over seeds lies between two borders; None if that is not decided.

    Examples
    --------
    >>> from lora_np.experiments.claims import lies_within
    >>> gain = [0.11, 0.10, 0.12, 0.11, 0.10]
    >>> lies_within(gain, low=0.0), lies_within(gain, high=0.05), lies_within(gain, low=0.108)
    (True, False, None)
    """
    found = interval(values)
    if found is None:
        return None
    below, above = found
    if (low < below or low == -math.inf) and (above < high or high == math.inf):
        return True
    return False if above <= low or below >= high else None


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Return by how much `one` is above `other` for each seed that both have.

    Infinite losses, of runs that diverged, cancel to nan.

    Examples
    --------
    >>> from lora_np.experiments.claims import differences
    >>> differences({0: 2.5, 1: 2.25}, {0: 2.0, 1: 2.0, 2: 2.0})
    [0.5, 0.25]
    """
    return [one[seed] - other[seed] for seed in sorted(one) if seed in other]


def measured(values: Sequence[float], form: str = ".4f") -> str:
    """Return the mean over seeds and its interval as text.

    Examples
    --------
    >>> from lora_np.experiments.claims import measured
    >>> measured([0.1, 0.2, 0.3], ".2f"), measured([0.1], ".2f")
    ('0.20 (95 %: -0.05 to 0.45)', '0.10 (1 seed)')
    """
    if not values:
        return "no run"
    found = interval(values)
    shown = format(sum(values) / len(values), form)
    if found is None:
        return f"{shown} ({len(values)} seed{'s' * (len(values) > 1)})"
    return f"{shown} (95 %: {found[0]:{form}} to {found[1]:{form}})"


def claims_text(
    found: Sequence[Mapping[str, Any]], verdicts: Mapping[bool | None, str] = VERDICTS
) -> str:
    """Return claims, as dictionaries, as text: the verdict, the rule, and the numbers.

    Examples
    --------
    >>> from lora_np.experiments.claims import claims_text
    >>> claim = {"of": "us", "says": "1 < 2", "rule": "1 < 2", "measured": "yes", "agrees": True}
    >>> print(claims_text([claim]))
    confirmed: us, 1 < 2
        rule: 1 < 2
        measured: yes
    """
    lines = []
    for claim in found:
        said = f"{verdicts[claim['agrees']]}: {claim['of']}, {claim['says']}"
        lines.append(fill(said, WIDTH, subsequent_indent="    "))
        for name in ("rule", "measured"):
            said = f"    {name}: {claim[name]}"
            lines.append(fill(said, WIDTH, subsequent_indent=" " * 8))
    return "\n".join(lines)
