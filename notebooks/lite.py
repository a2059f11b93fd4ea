"""Build the course for a browser, as a static site: ``python notebooks/lite.py OUT [--cdn]``.

The site runs the chapters and the assignments where they are read. JupyterLite shows the notebooks,
and Pyodide, CPython compiled to WebAssembly, runs them. To read it, serve it::

    python -m http.server --directory OUT

Everything comes from package registries, pinned: Pyodide's core from npm, and what it loads from the
wheels that ``browser.txt`` names with their hashes. Each wheel that Pyodide's own lock lists must
have the hash that stands there. With ``--cdn`` Pyodide and those wheels are left out: the browser of
the reader fetches them from Pyodide's own distribution.

Needs ``pip install '.[browser]'``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import nbformat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYODIDE = "314.0.3"
PYODIDE_SHA256 = "d7f7d24f8db486c7eda7280f3b0f7517524c8e43e8b086c6ee6ae8016658b484"
CDN = f"https://cdn.jsdelivr.net/pyodide/v{PYODIDE}/full/"  # Pyodide's own distribution
CORE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")
HOLDER, INSIDE = (
    "open_webui",
    "open_webui/frontend/pyodide/",
)  # the wheel that holds others, and where
KERNEL = ("ipykernel", "comm", "pyodide-kernel", "piplite", "micropip", "jedi", "ipython")
START = (
    *KERNEL,
    "lora-np",
    "matplotlib",
)  # loaded with the kernel; others where a cell imports them
ROOTS = (*START, "scipy", "ipywidgets", "pydoc-data")  # what the site holds, with what they need
# What a package needs there, where its metadata names more: parts that only a terminal or a server has.
NEEDS = {
    "lora-np": ("numpy", "tqdm", "threadpoolctl"),
    "ipykernel": ("pyodide-kernel",),
    "ipywidgets": ("comm", "ipython", "traitlets"),
    "ipython": (
        *("decorator", "ipython-pygments-lexers", "jedi", "matplotlib-inline", "prompt-toolkit"),
        *("pygments", "stack-data", "traitlets"),
    ),
}
KERNELSPEC = {"name": "python", "display_name": "Python (Pyodide)", "language": "python"}
STUB = "# YOUR CODE HERE\nraise NotImplementedError"
PLUGIN = "@jupyterlite/pyodide-kernel-extension:kernel"


class Package:
    """A wheel: its name, version, licence, what it needs and what it is imported as."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            metadata = next(n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            said = Parser().parsestr(wheel.read(metadata).decode())
        tops = {name.split("/")[0] for name in names}
        self.name, self.version = normal(said["Name"]), said["Version"]
        self.licence = licence_of(said)
        self.imports = sorted(
            top.removesuffix(".py") for top in tops if not re.search(r"\.(dist-info|data)$", top)
        )
        wanted = [line for line in said.get_all("Requires-Dist", []) if ";" not in line]
        needs = [re.split(r"[^\w.-]", line.strip())[0] for line in wanted]
        self.needs = [*NEEDS.get(self.name, map(normal, needs))]

    def entry(self) -> dict[str, Any]:
        """Return what Pyodide's lock says about this wheel."""
        return {
            "name": self.name,
            "version": self.version,
            "file_name": self.path.name,
            "install_dir": "site",
            "sha256": sha256(self.path),
            "package_type": "package",
            "imports": self.imports,
            "depends": self.needs,
            "unvendored_tests": False,
        }


def normal(name: str) -> str:
    """Return a package's name in the form that compares equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(metadata: Any) -> str:
    """Return the licence that a wheel's metadata names."""
    classifiers = [
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier", [])
        if line.startswith("License ::")
    ]
    first = (metadata["License"] or "").strip().splitlines()[:1]
    return metadata["License-Expression"] or ", ".join(classifiers or first) or "see its files"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------- what is fetched, and checked


