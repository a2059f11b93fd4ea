"""What the course in a browser is made of: Pyodide and wheels, fetched, checked and locked."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYODIDE = "314.0.3"
PYODIDE_SHA256 = "d7f7d24f8db486c7eda7280f3b0f7517524c8e43e8b086c6ee6ae8016658b484"
CDN = f"https://cdn.jsdelivr.net/pyodide/v{PYODIDE}/full/"  # Pyodide's own distribution
CORE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")
PYTHONS_LICENCE = "Copyright Python Software Foundation: https://docs.python.org/3/license.html\n"
HOLDER = "open_webui"  # the wheel that holds others
INSIDE = "open_webui/frontend/pyodide/"  # and where
KERNEL = ("ipykernel", "comm", "pyodide-kernel", "piplite", "micropip", "jedi", "ipython")
# Loaded with the kernel; others are loaded where a cell imports them.
START = (*KERNEL, "lora-np", "matplotlib", "ipywidgets")
ROOTS = (*START, "scipy")  # what the site holds, with what they need
# What a package needs there, where its metadata names more: what only a terminal needs, say.
NEEDS = {
    # The library imports pydoc_data itself, where Pyodide looks at the imports of cells alone.
    "lora-np": ("numpy", "tqdm", "threadpoolctl", "pydoc-data"),
    "matplotlib": (  # without pytz, which it does not import, and fonttools, which PDF needs alone
        *("contourpy", "cycler", "kiwisolver", "numpy", "packaging", "pillow"),
        *("pyparsing", "python-dateutil"),
    ),
    "ipykernel": ("pyodide-kernel",),
    "ipywidgets": ("comm", "ipython", "traitlets"),
    "ipython": (
        *("decorator", "ipython-pygments-lexers", "jedi", "matplotlib-inline", "prompt-toolkit"),
        *("pygments", "stack-data", "traitlets"),
    ),
}


class Package:
    """A wheel: its name, version, licence, what it needs and what it is imported as."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            metadata = next(n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            said = Parser().parsestr(wheel.read(metadata).decode())
            named = [n for n in names if re.search(r"\.dist-info/(licenses/)?LICEN[CS]E[^/]*$", n)]
            text = wheel.read(named[0]).decode() if named else ""
        tops = {name.split("/")[0] for name in names}
        self.name, self.version = normal(said["Name"]), said["Version"]
        self.licence = licence_of(said, text)
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


def licence_of(metadata: Any, text: str) -> str:
    """Return the licence that a wheel's metadata names, or the first line of its `text`."""
    classifiers = [
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier", [])
        if line.startswith("License ::")
    ]
    first = (metadata["License"] or "").strip().splitlines()[:1]
    first = first or text.strip().splitlines()[:1]
    return metadata["License-Expression"] or ", ".join(classifiers or first) or "see its files"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------- what is fetched, and checked


def fetch_pyodide(folder: Path) -> None:
    """Fetch Pyodide's core from npm into `folder`, and its lock."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise SystemExit("lite.py: Pyodide needs npm and node, which are not here: install Node.js")
    run([npm, "pack", "--loglevel=error", f"pyodide@{PYODIDE}"], cwd=folder)
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
    """Fetch the wheels of ``pins.txt`` into `folder`, and unpack the one that holds others."""
    wanted = (HERE / "pins.txt").read_text(encoding="utf-8")
    if cdn:
        wanted = re.sub(r"^open-webui.*\\\n.*\n", "", wanted, flags=re.M)
    pins = folder / "pins.txt"
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
    library = Path(sysconfig.get_path("stdlib"))
    texts = [folder / "LICENSE.txt" for folder in (library, library.parent, Path(sys.base_prefix))]
    text = next((t.read_bytes() for t in texts if t.is_file()), PYTHONS_LICENCE.encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("pydoc_data/__init__.py", "")
        wheel.writestr("pydoc_data/topics.py", source.read_bytes())
        wheel.writestr(f"{info}/METADATA", f"{said}License-File: LICENSE.txt\n")
        wheel.writestr(f"{info}/licenses/LICENSE.txt", text)
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
    entries["matplotlib"]["depends"] = [*NEEDS["matplotlib"]]
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
                    f"lite.py: the course needs {name}: add it to notebooks/browser/pins.txt"
                )
            found.add(name)
            wanted += entries[name]["depends"]
    return sorted(found)


def make_pyodide(folder: Path, fetched: Path, packages: list[Package], cdn: bool) -> dict[str, Any]:
    """Fill the folder of Pyodide: the core, the wheels of the closure, the lock and the licences."""
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
        run(["node", str(HERE / "compile.mjs"), str(folder)])
    for package in here:
        lock["packages"][package.name]["sha256"] = sha256(folder / package.path.name)
    (folder / "pyodide-lock.json").write_text(json.dumps(lock), encoding="utf-8")
    (folder / "LICENCES.txt").write_text(licences(here, cdn), encoding="utf-8")
    return lock


def licences(packages: list[Package], cdn: bool) -> str:
    """Return a line for each package that the site holds."""
    said = (
        "What lies here, and its licences. Each wheel holds its licence's text. Modules are compiled "
        "by notebooks/browser/compile.py, which leaves out tests.\n\n"
    )
    core = [] if cdn else [
        f"pyodide {PYODIDE}: MPL-2.0 (its source: https://github.com/pyodide/pyodide)",
        "python, in the files pyodide.asm.wasm and python_stdlib.zip: PSF-2.0",
    ]  # fmt: skip
    core.append("jupyterlite: BSD-3-Clause; its parts: build/third-party-licenses.json of the site")
    lines = [*core, *(f"{p.name} {p.version}: {p.licence}" for p in packages)]
    return said + "\n".join(lines) + "\n"
