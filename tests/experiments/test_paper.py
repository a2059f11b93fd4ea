"""paper: budgets, directions, rules that fire both ways, a tiny run from end to end."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from lora_np import cli, plots
from lora_np.experiments.paper import PaperSettings, claims, directions, report, run_paper
from lora_np.experiments.paper.numbers import QKVO, QV, TABLE5, TABLE6, TABLE7, short
from lora_np.experiments.paper.picture import plot_similarity
from lora_np.experiments.paper.run import check_paper, folders, measure, read_adapters
from lora_np.experiments.paper.settings import (
    DEFAULT,
    QUICK,
    all_trials,
    budget,
    sweeps,
    table5_ranks,
    trainable_parameters,
)
from lora_np.experiments.rank_sweep import SweepError, TextSettings, run
from lora_np.experiments.rank_sweep.plan import expected_number
from lora_np.experiments.rank_sweep.text import TextTask, run_text_trial
from lora_np.experiments.search import SAME
from lora_np.files import load_json
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT
from tests.tiny import write_texts

F64 = 1e-12  # float64, relative: a few products and decompositions
WRITTEN = 0.6e-4  # grids are written with four digits
EXACT = 1e-15
BASE = 3.0  # the loss without an adapter

# ------------------------------------------------------------------------------- the budget


def counted(settings, targets, r):
    """Count the entries of A and B in an adapted model."""
    base = GPT(settings.text.gpt(), np.random.default_rng(0))
    model = inject(base, LoraConfig(r, target_modules=targets), np.random.default_rng(0))
    return sum(p.size for p in model.parameters().values() if p.trainable)


@pytest.mark.parametrize("settings", [DEFAULT, QUICK], ids=["default", "quick"])
def test_every_row_of_table_5_has_the_rank_nearest_to_the_budget(settings):
    whole = budget(settings)
    for targets, r in table5_ranks(settings).items():
        near = {q: abs(counted(settings, targets, q) - whole) for q in (r - 1, r, r + 1) if q > 0}
        assert near[r] == min(near.values()), targets
        assert trainable_parameters(settings.text, targets, r) == counted(settings, targets, r)


def test_the_default_budget_is_met_exactly_in_attention_and_within_seven_percent_in_the_mlp():
    assert budget(DEFAULT) == 4096  # 2 layers, r = 16, 64 x 64
    for targets, r in table5_ranks(DEFAULT).items():
        share = trainable_parameters(DEFAULT.text, targets, r) / 4096
        assert share == 1 if targets in TABLE5 else 0.93 < share < 1


def test_the_ranks_of_our_table_5_are_the_papers_in_its_own_proportions():
    ranks = table5_ranks(replace(DEFAULT, budget_rank=8))
    assert {t: ranks[t] for t in TABLE5} == {t: r for t, (r, _, _) in TABLE5.items()}


def test_the_sweeps_have_every_rank_that_a_table_or_figure_asks_for():
    plan = sweeps(DEFAULT)
    assert {t: s.ranks for t, s in plan.items() if t in TABLE6} == {
        ("q_proj",): (1, 2, 4, 8, 16, 32),
        QV: (1, 2, 4, 8, 32),
        QKVO: (1, 2, 4, 8, 32),
    }
    assert plan["up_proj", "down_proj"].ranks == (3,)
    assert all(s.target_modules == t and s.full_lr is None for t, s in plan.items())
    assert expected_number(all_trials(DEFAULT)) == sum(map(expected_number, plan.values()))


# --------------------------------------------------------------------------- the directions


def test_similarity_is_the_mean_squared_cosine_of_principal_angles_over_pairs_of_seeds(rng):
    first, second = ([rng.standard_normal((r, 9)) for _ in range(3)] for r in (2, 4))
    found = directions.similarity(first, second)
    rows = [[np.linalg.svd(A)[2] for A in As] for As in (first, second)]
    for i, j in ((1, 1), (2, 3), (2, 4)):
        phis = [
            (np.cos(subspace_angles(rows[0][a][:i].T, rows[1][b][:j].T)) ** 2).mean()
            for a in range(3)
            for b in range(3)
            if a != b
        ]
        assert found[i - 1, j - 1] == pytest.approx(np.mean(phis), rel=F64)


def test_equal_seeds_are_never_compared(rng):
    A = np.eye(2, 6)  # each shared with itself, not with the other seed's
    assert directions.similarity([A, np.roll(A, 3, axis=1)], [A, np.roll(A, 3, axis=1)]).max() == 0


def test_a_comparison_of_nothing_is_an_error_and_no_verdict(rng):
    A = rng.standard_normal((2, 8))
    with pytest.raises(ValueError, match="nothing to compare"):
        directions.similarity([A], [A])  # one seed has no other
    with pytest.raises(ValueError, match="hold no matrix"):
        directions.figure({2: {0: {}, 1: {}}}, (2, 2), rng)
    with pytest.raises(ValueError, match="any two directions are equal"):
        directions.mean_excess([[1.0]], 1)


def test_below_the_top_is_the_similarity_of_the_spaces_without_the_first_direction(rng):
    low, high = (np.linalg.qr(rng.standard_normal((9, r)))[0] for r in (3, 5))
    grid = directions.subspace_similarity(low, high)
    found, chance = directions.below_the_top(grid.tolist(), 9)
    expected = (np.cos(subspace_angles(low[:, 1:3], high[:, 1:3])) ** 2).mean()
    assert (found, chance) == pytest.approx((expected, 2 / 9), rel=F64)


def test_mean_excess_is_zero_at_chance_one_at_equality_and_leaves_the_whole_space_out():
    chance = np.diag(np.arange(1, 5) / 4).tolist()
    assert directions.mean_excess(chance, 4) == 0.0
    assert directions.mean_excess(np.eye(4).tolist(), 4) == 1.0
    half = [[(1 + 1 / 8) / 2, 1.0], [1.0, 1.0]]  # halfway for i = 1, equal for i = 2; d = 8
    assert directions.mean_excess(half, 8) == pytest.approx(0.75, rel=F64)


def test_random_matrices_have_no_mean_excess(rng):
    first, second = ([rng.standard_normal((16, 32)) for _ in range(8)] for _ in range(2))
    assert abs(directions.mean_excess(directions.similarity(first, second).tolist(), 32)) < 0.02


# -------------------------------------------------------------------------------- the rules


def figure(top, rest, control=0.1, ranks=(2, 2), d=8):
    """A figure whose matrices have phi(1, 1) = top and phi of the second direction = rest."""

    def grid(top, rest):
        return [[top, top], [top, (top + rest) / 2]]

    panels = {f"h.0.attn.{kind}": grid(top[kind], rest[kind]) for kind in top}
    return {"ranks": ranks, "d": d, "panels": panels, "control": grid(control, control)}


def qv(q, v):
    return {"q_proj": q, "v_proj": v}


def verdicts(found):
    return [claim.agrees for claim in found]


@pytest.mark.parametrize(
    "top, rest, expected",
    [
        (qv(0.9, 0.8), qv(0.2, 0.1), [True, True]),
        (qv(0.9, 0.4), qv(0.2, 0.1), [False, True]),  # one matrix is enough to disagree
        (qv(0.9, 0.8), qv(0.2, 0.7), [True, False]),
    ],
)
def test_the_rules_of_figure_3(top, rest, expected):
    # below_the_top of these grids is (2 (top + rest) / 2 - 2 top + top) / 1 = rest
    assert verdicts(claims.figure3_claims(figure(top, rest))) == expected


@pytest.mark.parametrize(
    "q, v, control, expected",
    [
        (0.9, 0.5, 0.1, [True, True]),
        (0.5, 0.9, 0.1, [True, False]),
        (0.9, 0.1, 0.1, [False, True]),  # v shares none: chance is 1/8 and 2/8
        (0.9, 0.5, 0.5, [False, True]),  # random matrices share some
    ],
)
def test_the_rules_of_figure_4(q, v, control, expected):
    found = figure(qv(q, v), qv(q, v), control)
    assert verdicts(claims.figure4_claims(found)) == expected


ROWS = [short(targets) for targets in TABLE5]


def losses(**means):
    """Losses of two seeds for each row of table 5; seeds differ alike in all rows."""
    by_row = dict.fromkeys(ROWS, 2.0) | {k.replace("_", ","): v for k, v in means.items()}
    return {row: {0: x, 1: x + 0.5} if x else {} for row, x in by_row.items()}


@pytest.mark.parametrize(
    "given, expected",
    [
        (losses(q_v=1.0, q_k_v_o=1.0), [True, True, True]),
        (losses(q_v=3.0), [False, False, False]),
        (losses(q_v=1.5, q_k_v_o=1.0, v=0.9), [True, False, False]),
        (losses(q_v=1.5, k=None, q_k_v_o=1.0), [None, False, True]),  # k diverged
        (losses(q_v=3.0, k=None), [False, False, False]),  # q alone decides
        (losses(q_v=None), [None, None, False]),
    ],
)
def test_the_rules_of_table_5(given, expected):
    assert verdicts(claims.table5_claims(given, BASE)) == expected


def test_one_common_seed_cannot_tell():
    one = {row: {0: 1.0 + i} for i, row in enumerate(ROWS)}
    assert verdicts(claims.table5_claims(one, BASE)) == [None] * 3


def test_a_gain_within_the_spread_over_seeds_is_none():
    given = losses()
    given["q,v"] = {0: 1.9, 1: 2.58}  # differences 0.1 and -0.08
    assert verdicts(claims.table5_claims(given, BASE)) == [False, True, False]


@pytest.mark.parametrize("gain, agrees", [(0.9 * SAME * BASE, False), (1.1 * SAME * BASE, True)])
def test_a_gain_that_counts_as_equal_is_none(gain, agrees):
    given = losses(q_v=2.0 - gain)  # every seed has the same gain: no spread
    assert verdicts(claims.table5_claims(given, BASE))[0] == agrees


def test_of_single_kinds_that_count_as_equal_the_first_stands_for_all():
    given = losses(q_k_v_o=1.0)
    for last_bits in (1e-15, -1e-15):
        given["v"] = {seed: loss + last_bits for seed, loss in losses()["v"].items()}
        claim = claims.table5_claims(given, BASE)[2]
        assert claim.measured == "q,k,v,o 1.2500; q 2.2500"


@pytest.mark.parametrize(
    "q, q_v, all_four, expected",
    [
        ({1: 2.5, 8: 2.0}, {1: 1.05, 8: 1.0}, {1: 1.0, 8: 1.1}, [True, True]),
        ({1: 2.0, 8: 2.0}, {1: 1.05, 8: 1.0}, {1: 1.0, 8: 1.1}, [True, False]),  # q needs 1
        ({1: 2.5, 8: 2.0}, {1: 2.0, 8: 1.0}, {1: 1.0, 8: 1.1}, [False, False]),
        ({1: 3.5, 8: 3.1}, {1: 1.0, 8: 1.0}, {1: 1.0, 8: 1.1}, [True, None]),  # q gains nothing
        ({1: 3.0, 8: 3.0 - 1e-9}, {1: 1.0, 8: 1.0}, {1: 1.0, 8: 1.1}, [True, None]),  # rounding
        ({}, {1: 1.0, 8: 1.0}, {1: 1.0, 8: 1.1}, [True, None]),
    ],
)
def test_the_rules_of_table_6(q, q_v, all_four, expected):
    means = {"q": q, "q,v": q_v, "q,k,v,o": all_four}
    assert verdicts(claims.table6_claims(means, 3.0)) == expected


def row(r, **norms):
    found = {"rank": r, **TABLE7[r], **norms}
    return found | {"factor": found["norm_delta"] / found["in_delta"]}


@pytest.mark.parametrize(
    "low, high, expected",
    [
        ({}, {}, [True, True, True]),  # the paper's own numbers
        ({"in_delta": 0.01}, {}, [False, True, True]),
        ({"in_delta": 20.0, "norm_delta": 30.0}, {"in_delta": 30.0}, [True, False, True]),
        ({"norm_delta": 0.3}, {}, [True, True, False]),  # a factor below 1
        ({}, {"norm_delta": 99.0}, [True, True, False]),  # and one that grows with the rank
    ],
)
def test_the_rules_of_table_7(low, high, expected):
    assert verdicts(claims.table7_claims([row(4, **low), row(64, **high)])) == expected


# ---------------------------------------------------------------------------- the whole run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings that take a few seconds."""
    english, code = write_texts(tmp_path_factory.mktemp("texts"))
    text = TextSettings(
        ranks=(1, 4),
        seeds=2,
        pretrain_text=english,
        adapt_text=code,
        pretrain_steps=3,
        steps=3,
        batch_size=2,
        block_size=8,
        d_model=8,
        n_layer=1,
        n_head=2,
        windows=2,
        full_lr=None,
    )
    return PaperSettings(text, budget_rank=4, similar=(2, 4), amplified=(2, 4))


