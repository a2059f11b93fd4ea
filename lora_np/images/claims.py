"""What the report on images claims, and whether the measured numbers reach it.

A bar is reached if every seed reaches it, and missed if none does; if some do, the claim is within
the spread over seeds. Two contenders are compared seed by seed, and a difference counts if its mean
exceeds its range over seeds. A claim without a measurement says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from lora_np.images.plan import (
    BASE,
    CHOSEN,
    JUDGE,
    LCM,
    LCM_FULL,
    LCM_SMALL,
    OUTLINE,
    REFINED,
    SPEED,
    STYLE,
    STYLE_FULL,
    SUM,
    SUM_BARS,
)
from lora_np.tables import Table

Row = Mapping[str, Any]
Results = Mapping[str, Any]
REACHED, MISSED, WITHIN = "reached", "missed", "within the spread"
UNMEASURED = "not measured"
HOW = ("sampler", "steps", "guidance", "weight", "weights")  # of a drawn set, beside its model


# ------------------------------------------------------------------------------- what was found


def rows_of(results: Results, work: str) -> list[dict[str, Any]]:
    """Return the rows of scores that a piece of work left, over all seeds."""
    return [
        {**row, "seed": seed}
        for seed in range(results["settings"]["seeds"])
        for row in results["done"].get(f"{work}, seed {seed}", {}).get("rows", ())
    ]


def scores(
    results: Results, work: str, part: str, model: str, key: str = "fd", **how: Any
) -> list[float]:
    """Return a score of a drawn set for each seed; empty if none was drawn.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``.
    work : str
        What was being drawn: "regular", "styled", "weighed" or "outlined".
    part, model : str
        The set of images that it was judged beside, and what drew it; "real" for real images.
    key : str
    **how
        Any of `HOW`. Guidance is 1 unless it is given.
    """
    if model != "real":
        how = {"guidance": 1.0, **how}
    wanted = {"set": part, "model": model, **{name: how.get(name) for name in HOW}}
    return [
        row[key]
        for row in rows_of(results, work)
        if all(row.get(name) == value for name, value in wanted.items())
    ]


def of_training(results: Results, what: str, key: str) -> list[Any]:
    """Return what is known of a training, or of other work, for each seed."""
    found = (results["done"].get(f"{what}, seed {i}") for i in range(results["settings"]["seeds"]))
    return [one[key] for one in found if one is not None]


def chosen_pair(results: Results) -> list[float] | None:
    """Return the weights of the sum that were chosen; None before they are."""
    return results["done"].get(CHOSEN, {}).get("weights")


# ---------------------------------------------------------------------------------- the verdicts


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return one score over another, seed by seed; empty if either was not measured.

    Examples
    --------
    >>> from lora_np.images.claims import ratios
    >>> ratios([2.0, 3.0], [4.0, 4.0]), ratios([2.0], [])
    ([0.5, 0.75], [])
    """
    if not ours or not theirs:
        return []
    return [x / y if y else math.inf for x, y in zip(ours, theirs, strict=True)]


