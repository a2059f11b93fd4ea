"""lora_np.sweep: the plan, the linear task against theory, the text task, resuming, the report."""

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

from lora_np.checkpoint import load_arrays, load_json
from lora_np.crew import one_blas_thread
from lora_np.data import encode, read_text, split, windows
from lora_np.layers import Linear
from lora_np.parameters import Grads
from lora_np.sweep import (
    LinearSettings,
    SweepError,
    TextSettings,
    Trial,
    estimate,
    rank_sweep,
    report,
    run,
    text,
)
from lora_np.sweep.linear import LinearTask, Regression, population_loss, run_linear_trial, whiten
from lora_np.sweep.models import load_model
from lora_np.sweep.plan import (
    FACTOR,
    MOST_RATES,
    WORTH,
    chosen_trials,
    contenders,
    expected_number,
    next_trials,
)
from lora_np.sweep.text import TextTask, run_text_trial
from lora_np.train import Diverged, History, evaluate
from tests.tiny import TINY, write_texts

F64 = 1e-12  # float64, relative: a few products
SIX_DIGITS = 1e-5  # relative: singular values are written with six digits
F32 = 1e-6  # float32, relative: a mean loss computed twice

PLAN = SimpleNamespace(ranks=(1, 8), seeds=3, lora_lr=0.02, full_lr=0.004)
SMALL = LinearSettings(ranks=(1, 2), seeds=2, d_in=12, d_out=10, steps=600)
LOSSES = ("train_loss", "validation_loss", "test_loss")


# ------------------------------------------------------------------------------- the plan


def play(settings, loss, pick=lambda trials: trials[0]):
    """Run the whole plan, one trial at a time; `pick` says which of the waiting ones ends first."""
    done = {}
    while waiting := next_trials(settings, done):
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
    first = next_trials(PLAN, {})
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
    waiting = [t for t in next_trials(PLAN, done) if t.rank == 1 and t.seed == 0]
    assert [t.lr for t in waiting] == [2 * end] * (number - 3)


def test_a_search_goes_lower_while_all_rates_diverge():
    limit = PLAN.lora_lr / 5
    done = play(PLAN, lambda t: None if t.lr > limit else 1.0 / t.lr)
    assert steps_from(PLAN.lora_lr, done) == [-4, -3, -2, -1, 0, 1]
    assert chosen_trials(PLAN, done)[3].lr == PLAN.lora_lr / 8


def test_a_contender_that_always_diverges_is_given_up_and_the_others_go_on():
    done = play(PLAN, lambda t: None if t.rank == 1 else valley(0)(t))
    assert len(rates(done)) == MOST_RATES and {t.seed for t in done if t.rank == 1} == {0}
    assert [t.rank for t in chosen_trials(PLAN, done)] == [None] * 3 + [8] * 3


def test_the_chosen_trials_are_every_contender_at_its_best_rate_on_all_seeds():
    chosen = chosen_trials(PLAN, play(PLAN, valley(2)))
    expected = [(c, s) for c in contenders(PLAN) for s in range(3)]
    assert [((t.method, t.rank), t.seed) for t in chosen] == expected
    assert {t.lr for t in chosen} == {4 * PLAN.full_lr, 4 * PLAN.lora_lr}


def test_of_equal_losses_the_lowest_rate_wins_in_whatever_order_they_came():
    waiting = next_trials(PLAN, {})
    for order in (waiting, waiting[::-1]):
        chosen = chosen_trials(PLAN, dict.fromkeys(order, 1.0))
        assert [t.lr for t in chosen] == [PLAN.full_lr / 2, PLAN.lora_lr / 2, PLAN.lora_lr / 2]