def fetch_pyodide(folder: Path) -> None:
    """Fetch Pyodide's core from npm into `folder`, and its lock."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("lite.py: Pyodide's core comes from npm, which is not here: install npm")
    run([npm, "pack", "--silent", f"pyodide@{PYODIDE}"], cwd=folder)
    archive = folder / f"pyodide-{PYODIDE}.tgz"
    if sha256(archive) != PYODIDE_SHA256:
        raise SystemExit(
            f"lite.py: {archive.name} has the SHA-256 {sha256(archive)}, not the pinned"
        )
    with tarfile.open(archive) as tar:
        for name in (*CORE, "pyodide-lock.json"):
            member = tar.extractfile(f"package/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())


def fetch_wheels(folder: Path, cdn: bool) -> list[Package]:
    """Fetch the wheels of ``browser.txt`` into `folder`, and unpack the one that holds others."""
    wanted = (HERE / "browser.txt").read_text(encoding="utf-8")
    if cdn:
        wanted = re.sub(r"^open-webui.*\\\n.*\n", "", wanted, flags=re.M)
    pins = folder / "browser.txt"
    pins.write_text(wanted, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    only = ["--only-binary=:all:", "--python-version", "3.12", "--no-deps", "--require-hashes"]
    run([*pip, *only, "--dest", str(folder), "--requirement", str(pins)])
    for holder in folder.glob(f"{HOLDER}-*.whl"):
        with zipfile.ZipFile(holder) as archive:
            for name in archive.namelist():
                if name.startswith(INSIDE) and name.endswith(".whl"):
                    (folder / Path(name).name).write_bytes(archive.read(name))
        holder.unlink()
    return [Package(path) for path in sorted(folder.glob("*.whl"))]


def own_wheels(folder: Path) -> list[Package]:
    """Make the wheels of this library, of the language reference, and find those of the kernel."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
    reference_wheel(folder)
    shared = Path(sys.prefix, "share/jupyter/labextensions/@jupyterlite/pyodide-kernel-extension")
    for path in shared.glob("static/pypi/*.whl"):
        shutil.copy(path, folder)
    return [Package(path) for path in sorted(folder.glob("*.whl"))]


