"""lora_np.data: what is encoded comes back, and no token is lost, repeated or leaked."""

import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import data
from lora_np.data import DataError

CHINESE = "低秩适应：冻结权重，训练两个小矩阵。"


# --- corpora ---------------------------------------------------------------------------------


def test_language_reference_is_english_about_python():
    text = data.language_reference()
    assert len(text) > 100_000
    assert text.index('The "assert" statement') < text.index('The "while" statement')
    assert text.count(" the ") > 1000


def test_language_reference_joins_its_chapters_in_name_order(monkeypatch):
    chapters = SimpleNamespace(topics={"while": "loop", "assert": "claim"})
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", chapters)
    assert data.language_reference() == "claim\n\nloop"


def test_language_reference_missing_is_a_data_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # makes the import fail
    with pytest.raises(DataError, match="read_text") as caught:
        data.language_reference()
    assert "\n" not in str(caught.value)


def test_standard_library_holds_its_modules_in_name_order():
    text = data.standard_library()
    assert len(text) > 1_000_000
    argparse, textwrap = text.index("class ArgumentParser("), text.index("class TextWrapper:")
    assert 0 < argparse < textwrap
    assert data.standard_library() == text


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A folder that passes for the standard library's."""
    monkeypatch.setattr(data.texts.os, "__file__", str(tmp_path / "os.py"))
    return tmp_path


def test_standard_library_skips_what_is_not_utf8_or_not_its_own(library):
    (library / "string.py").write_text("# last\n", encoding="utf-8")
    (library / "abc.py").write_text("# first\n", encoding="utf-8")
    (library / "cgi.py").write_bytes(b"# caf\xe9\n")
    (library / "ast.py").write_bytes(b"# caf\xe9\n")
    (library / "sitecustomize.py").write_text("# of this machine\n", encoding="utf-8")
    assert data.standard_library() == "# first\n\n\n# last\n"


def test_standard_library_is_read_out_of_a_zip_file_where_it_lies_in_one(library, monkeypatch):
    names = {"zipfile.py": "# last", "ast.py": "# first", "mine.py": "x", "ast.txt": "x"}
    with zipfile.ZipFile(library / "library.zip", "w") as file:
        for name, text in {**names, "json/ast.py": "x"}.items():
            file.writestr(name, text)
    monkeypatch.setattr(sys, "path", ["", str(library), str(library / "library.zip")])
    assert data.standard_library() == "# first\n\n# last"
    monkeypatch.setattr(data.texts.os, "__file__", str(library / "no folder" / "os.py"))
    assert data.standard_library() == "# first\n\n# last"
    (library / "os.py").write_text("# a folder comes first")
    monkeypatch.setattr(data.texts.os, "__file__", str(library / "os.py"))
    assert data.standard_library() == "# a folder comes first"


def test_standard_library_without_source_is_a_data_error(library):
    with pytest.raises(DataError, match="read_text"):
        data.standard_library()


def test_read_text_joins_files_in_the_order_given_and_keeps_their_characters(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes(CHINESE.encode("utf-8"))
    two.write_bytes(b"a\r\nb")
    assert data.read_text(one) == CHINESE
    assert data.read_text(str(two), one) == "a\r\nb\n\n" + CHINESE


def test_read_text_names_the_file_and_the_fault_in_one_line(tmp_path):
    bad, empty = tmp_path / "bad.txt", tmp_path / "empty.txt"
    bad.write_bytes(b"good\xff")
    empty.write_bytes(b"")
    faults = {
        tmp_path / "missing.txt": "does not exist",
        tmp_path: "directory",
        bad: "not UTF-8 at byte 4",
        empty: "empty",
    }
    for path, fault in faults.items():
        with pytest.raises(DataError) as caught:
            data.read_text(path)
        message = str(caught.value)
        assert str(path) in message and fault in message and "\n" not in message


def test_read_text_without_a_path_is_a_data_error():
    with pytest.raises(DataError, match="no path"):
        data.read_text()


# --- tokens ----------------------------------------------------------------------------------


@given(st.text())
def test_decode_undoes_encode(text):
    tokens = data.encode(text)
    assert tokens.dtype == np.uint8 and tokens.shape == (len(text.encode("utf-8")),)
    assert data.decode(tokens) == text
    assert data.decode(tokens.tolist()) == text
    assert data.decode(tokens.astype(np.int64)) == text


def test_chinese_takes_three_bytes_a_character_and_comes_back():
    assert data.encode(CHINESE).size == 3 * len(CHINESE)
    assert data.decode(data.encode(CHINESE)) == CHINESE


def test_encode_returns_an_array_of_ones_own():
    tokens = data.encode("abc")
    tokens[0] = ord("x")
    assert data.decode(tokens) == "xbc"


def test_decode_replaces_a_character_cut_in_the_middle():
    assert data.decode(data.encode("a低")[:-1]) == "a\ufffd"


@pytest.mark.parametrize("tokens", [[-1], [256], [1.0], [[1, 2]]])
def test_decode_refuses_what_is_no_row_of_bytes(tokens):
    with pytest.raises(DataError):
        data.decode(tokens)


# --- split -----------------------------------------------------------------------------------

fractions = st.floats(0, 1)


@given(st.integers(0, 500), fractions, fractions)
def test_split_partitions_the_tokens_in_order(n, validation, test):
    if validation + test >= 1:
        with pytest.raises(DataError, match="sum under 1"):
            data.split(np.arange(n), validation, test)
        return
    parts = data.split(np.arange(n), validation, test)
    assert np.array_equal(np.concatenate(parts), np.arange(n))
    assert abs(len(parts.validation) - n * validation) <= 0.5
    assert abs(len(parts.test) - n * test) <= 0.5


def test_split_sizes_are_the_fractions_asked_for():
    assert [len(part) for part in data.split(np.arange(1000))] == [800, 100, 100]
    # 1000 * 0.29 is 290 less a rounding error, which cutting down instead of rounding makes 289
    assert [len(part) for part in data.split(np.arange(1000), 0.29, 0.0)] == [710, 290, 0]


@pytest.mark.parametrize("validation, test", [(-0.1, 0.1), (0.1, -0.1), (float("nan"), 0.1)])
def test_split_refuses_fractions_that_are_none(validation, test):
    with pytest.raises(DataError, match="at least 0"):
        data.split(np.arange(10), validation, test)


# --- batches ---------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 30), st.integers(0, 2**32))
def test_sample_batch_targets_are_the_inputs_shifted_by_one(batch, block, spare, seed):
    tokens = np.arange(block + 1 + spare)  # each token is its own position
    inputs, targets = data.sample_batch(tokens, batch, block, np.random.default_rng(seed))
    assert inputs.shape == targets.shape == (batch, block)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, inputs + 1)
    assert np.array_equal(inputs, inputs[:, :1] + np.arange(block))


