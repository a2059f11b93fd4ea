"""rank_sweep: the plan, the linear task against theory, the text task, resuming, the report."""

import json
import math
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from lora_np.crew import one_blas_thread
from lora_np.data import batches, encode, read_text, split, windows
from lora_np.experiments import terminal
from lora_np.experiments.rank_sweep import (
    LinearSettings,
    SweepError,
    SweepResults,
    Trial,
    estimate,
    models,
    rank_sweep,
    report,
    run,
    text,
)
from lora_np.experiments.rank_sweep.linear import (
    LinearTask,
    Regression,
    population_loss,
    run_linear_trial,
    whiten,
)
from lora_np.experiments.rank_sweep.models import load_model
from lora_np.experiments.rank_sweep.plan import (
    chosen_trials,
    contenders,
    expected_number,
    next_trials,
)
from lora_np.experiments.rank_sweep.text import TextTask, run_text_trial
from lora_np.experiments.search import FACTOR, MOST_RATES, SAME, WORTH, best_rate
from lora_np.files import load_arrays, load_json, save_arrays, save_json
from lora_np.layers import Linear
from lora_np.parameters import Grads
from lora_np.train import Diverged, History, evaluate
from tests.experiments.processors import (
    above_the_floor,
    core_types,
    figures,
    figures_of_the_page,
    sweeps,
)
from tests.tiny import comparable

F64 = 1e-12  # float64, relative: a few products
SIX_DIGITS = 1e-5  # relative: singular values are written with six digits
F32 = 1e-6  # float32, relative: a mean loss computed twice

BASE = 3.0  # the loss before training
PLAN = SimpleNamespace(ranks=(1, 8), seeds=3, lora_lr=0.02, full_lr=0.004, method_name="lora")
SMALL = LinearSettings(ranks=(1, 2), seeds=2, d_in=12, d_out=10, steps=600)
LOSSES = ("train_loss", "validation_loss", "test_loss")


# ------------------------------------------------------------------------------- the plan


def play(settings, loss, pick=lambda trials: trials[0]):
    """Run the whole plan, one trial at a time; `pick` says which of the waiting ones ends first."""
    done = {}
    while waiting := next_trials(settings, done, BASE):
        trial = pick(waiting)
        done[trial] = loss(trial)
        assert len(done) <= 100, "the plan does not end"
    return done


def rates(done, method="lora", rank=1):
    return sorted(t.lr for t in done if (t.method, t.rank, t.seed) == (method, rank, 0))


def steps_from(start, done, method="lora", rank=1):
    """The rates tried, as whole factors from where the search started."""
    found = [math.log(lr / start, FACTOR) for lr in rates(done, method, rank)]
    np.testing.assert_allclose(found, np.round(found), atol=1e-3)  # rates have four digits
    return [round(k) for k in found]


def valley(best):
    """A loss with its minimum at a rate `best` factors from the start of each search."""

    def loss(trial):
        start = PLAN.full_lr if trial.method == "full" else PLAN.lora_lr
        return 1.0 + abs(math.log(trial.lr / start, FACTOR) - best)

    return loss


def test_every_contender_starts_with_three_rates_a_factor_of_two_apart():
    first = next_trials(PLAN, {}, BASE)
    assert {t.seed for t in first} == {0} and len(first) == 9
    assert contenders(PLAN) == [("full", None), ("lora", 1), ("lora", 8)]
    for method, rank in contenders(PLAN):
        start = PLAN.full_lr if method == "full" else PLAN.lora_lr
        assert rates(first, method, rank) == [start / 2, start, start * 2]


def test_the_best_of_three_in_the_middle_runs_on_the_other_seeds():
    done = play(PLAN, valley(0))
    assert len(done) == expected_number(PLAN) == 15
    for method, rank in contenders(PLAN):
        start = PLAN.full_lr if method == "full" else PLAN.lora_lr
        others = {(t.seed, t.lr) for t in done if (t.method, t.rank) == (method, rank) and t.seed}
        assert others == {(1, start), (2, start)}


@pytest.mark.parametrize("best, tried", [(3, range(-1, 5)), (-2, range(-3, 2)), (1, range(-1, 3))])
def test_the_search_goes_on_beyond_the_end_where_the_best_rate_lies(best, tried):
    done = play(PLAN, valley(best))
    for method, rank in contenders(PLAN):  # all the same
        start = PLAN.full_lr if method == "full" else PLAN.lora_lr
        assert steps_from(start, done, method, rank) == list(tried)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_search_without_end_stops_at_the_most_rates(sign):
    done = play(PLAN, lambda t: t.lr**-sign)
    tried = sorted(sign * k for k in steps_from(PLAN.lora_lr, done))
    assert tried == list(range(-1, MOST_RATES - 1))


@pytest.mark.parametrize("gain, number", [(0.9 * WORTH, 3), (1.1 * WORTH, 4)])
def test_an_end_is_passed_only_for_a_gain_worth_it(gain, number):
    end, lora = 2 * PLAN.lora_lr, Trial("lora", 1, 0, PLAN.lora_lr)
    done = {replace(lora, lr=end / 4): 2.0, lora: 1.0, replace(lora, lr=end): 1.0 - gain}
    waiting = [t for t in next_trials(PLAN, done, BASE) if t.rank == 1 and t.seed == 0]
    assert [t.lr for t in waiting] == [2 * end] * (number - 3)


def test_a_search_goes_lower_while_all_rates_diverge():
    limit = PLAN.lora_lr / 5
    done = play(PLAN, lambda t: None if t.lr > limit else 1.0 / t.lr)
    assert steps_from(PLAN.lora_lr, done) == [-4, -3, -2, -1, 0, 1]
    assert chosen_trials(PLAN, done, BASE)[3].lr == PLAN.lora_lr / 8


def test_a_contender_that_always_diverges_is_given_up_and_the_others_go_on():
    done = play(PLAN, lambda t: None if t.rank == 1 else valley(0)(t))
    assert len(rates(done)) == MOST_RATES and {t.seed for t in done if t.rank == 1} == {0}
    assert [t.rank for t in chosen_trials(PLAN, done, BASE)] == [None] * 3 + [8] * 3


