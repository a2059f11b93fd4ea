"""What a page and its Chinese translation have to share.

What is said in words cannot be compared. What can: headings, lists, code, inline code, formulas,
numerals, links, the numbers that English spells out, and the words of docs/glossary.md.
"""

import posixpath
import re
from collections import Counter
from typing import NamedTuple

from tests.docs.test_glossary import chinese_words

HAN = "[\u4e00-\u9fff]"
FENCED = re.compile(r"^```([\w{}-]*)(?: .*)?\n(.*?)^```$", re.M | re.S)
FORMULA = re.compile(r"\$\$.+?\$\$|\$(?:[^$\n]|\n(?!\n))+\$", re.S)
WITH_COMMENTS = ("python", "sh")
TRANSLATED_IN_FORMULAS = {r"\text{即}": r"\text{or}"}
NUMBER_WORDS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|twenty|hundred|thousand)\b"
)


class Words(NamedTuple):
    """Words of a page: those that have one translation in it."""

    spelled: dict[str, str]  # numbers in words: English, Chinese; a new one fails until it is here
    terms: dict[str, str]  # a pattern of English words, and the term of the glossary


class Side(NamedTuple):
    """One of the two versions: where it lies in the repository, and a piece of its text."""

    page: str
    body: str


def sections(text):
    """Return (level, title, body) of every section, the part above all headings under the first."""
    hidden = FENCED.sub(lambda m: re.sub(r"^#", "\0", m[0], flags=re.M), text)  # comments
    parts = re.split(r"^(#+) (.*)\n?", hidden, flags=re.M)[1:]
    return [
        (len(level), title, body.replace("\0", "#"))
        for level, title, body in zip(parts[::3], parts[1::3], parts[2::3])
    ]


def code(side):
    """Return the fenced blocks, directives left out; Python and shell without their comments."""
    found = [(lang, text) for lang, text in FENCED.findall(side.body) if lang[:1] != "{"]
    return [
        (lang, re.sub(r" *#.*$", "", text, flags=re.M) if lang in WITH_COMMENTS else text)
        for lang, text in found
    ]


def prose(body):
    """Return what is neither a fenced block nor a link's target, marks left out."""
    return re.sub(r"\]\([^)]*\)|<!--.*?-->", " ", FENCED.sub("", body))


def words_of(body):
    """Return the prose without its formulas."""
    return FORMULA.sub(" ", prose(body))


def links(side):
    """Return the files that are linked, a Chinese page as the English one, with their anchors."""

    def read(target):
        inside = posixpath.join(posixpath.dirname(side.page), target)
        return target if ":" in target else english_of(posixpath.normpath(inside))

    found = re.findall(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", FENCED.sub("", side.body))
    return [(read(target), anchor) for target, anchor in found]


def english_of(page):
    """Return the page of which this one is the translation; any other page as it is."""
    return page.replace("/zh/", "/").replace(".zh-CN.", ".")


def lists(side):
    """Return the marks of all items of lists, in order."""
    return re.findall(r"^ *([-*]|\d+\.) ", FENCED.sub("", side.body), flags=re.M)


def paragraphs(side):
    """Return how many paragraphs there are, items of lists with space between them included."""
    return [len(re.split(r"\n\s*\n", FENCED.sub("", side.body).strip()))]


def tags(side):
    """Return the lines of HTML, in order."""
    return re.findall(r"^</?\w.*>$", FENCED.sub("", side.body), flags=re.M)


def inline_code(side):
    return Counter(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(side.body)))


def formulas(side):
    """Return how often each formula stands in the prose; the words in formulas are English."""
    found = [" ".join(formula.split()) for formula in FORMULA.findall(prose(side.body))]
    for chinese, english in TRANSLATED_IN_FORMULAS.items():
        found = [formula.replace(chinese, english) for formula in found]
    return Counter(found)


def numerals(side):
    """Return how often each numeral stands in the prose, dates whole."""
    numeral = r"\d{4}-\d\d-\d\d|\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
    return Counter(re.findall(numeral, words_of(side.body)))


def shapes(side):
    """Return how often each shape of an array stands in the prose, such as (out, in)."""
    return Counter(re.findall(r"\([A-Za-z]{1,3}, [A-Za-z]{1,3}\)", words_of(side.body)))


