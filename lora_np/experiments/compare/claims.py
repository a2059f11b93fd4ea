"""What articles about LoRA and its rivals claim, and what the table says of it.

A claim needs the rows that enter it (rows.py): without them it is not made. With fewer than three
seeds, a claim about losses is not decided. Numbers and bytes are counted on the small model of the
comparison. Where articles speak of other models, theirs are counted beside it, and the claim must
hold of both.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lora_np.costs import KNOWN_MODELS
from lora_np.experiments.claims import Claim, differences, lies_within, measured
from lora_np.experiments.compare.rows import HIGH, LOW, RANK, TOKENS
from lora_np.experiments.search import SAME
from lora_np.experiments.study.losses import Results, losses

SAID = "said in articles"
EQUAL = 0.01  # nats a byte: losses closer than this are called equal
SLOWER = 1.05  # a latency below this ratio is called equal
THIRD, NEAR_THIRD = 1 / 3, 0.05
SMALLER = 10_000  # "350 GB become 35 MB", said of GPT-3
GPT3 = "GPT-3 175B, q v"

ELSEWHERE = {  # claims that no row of the table decides, and what does
    "lora_alpha controls the learning rate; alpha should be 2 to 4 r": "lora-np grid",
    "DyLoRA is 4 to 7 times faster": "lora-np dylora",
    "dropout belongs on Delta W": "docs/derivations/dropout.md",
    "LoRA does not fit recurrent networks": "docs/derivations/recurrent.md",
    "subtracting B A restores W0": "lora_np.unmerge",
}


def claims(results: Results) -> list[Claim]:
    """Test the claims on complete results."""
    tests = (
        (_lora_share, "lora"),
        (_prefix_share, "prefix"),
        (_file, "lora", "full"),
        (_memory, "lora", "full"),
        (_inference_size, "lora"),
        (_faster, "lora", "full"),
        (_fewer_is_faster, "lora"),
        (_adapters, "adapter", "lora"),
        (_as_good, "lora", "full"),
        (_forgets, "lora", "full"),
        (_converges, "high rank", "full", "low rank"),
        (_large_rank, "lora", "high rank"),
        (_rg, "wrg", "lora"),
        (_both_random, "random", "lora"),
        (_both_zero, "zero"),
    )
    found = []
    for test, *roles in tests:
        rows = [entering(results, role) for role in roles]
        missing = [role for role, labels in zip(roles, rows) if not labels]
        found += [] if missing else [test(results, *rows)]
    return found


def entering(results: Results, role: str) -> list[str]:
    """Return the labels of the rows that enter claims in a role."""
    return [label for label, row in results["settings"]["rows"].items() if role in row["enters"]]


def share(results: Results, label: str) -> float:
    """Return the trainable numbers over those of the base."""
    costs = results["measured"][label]
    return costs["trainable"] / costs["base"]


def ratios(results: Results, label: str, other: str, key: str) -> list[float]:
    """Return a time over that of another contender, for every round."""
    costs = results["measured"]
    return [a / b for a, b in zip(costs[label][key], costs[other][key], strict=True)]


# ------------------------------------------------------------------------------ what is counted


def _lora_share(results: Results, lora: Sequence[str]) -> Claim:
    shares = {"here": share(results, lora[0]), **_known_shares()}
    return Claim(
        SAID,
        f"LoRA with r = {RANK} trains 1 % of the parameters",
        "the share rounds to 1 % here and on the models of lora-np account",
        "; ".join(f"{name} {100 * x:.2f} %" for name, x in shares.items()),
        all(round(100 * x) == 1 for x in shares.values()),
    )


def _known_shares() -> dict[str, float]:
    """Return LoRA's numbers over those of the base, for the models of ``lora-np account``."""
    return {
        name: sum(count * r * (d_out + d_in) for count, d_out, d_in in matrices) / base
        for name, (matrices, r, base) in KNOWN_MODELS.items()
    }


def _prefix_share(results: Results, prefix: Sequence[str]) -> Claim:
    found = share(results, prefix[0])
    return Claim(
        SAID,
        "prefix tuning trains 0.5 % of the parameters",
        "the share rounds to 0.5 %, here",
        f"{100 * found:.2f} %, with {TOKENS} keys and values in every layer",
        round(1000 * found) == 5,
    )


def _file(results: Results, lora: Sequence[str], full: Sequence[str]) -> Claim:
    costs = results["measured"]
    whole, small = costs[full[0]]["file_bytes"], costs[lora[0]]["file_bytes"]
    times = {"here": whole / small, GPT3: 1 / _known_shares()[GPT3]}
    return Claim(
        SAID,
        f"LoRA's checkpoint is {SMALLER:,} times smaller",
        f"the factor is within a tenth of {SMALLER:,} here, and for GPT-3 with q and v at r = 4",
        "; ".join(f"{name} {factor:,.1f}" for name, factor in times.items()),
        all(abs(factor / SMALLER - 1) < 0.1 for factor in times.values()),
    )


def _memory(results: Results, lora: Sequence[str], full: Sequence[str]) -> Claim:
    costs = results["measured"]
    found = costs[lora[0]]["peak_bytes"] / costs[full[0]]["peak_bytes"]
    return Claim(
        SAID,
        "training memory falls by two thirds",
        f"LoRA's peak memory of a step over full's is within {NEAR_THIRD} of 1/3, here",
        f"{found:.2f}",
        abs(found - THIRD) < NEAR_THIRD,
    )


