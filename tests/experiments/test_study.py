"""The engine of studies: the plan, a run, the folder, and the rule that decides a claim."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from lora_np import LoraConfig, evaluate
from lora_np.data import split, windows
from lora_np.experiments.claims import differences, interval, lies_within
from lora_np.experiments.folder import SweepError
from lora_np.experiments.rank_sweep.plan import Trial
from lora_np.experiments.rank_sweep.text import TextTask, rebuild_base, run_text_trial
from lora_np.experiments.runner import run_all
from lora_np.experiments.study import Contender, Run, Study, check_study, run_study
from lora_np.experiments.study.losses import losses, lowest_point, minima
from lora_np.experiments.study.plan import best_rate, expected_number, next_runs, rates_on_all_seeds
from lora_np.experiments.study.report import report

ALL = "all-linear"


def lora(r, alpha=None):
    return LoraConfig(r=r, lora_alpha=alpha or r, target_modules=ALL)


def trace(of):
    """A further number of a run: the mean of a trained matrix."""
    return {
        "mean": float(of.model.parameters()["wte.W"].value.mean()),
        "saw": len(of.texts["train"]),
    }


def small(tiny, **options):
    contenders = [
        Contender("full", None, 1e-2, around=1),
        Contender("LoRA", lora(2), 1e-2, rates=(0.3,)),
        Contender("short", lora(2), 1e-2, tokens=200, changes={"steps": 2, "batch_size": 2}),
    ]
    text = replace(tiny, seeds=2)
    return Study("small", text, contenders, report=report, **options)


# ------------------------------------------------------------------------------- the plan


def carried_out(contenders, seeds, loss, order=1):
    """Return every run that the plan asks for, with its loss; `order` reverses what is waiting."""
    done = {}
    run_all(
        lambda: next_runs(contenders, seeds, done, 1.0)[::order],
        lambda run: loss(run),
        lambda run, found, running: done.update({run: found}),
    )
    return done


def valley(at):
    """A loss with its minimum at this learning rate."""
    return lambda run: 0.5 + 0.1 * math.log2(run.lr / at) ** 2


def test_a_search_finds_a_minimum_far_from_its_start_and_runs_all_seeds_there():
    one = Contender("a", None, 0.02)
    done = carried_out([one], 3, valley(0.16))
    assert best_rate(one, done, 1.0) == 0.16
    assert {run for run in done if run.seed} == {Run("a", 1, 0.16), Run("a", 2, 0.16)}


@pytest.mark.parametrize("at", [0.01, 0.02, 0.08])
def test_neighbours_of_the_best_rate_and_common_rates_are_run_on_all_seeds(at):
    one = Contender("a", None, 0.02, rates=(1.0,), around=2)
    done = carried_out([one], 2, valley(at))
    expected = [at / 4, at / 2, at, 2 * at, 4 * at, 1.0]
    assert rates_on_all_seeds(one, done, 1.0) == pytest.approx(expected)
    assert sorted(run.lr for run in done if run.seed == 1) == pytest.approx(expected)


def test_a_common_rate_far_from_the_start_does_not_stop_a_search():
    """The losses fall from the start up to 0.16; a rate of 0.64 says nothing of those between."""
    one = Contender("a", None, 0.01, rates=(0.64,))
    assert best_rate(one, carried_out([one], 2, valley(0.16)), 1.0) == 0.16
    wide = Contender("a", None, 0.01, rates=(1e-6,), around=1)
    assert best_rate(wide, carried_out([wide], 2, valley(1e-6)), 1.0) > 1e-6  # out of reach


def test_rates_that_differ_by_rounding_are_one():
    one = Contender("a", None, 0.02 / 3, around=2)  # no number of 4 digits
    done = carried_out([one], 2, valley(0.02 / 3 / 8))
    rates = sorted({run.lr for run in done})
    assert all(b / a > 1.9 for a, b in pairwise(rates)), rates


def test_the_runs_do_not_depend_on_the_order_in_which_they_end():
    contenders = [Contender(name, None, 0.02, (0.5,), around=1) for name in "ab"]
    every = [carried_out(contenders, 3, valley(0.15), order) for order in (1, -1)]
    waiting_together = {}
    while runs := next_runs(contenders, 3, waiting_together, 1.0):
        waiting_together |= {run: valley(0.15)(run) for run in runs}
    assert every[0] == every[1] == waiting_together


def test_a_rate_that_diverges_is_a_result_and_so_is_a_contender_that_always_does():
    one = Contender("a", None, 0.02, rates=(0.5,), around=1)
    above = carried_out([one], 2, lambda run: 0.5 if run.lr < 0.02 else math.inf)
    assert best_rate(one, above, 1.0) == 0.01
    never = carried_out([one], 2, lambda run: math.inf)
    assert best_rate(one, never, 1.0) is None
    assert {run.lr for run in never if run.seed} == {0.5}  # asked for, whatever it does


def test_a_loss_that_falls_without_end_ends_the_search():
    done = carried_out([Contender("a", None, 0.02, around=1)], 2, lambda run: 1 / run.lr)
    assert len(done) < 20


def test_the_expected_number_is_right_where_no_search_goes_further():
    contenders = [
        Contender("a", None, 0.02),
        Contender("b", None, 0.02, rates=(0.02, 0.5)),
        Contender("c", None, 0.02, around=1),
        Contender("d", None, 0.02, around=2),
    ]
    for one in contenders:
        assert len(carried_out([one], 3, valley(0.02))) == expected_number([one], 3), one


# ---------------------------------------------------------------------- the curve's minimum


@pytest.mark.parametrize("at", [0.012, 0.02, 0.027])
def test_the_minimum_lies_where_a_parabola_has_it(at):
    near = {lr: math.log(lr / at) ** 2 for lr in (0.01, 0.02, 0.04)}
    assert lowest_point(near) == pytest.approx(at)


@pytest.mark.parametrize(
    "tried, found",
    [
        ({0.1: 3.0, 0.2: 2.0, 0.4: 1.0}, 0.4),  # falls to the end
        ({0.1: 2.0, 0.2: 1.0, 0.4: math.inf}, 0.2),
        ({0.1: 2.0}, 0.1),
        ({0.1: 1.0, 0.2: 1.5, 0.4: 1.6}, 0.1),  # not convex
    ],
)
def test_where_there_is_no_parabola_the_best_rate_is_the_minimum(tried, found):
    assert lowest_point(tried) == found


def test_a_curve_that_diverged_everywhere_has_no_minimum():
    assert math.isnan(lowest_point({0.1: math.inf}))
    trial = {"label": "a", "seed": 0, "lr": 0.1, "validation_loss": None, "test_loss": None}
    results = {"trials": [trial], "best": {"a": None}}
    assert minima(results, "a") == {} and losses(results, "a") == {0: math.inf}


# ------------------------------------------------------------------------- what decides a claim


def test_an_interval_is_that_of_student():
    values = [0.1, 0.4, 0.2, 0.25, 0.3]
    half = 2.776 * np.std(values, ddof=1) / math.sqrt(5)  # the 97.5 % quantile at 4 degrees
    assert interval(values) == pytest.approx((0.25 - half, 0.25 + half))


@pytest.mark.parametrize(
    "values, decided",
    [
        ([0.2, 0.21, 0.19], True),
        ([-0.2, -0.21, -0.19], False),
        ([0.2, -0.21, 0.1], None),
        ([0.2, 0.2], None),  # two seeds
        ([0.0, 0.0, 0.0], False),
        ([math.inf] * 3, True),
        ([0.2, math.inf, 0.2], None),
        ([math.nan, 0.2, 0.2], None),
    ],
)
def test_a_claim_is_decided_where_the_whole_interval_lies_on_one_side(values, decided):
    assert lies_within(values, low=0.0) is decided
    negated = [-value for value in values]
    assert lies_within(negated, high=0.0) is decided


def test_the_rule_is_right_in_nineteen_of_twenty_draws():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 0.3, (2000, 5)).tolist()
    wrong = sum(lies_within(draw, low=1.0) is not None for draw in draws)
    assert 0.03 < wrong / 2000 < 0.07


def test_differences_are_between_equal_seeds():
    assert differences({0: 3.0, 2: 5.0, 1: 1.0}, {2: 1.0, 0: 1.0}) == [2.0, 4.0]


# ------------------------------------------------------------------------------ a whole study


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, run_study(small(tiny, measure=trace), folder)


def comparable(results):
    plain = json.loads(json.dumps(results))
    for trial in plain["trials"]:
        trial.pop("seconds")
    return plain


def test_a_run_has_the_losses_of_the_same_run_of_a_rank_sweep(finished, tiny):
    folder, results = finished
    run = next(t for t in results["trials"] if t["label"] == "LoRA" and t["seed"] == 1)
    arrays = TextTask(tiny).prepare(folder, False)
    sweep, _ = run_text_trial(tiny, arrays, Trial("lora", 2, 1, run["lr"]))
    same = ("train_loss", "validation_loss", "test_loss", "trainable_parameters")
    assert [run[name] for name in same] == [sweep[name] for name in same]


def test_a_run_measures_forgetting_and_what_the_study_adds(finished):
    _, results = finished
    assert all(t["pretrain_loss"] != results["base_pretrain_loss"] for t in results["trials"])
    assert abs(results["base_pretrain_loss"] - results["base_test_loss"]) > 1e-3  # another text
    saw = {t["label"]: t["saw"] for t in results["trials"]}
    assert saw["short"] == 200 < saw["LoRA"] == saw["full"]
    frozen = {t["mean"] for t in results["trials"] if t["label"] == "LoRA"}
    assert len(frozen) == 1 and frozen.isdisjoint(
        t["mean"] for t in results["trials"] if t["label"] == "full"
    )


def test_any_executor_gives_the_same_results(finished, tmp_path, tiny):
    folder, results = finished
    with ThreadPoolExecutor(2) as pool:
        threaded = run_study(
            small(tiny, measure=trace), tmp_path / "out", base=folder, executor=pool
        )
    assert comparable({**threaded, "base_made": "here"}) == comparable(results)


def test_a_study_that_is_stopped_goes_on_and_repeats_no_run(finished, tmp_path, tiny):
    _, results = finished
    heard = []

    def stop(progress):
        heard.append(progress.trial)
        if len(heard) in (1, 7):
            raise KeyboardInterrupt

    again = partial(run_study, small(tiny, measure=trace), tmp_path, listen=stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again()
        assert check_study(small(tiny, measure=trace), tmp_path) is False
    assert comparable(again()) == comparable(results)
    assert len(heard) == len(set(heard)) == len(results["trials"])


def test_a_finished_study_is_only_read(finished, tiny, monkeypatch):
    folder, results = finished
    monkeypatch.setattr(TextTask, "prepare", None)
    again = run_study(small(tiny, measure=trace), folder)
    assert again == json.loads(json.dumps(results))


def test_the_base_is_measured_as_the_contenders_are_where_all_differ_from_it(
    finished, tiny, tmp_path
):
    folder, results = finished
    study = small(tiny)
    shorter = [replace(one, changes={**one.changes, "block_size": 12}) for one in study.contenders]
    found = run_study(replace(study, contenders=shorter), tmp_path, base=folder)
    base = rebuild_base(study.text, TextTask(tiny).prepare(folder, False))
    test = split(TextTask(tiny).adaptation).test
    loss = evaluate(base, *windows(test, 12, tiny.windows))
    assert found["base_test_loss"] == loss != results["base_test_loss"]
    assert found["base_sha256"] == results["base_sha256"]  # its context is as it was


def test_other_contenders_are_other_settings(finished, tiny):
    folder, _ = finished
    study = small(tiny)
    other = replace(study, contenders=[replace(study.contenders[1], method=lora(1))])
    with pytest.raises(SweepError, match="of other settings"):
        run_study(other, folder)
    with pytest.raises(SweepError, match="not the results file of a study"):
        run_study(replace(study, name="another"), folder)


def test_a_run_that_diverges_is_kept_as_none(tmp_path, tiny):
    wild = Contender("wild", None, 1e-2, rates=(1e30,))
    results = run_study(Study("s", tiny, [wild], report=report), tmp_path)
    lost = next(t for t in results["trials"] if t["lr"] == 1e30)
    assert lost["validation_loss"] is None and lost["diverged"]
    assert losses(results, "wild", 1e30) == {0: math.inf, 1: math.inf}
    assert results["best"]["wild"] < 1.0


@pytest.mark.parametrize(
    "contender, said",
    [
        (Contender("x", lora(400), 0.1), "x: .*400.*above the limit"),
        (Contender("x", None, 0.1, tokens=10**9), "x: .* has only .* bytes"),
        (Contender("x", None, 0.1, tokens=3), "x: "),
        (Contender("x", None, 0.0), "x: start = 0.0, expected a positive learning rate"),
        (Contender("x", None, 0.1, changes={"d_model": 8}), "x: changes of d_model: .* only steps"),
        (Contender("x", None, 0.1, changes={"steps": 0}), "x: steps = 0, expected at least 1"),
        (
            Contender("x", None, 0.1, changes={"block_size": 17}),
            "x: .*17 is above the 16 positions",
        ),
    ],
)
def test_a_contender_that_cannot_be_trained_is_refused_first(tmp_path, tiny, contender, said):
    with pytest.raises(ValueError, match=said):
        run_study(Study("s", tiny, [contender]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_contender_may_train_on_shorter_windows_than_the_base_has_positions(tmp_path, tiny):
    """As a prompt needs it, which takes some of the positions."""
    short = Contender("short", lora(1), 1e-2, changes={"block_size": 12})
    results = run_study(Study("s", tiny, [short], measure=trace), tmp_path)
    assert all(t["train_loss"] > 0.0 for t in results["trials"])


def test_contenders_need_names_of_their_own(tiny):
    with pytest.raises(ValueError, match="two contenders are named 'a'"):
        Study("s", tiny, [Contender("a", None, 0.1)] * 2)
    with pytest.raises(ValueError, match="there is no contender"):
        Study("s", tiny, [])


def test_the_table_has_a_row_for_each_contender(finished):
    _, results = finished
    lines = report(results).splitlines()
    (row,) = (line for line in lines if line.startswith("short"))
    best = results["best"]["short"]
    mean = np.mean([*losses(results, "short", best).values()])
    assert f"{mean:.4f} +- " in row and f" {best:.2g} " in row