def test_the_chosen_trials_are_every_contender_at_its_best_rate_on_all_seeds():
    chosen = chosen_trials(PLAN, play(PLAN, valley(2)), BASE)
    expected = [(c, s) for c in contenders(PLAN) for s in range(3)]
    assert [((t.method, t.rank), t.seed) for t in chosen] == expected
    assert {t.lr for t in chosen} == {4 * PLAN.full_lr, 4 * PLAN.lora_lr}


EQUAL, WORSE = 0.9 * SAME * BASE, 1.1 * SAME * BASE  # on both sides of the border


@pytest.mark.parametrize(
    "losses, found",
    [
        ({0.01: 1.0 - EQUAL, 0.02: 1.0, 0.04: 1.0 - EQUAL}, 0.02),  # the start itself
        ({0.01: 1.0 - WORSE, 0.02: 1.0, 0.04: 1.0}, 0.01),  # a gain that counts
        ({0.01: 1.0, 0.02: 1.0 + WORSE, 0.04: 1.0 - EQUAL}, 0.01),  # of two as near the lower
        ({0.005: 0.0, 0.01: 1.0, 0.02: 1.0, 0.04: EQUAL, 0.08: EQUAL}, 0.04),  # the nearest
        ({0.01: 1e-31, 0.02: 6e-31, 0.04: 5e-32}, 0.02),  # all are zero, to rounding
        ({0.01: 2.0, 0.02: math.inf, 0.04: 2.0}, 0.01),
        ({0.01: math.inf, 0.02: math.inf}, None),
    ],
)
def test_of_losses_that_count_as_equal_the_rate_nearest_to_the_start_wins(losses, found):
    for order in (losses, dict(reversed(losses.items()))):
        assert best_rate(0.02, order, BASE) == found


def test_a_loss_may_be_negative():
    assert best_rate(0.02, {0.01: -2.0, 0.02: -2.0, 0.04: -1.0}, -1.0) == 0.02


@pytest.mark.parametrize("loss", [0.0, 1e-17, 0.1 * EQUAL])
def test_a_gain_at_an_end_that_counts_as_equal_does_not_carry_the_search_on(loss):
    # The loss halves at each step; as a share of BASE it does not fall.
    done = play(PLAN, lambda t: loss * PLAN.lora_lr / t.lr if t.rank == 1 else 1.0)
    assert len(rates(done)) == 3
    assert {t.lr for t in chosen_trials(PLAN, done, BASE) if t.rank == 1} == {PLAN.lora_lr}


@given(st.integers(-2, 3), st.integers(0, 2**32 - 1))
def test_no_choice_of_the_plan_is_made_by_rounding(best, seed):
    def rounded(trial):  # each trial ends elsewhere in its last bits; half the rates are equal
        draw = np.random.default_rng([seed, *str(trial).encode()])
        return max(valley(best)(trial), 1.5) + EQUAL * 0.5 * draw.random()

    exact = play(PLAN, lambda trial: max(valley(best)(trial), 1.5))
    assert chosen_trials(PLAN, play(PLAN, rounded), BASE) == chosen_trials(PLAN, exact, BASE)
    assert play(PLAN, rounded).keys() == exact.keys()


@given(st.integers(-4, 6), st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_in_which_trials_end(best, random):
    loss = valley(best)
    in_order, shuffled = play(PLAN, loss), play(PLAN, loss, random.choice)
    assert in_order == shuffled
    assert chosen_trials(PLAN, in_order, BASE) == chosen_trials(PLAN, shuffled, BASE)
    items = list(in_order.items())
    random.shuffle(items)
    some = items[: random.randrange(len(items))]
    assert next_trials(PLAN, dict(some), BASE) == next_trials(PLAN, dict(reversed(some)), BASE)


# ------------------------------------------------------------------------------ a trial's name

TRIALS = st.builds(
    Trial,
    st.sampled_from(["lora", "bitfit", "lora_fa", "seed0"]),
    st.none() | st.integers(1, 64),
    st.integers(0, 12),
    st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)
    | st.sampled_from([0.1, 0.1000001, 0.10000001, 1, 1.0, 1000000, 1000001]),
)


@given(TRIALS, TRIALS)
def test_two_trials_have_one_name_only_if_they_are_equal(one, other):
    assert (str(one) == str(other)) == (one == other)


def test_a_method_without_a_rank_is_not_full_fine_tuning():
    names = [str(Trial(method, None, 0, 0.01)) for method in ("full", "bitfit")]
    assert names == ["full-seed0-lr0.01", "bitfit-seed0-lr0.01"]


@pytest.mark.parametrize("lr, name", [(0.02, "0.02"), (4.0, "4"), (1e-05, "1e-05"), (1e6, "1e+06")])
def test_the_rates_of_a_search_are_named_as_they_were_in_earlier_versions(lr, name):
    assert str(Trial("lora", 8, 0, lr)) == f"lora-r8-seed0-lr{name}"


WRONG = {
    "method": ["", "..", "a/b", "../lora", "a b", "a\\b", "a.b", "1st", "é", None, 3],
    "rank": [0, -1, True, 2.0, "8"],
    "seed": [-1, False, 1.0, None, "0"],
    "lr": [0.0, -1.0, math.nan, math.inf, True, None, "0.1"],
}


@pytest.mark.parametrize("field, value", [(k, v) for k, values in WRONG.items() for v in values])
def test_a_trial_of_a_wrong_kind_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field} = "):
        replace(Trial("lora", 8, 0, 0.02), **{field: value})


def test_full_fine_tuning_has_no_rank_and_a_sweep_trains_what_it_knows(tiny, arrays):
    with pytest.raises(ValueError, match="rank = 8, expected None"):
        Trial("full", 8, 0, 0.02)
    planted = LinearTask(SMALL).prepare(None, False)
    for trial in (Trial("bitfit", None, 0, 0.02), Trial("dora", 2, 0, 0.02)):
        with pytest.raises(ValueError, match=f"{trial} cannot be trained: expected 'lora'"):
            run_text_trial(tiny, arrays, trial)
        with pytest.raises(ValueError, match=f"{trial} cannot be trained: expected 'lora'"):
            run_linear_trial(SMALL, planted, trial)