def _inference_size(results: Results, lora: Sequence[str]) -> Claim:
    costs = results["measured"][lora[0]]
    return Claim(
        SAID,
        "the model is smaller at inference",
        "merged LoRA has fewer numbers than the base",
        f"{costs['inference_numbers']:,} and {costs['base']:,}",
        costs["inference_numbers"] < costs["base"],
    )


# --------------------------------------------------------------------------------- what is timed


def _faster(results: Results, lora: Sequence[str], full: Sequence[str]) -> Claim:
    found = ratios(results, lora[0], full[0], "step_seconds")
    return Claim(
        SAID,
        "fewer gradients make a step faster than full fine-tuning's",
        "LoRA's step over full's is below 1 in the mean over rounds",
        measured(found, ".2f"),
        lies_within(found, high=1.0),
    )


def _fewer_is_faster(results: Results, lora: Sequence[str]) -> Claim:
    costs, own = results["measured"], lora[0]
    fewer = [n for n in costs if costs[n]["trainable"] < costs[own]["trainable"]]
    found = {name: ratios(results, name, own, "step_seconds") for name in fewer}
    slower = [name for name in fewer if lies_within(found[name], high=1.0) is False]
    return Claim(
        SAID,
        "the fewer numbers a method trains, the faster its step",
        "no method that trains fewer numbers than LoRA has a slower step, in the mean over rounds",
        f"{len(slower)} of {len(fewer)} are slower"
        + "".join(f"; {name} {statistics.median(found[name]):.2f}" for name in slower),
        _all([lies_within(values, high=1.0) for values in found.values()]),
    )


def _adapters(results: Results, adapters: Sequence[str], lora: Sequence[str]) -> Claim:
    found = {name: ratios(results, name, lora[0], "latency_1") for name in adapters}
    return Claim(
        SAID,
        "adapters are fast at inference",
        f"at batch 1 the latency of each over merged LoRA's is below {SLOWER}",
        "; ".join(f"{name} {measured(values, '.2f')}" for name, values in found.items()),
        _all([lies_within(values, high=SLOWER) for values in found.values()]),
    )


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    """Return whether all hold; None where that is not decided, or where there is nothing."""
    if False in verdicts:
        return False
    return None if None in verdicts or not verdicts else True


# ------------------------------------------------------------------------------- what is learned


def _apart(results: Results, one: str, other: str, key: str = "test_loss") -> list[float]:
    return differences(losses(results, one, key=key), losses(results, other, key=key))


def _as_good(results: Results, lora: Sequence[str], full: Sequence[str]) -> Claim:
    apart = _apart(results, lora[0], full[0])
    return Claim(
        SAID,
        "LoRA is as good as full fine-tuning",
        f"its test loss less full's is below {EQUAL}",
        measured(apart),
        lies_within(apart, high=EQUAL),
    )


def _forgets(results: Results, lora: Sequence[str], full: Sequence[str]) -> Claim:
    apart = _apart(results, full[0], lora[0], "pretrain_loss")
    return Claim(
        SAID,
        "LoRA forgets less than full fine-tuning",
        "full's loss on the pretraining text less LoRA's is above 0",
        measured(apart),
        lies_within(apart, low=SAME * results["base_test_loss"]),
    )


def _converges(
    results: Results, high: Sequence[str], full: Sequence[str], low: Sequence[str]
) -> Claim:
    near, far = (_apart(results, name[0], full[0]) for name in (high, low))
    closer = [abs(b) - abs(a) for a, b in zip(near, far)]
    return Claim(
        SAID,
        "as its parameters grow, LoRA converges to full fine-tuning",
        f"r = {HIGH} is closer to full's test loss than r = {LOW}, and within {EQUAL} of it",
        f"closer by {measured(closer)}; r = {HIGH} less full {measured(near)}",
        _all([lies_within(closer, low=0.0), lies_within(near, -EQUAL, EQUAL)]),
    )


def _large_rank(results: Results, lora: Sequence[str], high: Sequence[str]) -> Claim:
    gain = _apart(results, lora[0], high[0])
    return Claim(
        SAID,
        "use a large r",
        f"the test loss at r = {RANK} less that at r = {HIGH} is above {EQUAL}",
        measured(gain),
        lies_within(gain, low=EQUAL),
    )


def _rg(results: Results, wrg: Sequence[str], lora: Sequence[str]) -> Claim:
    apart = _apart(results, wrg[0], lora[0])
    return Claim(
        SAID,
        "LoRA factors the pretrained W into R G and trains R",
        f"the test loss of W = R G is within {EQUAL} of LoRA's",
        measured(apart),
        lies_within(apart, -EQUAL, EQUAL),
    )


def _both_random(results: Results, random: Sequence[str], lora: Sequence[str]) -> Claim:
    apart = _apart(results, random[0], lora[0])
    return Claim(
        SAID,
        "A and B may both start at random",
        f"the test loss with both random less LoRA's is below {EQUAL}",
        measured(apart),
        lies_within(apart, high=EQUAL),
    )


def _both_zero(results: Results, zero: Sequence[str]) -> Claim:
    base = results["base_test_loss"]
    moved = [loss - base for loss in losses(results, zero[0]).values()]
    equal = SAME * base
    return Claim(
        "control",
        "A and B both zero never train",
        "their test loss is the base's",
        measured(moved, ".1e"),
        lies_within(moved, -equal, equal),
    )
