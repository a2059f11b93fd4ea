"""The report on images: verdicts of planted results, both ways, and what stands beside them."""

import re
import shutil

import pytest

from lora_np.cli import main
from lora_np.images import plan
from lora_np.images.claims import (
    MISSED,
    REACHED,
    UNMEASURED,
    WITHIN,
    all_claims,
    below,
    claims_table,
    not_above,
    ranged,
    ratios,
    scores,
    sign,
    verdict,
)
from lora_np.images.report import (
    costs_table,
    guidance_table,
    images_report,
    pairs_table,
    steps_table,
    style_table,
    sum_ratios,
)
from tests.images.planted_report import FLOOR, planted
from tests.images.tiny_run import TINY


def by_name(results):
    return {claim.says: claim for claim in all_claims(results)}


def change(results, where, **scores):
    """Change scores of the rows that `where` is part of."""
    changed = 0
    for found in results["done"].values():
        for row in found.get("rows", ()):
            if where.items() <= row.items():
                row.update(scores)
                changed += 1
    assert changed
    return results


# --- the rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, low, says",
    [
        ([0.7, 0.8, 0.9], 0.7, REACHED),
        ([0.7, 0.8, 0.9], 0.75, WITHIN),
        ([0.7, 0.8, 0.9], 0.95, MISSED),
        ([0.7], 0.7, REACHED),
        ([float("nan")], 0.7, MISSED),
        ([], 0.7, UNMEASURED),
    ],
)
def test_a_bar_is_reached_by_every_seed_or_not_at_all(values, low, says):
    assert verdict(values, low=low) == says
    assert verdict([-value for value in values], high=-low) == says


@pytest.mark.parametrize(
    "ours, theirs, expected",
    [
        ([5.0, 5.1, 5.2], [4.0, 4.1, 4.2], 1),  # every seed by 1: the seeds' own levels cancel
        ([4.0, 9.0], [5.0, 10.0], -1),
        ([4.0, 5.0], [4.5, 4.4], 0),
        ([4.1, 4.5], [4.0, 4.0], 0),  # higher with every seed, but by less than the spread
        ([4.0], [5.0], -1),
        ([4.0], [4.0], 0),
    ],
)
def test_a_difference_counts_when_it_exceeds_the_spread_over_seeds(ours, theirs, expected):
    assert sign(ours, theirs) == expected
    assert sign(theirs, ours) == -expected
    assert below(ours, theirs) == {-1: REACHED, 0: WITHIN, 1: MISSED}[expected]
    assert not_above(ours, theirs) == (MISSED if expected == 1 else REACHED)


def test_what_one_side_lacks_is_not_measured():
    assert below([], [1.0]) == not_above([1.0], []) == UNMEASURED
    assert ratios([1.0], []) == ratios([], []) == []
    assert ratios([1.0], [0.0]) == [float("inf")]
    assert ranged([]) == "-" and ranged([2.0, 2.0, 2.5], ".0f") == "2"


# --- the claims ----------------------------------------------------------------------------------


def test_planted_results_reach_every_claim():
    verdicts = {claim.says: claim.verdict for claim in all_claims(planted())}
    not_chosen = [says for says in verdicts if "not chosen" in says]
    assert len(not_chosen) == 3
    expected = {**dict.fromkeys(verdicts, REACHED), "outline, MLP, unseen: letter": "shown"}
    expected["sum (1, 1), unseen, not chosen: FD / style DDIM-50's"] = MISSED
    assert verdicts == expected


