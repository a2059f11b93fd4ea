"""Regular expressions out of files: they match as Python's re does, and never for ever."""

import random
import re

import pytest

from lora_np.patterns import LONGEST, PLAIN, Pattern, PatternError, at_the_end

LETTERS = [
    *"ab.01x{}]\n",
    *("[ab]", "[^a]", "[]a]", "[^]a]", r"[a\]b]", "[a-]", r"\d", r"\W", r"\.", r"\x61", r"\n"),
    *("^", "$", r"\b", r"\B", r"\A", r"\Z"),
]
REPEATS = ["*", "+", "?", "{2}", "{,2}", "{1,}", "{1,3}", "{,}", "{0}", "*?", "+?", "??", "{2,3}?"]
OPENINGS = ["(", "(?:", "(?P<n>", "(?=", "(?!", "(?<=", "(?<!"]


def drawn(rng, depth=3):
    """A random pattern, which may be none."""
    text = ""
    for _ in range(rng.randint(0, 4)):
        kind = rng.random()
        if depth and kind < 0.35:
            text += rng.choice(OPENINGS) + drawn(rng, depth - 1) + ")"
        else:
            text += "|" if kind < 0.45 else rng.choice(LETTERS)
        text += rng.choice(REPEATS) if rng.random() < 0.3 else ""
    return text


def compiled(kind, text):
    try:
        return kind(text)
    except (re.error, PatternError):
        return None


@pytest.mark.filterwarnings("ignore:Possible nested set")
def test_random_patterns_match_as_pythons_do():
    rng, compared = random.Random(0), 0
    for _ in range(2500):
        text = drawn(rng)
        theirs, ours = compiled(re.compile, text), compiled(Pattern, text)
        assert theirs or not ours, text
        for _ in range(4 if theirs and ours else 0):
            name = "".join(rng.choice("aabx.01\n") for _ in range(rng.randint(0, 6)))
            assert ours.fullmatch(name) is bool(theirs.fullmatch(name)), (text, name)
            assert ours.match(name) is bool(theirs.match(name)), (text, name)
            compared += 1
    assert compared > 4000


REAL = [  # of the kind that tools write into configs
    r".*\.layers\.(\d|1[0-5])\.self_attn\.(q|k|v)_proj",
    r"^(?!.*visual).*(?:q_proj|k_proj|gate_proj|up_proj)$",
    r"model\.layers\.[0-9]{1,}\.mlp\.(gate|up)_proj",
    "(?:.*?(?:language|text).*?(?:self_attn|mlp|ffn).*?(?:q_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj|up_proj)))",
    r"(?<!vision\.)layers\.\d+\.(?:.*)_proj",
]
NAMES = [
    f"{root}layers.{i}.{part}"
    for root in ("model.", "", "model.visual.", "model.language_model.", "vision.")
    for i in (0, 7, 15, 16, 31)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
]


@pytest.mark.parametrize("text", REAL)
def test_patterns_of_other_tools_match_as_they_do_there(text):
    chosen = [name for name in NAMES if re.fullmatch(text, name)]
    assert [name for name in NAMES if Pattern(text).fullmatch(name)] == chosen
    key = rf"(.*\.)?({text})$"  # PEFT's way for rank_pattern
    at_end = [name for name in NAMES if re.match(key, name)]
    assert [name for name in NAMES if at_the_end(text).match(name)] == at_end
    assert chosen or at_end


HOSTILE = [
    *("(a+)+$", "(a|a)*$", "(.*)*x", "(x+x+)+y", "((a*)*)*$", "(a?){60}a{60}$", "(.*.*.*.*.*)*y"),
    *("(a|aa)+$", "((a+)?b?)*$", "(?=(a+)+$)b", "(?!(a*)*b)c"),
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["a" * 60 + "!", "z" * 60, "a." * 30, "a" * 499 + "!"])
def test_no_pattern_takes_for_ever(text, name):
    """Of these re tries 2^60 ways on a long name; on a short one it has the same answer."""
    assert not Pattern(text).fullmatch(name)
    for short in (name[:4], name[-4:]):
        assert Pattern(text).fullmatch(short) is bool(re.fullmatch(text, short))


def test_a_pattern_whose_steps_grow_beyond_all_bounds_is_named():
    text = "".join(f"(?=.*(?=.*{i}.*))" for i in range(60))
    with pytest.raises(PatternError, match=r"pattern '\(\?=.* takes more than \d+ steps on 'aaaa"):
        Pattern(text).match("a" * 499)


@pytest.mark.parametrize(
    "text", [r"(a)\1", "(?i)a", "(?P<n>a)(?P=n)", "(?>a)", "(a)(?(1)b|c)", "(?i:a)", r"\N{BULLET}"]
)
def test_what_cannot_be_followed_is_refused(text):
    re.compile(text)
    with pytest.raises(PatternError, match="cannot be used: a backreference, a flag"):
        Pattern(text)


@pytest.mark.parametrize(
    "text",
    ["(", ")", "a)(b", "*", "a**", "[", "a{3,2}", "(?<=a*)b", r"\y", "a" * (LONGEST + 1), "[[a]"],
)
def test_what_is_no_regular_expression_is_refused(text):
    with pytest.raises(PatternError, match="cannot be used: ") as caught:
        Pattern(text)
    assert len(str(caught.value)) < 300


def test_groups_are_not_nested_without_bound():
    with pytest.raises(PatternError, match="more than 20 groups"):
        Pattern("(" * 500 + ")" * 500)


@pytest.mark.parametrize(
    "key", ["q_proj", "0.attn.q_proj", r"^h\.0\.q", r"h\.1\..*", "a)|(b", "q$"]
)
def test_a_key_matches_the_end_of_a_name_as_in_peft(key):
    names = [
        "q_proj",
        "h.0.attn.q_proj",
        "h.0.q",
        "x.h.0.q",
        "h.1.q",
        "h.10.q",
        "a",
        "b",
        "xq_proj",
    ]
    theirs = [name for name in names if re.match(rf"(.*\.)?({key})$", name)]
    assert [name for name in names if at_the_end(key).match(name)] == theirs != []


def test_only_letters_are_left_to_re():
    assert PLAIN.fullmatch(r"^h\.0\.c\-attn") and PLAIN.fullmatch("mlp.c_proj")
    assert not any(PLAIN.fullmatch(text) for text in (*HOSTILE, *REAL, r"a\1", "a$", r"\d", "[a]"))
