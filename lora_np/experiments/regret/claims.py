"""The claims of "LoRA Without Regret", each with its number and a rule that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_np.experiments.claims import Claim, differences, interval, lies_within, measured
from lora_np.experiments.search import SAME
from lora_np.experiments.study.losses import Results, losses, minima

FULL = "full"
LAYERS = ("all layers", "attention", "MLP")
RATIO, ABOUT = 10.0, 2.0  # LoRA's best rate over full's, and the factor that "about" allows
NEARLY = 2.0  # the factor by which "nearly the same" rates may differ
EQUAL = 0.01  # nats a byte: losses that differ by less count as "the same"


def label(name: str, steps: int | None = None, batch_size: int | None = None) -> str:
    """Return the label of a contender; None stands for the task's own setting.

    Examples
    --------
    >>> from lora_np.experiments.regret.claims import label, lora
    >>> label("full", steps=50), label(lora(4), steps=400, batch_size=4)
    ('full, 50 steps', 'r = 4, batch 4, 400 steps')
    """
    batch = "" if batch_size is None else f", batch {batch_size}"
    return f"{name}{batch}" + ("" if steps is None else f", {steps} steps")


def lora(r: int, where: str | None = None) -> str:
    """Return the name of LoRA at a rank, on all layers or on some."""
    return f"r = {r}" if where is None else f"{where}, r = {r}"


def layer_label(results: Results, where: str) -> str:
    """Return the label of a choice of layers."""
    r = results["settings"]["layers"][where]
    return lora(r) if where == LAYERS[0] else lora(r, where)


def at_steps(results: Results, name: str, steps: int) -> dict[int, float]:
    """Return the test losses by seed after so many steps."""
    return losses(results, label(name, _unless(results, "steps", steps)))


def at_batch(results: Results, name: str, size: int) -> dict[int, float]:
    """Return the test losses by seed with this batch size, after the same amount of data."""
    s = results["settings"]
    steps = s["batch_steps"][s["batch_sizes"].index(size)]
    own = _unless(results, "steps", steps), _unless(results, "batch_size", size)
    return losses(results, label(name, *own))


def claims(results: Results) -> list[Claim]:
    """Test the claims on complete results."""
    return [
        *rate_claims(results),
        *layer_claims(results),
        *capacity_claims(results),
        *batch_claims(results),
    ]


def rate_claims(results: Results) -> list[Claim]:
    """Test the claims about learning rates."""
    ranks = results["settings"]["rate_ranks"]
    ratios = rate_ratios(results)
    mean = [math.exp(sum(map(math.log, by)) / len(by)) for by in zip(*ratios.values())]
    order = sorted((r for r in ranks if ratios[r]), key=lambda r: geometric_mean(ratios[r]))
    low, high = (order[0], order[-1]) if order else (ranks[0], ranks[-1])
    spread = [b / a for a, b in zip(ratios[low], ratios[high])]
    each = "; ".join(f"r = {r}: {geometric_mean(ratios[r]):.2g}" for r in ranks if ratios[r])
    return [
        Claim(
            "rates",
            f"LoRA's best learning rate is about {RATIO:g} times that of full fine-tuning",
            f"the ratio, geometric mean over ranks, is within a factor of {ABOUT:g} of {RATIO:g} "
            "in the mean over seeds",
            f"{measured(mean, '.2f')}; {each}",
            lies_within(mean, RATIO / ABOUT, RATIO * ABOUT),
        ),
        Claim(
            "rates",
            "at one lora_alpha, the best rate is nearly the same at every rank",
            f"the rank with the highest mean rate over that with the lowest, of {ranks[0]} to "
            f"{ranks[-1]}, is below {NEARLY:g} in the mean over seeds",
            f"r = {high} over r = {low}: {measured(spread, '.2f')}",
            lies_within(spread, high=NEARLY),
        ),
    ]


def rate_ratios(results: Results) -> dict[int, list[float]]:
    """Return by rank LoRA's best rate over full fine-tuning's, for each seed."""
    full, found = minima(results, FULL), {}
    for r in results["settings"]["rate_ranks"]:
        own = minima(results, lora(r))
        pairs = [(own[seed], full[seed]) for seed in sorted(own) if seed in full]
        found[r] = [a / b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    return found


def layer_claims(results: Results) -> list[Claim]:
    """Test the claims about layers."""
    everywhere, attention, mlp = (losses(results, layer_label(results, w)) for w in LAYERS)
    equal = SAME * results["base_test_loss"]
    worse, same = differences(attention, everywhere), differences(mlp, everywhere)
    ranks = results["settings"]["layers"]
    at = ", ".join(f"{where} r = {ranks[where]}" for where in LAYERS)
    return [
        Claim(
            "layers",
            "attention alone is worse than all layers at equal trainable parameters",
            f"the test loss of attention less that of all layers is above 0 ({at})",
            measured(worse),
            lies_within(worse, low=equal),
        ),
        Claim(
            "layers",
            "the MLP alone is as good as all layers",
            f"the test loss of the MLP less that of all layers is below {EQUAL}",
            measured(same),
            lies_within(same, high=EQUAL),
        ),
    ]


def capacity_claims(results: Results) -> list[Claim]:
    """Test the claims about capacity: where a rank falls off full fine-tuning's curve."""
    s = results["settings"]
    (low, high), (first, *_, last) = s["ranks"], s["capacity_steps"]
    grows = _growth(excess(results, low, first), excess(results, low, last))
    later = _growth(excess(results, high, last), excess(results, low, last))
    equal = SAME * results["base_test_loss"]
    off = "; ".join(f"r = {r}: {falls_off(results, r)}" for r in (low, high))
    return [
        Claim(
            "capacity",
            "a low rank falls off the curve of full fine-tuning as the data grow",
            f"r = {low}'s test loss less full's is larger after {last} steps than after {first}",
            f"{measured(grows)}; above {EQUAL} {off}",
            lies_within(grows, low=equal),
        ),
        Claim(
            "capacity",
            "a higher rank stays closer to the curve of full fine-tuning",
            f"after {last} steps r = {high} lies above full by less than r = {low}",
            measured(later),
            lies_within(later, low=equal),
        ),
    ]


