"""The study of DyLoRA: losses at every rank, what planted losses decide, the command."""

import json
import math
import pickle
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from lora_np import GPT, LoraConfig
from lora_np.cli import main
from lora_np.experiments import dylora
from lora_np.experiments.claims import VERDICTS
from lora_np.experiments.dylora.claims import chosen, claims, lora, speed_ups
from lora_np.experiments.dylora.measure import losses_by_rank, seconds_of_training
from lora_np.experiments.dylora.picture import _apart
from lora_np.experiments.dylora.study import DyLoraSettings, dylora_study
from lora_np.experiments.rank_sweep.text import TextTask, losses_on, rebuild_base
from lora_np.experiments.study import Contender, Run, Trained, check_study, run_study
from lora_np.experiments.study import trial as study_trial
from lora_np.experiments.study.losses import losses
from lora_np.experiments.study.plan import as_losses, best_rate, next_runs
from lora_np.experiments.study.trial import texts_of
from lora_np.layers import copy_model
from lora_np.methods import DyLoraConfig, inject
from lora_np.methods.contract import adapters

BASE = 3.0


def small(tiny, r_max=3, **options):
    """The study on texts that take a second."""
    return dylora_study(DyLoraSettings(replace(tiny, full_lr=None, **options), r_max))


# ------------------------------------------------------------------------ losses at every rank


@pytest.fixture
def task(tiny, finished):
    """The base, and the texts by slice."""
    arrays = TextTask(tiny).prepare(finished[0], False)
    arrays |= {"pretrain": arrays["adapt"]}
    contender = Contender("any", None, 0.1)
    return rebuild_base(tiny, arrays), texts_of(arrays, contender), arrays


def trained(tiny, task, config, rng):
    """A model with an adapter of random factors, as a study hands it over."""
    base, texts, _ = task
    model = inject(base, config, rng)
    for layer in adapters(model).values():
        for p in (layer.A, layer.B):
            p.value[...] = 0.3 * rng.standard_normal(p.shape)
    return Trained(Contender("x", config, 0.1), Run("x", 0, 0.1), model, base, tiny, texts)


def loss_of_changed(of, change, name):
    """The loss of the base whose weights were changed by ``change(path, A, B)``."""
    model = copy_model(of.base)
    for path, layer in adapters(of.model).items():
        W = model.modules()[path].W.value
        A, B = (p.value.astype(np.float64) for p in (layer.A, layer.B))
        W += change(A, B).astype(W.dtype)
    return losses_on(model, of.settings, {name: of.texts[name]})[f"{name}_loss"]


