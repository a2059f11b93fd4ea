"""Names: what answers for them; and paths, which they are not."""

import os

import numpy as np
import pytest

from lora_np.serve.alias import alias_of
from lora_np.serve.errors import Refusal
from lora_np.serve.names import Names, folder_of


def names(adapters=("sql", "shops"), aliases=()):
    rng = np.random.default_rng(0)
    return Names("tiny", adapters, [alias_of(text) for text in aliases], rng)


def test_a_name_is_the_base_an_adapter_or_an_alias():
    known = names(aliases=["ab=sql:1,tiny:1"])
    assert (known.pick("tiny", None), known.pick("sql", None)) == (None, "sql")
    assert {known.pick("ab", str(i)) for i in range(50)} == {"sql", None}
    assert known.all() == ["tiny", "sql", "shops", "ab"]


def test_an_unknown_name_is_404_with_the_nearest_ones():
    with pytest.raises(Refusal, match="did you mean shops") as problem:
        names().pick("shop", None)
    assert (problem.value.status, problem.value.code) == (404, "model_not_found")
    many = names([f"customer{i}" for i in range(10_000)])
    for name in ("x", "y" * 1_000_000, "\x1b\ud800"):
        with pytest.raises(Refusal) as problem:
            many.pick(name, None)
        assert len(problem.value.message) < 700  # not ten thousand names


@pytest.mark.parametrize(
    "adapters, aliases, message",
    [
        (["tiny"], [], "an adapter has the model's own name 'tiny'"),
        (["two\nlines"], [], r"the name 'two\\nlines' has characters that cannot be printed"),
        (["\udcff"], [], r"the name '\\udcff' has characters that cannot be printed"),
        (["sql"], ["\udcff=sql:1"], r"the name '\\udcff' has characters"),
        (["sql"], ["sql=sql:1"], "alias 'sql': the name is taken"),
        (["sql"], ["tiny=sql:1"], "alias 'tiny': the name is taken"),
        (["sql"], ["x=sql:1", "x=sql:1"], "alias 'x': the name is taken"),
        (["sql"], ["x=sq:1"], "alias 'x': there is no adapter 'sq': did you mean sql"),
        (["sql"], ["x=sql:1", "y=x:1"], "alias 'y': there is no adapter 'x'"),
    ],
)
def test_names_are_different_and_aliases_name_adapters(adapters, aliases, message):
    with pytest.raises(ValueError, match=message):
        names(adapters, aliases)


def test_an_adapter_that_an_alias_needs_stays():
    known = names(aliases=["ab=sql:1"])
    known.expect_unused("shops")
    with pytest.raises(Refusal, match="the alias 'ab' needs the adapter 'sql'"):
        known.expect_unused("sql")


def test_a_new_adapter_has_a_new_name():
    known = names(aliases=["ab=sql:1"])
    known.expect_new("other")
    for name, message in [("sql", "loaded already"), ("ab", "an alias"), ("tiny", "the base")]:
        with pytest.raises(Refusal, match=message):
            known.expect_new(name)


@pytest.fixture
def root(tmp_path):
    """Folders: adapters/sql, a link in it to a sibling and one out of it, and a secret outside."""
    root = tmp_path / "adapters"
    for folder in (root / "sql", root / "deep" / "inner", tmp_path / "secret"):
        folder.mkdir(parents=True)
    (root / "file").write_text("")
    (root / "away").symlink_to(tmp_path / "secret")
    (root / "other").symlink_to(root / "sql")
    (root / "circle").symlink_to(root / "circle")
    return root


def test_a_folder_is_given_by_its_name_or_its_whole_path(root, monkeypatch):
    for path in ("sql", "./sql", "sql/", "other", str(root / "sql")):
        assert folder_of(root, "sql", path) == root / "sql"
    monkeypatch.chdir(root.parent)
    link = root.parent / "link"
    link.symlink_to(root)  # the operator may name the folder by a link
    assert folder_of(link, "sql", "sql") == link / "sql"


@pytest.mark.parametrize(
    "name, path",
    [
        ("secret", "../secret"), ("secret", "sql/../../secret"), ("sql", "deep/../sql"),
        ("other", "other"), ("away", "away"),
        ("inner", "deep/inner"), ("sql", "deep"), ("sql", ""), ("sql", "."), ("sql", "/"),
        ("passwd", "/etc/passwd"), ("sql", "sql\0"), ("sql", "x" * 5000), ("sql", "\ud800"),
    ],
)  # fmt: skip
def test_other_paths_are_refused(root, name, path):
    with pytest.raises(Refusal, match="is not the folder") as problem:
        folder_of(root, name, path)
    assert (problem.value.status, problem.value.param) == (400, "lora_path")


def test_the_whole_path_of_the_secret_is_refused(root):
    with pytest.raises(Refusal, match="is not the folder"):
        folder_of(root, "secret", str(root.parent / "secret"))


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../secret", "sql/", "a\0", "x" * 600])
def test_other_names_are_refused(root, name):
    with pytest.raises(Refusal, match="is not the name of a folder") as problem:
        folder_of(root, name, name)
    assert problem.value.param == "lora_name"


@pytest.mark.parametrize("name", ["missing", "file", "circle"])
def test_a_folder_that_is_not_there_is_404(root, name):
    with pytest.raises(Refusal, match="there is no folder") as problem:
        folder_of(root, name, name)
    assert problem.value.status == 404 and os.sep not in problem.value.message
