"""The comparison of methods: rows, costs, order, claims, pictures, the command."""

import csv
import json
import math
import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest

from lora_np import GPT, account, inject, merge
from lora_np.cli import main
from lora_np.experiments.claims import VERDICTS
from lora_np.experiments.compare import PRESETS, CompareSettings, compare_study
from lora_np.experiments.compare import claims as compare_claims
from lora_np.experiments.compare.measure import TIMES, at_inference, file_bytes, measure, take_turns
from lora_np.experiments.compare.order import UNDECIDED, letters, orders, pairs_note
from lora_np.experiments.compare.picture import spread_out
from lora_np.experiments.compare.reach import (
    CHANGES,
    REACHED,
    _base,
    _bias_of,
    described,
    reach,
    reach_table,
)
from lora_np.experiments.compare.report import COLUMNS, at_limit, costs_table, report
from lora_np.experiments.compare.rows import FAMILIES, ROWS, Row, rows_called
from lora_np.experiments.rank_sweep.text import TextTask, rebuild_base
from lora_np.experiments.search import MOST_RATES, neighbour
from lora_np.experiments.study import run_study
from lora_np.methods import METHODS, MethodConfig

BASE = 3.0
AVAILABLE = [row for row in ROWS if row.method is None or row.method in METHODS]


# ---------------------------------------------------------------------------------------- rows


def test_labels_are_unique_and_every_family_has_a_style():
    labels = [row.label for row in ROWS]
    assert len(set(labels)) == len(labels)
    assert {row.family for row in ROWS} <= set(FAMILIES)
    assert not any("," in label for label in labels)  # --methods is a list with commas


def test_every_method_of_the_library_has_a_row():
    ours = {name for name, config in METHODS.items() if config.__module__.startswith("lora_np.")}
    assert ours - {row.method for row in ROWS} <= {"tokens", "full"}  # new words; no method


@pytest.mark.parametrize("row", AVAILABLE, ids=lambda row: row.label)
def test_every_row_can_be_trained_on_the_text_task(row):
    text = PRESETS["hour"].text
    contender = row.contender()
    if contender.method is not None:
        model = inject(
            GPT(text.gpt(), np.random.default_rng(0)), contender.method, np.random.default_rng(0)
        )
        window = text.block_size - 16
        loss, _ = model.loss(*(np.zeros((1, window), np.int64),) * 2)
        assert math.isfinite(loss)
        assert account(model).trainable > 0


def test_rows_are_named_by_label_or_by_method():
    rows = [Row("a", "LoRA", "lora"), Row("b one", "LoRA", "boat"), Row("b two", "LoRA", "boat")]
    assert [row.label for row in rows_called(["boat", "a"], rows)] == ["a", "b one", "b two"]
    assert [row.label for row in rows_called(["b two"], rows)] == ["b two"]
    assert [row.label for row in rows_called(["lora"])] == ["lora"]  # a label comes first
    assert rows_called(None) == list(ROWS)


def test_a_row_of_a_method_that_is_not_there_is_an_error_only_when_it_is_used():
    row = Row("new", "LoRA", "lorra")
    with pytest.raises(ValueError, match="there is no method 'lorra': did you mean lora"):
        row.contender()
    with pytest.raises(ValueError, match="no option 'rank'"):
        Row("new", "LoRA", "lora", {"rank": 3}).contender()


# ------------------------------------------------------------------------------- planted results


COSTS = {
    "full": {"trainable": 120_576, "file_bytes": 490_000, "peak_bytes": 3_000_000},
    "lora": {"trainable": 18_432, "file_bytes": 100_000, "peak_bytes": 2_600_000},
}
ENTERS = {
    "full": ("full",),
    "lora": ("lora",),
    "lora r=1": ("low rank",),
    "lora r=32": ("high rank",),
    "zero": ("zero",),
    "random": ("random",),
    "wrg": ("wrg",),
    "prefix": ("prefix",),
    "houlsby": ("adapter",),
}
LOSSES = {
    "full": 2.0,
    "lora": 2.05,
    "lora r=1": 2.1,
    "lora r=32": 2.005,
    "zero": BASE,
    "random": 2.2,
    "wrg": 2.6,
    "prefix": 2.3,
    "houlsby": 2.05,
}