class Stopped(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The tiny run, stopped after 25 trials and resumed: folder, content, trials run in each."""
    out, heard = tmp_path_factory.mktemp("paper"), []

    def stop(progress):
        heard.append(progress)
        if len(heard) == 25:
            raise Stopped

    with pytest.raises(Stopped):
        run_paper(tiny, out, listen=stop)
    assert not check_paper(tiny, out)
    return out, run_paper(tiny, out, listen=heard.append), heard


@pytest.fixture
def results(tiny, finished):
    where = folders(tiny, finished[0])
    return {t: json.loads((where[t] / "results.json").read_text()) for t in where}


def test_a_stopped_run_keeps_its_trials_and_runs_the_others_once(tiny, finished, results):
    heard = finished[2]
    trials = [trial for found in results.values() for trial in found["trials"]]
    assert len(heard) == len(trials) > 25 and check_paper(tiny, finished[0])
    resumed = [progress.done for progress in heard[25:]]
    assert resumed == list(range(26, len(trials) + 1))  # counted over all sweeps
    assert all(progress.expected >= progress.done for progress in heard)


def test_a_finished_run_runs_nothing_and_says_the_same(tiny, finished, monkeypatch):
    monkeypatch.setitem(run.TRIALS, "text", None)
    again = run_paper(tiny, finished[0])
    assert again == finished[1]
    written = json.loads((finished[0] / "paper.json").read_text())
    assert written == json.loads(json.dumps(again))


def test_a_run_of_an_earlier_version_continues(tiny, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "old")
    where = list(folders(tiny, tmp_path / "old").values())
    for i, folder in enumerate(where):
        old = load_json(folder / "results.json")
        for name in ("base_made", "base_sha256"):
            del old[name]
        if i > 7:  # was stopped in the last sweeps
            old = {k: v for k, v in old.items() if k != "runs"} | {"complete": False}
            old["trials"] = old["trials"][: 4 * (9 - i)]
        (folder / "results.json").write_text(json.dumps(old))
    (tmp_path / "old" / "paper.json").unlink()
    again = run_paper(tiny, tmp_path / "old")
    assert again["base_made"] is None
    assert {**again, "base_made": "here"} == finished[1]


def test_the_base_is_pretrained_once(tiny, finished):
    made = [json.loads((f / "base.json").read_text()) for f in folders(tiny, finished[0]).values()]
    assert [about["made"] == "here" for about in made] == [True] + [False] * 9
    assert len({about["sha256"] for about in made}) == 1
    assert finished[1]["base_made"] == "here"


def test_a_base_beside_is_not_taken_and_a_given_one_is(tiny, finished, tmp_path, monkeypatch):
    def pretrain(*_):
        raise Stopped

    monkeypatch.setattr(TextTask, "_pretrain", pretrain)
    given = folders(tiny, finished[0])[QV]
    shutil.copytree(given, tmp_path / "beside")
    with pytest.raises(Stopped):
        run_paper(tiny, tmp_path / "paper")
    shutil.rmtree(tmp_path / "paper")

    def stop(progress):
        if len(list(tmp_path.glob("paper/*/base.json"))) == 2:  # in the second sweep
            raise Stopped

    with pytest.raises(Stopped):
        run_paper(tiny, tmp_path / "paper", base=given, listen=stop)
    made = [load_json(path)["made"] for path in tmp_path.glob("paper/*/base.json")]
    assert made == [f"copied from {given}"] * 2
    other = replace(tiny, text=replace(tiny.text, pretrain_lr=1.0))
    with pytest.raises(SweepError, match="base of other settings"):
        run_paper(other, tmp_path / "x", base=given)
    assert not (tmp_path / "x").exists()


def test_a_row_of_table_5_is_the_loss_of_such_a_trial(tiny, finished, results):
    [row] = [r for r in finished[1]["table5"]["rows"] if r["targets"] == "up,down"]
    [found] = [results[t] for t in results if short(t) == "up,down"]
    runs = [r for r in found["runs"] if r["rank"] == row["rank"]]
    assert row["losses"] == {str(r["seed"]): r["test_loss"] for r in runs} and len(runs) == 2
    assert {r["trainable_parameters"] for r in runs} == {row["trainable_parameters"]}
    assert {r["lr"] for r in runs} == {row["lr"]} and row["paper"] is None


def test_table_6_has_every_set_and_rank_beside_the_papers(finished):
    rows = finished[1]["table6"]["rows"]
    assert [(r["targets"], r["rank"]) for r in rows] == [
        (short(t), r) for t in TABLE6 for r in (1, 4)
    ]
    assert rows[2]["paper"] == [1, 73.4, 91.3]


def test_a_highest_rank_that_the_paper_has_not_stands_beside_its_64(tiny, results):
    from lora_np.experiments.paper.run import table6_rows

    other = replace(tiny, text=replace(tiny.text, ranks=(3, 5)))
    rows = table6_rows(other, results)
    assert [r["paper"] for r in rows[2:4]] == [None, [64, 73.5, 91.4]]
    assert rows[2]["losses"] == {} and rows[2]["lr"] is None


def test_figures_and_table_7_are_of_the_models_in_the_folder(tiny, finished, results):
    content, folder = finished[1], folders(tiny, finished[0])[QV]
    adapters = read_adapters(results[QV], folder, {2, 4})
    path = "h.0.attn.v_proj"
    V = {
        (r, s): np.linalg.svd(adapters[r][s][path][1].astype(np.float64))[2]
        for r in (2, 4)
        for s in (0, 1)
    }
    phi = np.mean([(V[2, 0][0] @ V[4, 1][0]) ** 2, (V[2, 1][0] @ V[4, 0][0]) ** 2])
    assert content["figure3"]["panels"][path][0][0] == pytest.approx(phi, abs=WRITTEN)
    assert np.shape(content["figure3"]["panels"][path]) == (2, 4)
    assert np.shape(content["figure4"]["control"]) == (4, 4)
    W0 = np.load(folder / "base.npz")[f"{path}.W"].astype(np.float64)
    inside = []
    for seed in (0, 1):
        B, A = (factor.astype(np.float64) for factor in adapters[2][seed][path])
        U, _, Vt = np.linalg.svd(B @ A)
        inside.append(np.linalg.norm(U[:, :2].T @ W0 @ Vt[:2].T))
    [row] = [r for r in content["table7"]["rows"] if (r["path"], r["rank"]) == (path, 2)]
    assert row["in_delta"] == pytest.approx(np.mean(inside), rel=F64)
    assert row["norm_W0"] == pytest.approx(np.linalg.norm(W0), rel=F64)


def test_the_report_has_ours_and_the_papers_numbers_and_a_verdict_for_every_claim(finished):
    text = report.report(finished[1])
    assert max(map(len, text.splitlines())) <= report.WIDTH
    for number in ("Table 5", "Table 6", "Table 7", "21.67", "73.7", "74.1"):
        assert number in text
    words = {True: "agrees: ", False: "does not agree: ", None: "cannot tell: "}
    said = [line for line in text.splitlines() if line.startswith(tuple(words.values()))]
    assert len(said) == len(finished[1]["claims"]) == 12
    for line, claim in zip(said, finished[1]["claims"]):
        assert line == f"{words[claim['agrees']]}{claim['of']}, {claim['says']}"


def test_table_5_names_the_lowest_row_of_all():
    rows = [
        {"targets": t, "rank": 1, "trainable_parameters": 9, "lr": 0.1, "losses": x, "paper": None}
        for t, x in (("q", {"0": 2.0, "1": 2.2}), ("up", {"0": 1.9}), ("down", {}))
    ]
    text = str(report.table5({"budget": 9, "rows": rows}, BASE))
    assert text.endswith("\nlowest of all: up") and "2.1000 +- 0.1414" in text
    assert text.count("+-") == 1  # one seed has no deviation
    assert "lowest" not in str(report.table5({"budget": 9, "rows": rows[2:]}, BASE))
    rows[0]["losses"] = {"0": 1.9 + 0.9 * SAME * BASE}
    assert str(report.table5({"budget": 9, "rows": rows}, BASE)).endswith("\nlowest of all: q; up")


def test_one_layer_and_one_step_are_not_plural(finished):
    content = json.loads(json.dumps(finished[1]))
    content["settings"]["text"] |= {"n_layer": 1, "steps": 1}
    said = report.report(content).partition("\n\n")[0].replace("\n", " ")
    assert "1 layer: 2 seeds, 1 step." in said


def test_a_row_that_diverged_is_reported_so(finished):
    table = json.loads(json.dumps(finished[1]["table5"]))
    table["rows"][0] |= {"losses": {}, "lr": None}
    assert "diverged" in str(report.table5(table, BASE)).splitlines()[2]
    assert "diverged" in claims._losses({"q": {}}, ["q"])


@pytest.mark.parametrize("name", ["figure3", "figure4"])
def test_a_picture_shows_the_similarities_and_names_its_axes(finished, tmp_path, monkeypatch, name):
    caught, found = [], finished[1][name]
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda f, path: (caught.append(f), save(f, path)))
    plot_similarity(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    axes = caught[0].axes
    maps = {axis.get_title(): axis for axis in axes if axis.images}
    for path, grid in {**found["panels"], "random matrices": found["control"]}.items():
        np.testing.assert_allclose(maps[path].images[0].get_array(), grid, rtol=0, atol=EXACT)
    low, high = found["ranks"]
    assert all(f"r = {high}" in axis.get_xlabel() for axis in maps.values())
    assert all(f"r = {low}" in axis.get_ylabel() for axis in maps.values())
    [lines] = [axis for axis in axes if len(axis.lines) > 1]
    labels = [text.get_text() for text in lines.get_legend().get_texts()]
    assert labels == [*found["panels"], "random", "chance, i / d"] and lines.get_xlabel()
    np.testing.assert_allclose(
        lines.lines[0].get_ydata(),
        np.diag(maps["h.0.attn.q_proj"].images[0].get_array()),
        atol=EXACT,
    )
    assert axes[-1].get_ylabel().startswith("similarity")  # the colour bar


# ---------------------------------------------------------------------- the command, bad input


def test_the_command_resumes_and_writes_tables_and_pictures(tiny, finished, monkeypatch, capsys):
    monkeypatch.setattr("lora_np.experiments.paper.settings.QUICK", tiny)
    out = finished[0]
    assert cli.main(["paper", "--quick", "--out", str(out), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    text = (out / "paper.txt").read_text()
    assert said.startswith(text) and "nothing to conclude" in said
    assert said.endswith(f"written to {out}/: paper.json, paper.txt, figure3.png, figure4.png\n")
    assert text == f"{report.report(finished[1])}\n"
    assert all((out / f"figure{i}.png").stat().st_size > 10_000 for i in (3, 4))
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (out, *out.rglob("*"))}
    assert cli.main(["paper", "--quick", "--out", str(out), "--jobs", "1"]) == 0  # only reads
    assert capsys.readouterr().out == said.replace("written to", "held in")
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (out, *out.rglob("*"))} == before


def test_a_finished_run_is_measured_where_nothing_can_be_written(tiny, finished, monkeypatch):
    def refuse(path, content):
        raise OSError(30, f"{path} cannot be written")

    monkeypatch.setattr(
        "lora_np.experiments.paper.run.load_json", lambda path: {}
    )  # of another version
    monkeypatch.setattr("lora_np.experiments.paper.run.save_json", refuse)
    assert run_paper(tiny, finished[0]) == finished[1]
    monkeypatch.setattr("lora_np.experiments.paper.run.check_paper", lambda *_, **__: False)
    with pytest.raises(OSError, match="cannot be written"):
        run_paper(tiny, finished[0])


def test_an_interrupted_command_counts_what_all_sweeps_kept(tiny, tmp_path, monkeypatch, capsys):
    calls = []

    def trial(*arguments):
        calls.append(arguments)
        if len(calls) > 14:
            raise KeyboardInterrupt
        return run_text_trial(*arguments)

    monkeypatch.setattr("lora_np.experiments.paper.settings.QUICK", tiny)
    monkeypatch.setattr("lora_np.experiments.rank_sweep.estimate.estimate", lambda *_: 60.0)
    monkeypatch.setitem(run.TRIALS, "text", trial)
    assert cli.main(["paper", "--quick", "--out", str(tmp_path), "--jobs", "1"]) == 130
    said = capsys.readouterr().err
    assert f"stopped: 14 runs are kept in {tmp_path}" in said
    assert len(list(tmp_path.glob("*/models/*.npz"))) >= 4


@pytest.mark.parametrize(
    "change, said",
    [
        ({"budget_rank": 0}, "budget_rank = 0, expected from 1 to 8"),
        ({"budget_rank": 9}, "budget_rank = 9, expected from 1 to 8"),
        ({"similar": (4, 2)}, r"similar = \(4, 2\), expected two ascending ranks"),
        (
            {"amplified": (1, 2)},
            r"amplified = \(1, 2\), expected two ascending ranks of at least 2",
        ),
        ({"amplified": (4,)}, "expected two ascending ranks"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, change, said):
    with pytest.raises(ValueError, match=said):
        replace(tiny, **change)


@pytest.mark.parametrize(
    "change, said", [({"seeds": 1}, "seeds = 1, expected"), ({"full_lr": 0.1}, "full_lr must be")]
)
def test_a_task_that_does_not_fit_is_refused(tiny, change, said):
    with pytest.raises(ValueError, match=said):
        replace(tiny, text=replace(tiny.text, **change))


def test_a_rank_above_the_matrix_is_told_before_anything_is_trained(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"rank 16 for h\.0\.attn\.q_proj is above the limit 8"):
        run_paper(replace(tiny, similar=(2, 16)), tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_folder_of_other_settings_is_refused_and_stays(tiny, finished):
    before = {p: p.read_bytes() for p in finished[0].rglob("*") if p.is_file()}
    other = replace(tiny, text=replace(tiny.text, steps=4))
    with pytest.raises(SweepError, match=r"is of other settings \(steps 3, now 4\)"):
        run_paper(other, finished[0])
    assert {p: p.read_bytes() for p in finished[0].rglob("*") if p.is_file()} == before


def test_ranks_that_diverged_everywhere_are_named(tiny, finished, results):
    for trial in results[QV]["runs"]:
        if trial["rank"] == 2:
            trial["test_loss"] = None
    with pytest.raises(ValueError, match="rank 2 on q,v diverged at every learning rate"):
        measure(tiny, results, folders(tiny, finished[0])[QV])


def test_one_common_seed_draws_no_figure(tiny, finished, results):
    adapters = read_adapters(results[QV], folders(tiny, finished[0])[QV], {2, 4})
    del adapters[2][1]
    with pytest.raises(ValueError, match="fewer than two common seeds"):
        directions.figure(adapters, (2, 4), np.random.default_rng(0))


def test_the_settings_that_were_used_are_written(tiny, finished):
    assert finished[1]["settings"] == asdict(tiny)
