"""What a page and its Chinese translation have to share.

What is said in words cannot be compared. What can: headings, lists, code, inline code, formulas,
numerals, links, the numbers that English spells out, the words of docs/glossary.md, how often a
paragraph denies and asks something, words with an opposite, and how long it is.

A paragraph names its formulas, code and numbers in the order of the English one. Chinese can be
worded so, and nothing else shows that two of them were exchanged.
"""

import posixpath
import re
from typing import NamedTuple

from tests.docs.test_glossary import chinese_words

HAN = "[\u4e00-\u9fff]"
FENCED = re.compile(r"^```([\w{}-]*)(?: .*)?\n(.*?)^```$", re.M | re.S)
FORMULA = re.compile(r"\$\$.+?\$\$|\$(?:[^$\n]|\n(?!\n))+\$", re.S)
# What a translation tells its own readers, such as which chapters exist in their language.
ONLY_HERE = re.compile(r"^<!-- only in Chinese -->\n(.*?)^<!-- end -->\n+", re.M | re.S)
WITH_COMMENTS = ("python", "sh")
TRANSLATED_IN_FORMULAS = {r"\text{即}": r"\text{or}"}
NUMBER_WORDS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|twenty|hundred|thousand)\b"
)

# Words that turn a sentence into its contrary, and phrases that only look as if they did.
DENIALS = re.compile(
    r"\b([Nn]ot|[Nn]o|[Nn]ever|[Nn]othing|[Nn]either|[Nn]or|none|[Ww]ithout|cannot"  # None is code
    r"|left out|missed|before any)\b|n't\b"
)
DENIALS_ZH = re.compile("[不没无非未]")
NO_DENIALS_ZH = re.compile(r"不同|不过|不超过|不多|不够|互不相关|降不下去|不到(?=\s*\d)")
# Words with an opposite: English and Chinese, both as patterns.
DIRECTIONS = {
    "smallest": "最小",
    "largest": "最大",
    "lowest": "最低",
    "higher": "高",
    "lower": "低",
    "fast(er|est)?": "快",
    "slow(er|est|ly)?": "慢",
    "better|best": "好|再低",
    "worse|worst": "差",
    "at most": "至多",
    "at least": "至少",
    "above": "上(?!限)|高",
    "below": "下(?![降界一])|低于|以下",
    "larger than": "大于",
    "limit": "上限",
    "more than": "以上|超过|多",
    "falls?": "降(?!不)|变为",
    "grows?": "涨",
    "rows?": "行",
    "columns?": "列",
    "inputs?": "输入",
    "outputs?": "输出",
    "multiply": "乘",
    "divide": "除",
    "random": "随机",
    "zero": "零",
    "half": "半",
    "only": "只",
    "both": "都|两",
    "(the )?same|equal": "(?<!不)(相同|一样|同[一名]|就是)",
    "different|differs?": "不同",
    "every|each|all": "每|都|各|全|所有|逐|分别|始终",
    "train(s|ed|ing)?": "训练",
    "exact(ly)?": "精确|恰好|完全",
    "because": "因为|所以",
}
LENGTH = 1.0, 2.25  # Chinese characters for a word of English
LONG_ENOUGH = 15  # words, for a paragraph to be held to it


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


def rows(side):
    """Return how many cells each row of a table has."""
    return [line.count("|") for line in side.body.split("\n") if line.startswith("|")]


def pieces(side):
    """Return a Side for each paragraph, item of a list, and row of a table."""
    text = FENCED.sub("", side.body).strip()
    parts = re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) |\|)", text)
    return [side._replace(body=part) for part in parts]


