"""The first page, its cell, and what every page offers: code to copy, titles with mathematics."""

import re
import shutil
from html import unescape

import pytest

from tests.docs.conftest import build
from tests.docs.pages import DESK, PHONE, ROOT, bodies

INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
WITH_CODE = (
    *("index.html", "chapters/04_lora.html", "guides/first_run.html"),
    *("reference/command_line.html", "reference/api/lora_np.ops.lora.html"),
)
LEAST = 14  # CSS pixels of code

# The smallest size of code that is shown, in CSS pixels.
SMALLEST = """() => Math.min(...
  [...document.querySelectorAll('article :is(pre, code, .sig, textarea)')]
  .filter((e) => e.checkVisibility() && (e.value ?? e.innerText).trim())
  .map((e) => parseFloat(getComputedStyle(e).fontSize)))"""


def test_the_example_of_the_first_page_shows_what_it_says(capsys):
    from matplotlib import pyplot

    (example,) = bodies(INDEX, "python")
    pyplot.switch_backend("agg")
    exec(compile(example.replace("plt.show()", ""), "index.md", "exec"), {"__name__": "index"})
    found = re.findall(r"r = (\d): .* loss (\S+)", capsys.readouterr().out)
    losses = {int(r): float(loss) for r, loss in found}
    curves = [line.get_label() for line in pyplot.gca().lines]
    pyplot.close("all")
    assert losses[1] > losses[2] > 1 and losses[4] < 1e-12 and losses[8] < 1e-12
    assert curves == ["r = 1", "r = 2", "r = 4", "r = 8"]


@pytest.mark.docs
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("page", WITH_CODE)
def test_code_is_large_enough_to_read(server, browser, page, size):
    tab = browser.new_page(viewport=size)
    tab.goto(server + page)
    smallest = tab.evaluate(SMALLEST)
    tab.add_style_tag(content="article pre { font-size: 13px !important }")
    assert smallest >= LEAST > tab.evaluate(SMALLEST)  # what is too small is seen
    tab.close()


@pytest.mark.docs
@pytest.mark.parametrize(
    ("page", "shown", "copied"),
    [
        ("guides/first_run.html", "$ lora-np", r"lora-np"),
        (
            "reference/api/lora_np.ops.lora.html",
            ">>> import numpy",
            r"import numpy as np\nfrom lora_np",
        ),
        ("chapters/04_lora.html", "import matplotlib", r"import matplotlib.pyplot as plt\n"),
    ],
)
def test_code_is_copied_without_prompts_and_without_what_it_printed(
    server, browser, page, shown, copied
):
    desk = browser.new_context(viewport=DESK)
    desk.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = desk.new_page()
    tab.goto(server + page)
    block = tab.locator("div.highlight", has_text=shown).first
    block.hover()
    block.locator("button.copybtn").click()
    text = tab.evaluate("navigator.clipboard.readText()")
    assert re.match(copied, text)
    assert not re.search(r"^(>>>|\$|\(array)", text, re.M)
    desk.close()


@pytest.mark.docs
def test_only_code_has_a_button_to_copy_it(server, browser):
    tab = browser.new_page(viewport=DESK)
    tab.goto(server + "chapters/04_lora.html")
    assert tab.locator(".cell_input button.copybtn").count() > 5
    assert tab.locator(".cell_output pre").count() > 5
    assert tab.locator(".cell_output button.copybtn").count() == 0
    tab.close()


@pytest.mark.docs
@pytest.mark.parametrize("page", ["chapters/03_low_rank.html", "chapters/index.html"])
def test_mathematics_in_a_title_is_set_wherever_the_title_stands(server, browser, page):
    tab = browser.new_page(viewport=DESK)
    tab.goto(server + page)
    tab.evaluate("() => window.MathJax.startup.promise")
    links = tab.locator("a[href$='04_lora.html']:not([href*='zh/'])")
    assert links.count() == 2  # in the sidebar, and in the list or as the next page
    for link in links.all():
        assert link.locator("mjx-container").count() == 1
        assert "\\" not in link.inner_text()
    tab.close()


@pytest.mark.docs
def test_the_name_of_a_browsers_tab_has_no_tex(site):
    titles = [
        unescape(re.search("<title>(.*?)</title>", page.read_text(encoding="utf-8"), re.S)[1])
        for page in site.rglob("*.html")
        if "_static" not in page.parts and "browser" not in page.parts
    ]
    assert [title for title in titles if "\\" in title] == []
    assert [t for t in titles if t.startswith("4.")] == ["4. W₀ x + s B A x — lora_np"] * 2
    assert "9. α, r and the learning rate — lora_np" in titles


@pytest.mark.docs
@pytest.mark.parametrize(("size", "abreast"), [(DESK, 3), (PHONE, 1)], ids=["desk", "phone"])
def test_the_first_page_has_three_doors(server, browser, size, abreast):
    tab = browser.new_page(viewport=size)
    tab.goto(server + "index.html")
    tops = tab.locator(".doors > ul > li").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().top)"
    )
    assert len(tops) == 3 and tops.count(tops[0]) == abreast
    tab.close()


# --- the cell; Pyodide itself is replaced by pyodide_stub.mjs ------------------------------------


