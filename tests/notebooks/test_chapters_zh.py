"""notebooks/zh: the Chinese chapters have the code, outputs and figures of the English ones.

The code is equal but for its comments, so the outputs are those of the English notebook. What the
text has to share with the English stands in tests/docs/translations.py.
"""

import io
import json
import re
import subprocess
import sys
import tokenize

import pytest

from tests.docs.test_readme_zh import TERMS
from tests.docs.translations import HAN, Side, Words, differences, ill_set, numerals, sections
from tests.notebooks.test_notebooks import (
    FOLDER,
    cells_of_notebook,
    cells_of_source,
    load_build,
    notebook_of,
    prose,
)
from tests.notebooks.test_notebooks import SOURCES as ENGLISH

SOURCES = sorted((FOLDER / "zh").glob("[0-9][0-9]_*.py"))
every_chapter = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)

LEADS = {
    "**What you'll do.**": "**要做什么**：",
    "**What you'll learn.**": "**学到什么**：",
    "**What you'll need.**": "**预备知识**：",
    "**Predict.**": "**预测**：",
}
SPELLED = {
    "two loops": "两重循环",
    "half the squared distance": "距离平方的一半",
    "six numbers": "六个数",
    "two margins": "两个数",
    "three formulas": "三个公式",
    "nine tenths": "十分之九",
    "a tenth of": "十分之一",
    "two layers": "两层",
    "two linear layers": "两个线性层",
    "two other starts": "另外两种初始化",
    "rank twice": "画两次",
    "a minute or two": "一两分钟",
    "half as large": "减半",
    "variance one": "方差为一",
    "two factors": "两个因子",
    "two blocks": "两个块",
    "a quarter": "四分之一",
    "in factors of two": "之比为二",
    "four rates": "四个学习率",
    "three ranks": "三个秩",
    "three seeds": "三个种子",
    "two standard errors": "两倍标准误",
    "ten ranks": "十个秩",
    "two degrees of freedom": "自由度为二",
    "rank 16 twice the steps": "两倍的步数",
    "twice the steps": "步数加倍",
}
MORE_TERMS = {
    r"linear layers?": "linear layer",
    r"bias": "bias",
    r"chain rule": "chain rule",
    r"outer product": "outer product",
    r"eigenvalues?": "eigenvalue",
    r"gradient descent": "gradient descent",
    r"gradient check": "gradient check",
    r"frozen|freezes?": "frozen",
    r"low-rank": "low rank",
    r"scale": "scale",
    r"singular values?": "singular value",
    r"spectrum": "spectrum",
    r"energy": "energy",
    r"seeds?": "seed",
    r"standard errors?": "standard error",
    r"trainable": "trainable",
    r"embeddings": "embedding",
    r"LayerNorms?": "LayerNorm",
    r"validation loss": "validation loss",
}
WORDS = Words(SPELLED, {**TERMS, **MORE_TERMS})


def code_and_comments(code):
    """Return the lines of Python code without their comments, and the comments."""
    lines, comments = code.split("\n"), []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
            comments.append(token.string)
    return [line.rstrip() for line in lines], comments


def same_code(english, chinese):
    """Is this the same code, with each comment either the same or in Chinese?"""
    (ours, said), (theirs, said_zh) = code_and_comments(english), code_and_comments(chinese)
    if ours != theirs or len(said) != len(said_zh):
        return False
    return all(a == b or re.search(HAN, b) for a, b in zip(said, said_zh))


def alts(text):
    """Return what the pictures show, in words, by the numbers of their cells."""
    heads = re.findall(r"^# %%.*$", text, re.MULTILINE)
    return {n: head[len('# %% alt="') : -1] for n, head in enumerate(heads) if "alt=" in head}


def outline(text):
    return [level for level, _, _ in sections(text)]


def leads(text, marks):
    return [marks.index(mark) for mark in re.findall("|".join(map(re.escape, marks)), text)]