def planted(changed=None, seeds=5, noise=1e-3, costs=None, labels=tuple(ENTERS), exact=("zero",)):
    """Complete results with these test losses; `costs` changes what a label costs."""
    rng, trials, measured = np.random.default_rng(1), [], {}
    tests = {**LOSSES, **(changed or {})}
    for label in labels:
        for seed in range(seeds):
            shift = 0.0 if label in exact else noise * float(rng.standard_normal())
            run = {"label": label, "seed": seed, "lr": 0.02, "trainable_parameters": 7}
            loss = tests[label] + shift if math.isfinite(tests[label]) else None
            names = ("train", "validation", "test", "pretrain")
            trials.append({**run, **{f"{name}_loss": loss for name in names}, "seconds": 0.1})
        times = {key: [1.0, 1.01, 0.99] for key in TIMES}
        measured[label] = {
            **{"base": 120_576, "trainable": 4096, "optimizer_bytes": 8, "file_bytes": 9_000},
            **{"merges": False, "inference_numbers": 120_576, "peak_bytes": 2_000_000},
            **times,
            **COSTS.get(label, {}),
            **(costs or {}).get(label, {}),
        }
    about = {n: {"family": FAMILIES[0], "method": "lora", "enters": ENTERS[n]} for n in labels}
    sizes = {"block_size": 64, "d_model": 32, "n_layer": 2, "steps": 5, "pretrain_steps": 9}
    settings = {"rows": about, "rounds": 3, "changes": {"block_size": 48}, "batch_size": 16}
    results = {
        "settings": {"task": "compare", "seeds": seeds, **sizes, **settings},
        "trials": trials,
        "best": dict.fromkeys(labels, 0.02),
        "measured": measured,
        **{f"base_{name}_loss": BASE for name in ("validation", "test", "pretrain")},
    }
    return {**results, "claims": [vars(claim) for claim in compare_claims.claims(results)]}


def verdict(results, said):
    """What was decided of the one claim whose words hold these."""
    (found,) = (claim for claim in results["claims"] if said in claim["says"])
    return found["agrees"]


def times(**by):
    """Costs of rounds with these means, one percent apart."""
    return {key: [mean * factor for factor in (1.0, 1.01, 0.99)] for key, mean in by.items()}


NOISY = {"step_seconds": [0.5, 1.5, 1.0], "latency_1": [0.5, 1.6, 1.0]}


@pytest.mark.parametrize(
    "said, confirmed, refuted, open_",
    [
        ("LoRA is as good", {"lora": 2.0}, {"lora": 2.05}, {"lora": 2.0105}),
        ("forgets less", {"lora": 1.9}, {"lora": 2.1}, {"lora": 2.0001}),
        ("converges to full", {"lora r=32": 2.0}, {"lora r=32": 2.2}, {"lora r=32": 2.0105}),
        ("use a large r", {"lora r=32": 2.0}, {"lora r=32": 2.05}, {"lora r=32": 2.0405}),
        ("into R G", {"wrg": 2.05}, {"wrg": 2.3}, {"wrg": 2.0605}),
        ("start at random", {"random": 2.05}, {"random": 2.2}, {"random": 2.0605}),
    ],
)
def test_planted_losses_decide_the_claims(said, confirmed, refuted, open_):
    assert verdict(planted(confirmed), said) is True
    assert verdict(planted(refuted), said) is False
    assert verdict(planted(open_, noise=3e-3), said) is None
    assert verdict(planted(confirmed, seeds=2), said) is None  # too few seeds


def test_both_zero_is_a_control():
    said = "both zero never train"
    assert verdict(planted(), said) is True
    assert verdict(planted({"zero": 2.9}), said) is False
    assert verdict(planted(noise=0.1, exact=()), said) is None