@pytest.mark.parametrize("where", ["trials", "runs"])
@pytest.mark.parametrize("method", ["../../outside", "/tmp/outside", "full/../../x", 7])
def test_results_cannot_name_a_file_outside_the_folder(finished, tmp_path, where, method):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    path = folder / "results.json"
    content = load_json(path)
    content[where][-1]["method"] = method
    path.write_text(json.dumps(content))
    with pytest.raises(SweepError, match=r"results\.json is not the results file of a sweep"):
        load_model(folder)


# ------------------------------------------------------------------------- the linear task


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of the command's linear sweep."""
    return rank_sweep(LinearSettings(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """The folder and results of a finished sweep of the same matrix, at rank 8."""
    folder = tmp_path_factory.mktemp("linear")
    return folder, rank_sweep(LinearSettings(ranks=(8,), seeds=1), folder)


def on_the_floor(results):
    """The contract: within 1 % of max(floor, 1e-3 x rank-1 floor), and never below the floor."""
    first = results["floors"][1]
    adapted = [run for run in results["runs"] if run["method"] == "lora"]
    for r in adapted:
        assert r["floor"] == results["floors"][r["rank"]]
        above = r["validation_loss"] - r["floor"]
        assert -1e-6 * first <= above <= 0.01 * max(r["floor"], 1e-3 * first), r["rank"]
    return [r["rank"] for r in adapted]


@pytest.mark.slow
def test_at_default_sizes_the_loss_sits_on_the_eckart_young_floor(whole):
    ranks = [r for r in LinearSettings().ranks for seed in range(3)]
    assert on_the_floor(whole) == ranks


@pytest.mark.slow
def test_the_table_is_the_pages_and_to_rounding_at_every_rank_and_seed(whole):
    shown = figures(str(report.table(whole)))
    assert shown == figures_of_the_page()
    assert all(line[-1] == line[-2] for line in shown if line[0] == "r")  # test loss and floor
    assert max(map(abs, above_the_floor(whole))) < F64


@pytest.mark.slow
def test_every_kind_of_processor_chooses_alike_and_sits_on_the_floor_with_every_seed():
    few = replace(SMALL, ranks=(2, 4, 6))  # one search more or less is decided by the last bits
    found = list(sweeps(few))
    assert len(found) == 2 * len(core_types()) >= 2  # at one and two threads
    for core_type, table, results in found:
        assert {r["lr"] for r in results["runs"]} == {few.lora_lr}, core_type
        assert max(map(abs, above_the_floor(results))) < F64, core_type
        assert figures(table) == figures(found[0][1]), core_type


def test_up_to_the_full_rank_the_loss_sits_on_the_eckart_young_floor(tmp_path):
    settings = replace(SMALL, ranks=(1, 2, 3, 9, 10), seeds=1, steps=1200)
    assert on_the_floor(rank_sweep(settings, tmp_path)) == [1, 2, 3, 9, 10]


def test_floors_are_half_the_energy_that_rank_r_leaves(linear):
    sigma = np.array(linear[1]["planted_singular_values"])
    np.testing.assert_allclose(sigma, 0.9 ** np.arange(48), rtol=F64)
    expected = [0.5 * (sigma[r:] ** 2).sum() for r in range(9)]
    np.testing.assert_allclose(linear[1]["floors"], expected, rtol=F64)
    np.testing.assert_allclose(linear[1]["base_validation_loss"], expected[0], rtol=F64)


def test_full_training_finds_the_planted_spectrum(linear):
    (found,) = linear[1]["spectrum"]
    assert found["shape"] == [48, 64]
    planted = linear[1]["planted_singular_values"]
    np.testing.assert_allclose(found["singular_values"], planted, rtol=SIX_DIGITS)


def test_validation_loss_is_the_distance_of_what_was_saved(linear):
    folder, results = linear
    change = LinearTask(LinearSettings()).prepare(folder, False)["change"]
    for r in (r for r in results["runs"] if r["method"] == "lora"):
        trial = Trial(r["method"], r["rank"], r["seed"], r["lr"])
        saved = load_arrays(folder / "models" / f"{trial}.npz")
        distance = np.linalg.norm(change - saved["linear.B"] @ saved["linear.A"])  # scale is 1
        np.testing.assert_allclose(r["validation_loss"], 0.5 * distance**2, rtol=F64)
        assert r["trainable_parameters"] == r["rank"] * (48 + 64)


def test_whitened_inputs_have_the_identity_as_their_second_moment(rng):
    X = whiten(rng.standard_normal((50, 7)) @ rng.standard_normal((7, 7)))
    np.testing.assert_allclose(X.T @ X / 50, np.eye(7), atol=F64)
    R = LinearTask(SMALL).prepare(None, False)["R"]
    np.testing.assert_allclose(R.T @ R, np.eye(12), atol=F64)


def test_sufficient_statistics_give_the_loss_and_gradient_of_the_data(rng):
    n, d_in, d_out = 40, 5, 3
    X, W_target = rng.standard_normal((n, d_in)), rng.standard_normal((d_out, d_in))
    _, R = np.linalg.qr(X / math.sqrt(n))
    model = Regression(Linear(d_in, d_out, rng, bias=False, dtype=np.float64))
    W, grads = model.linear.W, Grads()
    loss, cache = model.loss(R, R @ W_target.T)
    model.backward(1.0, cache, grads)
    error = X @ (W.value - W_target).T  # (n, out)
    np.testing.assert_allclose(loss, 0.5 * (error**2).sum() / n, rtol=F64)
    np.testing.assert_allclose(grads[W], error.T @ X / n, rtol=F64, atol=F64)


def test_population_loss_is_float64_whatever_comes_in():
    assert population_loss(np.full((2, 3), 3.0, np.float32)) == 27.0
    assert population_loss(np.full(2, 1e25, np.float32)) == pytest.approx(1e50)  # no overflow


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"ranks": (0,)}, r"rank r = 0, expected a whole number from 1 to min"),
        ({"ranks": (1, 11)}, r"rank 11 .* is above the limit 10"),
        ({"ranks": ()}, r"ranks is empty"),
        ({"decay": 1.5}, r"decay = 1\.5, expected 0 < decay <= 1"),
        ({"seeds": 0}, r"seeds = 0, expected at least 1"),
        ({"lora_lr": 0.0}, r"lora_lr = 0\.0, expected a positive number"),
        ({"full_lr": math.nan}, r"full_lr = nan, expected a positive number"),
    ],
)
def test_impossible_linear_settings_are_an_error_before_anything_is_written(
    tmp_path, wrong, message
):
    with pytest.raises(ValueError, match=message):
        rank_sweep(replace(SMALL, **wrong), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- the text task


@pytest.fixture(scope="module")
def arrays(tiny, finished):
    return TextTask(tiny).prepare(finished[0], False)


@pytest.fixture
def calls(monkeypatch):
    """The trials that ran, in order; `calls.before` is called ahead of each."""
    seen = SimpleNamespace(trials=[], before=lambda trial: None)

    def counted(settings, arrays, trial):
        seen.trials.append(trial)
        seen.before(trial)
        return run_text_trial(settings, arrays, trial)

    monkeypatch.setitem(run.TRIALS, "text", counted)
    return seen


def stop(*_):
    raise KeyboardInterrupt


def test_results_have_the_documented_fields(tiny, finished):
    folder, results = finished
    assert load_json(folder / "results.json") == results and results["complete"]
    assert math.isfinite(results["base_validation_loss"] + results["base_test_loss"])
    assert len(results["runs"]) == 6  # full, two ranks; two seeds
    fields = {"method", "rank", "seed", "lr", "trainable_parameters", *LOSSES, "seconds"}
    assert all(set(r) == fields for r in results["runs"])
    assert all(math.isfinite(r[name]) for r in results["runs"] for name in LOSSES)
    d, vocab, T = 16, 256, 16
    block = 12 * d * d + 13 * d  # 4 d^2 + 8 d^2 of matrices, 9 d of biases, 4 d of norms
    count = {r["rank"]: r["trainable_parameters"] for r in results["runs"]}
    assert count == {
        None: (vocab + T) * d + block + 2 * d,
        1: 4 * 2 * d + 2 * 5 * d,
        2: 2 * (4 * 2 * d + 2 * 5 * d),
    }
    assert results["settings"]["task"] == "text" and results["settings"]["steps"] == tiny.steps
    names = [c["name"].split(".")[-2] for c in results["spectrum"]]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def test_only_the_models_of_the_curve_are_kept(finished):
    folder, results = finished
    runs = [str(Trial(r["method"], r["rank"], r["seed"], r["lr"])) for r in results["runs"]]
    assert sorted(p.stem for p in (folder / "models").iterdir()) == sorted(runs)
    assert len(results["trials"]) > len(runs)


def test_a_seed_draws_the_same_batches_at_every_rank(tiny, arrays, monkeypatch):
    drawn, sample = [], batches.sample_batch

    def recorded(*args):
        batch = sample(*args)
        drawn[-1].append(batch)
        return batch

    monkeypatch.setattr(batches, "sample_batch", recorded)
    for rank, seed in ((1, 0), (2, 0), (None, 0), (1, 1)):
        drawn.append([])
        run_text_trial(tiny, arrays, Trial("lora" if rank else "full", rank, seed, 1e-3))
    first, *same, other = (np.array(batches) for batches in drawn)
    assert first.shape == (3, 2, 4, 16)  # steps, inputs and targets, B, T
    assert all(np.array_equal(first, again) for again in same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["processes", "thread"])
def test_results_do_not_depend_on_the_executor(tiny, finished, tmp_path, kind):
    if kind == "thread":
        executor = ThreadPoolExecutor(1)
    else:
        executor = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    with executor:
        results = rank_sweep(tiny, tmp_path, executor=executor)
    assert comparable(results) == comparable(finished[1])


def test_linear_results_do_not_depend_on_the_executor(tmp_path):
    settings = replace(SMALL, ranks=(1,), seeds=1, steps=50)
    with ThreadPoolExecutor(2) as executor:
        parallel = rank_sweep(settings, tmp_path / "parallel", executor=executor)
    assert comparable(parallel) == comparable(rank_sweep(settings, tmp_path / "serial"))


def test_a_listener_hears_of_every_trial(tiny, tmp_path):
    heard = []
    results = rank_sweep(tiny, tmp_path, listen=heard.append)
    assert [p.done for p in heard] == list(range(1, len(results["trials"]) + 1))
    assert heard[0].expected == expected_number(tiny) == 12
    assert heard[-1].expected == max(12, len(heard))
    told = [p.result["validation_loss"] for p in heard]
    assert told == [t["validation_loss"] for t in results["trials"]]


# ------------------------------------------------------------------ stopping and going on


@pytest.mark.parametrize("k", [0, 1, 4, 11])
def test_an_interrupted_sweep_goes_on_with_the_missing_trials_only(
    tiny, finished, tmp_path, calls, k
):
    calls.before = lambda trial: stop() if len(calls.trials) == k + 1 else None
    with pytest.raises(KeyboardInterrupt):
        rank_sweep(tiny, tmp_path)
    kept = load_json(tmp_path / "results.json")
    assert len(kept["trials"]) == k and not kept["complete"]
    calls.before, calls.trials[:] = (lambda trial: None), []
    results = rank_sweep(tiny, tmp_path)
    assert len(calls.trials) == len(finished[1]["trials"]) - k
    assert comparable(results) == comparable(finished[1])


def test_a_finished_sweep_runs_nothing_again(tiny, finished, calls):
    folder, results = finished
    before = (folder / "results.json").read_bytes()
    assert rank_sweep(tiny, folder) == results
    assert calls.trials == [] and (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"steps": 4}, r"steps 3, now 4"),
        ({"ranks": (1, 4)}, r"ranks \[1, 2\], now \[1, 4\]"),
        ({"seeds": 3, "lora_lr": 0.5}, r"seeds 2, now 3 and 1 more"),
        ({"target_modules": ("q_proj",)}, r"target_modules all-linear, now \['q_proj'\]"),
    ],
)
def test_results_of_other_settings_are_an_error_that_names_the_field(
    tiny, finished, changed, message
):
    path = finished[0] / "results.json"
    before = path.read_bytes()
    with pytest.raises(SweepError, match=f"{message}.*choose another --out"):
        rank_sweep(replace(tiny, **changed), finished[0])
    assert path.read_bytes() == before


