"""docs/glossary.md: sorted, complete, and each term has its Chinese and a place to look."""

import re
from pathlib import Path

import pytest

import lora_np.rank
from lora_np.rank import Spectrum

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
NOT_A_MEASURE = {"singular_values", "shape", "eps", "of_factors", "as_dict", "table", "plot"}


def rows(text=GLOSSARY):
    """Return (term, Chinese, meaning, where) of every row."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def chinese_words():
    """Return each term's usual Chinese word, which is the first."""
    return {term: chinese.split(" / ")[0] for term, chinese, _, _ in rows()}


def unexplained(text):
    """Return the names of lora_np.rank, and the measures of a Spectrum, that no row has."""
    measures = [name for name in vars(Spectrum) if not name.startswith("_")]
    wanted = {*lora_np.rank.__all__, *(f"Spectrum.{m}" for m in measures if m not in NOT_A_MEASURE)}
    named = {name for *_, where in rows(text) for name in re.findall(r"`([\w.]+)`", where)}
    return sorted(wanted - named)


def test_a_row_has_four_cells_and_none_is_empty():
    assert len(rows()) >= 60
    assert [row for row in rows() if len(row) != 4 or not all(row)] == []


def test_terms_are_sorted_and_none_comes_twice():
    terms = [row[0].casefold() for row in rows()]
    assert terms == sorted(set(terms))


def test_every_term_says_where_to_look():
    assert [term for term, *_, where in rows() if "](" not in where] == []


def test_a_name_that_a_row_gives_stands_in_the_file_that_it_links():
    """`a`, `b` in [file](path): a rename in the code shows here."""
    lost = []
    for *_, where in rows():
        for names, path in re.findall(r"((?:`[\w.]+`,? )+)in \[[^]]*\]\(([^)]*)\)", where):
            source = (ROOT / "docs" / path).read_text(encoding="utf-8")
            found = [name.split(".")[-1] for name in re.findall(r"`([\w.]+)`", names)]
            lost += [n for n in found if not re.search(rf"(def|class) {n}\b", source)]
    assert lost == []


def test_every_public_name_of_the_analyser_has_a_term():
    assert unexplained(GLOSSARY) == []


@pytest.mark.parametrize("name", ["Spectrum.stable_rank", "principal_angles"])
def test_a_name_without_a_term_is_noticed(name):
    assert unexplained(GLOSSARY.replace(f"`{name}`", "")) == [name]
