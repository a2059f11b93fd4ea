"""How Sphinx builds these pages: ``python -m sphinx -W -n --keep-going docs build/docs``.

Some pages are not files of this folder. The chapters are copied from ``notebooks/``, with the
outputs that they were committed with, and so are two pages that lie beside this folder. The API's
pages are written here, one a module, and filled from the docstrings; the command line's page is
filled from its parser. Every page also reads well where it lies, as plain Markdown: links to files
outside this folder are turned, as a page is read, into links to what the site has of them.

With ``-t browser``, pages link to the course in a browser, which is expected in the folder
``browser/`` of the site (``python notebooks/lite.py build/docs/browser``). Links to the project's
address appear once ``[project.urls] repository`` is set in pyproject.toml.

Needs ``pip install '.[docs]'``, and no network.
"""

import html
import json
import posixpath
import re
import runpy
import tomllib
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import lora_np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NOT_HERE = runpy.run_path(str(ROOT / "notebooks/browser/not_here.py"))["NOT_HERE"]

project = "lora_np"
author = "The lora_np authors"
project_copyright = author
version = release = lora_np.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # the files of MathJax, so that no page asks another server for them
    "sphinx_argparse_cli",
]
exclude_patterns = ["build", "_build"]

# Markdown and notebooks
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"  # a chapter shows what it printed when it was built; tests run it again
nb_ipywidgets_js = {}  # sliders need a kernel; their script would come from another server

# The reference
autodoc_typehints = "none"  # the docstrings say shapes, which the types do not
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
highlight_language = "none"  # an equation in a docstring is no Python; sessions are found by >>>
nitpicky = True

# Copy buttons: on code that a reader types, without prompts and what follows them
copybutton_selector = "div.highlight:not(.cell_output *) > pre"
copybutton_prompt_text = r">>> ?|\.\.\. ?|\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"

# Looks
html_theme = "pydata_sphinx_theme"
html_title = "lora_np"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["custom.css"]
templates_path = ["_templates"]
html_domain_indices = False  # the reference is a better list of modules
html_show_sourcelink = False
html_sidebars = {"instructors": []}  # no page stands below it
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 7,
    "footer_start": ["copyright"],
    "footer_end": [],
}

# The project's address: the one place that says it, and what is left out while it says nothing
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
repository = PROJECT.get("urls", {}).get("repository", "")
BRANCH = "main"
NOTEBOOKS, CHAPTERS = ROOT / "notebooks", HERE / "chapters"
IN_CHINESE = {"Run in the browser": "在浏览器中运行", "Open in Colab": "在 Colab 中打开"}

NOT_MEANT_FOR_READERS = {"lora_np.__main__", "lora_np.course.nbgrader"}
FOUND = {found.name for found in walk_packages(lora_np.__path__, "lora_np.")}
MODULES = ["lora_np", *sorted(FOUND - NOT_MEANT_FOR_READERS)]
WITH_A_CELL = {"index", "zh/index"}  # pages whose block in <div class="runs-here"> runs in the page
BESIDE = ("CONTRIBUTING.md", "README.zh-CN.md")  # pages that lie beside this folder
ABOUT_THE_REFERENCE = (
    "Made from the docstrings, whose examples are run by the tests. What most people need can be",
    "imported from :py:mod:`lora_np` itself. A file imports only from those above it, so this is",
    "an order to read them in; the mathematics starts at :py:mod:`lora_np.ops.linear`.",
)


def copy_chapters(app, config) -> None:
    """Copy the notebooks, with their outputs and links to run them, to where Sphinx finds them."""
    written = set()
    for path in sorted(NOTEBOOKS.rglob("[0-9][0-9]_*.ipynb")):
        name = path.relative_to(NOTEBOOKS).as_posix()  # such as zh/04_lora.ipynb
        notebook = json.loads(path.read_text(encoding="utf-8"))
        links = ways_to_run(name, config.repository, "browser" in app.tags)
        if links:
            title, *rest = notebook["cells"][0]["source"]
            notebook["cells"][0]["source"] = [title, f"\n<p>{' · '.join(links)}</p>\n", *rest]
        written.add(refreshed(CHAPTERS / name, json.dumps(notebook)))
    for stale in {*CHAPTERS.rglob("[0-9][0-9]_*.ipynb")} - written:
        stale.unlink()


