"""README.zh-CN.md says in Chinese what README.md says: the same commands, figures and links.

What is compared stands in tests/docs/translations.py.
"""

import re
from pathlib import Path

import pytest

from tests.docs.translations import (
    HAN,
    ONLY_HERE,
    Side,
    Words,
    code,
    differences_of_pages,
    ill_set,
    length,
    sections,
)

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")

# Numbers in words: English, Chinese. A new one in README.md fails until it stands here.
SPELLED = {
    "two idle cores": "两个空闲核心",
    "two cores": "两个核心",
    "two minutes": "两分钟",
    "two commands": "两条命令",
    "six commands": "六条命令",
    "six assignments": "六份",
    "fifteen chapters": "十五章",
}

# Core words: as README.md writes them, and the English term of the glossary.
TERMS = {
    r"gradients?": "gradient",
    r"rank": "rank",
    r"loss(es)?": "loss",
    r"full fine-tuning": "full fine-tuning",
    r"pretrained": "pretraining",
    r"learning rate": "learning rate",
    r"optimizers": "optimizer",
    r"central differences": "central difference",
    r"complex step": "complex step",
    r"intrinsic dimension": "intrinsic dimension",
    r"adapters?": "adapter",
    r"batch(es)?": "batch",
    r"merges?|merging": "merge",
    r"low rank": "low rank",
    r"transformer": "transformer",
}


def differences(english, chinese):
    pages = Side("README.md", english), Side("README.zh-CN.md", chinese)
    return differences_of_pages(*pages, Words(SPELLED, TERMS))


def test_the_two_readmes_say_the_same():
    assert len(sections(ENGLISH)) >= 6
    found = differences(ENGLISH, CHINESE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("120,576 个", "120,567 个", "numerals"),
        ("2026-11-26 画", "2026-11-27 画", "numerals"),
        ("| 0.74 |", "| 0.58 |", "numerals"),
        ("六份", "五份", "numbers in words"),
        ("lora-np resize my_adapter", "lora-np shrink my_adapter", "inline code"),
        ("由 `check_method` 检验", "由它检验", "inline code"),
        ("LoraConfig(r=8", "LoraConfig(r=4", "code blocks"),
        ("steps=20, lr=1e-2", "steps=20, lr=1e-3", "code blocks"),
        ("```\npip install . && lora-np sweep\n```\n", "", "code blocks"),
        ("(docs/findings.md)", "(docs/results.md)", "links"),
        ("chapters/index.md", "guides/index.md", "links"),
        ("![秩与损失](docs/rank_vs_loss.png)", "秩与损失", "links"),
        ("## 有多快？\n", "", "headings"),
        ("## 读代码", "### 读代码", "headings"),
        ("优化器", "调度器", "terms"),
        ("全量微调的 58 %", "全量微调的 95 %", "numerals"),
        ("请用 `python3 -m pip` 代替 `pip`", "请用 `pip` 代替 `python3 -m pip`", "inline code"),
        ("低于 1 表示 lora_np 更快", "低于 1 表示 lora_np 更慢", "directions"),
        ("不需要 GPU", "需要 GPU", "denials"),
    ],
)
def test_a_page_that_drifted_is_noticed(old, new, message):
    assert old in CHINESE
    found = differences(ENGLISH, CHINESE.replace(old, new))
    assert found and all(message in line for line in found)


def test_a_number_that_readme_md_newly_spells_out_is_noticed():
    (line,) = differences(ENGLISH.replace("\n- DoRA", "\n- Seven: DoRA"), CHINESE)
    assert "'In Python'" in line and "seven: add it to SPELLED" in line


def test_a_paragraph_much_shorter_or_longer_than_the_english_is_noticed():
    assert length("word " * 20, "字" * 32) == []
    assert length("word " * 20, "字" * 15) and length("word " * 20, "字" * 50)
    assert length("word " * 10, "字" * 50) == []  # too short to tell


def test_only_the_chinese_names_the_chapters_in_chinese_and_it_names_all():
    (only,) = ONLY_HERE.findall(CHINESE)
    found = re.findall(r"\[第 (\d+) 章\]\((notebooks/zh/\w+\.ipynb)\)", only)
    chapters = sorted((ROOT / "notebooks" / "zh").glob("[0-9][0-9]_*.ipynb"))
    assert found == [(str(int(p.name[:2])), p.relative_to(ROOT).as_posix()) for p in chapters]
    assert not ONLY_HERE.search(ENGLISH)


def test_the_comments_of_code_may_be_translated_and_nothing_else():
    def read(block):
        return code(Side("README.md", f"```{block}\n```\n"))

    assert read("python\nf(x)  # twice") == read("python\nf(x)  # 两次")
    assert read("python\nf(x)") != read("python\nf(y)")
    assert read("\n# 1") != read("\n# 2")  # what was printed


def test_each_readme_links_to_the_other_under_its_title():
    assert ENGLISH.split("\n")[:3] == ["# lora_np", "", "[中文](README.zh-CN.md)"]
    assert CHINESE.split("\n")[:3] == ["# lora_np", "", "[English](README.md)"]


def test_every_picture_has_its_text_in_chinese():
    pictures = re.findall(r"!\[([^\]]*)\]", CHINESE)
    assert pictures and all(re.search(HAN, text) for text in pictures)


def test_the_chinese_is_set_as_chinese():
    assert ill_set(CHINESE) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("一行\n又一行", "a line that ends"),
        ("两个token", "between scripts"),
        ("秩$r$", "between scripts"),
        ("秩, 损失", "full-width"),
        ("秩 $r$ 的界(下界)", "full-width"),
        ("**预测。**秩是多少", "emphasis"),
        ("**预测*：秩是多少", "emphasis"),
    ],
)
def test_what_is_not_set_as_chinese_is_noticed(text, message):
    (line,) = ill_set(text)
    assert message in line
