"""Build the course for a browser, as a static site: ``python notebooks/lite.py OUT [--cdn]``.

The site runs the chapters and the assignments where they are read. JupyterLite shows the notebooks,
and Pyodide, CPython compiled to WebAssembly, runs them. To read it, serve it::

    python -m http.server --directory OUT

Everything comes from package registries, pinned: Pyodide's core from npm, and what it loads from the
wheels that ``browser/pins.txt`` names with their hashes. Each wheel that Pyodide's own lock lists must
have the hash that stands there. With ``--cdn`` Pyodide and those wheels are left out: the browser of
the reader fetches them from Pyodide's own distribution.

Needs ``pip install '.[browser]'``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import jupytext
import nbformat
from browser.not_here import NOT_HERE
from browser.packages import (
    CDN,
    CORE,
    START,
    closure,
    fetch_pyodide,
    fetch_wheels,
    make_pyodide,
    own_wheels,
    run,
)
from tiny import make as make_tiny
from tiny import make_image_base

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KERNELSPEC = {"name": "python", "display_name": "Python (Pyodide)", "language": "python"}
STUB = "# YOUR CODE HERE\nraise NotImplementedError"
TRAIN = ("06_", "07_", "08_", "09_", "11_", "12_", "14_", "15_")  # chapters
WRITTEN = "YOUR ANSWER HERE"  # both stubs are nbgrader's
PLACE = {False: "static/pyodide", True: "static/packages"}  # by --cdn; JupyterLite takes pyodide
PLUGIN = "@jupyterlite/pyodide-kernel-extension:kernel"


# --------------------------------------------------------------------- the notebooks


def make_contents(folder: Path) -> list[tuple[str, str]]:
    """Write the chapters, without outputs, and the assignments, without solutions, into `folder`.

    The models that notebooks read are trained. Returns the path of each notebook and its title.
    """
    sources = [*sorted(HERE.glob("[0-9][0-9]_*.ipynb")), *sorted(HERE.glob("zh/*.ipynb"))]
    found = [(path, path.relative_to(HERE)) for path in sources if path.name not in NOT_HERE]
    tasks = sorted(HERE.glob("assignments/source/*/*.ipynb"))
    found += [(path, Path("assignments", path.name)) for path in tasks]
    notebooks = [(name, nbformat.read(path, as_version=4)) for path, name in found]
    notebooks.append((Path("write_here.ipynb"), jupytext.read(HERE / "write_here.py")))
    titles = []
    for name, notebook in notebooks:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with_blas(for_students(notebook), name.name)
        nbformat.write(notebook, target)
        titles.append((name.as_posix(), title_of(notebook)))
    for helper in ("step_through.py", "small_llama.py", "zh/step_through.py"):
        shutil.copy(HERE / helper, folder / helper)
    make_tiny(folder / "tiny")
    make_image_base(folder / "image_base")
    return titles


def for_students(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Clear outputs, solutions and hidden tests, and name the kernel that the site has.

    A solution without marks, as that of a written answer, is the whole cell: nbgrader does the same.
    """
    notebook.metadata = {"kernelspec": KERNELSPEC}  # another name would open a dialog
    for cell in notebook.cells:
        stub = WRITTEN
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count, stub = [], None, STUB
        given = cell.source
        cell.source = without("SOLUTION", stub, given)
        if cell.source == given.rstrip("\n") and cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = stub
        cell.source = without("HIDDEN TESTS", "", cell.source)
        if mark := re.search(r"^[ \t]*### (BEGIN|END) .*$", cell.source, re.M):
            raise SystemExit(f"lite.py: a mark of nbgrader without its pair: {mark[0].strip()}")
    return notebook


def with_blas(notebook: nbformat.NotebookNode, name: str) -> None:
    """Let the first cell of a chapter that trains load SciPy, whose BLAS the library then uses."""
    if name.startswith(TRAIN):
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source += "\nimport scipy.linalg  # NumPy has no BLAS in a browser; SciPy has"


def without(what: str, instead: str, source: str) -> str:
    """Replace what stands between nbgrader's marks BEGIN and END, at the marks' own indentation."""

    def stub(found: re.Match[str]) -> str:
        return "\n".join(f"{found[1]}{line}" for line in instead.splitlines()) + "\n"

    marks = rf"^([ \t]*)### BEGIN {what}\n.*?^[ \t]*### END {what}[ \t]*(?:\n|\Z)"
    return re.sub(marks, stub, source, flags=re.M | re.S).rstrip("\n")


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return the first heading of a notebook, as plain text: $W_0 x$ becomes W₀ x."""

    def plain(formula: re.Match[str]) -> str:
        tex = formula[1].replace(r"\alpha", "α").replace(r"\,", "")
        return re.sub(r"_(\d)", lambda digit: chr(ord("₀") + int(digit[1])), tex)

    heading = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)
    return re.sub(r"\$(.+?)\$", plain, heading[1]) if heading else "without a title"


# --------------------------------------------------------------------- the site


def settings(cdn: bool) -> dict[str, Any]:
    """Return JupyterLite's configuration."""
    options: dict[str, Any] = {"packages": list(START)}
    kernel: dict[str, Any] = {"disablePyPIFallback": True, "loadPyodideOptions": options}
    if cdn:
        kernel["pyodideUrl"] = f"{CDN}pyodide.mjs"
        options["lockFileURL"] = f"./{PLACE[cdn]}/pyodide-lock.json"
    data = {
        "appName": "lora_np",
        "exposeAppInBrowser": True,
        "litePluginSettings": {PLUGIN: kernel},
    }
    return {"jupyter-lite-schema-version": 0, "jupyter-config-data": data}


