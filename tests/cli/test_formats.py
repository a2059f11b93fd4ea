"""--format: every command that prints tables prints them for programs too, and nothing else."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

import lora_np
from lora_np import selfcheck, write_adapter
from lora_np.cli.says import in_format, report
from lora_np.experiments.compare.report import report as compare_report
from lora_np.experiments.instructions.report import report as instructions_report
from lora_np.experiments.personal.run import run_text
from lora_np.experiments.serving.report import report as serving_report
from lora_np.experiments.sql.report import study_report
from lora_np.files import save_tensors
from lora_np.images.report import images_report
from lora_np.report import Report
from lora_np.tables import Table
from tests.cli.test_cli import case
from tests.cli.test_options import COMMANDS

NO_TABLE = {  # commands that print none, and why
    "finetune": "its adapter has a card, and training.json holds the losses",
    "generate": "prints text",
    "chat": "is a conversation",
    "serve": "answers requests",
    "images base": "trains weights",
    "images refine": "makes weights",
    "images style": "trains weights",
    "images distil": "trains weights",
    "images sample": "draws a picture",
}


def test_every_command_that_prints_tables_has_the_option():
    with_format = {
        name for name, c in COMMANDS.items() if any(a.dest == "format" for a in c._actions)
    }
    assert with_format == set(COMMANDS) - set(NO_TABLE) and NO_TABLE.keys() < COMMANDS.keys()


def rows(text, form):
    """The rows of what a program reads, or all tables by title."""
    if form == "json":
        return json.loads(text)
    parts = text.strip("\n").split("\n\n")
    found = [list(csv.DictReader(io.StringIO(part))) for part in parts]
    return found[0] if len(found) == 1 else found


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """A folder to work in: a base, the same tuned, and an adapter of it."""
    monkeypatch.chdir(tmp_path)
    base = {"h.0.q_proj.weight": rng.standard_normal((6, 4)), "norm.weight": np.ones(4)}
    tuned = {name: W + 0.1 * rng.standard_normal(W.shape) for name, W in base.items()}
    for name, tensors in {"base": base, "tuned": tuned}.items():
        save_tensors(f"{name}.safetensors", {k: W.astype(np.float32) for k, W in tensors.items()})
    factors = rng.standard_normal((6, 3)), rng.standard_normal((3, 4))
    write_adapter("a", [("h.0.q_proj", *factors, 1.0)])


FILES = {
    "analyse": "a",
    "resize": "a --rank 2 --out out",
    "extract": "--base base.safetensors --tuned tuned.safetensors --rank 2 --out out",
    "merge": "--base base.safetensors --adapter a --out out.safetensors",
    "combine": "a a --weights 1 2 --out out",
    "convert": "a --base base.safetensors --rank 2 --out out",
}


@pytest.mark.usefixtures("files", "unpainted")
@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize("name", FILES)
def test_standard_output_is_one_table_of_modules(name, form, command):
    status, out, err = command(name, *FILES[name].split(), "--format", form)
    found = rows(out, form)
    name_of_first = found[0].get("module") or found[0]["tensor"]
    assert status == 0 and name_of_first.removesuffix(".weight") == "h.0.q_proj"
    assert "written to" in err and "written to" not in out
    if name in ("resize", "extract"):
        assert int(found[0]["r"]) == 2
    assert name != "extract" or "changed, but not in the adapter" in err


@pytest.mark.usefixtures("files")
def test_markdown_is_a_table_to_paste(command):
    _, out, _ = command("resize", *FILES["resize"].split(), "--format", "markdown")
    head, rule, *body = out.splitlines()
    assert head.startswith("| module |") and set(rule) <= set("| -") and len(body) == 2


def test_gradcheck_and_its_verdict(command, monkeypatch):
    monkeypatch.setattr(selfcheck, "cases", lambda rng: [case("a pair")])
    status, out, err = command("gradcheck", "--format", "json")
    assert status == 0 and err == "all gradients agree\n"
    assert {row["pair or layer"] for row in json.loads(out)} == {"a pair"}
    assert all(row["error"] < row["limit"] for row in json.loads(out))


def test_several_tables_have_titles_in_json_and_are_blocks_in_csv(command):
    _, out, err = command("account", "--format", "json")
    found = {table["title"]: table["rows"] for table in json.loads(out)}
    assert len(found) == 3 and "" not in found
    assert found["LoRA, r = 8 on all linear layers"][0]["value"] > 1e5
    _, out, err = command("account", "--format", "csv")
    assert [len(table) for table in rows(out, "csv")] == [len(table) for table in found.values()]
    assert list(found) == err.splitlines()  # CSV has no place for titles


@pytest.mark.usefixtures("unpainted")
def test_a_sweep_prints_its_curve(tmp_path, command):
    tiny = "--task linear --ranks 1,3 --seeds 1 --d-in 6 --d-out 5 --steps 20 --jobs 1"
    arguments = ["sweep", *tiny.split(), "--out", tmp_path / "out"]
    assert command(*arguments)[0] == 0
    status, out, err = command(*arguments, "--format", "csv", "--quiet")
    assert (status, err) == (0, "")
    assert [row["name"] for row in rows(out, "csv")][:3] == ["base", "r = 1", "r = 3"]


# --------------------------------------------------------------------- reports of several tables


def held(name):
    """The results behind a page of the docs."""
    path = Path(lora_np.__file__).parents[1] / "docs" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


REPORTS = {  # of the results that a page of the docs shows
    "images": lambda: images_report(held("images")["results"]),
    "compare": lambda: compare_report(held("rivals")["results"]),
    "sql": lambda: study_report(held("text_to_sql")["results"]),
    "instructions": lambda: instructions_report(held("many_adapters")["instructions"]["results"]),
    "personal": lambda: run_text(held("many_adapters")["personal"]["results"]),
    "serve-bench": lambda: serving_report(held("serving")["small"]["results"]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "sql")) for n in REPORTS]
)
def test_a_report_of_several_tables_names_each(name):
    whole = REPORTS[name]()
    assert len(whole.tables) > 1 and all(str(table) in whole for table in whole.tables)
    found = json.loads(in_format(whole.tables, "json"))
    titles = [table["title"] for table in found]
    assert all(titles) and len(set(titles)) == len(titles)
    assert [len(table["rows"]) for table in found] == [len(t.rows()) for t in whole.tables]


# ---------------------------------------------------------------------------- the mechanism


ONE = Table({"a": [1, None]}, title="one\nin full", notes=["a note"])
TWO = Table({"b": [0.5]}, title="two")


def said(form, capsys, *parts):
    """What a report prints, with a fake of the arguments; notes are heard by no one."""
    report(type("A", (), {"format": form}), *parts)
    return capsys.readouterr().out


def test_a_report_keeps_its_tables_wherever_they_stand(capsys):
    whole = Report(["words", Report([ONE, "", "more"], gap="\n"), TWO])
    assert whole == f"words\n\n{ONE}\nmore\n\n{TWO}" and whole.tables == (ONE, TWO)
    assert whole.parts == ("words", ONE, "more", TWO)
    assert said("table", capsys, whole, "", "end") == f"{whole}\n\nend\n"
    first, second = json.loads(said("json", capsys, whole))
    assert first == {"title": "one\nin full", "rows": [{"a": 1}, {"a": None}]}
    assert second == {"title": "two", "rows": [{"b": 0.5}]}
    assert said("csv", capsys, whole).endswith("\n\nb\n0.5\n")


def test_one_table_is_a_list_and_a_format_that_does_not_exist_names_all():
    assert json.loads(in_format([TWO], "json")) == [{"b": 0.5}]
    with pytest.raises(ValueError, match="expected one of table, json, csv, markdown"):
        in_format([TWO], "xml")


def test_what_a_table_of_numbers_leaves_out_is_a_note(caplog, capsys):
    with caplog.at_level("INFO", "lora_np"):
        said("csv", capsys, ONE, "words")
    assert [record.getMessage() for record in caplog.records] == ["one\nin full", "a note", "words"]
    caplog.clear()
    with caplog.at_level("INFO", "lora_np"):
        out = said("markdown", capsys, ONE, "words")
    assert [record.getMessage() for record in caplog.records] == ["words"]
    assert "a note" in out