@pytest.mark.parametrize(
    "said, label, confirmed, refuted, open_",
    [
        ("step faster than full", "lora", times(step_seconds=0.7), times(step_seconds=1.2), NOISY),
        ("the faster its step", "prefix", times(step_seconds=0.7), times(step_seconds=1.2), NOISY),
        ("fast at inference", "houlsby", times(latency_1=1.0), times(latency_1=1.3), NOISY),
    ],
)
def test_planted_times_decide_the_claims(said, label, confirmed, refuted, open_):
    labels = ("full", "lora", label) if label != "lora" else ("full", "lora")
    for costs, agrees in ((confirmed, True), (refuted, False), (open_, None)):
        assert verdict(planted(costs={label: costs}, labels=labels), said) is agrees


@pytest.mark.parametrize(
    "said, label, confirmed",
    [
        ("0.5 %", "prefix", {"trainable": 603}),
        ("10,000 times smaller", "lora", {"file_bytes": 49}),
        ("two thirds", "lora", {"peak_bytes": 1_000_000}),
        ("smaller at inference", "lora", {"inference_numbers": 120_000}),
    ],
)
def test_what_is_counted_decides_whatever_the_seeds(said, label, confirmed):
    assert verdict(planted(costs={label: confirmed}, seeds=1), said) is True
    assert verdict(planted(seeds=1), said) is False


def test_a_share_of_one_percent_here_is_not_one_of_every_model():
    """BERT's 0.54 % rounds to 1 %, LLaMA's 0.12 % does not."""
    assert verdict(planted(costs={"lora": {"trainable": 1206}}), "1 % of the parameters") is False
    (claim,) = (c for c in planted()["claims"] if "1 % of" in c["says"])
    assert "BERT-base, q k v o 0.54 %" in claim["measured"]


def test_a_claim_whose_rows_are_left_out_is_not_made():
    assert planted(labels=("lora r=1",))["claims"] == []
    words = [claim["says"] for claim in planted(labels=("full", "lora"))["claims"]]
    assert any("as good as full" in says for says in words)
    assert not any("prefix" in says or "adapters" in says for says in words)


# --------------------------------------------------------------------------------------- order


def test_nothing_is_ranked_within_noise():
    same = dict.fromkeys(ENTERS, 2.0)
    for seeds in (1, 2, 5):
        results = planted(same, seeds=seeds, noise=0.0, exact=())
        assert set(orders(results).values()) == {UNDECIDED}
    assert set(orders(planted(seeds=2)).values()) == {UNDECIDED}
    assert report(planted(seeds=2)).count(UNDECIDED) >= len(ENTERS)


def test_no_pair_is_said_to_be_tested_where_the_seeds_are_too_few():
    few, three = planted(seeds=2, labels=("full", "lora", "zero")), planted(seeds=3)
    assert pairs_note(few) == "Order, by test loss: it takes 3 seeds to separate two contenders."
    n = len(ENTERS)
    assert f"{n * (n - 1) // 2} pairs are tested" in pairs_note(three)
    assert "about 0.15 of them" in pairs_note(planted(labels=("full", "lora", "zero")))


def test_letters_follow_the_losses_that_the_seeds_separate():
    found = orders(planted(noise=1e-3))
    assert found["full"][0] == "a" and found["full"] != found["lora"]
    assert set(found["lora"]) & set(found["houlsby"])  # planted equal
    assert found["zero"] == max(found.values())


def test_noise_larger_than_a_difference_gives_a_letter_in_common():
    found = orders(planted({"lora": 2.0, "houlsby": 2.0005}, noise=0.01))
    assert set(found["lora"]) & set(found["houlsby"])


def test_a_letter_is_shared_if_and_only_if_a_pair_is_not_separated():
    names = [f"m{i}" for i in range(12)]
    for seed in range(20):
        drawn = np.random.default_rng(seed).random((12, 12)) < 0.5
        apart = {frozenset((a, b)) for i, a in enumerate(names) for b in names[:i]}
        apart = {pair for pair, out in zip(sorted(apart, key=sorted), drawn.flat) if out}
        found = letters(names, lambda a, b, apart=apart: frozenset((a, b)) in apart)
        for pair in combinations(names, 2):
            shares = bool(set.intersection(*(set(found[name]) for name in pair)))
            assert shares is (frozenset(pair) not in apart)


def test_a_contender_that_always_diverges_is_the_last():
    results = planted({"wrg": math.inf})
    results["best"]["wrg"] = None
    assert orders(results)["wrg"] == max(orders(results).values())
    assert re.search("^wrg +diverged", report(results), re.M)


