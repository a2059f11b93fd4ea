"""tests.benchmarks: the harness at toy sizes, without PyTorch. What it measures is not asserted."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lora_np import ops
from lora_np.ops import fast
from tests.benchmarks import __main__ as command
from tests.benchmarks import llama, measure, page, report, rivals
from tests.benchmarks.llama_models import Case, adapted, base_model, token_batches
from tests.benchmarks.measure import Result, Row, Spread, exponent
from tests.benchmarks.models import batches, model_for, step_flops
from tests.benchmarks.numpy_side import Training
from tests.benchmarks.plan import DEFAULT, QUICK, RANK, AdapterSize, LlamaPlan, ManyPlan, Plan, Size
from tests.benchmarks.steps import Disagreement, check_losses
from tests.benchmarks.workers import THREAD_SETTINGS, Worker, WorkerError, thread_settings

pytestmark = pytest.mark.slow
EXACT = 1e-12  # relative, of a few operations on Python floats
TOY = Size("toy", d_model=8, n_layer=1, n_head=2, T=4, batch_size=2, vocab_size=16)
PLAN = Plan(
    sizes=(TOY,),
    rounds=2,
    slice_seconds=1e-3,
    ledger={"T": (4, 8), "r": (1, 8)},
    slow_rounds=1,
    spectra=((32, 2),),
    adapter=AdapterSize(layers=2, side=32, resized=2),
    many=ManyPlan(d=16, cases=((8, 3), (20, 12)), mixed=(20, 10)),
    llama=LlamaPlan("tiny", cases=((1, 4), (2, 4)), memory=(2, 4), prompt=4, new=2),
    threads=1,
    peers=False,
)
INSIDE = (
    "steps",
    "twins",
    "allocator",
    "rivals",
    "rivals-memory",
    "memory",
    "inference",
    "generation",
    "ledger",
    "first-step",
    "adapters",
    "many",
    "rank",
    "llama-steps",
    "llama-memory",
    "llama-quantised",
    "llama-generation",
    "llama-twins",
    "llama-edge",
)
FIELDS = {
    "benchmark", "what", "case", "unit", "median", "low", "high", "rounds", "reference",
    "reference_is", "verdict",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The content of benchmarks.json and the folder of a whole run, all but the sweep."""
    out = tmp_path_factory.mktemp("benchmarks")
    some = {label: rivals.RIVALS[label] for label in ("LoRA-FA", "AdaLoRA", "QLoRA")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "RIVALS", some)  # the others need a wider model
        assert command.main(["--only", ",".join(INSIDE), "--out", str(out)], PLAN) == 0
    return json.loads((out / "benchmarks.json").read_text(encoding="utf-8")), out


@pytest.fixture
def worker():
    with Worker("numpy_side.NumpySide", threads=1) as worker:
        yield worker


def rows_of(content, name):
    return {(r["what"], r["case"]): r for r in content["rows"] if r["benchmark"] == name}


# ---------------------------------------------------------------------------------- a run and files


def test_the_json_has_the_documented_fields(finished):
    content, _ = finished
    documented = ("machine", "settings", "left_out", "rows", "seconds", "idle_cpu")
    assert tuple(content) == documented
    assert {"cpu", "cores", "system", "python", "numpy", "blas", "date"} <= set(content["machine"])
    assert {row["benchmark"] for row in content["rows"]} == set(INSIDE)
    for row in content["rows"]:
        assert set(row) == FIELDS
        assert 0 < row["low"] <= row["median"] <= row["high"] or "exponent" in row["what"]
    assert content["settings"]["rounds"] == 2 and content["settings"]["sizes"][0]["name"] == "toy"
    assert all(seconds > 0 for seconds in content["seconds"].values())


def test_without_peers_numpys_own_ratios_are_measured_and_the_rest_is_named(finished):
    content, _ = finished
    assert "PyTorch, PEFT and transformers" in content["left_out"][0]
    whats = {what for what, _ in rows_of(content, "steps")}
    assert whats == {
        "full: share of the sgemm peak, lora_np",
        "LoRA: share of the sgemm peak, lora_np",
        "LoRA / full step, lora_np",
        "LoRA / full step, FLOPs of account()",
    }


