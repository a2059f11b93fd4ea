"""The claims of the paper, and whether our numbers support them.

Each claim comes with a rule, which decides on the measured numbers alone: yes, no, or that the
numbers cannot tell (None). The paper gives one threshold, phi > 0.5 for a shared direction; the
others are ours. Losses are compared seed by seed, and a difference counts beyond two standard
errors (:func:`lora_np.experiments.rank_sweep.report.beats`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_np.experiments.claims import Claim
from lora_np.experiments.paper.directions import below_the_top, excess, mean_excess
from lora_np.experiments.rank_sweep.report import beats
from lora_np.train.equal import is_gain, lowest

Losses = Mapping[str, dict[int, float]]  # by matrices, then by seed
ENOUGH = 0.9  # of the best rank's gain: what "suffices" means here
COMMON = 0.1  # of the way from chance to equality: what "common directions" means here


def all_claims(content: Mapping[str, Any]) -> list[Claim]:
    """Test every claim on the content of ``paper.json``."""
    losses = by_matrices(content["table5"]["rows"])
    means = {
        targets: {row["rank"]: _mean(row["losses"]) for row in rows if row["losses"]}
        for targets, rows in _grouped(content["table6"]["rows"]).items()
    }
    return [
        *figure3_claims(content["figure3"]),
        *figure4_claims(content["figure4"]),
        *table5_claims(losses, content["base_test_loss"]),
        *table6_claims(means, content["base_test_loss"]),
        *table7_claims(content["table7"]["rows"]),
    ]


def by_matrices(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return losses by seed for each set of matrices, from a table with one rank for each set."""
    return {row["targets"]: {int(s): x for s, x in row["losses"].items()} for row in rows}


def figure3_claims(figure: Mapping[str, Any]) -> list[Claim]:
    """Test the claims about figure 3.

    Parameters
    ----------
    figure : mapping
        As :func:`lora_np.experiments.paper.directions.figure` returns it, of a low and a high rank.
    """
    panels, d = figure["panels"], figure["d"]
    tops = {path: grid[0][0] for path, grid in panels.items()}
    rest = {path: below_the_top(grid, d) for path, grid in panels.items()}
    i, chance = figure["ranks"][0], next(iter(rest.values()))[1]
    deep = {path: excess(*rest[path]) for path in panels}
    return [
        Claim(
            "figure 3",
            "the low and the high rank share their top direction",
            "phi(1, 1) > 0.5 in every matrix",
            f"phi(1, 1): {_listed(tops)}",
            all(phi > 0.5 for phi in tops.values()),
        ),
        Claim(
            "figure 3",
            "the other directions are not shared",
            f"without the first, directions 2 to {i} lie less than half as far above chance as "
            "the first does, in every matrix",
            f"their phi: {_listed({path: phi for path, (phi, _) in rest.items()})}; "
            f"chance: {chance:.2f}",
            all(deep[path] < 0.5 * excess(tops[path], 1 / d) for path in panels),
        ),
    ]


def figure4_claims(figure: Mapping[str, Any]) -> list[Claim]:
    """Test the claims about figure 4.

    Parameters
    ----------
    figure : mapping
        As :func:`lora_np.experiments.paper.directions.figure` returns it, of one rank and itself.
    """
    above = {path: mean_excess(grid, figure["d"]) for path, grid in figure["panels"].items()}
    control = mean_excess(figure["control"], figure["d"])
    q, v = (
        float(np.mean([x for path, x in above.items() if path.endswith(name)]))
        for name in ("q_proj", "v_proj")
    )
    return [
        Claim(
            "figure 4",
            "two seeds find common directions, random matrices have none",
            f"averaged over i, phi(i, i) lies more than {COMMON:g} of the way from chance to 1 in "
            "every matrix, and less in random ones",
            f"of the way: {_listed(above)}, random {control:.2f}",
            all(x > COMMON for x in above.values()) and control < COMMON,
        ),
        Claim(
            "figure 4",
            "seeds have more in common for q than for v",
            "that is more for q than for v, averaged over layers",
            f"q {q:.3f}, v {v:.3f}",
            q > v,
        ),
    ]