BROKEN = [
    ("base: letter", {"set": "all", "model": "base", "steps": 20}, {"letter": 0.9}),
    ("base: FD / floor", {"set": "all", "sampler": "ddim", "steps": 20}, {"fd": 5.0}),
    ("DPM-Solver, 4 steps: FD / DDIM's", {"sampler": "dpm_solver", "steps": 4}, {"fd": 19.0}),
    ("DPM-Solver, 8 steps: FD / DDIM's", {"sampler": "dpm_solver", "steps": 8}, {"fd": 9.9}),
    ("style, seen: FD / full's", {"set": "seen", "model": "style-full"}, {"fd": 5.0}),
    ("style, unseen: style", {"set": "unseen", "model": "style", "steps": 20}, {"style": 0.5}),
    ("style, unseen: letter", {"set": "unseen", "model": "style", "steps": 20}, {"letter": 0.9}),
    ("style, unseen: FD / full's", {"set": "unseen", "model": "style-full"}, {"fd": 5.0}),
    ("LCM, full, 1 step: FD / DDIM-1's", {"model": "lcm-full", "steps": 1}, {"fd": 20.0}),
    ("LCM, full, 4 steps: FD / DDIM-50's", {"model": "lcm-full", "steps": 4}, {"fd": 4.9}),
    ("LCM-LoRA, r = 16, 1 step: FD / DDIM-1's", {"model": "lcm", "steps": 1}, {"fd": 20.0}),
    ("LCM-LoRA, r = 16, 4 steps: FD / DDIM-50's", {"model": "lcm", "steps": 4}, {"fd": 4.9}),
    ("LCM-LoRA, 4 steps: FD / full's", {"model": "lcm-full", "steps": 4}, {"fd": 3.0}),
    (
        "LCM-LoRA, r = 4, 4 steps: FD / that of r = 16",
        {"model": "lcm-small", "steps": 4},
        {"fd": 5.0},
    ),
    (
        "sum (1, 0.6), seen: FD / style DDIM-2's",
        {"set": "seen", "weights": [1.0, 0.6]},
        {"fd": 45.0},
    ),
    (
        "sum (1, 0.6), seen: spread / style DDIM-2's",
        {"set": "seen", "weights": [1.0, 0.6]},
        {"spread": 0.2},
    ),
    (
        "sum (1, 0.6), unseen: FD / style DDIM-50's",
        {"set": "unseen", "weights": [1.0, 0.6]},
        {"fd": 9.0},
    ),
    ("outline, refiner, unseen: letter", {"model": "outline-refined"}, {"letter": 0.8}),
]


@pytest.mark.parametrize("says, where, worse", BROKEN, ids=[says for says, _, _ in BROKEN])
def test_each_claim_is_missed_where_its_own_scores_are_worse(says, where, worse):
    assert by_name(change(planted(), where, **worse))[says].verdict == MISSED


@pytest.mark.parametrize(
    "says, work, key, value",
    [
        ("base and judge: CPU s of one core", "base", "cpu_seconds", 200.0),
        ("no prompt: judge sure of a letter", "regular", "sure", 0.6),
        ("style r = 4: parameters", "style", "parameters", 41_000),
        ("style r = 4: CPU s", "style", "cpu_seconds", 11.0),
        ("LCM, full: CPU s", "lcm-full", "cpu_seconds", 31.0),
        ("LCM-LoRA, r = 16: CPU s", "lcm", "cpu_seconds", 31.0),
    ],
)
def test_a_claim_on_a_training_is_missed_or_lies_within_the_spread(says, work, key, value):
    results = planted()
    results["done"][f"{work}, seed 0"][key] = value
    assert by_name(results)[says].verdict == WITHIN
    for seed in (1, 2):
        results["done"][f"{work}, seed {seed}"][key] = value
    assert by_name(results)[says].verdict == MISSED


def test_the_speed_and_the_failure_of_the_mlp_are_judged_too():
    results = change(planted(), {"model": "outline"}, letter=0.95)
    results["done"]["speed"]["ratio"] = 20.0
    found = by_name(results)
    assert found["DDIM-50's time / that of one step"].verdict == MISSED
    assert found["outline, MLP, unseen: letter"].verdict == "not so"


def test_fd_and_spread_stand_beside_every_letter_and_a_control_beside_every_student():
    for claim in all_claims(planted()):
        if re.search("letter$|: style$", claim.says) and "no prompt" not in claim.says:
            assert "FD / floor" in claim.beside and "spread / real" in claim.beside
        if re.match("LCM.*DDIM", claim.says):
            assert "same sampler" in claim.beside
        if claim.says.startswith("sum"):
            assert "no LCM-LoRA" in claim.beside
    alone = by_name(planted())["sum (1, 0.6), seen: FD / style DDIM-2's"]
    assert alone.beside == "no LCM-LoRA 0.90"  # 45 / 50: the sampler does some of it


def test_one_pair_of_weights_that_is_chosen_is_not_shown_twice():
    says = [claim.says for claim in all_claims(planted(pair=(1.0, 1.0)))]
    assert len(set(says)) == len(says) and sum("sum" in name for name in says) == 3


def test_what_was_not_drawn_is_said_to_be_unmeasured():
    found = by_name(planted(outlined=False))
    for model in ("MLP", "refiner"):
        assert found[f"outline, {model}, unseen: letter"].verdict == UNMEASURED
    bare = {**planted(), "done": {}}
    assert {claim.verdict for claim in all_claims(bare)} == {UNMEASURED}
    assert "nan" not in images_report(bare)