GROUPS = {"": "Chapters", "zh": "中文", "assignments": "Assignments (not for grades here)"}


def make_page(out: Path, titles: list[tuple[str, str]], lock: dict[str, Any], place: str) -> None:
    """Write the first page, and let the page of a notebook say what keeps it from running."""
    lists = []
    for folder, heading in GROUPS.items():
        rows = [row(path, title) for path, title in titles if path.rpartition("/")[0] == folder]
        if rows:
            lists += [f"<h2>{heading}</h2>", "<ul>", *rows, "</ul>"]
    numbers = [f"{name[:2]} ({escape(why)})" for name, why in NOT_HERE.items()]
    lists.append(f"<p>Not here: chapter {', '.join(numbers)}.</p>")
    files = [file if "://" in file else f"../{place}/{file}" for file in first_files(lock)]
    local = [out / "notebooks" / file for file in files if "://" not in file]
    megabytes = round(sum(path.stat().st_size for path in local) / 1e6)
    page = Template((HERE / "browser/page.html").read_text(encoding="utf-8"))
    said = page.substitute(lists="\n".join(lists), first=megabytes)
    (out / "index.html").write_text(said, encoding="utf-8")
    shutil.copy(HERE / "browser/watch.js", out / "watch.js")
    shown = out / "notebooks/index.html"
    shutil.copy(ROOT / "docs/_static/favicon.svg", out)
    icon = '<link rel="icon" href="../favicon.svg">'
    watch = f"<script>window.LORA_NP_FILES = {json.dumps(files)};</script>"
    head = f'<head>{icon}{watch}<script src="../watch.js"></script>'
    html = shown.read_text(encoding="utf-8")
    shown.write_text(html.replace("<head>", head, 1), encoding="utf-8")


def row(path: str, title: str) -> str:
    """Return the line of a notebook on the first page."""
    return f'<li><a href="notebooks/index.html?path={escape(path)}">{escape(title)}</a></li>'


def first_files(lock: dict[str, Any]) -> list[str]:
    """Return the files that a notebook needs before its first cell runs."""
    entries = lock["packages"]
    wheels = [entries[name]["file_name"] for name in closure(entries, START)]
    base = CDN if any("://" in name for name in wheels) else ""
    return [*(f"{base}{name}" for name in CORE), "pyodide-lock.json", *wheels]


def build(out: Path, cdn: bool = False) -> None:
    """Build the site in `out`, which must not exist or must be an earlier build.

    An earlier build is replaced at the end: one that is interrupted leaves it as it was.
    """
    out = out.resolve()
    if out.is_file():
        raise SystemExit(f"lite.py: {out} is a file: name a new folder")
    if out.exists() and not (out / "jupyter-lite.json").exists() and any(out.iterdir()):
        raise SystemExit(f"lite.py: {out} holds other files: name a new folder")
    with tempfile.TemporaryDirectory() as work:
        fetched, own, lite, made = (Path(work, name) for name in ("fetched", "own", "lite", "made"))
        for folder in (fetched, own, lite):
            folder.mkdir()
        fetch_pyodide(fetched)
        packages = [*fetch_wheels(fetched, cdn), *own_wheels(own)]
        lock = make_pyodide(lite / PLACE[cdn], fetched, packages, cdn)
        titles = make_contents(lite / "content")
        (lite / "jupyter-lite.json").write_text(json.dumps(settings(cdn)), encoding="utf-8")
        # A fresh folder: a task database that JupyterLite left there makes its kernel wait for ever.
        lite_build = [sys.executable, "-m", "jupyterlite_core", "build", "--no-sourcemaps"]
        folders = ["--lite-dir", str(lite), "--contents", "content", "--output-dir", str(made)]
        run([*lite_build, "--apps", "notebooks", "--no-unused-shared-packages", *folders], cwd=lite)
        for old in made.glob("build/fa-*"):
            if old.suffix in (".svg", ".eot", ".ttf"):  # browsers that run Pyodide read .woff2
                old.unlink()
        if cdn:  # JupyterLite has copied static/pyodide, and nothing else
            shutil.copytree(lite / PLACE[cdn], made / PLACE[cdn])
        make_page(made, titles, lock, PLACE[cdn])
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)


def main() -> None:
    """Build the site that the command line names, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument(
        "--cdn", action="store_true",
        help="the reader's browser fetches Pyodide from its own distribution",
    )  # fmt: skip
    arguments = parser.parse_args()
    build(arguments.out, arguments.cdn)
    sizes = [path.stat().st_size for path in arguments.out.rglob("*") if path.is_file()]
    print(f"{len(sizes)} files, {sum(sizes) / 1e6:.0f} MB in {arguments.out}/. To read it:")
    print(f"python -m http.server --directory {arguments.out}")


if __name__ == "__main__":
    main()
