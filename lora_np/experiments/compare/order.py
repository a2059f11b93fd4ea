"""Which contenders can be ordered: letters for groups that the seeds do not separate.

Two contenders are separated if the mean of their differences, seed by seed, has a 95 % interval
(experiments/claims.py) on one side of 0. Those that share a letter are not separated: the one with
the lower mean may be better by luck alone. Being not separated is not transitive (a and b, b and c
may share letters, while a and c do not), so a contender may have several.

The letters are those of Piepho (2004), "An algorithm for a letter-based representation of
all-pairwise comparisons": begin with one group of all, split it at every separated pair, and drop
groups that lie within others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import mean
from string import ascii_letters

from lora_np.experiments.claims import FEWEST, differences, lies_within
from lora_np.experiments.search import SAME
from lora_np.experiments.study.losses import Results, losses

UNDECIDED = "not decided"


def orders(results: Results) -> dict[str, str]:
    """Return the letters of every contender by its test loss; "a" has the lowest losses.

    Where no pair is separated, each has the words "not decided".
    """
    found = {label: losses(results, label) for label in results["best"]}
    equal = SAME * abs(results["base_test_loss"])
    separated = {
        frozenset((a, b))
        for a, b in combinations(found, 2)
        if is_separated(found[a], found[b], equal)
    }
    if not separated:
        return dict.fromkeys(found, UNDECIDED)
    ascending = sorted(found, key=lambda label: mean(found[label].values()))
    return letters(ascending, lambda a, b: frozenset((a, b)) in separated)


def is_separated(one: Mapping[int, float], other: Mapping[int, float], equal: float) -> bool:
    """Return whether the seeds show a difference of losses that are no rounding."""
    apart = differences(one, other)
    return lies_within(apart, low=equal) is True or lies_within(apart, high=-equal) is True


def letters(ascending: Sequence[str], separated: Callable[[str, str], bool]) -> dict[str, str]:
    """Return for every name the letters of its groups.

    Parameters
    ----------
    ascending : sequence of str
        The names, the lowest loss first.
    separated : callable
        Whether two of them are separated.

    Examples
    --------
    >>> from lora_np.experiments.compare.order import letters
    >>> at = {"p": 1.0, "q": 1.4, "r": 2.0}
    >>> letters(["p", "q", "r"], lambda a, b: abs(at[a] - at[b]) > 0.7)
    {'p': 'a', 'q': 'ab', 'r': 'b'}
    """
    groups = [set(ascending)]
    for a, b in combinations(ascending, 2):
        if not separated(a, b):
            continue
        whole = [group for group in groups if {a, b} <= group]
        parts = [group - {out} for group in whole for out in (a, b)]
        groups = _largest([group for group in groups if group not in whole] + parts)
    place = {name: i for i, name in enumerate(ascending)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    names = [ascii_letters[i] if i < len(ascii_letters) else f"({i})" for i in range(len(groups))]
    return {
        name: "".join(letter for letter, group in zip(names, groups) if name in group)
        for name in ascending
    }


def _largest(groups: Sequence[set[str]]) -> list[set[str]]:
    """Return the groups that lie within no other, each once."""
    once = list({frozenset(group): group for group in groups}.values())
    return [group for group in once if not any(group < other for other in once)]


def pairs_note(results: Results) -> str:
    """Say how the letters were made, and how many pairs chance alone would separate."""
    n = len(results["best"])
    pairs = n * (n - 1) // 2
    if results["settings"]["seeds"] < FEWEST:
        return f"Order, by test loss: it takes {FEWEST} seeds to separate two contenders."
    return (
        "Order, by test loss: contenders that share a letter are not separated by a 95 % interval "
        f"of their paired differences over seeds. {pairs} pairs are tested; if all contenders were "
        f"equal, about {0.05 * pairs:.2g} of them would be separated by chance."
    )
