"""The docs as a reader meets them: built strictly, then opened in a browser that has no network.

The site is built once, every link in it followed, and every page looked at by headless Chromium
at the width of a desk and of a phone. The checks are themselves checked on pages with a planted
mistake. Needs ``pip install '.[docs]'`` and Chromium.
"""

import re
import zlib
from argparse import _SubParsersAction
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag

import pytest

import lora_np
from lora_np import ops
from lora_np.cli import parser
from tests.docs.pages import DESK, PHONE

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
LOUD = {"error", "warning"}
LEAST_CONTRAST = 4.5  # of text against what is behind it: level AA of the W3C's guidelines, 1.4.3
READ_IN_BOTH_THEMES = (
    "index.html",
    "derivations/lora_linear.html",
    "chapters/04_lora.html",
    "reference/command_line.html",
    "reference/api/lora_np.ops.lora.html",
)

# What is asked of a page once its mathematics has been set.
LOOK = """async () => {
  if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
  const all = (what) => [...document.querySelectorAll(what)];
  return {
    formulas: all('.math').length,
    unset: all('.math').filter((m) => !m.querySelector('mjx-container')).map((m) => m.innerText),
    wrong: all('mjx-merror').map((m) => m.title || m.innerText),
    images: all('img').map((i) => [i.src, i.naturalWidth, i.alt]),
    overhang: Math.max(
      ...all('html, .bd-article-container').map((e) => e.scrollWidth - e.clientWidth)
    ),
  };
}"""

# The text of a page that stands out too little: [contrast, colour, what is behind, text].
PALE = """(least) => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const opaque = (colour) => (numbers(colour)[3] ?? 1) > 0.99;
  const light = (colour) => numbers(colour).slice(0, 3)
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (opaque(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const pale = [];
  for (const element of document.querySelectorAll('article *')) {
    const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    const text = own.map((node) => node.data).join('');
    const style = getComputedStyle(element);
    if (!text.trim() || !element.checkVisibility({visibilityProperty: true, opacityProperty: true}))
      continue;
    const [front, back] = [style.color, behind(element)];
    const [dark, bright] = [light(front), light(back)].sort((a, b) => a - b);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < least) pale.push([contrast.toFixed(2), front, back, text.trim().slice(0, 40)]);
  }
  return pale;
}"""


class Seen(NamedTuple):
    """What the browser saw of one page."""

    complaints: list[str]  # of the console and of scripts
    outside: list[str]  # what was asked of another server, in vain
    formulas: int
    unset: list[str]  # formulas that were left as TeX
    wrong: list[str]  # what MathJax says is no TeX
    images: list[tuple[str, int, str]]  # address, width in pixels (0: not loaded), alternative text
    overhang: int  # by how many CSS pixels the page is wider than a phone


class Anchors(HTMLParser):
    """Collect what a page links to or loads, and the places in it that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Read one element."""
        found = dict(attrs)
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.places |= {found[key] for key in ("id", "name") if found.get(key)}


def pages_of(site: Path) -> list[str]:
    pages = sorted(str(page.relative_to(site)) for page in site.rglob("*.html"))
    templates = ("_static/", "browser/")  # of the theme; not ours
    return [page for page in pages if not page.startswith(templates)]


def dead_links(site: Path) -> list[str]:
    """Return the links to files, and to places in pages, that do not exist."""
    read = {site / p: Anchors((site / p).read_text(encoding="utf-8")) for p in pages_of(site)}
    dead = []
    for page, anchors in read.items():
        for link in anchors.links:
            if link.startswith(("https:", "http:", "mailto:", "data:", "//")):
                continue
            address, place = urldefrag(unquote(link))
            target = (page.parent / address.partition("?")[0]).resolve() if address else page
            places = read[target].places if target in read else {""}
            if not target.is_file() or place not in places:
                dead.append(f"{page.relative_to(site)}: {link}")
    return dead


def look(browser, addresses: list[str], server: str) -> dict[str, Seen]:
    """Open pages one after another, as wide as a phone, and return what was seen of each."""
    tab = browser.new_page(viewport=PHONE)
    said, asked, seen = [], [], {}
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("console", lambda line: said.append(line.text) if line.type in LOUD else None)
    tab.on("request", lambda request: asked.append(request.url))
    for address in addresses:
        tab.goto(server + address)
        found = tab.evaluate(LOOK)
        outside = [url for url in asked if not url.startswith((server, "data:"))]
        seen[address] = Seen(said[:], outside, **found)
        said.clear()
        asked.clear()
    tab.close()
    return seen


def pale_text(browser, address: str, theme: str) -> list:
    """Return the text of a page that is hard to read to a reader whose system is light or dark."""
    tab = browser.new_page(viewport=DESK, color_scheme=theme)
    tab.goto(address)
    assert tab.evaluate("document.documentElement.dataset.theme") == theme
    found = tab.evaluate(PALE, LEAST_CONTRAST)
    tab.close()
    return found


@pytest.fixture(scope="module")
def seen(site, server, browser) -> dict[str, Seen]:
    return look(browser, pages_of(site), server)


def where(seen: dict[str, Seen], what) -> dict:
    """Return what is found on the pages that have any of it."""
    found = {page: what(one) for page, one in seen.items()}
    return {page: things for page, things in found.items() if things}