def test_a_random_llama_is_named_and_has_no_goals(finished):
    content, _ = finished
    assert "llama: the model's weights are random: tiny" in content["left_out"]
    rows = [row for row in content["rows"] if row["benchmark"].startswith("llama-")]
    assert all(row["reference"] is None for row in rows)
    memory = {what: row["median"] for (what, _), row in rows_of(content, "llama-memory").items()}
    assert all(peak > 20.0 for peak in memory.values())  # MB; the interpreter alone holds as much


def test_a_group_stands_for_its_benchmarks():
    names = command.parser().parse_args(["--only", "llama,steps"]).only
    assert names[-1] == "steps" and len(names) == 7
    assert all(name.startswith("llama-") for name in names[:6])


def test_llamas_that_compute_something_else_are_found():
    class Fixed:
        def __init__(self, losses, tokens):
            self.found = {"step": losses, "generate": [np.array([tokens])]}

        def call(self, method, action, count):
            return self.found[action]

    case = llama.Case(1, 2)
    sides = {"ours": Fixed([2.0, 1.0], [5, 6, 7, 8]), "theirs": Fixed([2.0001, 1.0], [5, 6, 7, 9])}
    llama.check_losses(sides, case)
    llama.check_tokens(sides, case)  # the first new token alone is compared
    sides["theirs"] = Fixed([2.001, 1.0], [5, 6, 8, 8])
    with pytest.raises(Disagreement, match="1 x 2: losses"):
        llama.check_losses(sides, case)
    with pytest.raises(Disagreement, match="first new tokens"):
        llama.check_tokens(sides, case)


def test_figures_that_are_no_times_are_right(finished):
    content, _ = finished
    ratio = rows_of(content, "steps")["LoRA / full step, FLOPs of account()", "toy"]["median"]
    assert ratio == pytest.approx(step_flops(TOY, RANK) / step_flops(TOY, None), rel=EXACT)
    memory = rows_of(content, "memory")
    full, lora = (memory[f"peak memory, {m}", "toy"]["median"] for m in ("full", "LoRA"))
    ratio = memory["LoRA / full, peak memory", "toy"]["median"]
    assert ratio == pytest.approx(lora / full, rel=EXACT)
    predicted = rows_of(content, "ledger")["growth exponent of a step's time", "in T"]
    assert predicted["reference_is"] == "predicted" and 1.0 < predicted["reference"] < 2.0


def test_the_textbook_pair_takes_the_place_of_its_twin_for_the_steps_alone(monkeypatch):
    calls = []

    def spied(x, right=ops.gelu_forward):
        calls.append(x.shape)
        return right(x)

    monkeypatch.setattr(ops, "gelu_forward", spied)
    losses = []
    for textbook in ("gelu", None):
        with Training(model_for(TOY, None), batches(TOY), textbook) as training:
            losses.append([training.step(), training.step()])
        assert len(calls) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_textbook_grouped_attention_takes_the_place_of_its_twin(monkeypatch):
    calls = []

    def spied(q, k, v, right=ops.gqa_forward):
        calls.append(q.shape)
        return right(q, k, v)

    monkeypatch.setattr(ops, "gqa_forward", spied)
    base = base_model("tiny")
    data = token_batches(base.config.vocab_size, Case(2, 4))
    losses = []
    for textbook in ("gqa", None):
        with Training(adapted(base), data, textbook) as training:
            losses.append(training.step())
        assert len(calls) == base.config.n_layer
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_every_twin_is_measured_where_the_model_has_it(finished):
    content, _ = finished
    pairs = {name.removesuffix("_forward") for name in fast.__all__ if name.endswith("_forward")}
    pairs -= {"gqa", "head_loss", "linear", "lora_rows"}  # measured elsewhere: see their files
    whats = {what for what, _ in rows_of(content, "twins")}
    assert whats == {f"full: textbook {pair} / fast" for pair in pairs - {"lora_linear"}} | {
        f"LoRA: textbook {pair} / fast" for pair in pairs
    }