@given(st.integers(-4, 6), st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_in_which_trials_end(best, random):
    loss = valley(best)
    in_order, shuffled = play(PLAN, loss), play(PLAN, loss, random.choice)
    assert in_order == shuffled
    assert chosen_trials(PLAN, in_order) == chosen_trials(PLAN, shuffled)
    items = list(in_order.items())
    random.shuffle(items)
    some = items[: random.randrange(len(items))]
    assert next_trials(PLAN, dict(some)) == next_trials(PLAN, dict(reversed(some)))


# ------------------------------------------------------------------------- the linear task


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A finished sweep at the default sizes."""
    folder = tmp_path_factory.mktemp("linear")
    return folder, rank_sweep(LinearSettings(ranks=(1, 4, 32), seeds=1), folder)


def on_the_floor(results):
    """The contract: within 1 % of max(floor, 1e-3 x rank-1 floor), and never below the floor."""
    first = results["floors"][1]
    adapted = [run for run in results["runs"] if run["method"] == "lora"]
    for r in adapted:
        assert r["floor"] == results["floors"][r["rank"]]
        above = r["validation_loss"] - r["floor"]
        assert -1e-6 * first <= above <= 0.01 * max(r["floor"], 1e-3 * first), r["rank"]
    return [r["rank"] for r in adapted]


def test_at_default_sizes_the_loss_sits_on_the_eckart_young_floor(linear):
    assert on_the_floor(linear[1]) == [1, 4, 32]


def test_up_to_the_full_rank_the_loss_sits_on_the_eckart_young_floor(tmp_path):
    settings = replace(SMALL, ranks=(1, 2, 3, 9, 10), seeds=1, steps=1200)
    assert on_the_floor(rank_sweep(settings, tmp_path)) == [1, 2, 3, 9, 10]


def test_floors_are_half_the_energy_that_rank_r_leaves(linear):
    sigma = np.array(linear[1]["planted_singular_values"])
    np.testing.assert_allclose(sigma, 0.9 ** np.arange(48), rtol=F64)
    expected = [0.5 * (sigma[r:] ** 2).sum() for r in range(33)]
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
    for r in results["runs"][1:]:
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
def tiny(tmp_path_factory):
    """Settings of a text sweep that takes a second."""
    english, code = write_texts(tmp_path_factory.mktemp("texts"))
    return TextSettings(
        ranks=(1, 2),
        seeds=2,
        pretrain_text=english,
        adapt_text=code,
        **TINY,
    )


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The tiny sweep, run in this process."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, rank_sweep(tiny, folder)


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


def comparable(results):
    """Results without seconds; the order in which trials ended is the executor's."""
    plain = json.loads(json.dumps(results))
    for trial in (*plain["trials"], *plain.get("runs", ())):
        trial.pop("seconds")
    plain["trials"].sort(key=lambda t: (t["method"], t["rank"] or 0, t["seed"], t["lr"]))
    return plain


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
    drawn, sample = [], text.sample_batch

    def recorded(*args):
        batch = sample(*args)
        drawn[-1].append(batch)
        return batch

    monkeypatch.setattr(text, "sample_batch", recorded)
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
    with pytest.raises(SweepError, match=r"results\.json is no results file of a sweep"):
        rank_sweep(SMALL, tmp_path)
    assert path.read_bytes() == garbage


def test_an_out_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SweepError, match="cannot be written: choose another --out"):
            rank_sweep(SMALL, out)
    assert (tmp_path / "file").read_text() == "in the way"


# ------------------------------------------------------------------------------- the base


@pytest.fixture
def neighbour(finished, tmp_path):
    """A new run's folder, beside one that has a base."""
    (tmp_path / "old").mkdir()
    for name in ("base.json", "base.npz"):
        shutil.copy(finished[0] / name, tmp_path / "old")
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


def test_a_neighbours_equal_base_is_borrowed(tiny, arrays, neighbour, monkeypatch):
    monkeypatch.setattr(TextTask, "_pretrain", stop)
    other = replace(tiny, ranks=(4,), seeds=7, steps=9)  # nothing that pretraining depends on
    borrowed = TextTask(other).prepare(neighbour, False)
    assert borrowed.keys() == arrays.keys()
    assert all(np.array_equal(borrowed[name], arrays[name]) for name in arrays)
    shutil.rmtree(neighbour.parent / "old")
    TextTask(other).prepare(neighbour, False)  # its own copy by now


@pytest.mark.parametrize("changed", [{"pretrain_steps": 4}, {"d_model": 8}, {"pretrain_lr": 1e-3}])
def test_a_neighbours_other_base_is_not_borrowed(tiny, neighbour, monkeypatch, changed):
    monkeypatch.setattr(TextTask, "_pretrain", stop)
    with pytest.raises(KeyboardInterrupt):
        TextTask(replace(tiny, **changed)).prepare(neighbour, False)


def test_a_neighbours_broken_base_is_not_borrowed(tiny, arrays, neighbour):
    (neighbour.parent / "old" / "base.npz").write_bytes(b"half a file")
    pretrained = TextTask(tiny).prepare(neighbour, False)
    assert all(np.array_equal(pretrained[name], arrays[name]) for name in arrays)


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
    with pytest.raises(SweepError, match="is no text sweep"):
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
        ({"adapt_text": "missing"}, r"missing cannot be read \(No such file"),
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
    shown = report.table(results).splitlines()
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
    assert report.summary(results, "test_loss")[2] == (one["test_loss"], 0.0, 1)
    assert report.trainable_parameters(results)[2] == one["trainable_parameters"]
    assert "r = 2 " in report.table(results)