def verdict(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> str:
    """Return whether values, one for each seed, reach a bar.

    Examples
    --------
    >>> from lora_np.images.claims import verdict
    >>> [verdict([0.7, 0.8], low=bar) for bar in (0.7, 0.75, 0.9)]
    ['reached', 'within the spread', 'missed']
    """
    if not values:
        return UNMEASURED
    reached = [low <= value <= high for value in values]
    return REACHED if all(reached) else WITHIN if any(reached) else MISSED


def sign(ours: Sequence[float], theirs: Sequence[float]) -> int:
    """Return 1 if our scores are higher than theirs, -1 if lower, 0 within the spread over seeds.

    Examples
    --------
    >>> from lora_np.images.claims import sign
    >>> sign([5.0, 5.2], [4.0, 4.1]), sign([5.0, 4.0], [4.0, 4.5])
    (1, 0)
    """
    differences = [x - y for x, y in zip(ours, theirs, strict=True)]
    middle, spread = mean(differences), max(differences) - min(differences)
    return 0 if abs(middle) <= spread else 1 if middle > 0 else -1


def below(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return whether our scores are lower than theirs by more than the spread over seeds."""
    if not ours or not theirs:
        return UNMEASURED
    return {-1: REACHED, 0: WITHIN, 1: MISSED}[sign(ours, theirs)]


def not_above(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return whether our scores are not higher than theirs by more than the spread over seeds."""
    if not ours or not theirs:
        return UNMEASURED
    return MISSED if sign(ours, theirs) > 0 else REACHED


def ranged(values: Sequence[float], form: str = ".2f") -> str:
    """Return a mean over seeds, and the range if it shows in this many digits.

    Examples
    --------
    >>> from lora_np.images.claims import ranged
    >>> ranged([0.7, 0.8]), ranged([0.7, 0.701]), ranged([])
    ('0.75 [0.70, 0.80]', '0.70', '-')
    """
    if not values:
        return "-"
    low, high = (format(end, form) for end in (min(values), max(values)))
    return format(mean(values), form) + (f" [{low}, {high}]" if low != high else "")


# ------------------------------------------------------------------------------------ the claims


class Claim(NamedTuple):
    """A claim: its bar, a value for each seed, the verdict, and what must stand beside it."""

    says: str
    bar: str
    values: Sequence[float]
    form: str
    verdict: str
    beside: str = ""


def claims_table(results: Results) -> Table:
    """Return a table: a row for each claim, with its verdict and what stands beside it."""
    claims = all_claims(results)
    columns = {
        "claim": [claim.says for claim in claims],
        "bar": [claim.bar for claim in claims],
        "mean [range]": [ranged(claim.values, claim.form) for claim in claims],
        "verdict": [claim.verdict for claim in claims],
        "beside it": [claim.beside for claim in claims],
    }
    return Table(columns, dict.fromkeys(columns, "<"))


def all_claims(results: Results) -> list[Claim]:
    """Return every claim, in the order of what is trained."""
    parts = (_of_base, _of_style, _of_students, _of_sum, _of_outline)
    return [claim for part in parts for claim in part(results)]


def _at_most(says: str, bar: float, values: Sequence[float], form: str, beside: str = "") -> Claim:
    return Claim(says, f"<= {bar:,g}", values, form, verdict(values, high=bar), beside)


def _at_least(says: str, bar: float, values: Sequence[float], form: str, beside: str = "") -> Claim:
    return Claim(says, f">= {bar:g}", values, form, verdict(values, low=bar), beside)


def beside(results: Results, work: str, part: str, model: str, **how: Any) -> str:
    """Return what stands beside a share that the judge reads: FD and spread over real images'."""
    said = []
    for key, name in (("fd", "FD / floor"), ("spread", "spread / real")):
        real = scores(results, work, part, "real", key)
        said.append(
            f"{name} {ranged(ratios(scores(results, work, part, model, key, **how), real))}"
        )
    return ", ".join(said)


def _of_base(results: Results) -> Iterable[Claim]:
    judge = results["done"].get(JUDGE)
    cpu = [x + judge["cpu_seconds"] for x in of_training(results, BASE, "cpu_seconds") if judge]
    yield _at_most("base and judge: CPU s of one core", 90, cpu, ".0f")
    at = ("regular", "all", BASE)
    how = {"sampler": "ddim", "steps": 20}
    letter, fd = (scores(results, *at, key, **how) for key in ("letter", "fd"))
    yield _at_least("base: letter", 0.995, letter, ".3f", beside(results, *at, **how))
    over = ratios(fd, scores(results, "regular", "all", "real"))
    yield _at_most("base: FD / floor", 1.15, over, ".2f", f"letter {ranged(letter, '.3f')}")
    sure = of_training(results, "regular", "sure")
    yield _at_least("no prompt: judge sure of a letter", 0.7, sure, ".2f")
    for steps in (4, 8):
        fast, slow = (
            scores(results, *at, sampler=name, steps=steps) for name in ("dpm_solver", "ddim")
        )
        said = f"DPM-Solver, {steps} steps: FD / DDIM's"
        yield _at_most(said, 0.85, ratios(fast, slow), ".2f", f"DDIM's FD {ranged(slow)}")


def _of_style(results: Results) -> Iterable[Claim]:
    numbers, seconds = (of_training(results, STYLE, key) for key in ("parameters", "cpu_seconds"))
    r, how = results["settings"]["r"], {"sampler": "ddim", "steps": 20}
    yield _at_most(f"style r = {r}: parameters", 40_000, numbers, ",.0f")
    yield _at_most(f"style r = {r}: CPU s", 10, seconds, ".1f")
    lora, full = (scores(results, "styled", "seen", name, **how) for name in (STYLE, STYLE_FULL))
    said = f"base {ranged(ratios(scores(results, 'styled', 'seen', BASE, **how), full))}"
    yield _at_most("style, seen: FD / full's", 1.15, ratios(lora, full), ".2f", said)
    at = ("styled", "unseen", STYLE)
    for key, bar in (("style", 0.6), ("letter", 0.98)):
        other = ranged(scores(results, "styled", "unseen", BASE, key, **how), ".3f")
        said = f"base {other}; {beside(results, *at, **how)}"
        yield _at_least(f"style, unseen: {key}", bar, scores(results, *at, key, **how), ".3f", said)
    lora, full = (scores(results, "styled", "unseen", name, **how) for name in (STYLE, STYLE_FULL))
    said = f"base {ranged(ratios(scores(results, 'styled', 'unseen', BASE, **how), full))}"
    over = ratios(lora, full)
    yield Claim("style, unseen: FD / full's", "below 1", over, ".2f", below(lora, full), said)
    done = len(of_training(results, STYLE, "parameters")) == results["settings"]["seeds"]
    held = REACHED if done else UNMEASURED  # a changed weight stops the run
    yield Claim("the base, after every training", "bit-equal", [], "", held)


def _of_students(results: Results) -> Iterable[Claim]:
    def drawn(model: str, steps: int, sampler: str = "consistency") -> list[float]:
        return scores(results, "regular", "all", model, sampler=sampler, steps=steps)

    names = {LCM_FULL: "LCM, full", LCM: f"LCM-LoRA, r = {results['settings']['r_lcm']}"}
    for model, name in names.items():
        yield _at_most(f"{name}: CPU s", 30, of_training(results, model, "cpu_seconds"), ".0f")
        one, fifty = drawn(BASE, 1, "ddim"), drawn(BASE, 50, "ddim")
        alone = f"base, same sampler {ranged(ratios(drawn(BASE, 1), one))}"
        said = f"{name}, 1 step: FD / DDIM-1's"
        yield _at_most(said, 0.2, ratios(drawn(model, 1), one), ".2f", alone)
        four = drawn(model, 4)
        alone = f"base, same sampler {ranged(ratios(drawn(BASE, 4), fifty))}"
        said, bar = f"{name}, 4 steps: FD / DDIM-50's", "not above 1"
        over = ratios(four, fifty)
        yield Claim(said, bar, over, ".2f", not_above(four, fifty), alone)
    full, high, low = (drawn(model, 4) for model in (LCM_FULL, LCM, LCM_SMALL))
    said = f"full's FD {ranged(full)}"
    yield _at_most("LCM-LoRA, 4 steps: FD / full's", 1.15, ratios(high, full), ".2f", said)
    r, r_lcm = (results["settings"][name] for name in ("r_small", "r_lcm"))
    said = f"LCM-LoRA, r = {r}, 4 steps: FD / that of r = {r_lcm}"
    yield _at_most(said, 1.15, ratios(low, high), ".2f", f"FD {ranged(high)} at r = {r_lcm}")
    speed = results["done"].get(SPEED)
    times = [] if speed is None else [speed["ratio"]]
    yield _at_least("DDIM-50's time / that of one step", 25, times, ".1f")


def _of_sum(results: Results) -> Iterable[Claim]:
    """Return the claims about a pair of weights for both parts, one for each alone, and (1, 1)."""
    chosen = chosen_pair(results)
    for part, bar in SUM_BARS.items():
        pair = chosen or [1.0, 1.0]
        yield from _one_sum(results, pair, f"{pair_text(pair)}, {part}", part, *bar)
    for part, pair in results["done"].get(CHOSEN, {}).get("alone", {}).items():
        if pair != chosen:
            name = f"{pair_text(pair)}, {part}, chosen for it alone"
            yield from _one_sum(results, pair, name, part, *SUM_BARS[part])
    if chosen not in (None, [1.0, 1.0]):
        for part, bar in SUM_BARS.items():
            yield from _one_sum(results, [1.0, 1.0], f"(1, 1), {part}, not chosen", part, *bar)


def _one_sum(
    results: Results, pair: list[float], name: str, part: str, steps: int, bar: float
) -> Iterable[Claim]:
    def drawn(key: str, model: str, sampler: str, steps: int, **how: Any) -> list[float]:
        return scores(results, "styled", part, model, key, sampler=sampler, steps=steps, **how)

    def over(key: str, model: str, **how: Any) -> list[float]:
        return ratios(drawn(key, model, "consistency", 2, **how), drawn(key, STYLE, "ddim", steps))

    said = f"sum {name}: FD / style DDIM-{steps}'s"
    alone = f"no LCM-LoRA {ranged(over('fd', STYLE))}"
    yield _at_most(said, bar, over("fd", SUM, weights=pair), ".2f", alone)
    if part == "seen":
        said = f"sum {name}: spread / style DDIM-{steps}'s"
        alone = f"no LCM-LoRA {ranged(over('spread', STYLE))}"
        yield _at_least(said, 1.5, over("spread", SUM, weights=pair), ".2f", alone)


def pair_text(pair: Sequence[float]) -> str:
    """Return two weights as text.

    Examples
    --------
    >>> from lora_np.images.claims import pair_text
    >>> pair_text([1.0, 0.6])
    '(1, 0.6)'
    """
    return f"({', '.join(f'{weight:g}' for weight in pair)})"


def _of_outline(results: Results) -> Iterable[Claim]:
    how, part = {"sampler": "ddim", "steps": 20}, "outline-unseen"
    for model, name in ((OUTLINE, "outline, MLP"), (REFINED, "outline, refiner")):
        letter = scores(results, "outlined", part, model, "letter", **how)
        said = beside(results, "outlined", part, model, **how) if letter else ""
        if model == REFINED:
            yield _at_least(f"{name}, unseen: letter", 0.9, letter, ".3f", said)
        else:
            fails = verdict(letter, high=0.9)
            shown = {REACHED: "shown", MISSED: "not so"}.get(fails, fails)
            yield Claim(f"{name}, unseen: letter", "fails: < 0.9", letter, ".3f", shown, said)