# --------------------------------------------------------------------------------------- report


def test_the_report_says_every_claim_and_every_label():
    results = planted()
    text = report(results)
    for claim in results["claims"]:
        assert f"{VERDICTS[claim['agrees']]}: {claim['of']}, {claim['says']}" in text
    tables = [re.findall(f"^{label}  ", text, re.M) for label in ENTERS]
    assert [len(lines) for lines in tables] == [2] * len(ENTERS)  # losses and costs
    assert "36 pairs are tested" in text and "about 1.8 of them" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "nan" not in text and "None" not in text


def test_costs_are_ratios_to_the_rows_of_lora_and_full():
    table = str(costs_table(planted(costs={"prefix": times(step_seconds=2.0, latency_1=1.5)})))
    (row,) = (line for line in table.splitlines() if line.startswith("prefix"))
    assert row.split()[-5:] == ["0.67", "2.00", "2.00", "1.50", "1.00"]
    alone = planted(labels=("prefix",))
    assert str(costs_table(alone)).splitlines()[1].split()[-5:] == ["-"] * 5
    assert "there is no row of full and lora here" in " ".join(report(alone).split())
    assert "there is no row of" not in " ".join(report(planted()).split())


def test_a_search_that_stopped_at_its_limit_is_marked():
    results = planted()
    assert not at_limit(results, "lora")
    for k in range(1, MOST_RATES):
        trial = dict(results["trials"][0], label="lora", lr=neighbour(0.02, -k), seed=0)
        results["trials"].append(trial)
    assert at_limit(results, "lora")
    assert re.search(r"^lora +0\.02\*", report(results), re.M)


def test_heights_keep_their_order_and_their_distance():
    heights = sorted(np.random.default_rng(0).random(30) ** 3, reverse=True)
    found = spread_out(heights, 1 / 30)
    assert np.all(np.diff(found) <= -1 / 30 + 1e-9)
    assert min(found) >= 0.0 and max(found) <= 1.0 + 1e-9


# -------------------------------------------------------------------------------------- measured


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    settings = small(tiny)
    study = compare_study(settings)
    task = TextTask(settings.text)
    arrays = task.prepare(tmp_path_factory.mktemp("base"), False)
    return study, arrays, measure(study, {**arrays, "pretrain": task.pretraining}, 2, 0.0)


def small(tiny, methods=("full", "lora", "lora both zero", "dora")):
    text = replace(tiny, block_size=24, full_lr=None, d_model=32)
    return CompareSettings(text, methods, rounds=2, turn=0.0)


def test_costs_are_those_of_the_models(measured):
    study, arrays, found = measured
    base = rebuild_base(study.text, arrays)
    for contender in study.contenders[1:]:
        model = inject(base, contender.method, np.random.default_rng(0))
        costs = found[contender.label]
        assert costs["trainable"] == account(model).trainable
        assert costs["optimizer_bytes"] == 8 * costs["trainable"]  # two float32 of Adam
        assert costs["file_bytes"] < 4 * costs["trainable"] + 8192
        assert costs["merges"] and costs["inference_numbers"] == costs["base"]
    for name in ("lora", "dora"):  # A of zeros are equal, and are written once
        assert found[name]["file_bytes"] > 4 * found[name]["trainable"]
    full = found["full"]
    assert full["trainable"] == full["base"] == sum(p.size for p in base.parameters().values())
    assert full["merges"] is False
    # weights, gradient, two numbers of Adam and the last finite weights are held in a step
    assert full["peak_bytes"] > 5 * 4 * full["base"]
    assert all(len(costs[key]) == 2 for costs in found.values() for key in TIMES)


def test_what_does_not_merge_is_measured_as_it_is_and_without_a_file_has_none(tiny):
    @dataclass(frozen=True)
    class Sealed(MethodConfig):
        def places(self, model):
            return []

        def trains(self, name):
            return name.endswith(".b")

        def fields(self):
            raise ValueError("there is no file of this method")

    study = compare_study(small(tiny))
    model = inject(
        GPT(study.text.gpt(), np.random.default_rng(0)), Sealed(), np.random.default_rng(0)
    )
    assert file_bytes(model) is None
    assert at_inference(model)[0].parameters().keys() == merge(model).parameters().keys()


