"""README.zh-CN.md says in Chinese what README.md says: the same commands, figures and links.

What is said in words cannot be compared. What can: headings, code, inline code, numerals, links,
the numbers that English spells out, and the words of docs/glossary.md.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.test_glossary import chinese_words

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
OTHER_LANGUAGE = {"README.md": "README.zh-CN.md", "README.zh-CN.md": "README.md"}

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
HAN = r"[\u4e00-\u9fff]"

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
NUMBER_WORDS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|twenty|hundred|thousand)\b"
)

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


def sections(text):
    """Return (level, title, body) of every section, the part above all headings under the first."""
    hidden = FENCED.sub(lambda m: re.sub(r"^#", "\0", m[0], flags=re.M), text)  # comments
    parts = re.split(r"^(#+) (.*)\n", hidden, flags=re.M)[1:]
    return [
        (len(level), title, body.replace("\0", "#"))
        for level, title, body in zip(parts[::3], parts[1::3], parts[2::3])
    ]


def code(body):
    """Return the fenced blocks; in Python and shell without comments, which may be translated."""
    return [
        (
            language,
            re.sub(r" *#.*$", "", text, flags=re.M) if language in ("python", "sh") else text,
        )
        for language, text in FENCED.findall(body)
    ]


def prose(body):
    """Return what is neither a fenced block nor a link's target, marks left out."""
    return re.sub(r"\]\([^)]*\)|<!--.*?-->", " ", FENCED.sub("", body))


def links(body):
    targets = re.findall(r"\]\(([^)#\s]+)\)", FENCED.sub("", body))
    return [sorted([t, OTHER_LANGUAGE[t]]) if t in OTHER_LANGUAGE else t for t in targets]


def inline_code(body):
    return Counter(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(body)))


def numerals(body):
    """Return how often each numeral stands in the prose, dates whole."""
    numeral = r"\d{4}-\d\d-\d\d|\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
    return Counter(re.findall(numeral, prose(body)))


def spelled(english, chinese):
    """Return what is spelled out in English, and is not so in Chinese or not in the list above."""
    text, missing = " ".join(prose(english).lower().split()), []
    for words, translated in SPELLED.items():
        found = len(re.findall(rf"\b{words}\b", text))
        if prose(chinese).count(translated) < found:
            missing.append(f"{words} = {translated}")
        text = re.sub(rf"\b{words}\b", "", text)
    return missing + [f"{word}: add it to SPELLED" for word in NUMBER_WORDS.findall(text)]


def terms(english, chinese):
    """Return the core words of the English section that the Chinese one has not."""
    words = chinese_words()
    text = re.sub(r"`[^`]*`", "", " ".join(prose(english).split()))  # `merge` is a command
    return [
        f"{term} = {words[term]}"
        for pattern, term in TERMS.items()
        if re.search(rf"\b{pattern}\b", text, re.I) and words[term] not in prose(chinese)
    ]


def differences(english, chinese):
    """Return one line for each thing that two READMEs do not share, naming the section."""
    ours, theirs = sections(english), sections(chinese)
    levels = [[level for level, _, _ in side] for side in (ours, theirs)]
    if levels[0] != levels[1]:
        titles = [[title for _, title, _ in side] for side in (ours, theirs)]
        return [f"headings differ: {titles[0]} and {titles[1]}"]
    found = []
    for (_, title, body), (_, title_zh, body_zh) in zip(ours, theirs):
        where = f"section {title!r} / {title_zh!r}"
        for what, read in {"code blocks": code, "links": links}.items():
            here, there = read(body), read(body_zh)
            only, only_zh = [x for x in here if x not in there], [x for x in there if x not in here]
            if here != there:  # with nothing on either side, the order or the count differs
                found.append(f"{where}: {what}: only in English {only}, only in Chinese {only_zh}")
        for what, count in {"inline code": inline_code, "numerals": numerals}.items():
            only, only_zh = count(body) - count(body_zh), count(body_zh) - count(body)
            if only or only_zh:
                found.append(f"{where}: {what}: only in English {only}, only in Chinese {only_zh}")
        with_titles = f"{title}\n{body}", f"{title_zh}\n{body_zh}"
        for what, check in {"numbers in words": spelled, "terms": terms}.items():
            if missing := check(*with_titles):
                found.append(f"{where}: {what}: missing {missing}")
    return found


def test_the_two_readmes_say_the_same():
    assert len(sections(ENGLISH)) >= 6
    found = differences(ENGLISH, CHINESE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("120,576 个", "120,567 个", "numerals"),
        ("2026-11-25 画", "2026-11-26 画", "numerals"),
        ("| 0.74 |", "| 0.58 |", "numerals"),
        ("六份", "五份", "numbers in words"),
        ("lora-np resize my_adapter", "lora-np shrink my_adapter", "inline code"),
        ("由 `check_method` 检验", "由它检验", "inline code"),
        ("LoraConfig(r=8", "LoraConfig(r=4", "code blocks"),
        ("steps=20, lr=1e-2", "steps=20, lr=1e-3", "code blocks"),
        ("```\npip install . && lora-np sweep\n```\n", "", "code blocks"),
        ("(docs/findings.md)", "(docs/results.md)", "links"),
        ("chapters/index.md", "guides/index.md", "links"),
        ("![秩与损失](docs/rank_vs_loss.png)\n", "", "links"),
        ("## 有多快？\n", "", "headings"),
        ("## 读代码", "### 读代码", "headings"),
        ("优化器", "调度器", "terms"),
    ],
)
def test_a_page_that_drifted_is_noticed(old, new, message):
    assert old in CHINESE
    found = differences(ENGLISH, CHINESE.replace(old, new))
    assert found and all(message in line for line in found)


def test_a_number_that_readme_md_newly_spells_out_is_noticed():
    (line,) = differences(
        ENGLISH.replace("## In Python\n", "## In Python\n\nSeven ways.\n"), CHINESE
    )
    assert "'In Python'" in line and "seven: add it to SPELLED" in line


def test_the_comments_of_code_may_be_translated_and_nothing_else():
    assert code("```python\nf(x)  # twice\n```\n") == code("```python\nf(x)  # 两次\n```\n")
    assert code("```python\nf(x)\n```\n") != code("```python\nf(y)\n```\n")
    assert code("```\n# 1\n```\n") != code("```\n# 2\n```\n")  # what was printed


def test_each_readme_links_to_the_other_under_its_title():
    assert ENGLISH.split("\n")[:3] == ["# lora_np", "", "[中文](README.zh-CN.md)"]
    assert CHINESE.split("\n")[:3] == ["# lora_np", "", "[English](README.md)"]


def test_every_picture_has_its_text_in_chinese():
    pictures = re.findall(r"!\[([^\]]*)\]", CHINESE)
    assert pictures and all(re.search(HAN, text) for text in pictures)


def test_the_chinese_is_set_as_chinese():
    text = FENCED.sub("", CHINESE)
    assert not re.findall(rf"{HAN}\n{HAN}", text)  # a page would show a space there
    assert not re.findall(rf"{HAN}[A-Za-z0-9`]|[A-Za-z0-9`]{HAN}", text)  # a space between scripts
    assert not re.findall(rf"{HAN}\s*[,;:?!]|{HAN}\(|{HAN}\.\s", text)  # 全角标点
