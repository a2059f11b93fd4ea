"""The site that all tests of the docs look at, built once, and their browser."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.browsing import browsing, served
from tests.docs.pages import ROOT

HERE = Path(__file__).parent


def build(folder: Path, *options: str, pages: Sequence[str] = ()) -> Path:
    """Build the docs (all, if no page is named) as CONTRIBUTING.md says; return where they are."""
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", *options]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), "docs", str(folder / "html"), *pages],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """Build the docs from scratch, with a small stand-in for the course that lies beside them."""
    html = build(tmp_path_factory.mktemp("site"), "-E", "-t", "browser")
    for name in ("notebooks/index.html", "static/pyodide/pyodide.mjs"):
        target = html / "browser" / name
        target.parent.mkdir(parents=True)
        target.write_text((HERE / "pyodide_stub.mjs").read_text(encoding="utf-8"), encoding="utf-8")
    return html


@pytest.fixture(scope="session")
def server(site):
    with served(site) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    with browsing() as started:
        yield started