def test_an_edited_text_is_an_error(tiny, finished, tmp_path):
    folder, code = tmp_path / "run", tmp_path / "code.txt"
    shutil.copy(tiny.adapt_text, code)
    settings = replace(tiny, adapt_text=str(code), ranks=(1,), seeds=1)
    rank_sweep(settings, folder)
    before = (folder / "results.json").read_bytes()
    code.write_text(code.read_text().replace("f1(", "g1("))
    with pytest.raises(SweepError, match=r"adapt_text_sha256 \w{16}, now \w{16}"):
        rank_sweep(settings, folder)
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{ half a fi", b"\xff\xfe", b"[]", b"{}", b'{"settings": null}', b'{"settings": [1]}'],
)
def test_a_results_file_that_is_garbage_is_an_error_and_stays(tmp_path, garbage):
    path = tmp_path / "results.json"
    path.write_bytes(garbage)
    with pytest.raises(SweepError, match=r"results\.json is not the results file of a sweep"):
        rank_sweep(SMALL, tmp_path)
    assert path.read_bytes() == garbage


def test_an_out_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SweepError, match="cannot be written: choose another --out"):
            rank_sweep(SMALL, out)
    assert (tmp_path / "file").read_text() == "in the way"


# ------------------------------------------------------------------------------- the base