def test_a_linear_trial_that_diverges_has_no_loss():
    task = LinearTask(SMALL)
    trial = Trial("lora", 1, 0, 1e200)
    result, trained = run.guarded_trial(SMALL, task.prepare(None, False), trial)
    assert result["validation_loss"] is None and trained == {}


# ------------------------------------------------------------------------------ the report


def made_up(losses, task="text", base=3.0):
    """Results with these test losses by rank (None: full), one a seed."""
    runs = [
        {"rank": r, "seed": seed, "lr": 0.01, "trainable_parameters": 1000 * (r or 99)}
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
    _, base, one, two, full, flat = report.table(results).splitlines()
    assert " ".join(base.split()) == "base 0 3 3"
    assert " ".join(one.split()) == "r = 1 1,000 0.01 2.1 2.1 2.1 +- 0.14 45 %"
    assert " ".join(two.split()) == "r = 2 2,000 0.01 1.5 1.5 1.5 +- 0 75 %"
    assert " ".join(full.split()) == "full 99,000 0.01 1 1 1 +- 0 100 %"
    assert flat.startswith("not flat yet: r = 2 still gains")


def test_the_linear_table_shows_the_floors():
    lines = report.table(made_up({1: [1.01], 2: [0.51], None: [0.0]}, "linear", 2.0)).splitlines()
    assert lines[0].split()[-1] == "floor" and len(lines) == 5
    assert [line.split()[-1] for line in lines[2:4]] == ["1", "0.5"]


def test_a_gain_is_not_given_as_a_share_of_no_gain():
    table = report.table(made_up({1: [2.0], None: [3.0]}))
    assert "%" not in table and "nan" not in table


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
    table = report.table(made_up({**losses, None: [0.5, 0.5]}))
    assert said in table if said else "flat" not in table


def test_two_standard_errors_are_the_border_of_flat():
    def flat(gain):  # the gains are gain + 0.1 and gain - 0.1: their standard error is 0.1
        two = [2.1 - gain - 0.1, 1.9 - gain + 0.1]
        return "flat from r = 1 on" in report.table(made_up({1: [2.1, 1.9], 2: two, None: [1.0]}))

    assert flat(0.19) and not flat(0.21)


def test_seeds_that_diverged_are_counted_in_the_table():
    table = report.table(made_up({1: [2.0, 2.1, None], None: [1.0, 1.0, 1.0]}))
    assert "(2 of 3 seeds, the others diverged)" in table and table.count("others") == 1


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
    assert report.spell(seconds) == said


@pytest.mark.parametrize("loss, shown", [(1.23456, "1.235"), (None, "diverged")])
def test_the_terminal_shows_each_trial_on_a_screen(capsys, tmp_path, loss, shown):
    terminal = report.Terminal(tmp_path)
    terminal.is_screen = True
    terminal(run.Progress(2, 5, Trial("lora", 8, 1, 0.02), {"validation_loss": loss}))
    terminal.close()
    said = capsys.readouterr().err
    assert f"lora-r8-seed1-lr0.02: {shown}" in said and "2/5" in said


@pytest.mark.parametrize(
    "number, kept", [(0, "no run was"), (1, "1 run is kept in"), (7, "7 runs are kept in")]
)
def test_the_terminal_says_what_is_kept_from_earlier_calls_too(capsys, tmp_path, number, kept):
    (tmp_path / "results.json").write_text(json.dumps({"trials": [{}] * number}))
    report.Terminal(tmp_path).interrupted()
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
    with pytest.raises(SweepError, match=r"is no results file of a sweep: choose another --out"):
        rank_sweep(tiny, tmp_path)


def test_a_base_that_was_tampered_with_is_not_borrowed(tiny, tmp_path):
    rank_sweep(tiny, tmp_path / "one")
    arrays = load_arrays(tmp_path / "one" / "base.npz")
    np.savez(tmp_path / "one" / "base.npz", **{k: v + np.nan for k, v in arrays.items()})
    rank_sweep(tiny, tmp_path / "two")
    found = load_arrays(tmp_path / "two" / "base.npz")
    assert load_json(tmp_path / "two" / "base.json")["made"] == "here"
    assert all(np.array_equal(found[k], arrays[k]) for k in arrays)