def test_turns_are_taken_in_every_round_backwards_in_every_other():
    heard = []
    actions = {name: {"step": lambda name=name: heard.append(name)} for name in "abc"}
    found = take_turns(actions, 2, 0.0)
    assert [heard[i] for i in range(6, len(heard), 2)] == [*"abc", *"cba"]
    assert all(len(by["step"]) == 2 for by in found.values())


# ----------------------------------------------------------------------------------- the reach


@pytest.mark.slow
def test_what_is_reached_is_what_theory_says():
    chosen = {name: CHANGES[name] for name in ("rank 4", "rows", "dense", "bias")}
    rows = rows_called(["full", "lora", "lora both zero", "dora exact"])
    found = reach(rows, changes=chosen, rates=(0.03, 0.1), steps=400)
    numbers = {"full": 1584, "lora": 640, "lora both zero": 640, "dora exact": 688}
    assert found["trainable"] == numbers and list(found["changes"]) == list(chosen)
    assert found["residual"]["lora both zero"] == [1.0] * 4
    assert found["residual"]["lora"][3] == 1.0  # no bias
    reached = {
        label: [x < REACHED for x in residuals] for label, residuals in found["residual"].items()
    }
    assert reached["full"] == [True] * 4
    assert reached["lora"] == reached["dora exact"] == [True, False, False, False]
    assert str(reach_table(found)).splitlines()[1].count("0.00*") == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "label, change",
    [
        ("ia3", "rows"),
        ("oft", "rotate"),
        ("bitfit", "bias"),
        ("hira", "W0*low"),
        ("lokr", "kron"),
        ("miss", "repeat"),
    ],
)
def test_a_method_reaches_the_change_that_it_is_made_for(label, change):
    chosen = {name: CHANGES[name] for name in (change, "dense")}
    found = reach(rows_called([label]), changes=chosen, rates=(0.01, 0.1), steps=400)
    own, other = found["residual"][label]
    assert own < REACHED < 0.5 < other


@pytest.mark.slow
def test_the_rest_of_a_change_of_full_rank_is_that_of_eckart_and_young():
    found = reach(rows_called(["lora"]), changes={"dense": CHANGES["dense"]}, steps=2000)
    base = _base()
    plant, _ = CHANGES["dense"]
    W, _ = plant(np.random.default_rng([1, 0]), base.W.value, _bias_of(base))
    sigma = np.linalg.svd(W - base.W.value, compute_uv=False)
    least = math.sqrt((sigma[8:] ** 2).sum() / (sigma**2).sum())
    assert found["residual"]["lora"][0] == pytest.approx(least, rel=1e-3)


def test_a_method_that_does_not_stand_on_a_linear_layer_has_a_dash():
    class Nowhere(MethodConfig):
        def places(self, model):
            raise ValueError("the model has no place before a text")

    METHODS["nowhere"] = dataclass(frozen=True)(Nowhere)
    try:
        found = reach([Row("nowhere", FAMILIES[0], "nowhere")], steps=2)
    finally:
        del METHODS["nowhere"]
    assert found["residual"] == {"nowhere": None}
    line = str(reach_table(found)).splitlines()[1]
    assert line.split() == ["nowhere", *["-"] * (1 + len(CHANGES))]


def test_the_linear_task_prints_the_matrix_and_keeps_it_if_asked(tmp_path, capsys, monkeypatch):
    quick = partial(reach, steps=3)
    monkeypatch.setattr("lora_np.experiments.compare.reach.reach", quick)
    options = ["--task", "linear", "--methods", "lora", "--jobs", "1"]
    assert main(["compare", *options, "--out", str(tmp_path / "a" / "b")]) == 0
    found = json.loads((tmp_path / "a" / "b" / "reach.json").read_text())
    out = capsys.readouterr().out
    assert str(reach_table(found)) in out
    assert f"written to {tmp_path / 'a' / 'b'}/: reach.json" in out