def noisy(source, target, noise=0.1):
    """Copy a base with noise added to it, as if it had been made so."""
    target.mkdir(parents=True)
    rng, arrays = np.random.default_rng(0), load_arrays(source / "base.npz")
    arrays = {k: v + noise * rng.standard_normal(v.shape, v.dtype) for k, v in arrays.items()}
    save_arrays(target / "base.npz", arrays)
    about = load_json(source / "base.json")
    save_json(target / "base.json", {**about, "sha256": text._sha256(*arrays.values())})
    return target


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_base_in_a_folder_beside_is_not_taken(tiny, finished, tmp_path):
    noisy(finished[0], tmp_path / "somebody")
    shutil.copytree(finished[0], tmp_path / "equal")
    results = rank_sweep(tiny, tmp_path / "mine")
    assert results["base_made"] == "here"
    assert comparable(results) == comparable(finished[1])


def test_a_given_base_is_copied_and_the_results_say_so(tiny, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(TextTask, "_pretrain", stop)
    given = noisy(finished[0], tmp_path / "theirs")
    other = replace(tiny, ranks=(4,), seeds=1, steps=2)  # nothing that pretraining depends on
    results = rank_sweep(other, tmp_path / "mine", base=given)
    assert results["base_made"] == f"copied from {given}"
    assert results["base_sha256"] == load_json(given / "base.json")["sha256"]
    assert results["base_test_loss"] != finished[1]["base_test_loss"]  # it is the given one
    shutil.rmtree(given)
    assert rank_sweep(other, tmp_path / "mine") == results
    task = TextTask(other)
    assert task.prepare(tmp_path / "mine", False).keys() == task.prepare(finished[0], False).keys()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"pretrain_steps": 4}, r"base of other settings \(pretrain_steps 3, here 4\)"),
        ({"d_model": 8}, r"base of other settings \(d_model 16, here 8\)"),
        ({"pretrain_lr": 1e-3}, r"base of other settings \(pretrain_lr 0\.005, here 0\.001\)"),
    ],
)
def test_a_given_base_of_other_settings_is_an_error(tiny, finished, tmp_path, changed, message):
    with pytest.raises(SweepError, match=f"{message}: without --base, a base is pretrained"):
        rank_sweep(replace(tiny, **changed), tmp_path / "new", base=finished[0])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("base.json", None, r"has no base: .*base\.json does not exist"),
        ("base.json", b"[1]", r"has no base: base\.json is not that of a sweep"),
        (
            "base.json",
            b'{"key": {}, "sha256": ""}',
            r"has no base: base\.json is not that of a sweep",
        ),
        ("base.npz", b"half a file", r"has no base: .*base\.npz is not a readable"),
        ("base.npz", "noise", r"has a base\.npz that has changed since"),
    ],
)
def test_a_given_base_that_is_damaged_is_an_error(tiny, finished, tmp_path, name, content, message):
    given = tmp_path / "given"
    given.mkdir()
    for file in ("base.json", "base.npz"):
        shutil.copy(finished[0] / file, given)
    if content == "noise":
        shutil.copy(noisy(finished[0], tmp_path / "noisy") / name, given)
    elif content is None:
        (given / name).unlink()
    else:
        (given / name).write_bytes(content)
    with pytest.raises(SweepError, match=message):
        rank_sweep(tiny, tmp_path / "new", base=given)
    assert not (tmp_path / "new").exists()


def test_a_sweep_does_not_go_on_with_another_base(tiny, finished, tmp_path, calls):
    other, out = noisy(finished[0], tmp_path / "other"), tmp_path / "mine"
    calls.before = lambda trial: stop() if len(calls.trials) == 3 else None
    with pytest.raises(KeyboardInterrupt):
        rank_sweep(tiny, out)
    before = files(out)
    with pytest.raises(SweepError, match="was started with another base: choose another --out"):
        rank_sweep(tiny, out, base=other)
    for name in ("base.json", "base.npz"):  # the folder's own, replaced
        shutil.copy(other / name, out)
    with pytest.raises(SweepError, match="was started with another base"):
        rank_sweep(tiny, out)
    for path, content in before.items():
        path.write_bytes(content)
    calls.before = lambda trial: None
    assert comparable(rank_sweep(tiny, out, base=finished[0])) == comparable(finished[1])
    with pytest.raises(SweepError, match="was started with another base"):
        rank_sweep(tiny, out, base=other)  # complete, and not of that base


