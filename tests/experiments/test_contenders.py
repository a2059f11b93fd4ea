"""The studies of contenders: what planted losses decide, reports, pictures, commands."""

import json
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from lora_np import GPT, Linear, LoraConfig, account, inject
from lora_np.cli import main
from lora_np.data import split
from lora_np.experiments import grid, regret, small_data
from lora_np.experiments.claims import VERDICTS
from lora_np.experiments.grid import claims as grid_claims
from lora_np.experiments.grid.first_step import first_steps
from lora_np.experiments.grid.picture import loss_grid
from lora_np.experiments.rank_sweep.text import DeviceBatches, TextTask, rebuild_base
from lora_np.experiments.regret import claims as regret_claims
from lora_np.experiments.small_data import claims as small_claims
from lora_np.experiments.study.plan import as_losses, best_rate, next_runs
from lora_np.experiments.study.run import as_sweep
from lora_np.methods.contract import adapters
from lora_np.parameters import Grads

BASE = 3.0
STUDIES = {
    "grid": (grid.QUICK, grid.grid_study),
    "small-data": (small_data.QUICK, small_data.small_data_study),
    "regret": (regret.QUICK, regret.regret_study),
}
every_study = pytest.mark.parametrize("name", STUDIES)


def planted(study, loss, seeds=5, noise=1e-4, more=dict):
    """Return complete results of a study whose runs have the losses of ``loss(contender, lr)``.

    ``loss`` returns the loss by slice, or a number for all slices; seeds add noise.
    """
    rng, trials = np.random.default_rng(1), []
    while runs := next_runs(study.contenders, seeds, as_losses(trials), BASE):
        for run in runs:
            (contender,) = (c for c in study.contenders if c.label == run.label)
            found = loss(contender, run.lr)
            found = found if isinstance(found, dict) else {"test": found}
            shift = noise * float(rng.standard_normal())
            own = {
                f"{name}_loss": found.get(name, found["test"]) + shift
                for name in ("train", "validation", "test", "pretrain")
            }
            own = own if math.isfinite(found["test"]) else dict.fromkeys(own)
            trials.append({**run._asdict(), **own, "trainable_parameters": 7, "seconds": 0.1})
    done = as_losses(trials)
    text = {"steps": study.text.steps, "batch_size": study.text.batch_size}
    sizes = {"block_size": 64, "d_model": 32, "n_layer": 2}
    return {
        "settings": {"task": study.name, "seeds": seeds, **text, **sizes, **study.settings},
        "trials": trials,
        "best": {c.label: best_rate(c, done, BASE) for c in study.contenders},
        **{f"base_{name}_loss": BASE for name in ("validation", "test", "pretrain")},
        **more(),
    }


def steps(sgd=2.0, adam=1.0):
    """First steps whose exponents are these."""
    scales = grid.QUICK.scales
    by = {"sgd": sgd, "adam": adam}
    found = {
        name: {"norms": [[s**p for s in scales]] * 5, "exponents": [p] * 5}
        for name, p in by.items()
    }
    return {"first_step": found}


def verdicts(found):
    """What was decided of each claim, in order."""
    return [claim.agrees for claim in found]


def valley(lr, at, width=0.02):
    """How far a loss lies above its minimum over the learning rate."""
    return width * math.log2(lr / at) ** 2


# ------------------------------------------------------------------------------------- the grid


def before():
    """The base's losses on the texts to train on: no gap before training."""
    every = (*small_data.QUICK.tokens, *small_data.SmallDataSettings().tokens)
    return {"base_train_losses": {str(n): BASE for n in every}}


MORE = {"grid": steps, "small-data": before, "regret": dict}


def grid_loss(alpha=-0.5, r=0.5, tuned=0.0, width=0.02):
    """The best rate goes as lora_alpha^alpha r^r; `tuned` is what alpha moves at the best rate."""

    def loss(contender, lr):
        config = contender.method
        at = 0.02 * config.lora_alpha**alpha * config.r**r
        return 2.0 + tuned * (config.lora_alpha > 2) + valley(lr, at, width)

    return loss