def test_the_spectrum_of_factors_agrees_with_the_dense_one(finished):
    content, _ = finished
    apart = rows_of(content, "rank")["largest difference of values / sigma_1", "32"]
    assert len(apart["rounds"]) == 2 and apart["high"] < 1e-13
    assert apart["verdict"] == "reached" and apart["reference"] == 1e-6


def test_an_adapter_is_resized_alike_by_factors_and_by_the_dense_product(finished):
    content, _ = finished
    for (what, _), row in rows_of(content, "adapters").items():
        if "apart" in what:
            assert len(row["rounds"]) == 2 and row["high"] < 1e-12 and row["verdict"] == "reached"


def test_the_picture_is_drawn_where_steps_were_measured(finished, tmp_path):
    _, out = finished
    assert (out / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    assert not report.draw(tmp_path / "none.png", Result(), "")


def test_a_run_prints_tables_and_what_is_left_out(capsys, tmp_path):
    assert command.main(["--only", "memory", "--out", str(tmp_path)], PLAN) == 0
    printed = capsys.readouterr().out
    assert "Peak memory of a step" in printed and "LoRA / full, peak memory" in printed
    assert "cpu" in printed and "blas" in printed and "left out: all comparisons" in printed


def test_a_benchmark_that_fails_is_said_and_the_others_go_on(capsys, monkeypatch, tmp_path):
    def fail(plan):
        raise Disagreement("losses of ours 1, of theirs 2")

    monkeypatch.setitem(command.BENCHMARKS, "steps", ("Steps", fail))
    assert command.main(["--only", "steps,memory", "--out", str(tmp_path)], PLAN) == 1
    printed = capsys.readouterr().out
    assert "steps, which FAILED: losses of ours 1, of theirs 2" in printed
    assert "LoRA / full, peak memory" in printed


@pytest.mark.parametrize("arguments", [["--only", "speed"], ["--rounds", "0"]])
def test_a_wrong_option_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "speed" in capsys.readouterr().err or "0" in arguments


def test_the_sweep_runs_with_one_job_and_with_two():
    options = "--ranks 1 --steps 1 --pretrain-steps 1 --windows 1 --d-model 8 --n-layer 1"
    sizes = f"{options} --n-head 2 --block-size 4 --batch-size 2".split()
    result = command.commands.measure_sweep(replace(PLAN, sweep=tuple(sizes)))
    assert set(result.seconds) == {"1 process", "2 processes"}
    (row,) = result.rows
    ratio = result.seconds["1 process"] / result.seconds["2 processes"]
    assert row.measured.median == pytest.approx(ratio, rel=EXACT)


# ------------------------------------------------------------------------------------- the measures


def test_a_spread_is_the_median_and_the_middle_half_of_the_rounds():
    spread = Spread((5.0, 1.0, 2.0, 3.0, 4.0))
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    assert (Spread((7.0,)).low, Spread((7.0,)).high) == (7.0, 7.0)


def test_a_ratio_is_taken_round_by_round():
    # A machine that slows down by half in the second round changes no ratio.
    assert Spread((1.0, 2.0)).over(Spread((2.0, 4.0))).rounds == (0.5, 0.5)


@pytest.mark.parametrize(
    "rounds, kind, verdict",
    [
        ((0.8, 0.9, 1.0), "at most", "reached"),
        ((1.002, 1.004, 1.1), "at most", "reached"),  # 1.00 is what is printed
        ((1.002, 1.006, 1.1), "at most", "missed by 1 %"),
        ((0.9, 1.1, 1.2), "at most", "within the spread"),
        ((1.2, 1.2, 1.2), "at most", "missed by 20 %"),
        ((1.2, 1.2, 1.2), "at least", "reached"),
        ((0.8, 0.95, 1.1), "at least", "within the spread"),
        ((0.8, 0.8, 0.8), "at least", "missed by 20 %"),
        ((2.0, 2.0, 2.0), "predicted", ""),
    ],
)
def test_the_verdict_on_a_goal(rounds, kind, verdict):
    assert Row("x", "toy", Spread(rounds), 1.0, kind).verdict() == verdict


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_the_pages_hold_the_figures_of_the_run_that_they_name(path):
    content = json.loads(page.PAGES[path].read_text(encoding="utf-8"))
    text = path.read_text(encoding="utf-8")
    assert len(page.PLACE.findall(text)) == text.count("<!-- benchmarks: ") >= 1
    assert text == page.filled(text, content)  # else: python -m tests.benchmarks.page
    assert content["machine"]["date"] in text
    changed = {
        **content,
        "rows": [{**r, "median": 7.77, "rounds": [7.77]} for r in content["rows"]],
    }
    assert "7.77" in page.filled(text, changed)


def test_the_exponent_of_a_power_is_the_power():
    xs = (1.0, 2.0, 5.0, 7.0)
    assert exponent(xs, [3.0 * x**1.7 for x in xs]) == pytest.approx(1.7, rel=EXACT)


def test_sides_take_turns_and_every_other_round_runs_backwards():
    class Recorder:
        def __init__(self):
            self.calls = []

        def call(self, method, action, count):
            self.calls.append((action, count))
            return [0.5] * count

    recorder = Recorder()
    turns = {"a": (recorder, "a"), "b": (recorder, "b")}
    times = measure.take_turns(turns, rounds=2, slice_seconds=1.6)
    assert recorder.calls == [(s, n) for s, n in zip("ababba", (1, 1, 4, 4, 4, 4))]
    assert times == {"a": Spread((0.5, 0.5)), "b": Spread((0.5, 0.5))}


def test_a_side_that_computes_something_else_is_found():
    class Fixed:
        def __init__(self, loss):
            self.loss = loss

        def call(self, method, action, count):
            return [self.loss] * count

    def turns(theirs):
        sides = {"lora_np": 2.0, "PyTorch eager": theirs}
        return {f"{s}, {m}": (Fixed(v), s) for s, v in sides.items() for m in ("full", "LoRA")}

    check_losses(turns(2.0001), TOY)
    with pytest.raises(Disagreement, match="toy, full"):
        check_losses(turns(2.001), TOY)
    with pytest.raises(Disagreement):
        check_losses(turns(float("nan")), TOY)


# ------------------------------------------------------------------------------------------ workers


def test_a_worker_says_what_went_wrong_over_there_and_goes_on(worker):
    with pytest.raises(WorkerError, match="KeyError: 'nothing'"):
        worker.call("run", "nothing", 1)
    worker.call("add_step", "step", TOY, None)
    first, second = worker.call("results", "step", 2)
    assert first == pytest.approx(2.77, abs=0.1) and first != second  # log 16; another batch
    assert len(worker.call("run", "step", 3)) == 3
    worker.call("forget")
    with pytest.raises(WorkerError, match="KeyError"):
        worker.call("run", "step", 1)


def test_a_step_on_two_threads_can_be_timed_and_its_losses_read():
    with (
        Worker("numpy_side.NumpySide", threads=1) as one,
        Worker("numpy_side.NumpySide", threads=2) as two,
    ):
        losses = []
        for worker in (one, two):
            worker.call("add_step", "step", TOY, None)
            assert len(worker.call("run", "step", 2)) == 2
            losses.append(worker.call("results", "step", 2))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # float32; the batch is split


def test_a_side_that_cannot_start_says_why():
    with pytest.raises(WorkerError, match="No module named"), Worker("no_side.Side"):
        pass


def test_thread_settings_hold_meanwhile_and_are_restored(monkeypatch):
    import os

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with thread_settings(1):
        assert {os.environ[name] for name in THREAD_SETTINGS} == {"1"}
    with thread_settings(None):
        assert not set(THREAD_SETTINGS) & set(os.environ)
    assert os.environ["OMP_NUM_THREADS"] == "3" and "MKL_NUM_THREADS" not in os.environ


def test_the_plans_measure_the_sizes_of_the_goals():
    assert [s.name for s in DEFAULT.sizes] == ["tiny", "small", "medium"]
    assert set(QUICK.sizes) < set(DEFAULT.sizes) and QUICK.rounds < DEFAULT.rounds
