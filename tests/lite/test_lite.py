"""The course in a browser: the site is built once, and headless Chromium runs its notebooks.

Chromium has no network but this machine. Needs ``pip install '.[browser]'``, npm and Chromium.
"""

import hashlib
import json
import re
import sys
from time import monotonic
from typing import NamedTuple

import pytest

from tests.browsing import browsing, served
from tests.lite.notebooks import CHAPTERS, MORE, MOST_SECONDS, READY, ROOT, open_notebook, run_all

pytestmark = pytest.mark.lite

LARGEST = 65e6  # bytes of the site
CDN = "https://cdn.jsdelivr.net/pyodide/v314.0.3/full"
KERNEL = "@jupyterlite/pyodide-kernel-extension:kernel"
SAYS = 15  # seconds until a page says that a download failed


class Ran(NamedTuple):
    """What came of a notebook."""

    over: str | list[str]  # "whole", or the tracebacks of cells
    complaints: list[str]
    outside: list[str]  # what was asked of another server
    alert: str


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built by the script as a reader builds it."""
    import subprocess

    out = tmp_path_factory.mktemp("site") / "course"
    build = [sys.executable, str(ROOT / "notebooks/lite.py"), str(out)]
    subprocess.run(build, check=True)
    return out


@pytest.fixture(scope="module")
def server(site):
    """The address at which the site is served."""
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """Chromium without a network."""
    with browsing() as started:
        yield started


def alert_of(tab):
    return tab.evaluate("() => document.querySelector('[role=alert]')?.textContent ?? ''")


def run_notebook(browser, server, name, then=lambda tab: None):
    """Open a notebook, run all its cells, and return what came of it."""
    complaints, asked = [], []

    def listen(tab):
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda line: complaints.append(line.text) if line.type == "error" else 0)
        tab.on("request", lambda request: asked.append(request.url))

    with open_notebook(browser, server, name, listen) as tab:
        over = run_all(tab)
        outside = [url for url in asked if not url.startswith((server, "data:", "blob:"))]
        then(tab)
        return Ran(over, complaints, outside, alert_of(tab))


# --- the notebooks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CHAPTERS, *MORE])
def test_a_notebook_runs_to_its_last_cell_and_asks_nobody(browser, server, name):
    assert run_notebook(browser, server, name) == Ran("whole", [], [], "")


def test_the_sliders_of_chapter_4_are_there(browser, server):
    sliders = []
    run_notebook(
        browser,
        server,
        "04_lora.ipynb",
        then=lambda tab: sliders.append(tab.locator(".widget-slider").count()),
    )
    assert sliders == [3]


def test_the_first_page_leads_to_every_notebook(browser, server, site):
    tab = browser.new_page()
    tab.goto(f"{server}index.html")
    links = tab.evaluate("() => [...document.links].map((a) => new URL(a.href).search)")
    alert = alert_of(tab)
    tab.close()
    paths = sorted(str(path.relative_to(site / "files")) for path in site.glob("files/**/*.ipynb"))
    assert sorted(link.removeprefix("?path=") for link in links) == paths
    assert set(CHAPTERS) <= set(paths) and alert == ""


def test_what_students_get_has_no_solution_and_no_output(site):
    notebooks = list(site.glob("files/**/*.ipynb"))
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        assert "BEGIN SOLUTION" not in text and "HIDDEN TESTS" not in text
        cells = json.loads(text)["cells"]
        assert not any(cell.get("outputs") for cell in cells)
    for path in ROOT.glob("notebooks/assignments/source/*/*.ipynb"):
        given = cells_by_id(site / "files/assignments" / path.name)
        for name, cell in cells_by_id(path).items():
            if cell["metadata"]["nbgrader"]["solution"]:
                released = text_of(given[name])
                kept = not_to_be_seen(text_of(cell)) & set(released.splitlines())
                assert not kept and re.search("YOUR (CODE|ANSWER) HERE", released), (path, name)


def cells_by_id(path):
    return {cell["id"]: cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


def text_of(cell):
    return "".join(cell["source"])


def not_to_be_seen(source):
    """Return the lines of a solution: between its marks, or all, as in a written answer."""
    marked = re.search("### BEGIN SOLUTION\n(.*)### END SOLUTION", source, re.S)
    return {line for line in (marked[1] if marked else source).splitlines() if line.strip()}


def test_a_page_says_that_python_is_starting_until_it_has(browser, server):
    tab = browser.new_page()
    tab.goto(f"{server}notebooks/index.html?path=04_lora.ipynb", wait_until="commit")
    tab.get_by_text("Python is starting").wait_for()
    tab.wait_for_function(READY, timeout=1000 * MOST_SECONDS)
    tab.get_by_text("Python is starting").wait_for(state="detached")
    tab.close()


# --- what goes wrong -----------------------------------------------------------------------------


def said_within(browser, address, prepare):
    """Open a page that cannot work, and return what it says and after how many seconds."""
    context = browser.new_context(service_workers="block")  # whose requests routes do not see
    tab = context.new_page()
    prepare(tab)
    start = monotonic()
    tab.goto(address, wait_until="commit")
    tab.wait_for_selector("[role=alert]", timeout=1000 * SAYS)
    found = alert_of(tab), monotonic() - start
    context.close()
    return found


@pytest.mark.parametrize("how", ["refused", "missing", "silent"])
@pytest.mark.parametrize("file", ["pyodide.asm.wasm", "numpy-"])
def test_a_download_that_fails_is_named_within_15_seconds(browser, server, how, file):
    answers = {
        "refused": lambda route: route.abort(),
        "missing": lambda route: route.fulfill(status=404),
        "silent": lambda route: None,
    }
    said, seconds = said_within(
        browser,
        f"{server}notebooks/index.html?path=04_lora.ipynb",
        lambda tab: tab.route(f"**/{file}*", answers[how]),
    )
    assert said.startswith(file) and "could not be downloaded" in said and seconds < SAYS


@pytest.mark.parametrize("page", ["index.html", "notebooks/index.html?path=04_lora.ipynb"])
def test_a_browser_without_webassembly_is_told_so(browser, server, page):
    said, _ = said_within(
        browser, f"{server}{page}", lambda tab: tab.add_init_script("delete self.WebAssembly")
    )
    assert said.startswith("This browser has no WebAssembly")


# --- what the site is made of --------------------------------------------------------------------


def test_the_lock_lists_the_wheels_that_lie_there_and_no_other(site):
    folder = site / "static/pyodide"
    packages = json.loads((folder / "pyodide-lock.json").read_text(encoding="utf-8"))["packages"]
    assert {p.name for p in folder.glob("*.whl")} == {p["file_name"] for p in packages.values()}
    for package in packages.values():
        content = (folder / package["file_name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == package["sha256"]
        assert set(package["depends"]) <= set(packages)
    said = (folder / "LICENCES.txt").read_text(encoding="utf-8")
    assert all(f"\n{name} {package['version']}: " in said for name, package in packages.items())
    assert "open" not in "".join(packages)  # nothing of the wheel that held the others


def test_the_site_is_small_and_has_no_map_of_sources(site):
    files = [path for path in site.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert not [path for path in files if path.suffix == ".map" or "doit" in path.name]


def test_a_folder_with_other_files_is_not_overwritten(tmp_path):
    import subprocess

    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    build = [sys.executable, str(ROOT / "notebooks/lite.py"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 1 and "holds other files" in done.stderr
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_with_cdn_the_lock_names_what_lies_there_and_what_pyodides_distribution_has(tmp_path):
    import subprocess

    build = [sys.executable, str(ROOT / "notebooks/lite.py"), str(tmp_path / "course"), "--cdn"]
    subprocess.run(build, check=True)
    folder = tmp_path / "course/static/packages"
    packages = json.loads((folder / "pyodide-lock.json").read_text(encoding="utf-8"))["packages"]
    names = {package["file_name"] for package in packages.values()}
    elsewhere = {name for name in names if "://" in name}
    assert {path.name for path in folder.glob("*.whl")} == names - elsewhere
    assert {name.rpartition("/")[0] for name in elsewhere} == {CDN}
    assert not [name for name in names - elsewhere if "wasm32" in name]
    options = json.loads((tmp_path / "course/jupyter-lite.json").read_text(encoding="utf-8"))
    kernel = options["jupyter-config-data"]["litePluginSettings"][KERNEL]
    assert kernel["pyodideUrl"] == f"{CDN}/pyodide.mjs"
    lock = kernel["loadPyodideOptions"]["lockFileURL"]
    assert (tmp_path / "course" / lock).is_file()