# --- the tables ----------------------------------------------------------------------------------


def test_scores_are_those_of_one_drawn_set_over_seeds():
    found = scores(planted(), "regular", "all", "base", sampler="ddim", steps=20)
    assert found == pytest.approx([4.4, 4.4 * 1.01, 4.4 * 1.02])  # and not those with guidance
    assert scores(planted(), "regular", "all", "real") == [FLOOR] * 3
    assert scores(planted(), "styled", "seen", "sum", sampler="consistency", steps=2) == []


def line(table, *starts):
    (found,) = (
        x for x in str(table).splitlines() if re.match(r"\s+".join(map(re.escape, starts)), x)
    )
    return found


def test_the_tables_show_means_ranges_and_the_floor():
    results = planted()
    shown = line(steps_table(results), "base", "DDIM", "20 ")
    assert "4.44 [4.40, 4.49]" in shown and " 1.11 " in shown and "0.200" in shown
    assert "1.00" in line(steps_table(results), "real images, other draws")
    assert "6.57" not in str(steps_table(results))  # with guidance: in a table of its own
    table = guidance_table(results)
    assert "6.57" in line(table, "3 ")
    assert [line(table, f"{w:g} ").split()[-2] for w in (1.0, 1.5, 2.0, 3.0)] == [
        *("0.950", "0.900", "0.500", "0.100")
    ]


def test_every_control_has_its_row():
    table = style_table(planted(), "unseen")
    assert "202.00" in line(table, "base, no style")
    assert "45.45" in line(table, "style, LoRA r = 4, no LCM-LoRA", "consistency", "2 ")
    assert "7.07" in line(table, "style + LCM-LoRA (1, 0.6)", "consistency", "2 ")
    assert "14.14" in line(table, "style + LCM-LoRA (1, 1)", "consistency", "2 ")


def test_the_pairs_are_over_what_each_is_held_to():
    styles, lcms, cells = sum_ratios(planted())["seen"]
    assert (styles, lcms) == ([0.6, 1.0], [0.0, 0.6, 1.0])
    assert cells[1, 1] == pytest.approx(7.0 / 50)
    assert line(pairs_table(planted()), "(1, 0.6)").split()[-2:] == ["0.14", "0.70"]


def test_the_costs_name_every_training():
    table = costs_table(planted())
    assert line(table, "judge").split()[-1] == "10.0"
    assert line(table, "outline, MLP, LoRA r = 4").split()[6] == "30,000"


def test_the_report_holds_together_with_one_seed_and_with_several():
    one, several = images_report(planted(seeds=1)), images_report(planted())
    assert one.startswith("1 seed, 4,056 images") and several.startswith("3 seeds, 4,056 images")
    assert "[" not in one.split("\n\n")[3] and "[4.40, 4.49]" in several
    assert "2.50 for drawn" in several.replace("\n", " ")
    assert len(claims_table(planted(seeds=1)).rows()) == len(claims_table(planted()).rows())


# --- the command ---------------------------------------------------------------------------------

FILES = {f"images_{name}.png" for name in ("steps", "weight", "pairs", "letters")} | {"images.txt"}


@pytest.mark.usefixtures("unpainted")
def test_the_command_shows_a_run_and_writes_its_files(stopped_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "QUICK", TINY)
    out = shutil.copytree(stopped_run[0], tmp_path / "run")
    assert main(["images", "report", "--quick", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "a quick run: there is nothing to conclude from it" in said
    assert said.startswith(images_report(stopped_run[2]))
    assert {path.name for path in out.iterdir()} >= FILES
    assert (out / "images.txt").read_text().startswith(images_report(stopped_run[2]))


@pytest.mark.parametrize(
    "options, says",
    [
        (["--quick"], "is of other settings"),
        (["--seeds", "0"], "expected a multiple of 78 and at least 1"),
        (["--jobs", "0"], "--jobs 0: expected at least 1"),
    ],
)
def test_the_command_refuses_in_one_line(stopped_run, capsys, options, says):
    assert main(["images", "report", "--out", str(stopped_run[0]), *options]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_stopped_command_says_what_is_kept(tmp_path, monkeypatch, capsys):
    from lora_np.images import study

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "carry_out_work", stop)
    assert main(["images", "report", "--quick", "--jobs", "1", "--out", str(tmp_path)]) == 130
    assert "no run was finished; run the same command to continue" in capsys.readouterr().err
