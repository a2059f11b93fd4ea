"""lora_np.experiments.serving: sides take turns, and what is counted was in the batch."""

import json
import re

import numpy as np
import pytest

from lora_np import cli, load_adapter, plots
from lora_np.experiments.serving import MEASUREMENTS, QUICK, BenchSettings, report, serving_study
from lora_np.experiments.serving.measure import Asked, serve, take_turns, watched
from lora_np.experiments.serving.peft_side import expect_peft
from lora_np.experiments.serving.picture import LOOKS, draw_serving
from lora_np.experiments.serving.run import Bench
from lora_np.experiments.serving.shelf import Shelf
from lora_np.files import CheckpointError
from tests.compare import PNG
from tests.experiments.planted_serving import planted
from tests.serve.tiny import llama


@pytest.fixture
def study(monkeypatch):
    """Run the study over a tiny base."""
    monkeypatch.setattr("lora_np.experiments.serving.run.model_of", lambda settings: llama())
    return serving_study


def tiny(**changes):
    return BenchSettings(**{**vars(QUICK), "r": 2, "only": MEASUREMENTS, **changes})


# --- turns and counts ----------------------------------------------------------------------------


class Clock:
    """Time that passes only while a side works; half of it is CPU time."""

    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, ""
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr("time.process_time", lambda: self.now / 2)

    def side(self, name, seconds):
        def work():
            self.order += name
            self.now += seconds

        return work


def test_sides_take_turns_in_both_orders_and_each_second_counts_for_its_side(monkeypatch):
    clock = Clock(monkeypatch)
    found = take_turns({"a": clock.side("a", 3.0), "b": clock.side("b", 1.0)}, rounds=3)
    assert clock.order == "ab" + "abbaab"  # the first time does not count
    assert found == {
        "a": {"cpu": [1.5] * 3, "wall": [3.0] * 3},
        "b": {"cpu": [0.5] * 3, "wall": [1.0] * 3},
    }


def test_a_short_side_is_repeated_until_it_has_had_its_seconds(monkeypatch):
    clock = Clock(monkeypatch)
    sides = {"a": clock.side("a", 3.0), "b": clock.side("b", 0.25)}
    assert take_turns(sides, 1, 1.0)["b"] == {"cpu": [0.125], "wall": [0.25]}
    assert clock.order == "ab" + "a" + "bbbb"


def test_what_was_in_the_batch_is_counted_step_by_step(tmp_path):
    bench = Bench(tiny(), llama(), tmp_path, lambda what: None)
    engine = bench.engine(adapters=5, room=5, rows=3, tokens=8)
    names = ["a00000", "a00001", "a00000", "a00002", None, "a00003"]
    asked = [Asked(name, [1, 2]) for name in names]
    requests, batch = watched(engine, asked, 4)  # two batches of 3 rows: 2 and 2 adapters
    assert batch == (3, 2, 2)
    assert [request.tokens for request in serve(engine, asked, 4)] == [r.tokens for r in requests]
    _, alone = watched(engine, [Asked(None, [1])], 2)
    assert alone == (1, 0, 0)


def test_a_request_that_failed_ends_the_measurement(tmp_path):
    bench = Bench(tiny(), llama(), tmp_path, lambda what: None)
    engine = bench.engine(adapters=1, room=1, rows=3, tokens=8)
    (tmp_path / "a00000" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="a00000"):
        serve(engine, [Asked("a00000", [1])], 2)


def test_every_adapter_of_the_shelf_is_read_and_no_two_are_alike(tmp_path):
    base = llama()
    shelf = Shelf(base, tmp_path, 2, ["q_proj", "v_proj"])
    said = []
    for folder in shelf.folders(3):
        tensors = load_adapter(base, folder).parameters()
        own = np.concatenate([p.value.ravel() for p in tensors.values() if p.trainable])
        assert len(own) == shelf.numbers and 0.08 < own.std() < 0.12
        said.append(own)
    assert not np.isclose(said[0], said[1]).any() and not np.isclose(said[1], said[2]).any()
    written = [
        (folder / "adapter_model.safetensors").stat().st_mtime_ns for folder in shelf.folders(3)
    ]
    assert written == [
        (tmp_path / name / "adapter_model.safetensors").stat().st_mtime_ns
        for name in ("a00000", "a00001", "a00002")
    ]


# --- the study -----------------------------------------------------------------------------------


