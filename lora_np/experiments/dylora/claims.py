"""What is said of DyLoRA and of cutting a LoRA, and whether our numbers support it.

A claim about all ranks holds if it holds at every one of them, and it is refuted if it is refuted
at one. Each comparison has its own interval of 95 %: of 40 comparisons between equals, one will
look as if it were above. So a claim also says how many of its comparisons hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import mean

from lora_np.experiments.claims import VERDICTS, Claim, differences, lies_within, measured
from lora_np.experiments.search import SAME
from lora_np.experiments.study.losses import Results, losses, mean_loss
from lora_np.tables import counted

OURS, ARTICLE, PAPER = "an earlier trial of ours", "an article", "the DyLoRA paper"
EQUAL = 0.01  # nats a byte: a loss no further above counts as not compromised
FASTER = (4.0, 7.0)  # how many times faster DyLoRA is said to be
HIGH = 4  # the rank from which on the cut by SVD is said to be as good as LoRA of the rank
CUTS = ("svd", "naive")

Pairs = Mapping[str, list[float]]  # by what is compared: one loss less the other, for each seed


def dylora(update: str, scale: str) -> str:
    """Return the label of DyLoRA with an update rule and a scale."""
    return f"DyLoRA {update}, {scale}"


def lora(r: int) -> str:
    """Return the label of LoRA of a rank."""
    return f"LoRA, r = {r}"


def at(results: Results, label: str, r: int) -> dict[int, float]:
    """Return test losses at a rank by seed: of a DyLoRA, of LoRA ("LoRA"), or of a cut of it."""
    if label == "LoRA":
        return losses(results, lora(r))
    if label in CUTS:
        return losses(results, lora(results["settings"]["r_max"]), key=f"{label}_{r}")
    return losses(results, label, key=f"test_{r}")


def over(results: Results, label: str, ranks: Iterable[int]) -> dict[int, float]:
    """Return the mean over ranks of the test losses by seed."""
    rows = [at(results, label, r) for r in ranks]
    return {seed: mean(row[seed] for row in rows) for seed in rows[0]}


def chosen(results: Results) -> str:
    """Return the DyLoRA with the lowest validation loss, the mean over ranks and seeds."""
    labels = results["settings"]["dylora"]
    return min(labels, key=lambda label: mean_loss(results, label, key="validation_loss"))


def claims(results: Results) -> list[Claim]:
    """Test the claims on complete results."""
    return [*svd_claims(results), *dylora_claims(results), *time_claims(results)]


def svd_claims(results: Results) -> list[Claim]:
    """Test whether one LoRA that is cut by SVD makes the other two ways unnecessary."""
    s, equal = results["settings"], SAME * results["base_test_loss"]
    r_max, low = s["r_max"], [r for r in s["ranks"] if HIGH <= r < s["r_max"]]
    below = {
        f"{label} at r = {r}": differences(at(results, "svd", r), at(results, label, r))
        for label in s["dylora"]
        for r in range(1, r_max + 1)
    }
    trained = {f"r = {r}": differences(at(results, "svd", r), at(results, "LoRA", r)) for r in low}
    cut = f"one LoRA of r = {r_max}, cut by SVD"
    return [
        Claim(
            OURS,
            f"{cut}, is nowhere above DyLoRA",
            "its test loss less that of each DyLoRA is not above 0 at any rank",
            said(below, equal),
            none_above(below, equal),
        ),
        Claim(
            OURS,
            f"{cut}, is at r >= {HIGH} not above LoRA trained at that rank",
            f"its test loss less that of LoRA is not above 0 at the ranks from {HIGH} to below "
            f"{r_max} at which LoRA was trained",
            said(trained, equal),
            none_above(trained, equal),
        ),
    ]


def dylora_claims(results: Results) -> list[Claim]:
    """Test what the paper says of the losses of DyLoRA."""
    s, best, equal = results["settings"], chosen(results), SAME * results["base_test_loss"]
    trained = {
        f"r = {r}": differences(at(results, best, r), at(results, "LoRA", r)) for r in s["ranks"]
    }
    lower = range(1, s["r_max"])
    cut = {f"r = {r}": differences(at(results, best, r), at(results, "naive", r)) for r in lower}
    on_average = differences(*(over(results, label, lower) for label in (best, "naive")))
    which = f"{best}, which has the lowest validation loss"
    return [
        Claim(
            PAPER,
            "DyLoRA does not compromise the performance of LoRA significantly",
            f"the test loss of {which}, less that of LoRA trained at the rank is below {EQUAL} at "
            "every rank at which LoRA was trained",
            said(trained, EQUAL),
            none_above(trained, EQUAL),
        ),
        Claim(
            PAPER,
            "DyLoRA performs well at more ranks than LoRA, which was trained for one",
            f"the test loss of {which}, less that of the naive cut of LoRA of r = {s['r_max']}, on "
            "average over all lower ranks, is below 0",
            f"{measured(on_average)}; rank by rank {tally(cut, -equal)}",
            lies_within(on_average, high=-equal),
        ),
    ]


def time_claims(results: Results) -> list[Claim]:
    """Test how much faster DyLoRA is than one LoRA, and than LoRA of every rank."""
    s, low, high = results["settings"], *FASTER
    one, search = speed_ups(results)
    ranks = ", ".join(map(str, s["ranks"]))
    against = (
        (f"LoRA of r = {s['r_max']}, one training against one", one),
        (f"trying the ranks {ranks} with LoRA, one training against {len(s['ranks'])}", search),
    )
    return [
        Claim(
            ARTICLE,
            f"DyLoRA is {low:g} to {high:g} times faster than {what}",
            f"the ratio of CPU seconds, mean over all DyLoRAs, lies within {low:g} and {high:g}",
            measured(ratio, ".2f"),
            lies_within(ratio, low, high),
        )
        for what, ratio in against
    ]


def speed_ups(results: Results) -> tuple[list[float], list[float]]:
    """Return by seed the seconds of one LoRA, and of LoRA of all ranks, over those of a DyLoRA."""
    s, seconds = results["settings"], results["training_seconds"]
    own = [mean(by_seed) for by_seed in zip(*(seconds[label] for label in s["dylora"]))]
    every = [sum(by_seed) for by_seed in zip(*(seconds[lora(r)] for r in s["ranks"]))]
    one = [a / b for a, b in zip(seconds[lora(s["r_max"])], own)]
    return one, [a / b for a, b in zip(every, own)]


def none_above(pairs: Pairs, border: float) -> bool | None:
    """Return whether no mean lies above the border; None if that is not decided.

    Examples
    --------
    >>> from lora_np.experiments.dylora.claims import none_above
    >>> low, high, wide = [-0.2, -0.21, -0.19], [0.2, 0.21, 0.19], [0.2, -0.2, 0.1]
    >>> none_above({"a": low}, 0.0), none_above({"a": low, "b": wide}, 0.0)
    (True, None)
    >>> none_above({"a": low, "b": wide, "c": high}, 0.0)
    False
    """
    decided = {lies_within(pair, high=border) for pair in pairs.values()}
    if False in decided:
        return False
    return None if None in decided or not decided else True


def said(pairs: Pairs, border: float) -> str:
    """Return the pair that lies highest by its mean, and what all pairs decide, as text."""
    means = {name: mean(pair) for name, pair in pairs.items() if pair}
    comparable = {name: x for name, x in means.items() if not math.isnan(x)}
    if not comparable:
        return "nothing to compare"
    name = max(comparable, key=comparable.__getitem__)
    return f"highest: {measured(pairs[name])}, {name}; {tally(pairs, border)}"


def tally(pairs: Pairs, border: float) -> str:
    """Return how many pairs lie not above the border, above it, and neither, as text.

    Examples
    --------
    >>> from lora_np.experiments.dylora.claims import tally
    >>> tally({"a": [-0.2, -0.21, -0.19], "b": [0.2, -0.2, 0.1]}, 0.0)
    '2 comparisons: 1 confirmed, 0 refuted, 1 not decided'
    """
    decided = [lies_within(pair, high=border) for pair in pairs.values()]
    each = ", ".join(f"{decided.count(key)} {verdict}" for key, verdict in VERDICTS.items())
    return f"{counted(len(pairs), 'comparison')}: {each}"