@pytest.mark.parametrize(
    "loss, seeds, expected",
    [
        (grid_loss(), 5, [True, True, True, True, True]),
        (grid_loss(tuned=0.05), 5, [False, True, True, True, True]),
        (grid_loss(width=0.002), 5, [True, False, True, True, True]),
        (grid_loss(-1.0, 1.0), 5, [True, True, False, False, False]),
        (grid_loss(-0.5, 0.0), 5, [True, True, False, True, False]),
        (grid_loss(0.0, 0.5), 5, [True, False, False, False, True]),
        (grid_loss(), 2, [None] * 5),
    ],
)
def test_planted_losses_decide_the_claims_of_the_grid(loss, seeds, expected):
    results = planted(grid.grid_study(grid.QUICK), loss, seeds, more=steps)
    assert verdicts(grid_claims.claims(results))[:5] == expected


def test_noise_alone_does_not_move_the_loss():
    """The span of every seed would be 0.02 here, and refute what is true."""
    study = grid.grid_study(grid.GridSettings())
    results = planted(study, lambda *_: 2.0, seeds=40, noise=0.01, more=steps)
    assert verdicts(grid_claims.claims(results))[0] is True


def test_noise_as_large_as_the_border_decides_nothing():
    results = planted(grid.grid_study(grid.QUICK), grid_loss(tuned=0.01), noise=0.004, more=steps)
    assert verdicts(grid_claims.claims(results))[0] is None


@pytest.mark.parametrize("sgd, adam", [(2.0, 1.0), (1.0, 1.0), (2.0, 2.0)])
def test_the_exponents_of_the_first_step_decide(sgd, adam):
    study = grid.grid_study(grid.QUICK)
    results = planted(study, grid_loss(), more=lambda: steps(sgd, adam))
    assert verdicts(grid_claims.claims(results))[5:] == [sgd == 2.0, adam == 1.0]


def test_a_cell_that_diverges_at_the_common_rate_is_not_lost():
    def loss(contender, lr):
        wild = contender.method.lora_alpha == 32 and lr > 0.015
        return math.inf if wild else grid_loss()(contender, lr)

    results = planted(grid.grid_study(grid.QUICK), loss, more=steps)
    assert grid_claims.widest(results, 0.02)[3] == [math.inf] * 5
    assert verdicts(grid_claims.claims(results))[1] is True
    assert np.isnan(loss_grid(results, 0.02)).sum() == 2 and not np.isnan(loss_grid(results)).any()


def test_the_exponent_of_the_best_rate_is_found_between_the_rates_that_were_run():
    results = planted(grid.grid_study(grid.QUICK), grid_loss(-0.4, 0.3), noise=0.0, more=steps)
    p, q = grid_claims.both_exponents(results)
    assert p == pytest.approx([-0.4] * 5, abs=1e-3) and q == pytest.approx([0.3] * 5, abs=1e-3)


def test_the_first_step_is_that_of_the_formula(tiny, finished):
    """Against s^2 lr G A^T A of a full gradient G: the adapter's own backward is not used."""
    arrays = TextTask(tiny).prepare(finished[0], False)
    found = first_steps(tiny, arrays, 2, (0.5, 2.0, 8.0))
    assert found["sgd"]["exponents"] == pytest.approx([2.0, 2.0], abs=1e-3)
    assert found["adam"]["exponents"] == pytest.approx([1.0, 1.0], abs=0.02)
    base = rebuild_base(tiny, arrays)
    config = LoraConfig(r=2, lora_alpha=2, target_modules="all-linear")
    drawn = adapters(inject(base, config, np.random.default_rng([0, 1])))
    batch = DeviceBatches(tiny, split(arrays["adapt"]).train, np.random.default_rng([0, 0]))()
    _, cache = base.loss(*batch)
    grads = Grads()
    base.backward(1.0, cache, grads)
    total = 0.0
    for path, layer in base.modules().items():
        if isinstance(layer, Linear):
            A = drawn[path].A.value
            total += float(((1e-3 * 2.0**2 * grads[layer.W] @ A.T @ A) ** 2).sum())
    assert found["sgd"]["norms"][0][1] == pytest.approx(math.sqrt(total), rel=1e-4)