def spelled(english, chinese, words):
    """Return what is spelled out in English, and is not so in Chinese or not in this list."""
    text, missing = " ".join(words_of(english).lower().split()), []
    for phrase, translated in words.items():
        found = len(re.findall(rf"\b{phrase}\b", text))
        if words_of(chinese).count(translated) < found:
            missing.append(f"{phrase} = {translated}")
        text = re.sub(rf"\b{phrase}\b", "", text)
    return missing + [f"{word}: add it to SPELLED" for word in NUMBER_WORDS.findall(text)]


def terms(english, chinese, words):
    """Return the core words of the English text that the Chinese one does not have."""
    of_term = chinese_words()
    text = re.sub(r"`[^`]*`", "", " ".join(words_of(english).split()))  # `merge` is a command
    return [
        f"{term} = {of_term[term]}"
        for pattern, term in words.items()
        if re.search(rf"\b{pattern}\b", text, re.I) and of_term[term] not in words_of(chinese)
    ]


def foreign_words(english, chinese):
    """Return the words in Latin letters that stand in the Chinese text alone."""
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"`[^`]*`", "", words_of(chinese)))
    known = words_of(english).lower()
    return sorted({word for word in words if word.lower() not in known} - {"English"})


IN_ORDER = {
    "code blocks": code,
    "links": links,
    "lists": lists,
    "tags": tags,
    "paragraphs": paragraphs,
}
COUNTED = {"inline code": inline_code, "formulas": formulas, "numerals": numerals, "shapes": shapes}


def differences(english, chinese, words):
    """Return one line for each thing that two pieces of text do not share."""
    found = []
    for what, read in IN_ORDER.items():
        here, there = read(english), read(chinese)
        only, only_zh = [x for x in here if x not in there], [x for x in there if x not in here]
        if here != there:  # with nothing on either side, the order or the count differs
            found.append(f"{what}: only in English {only}, only in Chinese {only_zh}")
    for what, count in COUNTED.items():
        here, there = count(english), count(chinese)
        if here != there:
            found.append(f"{what}: only in English {here - there}, only in Chinese {there - here}")
    if added := foreign_words(english.body, chinese.body):
        found.append(f"words in Latin letters: only in Chinese {added}")
    for what, check, of_what in (
        ("numbers in words", spelled, words.spelled),
        ("terms", terms, words.terms),
    ):
        if missing := check(english.body, chinese.body, of_what):
            found.append(f"{what}: missing {missing}")
    return found


def differences_of_pages(english, chinese, words):
    """Return one line for each thing that two pages do not share, naming the section."""
    ours, theirs = sections(english.body), sections(chinese.body)
    levels = [[level for level, _, _ in side] for side in (ours, theirs)]
    if levels[0] != levels[1]:
        titles = [[title for _, title, _ in side] for side in (ours, theirs)]
        return [f"headings differ: {titles[0]} and {titles[1]}"]
    return [
        f"section {title!r} / {title_zh!r}: {line}"
        for (_, title, body), (_, title_zh, body_zh) in zip(ours, theirs)
        for line in differences(
            english._replace(body=f"{title}\n{body}"),
            chinese._replace(body=f"{title_zh}\n{body_zh}"),
            words,
        )
    ]


def ill_set(text):
    """Return what is not set as Chinese is, or would not show as it is meant."""
    text = FORMULA.sub("x", FENCED.sub("", text))
    wrong = {
        "a line that ends between characters shows a space": rf"{HAN}\n{HAN}",
        "a space between scripts": rf"{HAN}[A-Za-z0-9`]|[A-Za-z0-9`]{HAN}",
        "full-width punctuation": rf"{HAN}\s*[,;:?!]|{HAN}\(|{HAN}\.\s|{HAN}\.$",
    }
    found = [(what, part) for what, mark in wrong.items() for part in re.findall(mark, text)]
    if "**" in re.sub(r"\*\*.+?\*\*", "", text):
        found.append(("emphasis without an end", "**"))
    for inside, after in re.findall(rf"\*\*(.+?)\*\*({HAN}?)", text):
        if after and inside[-1] in "，。：；！？）”":
            found.append(("Markdown does not see the end of this emphasis", inside))
    return [f"{what}: {part}" for what, part in found]
