"""intrinsic: gradients against numeric ones, the search for d90, its report and its picture."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lora_np import cli
from lora_np.crew import can_fork
from lora_np.experiments.intrinsic import (
    Fastfood,
    IntrinsicModel,
    IntrinsicSettings,
    Listener,
    d90,
    dimension,
    intrinsic_dimension,
    intrinsic_run,
    report,
)
from lora_np.experiments.intrinsic import text as text_module
from lora_np.experiments.intrinsic.dimension import Problem, Run, next_runs
from lora_np.experiments.intrinsic.picture import plot_intrinsic
from lora_np.experiments.intrinsic.text import STARTS
from lora_np.experiments.rank_sweep import SweepError, TextSettings
from lora_np.experiments.rank_sweep.linear import Regression
from lora_np.experiments.rank_sweep.text import TextTask
from lora_np.experiments.search import SAME
from lora_np.gradcheck import check_gradients
from lora_np.layers import Linear, copy_model
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Grads, freeze, pack
from lora_np.plots import BLUE, ORANGE
from lora_np.selfcheck import at_random
from lora_np.train import Diverged, evaluate, fit, loss_and_gradient
from tests.compare import values
from tests.ops.test_fastfood import ROUNDING, dense
from tests.tiny import TINY

V, T = 7, 5
MODELS = ("plain", "structured")


def make_gpt(dtype=np.float64, dropout=0.0, spread=0.3):
    config = GPTConfig(V, T, n_layer=1, n_head=2, d_model=8, dropout=dropout)
    model = GPT(config, np.random.default_rng(0), np.float64)
    at_random(model, np.random.default_rng(1), spread)
    return copy_model(model, dtype=dtype)


def intrinsic(model, d=40, variant="plain", seed=2, moved=0.0):
    """An IntrinsicModel; `moved` sets z (and the scales, off one) to random numbers."""
    found = IntrinsicModel(model, d, np.random.default_rng(seed), variant == "structured")
    draw = np.random.default_rng(seed + 1)
    for p in found.own().values():
        p.value += (moved * draw.standard_normal(p.shape)).astype(p.dtype)
    return found


def batch(B=4, seed=3):
    return tuple(np.random.default_rng(seed).integers(0, V, (2, B, T)))


# -------------------------------------------------------------------------------------- the model


def as_functions(model):
    """A pair of functions of z (and the scales), as the gradient checker wants it."""

    def forward(*arrays):
        twin = IntrinsicModel.__new__(IntrinsicModel)
        vars(twin).update(vars(model))
        for name, value in zip(model.own(), arrays):
            setattr(twin, name, type(model.z)(value))
        loss, cache = twin.loss(*batch())
        return np.asarray(loss), (twin, cache)

    def backward(dy, cache, need=None):
        twin, inner = cache
        grads = Grads()
        twin.backward(dy, inner, grads)
        return tuple(grads[p] for p in twin.own().values())

    return forward, backward, {name: p.value for name, p in model.own().items()}


@pytest.mark.parametrize("variant", MODELS)
@pytest.mark.parametrize("method", ["central", "complex"])
def test_the_gradient_matches_numeric_ones_at_random_z(variant, method):
    model = intrinsic(make_gpt(), variant=variant, moved=0.5)
    forward, backward, inputs = as_functions(model)
    report = check_gradients(forward, backward, inputs, method=method)
    assert [row.name for row in report.rows] == list(model.own())
    gradients = backward(1.0, forward(*inputs.values())[1])
    assert all(abs(gradient).max() > 1e-4 for gradient in gradients)  # none is right as zero
    report.raise_if_wrong()


@pytest.mark.parametrize("variant", MODELS)
def test_the_point_is_theta0_plus_the_dense_projection_of_z(variant):
    base = make_gpt()
    model = intrinsic(base, variant=variant, moved=0.5)
    change = dense(model.projection) @ model.z.value  # (D,)
    start = 0
    for name, p in base.parameters().items():
        part = change[start : start + p.size].reshape(p.shape)
        if variant == "structured":
            layers = list(dict.fromkeys(n.rpartition(".")[0] for n in base.parameters()))
            part = part * model.scales.value[layers.index(name.rpartition(".")[0])]
        found = model.point().parameters()[name].value
        np.testing.assert_allclose(found, p.value + part, rtol=0, atol=ROUNDING, err_msg=name)
        start += p.size
    assert start == model.theta0.size and np.abs(change).max() > 0.1


def test_training_starts_at_the_base_itself():
    base = make_gpt(np.float32)
    for variant in MODELS:
        model = intrinsic(base, variant=variant)
        assert model.loss(*batch())[0] == base.loss(*batch())[0]
        assert {p.dtype for p in model.own().values()} == {np.dtype(np.float32)}


def test_scales_count_in_d_and_there_is_one_for_each_layer_with_parameters():
    base = make_gpt()
    model = intrinsic(base, 40, "structured")
    # Two embeddings, three norms, four projections of attention, two of the MLP.
    assert model.scales.size == 11 and model.z.size == 29
    assert sum(p.size for p in intrinsic(base, 40).own().values()) == 40
    with pytest.raises(ValueError, match="d = 11, expected more than the 11 scales"):
        intrinsic(base, 11, "structured")


def test_frozen_parameters_stay_where_they_are(rng):
    base = make_gpt()
    parameters = base.parameters()
    freeze({n: p for n, p in parameters.items() if not n.startswith("h.0.mlp")})
    model = intrinsic(base, 10, moved=0.5)
    assert model.theta0.size == sum(p.size for p in parameters.values() if p.trainable)
    for name, p in model.point().parameters().items():
        stayed = np.array_equal(p.value, parameters[name].value)
        assert stayed == (not parameters[name].trainable), name
    freeze(parameters)
    with pytest.raises(ValueError, match="nothing is trainable"):
        intrinsic(base)


@pytest.mark.parametrize("variant", MODELS)
def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(variant):
    base = make_gpt(np.float32)
    before = values(base)
    model = intrinsic(base, 200, variant)
    history = fit(model, batch, steps=30, lr=0.1)
    assert history.loss[-1] < 0.8 * history.loss[0]
    after = values(base)
    assert all(np.array_equal(before[n], after[n]) for n in before)
    assert evaluate(model, *batch()) == pytest.approx(evaluate(model.point(), *batch()), rel=1e-6)


def test_equal_seeds_give_bit_equal_runs():
    def run(seed):
        model = intrinsic(make_gpt(np.float32), seed=seed)
        fit(model, batch, steps=3, lr=0.1)
        return model.z.value

    assert np.array_equal(run(5), run(5)) and not np.allclose(run(5), run(6))


@pytest.mark.parametrize("variant", MODELS)
@pytest.mark.parametrize(
    "share",
    [
        {"threads": 2},
        pytest.param({"processes": 2}, marks=pytest.mark.skipif(not can_fork(), reason="no fork")),
        {"accumulate": 3},
    ],
)
def test_a_batch_may_be_shared_or_worked_through_in_parts(variant, share):
    found = []
    for how in ({}, share):
        model = intrinsic(make_gpt(dropout=0.2), variant=variant, moved=0.1)
        draws = np.random.default_rng(1)
        history = fit(model, batch, steps=4, lr=0.05, rng=draws, **how)
        found.append([*history.loss, *(p.value for p in model.own().values())])
    for alone, shared in zip(*found):
        np.testing.assert_allclose(shared, alone, rtol=0, atol=1e-10)  # Adam divides by sqrt(v)


@pytest.mark.parametrize("variant", MODELS)
def test_a_loss_writes_nothing_that_another_thread_could_see(variant):
    model = intrinsic(make_gpt(), variant=variant, moved=0.5)
    packed = pack(model.parameters())
    vector, held = packed.vector.copy(), set(vars(model))
    _, gradient = loss_and_gradient(model, packed, batch())
    _, cache = model.loss(*batch())
    model.loss(*batch(seed=9))  # between the two halves of the other one
    grads = Grads()
    model.backward(1.0, cache, grads)
    assert np.array_equal(packed.gather(grads), gradient) and set(vars(model)) == held
    assert np.array_equal(packed.vector, vector)


def test_gradient_descent_in_the_subspace_finds_its_least_squares_solution(rng):
    linear = Linear(6, 4, rng, bias=False, dtype=np.float64)
    X, Y, d = rng.standard_normal((30, 6)), rng.standard_normal((30, 4)), 5
    model = IntrinsicModel(Regression(linear), d, rng)
    fit(model, lambda: (X, Y), steps=3000, lr=0.01, optimizer="sgd", schedule="constant", clip=None)
    # vec(X W^T) = (I kron X) vec(W) in W's row order: a plain least-squares problem in z.
    A = np.kron(np.eye(4), X) @ dense(model.projection)  # (120, d)
    rest = (Y - X @ linear.W.value.T).T.reshape(-1)
    z, residual, rank, _ = np.linalg.lstsq(A, rest, rcond=None)
    assert rank == d
    np.testing.assert_allclose(model.z.value, z, rtol=0, atol=1e-8)
    assert model.loss(X, Y)[0] == pytest.approx(0.5 * residual[0], rel=1e-10)


@pytest.mark.parametrize("optimizer, same", [("sgd", True), ("adam", False)])
def test_turning_the_basis_changes_nothing_for_gradient_descent_but_does_for_adam(optimizer, same):
    # Why training at d = D is not full training: docs/intrinsic_dimension.md.
    rng = np.random.default_rng(0)
    full = Regression(Linear(4, 4, rng, bias=False, dtype=np.float64))
    data = rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
    turned = IntrinsicModel(full, 16, rng)
    P = turned.projection
    P.gauss, P.lengths[...] = np.sign(P.gauss), 1.0 / 16.0
    np.testing.assert_allclose(dense(P) @ dense(P).T, np.eye(16), rtol=0, atol=ROUNDING)
    one, other = (
        fit(model, lambda: data, steps=20, lr=0.02, optimizer=optimizer, clip=None).loss
        for model in (full, turned)
    )
    assert one[-1] < 0.9 * one[0]
    assert np.allclose(one, other, rtol=1e-10, atol=0) == same


def test_a_run_that_diverges_leaves_the_last_good_z(rng):
    model = IntrinsicModel(Regression(Linear(3, 2, rng, dtype=np.float64)), 4, rng)
    data = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    with pytest.raises(Diverged):
        fit(model, lambda: data, steps=2000, lr=1e3, optimizer="sgd", clip=None)
    assert np.isfinite(model.loss(*data)[0])


def test_arrays_of_several_types_are_refused():
    base = make_gpt()
    base.wte.W.value = base.wte.W.value.astype(np.float32)
    with pytest.raises(ValueError, match="of one dtype, on the host"):
        intrinsic(base)


# ---------------------------------------------------------------------------------- the dimension


@pytest.mark.parametrize(
    "losses, found",
    [
        ({8: 2.5, 64: 1.1, 512: 1.05}, 64),  # the target is 3 - 0.9 * 2 = 1.2
        ({8: 1.19, 64: 1.3}, 8),  # the smallest, though a larger one failed
        ({8: 2.5, 64: 1.21}, None),
        ({}, None),
    ],
)
def test_d90_is_the_smallest_d_that_gets_nine_tenths_of_the_way(losses, found):
    assert d90(losses, base=3.0, full=1.0) == found


@pytest.mark.parametrize("full", [3.0, 3.0 - 1e-9, 3.5, math.nan])
def test_d90_needs_a_full_training_that_gains(full):
    with pytest.raises(ValueError, match="there is no gain to share"):
        d90({8: 1.0}, base=3.0, full=full)


def test_the_search_tries_rates_at_every_d_and_runs_the_best_on_the_other_seeds():
    def play(best):
        done = {}
        while waiting := next_runs({("plain", 64): 0.1, ("plain", 128): 0.2}, 3, done, base=3.0):
            for run in waiting:
                done[run] = math.inf if best is None else 1.0 + abs(math.log2(run.lr / best))
        return {run for run in done if run.d == 64}

    found = play(best=0.1)
    assert found == {Run("plain", 64, 0, lr) for lr in (0.05, 0.1, 0.2)} | {
        Run("plain", 64, seed, 0.1) for seed in (1, 2)
    }
    assert Run("plain", 64, 2, 0.4) in play(best=0.4)  # the search went on
    assert {run.seed for run in play(best=None)} == {0}  # all diverged


D_TOY, M_TOY = 15, 1


def toy_problem(seed):
    """Fit a linear map (3, 5), which all 15 directions together can do exactly."""
    rng = np.random.default_rng(7)
    linear = Linear(5, 3, rng, bias=False, dtype=np.float64)
    X, W = np.eye(5), rng.standard_normal((3, 5))
    model, data = Regression(linear), (X, X @ W.T)
    return Problem(model, lambda: data, lambda trained: float(trained.loss(*data)[0]))


@pytest.fixture(scope="module")
def measured():
    heard = []
    found = intrinsic_dimension(
        toy_problem,
        (1, 7, 15),
        lr=0.1,
        fit_options={"steps": 400, "optimizer": "adam", "clip": None},
        seeds=2,
        listen=lambda run, loss: heard.append((run, loss)),
    )
    return found, heard


def test_the_dimension_of_a_toy_is_that_of_its_parameters(measured):
    found, heard = measured
    rows = {(row["variant"], row["d"]): row for row in found["rows"]}
    assert (found["D"], found["layers"]) == (D_TOY, M_TOY)
    assert set(rows) == {
        ("full", None),
        *(("plain", d) for d in (1, 7, 15)),
        *(("structured", d) for d in (7, 15)),  # at d = 1 the scale leaves nothing to z
    }
    assert found["base"] == toy_problem(0).validate(toy_problem(0).model)
    assert found["target"] == pytest.approx(0.1 * found["base"], rel=1e-4)  # full reaches zero
    assert found["d90"] == {"plain": 15, "structured": None}
    assert found["square"] == rows["plain", 15]["loss"] > found["full"]
    assert found["d90_square"] == found["d90"]
    # No z does better than least squares in the columns of that seed's P, and training finds it.
    model, sample, _ = toy_problem(0)
    change = (sample()[1].T - model.linear.W.value).reshape(-1)  # (15,)
    for d, tolerance in ((1, 1e-6), (7, 1e-6), (15, None)):
        for seed, loss in enumerate(rows["plain", d]["losses"]):
            P = dense(Fastfood(D_TOY, d, np.random.default_rng([seed, 2]), np.float64))
            z = np.linalg.lstsq(P, change, rcond=None)[0]
            best = 0.5 * ((change - P @ z) ** 2).sum()
            assert loss > best * (1.0 - 1e-9)
            if tolerance is not None:  # a square Gaussian P is too ill-conditioned to finish
                assert loss == pytest.approx(best, rel=tolerance)
    assert len(heard) == len({run for run, _ in heard}) > 3 * len(rows)


def test_each_row_is_the_mean_over_seeds_at_the_best_rate_of_the_first(measured):
    found, heard = measured
    done = dict(heard)
    for row in found["rows"]:
        tried = {
            run.lr: loss
            for run, loss in heard
            if (run.variant, run.d, run.seed) == (row["variant"], row["d"], 0)
        }
        assert tried[row["lr"]] <= min(tried.values()) + SAME * found["base"]
        assert row["losses"] == [done[Run(row["variant"], row["d"], s, row["lr"])] for s in (0, 1)]
        assert row["loss"] == pytest.approx(np.mean(row["losses"]))


def test_rates_that_all_end_at_zero_are_equal_and_the_start_is_taken(measured):
    found, heard = measured
    tried = {run.lr: loss for run, loss in heard if (run.variant, run.seed) == ("full", 0)}
    assert max(tried.values()) < 1e-9 * found["base"] and min(tried, key=tried.get) != 0.1
    assert found["rows"][0]["lr"] == 0.1 and set(tried) == {0.05, 0.1, 0.2}


@pytest.mark.parametrize("ds", [(), (0, 4), (4, 16)])
def test_dimensions_that_do_not_fit_the_model_are_refused(ds):
    with pytest.raises(ValueError, match="expected 1 <= d <= D = 15"):
        intrinsic_dimension(toy_problem, ds, lr=0.1, fit_options={"steps": 1})


def test_a_dimension_where_all_rates_diverge_has_no_loss_and_is_not_d90():
    options = {"steps": 5, "optimizer": "sgd", "schedule": "constant", "clip": None}
    heard = {}

    def fragile(seed):
        model, sample, validate = toy_problem(seed)
        return Problem(model, sample, lambda m: validate(m) if m is model else math.nan)

    found = intrinsic_dimension(
        fragile, (3,), lr=0.3, fit_options=options, listen=heard.__setitem__
    )
    assert {r["loss"] for r in found["rows"][1:]} == {None} and set(found["d90"].values()) == {None}
    assert sum(math.isinf(loss) for loss in heard.values()) == 2 * 7  # each search to its end


def test_full_training_that_diverges_leaves_nothing_to_compare_with():
    options = {"steps": 2, "optimizer": "sgd", "clip": None}

    def fragile(seed):
        return toy_problem(seed)._replace(validate=lambda model: math.nan)

    with pytest.raises(ValueError, match="full training diverged at every learning rate"):
        intrinsic_dimension(fragile, (3,), lr=0.3, fit_options=options)


# ------------------------------------------------------------------------------------ the command


SETTINGS = IntrinsicSettings(
    ds=(40, 300),
    text=TextSettings(seeds=1, **TINY),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, intrinsic_run(SETTINGS, folder)


def test_a_run_measures_both_starts_and_is_read_back_the_second_time(finished, monkeypatch):
    folder, results = finished
    assert results["complete"] and results["random"]["base"] == pytest.approx(
        math.log(256), abs=0.1
    )
    assert results["pretrained"]["base"] < results["random"]["base"]
    assert json.loads((folder / "results.json").read_text()) == results
    monkeypatch.setattr(text_module, "intrinsic_dimension", None)  # nothing is run again
    assert intrinsic_run(SETTINGS, folder) == results


@pytest.mark.parametrize("k", [0, 1, 8, 13])
def test_a_stopped_run_keeps_its_trials_and_runs_the_others_once(finished, tmp_path, k):
    _, results = finished
    heard = []

    def stop(run, loss):
        heard.append(run)
        if len(heard) == k:
            raise KeyboardInterrupt

    if k > 0:
        with pytest.raises(KeyboardInterrupt):
            intrinsic_run(SETTINGS, tmp_path / "run", listen=stop)
        kept = json.loads((tmp_path / "run" / "results.json").read_text())
        assert kept["trials"] == results["trials"][:k] and not kept["complete"]
    k = -1
    assert intrinsic_run(SETTINGS, tmp_path / "run", listen=stop) == results
    assert len(heard) == len(results["trials"]) > 13


def old_form(results):
    """Results as they were written when an unfinished run started again: without trials."""
    return {k: v for k, v in results.items() if k != "trials"}


def test_a_finished_run_of_an_earlier_version_is_read(finished, tmp_path):
    old = old_form(finished[1])
    (tmp_path / "results.json").write_text(json.dumps(old))
    assert intrinsic_run(SETTINGS, tmp_path) == old
    assert report(old) == report(finished[1])


def test_an_unfinished_run_of_an_earlier_version_is_run(finished, tmp_path):
    _, results = finished
    unfinished = {k: v for k, v in results.items() if k in ("settings", "versions")}
    (tmp_path / "results.json").write_text(json.dumps({**unfinished, "complete": False}))
    assert intrinsic_run(SETTINGS, tmp_path) == results


def test_a_run_that_diverged_is_kept_too(tmp_path):
    wild = replace(SETTINGS, ds=(40,), text=replace(SETTINGS.text, full_lr=1e30))
    heard = []

    def stop(run, loss):
        heard.append((run, loss))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            intrinsic_run(wild, tmp_path, listen=stop)
    assert [(run.lr, loss) for run, loss in heard] == [(5e29, math.inf), (1e30, math.inf)]
    trials = json.loads((tmp_path / "results.json").read_text())["trials"]
    assert [(t["lr"], t["loss"]) for t in trials] == [(5e29, None), (1e30, None)]


@pytest.mark.parametrize("change", [{"variant": []}, {"loss": "low"}, {"seed": None}])
def test_trials_that_are_none_are_an_error(finished, tmp_path, change):
    _, results = finished
    broken = [{k: v for k, v in results["trials"][0].items() if k != "lr"} | change]
    (tmp_path / "results.json").write_text(json.dumps({**results, "trials": broken}))
    with pytest.raises(SweepError, match="is not the results file of an intrinsic run"):
        intrinsic_run(SETTINGS, tmp_path)


def test_a_base_beside_is_not_taken_and_a_given_one_is(finished, tmp_path, monkeypatch):
    folder, results = finished
    assert results["base_made"] == "here"

    def pretrain(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TextTask, "_pretrain", pretrain)
    with pytest.raises(KeyboardInterrupt):
        intrinsic_run(SETTINGS, folder.parent / "beside")
    given = intrinsic_run(SETTINGS, tmp_path / "new", base=folder)
    assert given["base_made"] == f"copied from {folder}"
    assert {**given, "base_made": "here"} == results
    other = replace(SETTINGS, text=replace(SETTINGS.text, pretrain_steps=4))
    with pytest.raises(SweepError, match=r"other settings \(pretrain_steps 3, here 4\)"):
        intrinsic_run(other, tmp_path / "other", base=folder)
    assert not (tmp_path / "other").exists()
    monkeypatch.undo()
    intrinsic_run(other, tmp_path / "other")
    about = json.loads((tmp_path / "other" / "base.json").read_text())
    about["key"]["pretrain_steps"] = 3  # passed off as an equal one
    (tmp_path / "other" / "base.json").write_text(json.dumps(about))
    with pytest.raises(SweepError, match="was started with another base"):
        intrinsic_run(SETTINGS, folder, base=tmp_path / "other")


@pytest.mark.parametrize("complete", [{}, {"complete": "yes"}])
def test_results_that_do_not_say_whether_they_are_complete_are_an_error(
    finished, tmp_path, complete
):
    (tmp_path / "results.json").write_text(
        json.dumps({"settings": finished[1]["settings"], **complete})
    )
    with pytest.raises(SweepError, match="is not the results file of an intrinsic run: choose"):
        intrinsic_run(SETTINGS, tmp_path)


def test_a_folder_of_other_settings_or_of_something_else_is_left_as_it_is(finished, tmp_path):
    folder, _ = finished
    before = (folder / "results.json").read_bytes()
    with pytest.raises(
        SweepError, match=r"is of other settings \(ds \[40, 300\], now \[50\]\): choose"
    ):
        intrinsic_run(replace(SETTINGS, ds=(50,)), folder)
    assert (folder / "results.json").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SweepError, match=r"holds thesis\.txt, but no results\.json"):
        intrinsic_run(SETTINGS, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepError, match="cannot be written"):
        intrinsic_run(SETTINGS, tmp_path / "file" / "deep")


def made_up():
    rows = [
        {"variant": "full", "d": None, "lr": 0.004, "losses": [2.0], "loss": 2.0},
        {"variant": "plain", "d": 10, "lr": 0.1, "losses": [2.5], "loss": 2.5},
        {"variant": "plain", "d": 100, "lr": 0.2, "losses": [2.05], "loss": 2.05},
        {"variant": "structured", "d": 100, "lr": None, "losses": [], "loss": None},
    ]
    one = {"D": 1000, "layers": 19, "base": 3.0, "full": 2.0, "target": 2.1, "rows": rows}
    first = {"d90": {"plain": 100, "structured": None}, "square": None, "d90_square": None}
    second = {"d90": {"plain": 10, "structured": None}, "square": 2.5, "d90_square": first["d90"]}
    return {"pretrained": one | first, "random": one | second}


def test_the_table_says_how_far_each_d_gets_and_between_which_two_d90_lies():
    first, second = report(made_up()).split("\n\n")
    lines = [" ".join(line.split()) for line in first.splitlines()]
    assert lines[2] == "d = 10 0.1 2.5000 50 % needs d > m"
    assert lines[3] == "d = 100 0.2 2.0500 95 % diverged"
    assert lines[4] == "full 0.004 2.0000 100 %"
    assert first.endswith("d90: plain 100 (10 is not enough); structured unknown")
    one, other = (
        report(dict.fromkeys(STARTS, made_up()["random"] | {"layers": n})) for n in (1, 9)
    )
    assert "D = 1,000, 1 layer; " in one and "D = 1,000, 9 layers; " in other
    assert second.splitlines()[-2:] == [
        "d90: plain 10 (the smallest tried); structured unknown",
        "d90 against plain at d = D (2.5000): plain 100 (10 is not enough); structured unknown",
    ]


def test_the_bar_counts_runs_on_a_screen_and_is_silent_elsewhere(monkeypatch, capsys):
    with Listener() as silent:
        silent(Run("plain", 64, 0, 0.1), 2.0)
    assert silent.bar is None and capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Listener() as listen:
        listen(Run("full", None, 0, 0.1), 3.0)
        listen(Run("structured", 64, 0, 0.25), 2.0)
        assert listen.bar.n == 2 and "structured d = 64, lr 0.25: 2" in str(listen.bar)


def test_the_picture_has_both_variants_the_line_and_a_ring_at_d90(tmp_path, monkeypatch):
    caught = []
    monkeypatch.setattr("lora_np.plots.save", lambda figure, path: caught.append(figure))
    plot_intrinsic(made_up(), "unused.png")
    for axis, start in zip(caught[0].axes, ("pretrained", "random")):
        drawn = {line.get_label(): line for line in axis.get_lines()}
        assert axis.get_xscale() == "log" and start in axis.get_title()
        assert axis.get_ylabel() == "validation loss [nats a byte]"
        assert set(drawn["90 % of the way"].get_ydata()) == {2.1}
        (plain,) = (line for name, line in drawn.items() if name.startswith("plain"))
        assert plain.get_xydata().tolist() == [[10, 2.5], [100, 2.05]]
        assert plain.get_color() == BLUE
        assert drawn["structured, not reached"].get_color() == ORANGE
        rings = [line for line in axis.get_lines() if line.get_markersize() > 10]
        assert [ring.get_xdata()[0] for ring in rings] == [100 if start == "pretrained" else 10]


def test_the_command_writes_the_results_the_picture_and_the_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("lora_np.experiments.intrinsic.QUICK", SETTINGS)
    out = tmp_path / "out"
    command = ["intrinsic", "--quick", "--jobs", "1", "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith(report(json.loads((out / "results.json").read_text())))
    assert said.splitlines()[-2:] == [
        "base: pretrained here",
        f"written to {out}/: results.json, intrinsic_dimension.png",
    ]
    assert (out / "intrinsic_dimension.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*command[:1], *command[2:]]) == 2  # the default settings, in that folder
    assert "is of other settings" in capsys.readouterr().err


def test_an_interrupted_command_says_what_is_kept_and_the_next_one_continues(
    finished, monkeypatch, tmp_path, command
):
    monkeypatch.setattr("lora_np.experiments.intrinsic.QUICK", SETTINGS)
    train, trained = dimension.train_once, []

    def stop(*arguments):
        trained.append(arguments)
        if len(trained) == 5:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(dimension, "train_once", stop)
    arguments = ["intrinsic", "--quick", "--jobs", 1, "--out", tmp_path]
    status, out, err = command(*arguments)
    assert (status, out) == (130, "")
    said = f"stopped: 4 runs are kept in {tmp_path}; run the same command to continue"
    assert err == f"\n{said}\n"
    assert command(*arguments)[0] == 0
    assert len(trained) == len(finished[1]["trials"]) + 1  # the one that was stopped, twice
    assert json.loads((tmp_path / "results.json").read_text()) == finished[1]


def test_settings_without_a_rate_to_start_from_are_refused(tmp_path):
    settings = replace(SETTINGS, text=replace(SETTINGS.text, full_lr=None))
    with pytest.raises(ValueError, match="full_lr is None, expected a learning rate"):
        intrinsic_run(settings, tmp_path / "new")
    assert not (tmp_path / "new").exists()