def drifted(english, chinese, name="chapter.py"):
    """Return one line for each thing that two sources of a chapter do not share."""
    ours, theirs = cells_of_source(english), cells_of_source(chinese)
    kinds = [[kind for kind, _ in side] for side in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return [f"cells: {len(kinds[0])} in English, {len(kinds[1])} in Chinese, or other kinds"]
    found = [] if alts(english).keys() == alts(chinese).keys() else ["alt: other cells have it"]
    for number, ((kind, text), (_, text_zh)) in enumerate(zip(ours, theirs)):
        if kind == "code":
            found += [] if same_code(text, text_zh) else [f"cell {number}: code"]
            continue
        if outline(text) != outline(text_zh):
            found.append(f"cell {number}: headings")
        if leads(text, list(LEADS)) != leads(text_zh, list(LEADS.values())):
            found.append(f"cell {number}: leads, {list(LEADS.values())}")
        sides = Side(f"notebooks/{name}", text), Side(f"notebooks/zh/{name}", text_zh)
        found += [f"cell {number}: {line}" for line in differences(*sides, WORDS)]
    for number, alt in alts(chinese).items():
        texts = [Side(name, side.get(number, "")) for side in (alts(english), alts(chinese))]
        if numerals(texts[0]) != numerals(texts[1]) or len(re.findall(HAN, alt)) < 5:
            found.append(f"alt of cell {number}: {alt}")
    return found


def read(source):
    return source.read_text(encoding="utf-8")


def test_there_are_chapters_each_of_an_english_one_and_each_with_its_notebook():
    assert SOURCES and {p.name for p in SOURCES} <= {p.name for p in ENGLISH}
    assert sorted((FOLDER / "zh").glob("*.ipynb")) == [p.with_suffix(".ipynb") for p in SOURCES]


@every_chapter
def test_a_chapter_has_the_code_figures_and_structure_of_the_english(source):
    found = drifted(read(FOLDER / source.name), read(source), source.name)
    assert not found, "\n" + "\n".join(found)


@every_chapter
def test_the_committed_notebook_has_the_cells_of_its_source(source):
    notebook = notebook_of(source)
    assert cells_of_notebook(notebook) == cells_of_source(read(source))
    shown = [cell["metadata"].get("mystnb", {}).get("image", {}) for cell in notebook["cells"]]
    assert {n: image["alt"] for n, image in enumerate(shown) if image} == alts(read(source))


@every_chapter
def test_the_committed_notebook_has_the_outputs_of_the_english(source):
    ours, theirs = notebook_of(FOLDER / source.name), notebook_of(source)
    for cell, cell_zh in zip(ours["cells"], theirs["cells"], strict=True):
        for what in ("outputs", "execution_count"):
            assert cell.get(what) == cell_zh.get(what)


@every_chapter
def test_the_chinese_is_set_as_chinese(source):
    assert ill_set(prose(source)) == []
    assert [alt for alt in alts(read(source)).values() if ill_set(alt)] == []


@pytest.mark.parametrize("source", ENGLISH, ids=lambda p: p.stem)
def test_a_chapter_that_was_translated_links_to_its_translation_and_back(source):
    translation = FOLDER / "zh" / source.name
    links = f"[中文](zh/{source.stem}.ipynb)", f"[English](../{source.stem}.ipynb)"
    assert (links[0] == prose(source).split("\n")[2]) == translation.exists()
    if translation.exists():
        assert prose(translation).split("\n")[2] == links[1]


def test_the_picture_of_chapter_4_is_found_from_the_folder_of_the_translations():
    here = "from step_through import STEPS, draw_all_steps, sliders; print(len(STEPS))"
    done = subprocess.run([sys.executable, "-c", here], cwd=FOLDER / "zh", capture_output=True)
    assert done.stdout == b"5\n", done.stderr


@pytest.mark.notebooks
@every_chapter
def test_the_committed_notebook_is_what_build_py_writes(source):
    build = load_build()
    made = build.nbformat.writes(build.translated(source))
    assert json.loads(made) == notebook_of(source)


@pytest.mark.notebooks
def test_build_py_takes_no_outputs_for_other_code(tmp_path):
    other = read(FOLDER / "zh" / "04_lora.py").replace("1.0 / 2", "2")
    (tmp_path / "04_lora.py").write_text(other, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"04_lora.py: this code is not the chapter's"):
        load_build().translated(tmp_path / "04_lora.py")


# The check, checked: each mistake is planted in a chapter, and seen.


@pytest.mark.parametrize(
    "chapter, old, new, message",
    [
        ("01", "数据。只比上限高 5 %", "数据。只比上限高 6 %", "numerals"),
        ("01", "第 4 章要用", "以后要用", "numerals"),
        ("01", "六个数", "五个数", "numbers in words"),
        ("01", "dW = dy\\; x^\\top", "dW = x\\; dy^\\top", "formulas"),
        ("01", "求 $dx$ 需要 $W$，", "求 $dx$ 需要 $x$，", "formulas"),
        ("01", "`linear_backward` 按", "`linear_forward` 按", "inline code"),
        ("01", "外积", "积", "terms"),
        ("04", "Eckart-Young 下界。", "Eckhart-Young 下界。", "Latin"),
        ("01", "形状为 (out, in) 的", "形状为 (in, out) 的", "shapes"),
        ("01", "用另一个层", "\n#\n# 用另一个层", "paragraphs"),
        ("01", "$$ \\eta < 2", "$ \\eta < 2", "formulas"),
        ("01", "h = 1e-4", "h = 1e-5", "code"),
        ("01", 'axis.set_xlabel("step")', 'axis.set_xlabel("步")', "code"),
        ("01", "上限的 0.1 和 0.9", "上限的 0.1 和 0.8", "alt"),
        ("01", "# ## 批次", "# ### 批次", "headings"),
        (
            "01",
            "# %%\nassert y.tolist() == [-1.0, 4.0]\nassert np.array_equal(y, W @ x)\n\n",
            "",
            "cells",
        ),
        ("04", "(../04_lora.ipynb)", "(../05_merging.ipynb)", "links"),
        ("04", "# 3. 把 $A$ 乘以 2", "# - 3 把 $A$ 乘以 2", "lists"),
        ("04", "**预测**：再看", "再看", "leads"),
        ("04", "\\qquad s = \\alpha / r", "\\qquad s = \\alpha \\, r", "formulas"),
        ("07", "# %% alt=", "# %% ALT=", "alt"),
        ("07", "# **预测**：让秩 16", "# %% [markdown]\n# **预测**：让秩 16", "cells"),
        ("07", "* 不能说：LoRA", "不能说：LoRA", "lists"),
        ("01", "求 $dx$ 需要 $W$，不需要 $x$", "求 $dx$ 需要 $x$，不需要 $W$", "formulas"),
        ("07", "用 0.01 时，秩 16", "用 0.08 时，秩 16", "numerals"),
        ("01", "**最小**的特征值", "**最大**的特征值", "directions"),
        ("04", "而 $B$ 的梯度不是零", "而 $B$ 的梯度是零", "denials"),
        ("04", "它仍然需要用", "它不需要用", "denials"),
        ("04", "秩为 2 和 3 时，损失降到", "秩为 2 和 3 时，损失升到", "directions"),
        ("07", "因为秩 1 学得太慢", "因为秩 1 学得太快", "directions"),
        ("07", "差距还剩几成？", "", "questions"),
    ],
)
def test_a_chapter_that_drifted_is_noticed(chapter, old, new, message):
    (source,) = [p for p in SOURCES if p.name.startswith(chapter)]
    assert old in read(source)
    found = drifted(read(FOLDER / source.name), read(source).replace(old, new), source.name)
    assert found and all(message in line for line in found)


@pytest.mark.parametrize(
    "chapter, old, new, message",
    [
        ("04", "and test the zero start separately", "and never the zero start", "denials"),
        ("07", "because rank 1 learns too slowly", "because rank 1 learns too fast", "directions"),
        ("07", "is better by more than 0.02", "is better by more than 0.03", "numerals"),
        ("01", "We require agreement to", "Is it exact? We require agreement to", "questions"),
    ],
)
def test_an_english_chapter_that_went_on_alone_is_noticed(chapter, old, new, message):
    (source,) = [p for p in SOURCES if p.name.startswith(chapter)]
    english = read(FOLDER / source.name)
    assert old in english
    found = drifted(english.replace(old, new), read(source), source.name)
    assert any(message in line for line in found)


def test_comments_may_be_translated_and_nothing_else():
    assert same_code('x = "# a"  # one', 'x = "# a"  # 一')
    assert not same_code('x = "# a"', 'x = "# b"')
    assert not same_code("# one\nx = 1", "x = 1")
    assert not same_code("x = 1  # (in,)", "x = 1  # (out,)")