# ------------------------------------------------------------------------------- shrinking text


def small_loss(little=0.1, much=0.1, full_gap=0.5, lora_gap=0.2):
    """Losses by slice: `little` and `much` are what each of the two gains where it is better."""

    def loss(contender, lr):
        full, short = contender.method is None, contender.tokens == small_data.QUICK.tokens[0]
        test = 2.5 + (little if full else 0.0) if short else 2.0 + (0.0 if full else much)
        train = test - ((full_gap if full else lora_gap) if short else 0.0)
        above = valley(lr, contender.start)
        return {"test": test + above, "train": train + above}

    return loss


@pytest.mark.parametrize(
    "loss, seeds, expected",
    [
        (small_loss(), 5, [True] * 4),
        (small_loss(little=-0.1), 5, [False, True, True, True]),
        (small_loss(much=-0.1), 5, [True, False, True, True]),
        (small_loss(full_gap=0.1), 5, [True, True, False, True]),
        (small_loss(lora_gap=-0.1), 5, [True, True, True, False]),
        (small_loss(little=0.0, much=0.0), 5, [None, None, True, True]),
        (small_loss(), 2, [None] * 4),
    ],
)
def test_planted_losses_decide_the_claims_of_shrinking_text(loss, seeds, expected):
    results = planted(small_data.small_data_study(small_data.QUICK), loss, seeds, more=before)
    assert verdicts(small_claims.claims(results)) == expected


def test_the_gap_that_the_base_has_is_not_overfitting():
    """The short text is harder than the validation slice: to start with, and to the end."""
    hard = {str(small_data.QUICK.tokens[0]): BASE + 0.3, str(small_data.QUICK.tokens[1]): BASE}
    loss = small_loss(full_gap=-0.3, lora_gap=-0.3)
    study = small_data.small_data_study(small_data.QUICK)
    results = planted(study, loss, noise=0.0, more=lambda: {"base_train_losses": hard})
    assert small_claims.overfit(results, "LoRA", 256) == pytest.approx(dict.fromkeys(range(5), 0.0))


# ----------------------------------------------------------------------- LoRA without regret


def regret_loss(ratio=10.0, by_rank=1.0, attention=0.05, mlp=0.0, fall=0.1, batch=0.1, tilt=0.0):
    """Losses: `fall` and `batch` say how LoRA's excess grows with the steps and the batch."""
    s = regret.QUICK

    def loss(contender, lr):
        config, changes = contender.method, contender.changes
        if config is None:
            return 2.0 + valley(lr, 0.004)
        size = changes.get("batch_size", s.text.batch_size)
        more = 0.0 if "batch_size" in changes else changes.get("steps", s.text.steps)
        share = 1.0 if config.r == s.ranks[0] else 0.2
        excess = 0.05 + share * fall * (more / s.steps[-1] if more else 1.0)
        excess += batch * (size == s.batch_sizes[-1]) + tilt * (config.r > 1) * (size == 8)
        excess += attention * ("attention" in contender.label) + mlp * ("MLP" in contender.label)
        return 2.0 + excess + valley(lr, 0.004 * ratio * by_rank ** math.log2(config.r))

    return loss


@pytest.mark.parametrize(
    "loss, seeds, expected",
    [
        (regret_loss(), 5, [True] * 8),
        (regret_loss(ratio=2.0), 5, [False] + [True] * 7),
        (regret_loss(by_rank=1.7), 5, [None, False] + [True] * 6),
        (regret_loss(attention=-0.05), 5, [True, True, False] + [True] * 5),
        (regret_loss(mlp=0.05), 5, [True, True, True, False] + [True] * 4),
        (regret_loss(fall=-0.1), 5, [True] * 4 + [False, False, True, True]),
        (regret_loss(batch=-0.1), 5, [True] * 6 + [False, True]),
        (regret_loss(tilt=0.1), 5, [True] * 6 + [None, False]),
        (regret_loss(), 2, [None] * 8),
    ],
)
def test_planted_losses_decide_the_claims_of_lora_without_regret(loss, seeds, expected):
    results = planted(regret.regret_study(regret.QUICK), loss, seeds, noise=1e-5)
    found = regret_claims.claims(results)
    for claim, agrees in zip(found, expected, strict=True):
        if agrees is not None or seeds == 2:
            assert claim.agrees is agrees, claim