def test_a_damaged_base_of_the_sweeps_own_is_pretrained_again(tiny, finished, tmp_path, calls):
    calls.before = lambda trial: stop() if len(calls.trials) == 3 else None
    with pytest.raises(KeyboardInterrupt):
        rank_sweep(tiny, tmp_path)
    (tmp_path / "base.npz").write_bytes(b"half a file")
    calls.before = lambda trial: None
    assert comparable(rank_sweep(tiny, tmp_path)) == comparable(finished[1])


def test_results_of_earlier_versions_are_read_and_gone_on_with(tiny, finished, tmp_path, calls):
    shutil.copytree(finished[0], tmp_path / "old")
    path = tmp_path / "old" / "results.json"
    old = {k: v for k, v in load_json(path).items() if k not in ("base_made", "base_sha256")}
    save_json(path, old)
    assert rank_sweep(tiny, path.parent) == old and terminal.base_line(old) == ""
    assert load_model(path.parent, "full").config.d_model == 16
    unfinished = {k: v for k, v in old.items() if k not in ("runs", "spectrum")}
    save_json(path, {**unfinished, "complete": False})
    again = rank_sweep(tiny, path.parent)
    assert [r["test_loss"] for r in again["runs"]] == [r["test_loss"] for r in old["runs"]]
    kept = {str(Trial(*[run[k] for k in KEY])) for run in old["runs"]}
    assert not kept & {str(trial) for trial in calls.trials}  # their models were found


def test_the_linear_task_takes_no_base(finished, tmp_path):
    with pytest.raises(ValueError, match="the linear task draws W0 and takes no base"):
        rank_sweep(SMALL, tmp_path / "new", base=finished[0])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("which", ["base", "full", "1", "2", "best"])
def test_a_model_read_back_has_the_loss_that_was_recorded(tiny, finished, which):
    folder, results = finished
    if which == "base":
        expected = results["base_validation_loss"]
    else:
        runs = [r for r in results["runs"] if which in ("best", str(r["rank"] or "full"))]
        expected = min(r["validation_loss"] for r in runs)
    part = split(encode(read_text(tiny.adapt_text))).validation
    with one_blas_thread():
        loss = evaluate(load_model(folder, which), *windows(part, tiny.block_size, tiny.windows))
    assert loss == pytest.approx(expected, rel=F32)


