"""One table in every form: text, HTML, Markdown, CSV, JSON, a DataFrame."""

import ast
import csv
import io
import json
import sys
import types

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, LoraConfig, account, check_gradients, inject, spectrum
from lora_np.adapters.cut import Cut
from lora_np.adapters.ranks import Analysis, ModuleRanks
from lora_np.course.report import Finding, Report
from lora_np.experiments.rank_sweep import SweepResults
from lora_np.tables import FORMATS, Mean, Table, Tabular
from lora_np.train import History
from tests.source import FILES, nodes, tree_of

TABLE = Table(
    {"module": ["q|<proj>", "v"], "rank": [12345, None], "share": [0.25, float("nan")]},
    {"rank": ",", "share": ".1%"},
    title="a & b",
    notes=["one note"],
    missing="-",
)


def test_text_shows_values_in_the_form_of_their_column():
    assert TABLE.text().splitlines() == [
        "a & b",
        "module      rank  share",
        "q|<proj>  12,345  25.0%",
        "v              -   nan%",
        "one note",
    ]
    assert str(TABLE) == TABLE.text()


def test_letters_that_take_two_columns_are_counted_as_two():
    rows = Table({"名字": ["王小明", "Ana"], "n": [1, 20]}).text().splitlines()
    assert rows == ["名字     n", "王小明   1", "Ana     20"]


def test_a_repr_stays_short():
    assert repr(TABLE) == "<Table of 2 rows: module, rank, share>" and len(repr(TABLE)) < 60
    assert repr(Table({})) == "<Table of 0 rows: >"


def test_a_title_and_notes_keep_their_lines_and_send_a_terminal_nothing():
    lines = Table({"a": [1]}, title="one\ntwo", notes=["", "x\x1b[2J"]).text().splitlines()
    assert lines == ["one", "two", "a", "1", "", r"'x\x1b[2J'"]


def test_markdown_escapes_what_would_end_a_cell():
    title, table, note = TABLE.markdown().split("\n\n")
    assert (title, note) == ("a & b", "one note")
    assert table.splitlines()[2] == r"| q\|<proj> | 12,345 | 25.0% |"


def test_html_escapes_and_is_aligned_as_the_text_is():
    said = TABLE._repr_html_()
    assert "<caption>a &amp; b</caption>" in said and "<p>one note</p>" in said
    assert '<th style="text-align: left">module</th><th style="text-align: right">rank</th>' in said
    assert '<td style="text-align: left">q|&lt;proj&gt;</td>' in said
    assert '<td style="text-align: right">12,345</td>' in said
    words = Table({"": [1], "at": ["a"], "note": ["b"]}, {"note": "<"}).html()  # also no numbers
    assert words.count("left") == 4 and '<td style="text-align: right">a</td>' in words
    assert "<proj>" not in said


def test_csv_and_json_hold_the_values_themselves():
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows == [["module", "rank", "share"], ["q|<proj>", "12345", "0.25"], ["v", "", "nan"]]
    assert json.loads(TABLE.json()) == [
        {"module": "q|<proj>", "rank": 12345, "share": 0.25},
        {"module": "v", "rank": None, "share": None},  # JSON has no nan
    ]


def test_a_frame_has_the_columns(monkeypatch):
    pandas = types.SimpleNamespace(DataFrame=lambda columns: columns)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert TABLE.to_frame() == dict(TABLE.columns)


def test_a_format_that_does_not_exist_names_those_that_do():
    assert TABLE.in_format("csv") == TABLE.csv()
    with pytest.raises(ValueError, match="expected one of table, json, csv, markdown"):
        TABLE.in_format("xml")
    assert list(FORMATS) == ["table", "json", "csv", "markdown"]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Table({"a": [1], "b": [1, 2]})


def test_a_table_without_rows_still_has_headings():
    empty = Table({"module": [], "rank": []})
    assert empty.text() == "module  rank" and empty.rows() == [] and json.loads(empty.json()) == []


def results():
    """A result of each kind that shows itself in a notebook."""
    rng = np.random.default_rng(0)
    model = inject(GPT(GPTConfig(9, 4, 1, 2, 8), rng), LoraConfig(r=2), rng)
    yield account(model)
    yield spectrum(np.diag([2.0, 1.0, 1.0, 0.0]))

    def square(x):
        return x * x, x

    yield check_gradients(square, lambda dy, x, need=None: (2 * dy * x,), [np.array([1.0, 2.0])])


# --- bad input -----------------------------------------------------------------------------------

EVIL = "a|b\n<script>alert('x')</script>\x1b[2J"


def in_all_formats(table):
    """Return a table as text, HTML, Markdown, CSV and JSON."""
    return table.text(), table.html(), table.markdown(), table.csv(), table.json()