@pytest.mark.parametrize(
    "above, said",
    [
        ([0, 1, 1], "from 2,048 bytes on"),
        ([1, 0, 1], "from 4,096 bytes on"),
        ([1, 1, 0], "nowhere"),
    ],
)
def test_a_rank_falls_off_from_where_it_stays_above_full(above, said, monkeypatch):
    gaps = dict(zip((1, 2, 4), above))
    monkeypatch.setattr(
        regret_claims, "excess", lambda results, r, steps: dict.fromkeys(range(5), gaps[steps])
    )
    s = {"capacity_steps": [1, 2, 4], "batch_size": 16, "block_size": 64}
    assert regret_claims.falls_off({"settings": s}, 1) == said


def test_the_ratio_of_the_best_rates_is_the_planted_one():
    results = planted(regret.regret_study(regret.QUICK), regret_loss(ratio=6.0), noise=0.0)
    for ratios in regret_claims.rate_ratios(results).values():
        assert ratios == pytest.approx([6.0] * 5, rel=1e-3)


def test_a_rank_falls_off_where_its_excess_passes_the_border():
    study = regret.regret_study(regret.QUICK)
    results = planted(study, regret_loss(fall=-0.1), noise=1e-5)
    low, high = regret.QUICK.ranks
    first, _ = (64 * results["settings"]["batch_size"] * n for n in regret.QUICK.steps)
    assert regret_claims.falls_off(results, high) == f"from {first:,} bytes on"
    close = planted(study, lambda contender, lr: 2.0 + valley(lr, contender.start), noise=1e-5)
    assert regret_claims.falls_off(close, low) == "nowhere"


def test_the_choices_of_layers_have_about_equal_trainable_parameters():
    study = regret.regret_study(regret.RegretSettings())
    base = GPT(study.text.gpt(), np.random.default_rng(0))
    by_label = {c.label: c.method for c in study.contenders}
    sizes = [
        account(inject(base, by_label[name], np.random.default_rng(0))).trainable
        for name in ("r = 4", "attention, r = 9", "MLP, r = 7")
    ]
    assert max(sizes) / min(sizes) < 1.04 and sizes[0] == sizes[1]


# ------------------------------------------------------------------------- every one of them


@every_study
def test_a_report_says_every_claim_and_its_verdict(name):
    settings, study_of = STUDIES[name]
    study = study_of(settings)
    losses = {"grid": grid_loss(), "small-data": small_loss(), "regret": regret_loss()}
    results = planted(study, losses[name], more=MORE[name])
    rules = {"grid": grid_claims, "small-data": small_claims, "regret": regret_claims}
    results["claims"] = [vars(claim) for claim in rules[name].claims(results)]
    text = " ".join(study.report(results).split())
    for claim in results["claims"]:
        assert f"{VERDICTS[claim['agrees']]}: {claim['of']}, {claim['says']}" in text
    assert all(contender.label in text for contender in study.contenders)
    assert "nan" not in text and "None" not in text
    assert max(map(len, study.report(results).splitlines())) <= 100


@every_study
def test_a_study_of_runs_that_all_diverged_reports_and_draws_nothing_decided(
    name, tmp_path, unpainted
):
    settings, study_of = STUDIES[name]
    study = study_of(settings)
    results = planted(study, lambda *_: math.inf, more=MORE[name])
    rules = {"grid": grid_claims, "small-data": small_claims, "regret": regret_claims}
    found = rules[name].claims(results)
    results["claims"] = [vars(claim) for claim in found]
    assert "diverged" in study.report(results)
    assert True not in verdicts(found[:3])
    for file, draw in study.pictures.items():
        draw(results, tmp_path / file)


@every_study
def test_a_study_travels_to_another_process(name):
    settings, study_of = STUDIES[name]
    study = study_of(settings)
    assert pickle.loads(pickle.dumps(study)).contenders == study.contenders
    assert len(pickle.dumps(study)) < 20_000  # it travels with every run