def test_a_model_that_is_not_there_is_an_error(finished, linear, tmp_path):
    with pytest.raises(SweepError, match="no model '16': choose best, base, full, 1, 2"):
        load_model(finished[0], "16")
    with pytest.raises(SweepError, match="is not a text sweep"):
        load_model(linear[0])
    for name in ("results.json", "base.npz"):
        shutil.copy(finished[0] / name, tmp_path)
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(SweepError, match="is not finished: run the sweep again"):
        load_model(tmp_path)


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"ranks": (0,)}, r"rank r = 0, expected a whole number from 1 to min"),
        ({"ranks": (1, 17)}, r"rank 17 for h\.0\..* is above the limit 16"),
        ({"target_modules": ("k_prjo",)}, r"'k_prjo' matches no .*did you mean .*k_proj"),
        ({"windows": 0}, r"windows = 0, expected at least 1"),
        ({"pretrain_lr": -1.0}, r"pretrain_lr = -1\.0, expected a positive number"),
        ({"adapt_text": "empty"}, r"empty is empty"),
        ({"adapt_text": "short"}, r"adaptation text's validation slice: the text has 10 tokens"),
        ({"pretrain_text": "short"}, r"the pretraining text's validation slice"),
        ({"adapt_text": "latin"}, r"latin is not UTF-8 at byte 3: save it as UTF-8"),
        ({"adapt_text": "missing"}, r"missing does not exist"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_trained_or_written(
    tiny, tmp_path, monkeypatch, wrong, message
):
    monkeypatch.setattr(TextTask, "_pretrain", stop)
    monkeypatch.chdir(tmp_path)
    contents = {"empty": b"", "short": b"x" * 100, "latin": "caf\xe9 ".encode("latin-1") * 99}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rank_sweep(replace(tiny, **wrong), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ divergence


def strict(path):
    """Read JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("steps", [1, 3])  # the last step diverges unseen by the training loop
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_method_that_diverges_is_recorded_and_the_sweep_goes_on(tiny, tmp_path, method, steps):
    wild = replace(tiny, ranks=(1,), seeds=1, steps=steps, **{f"{method}_lr": 1e30})
    rank_sweep(wild, tmp_path)
    results = strict(tmp_path / "results.json")
    lost = [t for t in results["trials"] if t["method"] == method]
    assert len(lost) == MOST_RATES and all(t["diverged"] for t in lost)
    assert {t[name] for t in lost for name in LOSSES} == {None}
    assert [r["method"] for r in results["runs"]] == ["full" if method == "lora" else "lora"]
    assert ("spectrum" in results) == (method == "lora")
    shown = str(report.table(results)).splitlines()
    (line,) = [line for line in shown if "diverged" in line]
    assert line.split()[:1] == (["r"] if method == "lora" else ["full"])


def test_one_seed_that_diverges_leaves_the_mean_of_the_others(tiny, tmp_path, calls):
    def lose(trial):
        if (trial.rank, trial.seed) == (2, 1):
            raise Diverged("the loss is nan at step 1", History())

    calls.before = lose
    results = rank_sweep(tiny, tmp_path)
    one, lost = [r for r in results["runs"] if r["rank"] == 2]
    assert lost["diverged"] == "the loss is nan at step 1" and lost["test_loss"] is None
    assert report.summary(results, "test_loss")["lora", 2] == (one["test_loss"], None, 1)
    assert report.trainable_parameters(results)["lora", 2] == one["trainable_parameters"]
    (line,) = [
        line for line in str(report.table(results)).splitlines() if line.startswith("r = 2 ")
    ]
    assert "+-" not in line and "(1 of 2 seeds, the other diverged)" in line


def test_a_linear_trial_that_diverges_has_no_loss():
    task = LinearTask(SMALL)
    trial = Trial("lora", 1, 0, 1e200)
    result, trained = run.guarded_trial(SMALL, task.prepare(None, False), trial)
    assert result["validation_loss"] is None and trained == {}


# ------------------------------------------------------------------------------ the report


def made_up(losses, task="text", base=3.0):
    """Results with these test losses by rank (None: full), one a seed."""
    runs = [
        {"method": "lora" if r else "full", "rank": r, "seed": seed, "lr": 0.01}
        | {"trainable_parameters": 1000 * (r or 99)}
        | dict.fromkeys(LOSSES, loss)
        for r, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    ranks = [r for r in losses if r is not None]
    seeds = max(map(len, losses.values()))
    settings = {"task": task, "ranks": ranks, "seeds": seeds, "full_lr": 0.004}
    return {
        "settings": settings,
        "base_validation_loss": base,
        "base_test_loss": base,
        "runs": runs,
        "floors": [2.0, 1.0, 0.5],
    }


def test_the_table_has_a_line_for_the_base_every_rank_and_full():
    results = made_up({1: [2.0, 2.2], 2: [1.5, 1.5], None: [1.0, 1.0]})
    _, base, one, two, full, flat = str(report.table(results)).splitlines()
    assert " ".join(base.split()) == "base 0 3 3"
    assert " ".join(one.split()) == "r = 1 1,000 0.01 2.1 2.1 2.1 +- 0.14 45 %"
    assert " ".join(two.split()) == "r = 2 2,000 0.01 1.5 1.5 1.5 +- 0 75 %"
    assert " ".join(full.split()) == "full 99,000 0.01 1 1 1 +- 0 100 %"
    assert flat.startswith("not flat yet: r = 2 still gains")


def test_the_linear_table_shows_the_floors():
    lines = str(report.table(made_up({1: [1.01], 2: [0.51], None: [0.0]}, "linear", 2.0)))
    lines = lines.splitlines()
    assert lines[0].split()[-1] == "floor" and len(lines) == 5
    assert [line.split()[-1] for line in lines[2:4]] == ["1", "0.5"]


def test_a_gain_is_not_given_as_a_share_of_no_gain():
    for full in (3.5, 3.0, 3.0 - EQUAL):  # the base has 3
        table = str(report.table(made_up({1: [2.0], None: [full]})))
        assert "%" not in table and "nan" not in table
    assert "%" in str(report.table(made_up({1: [2.0], None: [3.0 - WORSE]})))


@pytest.mark.parametrize(
    "losses, said",
    [
        ({1: [2.0, 2.1], 2: [1.5, 1.6], 4: [1.5, 1.61]}, "flat from r = 2 on"),
        ({1: [2.0, 2.1], 2: [2.0, 2.11], 4: [1.0, 1.1]}, "not flat yet: r = 4 still gains"),
        # the same gain on every seed, though the seeds lie far apart
        ({1: [1.0, 2.0], 2: [0.9, 1.9], 4: [0.8, 1.8]}, "not flat yet: r = 4 still gains"),
        # nothing beats r = 2, which is wide, but r = 8 does beat r = 4
        ({1: [2.4, 2.3], 2: [2.05, 2.35], 4: [2.2, 2.19], 8: [2.1, 2.1]}, "not flat yet: r = 8"),
        ({1: [2.0, 2.1], 2: [2.0, 2.11], 4: [2.01, 2.1]}, "flat from r = 1 on"),
        ({1: [2.0], 2: [1.5], 4: [1.5]}, None),  # one seed has no spread
        ({4: [1.0, 1.1]}, None),
    ],
)
def test_the_report_says_where_the_curve_is_flat(losses, said):
    table = str(report.table(made_up({**losses, None: [0.5, 0.5]})))
    assert said in table if said else "flat" not in table


def test_two_standard_errors_are_the_border_of_flat():
    def flat(gain):  # the gains are gain + 0.1 and gain - 0.1: their standard error is 0.1
        two = [2.1 - gain - 0.1, 1.9 - gain + 0.1]
        return "flat from r = 1 on" in str(
            report.table(made_up({1: [2.1, 1.9], 2: two, None: [1.0]}))
        )

    assert flat(0.19) and not flat(0.21)


@pytest.mark.parametrize("gain, won", [(EQUAL, False), (WORSE, True)])
def test_a_gain_that_counts_as_equal_is_none_though_every_seed_has_it(gain, won):
    assert report.beats({0: 2.0, 1: 2.5}, {0: 2.0 + gain, 1: 2.5 + gain}, BASE) == won


def test_results_are_read_from_a_folder_and_draw_their_curve(linear, tmp_path):
    folder, results = linear
    found = SweepResults.read(folder)
    assert found == results and str(found) == str(report.table(results))
    axis = Figure().subplots()
    assert found.plot(axis) is axis and axis.get_xlabel() == "rank r"
    (tmp_path / "results.json").write_text(json.dumps({**results, "complete": False}))
    with pytest.raises(SweepError, match="is not finished: run it again to continue"):
        SweepResults.read(tmp_path)


def test_one_seed_has_no_deviation():
    results = made_up({1: [2.0], 2: [1.5], None: [1.0]})
    assert report.summary(results, "test_loss")["full", None] == (1.0, None, 1)
    table = str(report.table(results))
    assert "+-" not in table and "nan" not in table


def test_a_method_without_a_rank_is_not_counted_with_full():
    results = made_up({1: [2.0], None: [1.0]})
    results["runs"].append({**results["runs"][1], "method": "bitfit", "test_loss": 9.0})
    assert report.summary(results, "test_loss")["full", None][0] == 1.0
    assert report.losses_by_seed(results) == {1: {0: 2.0}}


def test_the_best_of_equal_models_is_the_first_of_the_curve():
    def run(loss, **trial):
        return {"method": "lora", "seed": 0, "lr": 0.1, "validation_loss": loss, **trial}

    runs = [run(1.0, rank=1), run(1.0 - EQUAL, rank=2), run(1.0 - EQUAL, rank=2, seed=1)]
    assert models._pick(runs, "best", BASE) == Trial("lora", 1, 0, 0.1)
    assert models._pick(runs, "2", BASE) == Trial("lora", 2, 0, 0.1)
    runs.append(run(1.0 - EQUAL - WORSE, rank=None, method="bitfit"))
    assert models._pick(runs, "best", BASE) == models._pick(runs, "bitfit", BASE)
    with pytest.raises(SweepError, match="no model 'full': choose best, base, 1, 2, bitfit"):
        models._pick(runs, "full", BASE)


def test_seeds_that_diverged_are_counted_in_the_table():
    table = str(report.table(made_up({1: [2.0, 2.1, None], None: [1.0, 1.0, 1.0]})))
    assert "(2 of 3 seeds, the other diverged)" in table and table.count("other") == 1
    table = str(report.table(made_up({1: [2.0, None, None], None: [1.0, 1.0, 1.0]})))
    assert "(1 of 3 seeds, the others diverged)" in table


def test_estimate_is_made_of_steps_trials_and_processes(monkeypatch, tiny):
    # As if a trial took half a second to start, and 10 ms a step.
    def trial(settings, arrays):
        return 0.5 + 0.01 * settings.steps

    monkeypatch.setattr(estimate, "time_trial", trial)
    full = replace(tiny, steps=100, pretrain_steps=200, windows=8)
    # 1 s, 200 steps, then 12 trials and one more rate: each is 100 steps and 2 batches to evaluate
    assert estimate.estimate(full) == pytest.approx(1 + 2.0 + 13 * 1.02)
    assert estimate.estimate(full, None, 5) == pytest.approx(1 + 2.0 + 3 * 1.02)  # three rounds
    linear = replace(SMALL, steps=4000)
    assert estimate.estimate(linear, None, 2) == pytest.approx(1 + 7 * 40.0)


@pytest.mark.parametrize("settings", ["tiny", "small"])
def test_estimate_times_real_trials(tiny, settings):
    seconds = estimate.estimate(tiny if settings == "tiny" else SMALL, None, 2)
    assert math.isfinite(seconds) and seconds >= 1.0


@pytest.mark.parametrize(
    "seconds, said",
    [(0.1, "5 seconds"), (17.4, "15 seconds"), (89, "90 seconds"), (120, "2.0 minutes")],
)
def test_spell_says_a_length_of_time_roughly(seconds, said):
    assert terminal.spell(seconds) == said


@pytest.mark.parametrize("loss, shown", [(1.23456, "1.235"), (None, "diverged")])
def test_the_terminal_shows_each_trial_on_a_screen(capsys, tmp_path, loss, shown):
    shown_on = terminal.Terminal(tmp_path)
    shown_on.is_screen = True
    shown_on(run.Progress(2, 5, Trial("lora", 8, 1, 0.02), {"validation_loss": loss}))
    shown_on.close()
    said = capsys.readouterr().err
    assert f"lora-r8-seed1-lr0.02: {shown}" in said and "2/5" in said


@pytest.mark.parametrize(
    "number, kept", [(0, "no run was"), (1, "1 run is kept in"), (7, "7 runs are kept in")]
)
def test_the_terminal_says_what_is_kept_from_earlier_calls_too(capsys, tmp_path, number, kept):
    (tmp_path / "results.json").write_text(json.dumps({"trials": [{}] * number}))
    terminal.Terminal(tmp_path).interrupted()
    assert f"stopped: {kept}" in capsys.readouterr().err


def test_a_linear_trial_measures_the_same_again():
    arrays = LinearTask(SMALL).prepare(None, False)
    few = replace(SMALL, steps=30)
    first, again = (run_linear_trial(few, arrays, Trial("lora", 2, 1, 0.05))[0] for _ in range(2))
    assert first | {"seconds": 0} == again | {"seconds": 0}
    assert first["train_loss"] == pytest.approx(first["validation_loss"], rel=F64)  # whitened


# ------------------------------------------------------------------ what is somebody else's


@pytest.mark.parametrize("name", ["base.npz", "rank_vs_loss.png", "models/mine.npz"])
def test_a_folder_of_something_else_is_refused_and_stays(tiny, tmp_path, name):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    with pytest.raises(SweepError, match=r"but no results\.json: choose another --out"):
        rank_sweep(tiny, tmp_path)
    assert mine.read_bytes() == b"mine" and not (tmp_path / "results.json").exists()


def test_other_files_in_a_sweeps_models_folder_stay(tiny, tmp_path, calls):
    def stop(trial):
        raise KeyboardInterrupt

    calls.before = stop
    with pytest.raises(KeyboardInterrupt):
        rank_sweep(tiny, tmp_path)
    calls.before = lambda trial: None
    (tmp_path / "models" / "mine.npz").write_bytes(b"mine")
    rank_sweep(tiny, tmp_path)
    assert (tmp_path / "models" / "mine.npz").read_bytes() == b"mine"


def test_of_two_sweeps_at_once_in_one_folder_the_second_is_refused(tiny, tmp_path):
    run.check_sweep(tiny, tmp_path)  # the first has begun, and has no results yet
    with pytest.raises(SweepError, match=r"of other settings \(steps 3, now 4\)"):
        rank_sweep(replace(tiny, steps=4), tmp_path)


@pytest.mark.parametrize("damage", [None, b"junk"], ids=["removed", "junk"])
def test_a_trial_whose_model_is_lost_is_run_again(tiny, tmp_path, damage):
    whole = rank_sweep(tiny, tmp_path)
    lost = tmp_path / "models" / f"{Trial(*[whole['runs'][0][k] for k in KEY])}.npz"
    content = json.loads((tmp_path / "results.json").read_text())
    content["complete"] = False
    (tmp_path / "results.json").write_text(json.dumps(content))
    lost.unlink()
    if damage is not None:
        lost.write_bytes(damage)
    again = rank_sweep(tiny, tmp_path)
    assert lost.exists() and len(again["trials"]) == len(whole["trials"])
    assert [r["test_loss"] for r in again["runs"]] == [r["test_loss"] for r in whole["runs"]]


KEY = ("method", "rank", "seed", "lr")


@pytest.mark.parametrize(
    "content",
    [
        {"settings": {}, "complete": False},
        {"settings": {}, "complete": False, "trials": [{"method": "full"}]},
        {"settings": {}, "complete": True, "trials": []},
    ],
)
def test_a_results_file_that_lacks_its_parts_is_an_error(tiny, tmp_path, content):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(
        SweepError, match=r"is not the results file of a sweep: choose another --out"
    ):
        rank_sweep(tiny, tmp_path)
