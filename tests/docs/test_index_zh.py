"""docs/zh/index.md, the first page in Chinese, says what docs/index.md says.

What is compared stands in tests/docs/translations.py.
"""

import importlib.util
import re

import pytest

from tests.docs.pages import ROOT
from tests.docs.test_readme_zh import SPELLED, TERMS
from tests.docs.translations import FENCED, HAN, Side, Words, differences_of_pages, ill_set

PAGE, PAGE_ZH = "docs/index.md", "docs/zh/index.md"
ENGLISH = (ROOT / PAGE).read_text(encoding="utf-8")
CHINESE = (ROOT / PAGE_ZH).read_text(encoding="utf-8")
WORDS = Words({**SPELLED, "eight rivals": "八个 LoRA 的对手"}, TERMS)
TOCTREE = r"^```\{toctree\}\n(.*?)^```$"


def differences(chinese):
    return differences_of_pages(Side(PAGE, ENGLISH), Side(PAGE_ZH, chinese), WORDS)


def test_the_two_first_pages_say_the_same():
    found = differences(CHINESE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("\\alpha / r", "r / \\alpha", "formulas"),
        ("lora-np sweep", "lora-np images", "code blocks"),
        ("(../guides/index.md)", "(../instructors.md)", "links"),
        ("(../rank_vs_loss.png)", "(../dylora.png)", "links"),
        ("大约用两分钟", "大约用 2 分钟", "num"),
        ("秩为 4 的改变量。", "秩为 8 的改变量。", "numerals"),
        ("B - 0.02 * dB", "B - 0.01 * dB", "code blocks"),
        ("改一改 `r`", "改一改 `A`", "inline code"),
        ('<div class="doors">', '<div class="door">', "tags"),
        ("## 在一个单元格里", "### 在一个单元格里", "headings"),
        ("# lora_np\n", "## lora_np\n", "headings"),
        ("- **", "**", "lists"),
        ("适配器", "插件", "terms"),
        ("自动评分，并指出", "自动评分，但不指出", "denials"),
        ("每一章都先请你预测，再运行。", "", "directions"),
    ],
)
def test_a_page_that_drifted_is_noticed(old, new, message):
    assert old in CHINESE
    found = differences(CHINESE.replace(old, new))
    assert found and all(message in line for line in found)


def test_each_first_page_links_to_the_other_under_its_title():
    assert ENGLISH.split("\n")[:3] == ["# lora_np", "", "[中文](zh/index.md)"]
    assert CHINESE.split("\n")[:3] == ["# lora_np", "", "[English](../index.md)"]


def test_the_chinese_page_leads_to_every_chapter_in_chinese():
    (pages,) = re.findall(TOCTREE, CHINESE, re.M | re.S)
    chapters = sorted((ROOT / "notebooks" / "zh").glob("[0-9][0-9]_*.ipynb"))
    assert re.findall(r"chapters/zh/(\w+)", pages) == [p.stem for p in chapters]


def test_the_chinese_is_set_as_chinese():
    assert ill_set(CHINESE) == []
    pictures = re.findall(r"!\[([^\]]*)\]", FENCED.sub("", CHINESE))
    assert pictures and all(re.search(HAN, text) for text in pictures)


@pytest.mark.parametrize(
    "page, language",
    [
        ("index", "en"),
        ("chapters/04_lora", "en"),
        ("zh/index", "zh-CN"),
        ("chapters/zh/04_lora", "zh-CN"),
        ("beside/README.zh-CN", "zh-CN"),
    ],
)
def test_a_page_of_the_site_says_its_language(page, language):
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    context = {"language": "en"}
    conf.say_the_language(None, page, None, context, None)
    assert context["language"] == language
