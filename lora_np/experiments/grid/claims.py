"""What the grid says: how far lora_alpha moves the loss, and how the best rate goes with s."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lora_np.experiments.claims import Claim, differences, lies_within, measured
from lora_np.experiments.study.losses import Results, curve, losses, mean_loss, minima

OURS = "an earlier trial of ours"
TUNED, FIXED = 0.012, 0.1  # nats a byte: by how much lora_alpha is said to move the loss
EXPONENT, NEAR = -0.5, 0.15  # of the best rate in s, and how near ours must be
STEP_NEAR = 0.05  # how near the exponent of the first step must be


def cell(r: int, alpha: float) -> str:
    """Return the label of a cell of the grid."""
    return f"r = {r}, alpha = {alpha:g}"


def claims(results: Results) -> list[Claim]:
    """Test the claims on complete results."""
    return [*loss_claims(results), *rate_claims(results), *step_claims(results)]


def loss_claims(results: Results) -> list[Claim]:
    """Test how far lora_alpha moves the loss, with the rate tuned and with one rate for all."""
    s = results["settings"]
    alphas = f"lora_alpha from {min(s['alphas']):g} to {max(s['alphas']):g}"
    span = "the test loss of the worst alpha less that of the best, at the rank where it is largest"
    found = []
    for lr, what in ((None, "with the rate tuned"), (s["common_lr"], "one rate for all")):
        r, worst, best, moved = widest(results, lr)
        at = f"r = {r}, alpha {worst:g} less {best:g}: {measured(moved)}"
        if lr is None:
            says = f"{what}, {alphas} moves the loss by less than {TUNED}"
            rule, agrees = (
                f"each cell at its best rate, is below {TUNED}",
                lies_within(moved, high=TUNED),
            )
        else:
            says = f"{what}, {alphas} moves the loss by more than {FIXED}"
            rule, agrees = f"every cell at {lr:g}, is above {FIXED}", lies_within(moved, low=FIXED)
            at += _other_rates(results)
        found.append(Claim(OURS, says, f"{span} (by their means), {rule}", at, agrees))
    return found


def rate_claims(results: Results) -> list[Claim]:
    """Test how the best rate goes with alpha / r, and with each of the two."""
    tests = (
        ("1 / sqrt(alpha / r)", "s = alpha / r", EXPONENT, exponents(results)),
        ("1 / sqrt(alpha) at one rank", "alpha", EXPONENT, both_exponents(results)[0]),
        ("sqrt(r) at one alpha", "r", -EXPONENT, both_exponents(results)[1]),
    )
    return [
        Claim(
            OURS,
            f"the best rate goes as {power}",
            f"the exponent of {of} in the best rate, fitted over all cells, is within {NEAR} of "
            f"{expected} in the mean over seeds",
            measured(found, ".2f"),
            lies_within(found, expected - NEAR, expected + NEAR),
        )
        for power, of, expected, found in tests
    ]


def step_claims(results: Results) -> list[Claim]:
    """Test how the first step goes with the scale."""
    steps = results["first_step"]
    return [
        Claim(
            "first step",
            f"{name} moves the weights as s^{power}",
            f"the fitted exponent is within {STEP_NEAR} of {power} in the mean over seeds",
            measured(steps[key]["exponents"], ".3f"),
            lies_within(steps[key]["exponents"], power - STEP_NEAR, power + STEP_NEAR),
        )
        for name, key, power in (("SGD", "sgd", 2), ("Adam", "adam", 1))
    ]


def widest(results: Results, lr: float | None = None) -> tuple[int, float, float, list[float]]:
    """Return where lora_alpha moves the test loss most, and by how much on each seed.

    The rank, the worst and the best alpha are those of the means over seeds. (The span of each seed
    alone would be above 0 by noise, however many seeds there are.)

    Parameters
    ----------
    results : mapping
    lr : float, optional
        One rate for all cells; by default each cell's best.

    Returns
    -------
    tuple
        The rank, the worst alpha, the best alpha, and the differences of their losses by seed.
    """
    s, found = results["settings"], []
    for r in s["ranks"]:
        means = {alpha: mean_loss(results, cell(r, alpha), lr) for alpha in s["alphas"]}
        worst, best = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        span = means[worst] - means[best] if means[best] < math.inf else 0.0
        found.append((span, r, worst, best))
    _, r, worst, best = max(found)
    pair = (losses(results, cell(r, alpha), lr) for alpha in (worst, best))
    return r, worst, best, differences(*pair)


def exponents(results: Results) -> list[float]:
    """Return for each seed the exponent p with which the best rate goes as (alpha / r)^p."""
    found = minima_by_seed(results).values()
    return [slope([(alpha / r, lr) for r, alpha, lr in cells]) for cells in found if len(cells) > 1]


def both_exponents(results: Results) -> tuple[list[float], list[float]]:
    """Return for each seed the p and the q with which the best rate goes as alpha^p r^q.

    Without a second rank there is no q.
    """
    p, q = [], []
    for cells in minima_by_seed(results).values():
        r, alpha, lr = np.log(np.array(cells)).T
        columns = np.stack([np.ones_like(r), alpha, r], axis=1)  # (cells, 3)
        fitted, _, rank, _ = np.linalg.lstsq(columns, lr, rcond=None)
        if rank == 3:
            p.append(float(fitted[1]))
            q.append(float(fitted[2]))
        elif len(set(r)) == 1 and rank == 2:
            p.append(slope([(a, x) for _, a, x in cells]))
    return p, q


def minima_by_seed(results: Results) -> dict[int, list[tuple[int, float, float]]]:
    """Return by seed the (r, alpha, best rate) of every cell that has one."""
    s = results["settings"]
    found: dict[int, list[tuple[int, float, float]]] = {}
    for r in s["ranks"]:
        for alpha in s["alphas"]:
            for seed, lr in minima(results, cell(r, alpha)).items():
                if math.isfinite(lr):
                    found.setdefault(seed, []).append((r, alpha, lr))
    return dict(sorted(found.items()))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the exponent p of the power law y = c x^p that fits the points best.

    Examples
    --------
    >>> from lora_np.experiments.grid.claims import slope
    >>> round(slope([(1.0, 3.0), (2.0, 12.0), (4.0, 48.0)]), 12)
    2.0
    """
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def best_rates(results: Results) -> dict[tuple[int, float], float]:
    """Return by (r, alpha) the geometric mean over seeds of the best rate."""
    found: dict[tuple[int, float], list[float]] = {}
    for cells in minima_by_seed(results).values():
        for r, alpha, lr in cells:
            found.setdefault((r, alpha), []).append(math.log(lr))
    return {cell: math.exp(sum(logs) / len(logs)) for cell, logs in found.items()}


def _other_rates(results: Results) -> str:
    """Say what another rate for all does, if every cell tried it on the first seed."""
    s, said = results["settings"], []
    tried = [set(curve(results, cell(r, a))) for r in s["ranks"] for a in s["alphas"]]
    for lr in sorted(set.intersection(*tried) - {s["common_lr"]}):
        spans = []
        for r in s["ranks"]:
            row = [losses(results, cell(r, alpha), lr)[0] for alpha in s["alphas"]]
            spans.append(max(row) - min(row) if min(row) < math.inf else 0.0)
        said.append(f"{max(spans):.4f} at {lr:g}")
    return f"; on the first seed {', '.join(said)}" if said else ""