def reference_wheel(folder: Path) -> Path:
    """Make a wheel of ``pydoc_data``, which Pyodide does not have: the text that chapters read."""
    import pydoc_data.topics

    source = Path(pydoc_data.topics.__file__)
    version = ".".join(map(str, sys.version_info[:3]))
    path = folder / f"pydoc_data-{version}-py3-none-any.whl"
    info = f"pydoc_data-{version}.dist-info"
    said = f"Metadata-Version: 2.4\nName: pydoc-data\nVersion: {version}\nLicense-Expression: PSF-2.0\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("pydoc_data/__init__.py", "")
        wheel.writestr("pydoc_data/topics.py", source.read_bytes())
        wheel.writestr(f"{info}/METADATA", said)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def run(command: list[str], cwd: Path | None = None) -> None:
    """Run a command; stop with its errors if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"lite.py: {' '.join(command[:4])} failed:\n{done.stdout}{done.stderr}")


# --------------------------------------------------------------------- Pyodide's folder


def lock_of(theirs: dict[str, Any], packages: list[Package], cdn: bool) -> dict[str, Any]:
    """Return the lock of the site: what ``ROOTS`` need, and nothing else.

    Parameters
    ----------
    theirs : dict
        Pyodide's own lock.
    packages : list of Package
        The wheels at hand. One that Pyodide's lock has with the same file must be that file.
    cdn : bool
        Whether Pyodide's wheels are fetched from its own distribution.
    """
    entries = dict(theirs["packages"])
    if cdn:
        entries = {k: {**v, "file_name": CDN + v["file_name"]} for k, v in entries.items()}
    for package in packages:
        known = theirs["packages"].get(package.name)
        if known and known["file_name"] == package.path.name and not cdn:
            if known["sha256"] == sha256(package.path):
                continue  # their entry stands
            if re.search(r"wasm32", package.path.name):
                raise SystemExit(f"lite.py: {package.path.name} is not the file that Pyodide lists")
        entries[package.name] = package.entry()
    return {**theirs, "packages": {name: entries[name] for name in closure(entries)}}


def closure(entries: dict[str, Any], roots: tuple[str, ...] = ROOTS) -> list[str]:
    """Return the names of `roots` and of all that they need, in the order of the alphabet."""
    found: set[str] = set()
    wanted = list(roots)
    while wanted:
        name = normal(wanted.pop())
        if name not in found:
            if name not in entries:
                raise SystemExit(
                    f"lite.py: the course needs {name}: add it to notebooks/browser.txt"
                )
            found.add(name)
            wanted += entries[name]["depends"]
    return sorted(found)


def make_pyodide(folder: Path, fetched: Path, packages: list[Package], cdn: bool) -> dict[str, Any]:
    """Fill ``static/pyodide``: the core, the wheels of the closure, the lock and the licences."""
    theirs = json.loads((fetched / "pyodide-lock.json").read_text(encoding="utf-8"))
    lock = lock_of(theirs, packages, cdn)
    folder.mkdir(parents=True)
    files = {package.path.name: package for package in packages}
    here = [files[e["file_name"]] for e in lock["packages"].values() if e["file_name"] in files]
    for package in here:
        shutil.copy(package.path, folder)
    if not cdn:
        for name in (*CORE, "pyodide-lock.json"):
            shutil.copy(fetched / name, folder)
        run(["node", str(HERE / "lite_compile.mjs"), str(folder)])
    for package in here:
        lock["packages"][package.name]["sha256"] = sha256(folder / package.path.name)
    (folder / "pyodide-lock.json").write_text(json.dumps(lock), encoding="utf-8")
    (folder / "LICENCES.txt").write_text(licences(here, cdn), encoding="utf-8")
    return lock


def licences(packages: list[Package], cdn: bool) -> str:
    """Return a line for each package that the site holds."""
    said = (
        "What lies here, and its licences. Each wheel holds its licence's text. Modules are compiled "
        "by notebooks/lite_compile.py, which leaves out tests.\n\n"
    )
    core = [] if cdn else [f"pyodide {PYODIDE}: MPL-2.0"]
    lines = [*core, *(f"{p.name} {p.version}: {p.licence}" for p in packages)]
    return said + "\n".join(lines) + "\n"


# --------------------------------------------------------------------- the notebooks


def make_contents(folder: Path) -> list[tuple[str, str]]:
    """Write the chapters, without outputs, and the assignments, without solutions, into `folder`.

    Returns the path of each notebook and its title.
    """
    sources = [*sorted(HERE.glob("[0-9][0-9]_*.ipynb")), *sorted(HERE.glob("zh/*.ipynb"))]
    found = [(path, path.relative_to(HERE)) for path in sources]
    tasks = sorted(HERE.glob("assignments/source/*/*.ipynb"))
    found += [(path, Path("assignments", path.name)) for path in tasks]
    titles = []
    for source, name in found:
        notebook = for_students(nbformat.read(source, as_version=4))
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
        titles.append((name.as_posix(), title_of(notebook)))
    for helper in ("step_through.py", "small_llama.py"):
        shutil.copy(HERE / helper, folder)
    return titles


def for_students(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Clear outputs, solutions and hidden tests, and name the kernel that the site has."""
    notebook.metadata["kernelspec"] = KERNELSPEC  # another name would open a dialog
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.source = without("SOLUTION", STUB, cell.source)
        cell.source = without("HIDDEN TESTS", "", cell.source)
    return notebook