@every_study
def test_the_estimate_counts_the_work_of_all_runs(name):
    settings, study_of = STUDIES[name]
    study = study_of(settings)
    s = as_sweep(study)
    steps_of_one = s.steps * s.batch_size
    sweep = len(s.ranks) * (2 + s.seeds) * steps_of_one
    work = 0
    for contender in study.contenders:
        own = {"steps": s.steps, "batch_size": s.batch_size, **contender.changes}
        runs = (3 if contender.around < 2 else 5) + (s.seeds - 1) * (1 + 2 * contender.around)
        if name == "small-data" and contender.tokens < small_data.study.SHORT:
            runs += s.seeds  # at the common rate
        work += runs * own["steps"] * own["batch_size"]
    assert 0.8 < sweep / work < 1.25


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny):
    """The folder of a base that all tiny presets can copy."""
    folder = tmp_path_factory.mktemp("base")
    TextTask(tiny).prepare(folder, False)
    return str(folder)


@pytest.fixture
def tiny_presets(tiny, monkeypatch):
    """Let --quick take a second, on short texts."""
    for module in (grid, small_data, regret):
        full_lr = module.QUICK.text.full_lr
        text = replace(tiny, ranks=module.QUICK.text.ranks, full_lr=full_lr)
        own = {"tokens": (64, 512)} if module is small_data else {}
        monkeypatch.setattr(module, "QUICK", replace(module.QUICK, text=text, **own))


@every_study
@pytest.mark.usefixtures("tiny_presets")
def test_a_quick_command_runs_writes_and_shows_again(name, tmp_path, command, base):
    line = [name, "--quick", "--jobs", "1", "--base", base, "--out", str(tmp_path)]
    status, first, _ = command(*line)
    assert status == 0
    pictures = STUDIES[name][1](STUDIES[name][0]).pictures
    assert "a quick run: there is nothing to conclude from it" in first
    assert "not decided" in first and not re.search("^(confirmed|refuted)", first, re.M)
    for file in ("results.json", f"{name}.txt", *pictures):
        assert (tmp_path / file).stat().st_size > 0
    status, again, _ = command(*line)
    assert status == 0 and again.splitlines()[:-1] == first.splitlines()[:-1]
    _, tables, err = command(*line, "--format", "json", "--quiet")
    titles = [table["title"] for table in json.loads(tables)]
    assert err == "" and len(titles) > 1 and all(titles) and len(set(titles)) == len(titles)
    results = json.loads((tmp_path / "results.json").read_text())
    labels = [contender["label"] for contender in results["settings"]["contenders"]]
    assert labels == list(results["best"])


@pytest.mark.slow
@every_study
def test_the_quick_preset_itself_runs(name, tmp_path, command):
    status, said, _ = command(name, "--quick", "--out", str(tmp_path))
    assert status == 0 and "not decided" in said


@pytest.mark.usefixtures("tiny_presets", "unpainted")
def test_the_grid_takes_ranks_alphas_and_seeds_from_the_command_line(tmp_path, base):
    options = ["--ranks", "4,2", "--alphas", "0.5,8", "--seeds", "1", "--jobs", "1"]
    where = ["--base", base, "--out", str(tmp_path)]
    assert main(["grid", "--quick", *options, *where]) == 0
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert settings["ranks"] == [2, 4] and settings["alphas"] == [0.5, 8.0]
    assert settings["seeds"] == 1


@pytest.mark.parametrize(
    "options, said",
    [
        ("grid --alphas 2,x", "expected numbers"),
        ("grid --alphas 2", "expected at least two"),
        ("grid --alphas 0,2", "lora_alpha = 0"),
        ("grid --ranks 2,400", "400.*above the limit"),
        ("regret --seeds 0", "seeds = 0, expected at least 1"),
    ],
)
def test_a_wrong_option_is_one_line(options, said, tmp_path, capsys):
    try:
        status = main([*options.split(), "--out", str(tmp_path / "out")])
    except SystemExit as error:
        status = error.code
    error = capsys.readouterr().err
    assert status == 2 and re.search(said, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
