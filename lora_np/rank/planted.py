r"""How far can estimators of rank be trusted? Try them on matrices of known rank.

M = signal + noise. The signal has rank k and random singular vectors; the entries of the noise are
Gaussian with standard deviation 1. The signal-to-noise ratio is that of the weakest direction::

    signal-to-noise = sigma_k(signal) / (sqrt(out) + sqrt(in)),   the edge of the noise alone.

At ratio 1 the weakest singular value of the signal equals the edge. Noise raises the singular
values of the signal, so directions are visible somewhat below ratio 1. At and below
(out in)^(1/4) / (sqrt(out) + sqrt(in)), which is 1/2 for a square matrix, the singular values of a
large matrix show no trace of a direction (Benaych-Georges, Nadakuditi 2012). The signal's values
are evenly spaced from 2 sigma_k to sigma_k.

Benaych-Georges, Nadakuditi: Journal of Multivariate Analysis 111, 120. The percentile bootstrap:
Efron, Tibshirani: An introduction to the bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.backend import Array, ShapeError, to_host
from lora_np.rank.noise import gavish_donoho_threshold, marchenko_pastur_edge
from lora_np.rank.spectrum import Spectrum, spectrum
from lora_np.tables import Table

NOISE = 1.0  # standard deviation of an entry


@dataclass(frozen=True)
class Recovery:
    """The answers of one estimator over the trials at one planted rank and signal-to-noise.

    Attributes
    ----------
    estimator : str
    k : int
        The planted rank.
    ratio : float
        Signal-to-noise, as defined in this module.
    mean : float
        The mean answer.
    low, high : float
        A 95 % bootstrap interval of the mean.
    exact : float
        The share of the trials whose answer, rounded to a whole number, is k.
    """

    estimator: str
    k: int
    ratio: float
    mean: float
    low: float
    high: float
    exact: float


def planted_matrix(
    shape: tuple[int, int], k: int, signal_to_noise: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a signal of known rank plus noise of standard deviation 1, and the signal alone.

    Parameters
    ----------
    shape : (int, int)
        (out, in).
    k : int
        Rank of the signal, from 1 to min(out, in).
    signal_to_noise : float
        The signal's sigma_k over the edge of the noise, more than 0.
    rng : numpy.random.Generator

    Returns
    -------
    matrix, signal : ndarray, shape (out, in), float64

    Raises
    ------
    ShapeError
        If `shape` is not two sizes of at least 1.
    ValueError
        If `k` or `signal_to_noise` is outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import spectrum
    >>> from lora_np.rank import planted_matrix
    >>> matrix, signal = planted_matrix((60, 40), 3, 2.0, np.random.default_rng(0))
    >>> spectrum(signal).numerical_rank, spectrum(matrix).numerical_rank  # noise hides the rank
    (3, 40)
    >>> spectrum(matrix).hard_threshold_rank
    3
    """
    edge = marchenko_pastur_edge(NOISE, shape)  # raises if shape is not two sizes
    out, in_ = shape
    if not 1 <= k <= min(shape):
        raise ValueError(f"k is {k}: it must be from 1 to {min(shape)}, the shorter side")
    if not 0 < signal_to_noise < float("inf"):
        raise ValueError(f"signal_to_noise is {signal_to_noise}: it must be more than 0 and finite")
    U = np.linalg.qr(rng.standard_normal((out, k)))[0]  # (out, k)
    V = np.linalg.qr(rng.standard_normal((in_, k)))[0]  # (in, k)
    sigma = signal_to_noise * edge * np.linspace(1, 2, k)[::-1]  # (k,) down to the weakest
    signal = (U * sigma) @ V.T  # (out, in)
    return signal + NOISE * rng.standard_normal(shape), signal


def answers(found: Spectrum) -> dict[str, float]:
    """Return the answer of each estimator for a planted matrix, by the estimator's name.

    An undefined answer is nan. "Gavish-Donoho, known noise" knows that the noise is 1; the others
    see only the singular values.

    Parameters
    ----------
    found : Spectrum
        The spectrum of signal plus noise.
    """
    known = gavish_donoho_threshold(found.shape, NOISE)
    undefined = float("nan")
    bulk, hard = found.bulk_rank, found.hard_threshold_rank
    return {
        "numerical rank": found.numerical_rank,
        "stable rank": found.stable_rank,
        "participation ratio": found.participation_ratio,
        "effective rank": found.effective_rank,
        **{f"{f:.0%} energy rank": k for f, k in found.energy_ranks.items()},
        "bulk edge": undefined if bulk is None else bulk,
        "Gavish-Donoho": undefined if hard is None else hard,
        "Gavish-Donoho, known noise": int(np.sum(found.singular_values > known)),
    }