def refreshed(path: Path, text: str) -> Path:
    """Write a file unless it holds this text already: Sphinx reads again what is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


def ways_to_run(notebook: str, repository: str, browser: bool) -> list[str]:
    """Return links, as HTML, to where a reader can run a chapter."""
    links = {}
    if browser and notebook not in NOT_HERE:
        top = "../" * (1 + notebook.count("/"))
        links["Run in the browser"] = f"{top}browser/notebooks/index.html?path={notebook}"
    if repository.startswith("https://github.com/"):
        project = repository.removeprefix("https://github.com/").rstrip("/")
        place = f"https://colab.research.google.com/github/{project}/blob/{BRANCH}/notebooks"
        links["Open in Colab"] = f"{place}/{notebook}"
    names = IN_CHINESE if notebook.startswith("zh/") else {}
    return [f'<a href="{html.escape(link)}">{names.get(n, n)}</a>' for n, link in links.items()]


def link_to_the_project(app, config) -> None:
    """Link every page to the project and to its own source, if the project has an address."""
    if config.repository:
        icon = {"name": "Source", "url": config.repository, "icon": "fa-solid fa-code-branch"}
        config.html_theme_options["icon_links"] = [icon]
        config.html_theme_options["secondary_sidebar_items"] = ["page-toc", "page-source"]


def dress(app, page: str, template, context: dict, tree) -> None:
    """Give a page its address in the project, a title without TeX, and the first page its cell."""
    if app.config.repository and (path := source_of(page)):
        context["source_address"] = f"{app.config.repository.rstrip('/')}/blob/{BRANCH}/{path}"
    # Titles of chapters have mathematics, and stand in the sidebars of these pages.
    if page.startswith(("chapters/", "zh/", "beside/README.zh")):
        context["has_maths_elements"] = True
    context["title"] = without_tex(context.get("title", ""))
    if page in WITH_A_CELL and "browser" in app.tags:
        app.add_js_file("cell.js", type="module")


def without_tex(title: str) -> str:
    r"""Return a title for a browser's tab, which sets no mathematics: \(W_0 x\) becomes W₀ x."""

    def plain(formula: re.Match) -> str:
        tex = formula[1].replace(r"\alpha", "α").replace(r"\,", " ")
        return re.sub(r"_(\d)", lambda digit: chr(ord("₀") + int(digit[1])), tex)

    return re.sub(r'<span class="math[^>]*>\\\((.*?)\\\)</span>', plain, title)


def source_of(page: str) -> str | None:
    """Return which file of the repository a page is made from, if it is one file."""
    folder, _, name = page.rpartition("/")
    if folder == "beside":
        return f"{name}.md"
    if folder == "reference/api":
        path = f"{name.replace('.', '/')}.py"
        return path if (ROOT / path).exists() else f"{path.removesuffix('.py')}/__init__.py"
    written = (
        f"notebooks/{page.removeprefix('chapters/')}.ipynb",
        f"docs/{page}.md",
        f"docs/{page}.rst",
    )
    return next((path for path in written if (ROOT / path).exists()), None)


def write_module_pages(target: Path) -> None:
    """Write one page a module; autodoc fills it from the docstrings."""
    written = {target / "index.rst"}
    for name in MODULES:
        title = f"{name}\n{'=' * len(name)}"
        page = f"{title}\n\n.. automodule:: {name}\n   :members:\n   :ignore-module-all:\n"
        lent = {f"{name}.{other}": home_of(f"{name}.{other}") for other in exported(name)}
        if lent := {shown: home for shown, home in lent.items() if home not in (None, shown)}:
            rows = "".join(f"- :py:obj:`{shown} <{home}>`\n" for shown, home in lent.items())
            page += f"\nImported here, from where they are described:\n\n{rows}"
        written.add(refreshed(target / f"{name}.rst", page))
    for stale in {*target.glob("*.rst")} - written:
        stale.unlink()