def test_the_linear_task_finds_that_it_cannot_write_before_it_fits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lora_np.experiments.compare.reach.reach", None)  # never called
    (tmp_path / "file").write_text("")
    options = ["--task", "linear", "--methods", "lora", "--jobs", "1"]
    assert main(["compare", *options, "--out", str(tmp_path / "file" / "b")]) == 2
    assert capsys.readouterr().err.startswith(f"lora-np: {tmp_path / 'file' / 'b'} cannot be writ")


def test_words_of_a_change_say_what_its_bias_leaves():
    def both(rng, W0, b):
        return W0 + 4.0 / W0.size**0.5, b + 3.0 / b.size**0.5  # norms 4 and 3

    chosen = {"both": (both, "both move"), **{name: CHANGES[name] for name in ("rank 4", "bias")}}
    said = described(chosen)
    assert said["both"] == "both move; 0.60 remains if W alone is reached"
    assert all(said[name] == CHANGES[name][1] for name in ("rank 4", "bias"))
    dora = reach(rows_called(["dora exact"]), changes={"both": chosen["both"]}, steps=400)
    assert dora["changes"] == {"both": said["both"]}
    assert abs(dora["residual"]["dora exact"][0] - 0.6) < 0.005


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def presets(tiny, monkeypatch):
    """The preset of minutes takes a second."""
    monkeypatch.setitem(PRESETS, "minutes", small(tiny, None))


def test_a_smoke_run_writes_the_table_the_pictures_and_shows_them_again(tmp_path, capsys, presets):
    options = ["--preset", "minutes", "--methods", "full,lora,dora", "--jobs", "1"]
    arguments = ["compare", *options, "--out", str(tmp_path)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "a quick run: there is nothing to conclude from it" in first
    assert first.count("not decided") >= 3
    for file in ("results.json", "compare.txt", "compare_losses.png", "compare_latency.png"):
        assert (tmp_path / file).stat().st_size > 0
    with open(tmp_path / "compare.csv") as held:
        rows = list(csv.DictReader(held))
    assert [row["label"] for row in rows] == ["full", "lora", "dora"]
    assert tuple(rows[0]) == COLUMNS
    results = json.loads((tmp_path / "results.json").read_text())
    assert float(rows[1]["lr"]) == results["best"]["lora"]
    assert int(rows[1]["trainable"]) == results["measured"]["lora"]["trainable"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == first.splitlines()[:-1]


@pytest.mark.slow
def test_every_row_runs_through_the_command(tmp_path, capsys, presets):
    arguments = ["compare", "--preset", "minutes", "--seeds", "1", "--jobs", "1"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(len(re.findall(f"^{re.escape(row.label)}  ", said, re.M)) == 2 for row in ROWS)
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(costs["file_bytes"] for costs in results["measured"].values())
    assert len(results["claims"]) == 15


def test_a_comparison_that_is_stopped_goes_on_and_keeps_what_it_measured(tmp_path, tiny):
    study = compare_study(small(tiny, ("full", "lora")))
    whole = run_study(study, tmp_path / "whole")
    heard = []

    def stop(progress):
        heard.append(progress.trial)
        if len(heard) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", listen=stop)
    found = run_study(study, tmp_path / "out", listen=stop)
    assert len(heard) == len(set(heard)) == len(found["trials"])
    for results in (whole, found):
        for trial in results["trials"]:
            trial.pop("seconds")
    assert found["trials"] == whole["trials"]
    again = run_study(study, tmp_path / "out")
    assert again["measured"] == json.loads(json.dumps(found["measured"]))


@pytest.mark.parametrize(
    "options, said",
    [
        ("--methods full,lorra", "there is no contender 'lorra': did you mean .*lora"),
        ("--methods ,", "name at least one"),
        ("--preset day", "invalid choice: 'day'"),
        ("--seeds 0 --methods full", "seeds = 0, expected at least 1"),
        ("--task linear --seeds 3", "--task linear"),
    ],
)
def test_a_wrong_option_is_one_line(options, said, tmp_path, capsys):
    try:
        status = main(["compare", *options.split(), "--out", str(tmp_path / "out")])
    except SystemExit as error:
        status = error.code
    error = capsys.readouterr().err
    assert status == 2 and re.search(said, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
