"""lora_np.rank.planted: what is planted is there, and the table says what was answered."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lora_np import plots
from lora_np.backend import ShapeError
from lora_np.rank import (
    Recovery,
    bootstrap_interval,
    picture,
    planted_matrix,
    recovery,
    recovery_table,
    spectrum,
)
from lora_np.rank.planted import answers

TOL = 1e-12  # float64 results of a few dozen operations on numbers of order 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 9), st.integers(0))
def test_the_signal_has_rank_k_and_the_stated_weakest_direction(out, in_, k, ratio, seed):
    k = min(k, out, in_)
    matrix, signal = planted_matrix((out, in_), k, ratio, np.random.default_rng(seed))
    sigma = np.linalg.svd(signal, compute_uv=False)
    edge = math.sqrt(out) + math.sqrt(in_)
    np.testing.assert_allclose(sigma[k - 1], ratio * edge, rtol=1e-10)
    np.testing.assert_allclose(sigma[0], (2 if k > 1 else 1) * ratio * edge, rtol=1e-10)
    np.testing.assert_allclose(sigma[k:], 0, atol=1e-10)
    assert matrix.shape == (out, in_)


def test_the_noise_is_gaussian_of_standard_deviation_one():
    matrix, signal = planted_matrix((120, 100), 3, 2.0, np.random.default_rng(0))
    assert scipy.stats.kstest((matrix - signal).ravel(), "norm").pvalue > 0.01


def test_a_loud_signal_is_found_and_one_below_the_threshold_of_detection_is_not():
    rows = recovery((120, 120), (3,), (0.2, 3.0), trials=20, rng=np.random.default_rng(0))
    found = {(row.estimator, row.ratio): row for row in rows}
    for name in ("Gavish-Donoho", "Gavish-Donoho, known noise"):
        assert found[name, 3.0].exact == 1.0 and found[name, 3.0].mean == 3.0
        assert found[name, 0.2].mean < 0.5
    assert found["numerical rank", 3.0].mean == 120  # it counts noise
    assert found["bulk edge", 3.0].exact >= 0.6


def test_answers_are_the_measures_of_the_spectrum():
    s = spectrum(np.random.default_rng(0).standard_normal((30, 20)))
    said = answers(s)
    assert len(said) == 10
    assert said["stable rank"] == s.stable_rank and said["95% energy rank"] == s.energy_rank(0.95)
    assert said["bulk edge"] == s.bulk_rank and said["Gavish-Donoho"] == s.hard_threshold_rank
    assert math.isnan(answers(spectrum(np.diag([1.0, 0, 0])))["bulk edge"])


def test_recovery_repeats_from_its_seed():
    options = ((8, 6), (1, 2), (1.0, 4.0), 3)
    one, other = (recovery(*options, rng=np.random.default_rng(5)) for _ in range(2))
    assert one == other != recovery(*options, rng=np.random.default_rng(6))
    assert [(r.k, r.ratio) for r in one[::10]] == [(1, 1.0), (1, 4.0), (2, 1.0), (2, 4.0)]


# --- the bootstrap ---------------------------------------------------------------------------


def test_the_bootstrap_interval_equals_scipys_percentile_interval():
    values = np.random.default_rng(0).exponential(size=40)
    found = bootstrap_interval(values, np.random.default_rng(1), level=0.9, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    spread = values.std() / math.sqrt(40)  # resampling leaves some hundredths of it
    assert found == pytest.approx(tuple(theirs), abs=0.05 * spread)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.standard_normal(50), rng, level=0.9, resamples=500)
        covered += low <= 0 <= high
    assert 0.83 < covered / 400 < 0.94  # the standard error is 0.015, and it is a little narrow


def test_equal_values_have_an_interval_without_width():
    assert bootstrap_interval([3, 3, 3], np.random.default_rng(0)) == (3.0, 3.0)


# --- the table and the picture ---------------------------------------------------------------

ROWS = [
    Recovery("stable rank", 4, 1.0, 9.74, 9.6, 9.8, 0.0),
    Recovery("bulk edge", 4, 1.0, 4.0, 4.0, 4.0, 1.0),
    Recovery("stable rank", 4, 2.5, 4.4, 4.38, 4.41, 0.91),
    Recovery("bulk edge", 4, 2.5, math.nan, math.nan, math.nan, 0.0),
    Recovery("bulk edge", 8, 1.0, 7.5, 7.0, 8.0, 0.5),
]


def test_the_table_has_a_line_an_estimator_and_a_column_a_ratio():
    assert recovery_table(ROWS).markdown().splitlines() == [
        "| estimator | k | signal-to-noise 1 | signal-to-noise 2.5 |",
        "| --- | --- | --- | --- |",
        "| stable rank | 4 | 9.7 [9.6, 9.8]; 0% | 4.4; 91% |",
        "| bulk edge | 4 | 4.0; 100% | not defined |",
        "| bulk edge | 8 | 7.5 [7.0, 8.0]; 50% |  |",
    ]


def test_the_picture_shows_the_means_and_the_exact_shares(monkeypatch):
    caught = []
    monkeypatch.setattr(plots, "save", lambda figure, path: caught.append(figure))
    rows = recovery((12, 9), (2, 3), (1.0, 4.0), trials=3, rng=np.random.default_rng(0))
    picture.plot_recovery(rows, "unused.png")
    above, right, below, _ = caught[0].axes
    assert above.get_title() == "planted rank k = 2" and right.get_title() == "planted rank k = 3"
    stable = [r for r in rows if (r.estimator, r.k) == ("stable rank", 2)]
    shown = [container.lines[0].get_ydata() for container in above.containers]
    assert any(list(y) == [r.mean for r in stable] for y in shown)
    assert [100 * r.exact for r in stable] in [list(line.get_ydata()) for line in below.lines]
    assert set(picture.ESTIMATORS) == {r.estimator for r in rows}
    assert len(set(picture.ESTIMATORS.values())) == len(picture.ESTIMATORS)  # told apart


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda g: planted_matrix((3, 4), 4, 1.0, g), ValueError, "k is 4: it must be from 1 to 3"),
        (lambda g: planted_matrix((3, 4), 0, 1.0, g), ValueError, "k is 0"),
        (lambda g: planted_matrix((3, 0), 1, 1.0, g), ShapeError, r"shape is \(3, 0\)"),
        (lambda g: planted_matrix((3, 4), 1, 0.0, g), ValueError, "signal_to_noise is 0.0"),
        (lambda g: planted_matrix((3, 4), 1, math.nan, g), ValueError, "signal_to_noise is nan"),
        (lambda g: recovery((3, 4), (1,), (1.0,), 0, g), ValueError, "trials is 0"),
        (lambda g: bootstrap_interval([], g), ShapeError, r"values has shape \(0,\)"),
        (lambda g: bootstrap_interval(np.eye(2), g), ShapeError, r"values has shape \(2, 2\)"),
        (lambda g: bootstrap_interval([1.0], g, level=1.0), ValueError, "level is 1.0"),
        (lambda g: bootstrap_interval([1.0], g, resamples=0), ValueError, "resamples is 0"),
    ],
)
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call(np.random.default_rng(0))