def excess(results: Results, r: int, steps: int) -> dict[int, float]:
    """Return by seed how far LoRA's test loss lies above full fine-tuning's."""
    full = at_steps(results, FULL, steps)
    return {k: x - full[k] for k, x in at_steps(results, lora(r), steps).items() if k in full}


def falls_off(results: Results, r: int) -> str:
    """Say from how much data on a rank is above full fine-tuning, over all seeds."""
    s, first = results["settings"], None
    for steps in reversed(s["capacity_steps"]):
        found = interval(list(excess(results, r, steps).values()))
        if found is None or found[0] <= EQUAL:
            break
        first = steps
    if first is None:
        return "nowhere"
    return f"from {first * s['batch_size'] * s['block_size']:,} bytes on"


def batch_claims(results: Results) -> list[Claim]:
    """Test the claims about the batch size."""
    s = results["settings"]
    (low, high), (small, *_, large) = s["ranks"], s["batch_sizes"]
    growth = {
        r: _growth(batch_gap(results, r, small), batch_gap(results, r, large)) for r in (low, high)
    }
    apart = [a - b for a, b in zip(growth[low], growth[high])]
    return [
        Claim(
            "batch",
            "LoRA tolerates large batches less than full fine-tuning",
            f"r = {high}'s test loss less full's, after the same data, is larger with a batch of "
            f"{large} than of {small}",
            measured(growth[high]),
            lies_within(growth[high], low=SAME * results["base_test_loss"]),
        ),
        Claim(
            "batch",
            "LoRA's tolerance of large batches does not depend on the rank",
            f"r = {low}'s test loss less full's grows from {small} to {large} as much as that of "
            f"r = {high}, within {EQUAL}",
            measured(apart),
            lies_within(apart, -EQUAL, EQUAL),
        ),
    ]


def batch_gap(results: Results, r: int, size: int) -> dict[int, float]:
    """Return by seed how far LoRA's test loss lies above full's with this batch size."""
    full = at_batch(results, FULL, size)
    return {k: x - full[k] for k, x in at_batch(results, lora(r), size).items() if k in full}


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _growth(before: dict[int, float], after: dict[int, float]) -> list[float]:
    return differences(after, before)


def _unless(results: Results, name: str, value: int) -> int | None:
    """Return a setting, or None if it is the task's own."""
    return None if results["settings"][name] == value else value