def inline_code(side):
    """Return the inline code, in order."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(side.body))]


def formulas(side):
    """Return the formulas of the prose, in order; the words in formulas are English."""
    found = [" ".join(formula.split()) for formula in FORMULA.findall(prose(side.body))]
    for chinese, english in TRANSLATED_IN_FORMULAS.items():
        found = [formula.replace(chinese, english) for formula in found]
    return found


def numerals(side):
    """Return the numerals of the prose in order, dates whole."""
    numeral = r"\d{4}-\d\d-\d\d|\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
    return re.findall(numeral, words_of(side.body))


def shapes(side):
    """Return the shapes of arrays that stand in the prose, such as (out, in)."""
    return re.findall(r"\([A-Za-z]{1,3}, [A-Za-z]{1,3}\)", words_of(side.body))


def words_alone(body):
    """Return the prose on one line, without formulas, code, and names of files."""
    return re.sub(r"`[^`]*`|[\w/]+\.py\b", "", " ".join(words_of(body).split()))


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
    text = words_alone(english)  # `merge` is a command
    return [
        f"{term} = {of_term[term]}"
        for pattern, term in words.items()
        if re.search(rf"\b{pattern}\b", text, re.I) and of_term[term] not in words_of(chinese)
    ]


def foreign_words(english, chinese):
    """Return the words in Latin letters that stand in the Chinese text alone."""
    words, known = re.findall(r"[A-Za-z]{2,}", words_alone(chinese)), words_of(english).lower()
    return sorted({word for word in words if word.lower() not in known} - {"English"})


def denials(english, chinese):
    """Return how often each side denies something, if not equally often."""
    ours = DENIALS.findall(words_alone(english))
    theirs = DENIALS_ZH.findall(NO_DENIALS_ZH.sub("", words_alone(chinese)))
    return [] if len(ours) == len(theirs) else [f"{ours} and {theirs}"]


def directions(english, chinese):
    """Return the words with an opposite that the English has more often than the Chinese."""
    ours, theirs = words_alone(english), words_alone(chinese)
    return [
        f"{word} = {word_zh}"
        for word, word_zh in DIRECTIONS.items()
        if len(re.findall(rf"\b(?:{word})\b", ours, re.I)) > len(re.findall(word_zh, theirs))
    ]


def questions(english, chinese):
    """Return how many questions each side asks, if not equally many."""
    ours, theirs = words_alone(english).count("?"), words_alone(chinese).count("？")
    return [] if ours == theirs else [f"{ours} and {theirs}"]


def length(english, chinese):
    """Return how long each side is, if a sentence may be missing from one of them."""
    ours = len(re.findall(r"[A-Za-z']+", words_alone(english)))
    theirs = len(re.findall(rf"{HAN}|[A-Za-z']+", words_alone(chinese)))
    if ours < LONG_ENOUGH or LENGTH[0] * ours <= theirs <= LENGTH[1] * ours:
        return []
    return [f"{ours} words and {theirs} characters: {theirs / ours:.2f}"]


OF_ALL = {
    "code blocks": code,
    "links": links,
    "lists": lists,
    "tags": tags,
    "paragraphs": paragraphs,
    "rows": rows,
}
OF_EACH_PIECE = {
    "inline code": inline_code,
    "formulas": formulas,
    "numerals": numerals,
    "shapes": shapes,
}
SAID = {"denials": denials, "directions": directions, "questions": questions, "length": length}


def unlike(parts, english, chinese):
    """Return one line for each part that the two sides do not have alike, and in one order."""
    found = []
    for what, read in parts.items():
        here, there = read(english), read(chinese)
        if here != there:
            only = [[x for x in a if x not in b] for a, b in ((here, there), (there, here))]
            order = "" if only[0] or only[1] else f": the order or the count, {here} and {there}"
            found.append(f"{what}: only in English {only[0]}, only in Chinese {only[1]}{order}")
    return found


def differences(english, chinese, words):
    """Return one line for each thing that two pieces of text do not share."""
    found = unlike(OF_ALL, english, chinese)
    if added := foreign_words(english.body, chinese.body):
        found.append(f"words in Latin letters: only in Chinese {added}")
    sides = pieces(english), pieces(chinese)
    if len(sides[0]) != len(sides[1]):
        return found or ["pieces: more on one side"]
    for one, one_zh in zip(*sides):
        lines = unlike(OF_EACH_PIECE, one, one_zh)
        bodies = one.body, one_zh.body
        checks = {what: check(*bodies) for what, check in SAID.items()}
        checks["numbers in words"] = spelled(*bodies, words.spelled)
        checks["terms"] = terms(*bodies, words.terms)
        lines += [f"{what}: {', '.join(missing)}" for what, missing in checks.items() if missing]
        found += [f"{line} (at {' '.join(one_zh.body.split())[:30]!r})" for line in lines]
    return found


def differences_of_pages(english, chinese, words):
    """Return one line for each thing that two pages do not share, naming the section."""
    ours, theirs = sections(english.body), sections(ONLY_HERE.sub("", chinese.body))
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