def test_sample_batch_starts_at_every_position_that_fits_equally_often():
    tokens = np.arange(10)
    inputs, targets = data.sample_batch(tokens, 7000, 3, np.random.default_rng(0))
    starts, counts = np.unique(inputs[:, 0], return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3, 4, 5, 6]  # the last window ends in token 9
    assert targets.max() == 9
    assert counts.min() > 850 and counts.max() < 1150  # 1000 each, standard deviation 29


def test_sample_batch_is_decided_by_the_generator_alone():
    tokens = data.encode("the same seed draws the same windows" * 9)
    first = data.sample_batch(tokens, 4, 8, np.random.default_rng(3))
    again = data.sample_batch(tokens, 4, 8, np.random.default_rng(3))
    other = data.sample_batch(tokens, 4, 8, np.random.default_rng(4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_batches_do_not_share_memory_with_the_text():
    tokens = np.arange(20, dtype=np.int64)
    drawn = data.sample_batch(tokens, 2, 5, np.random.default_rng(0))
    for array in (*drawn, *data.windows(tokens, 5)):
        array[:] = -1
    assert np.array_equal(tokens, np.arange(20))


# --- windows ---------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(2, 200))
def test_windows_predict_every_token_once_up_to_the_incomplete_window(block, n):
    if n < block + 1:
        with pytest.raises(DataError, match=rf"has {n} tokens.*needs {block + 1}:"):
            data.windows(np.arange(n), block)
        return
    inputs, targets = data.windows(np.arange(n), block)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, inputs + 1)
    assert np.array_equal(targets.ravel(), np.arange(1, targets.size + 1))
    assert 0 <= (n - 1) - targets.size < block  # less than a window was dropped


@given(st.integers(1, 50), st.integers(1, 60))
def test_windows_limit_keeps_distinct_windows_spread_evenly(count, limit):
    block = 3
    tokens = np.arange(count * block + 1)
    every, _ = data.windows(tokens, block)
    inputs, targets = data.windows(tokens, block, limit)
    kept = inputs[:, 0] // block
    assert np.array_equal(inputs, every[kept]) and np.array_equal(targets, inputs + 1)
    assert len(kept) == min(limit, count)
    gaps = np.diff(kept)
    assert gaps.size == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert abs(kept[0] - (count - 1 - kept[-1])) <= 1  # as far from the start as from the end


# --- errors that batches and windows share ---------------------------------------------------


def test_a_text_too_short_says_how_many_tokens_it_has_and_needs():
    with pytest.raises(DataError, match=r"has 8 tokens.*needs 9"):
        data.sample_batch(np.arange(8), 1, 8, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"has 0 tokens.*needs 2"):
        data.windows([], 1)
    assert data.windows(np.arange(9), 8)[0].shape == (1, 8)


def test_sizes_below_one_are_refused_by_name():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="batch_size=0"):
        data.sample_batch(np.arange(8), 0, 2, rng)
    with pytest.raises(DataError, match="block_size=0"):
        data.sample_batch(np.arange(8), 1, 0, rng)
    with pytest.raises(DataError, match="limit=0"):
        data.windows(np.arange(8), 2, limit=0)


def test_text_or_floats_in_place_of_tokens_are_refused():
    with pytest.raises(DataError, match="dtype float64"):
        data.windows(np.ones(8), 2)
    with pytest.raises(DataError, match="shape"):
        data.split("abc")