def test_every_measurement_has_its_rows_and_is_kept_when_it_ends(study):
    kept, heard = [], []
    results = study(
        tiny(), heard.append, lambda results: kept.append(json.loads(json.dumps(results)))
    )
    measured = results["measured"]
    assert [list(found["measured"])[-1] for found in kept] == list(measured) == list(MEASUREMENTS)
    assert [found["complete"] for found in kept] == [False] * 5 + [True]
    assert {name: len(rows) for name, rows in measured.items()} == {
        **{"pool": 2, "distinct": 3, "disk": 1, "wide": 1, "real": 2, "long": 2}
    }
    assert len(heard) == 11
    for rows in measured.values():
        for row in rows:
            assert row["distinct"] <= row["most"] <= min(row["pool"], row["rows"])
            assert all(
                len(cpu) == 2 for seconds in row["seconds"].values() for cpu in seconds.values()
            )
    assert [row["distinct"] for row in measured["distinct"]] == [1, 2, 4]
    assert [row["equal"] for row in measured["distinct"]] == [{"alone": 4}] * 3
    assert measured["wide"][0]["distinct"] == 10 and measured["wide"][0]["rows"] == 12
    assert measured["pool"][0]["distinct"] == 1 < measured["pool"][1]["most"]
    assert measured["long"][0]["distinct"] == measured["real"][0]["distinct"] == 3
    (disk,) = measured["disk"]
    assert 0 < disk["reads"] < 1 and disk["requests"] == 16
    text = report(results)
    for name in ("10 of 12", "3 of 3", "4 of 4", "% of 16 requests", "one at a time / ours"):
        assert name in text
    assert "goal" not in text  # these are not the sizes for which the goals were set


def test_rows_that_differ_from_their_adapter_alone_are_not_counted_as_equal(study, monkeypatch):
    monkeypatch.setattr("lora_np.experiments.serving.run.load_adapter", lambda base, folder: base)
    monkeypatch.setattr("lora_np.experiments.serving.shelf.DEVIATION", 1.0)
    rows = study(tiny(only=("distinct",)))["measured"]["distinct"]
    assert max(row["equal"]["alone"] for row in rows) < 4


def test_a_real_model_has_measurements_of_its_own():
    assert BenchSettings().measured() == ("pool", "distinct", "disk", "wide")
    assert BenchSettings("smollm2").measured() == ("real", "long")
    assert BenchSettings("smollm2", only=("long", "pool")).measured() == ("pool", "long")
    assert BenchSettings(batch=48).counts() == (1, 2, 4, 8, 16, 32, 48)


def test_the_report_says_ratios_and_whether_the_goals_are_reached():
    text = report(planted())
    assert "1.10 (1.10 to 1.10)          1.10  at most 1.20: reached" in text
    assert "7.00 (7.00 to 7.00); at least 5.00: reached" in text
    assert "25 % of 2,048 requests" in text and "63 of 64" in text
    assert re.search(r"^64 of 64 +909 +1,000 +130 +45$", text, re.M)  # 2000 tokens / seconds
    assert "at most 1.10: reached" not in text
    assert "at most 1.10: reached" in report(planted(model="smollm2"))
    assert "at most 1.20: missed" in report(planted(ours=1.3))


# --- the picture and the command -----------------------------------------------------------------


def test_the_picture_has_a_curve_for_each_side_over_a_logarithmic_axis():
    axis = plots.figure(7, 5).subplots()
    draw_serving(axis, planted())
    curves = {line.get_label(): line for line in axis.get_lines()}
    assert list(curves) == [label for label, *_ in LOOKS.values()]
    ours = curves["ours, one mixed batch"]
    assert ours.get_xdata().tolist() == [1, 8, 64]
    assert ours.get_ydata() == pytest.approx([2000 / 2.2] * 3)
    assert axis.get_xscale() == "log" and "tokens / CPU second" in axis.get_ylabel()


def test_the_command_prints_its_tables_and_writes_them_with_the_picture(study, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    command = ["serve-bench", "--quick", "--r", "2", "--only", "distinct", "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    text = (out / "serve.txt").read_text(encoding="utf-8")
    assert said.startswith(text.rstrip()) and "a quick run: there is nothing to conclude" in said
    assert said.endswith(f"written to {out}/: results.json, serve.txt, serve.png\n")
    assert json.loads((out / "results.json").read_text())["complete"] is True
    assert (out / "serve.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--only", "speed"], "'speed' is not a measurement, expected some of pool, distinct"),
        (["--batch", "0"], "batch = 0, expected at least 1"),
        (["--rounds", "-1"], "rounds = -1, expected at least 1"),
        (["--contexts", "0,5"], "expected lengths of at least 1 token"),
        (["--requests", "0"], "requests = 0, expected at least 1"),
        (
            ["--peft", "--only", "pool"],
            "PEFT is measured with 'distinct', which is not in this run",
        ),
        (["--model", "no_such_model"], "model 'no_such_model': no such file or folder"),
        (["--target-modules", "qproj"], "qproj"),
    ],
)
def test_a_wrong_option_is_one_line(options, said, tmp_path, capsys):
    assert cli.main(["serve-bench", "--quick", *options, "--out", str(tmp_path)]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and said in found.err


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.main(["serve-bench", "--quick", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_help_explains_every_measurement(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve-bench", "--help"])
    said = capsys.readouterr().out
    assert all(f"{name}:" in said for name in MEASUREMENTS)


def test_without_peft_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("lora_np.experiments.serving.peft_side.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"needs torch, transformers, peft: .* leave --peft"):
        expect_peft()