def test_a_name_with_everything_that_ends_a_cell_stays_one_cell():
    table = Table({"module": [EVIL], EVIL: [1.0]}, title="t", notes=["n"])
    text, page, markdown, content, data = in_all_formats(table)
    assert len(text.splitlines()) == 4 and "\x1b" not in text
    assert "<script>" not in page and page.count("<td") == 2
    head, _, row = markdown.split("\n\n")[1].splitlines()
    assert row.replace(r"\|", "").count("|") == head.replace(r"\|", "").count("|") == 3
    assert next(csv.DictReader(io.StringIO(content, newline="")))["module"] == EVIL
    assert json.loads(data) == [{"module": EVIL, EVIL: 1.0}]


def test_a_table_without_columns_shows_its_title_and_notes_alone():
    text, page, markdown, content, data = in_all_formats(Table({}, title="none", notes=["why"]))
    assert text == "none\nwhy" and markdown == "none\n\nwhy"
    assert "<caption>none</caption>" in page and "<p>why</p>" in page and "<td" not in page
    assert content.strip() == "" and json.loads(data) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.int64(3)])
def test_numbers_of_numpy_and_numbers_that_are_not_finite_are_shown(value):
    text, page, markdown, content, data = in_all_formats(Table({"": ["x"], "n": [value]}))
    shown = str(value)
    assert all(shown in form for form in (text, page, markdown, content))
    assert json.loads(data)[0]["n"] == (3 if value == 3 else None)


def test_a_mean_prints_with_its_deviation_and_is_two_columns_of_a_file():
    table = Table(
        {"loss": [Mean(2.0, 0.5, note=" (1 lost)"), Mean(1.0), "diverged"]}, {"loss": ".2f"}
    )
    assert table.text().splitlines()[1:] == ["2.00 +- 0.5 (1 lost)", "1.00", "diverged"]
    assert table.csv() == "loss,loss +-\n2.0,0.5\n1.0,\ndiverged,\n"
    assert json.loads(table.json())[0] == {"loss": 2.0, "loss +-": 0.5}
    alone = Table({"loss": [Mean(1.0)]})
    assert alone.csv() == "loss\n1.0\n"  # no mean has a deviation: no column of empty cells


def test_a_rank_that_was_cut_is_two_numbers_in_a_file_and_a_column_always_has_a_name():
    assert Table({"pair": ["x"], "": ["differs"]}).csv() == "pair,note\nx,differs\n"
    table = Table({"": ["q", "all"], "r": [Cut(4, 8), None]})
    assert table.text().splitlines()[1] == "q    8 -> 4"
    assert table.csv() == "name,r,r before\nq,4,8\nall,,\n"
    assert json.loads(table.json())[0] == {"name": "q", "r": 4, "r before": 8}
    assert f"{Cut(4)}" == "4" and Table({"r": [Cut(4)]}).csv() == "r\n4\n"


def test_a_share_is_shown_in_percent_and_text_may_stand_at_the_left():
    table = Table(
        {"": ["a"], "verdict": ["ok"], "share": [0.125]}, {"share": ".1f %", "verdict": "<"}
    )
    assert table.text().splitlines() == ["   verdict   share", "a  ok       12.5 %"]


# --- every result of the library -----------------------------------------------------------------


def planted_results():
    """A result of each class with a table."""
    yield from results()
    yield Analysis({"path": "a"}, [ModuleRanks.of_spectrum(EVIL, spectrum(np.diag([2.0, 1.0])))])
    yield Report("lora", (Finding("shape", EVIL),))
    yield History([2.0, float("nan")], [0.1, 0.1], [1.0, 1.0], [(0, 2.5), (2, 1.5)], 10, 0.1)
    runs = [
        {"method": m, "rank": r, "seed": 0, "lr": 0.1} for m, r in (("lora", 1), ("full", None))
    ]
    losses = {f"{part}_loss": 1.0 for part in ("train", "validation", "test")}
    yield SweepResults(
        {
            "settings": {"task": "text", "ranks": [1], "seeds": 1, "full_lr": 0.1},
            "base_validation_loss": 3.0,
            "base_test_loss": 3.0,
            "runs": [{**run, **losses, "trainable_parameters": 8} for run in runs],
        }
    )


def classes_with_a_table():
    """The names of the classes of the library whose method ``table`` returns a Table."""
    for path in FILES:
        for node in nodes(tree_of(path)):
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if getattr(part, "name", "") == "table" and ast.unparse(part.returns) == "Table":
                    yield node.name


def test_every_result_class_of_the_library_is_tried_here():
    tried = {type(result).__name__ for result in planted_results()}
    assert tried == set(classes_with_a_table()) - {"Tabular", "Draw", "Schema"}  # SQL has tables


@pytest.mark.parametrize(
    "result", list(planted_results()), ids=lambda result: type(result).__name__
)
def test_every_result_shows_itself_in_every_form(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))
    table = result.table()
    assert isinstance(result, Tabular) and isinstance(table, Table)
    page = result._repr_html_()
    assert page.startswith(table.html()) and "<script>" not in page
    assert str(result.table().to_frame()) == str(table.data())  # nan differs from itself
    rows = json.loads(table.json())
    assert (
        len(rows) == page.count("<tr>") - 1 == len(list(csv.reader(io.StringIO(table.csv())))) - 1
    )
    assert isinstance(str(result), str) and "\x1b" not in table.text()