@pytest.mark.parametrize("update", ["all", "frozen"])
@pytest.mark.parametrize("scale", ["drawn", "constant"])
def test_dylora_is_measured_at_every_rank_with_the_scale_of_the_rank(
    update, scale, tiny, task, rng
):
    config = DyLoraConfig(
        r=3, lora_alpha=3, target_modules="all-linear", update=update, scale=scale
    )
    of = trained(tiny, task, config, rng)
    found = losses_by_rank(3, of)
    for name in ("validation", "test"):
        expected = [
            loss_of_changed(
                of,
                lambda A, B, k=k: (3 / k if scale == "drawn" else 1.0) * B[:, :k] @ A[:k],
                name,
            )
            for k in (1, 2, 3)
        ]
        assert [found[f"{name}_{k}"] for k in (1, 2, 3)] == pytest.approx(expected, rel=1e-5)
        assert found[f"{name}_loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_one_lora_is_cut_to_the_nearest_product_and_to_its_first_rows(tiny, task, rng):
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear")
    of = trained(tiny, task, config, rng)
    found = losses_by_rank(3, of)

    def nearest(A, B, k):
        U, sigma, Vt = np.linalg.svd(2.0 * B @ A)
        return (U[:, :k] * sigma[:k]) @ Vt[:k]

    for k in (1, 2, 3):
        svd = loss_of_changed(of, lambda A, B, k=k: nearest(A, B, k), "test")
        first = loss_of_changed(of, lambda A, B, k=k: 2.0 * B[:, :k] @ A[:k], "test")
        assert found[f"svd_{k}"] == pytest.approx(svd, rel=1e-5)
        assert found[f"naive_{k}"] == pytest.approx(first, rel=1e-5)
    assert abs(found["svd_1"] - found["naive_1"]) > 1e-3 * found["svd_1"]
    assert found["svd_3"] == pytest.approx(found["naive_3"], rel=1e-6)
    assert losses_by_rank(4, of) == {}  # it is not the LoRA that is cut


def test_a_lower_rank_that_is_not_finite_is_training_that_diverged(tiny, task, rng):
    """At the largest rank its loss is finite: only a cut shows it."""
    config = DyLoraConfig(r=2, lora_alpha=1e-3, target_modules="all-linear")
    study = replace(small(tiny, 2), contenders=[Contender("x", config, 0.1)])

    def broken(of):
        for layer in adapters(of.model).values():
            layer.A.value[...], layer.B.value[...] = 1e30, 1e30
        return losses_by_rank(2, of)

    found = study_trial.run_study_trial(replace(study, measure=broken), task[2], Run("x", 0, 1e-3))
    assert found["validation_loss"] is None
    assert found["diverged"] == "the loss at a lower rank is not finite"


def test_what_diverged_is_not_measured_and_its_losses_are_infinite(tiny, task, monkeypatch):
    def explode(model, *_):
        for p in model.parameters().values():
            if p.trainable:
                p.value[...] = np.inf

    monkeypatch.setattr(study_trial, "adapt", explode)
    study = small(tiny)
    run = Run(lora(3), 0, 0.1)
    found = {**run._asdict(), **study_trial.run_study_trial(study, task[2], run)}
    assert found["validation_loss"] is None and "svd_1" not in found
    results = {"trials": [found], "best": {lora(3): 0.1}}
    assert losses(results, lora(3), key="svd_1") == {0: math.inf}


def test_the_search_looks_at_the_mean_over_ranks(tiny, tmp_path):
    results = run_study(small(tiny), tmp_path)
    for trial in results["trials"]:
        if trial["label"].startswith("DyLoRA"):
            for name in ("validation", "test"):
                every = [trial[f"{name}_{k}"] for k in (1, 2, 3)]
                assert trial[f"{name}_loss"] == pytest.approx(np.mean(every))
    for label in results["settings"]["dylora"]:
        first = {t["lr"]: t for t in results["trials"] if (t["label"], t["seed"]) == (label, 0)}
        means = {lr: t["validation_loss"] for lr, t in first.items()}
        assert means[results["best"][label]] < min(means.values()) + 1e-5


def test_each_contender_is_timed_once_a_seed_and_the_base_stays_as_it_is(tiny, task):
    study, (base, _, arrays) = small(tiny), task
    before = {name: p.value.copy() for name, p in base.parameters().items()}
    found = seconds_of_training(study, arrays)
    assert list(found) == [contender.label for contender in study.contenders]
    assert all(len(seconds) == 2 and min(seconds) >= 0.0 for seconds in found.values())
    assert all((before[name] == p.value).all() for name, p in base.parameters().items())


# ---------------------------------------------------------------------- what planted losses decide


def planted(loss, seeds=5, noise=1e-5, seconds=lambda contender: 1.0):
    """Complete results whose losses at ranks are ``loss(what, r)``.

    ``what`` is the label of a DyLoRA, "LoRA", "svd" or "naive".
    """
    study, rng, trials = dylora_study(dylora.QUICK), np.random.default_rng(1), []
    r_max = dylora.QUICK.r_max
    ranks = range(1, r_max + 1)
    while runs := next_runs(study.contenders, seeds, as_losses(trials), BASE):
        for run in runs:
            (contender,) = (c for c in study.contenders if c.label == run.label)
            own = isinstance(contender.method, DyLoraConfig)
            of = {(run.label if own else "LoRA"): (ranks if own else [contender.method.r])}
            if not own and contender.method.r == r_max:
                of |= {"svd": ranks, "naive": ranks}
            far = 0.02 * math.log2(run.lr / contender.start) ** 2
            at = {
                (what, r): loss(what, r) + far + noise * rng.standard_normal()
                for what, every in of.items()
                for r in every
            }
            plain = float(
                np.mean([x for (what, _), x in at.items() if what in (run.label, "LoRA")])
            )
            slices = [f"{n}_loss" for n in ("train", "validation", "test", "pretrain")]
            found = dict.fromkeys(slices, float(plain) if math.isfinite(plain) else None)
            if math.isfinite(plain):
                found |= {f"{'test' if own else what}_{r}": x for (what, r), x in at.items()}
            else:
                found["diverged"] = "the last step went too far"
            trials.append({**run._asdict(), **found, "trainable_parameters": 7, "seconds": 0.1})
    done = as_losses(trials)
    sizes = {"steps": 12, "batch_size": 16, "block_size": 64, "d_model": 32, "n_layer": 2}
    timed = {c.label: [seconds(c) * (1 + 0.01 * k) for k in range(seeds)] for c in study.contenders}
    return {
        "settings": {"task": study.name, "seeds": seeds, **sizes, **study.settings},
        "trials": trials,
        "best": {c.label: best_rate(c, done, BASE) for c in study.contenders},
        **{f"base_{name}_loss": BASE for name in ("validation", "test", "pretrain")},
        "training_seconds": timed,
    }


def shaped(svd=-0.02, trained=-0.01, naive=0.1, at=None):
    """Losses over DyLoRA's: of the cuts, and of LoRA of each rank; `at` moves some of them."""

    def loss(what, r):
        level = {"svd": svd, "LoRA": svd - trained, "naive": naive}.get(what, 0.0)
        if what in ("LoRA", "naive") and r == dylora.QUICK.r_max:
            level = svd  # one model
        return 2.0 + level + (at or {}).get((what, r), 0.0)

    return loss


DYLORA = "DyLoRA frozen, drawn"


@pytest.mark.parametrize(
    "loss, noise, seeds, expected",
    [
        (shaped(), 1e-5, 5, [True, True, False, True]),
        (shaped(svd=0.02, trained=0.025), 1e-5, 5, [False, False, True, True]),
        (shaped(at={(DYLORA, 5): -0.1}), 1e-5, 5, [False, True, False, True]),  # one is enough
        (shaped(at={("svd", 4): 0.1}), 1e-5, 5, [False, False, False, True]),
        (shaped(at={("svd", 2): 0.015}), 1e-5, 5, [True, True, False, True]),  # r < 4 is no matter
        (shaped(naive=-0.1), 1e-5, 5, [True, True, False, False]),
        (shaped(at={("naive", 3): -0.2}), 1e-5, 5, [True, True, False, True]),  # on average
        (shaped(svd=0.0, trained=0.0), 0.01, 5, [None, None, None, True]),
        (shaped(svd=0.0, trained=0.0, naive=0.0), 0.01, 5, [None] * 4),
        (shaped(), 1e-5, 2, [None] * 4),
    ],
)
def test_planted_losses_decide_the_claims(loss, noise, seeds, expected):
    found = claims(planted(loss, seeds, noise))
    assert [claim.agrees for claim in found][:4] == expected


def test_a_claim_says_how_many_comparisons_hold():
    found = claims(planted(shaped(at={(DYLORA, 5): -0.1, (DYLORA, 6): -0.2})))
    told = "DyLoRA frozen, drawn at r = 6; 32 comparisons: 30 confirmed, 2 refuted, 0 not decided"
    assert told in found[0].measured
    assert "rank by rank 7 comparisons: 7 confirmed" in found[3].measured


@pytest.mark.parametrize(
    "own, seeds, expected",
    [
        (1.0, 5, [False, True]),  # as long as one LoRA; a fourth of four
        (0.2, 5, [True, False]),
        (1.2, 5, [False, False]),
        (1.0, 2, [None, None]),
    ],
)
def test_planted_seconds_decide_how_much_faster_dylora_is(own, seeds, expected):
    def seconds(contender):
        return own if isinstance(contender.method, DyLoraConfig) else 1.1

    results = planted(shaped(), seeds, seconds=seconds)
    assert [claim.agrees for claim in claims(results)][4:] == expected
    one, search = speed_ups(results)
    assert one == pytest.approx([1.1 / own] * seeds)
    assert search == pytest.approx([4 * 1.1 / own] * seeds)


def test_seconds_that_differ_from_seed_to_seed_decide_nothing():
    results = planted(shaped())
    label = results["settings"]["dylora"]
    for name in label:
        results["training_seconds"][name] = [0.5, 2.0, 1.0, 0.7, 1.5]
    assert claims(results)[5].agrees is None


def test_the_dylora_of_the_papers_claims_is_chosen_by_its_validation_loss():
    results = planted(shaped(at={(DYLORA, r): -0.005 for r in range(1, 9)}))
    assert chosen(results) == DYLORA
    assert DYLORA in claims(results)[2].rule


def test_a_report_says_every_claim_and_every_loss():
    results = planted(shaped())
    results["claims"] = [vars(claim) for claim in claims(results)]
    said = dylora_study(dylora.QUICK).report(results)
    assert max(map(len, said.splitlines())) <= 100 and "nan" not in said and "None" not in said
    text = " ".join(said.split())
    for claim in results["claims"]:
        assert f"{VERDICTS[claim['agrees']]}: {claim['of']}, {claim['says']}" in text
    (row,) = (line for line in said.splitlines() if re.match("4 ", line))
    assert row.split() == ["4", *["2.0000"] * 4, "1.9900", "+-", "0.0000", "1.9800", "2.1000"]


def test_runs_that_all_diverged_are_reported_and_drawn_and_decide_nothing(tmp_path, unpainted):
    results = planted(lambda *_: math.inf)
    found = claims(results)
    results["claims"] = [vars(claim) for claim in found]
    assert [claim.agrees for claim in found[:4]] == [None] * 4
    assert "diverged" in dylora_study(dylora.QUICK).report(results)
    for file, draw in dylora_study(dylora.QUICK).pictures.items():
        draw(results, tmp_path / file)


# ------------------------------------------------------------------------------- the picture


@pytest.mark.parametrize("heights", [[], [1.0], [1.0, 1.0, 1.0], [0.0, 0.5, 0.55, 1.5, 1.6, 9.0]])
def test_labels_are_apart_and_stay_near_their_lines(heights):
    placed = _apart(heights, 0.3)
    assert all(b - a > 0.3 - 1e-12 for a, b in pairwise(placed))
    assert sum(placed) == pytest.approx(sum(heights))
    assert all(abs(a - b) < 0.7 for a, b in zip(placed, heights))


# ------------------------------------------------------------------------------- a whole study


def comparable(results):
    """Results without what depends on the clock."""
    plain = json.loads(json.dumps(results))
    for trial in plain["trials"]:
        trial.pop("seconds")
    plain.pop("training_seconds", None)
    plain["claims"] = [c for c in plain.get("claims", ()) if "CPU" not in c["rule"]]
    return plain


def test_a_study_that_is_stopped_goes_on_and_repeats_no_run(tmp_path, tiny):
    study, heard = small(tiny, 2), []
    results = run_study(study, tmp_path / "whole")

    def stop(progress):
        heard.append(progress.trial)
        if len(heard) in (2, 12):
            raise KeyboardInterrupt

    again = partial(run_study, study, tmp_path / "stopped", listen=stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again()
        assert check_study(study, tmp_path / "stopped") is False
    assert comparable(again()) == comparable(results)
    assert len(heard) == len(set(heard)) == len(results["trials"])


def test_a_study_travels_to_another_process():
    study = dylora_study(DyLoraSettings())
    assert pickle.loads(pickle.dumps(study)).contenders == study.contenders
    assert len(pickle.dumps(study)) < 20_000


def test_the_default_has_five_seeds_and_every_adapter_the_scale_one_at_its_rank():
    settings = DyLoraSettings()
    assert settings.ranks == (1, 2, 4, 8, 16) and settings.text.seeds == 5
    labels = [contender.label for contender in dylora_study(settings).contenders]
    assert len(labels) == 4 + 5
    base = GPT(settings.text.gpt(), np.random.default_rng(0))
    for contender in dylora_study(settings).contenders:
        model = inject(base, contender.method, np.random.default_rng(0))
        assert {layer.scale for layer in adapters(model).values()} == {1.0}  # at its own rank


@pytest.fixture
def tiny_preset(tiny, monkeypatch):
    """Let --quick take a second, on short texts."""
    quick = DyLoraSettings(replace(tiny, full_lr=None), 3)
    monkeypatch.setattr(dylora, "QUICK", quick)


@pytest.mark.usefixtures("tiny_preset")
def test_a_quick_command_runs_writes_and_shows_again(tmp_path, command, finished):
    line = ["dylora", "--quick", "--jobs", "1", "--base", finished[0], "--out", tmp_path]
    status, first, _ = command(*line)
    assert status == 0
    assert "a quick run: there is nothing to conclude from it" in first
    assert "not decided" in first and not re.search("^(confirmed|refuted)", first, re.M)
    for file in ("results.json", "dylora.txt", "dylora.png"):
        assert (tmp_path / file).stat().st_size > 0
    status, again, _ = command(*line)
    assert status == 0 and again.splitlines()[:-1] == first.splitlines()[:-1]


@pytest.mark.usefixtures("tiny_preset", "unpainted")
def test_r_max_and_seeds_come_from_the_command_line(tmp_path, finished):
    options = ["--r-max", "2", "--seeds", "1", "--jobs", "1", "--base", str(finished[0])]
    assert main(["dylora", "--quick", *options, "--out", str(tmp_path)]) == 0
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert (settings["r_max"], settings["ranks"], settings["seeds"]) == (2, [1, 2], 1)


@pytest.mark.slow
def test_the_quick_preset_itself_runs(tmp_path, command):
    status, said, _ = command("dylora", "--quick", "--out", tmp_path)
    assert status == 0 and "not decided" in said


@pytest.mark.parametrize(
    "options, said",
    [
        ("--r-max 1", "r_max = 1, expected at least 2"),
        ("--r-max 400", "DyLoRA all, drawn: .*400.*above the limit"),
        ("--r-max x", "invalid int"),
    ],
)
def test_a_wrong_rank_is_one_line(options, said, tmp_path, capsys):
    try:
        status = main(["dylora", *options.split(), "--out", str(tmp_path / "out")])
    except SystemExit as error:
        status = error.code
    error = capsys.readouterr().err
    assert status == 2 and re.search(said, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_full_fine_tuning_has_no_place_in_it(tiny):
    with pytest.raises(ValueError, match="full_lr must be None"):
        DyLoraSettings(tiny)