def recovery(
    shape: tuple[int, int],
    ks: Sequence[int],
    ratios: Sequence[float],
    trials: int,
    rng: np.random.Generator,
) -> list[Recovery]:
    """Return the answers of every estimator for every planted rank and signal-to-noise.

    Parameters
    ----------
    shape : (int, int)
        The matrices' (out, in); each trial takes one SVD.
    ks : sequence of int
        Planted ranks.
    ratios : sequence of float
        Signal-to-noise, as for :func:`planted_matrix`.
    trials : int
        Number of matrices for each planted rank and ratio.
    rng : numpy.random.Generator

    Returns
    -------
    list of Recovery

    Raises
    ------
    ShapeError, ValueError
        As :func:`planted_matrix`; if `trials` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.rank import recovery
    >>> rows = recovery((60, 40), [3], [2.0], trials=2, rng=np.random.default_rng(0))
    >>> {row.estimator: row.mean for row in rows}["Gavish-Donoho"]
    3.0
    """
    if trials < 1:
        raise ValueError(f"trials is {trials}: it must be at least 1")
    rows = []
    for k in ks:
        for ratio in ratios:
            drawn = (planted_matrix(shape, k, ratio, rng)[0] for _ in range(trials))
            found = [answers(spectrum(matrix)) for matrix in drawn]
            for name in found[0]:
                said = np.array([answer[name] for answer in found], dtype=np.float64)  # (trials,)
                low, high = bootstrap_interval(said, rng)
                exact = float(np.mean(np.round(said) == k))
                rows.append(Recovery(name, k, ratio, float(said.mean()), low, high, exact))
    return rows


def bootstrap_interval(
    values: Array, rng: np.random.Generator, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of a mean.

    The values are resampled with replacement many times; the interval holds the middle `level` of
    the means. For few values (fewer than about 20) it is too narrow; for equal values its width is
    zero.

    Parameters
    ----------
    values : array, shape (n,)
        One value per independent trial.
    rng : numpy.random.Generator
    level : float
        Between 0 and 1.
    resamples : int
        At least 1.

    Returns
    -------
    low, high : float

    Raises
    ------
    ShapeError
        If `values` is not 1-D or is empty.
    ValueError
        If `level` or `resamples` is outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.rank import bootstrap_interval
    >>> low, high = bootstrap_interval(np.arange(100.0), np.random.default_rng(0))
    >>> 40 < low < 49.5 < high < 60
    True
    """
    sample = to_host(values).astype(np.float64)  # (n,)
    if sample.ndim != 1 or sample.size == 0:
        raise ShapeError(f"values has shape {sample.shape}: (n,) is expected, n at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: it must be at least 1")
    drawn = sample[rng.integers(sample.size, size=(resamples, sample.size))]  # (resamples, n)
    low, high = np.quantile(drawn.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def recovery_table(rows: Sequence[Recovery]) -> Table:
    """Return a table: a row for each planted rank and estimator, a column for each ratio.

    A cell holds the mean answer, the 95 % interval of the mean unless its width is zero, and the
    percentage of trials with the exact answer.

    Parameters
    ----------
    rows : sequence of Recovery
        From :func:`recovery`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.rank import recovery, recovery_table
    >>> rows = recovery((60, 40), [3], [2.0], trials=2, rng=np.random.default_rng(0))
    >>> print(recovery_table(rows))
    estimator                   k      signal-to-noise 2
    numerical rank              3               40.0; 0%
    ...
    """
    cells = {(row.k, row.estimator, row.ratio): _cell(row) for row in rows}
    lines = list(dict.fromkeys((row.k, row.estimator) for row in rows))
    columns: dict[str, list[Any]] = {"estimator": [name for _, name in lines]}
    columns["k"] = [k for k, _ in lines]
    for ratio in dict.fromkeys(row.ratio for row in rows):
        columns[f"signal-to-noise {ratio:g}"] = [cells.get((*line, ratio)) for line in lines]
    return Table(columns)


def _cell(row: Recovery) -> str:
    if row.mean != row.mean:
        return "not defined"
    low, high = f"{row.low:.1f}", f"{row.high:.1f}"
    interval = f" [{low}, {high}]" if low != high else ""
    return f"{row.mean:.1f}{interval}; {row.exact:.0%}"