def poor_images(one: Seen) -> list:
    """Return the pictures that did not load, or that do not say in words what they show."""
    a_word = "[\u4e00-\u9fff]|[^\\W\u4e00-\u9fff]+"  # in Chinese, a character
    return [
        (address, width, alt)
        for address, width, alt in one.images
        if width == 0 or len(re.findall(a_word, alt)) < 3
    ]


def test_every_link_leads_to_a_file_and_to_a_place_in_it(site):
    assert dead_links(site) == []


def test_the_reference_describes_every_public_name_and_every_pair(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    described = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    offered = [getattr(lora_np, name) for name in lora_np.__all__]
    pairs = [vars(ops)[name] for name in dir(ops) if name.endswith(("_forward", "_backward"))]
    things = [thing for thing in offered + pairs if hasattr(thing, "__qualname__")]
    assert len(things) > 60
    assert {f"{thing.__module__}.{thing.__qualname__}" for thing in things} <= described


def test_the_command_lines_page_has_every_command_and_every_option(site):
    page = (site / "reference/command_line.html").read_text(encoding="utf-8")
    (commands,) = [a for a in parser()._actions if isinstance(a, _SubParsersAction)]
    for name, command in commands.choices.items():
        options = [word for action in command._actions for word in action.option_strings]
        places = [f"lora-np-{name}", *(f"lora-np-{name}-{option}" for option in options)]
        assert [place for place in places if f'id="{place}"' not in page] == []


def test_no_page_makes_the_browser_complain(seen):
    assert len(seen) > 100
    assert where(seen, lambda one: one.complaints) == {}


def test_no_page_asks_anything_of_another_server(seen):
    assert where(seen, lambda one: one.outside) == {}


def test_every_formula_is_set_and_none_is_wrong(seen):
    assert sum(one.formulas for one in seen.values()) > 500
    assert where(seen, lambda one: one.unset + one.wrong) == {}


def test_every_page_written_with_mathematics_has_formulas(site, seen):
    written = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    with_tex = [p for p in written if "$$" in (ROOT / "docs" / p).read_text(encoding="utf-8")]
    assert len(with_tex) > 10
    assert [p for p in with_tex if not seen[str(p.with_suffix(".html"))].formulas] == []


def test_every_picture_loads_and_says_what_it_shows(seen):
    assert sum(len(one.images) for one in seen.values()) > 15
    assert where(seen, poor_images) == {}


def test_no_page_is_wider_than_a_phone(seen):
    assert where(seen, lambda one: max(one.overhang, 0)) == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", READ_IN_BOTH_THEMES)
def test_text_stands_out_from_what_is_behind_it(server, browser, page, theme):
    assert pale_text(browser, server + page, theme) == []


def test_the_search_finds_a_word(server, browser):
    tab = browser.new_page()
    tab.goto(server + "search.html?q=Eckart")
    tab.wait_for_selector("#search-results li")
    found = tab.locator("#search-results li a").evaluate_all("all => all.map((a) => a.href)")
    tab.close()
    assert any("derivations/low_rank.html" in link for link in found)


# The checks, checked: each sees the mistake that is planted for it.


@contextmanager
def planted(site: Path, change):
    """Give the name of a page of the site that has been changed; take the page away again."""
    page = site / "planted.html"
    page.write_text(change((site / "index.html").read_text(encoding="utf-8")), encoding="utf-8")
    try:
        yield page.name
    finally:
        page.unlink()


def in_the_article(html: str):
    return lambda page: page.replace("</article>", f"{html}</article>")


@pytest.mark.parametrize("link", ["nowhere.html", "index.html#nowhere", "_static/nowhere.png"])
def test_a_dead_link_is_seen(tmp_path, link):
    (tmp_path / "index.html").write_text('<a href="index.html#here">a</a><p id="here">b</p>')
    assert dead_links(tmp_path) == []
    (tmp_path / "page.html").write_text(f'<a href="{link}">a</a>')
    assert dead_links(tmp_path) == [f"page.html: {link}"]


@pytest.mark.parametrize(
    ("html", "field"),
    [
        ("<script>console.error('no')</script>", "complaints"),
        ("<script>throw new Error('no')</script>", "complaints"),
        ("<link rel='stylesheet' href='_static/nowhere.css'>", "complaints"),
        ("<img src='https://example.org/a.png' alt='a picture'>", "outside"),
        ("<script src='https://example.org/a.js'></script>", "outside"),
        (r"<span class='math notranslate nohighlight'>\(\frac{1}\)</span>", "wrong"),
        ("<span class='math'>x^2</span>", "unset"),
        ("<div style='width: 60rem'>wide</div>", "overhang"),
    ],
)
def test_a_mistake_in_a_page_is_seen(site, server, browser, html, field):
    with planted(site, in_the_article(html)) as page:
        assert getattr(look(browser, [page], server)[page], field)


@pytest.mark.parametrize(
    "html", ["<img src='no.png' alt='a b c'>", "<img src='_images/{}' alt='a b'>"]
)
def test_a_poor_picture_is_seen(site, server, browser, html):
    picture = next((site / "_images").glob("*.png")).name
    with planted(site, in_the_article(html.format(picture))) as page:
        assert len(poor_images(look(browser, [page], server)[page])) == 1


def test_pale_text_is_seen(site, server, browser):
    with planted(site, in_the_article("<p style='color: #bbb; background: #fff'>x</p>")) as page:
        assert [text for *_, text in pale_text(browser, server + page, "light")] == ["x"]