def table5_claims(losses: Losses, base: float) -> list[Claim]:
    """Test the claims about table 5.

    Parameters
    ----------
    losses : mapping
        Losses of the budget spent on each set of matrices, by seed.
    base : float
        The loss without an adapter.
    """

    def gains(one: str, other: str) -> bool | None:
        return beats(losses[one], losses[other], base)

    rivals = {name: gains(name, "q,v") for name in ("q", "k", "v", "o", "q,k", "q,k,v,o")}
    before = [name for name, won in rivals.items() if won]
    single = {name: _mean(losses[name]) for name in ("q", "k", "v", "o") if losses[name]}
    best = next(iter(lowest(single, base)), "q")
    return [
        Claim(
            "table 5",
            "the whole budget on q alone, or on k alone, is worse than on q and v",
            "q,v has the lower loss beyond two standard errors, against both",
            _losses(losses, ("q,v", "q", "k")),
            _all(gains("q,v", "q"), gains("q,v", "k")),
        ),
        Claim(
            "table 5",
            "q and v together are the best choice in attention",
            "no other set has a lower loss beyond two standard errors",
            f"lower are: {'; '.join(before) or 'none'} ({_losses(losses, ('q,v', *before))})",
            _all(*(None if won is None else not won for won in rivals.values())),
        ),
        Claim(
            "table 5",
            "more kinds of matrix at a lower rank are better than one at a higher",
            "q,k,v,o has a lower loss than the best single kind, beyond two standard errors",
            _losses(losses, ("q,k,v,o", best)),
            gains("q,k,v,o", best),
        ),
    ]


def table6_claims(means: Mapping[str, Mapping[int, float]], base: float) -> list[Claim]:
    """Test the claims about table 6.

    Parameters
    ----------
    means : mapping
        Mean losses by matrices and rank, without ranks that diverged.
    base : float
        The loss without an adapter.
    """
    share = {name: lowest_rank_share(losses, base) for name, losses in means.items()}
    q, qv, qkvo = (share.get(name) for name in ("q", "q,v", "q,k,v,o"))
    said = ", ".join(f"{n} {'?' if s is None else f'{100 * s:.0f} %'}" for n, s in share.items())
    enough = f"{100 * ENOUGH:.0f} %"
    return [
        Claim(
            "table 6",
            "the lowest rank suffices for q,v and for q,k,v,o",
            f"it has at least {enough} of the best rank's gain over the base, on both",
            f"share of the best rank's gain: {said}",
            _all(*(None if s is None else s >= ENOUGH for s in (qv, qkvo))),
        ),
        Claim(
            "table 6",
            "q alone needs a higher rank than q,v",
            f"the lowest rank has less than {enough} of the best rank's gain on q, and at least "
            "that on q,v",
            f"share of the best rank's gain: {said}",
            None if q is None or qv is None else q < ENOUGH <= qv,
        ),
    ]


def lowest_rank_share(losses: Mapping[int, float], base: float) -> float | None:
    """Return the gain of the lowest rank as a share of that of the best rank; None without gain.

    Parameters
    ----------
    losses : mapping of int to float
        By rank.
    base : float
    """
    best = min(losses.values(), default=base)
    return (base - losses[min(losses)]) / (base - best) if is_gain(base, best) else None


def table7_claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Test the claims about table 7.

    Parameters
    ----------
    rows : sequence of mapping
        As :func:`lora_np.experiments.paper.directions.table7` returns them.
    """
    above = [row["in_delta"] / row["in_random"] for row in rows]
    below = [row["in_delta"] / row["in_W0"] for row in rows]
    factors = {r: [row["factor"] for row in of_r] for r, of_r in _grouped(rows, "rank").items()}
    low, high = min(factors), max(factors)
    return [
        Claim(
            "table 7",
            "the change lies to W0 more than a random one would",
            "||U^T W0 V^T|| is larger in the change's directions than in random ones, in every row",
            f"ratio to random: {_range(above)}",
            all(ratio > 1 for ratio in above),
        ),
        Claim(
            "table 7",
            "it does not repeat W0's own top directions",
            "||U^T W0 V^T|| is nearer, as a ratio, to that of random directions than to that of "
            "W0's own, in every row",
            f"ratio to W0's own: {_range(below)}; to random: {_range(above)}",
            all(a * b < 1 for a, b in zip(above, below)),
        ),
        Claim(
            "table 7",
            "what it finds there it amplifies, more so at the low rank",
            f"in every matrix the factor at r = {low} is above 1 and above that at r = {high}",
            f"factor at r = {low}: {_range(factors[low])}; at r = {high}: {_range(factors[high])}",
            all(a > max(1.0, b) for a, b in zip(factors[low], factors[high])),
        ),
    ]


def _grouped(rows: Sequence[Mapping[str, Any]], key: str = "targets") -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _all(*answers: bool | None) -> bool | None:
    """Return False if any answer is False, else None if any is None, else True."""
    return None if None in answers and False not in answers else all(answers)


def _mean(losses: Mapping[Any, float]) -> float:
    return float(np.mean(list(losses.values())))


def _losses(losses: Losses, names: Sequence[str]) -> str:
    shown = [f"{n} {_mean(losses[n]):.4f}" if losses[n] else f"{n} diverged" for n in names]
    return "; ".join(shown)


def _listed(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{path} {x:.2f}" for path, x in numbers.items())


def _range(numbers: Sequence[float]) -> str:
    return f"{min(numbers):.3g} to {max(numbers):.3g}"