@pytest.fixture
def tab(server, browser):
    """Open the first page; its cell gives a download up after a second, not after twelve."""
    opened = browser.new_page(viewport=DESK)
    worker = (ROOT / "docs" / "_static" / "cell_worker.js").read_text(encoding="utf-8")
    assert int(re.search(r"PATIENCE = (\d+);", worker)[1]) < 15  # seconds
    hasty = re.sub(r"PATIENCE = \d+;", "PATIENCE = 1;", worker)
    script = {"body": hasty, "content_type": "text/javascript"}
    opened.route("**/cell_worker.js", lambda route: route.fulfill(**script))
    opened.goto(server + "index.html")
    yield opened
    opened.close()


def run(tab, code):
    """Run code in the cell; return what the page says, and the output, once it rests again."""
    tab.fill(".runs-here textarea", code)
    tab.click(".runs-here button")
    tab.wait_for_function("document.querySelector('.runs-here button').innerText === 'Run'")
    return tab.inner_text(".runs-here [role=status]"), tab.inner_text(".cell-said")


@pytest.mark.docs
def test_the_cell_holds_the_example_and_shows_what_it_prints_its_value_and_its_figure(tab):
    (example,) = bodies(INDEX, "python")
    assert tab.input_value(".runs-here textarea") == example.rstrip()
    said, output = run(tab, "text")
    assert said.startswith("Done.") and output.split() == ["printed", "lora-np,matplotlib"]
    assert tab.locator(".cell-said img").count() == 1
    _, output = run(tab, "html")
    assert tab.inner_text(".cell-said b") == "bold" and "lora-np" not in output


@pytest.mark.docs
def test_the_cell_of_the_chinese_page_speaks_chinese(tab, server):
    tab.goto(server + "zh/index.html")
    tab.click(".runs-here button")
    tab.wait_for_selector(".cell-said img")
    assert tab.inner_text(".runs-here button") == "运行"
    assert tab.inner_text(".runs-here [role=status]").startswith("运行完毕")


@pytest.mark.docs
def test_the_cell_shows_an_error_from_the_readers_own_line_on(tab):
    said, output = run(tab, "raise")
    assert said.startswith("Done.")
    assert output.split("\n")[0].strip() == 'File "<exec>", line 1'


@pytest.mark.docs
def test_the_cell_can_be_stopped_and_runs_again(tab):
    tab.fill(".runs-here textarea", "loop")
    tab.click(".runs-here button")
    tab.wait_for_function("document.querySelector('[role=status]').innerText === 'Running ...'")
    tab.click(".runs-here button")
    assert tab.inner_text(".runs-here [role=status]") == "Stopped."
    assert run(tab, "text")[0].startswith("Done.")


@pytest.mark.docs
@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("absent", "Python could not be started: 404: absent.whl. Reload the page to try again."),
        ("fatal", "There is not enough memory. Reload the page to try again."),
    ],
)
def test_the_cell_says_in_a_sentence_what_went_wrong(tab, code, sentence):
    assert run(tab, code)[0] == sentence


@pytest.mark.docs
def test_the_cell_says_that_a_download_is_blocked(tab):
    tab.route("**/pyodide.mjs", lambda route: None)  # it is never answered
    assert run(tab, "text")[0].startswith("The download of Python has come to a halt.")


@pytest.mark.docs
def test_the_cell_says_that_a_file_is_missing(tab):
    tab.route("**/pyodide.mjs", lambda route: route.fulfill(status=404))
    assert run(tab, "text")[0].startswith("Python could not be started: ")


@pytest.mark.docs
def test_the_cell_says_that_a_browser_has_no_webassembly(tab):
    tab.add_init_script("delete window.WebAssembly")
    tab.reload()
    assert "no WebAssembly" in run(tab, "text")[0]


# --- links to elsewhere: each has one setting ----------------------------------------------------


def links(page):
    return re.findall(r'href="([^"]+)"', page.read_text(encoding="utf-8"))


@pytest.mark.docs
def test_every_chapter_but_13_has_a_link_to_run_it_in_the_browser(site):
    chapters = sorted(site.glob("chapters/**/[0-9]*.html"))
    assert len(chapters) >= 18
    for page in chapters:
        name = page.relative_to(site / "chapters").with_suffix(".ipynb").as_posix()
        top = "../" * (1 + name.count("/"))
        link = f"{top}browser/notebooks/index.html?path={name}"
        assert (link in links(page)) == (not name.startswith("13_"))  # it needs tokenizers


@pytest.mark.docs
def test_no_page_links_to_an_address_of_the_project_while_none_is_set(site):
    for page in site.rglob("*.html"):
        assert not [link for link in links(page) if "colab" in link or "/blob/main/" in link]


@pytest.mark.docs
def test_the_links_follow_the_one_setting_and_the_tag(site, tmp_path):
    project = "https://github.com/somebody/some-name"  # made up
    shutil.copytree(site.parent / "doctrees", tmp_path / "doctrees")  # only what changed is read
    (tmp_path / "html").mkdir()
    shutil.copy(site / "searchindex.js", tmp_path / "html")
    pages = [f"docs/{page}" for page in ("index.md", "chapters/04_lora.ipynb", "glossary.md")]
    other = build(tmp_path, "-D", f"repository={project}", pages=pages)
    chapter = links(other / "chapters/04_lora.html")
    colab = project.replace("https://github.com", "https://colab.research.google.com/github")
    assert f"{colab}/blob/main/notebooks/04_lora.ipynb" in chapter
    assert f"{project}/blob/main/notebooks/04_lora.ipynb" in chapter
    assert f"{project}/blob/main/docs/glossary.md" in links(other / "glossary.html")
    assert project in links(other / "index.html")
    assert "cell.js" not in (other / "index.html").read_text(encoding="utf-8")
    assert not [link for link in chapter if "browser/" in link]
