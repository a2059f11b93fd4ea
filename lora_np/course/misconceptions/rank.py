"""Four measures of rank, each a single number: the analyser's tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lora_np.course.task import Draw, Task
from lora_np.rank import best_rank_error, spectrum

SHAPES = ((6, 4), (5, 5), (3, 7), (8, 6))


def _matrices(rng: np.random.Generator) -> list[np.ndarray]:
    """Return matrices whose singular values fall; some of the last matrix are exactly zero."""
    found = []
    for out, in_ in SHAPES:
        decay = 0.65 ** np.arange(in_)
        found.append(3.0 * rng.standard_normal((out, in_)) * decay)
    diagonal = np.zeros((5, 4))
    diagonal[0, 0], diagonal[1, 1] = 3.0, 1.7
    return [*found, diagonal]


def _draws(rng: np.random.Generator) -> list[Draw]:
    return [{"M": M} for M in _matrices(rng)]


def _values(M: Any) -> dict[str, Any]:
    """Return the singular values s, their squares e, and both divided by their sums, q and p."""
    s = np.linalg.svd(M, compute_uv=False)
    s = np.where(s < 1e-12 * s[0], 0.0, s)
    return {"s": s, "e": s**2, "q": s / s.sum(), "p": s**2 / (s**2).sum()}


def _numbers(task: Task) -> None:
    """Register the wrong sign, the only usual mistake of gradients that applies to a number."""
    task.usual_mistakes(but=("transposed", "zero", "doubled", "halved"))


# -------------------------------------------------------------------------------------- stable rank


def _stable_rank(M: Any) -> Any:
    """Return ||M||_F^2 / ||M||_2^2."""
    return spectrum(M).stable_rank


STABLE = Task("stable_rank", ("rank",), _stable_rank, _draws, _values, keeps_dtype=False)
_numbers(STABLE)


@STABLE.mistake("rank")
def _not_squared(s: Any) -> Any:
    """Your stable rank has singular values where their squares belong: sum sigma^2 / sigma_1^2."""
    return s.sum() / s[0]


@STABLE.mistake("rank")
def _norms_not_squared(s: Any) -> Any:
    """Your stable rank is the square root of the correct value: square both norms."""
    return np.sqrt((s**2).sum()) / s[0]


@STABLE.mistake("rank")
def _only_one_norm_squared(s: Any) -> Any:
    """Your stable rank changes when M is scaled: square the spectral norm too."""
    return (s**2).sum() / s[0]


@STABLE.mistake("rank")
def _upside_down(s: Any) -> Any:
    """Your stable rank is 1 over the correct value: the Frobenius norm is the numerator."""
    return s[0] ** 2 / (s**2).sum()


@STABLE.mistake("rank")
def _over_the_smallest(s: Any) -> Any:
    """Your stable rank divides by the smallest singular value: the largest is s[0]."""
    return (s**2).sum() / s[-1] ** 2


@STABLE.mistake("rank")
def _counted(s: Any) -> Any:
    """Your stable rank counts the nonzero singular values: that is the rank."""
    return (s > 0).sum()


@STABLE.mistake("rank")
def _participation(p: Any) -> Any:
    """Your stable rank is the participation ratio, 1 / sum p^2: compute 1 / max p."""
    return 1 / (p**2).sum()


# ----------------------------------------------------------------------------------- effective rank


def _effective_rank(M: Any) -> Any:
    """Return exp(-sum q log q), q = sigma / sum sigma."""
    return spectrum(M).effective_rank


EFFECTIVE = Task("effective_rank", ("rank",), _effective_rank, _draws, _values, keeps_dtype=False)
_numbers(EFFECTIVE)


def _entropy(q: np.ndarray, log: Callable = np.log) -> Any:
    q = q[q > 0]
    return -(q * log(q)).sum()


@EFFECTIVE.mistake("rank")
def _of_squares(p: Any) -> Any:
    """Your effective rank uses squared singular values: q = sigma / sum sigma."""
    return np.exp(_entropy(p))


@EFFECTIVE.mistake("rank")
def _entropy_alone(q: Any) -> Any:
    """Your effective rank is the entropy: take its exponential."""
    return _entropy(q)


@EFFECTIVE.mistake("rank")
def _logarithm_to_base_two(q: Any) -> Any:
    """Your entropy is in bits and your exponential in nats: use the same base for both."""
    return np.exp(_entropy(q, np.log2))


@EFFECTIVE.mistake("rank")
def _power_of_two(q: Any) -> Any:
    """Your entropy is in nats and your power in bits: use the same base for both."""
    return 2.0 ** _entropy(q)


@EFFECTIVE.mistake("rank")
def _sign_forgotten(q: Any) -> Any:
    """Your effective rank is 1 over the correct value: the entropy is -sum q log q."""
    return np.exp(-_entropy(q))


@EFFECTIVE.mistake("rank")
def _zero_times_log_zero(M: Any) -> Any:
    """Your effective rank is nan where a singular value is 0: leave zeros out of the sum."""
    s = np.linalg.svd(M, compute_uv=False)
    q = s / s.sum()
    return np.exp(-(q * np.log(q)).sum())


@EFFECTIVE.mistake("rank")
def _not_normalised(s: Any) -> Any:
    """Your singular values do not sum to 1: divide them by their sum first."""
    return np.exp(_entropy(s))


@EFFECTIVE.mistake("rank")
def _over_the_largest(s: Any) -> Any:
    """Your singular values are divided by the largest value: divide them by their sum."""
    return np.exp(_entropy(s / s[0]))


# -------------------------------------------------------------------------------------- energy rank


def _energy_rank(M: Any, fraction: Any) -> Any:
    """Return the least k whose first k squared singular values hold `fraction` of their sum."""
    return spectrum(M).energy_rank(fraction)


def _fractions(rng: np.random.Generator) -> list[Draw]:
    """Return many fractions per matrix: whole numbers agree by chance if there are only a few."""
    fractions = (0.3, 0.55, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
    return [{"M": M, "fraction": f} for M in _matrices(rng)[:4] for f in fractions]


ENERGY = Task("energy_rank", ("rank",), _energy_rank, _fractions, _values, keeps_dtype=False)
_numbers(ENERGY)


def _first(shares: np.ndarray, fraction: float) -> int:
    return int(np.argmax(np.cumsum(shares) >= fraction * (1 - 1e-12))) + 1


@ENERGY.mistake("rank")
def _energy_not_squared(q: Any, fraction: Any) -> Any:
    """Your energy rank adds singular values: the energy is the sum of their squares."""
    return _first(q, fraction)


@ENERGY.mistake("rank")
def _one_too_few(p: Any, fraction: Any) -> Any:
    """Your energy rank is one too small: the index of the k-th value is k - 1."""
    return _first(p, fraction) - 1


@ENERGY.mistake("rank")
def _one_too_many(p: Any, fraction: Any) -> Any:
    """Your energy rank is one too large: k values already reach the fraction."""
    return _first(p, fraction) + 1


@ENERGY.mistake("rank")
def _smallest_first(p: Any, fraction: Any) -> Any:
    """Your energy rank starts with the smallest values: keep the largest first."""
    return _first(p[::-1], fraction)


@ENERGY.mistake("rank")
def _fraction_of_the_count(s: Any, fraction: Any) -> Any:
    """Your energy rank is a fraction of the number of values: add up their squares instead."""
    return int(np.ceil(fraction * len(s)))


@ENERGY.mistake("rank")
def _above_a_threshold(s: Any, fraction: Any) -> Any:
    """Your energy rank counts values above a fraction of the largest: add up their squares."""
    return int((s >= (1 - fraction) * s[0]).sum())


@ENERGY.mistake("rank")
def _fraction_of_the_norm(e: Any, fraction: Any) -> Any:
    """Your energy rank keeps a fraction of ||M||_F: keep a fraction of ||M||_F^2."""
    return int(np.argmax(np.sqrt(np.cumsum(e) / e.sum()) >= fraction)) + 1


# ------------------------------------------------------------------------------- best rank's error


def _rank_error(M: Any, r: Any) -> Any:
    """Return the least ||M - N||_F / ||M||_F over N of rank r."""
    return best_rank_error(np.linalg.svd(M, compute_uv=False), r)


def _ranks(rng: np.random.Generator) -> list[Draw]:
    return [{"M": M, "r": r} for M in _matrices(rng)[:4] for r in (0, 1, 2)]


ERROR = Task("best_rank_error", ("error",), _rank_error, _ranks, _values, keeps_dtype=False)
_numbers(ERROR)


@ERROR.mistake("error")
def _root_missing(p: Any, r: Any) -> Any:
    """Your error is the square of the correct value: take the square root."""
    return p[r:].sum()


@ERROR.mistake("error")
def _error_not_squared(q: Any, r: Any) -> Any:
    """Your error adds singular values: the Frobenius norm adds their squares."""
    return q[r:].sum()


@ERROR.mistake("error")
def _not_relative(e: Any, r: Any) -> Any:
    """Your error is absolute: divide it by ||M||_F."""
    return np.sqrt(e[r:].sum())


@ERROR.mistake("error")
def _kept_not_missed(p: Any, r: Any) -> Any:
    """Your error is the norm of the values that rank r keeps: use the values beyond r."""
    return np.sqrt(p[:r].sum())


@ERROR.mistake("error")
def _spectral_norm(s: Any, r: Any) -> Any:
    """Your error is in the spectral norm, sigma_(r+1) / sigma_1: use the Frobenius norm."""
    return s[r] / s[0]


@ERROR.mistake("error")
def _one_value_too_many(p: Any, r: Any) -> Any:
    """Your error leaves out one value too many: rank r keeps s[:r] and misses s[r:]."""
    return np.sqrt(p[r + 1 :].sum())


@ERROR.mistake("error")
def _half_a_square(e: Any, r: Any) -> Any:
    """Your error is the floor 1/2 sum sigma^2 of a loss: return the relative norm."""
    return 0.5 * e[r:].sum()