def without(what: str, instead: str, source: str) -> str:
    """Replace what stands between nbgrader's marks BEGIN and END, at the marks' own indentation."""

    def stub(found: re.Match[str]) -> str:
        return "\n".join(f"{found[1]}{line}" for line in instead.splitlines()) + "\n"

    marks = rf"^([ \t]*)### BEGIN {what}\n.*?^[ \t]*### END {what}[ \t]*(?:\n|\Z)"
    return re.sub(marks, stub, source, flags=re.M | re.S).rstrip("\n")


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return the first heading of a notebook, as plain text."""
    heading = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)
    return heading[1] if heading else "without a title"


# --------------------------------------------------------------------- the site


def settings(cdn: bool) -> dict[str, Any]:
    """Return JupyterLite's configuration."""
    options: dict[str, Any] = {"packages": list(START)}
    kernel: dict[str, Any] = {"disablePyPIFallback": True, "loadPyodideOptions": options}
    if cdn:
        kernel["pyodideUrl"] = f"{CDN}pyodide.mjs"
        options["lockFileURL"] = "./static/pyodide/pyodide-lock.json"
    data = {
        "appName": "lora_np",
        "exposeAppInBrowser": True,
        "litePluginSettings": {PLUGIN: kernel},
    }
    return {"jupyter-lite-schema-version": 0, "jupyter-config-data": data}


GROUPS = {"": "Chapters", "zh": "中文", "assignments": "Assignments (not for grades here)"}


def make_page(out: Path, titles: list[tuple[str, str]], lock: dict[str, Any]) -> None:
    """Write the first page, and let the page of a notebook say what keeps it from running."""
    lists = []
    for folder, heading in GROUPS.items():
        rows = [row(path, title) for path, title in titles if path.rpartition("/")[0] == folder]
        if rows:
            lists += [f"<h2>{heading}</h2>", "<ul>", *rows, "</ul>"]
    files = [
        place if "://" in place else f"../static/pyodide/{place}" for place in first_files(lock)
    ]
    local = [out / "notebooks" / file for file in files if "://" not in file]
    megabytes = round(sum(path.stat().st_size for path in local) / 1e6)
    page = Template((HERE / "lite.html").read_text(encoding="utf-8"))
    said = page.substitute(lists="\n".join(lists), first=megabytes)
    (out / "index.html").write_text(said, encoding="utf-8")
    shutil.copy(HERE / "lite.js", out / "watch.js")
    shown = out / "notebooks/index.html"
    watch = f"<script>window.LORA_NP_FILES = {json.dumps(files)};</script>"
    head = f'<head>{watch}<script src="../watch.js"></script>'
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
    """Build the site in `out`, which must not exist or must be an earlier build."""
    if out.exists() and not (out / "jupyter-lite.json").exists() and any(out.iterdir()):
        raise SystemExit(f"lite.py: {out} holds other files: name a new folder")
    with tempfile.TemporaryDirectory() as work:
        fetched, own, lite = (Path(work, name) for name in ("fetched", "own", "lite"))
        for folder in (fetched, own, lite):
            folder.mkdir()
        fetch_pyodide(fetched)
        packages = [*fetch_wheels(fetched, cdn), *own_wheels(own)]
        lock = make_pyodide(lite / "static/pyodide", fetched, packages, cdn)
        titles = make_contents(lite / "content")
        (lite / "jupyter-lite.json").write_text(json.dumps(settings(cdn)), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        # A fresh folder: a task database that JupyterLite left there makes its kernel wait for ever.
        lite_build = [sys.executable, "-m", "jupyterlite_core", "build", "--no-sourcemaps"]
        folders = [
            "--lite-dir",
            str(lite),
            "--contents",
            "content",
            "--output-dir",
            str(out.resolve()),
        ]
        run([*lite_build, "--apps", "notebooks", "--no-unused-shared-packages", *folders], cwd=lite)
        for old in out.glob("build/fa-*"):
            if old.suffix in (".svg", ".eot", ".ttf"):  # browsers that run Pyodide read .woff2
                old.unlink()
        make_page(out, titles, lock)


def main() -> None:
    """Build the site that the command line names, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument(
        "--cdn", action="store_true",
        help="the reader's browser fetches Pyodide from its own distribution (not tried by us)",
    )  # fmt: skip
    arguments = parser.parse_args()
    build(arguments.out, arguments.cdn)
    sizes = [path.stat().st_size for path in arguments.out.rglob("*") if path.is_file()]
    print(f"{len(sizes)} files, {sum(sizes) / 1e6:.0f} MB in {arguments.out}/. To read it:")
    print(f"python -m http.server --directory {arguments.out}")


if __name__ == "__main__":
    main()