def write_the_map(target: Path) -> None:
    """Write the page above them: the house, floor by floor, as CONTRIBUTING.md's table has it."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    page = ["Python", "======", "", *ABOUT_THE_REFERENCE, ""]
    toctree = ["lora_np"]
    for places, holds in re.findall(
        r"^\| ((?:`\w+(?:\.py|/)`,? ?)+) \| (.+) \|$", table, re.MULTILINE
    ):
        homes = [f"lora_np.{place}" for place in re.findall(r"\w+(?=\.py|/)", places)]
        inside = [name for name in MODULES if any(f"{name}.".startswith(f"{h}.") for h in homes)]
        links = ", ".join(f":py:mod:`{name.removeprefix('lora_np.')} <{name}>`" for name in inside)
        page += [f"{links}", f"   {holds}", ""]
        toctree += inside
    page += ["", ".. toctree::", "   :hidden:", "", *(f"   {name}" for name in toctree)]
    refreshed(target / "index.rst", "\n".join(page) + "\n")


def exported(module: str) -> list[str]:
    """Return the names that a module offers to import."""
    return getattr(import_module(module), "__all__", [])


def home_of(name: str) -> str | None:
    """Return where a name such as lora_np.fit is defined (lora_np.train.fit), if it is ours."""
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last, None)
    except (ImportError, ValueError):  # ValueError: a name without a module
        return None
    home = getattr(found, "__module__", None) or ""
    if not home.startswith("lora_np") or not hasattr(found, "__qualname__"):
        return None
    return f"{home}.{found.__qualname__}"


def follow_home(app, env, node, contnode):
    """Resolve a reference to a name by where it is imported from to where it is described."""
    home = home_of(node.get("reftarget", "")) if node.get("refdomain") == "py" else None
    if home in (None, node["reftarget"]):
        return None
    python = env.get_domain("py")
    return python.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], home, node, contnode
    )


def copy_pages(target: Path) -> None:
    """Copy the pages that lie beside this folder; their links are turned as they are read."""
    for name in BESIDE:
        refreshed(target / name, (ROOT / name).read_text(encoding="utf-8"))


def turn_links(app, page: str, source: list[str]) -> None:
    """Turn the links of a Markdown page to files outside this folder into links within the site."""
    beside = page.startswith("beside/")

    def turned(found: re.Match) -> str:
        here = "" if beside else posixpath.dirname(f"docs/{page}")
        path = posixpath.normpath(posixpath.join(here, found[1]))
        return f"]({in_the_site(path) or found[1]}"

    links = r"\]\(([^)#:\s]+)" if beside else r"\]\((\.\./[^)#:\s]+)"
    source[0] = re.sub(links, turned, source[0])


def in_the_site(path: str) -> str | None:
    """Return where the site has this file of the repository; None where it has not."""
    module = path.removesuffix(".py").removesuffix("/__init__").rstrip("/").replace("/", ".")
    if module in MODULES:
        return f"/reference/api/{module}.rst"
    chapter = path.removeprefix("notebooks/")
    if chapter != path and (CHAPTERS / chapter).is_file():
        return f"/chapters/{chapter}"
    if path in BESIDE:
        return f"/beside/{path}"
    if path == "README.md":
        return "/index.md"  # which says the same in short
    return "/" + path.removeprefix("docs/") if path.startswith("docs/") else None


def say_the_language(app, page: str, template, context: dict, tree) -> None:
    """Say in what language a page is, so that it is read aloud and set in the script's forms."""
    if page.startswith(("zh/", "chapters/zh/")) or page.endswith(".zh-CN"):
        context["language"] = "zh-CN"


def skip_field(app, what, name, member, skip, options) -> bool | None:
    """Leave out the fields of a tuple: its signature has them, its docstring says what they are."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app) -> None:
    """Bring in what lies outside this folder, and turn links to it as pages are read."""
    app.add_config_value("repository", "", "html", types=[str])
    copy_pages(HERE / "beside")
    write_module_pages(HERE / "reference" / "api")
    write_the_map(HERE / "reference" / "api")
    app.connect("config-inited", copy_chapters)
    app.connect("config-inited", link_to_the_project)
    app.connect("html-page-context", dress, priority=400)  # before the extension of MathJax
    app.connect("html-page-context", say_the_language)
    app.connect("source-read", turn_links)
    app.connect("missing-reference", follow_home)
    app.connect("autodoc-skip-member", skip_field)
