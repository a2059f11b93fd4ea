"""One table in every form: text, HTML, Markdown, CSV, JSON, a DataFrame."""

import csv
import io
import json
import sys
import types

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, LoraConfig, account, check_gradients, inject, spectrum
from lora_np.tables import FORMATS, Table

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


def test_markdown_escapes_what_would_end_a_cell():
    title, table, note = TABLE.markdown().split("\n\n")
    assert (title, note) == ("a & b", "one note")
    assert table.splitlines()[2] == r"| q\|<proj> | 12,345 | 25.0% |"


def test_html_escapes_and_aligns_numbers():
    said = TABLE._repr_html_()
    assert "<caption>a &amp; b</caption>" in said and "<td>q|&lt;proj&gt;</td>" in said
    assert '<td style="text-align: right">12,345</td>' in said and "<p>one note</p>" in said
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


@pytest.mark.parametrize("result", list(results()), ids=lambda result: type(result).__name__)
def test_results_are_tables_in_a_notebook(result):
    said = result._repr_html_()
    cells = result.table().cells()
    assert said.startswith("<table>") and said.count("<tr>") == 1 + len(next(iter(cells.values())))
    assert all(cell in said for column in cells.values() for cell in column)
