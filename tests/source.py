"""The package's own source, as the tests read it: its files, and each file's tree, parsed once."""

import ast
from functools import cache
from pathlib import Path

import pytest

import lora_np

PACKAGE = Path(lora_np.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(tree):
    """All nodes of a tree, which one check after another goes through."""
    return tuple(ast.walk(tree))
