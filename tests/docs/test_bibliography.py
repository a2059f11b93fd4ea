"""docs/bibliography.md: every number in its tables is computed here, or stands on its page."""

import math
import re

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, account, check_gradients
from lora_np.costs import KNOWN_MODELS
from lora_np.experiments.paper.numbers import TABLE7
from lora_np.rank.change import amplification
from lora_np.rank.noise import gavish_donoho_threshold, marchenko_pastur_edge
from tests.docs.pages import NUMBER, ROOT

PAGE = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
COMPUTED, TRIED = (
    [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ][2:]  # without the head and its rule
    for section in re.split(r"^## ", PAGE, flags=re.M)
    if section.startswith(("Numbers, ", "Claims, "))
)


def as_printed(value, cell):
    """Whether `value`, rounded to the digits of `cell`, is its number."""
    digits = cell.replace(",", "")
    if "." in digits:
        return round(value, len(digits.partition(".")[2])) == float(digits)
    return float(f"{value:.{max(1, len(digits.rstrip('0'))) - 1}e}") == float(digits)


def adapter(blocks, d, r, kinds=2):
    """Parameters of A and B on square matrices."""
    return blocks * kinds * r * (d + d)


def of_gpt2(L, d, V=50257, T=1024):
    """Parameters of a GPT-2: embeddings, L blocks of 12 d^2 + 13 d, the last LayerNorm."""
    return V * d + T * d + L * (12 * d * d + 13 * d) + 2 * d


def base(name):
    return KNOWN_MODELS[name][2]


def at_random(r):
    """Table 7's random directions: a W0 of the paper's norm and size has this much in them."""
    return r * TABLE7[r]["norm_W0"] / 12288


def complex_step():
    report = check_gradients(
        lambda x: (x**4.5, x),
        lambda dy, x: (4.5 * x**3.5 * dy,),
        {"x": np.array([1.5])},
        method="complex",
    )
    row = report.rows[0]
    return 4.5 * 1.5**3.5 * row.numeric / row.analytic


GPT3, SQUARE = base("GPT-3 175B, q v"), (500, 500)
OURS = {
    "GPT-3, q and v, r = 4: trainable, M": adapter(96, 12288, 4) / 1e6,
    "the same in fp16, MB": 2 * adapter(96, 12288, 4) / 1e6,
    "GPT-3, q and v, r = 1: trainable, M": adapter(96, 12288, 1) / 1e6,
    "GPT-3, q and v, r = 8: trainable, M": adapter(96, 12288, 8) / 1e6,
    "GPT-3: all parameters / trainable at r = 4": GPT3 / adapter(96, 12288, 4),
    "GPT-3's checkpoint in fp16, GB": 2 * GPT3 / 1e9,
    "RoBERTa base, q and v, r = 8: trainable, M": adapter(12, 768, 8) / 1e6,
    "RoBERTa large, q and v, r = 8: trainable, M": adapter(24, 1024, 8) / 1e6,
    "DeBERTa XXL, q and v, r = 16: trainable, M": adapter(48, 1536, 16) / 1e6,
    "GPT-2 medium, q and v, r = 4: trainable, M": adapter(24, 1024, 4) / 1e6,
    "GPT-2 large, q and v, r = 4: trainable, M": adapter(36, 1280, 4) / 1e6,
    "GPT-2 small: all parameters, M": of_gpt2(12, 768) / 1e6,
    "GPT-2 medium: all parameters, M": of_gpt2(24, 1024) / 1e6,
    "GPT-2 large: all parameters, M": of_gpt2(36, 1280) / 1e6,
    "GPT-2 XL: all parameters, M": of_gpt2(48, 1600) / 1e6,
    "BERT-base: all parameters, M": base("BERT-base, q k v o") / 1e6,
    "LLaMA-7B: all parameters, thousand M": base("LLaMA-7B, q k v o") / 1e9,
    "random directions of W0, r = 4": at_random(4),
    "random directions of W0, r = 64": at_random(64),
    "threshold / (sqrt(n) noise), square matrix": (
        gavish_donoho_threshold(SQUARE, noise=1.0) / math.sqrt(500)
    ),
    "threshold / median singular value, square matrix": (
        gavish_donoho_threshold(SQUARE, singular_values=np.ones(500))
    ),
    "upper edge of the squared singular values of square noise / (n noise^2)": (
        marchenko_pastur_edge(1.0, SQUARE) ** 2 / 500
    ),
    "derivative of x^(9/2) at 1.5 by the complex step, ten digits": complex_step(),
}


def test_every_row_has_a_number_of_ours_and_every_number_a_row():
    assert sorted(row[2] for row in COMPUTED) == sorted(OURS)


@pytest.mark.parametrize("row", COMPUTED, ids=lambda row: row[2])
def test_ours_is_what_the_code_computes_and_agrees_where_the_table_says_so(row):
    *_, quantity, paper, ours, agrees = row
    assert as_printed(OURS[quantity], ours)
    assert agrees == ("yes" if as_printed(OURS[quantity], paper) else "no")


def test_the_rule_rounds_to_the_digits_that_are_printed():
    assert as_printed(109.48, "110") and not as_printed(104.9, "110")
    assert as_printed(0.295, "0.3") and not as_printed(18.87, "18")
    assert not as_printed(9251, "10,000") and as_printed(9600, "10,000")


def test_the_count_of_a_gpt2_is_that_of_the_model():
    config = GPTConfig(vocab_size=17, block_size=6, n_layer=3, n_head=2, d_model=8)
    found = account(GPT(config, np.random.default_rng(0))).base
    assert found == of_gpt2(3, 8, V=17, T=6)


def test_the_count_of_an_adapter_is_that_of_the_account():
    blocks, (_, r, _) = 96, KNOWN_MODELS["GPT-3 175B, q v"]
    (count, d_out, d_in), *_ = KNOWN_MODELS["GPT-3 175B, q v"][0]
    assert adapter(blocks, d_in, r) == count * r * (d_out + d_in)


def test_the_closed_form_for_random_directions_is_the_analysers(rng):
    W0, delta = rng.standard_normal((2, 30, 30))
    found = amplification(W0, delta, 4)
    assert found.in_random == pytest.approx(4 * np.linalg.norm(W0) / 30, rel=1e-12)


# What the pages print, from which the numbers of the claims are taken.
PRINTED = {
    "the lowest rank suffices": ["q,v 50 %, q,k,v,o 58 %"],
    "q and v are the best choice in attention": ["q,v 2.2308; q,k,v,o 2.2147"],
    "q alone is worse than q and v": ["measured: q,v 2.2308; q 2.2924;"],
    "the change amplifies its directions of W0, more so at the low rank": [
        "factor at r = 4: 12.4 to 36.2; at r = 32: 1.38 to 3.22"
    ],
    "few random directions go far": ["1,024 of 120,576 get 94 % of the way"],
    "scales for the layers help": ["22 % of the gain against 9 % at d = 64"],
    "pretraining lowers d90": ["d90: plain above 120576", "d90: plain 1024 (512 is not enough)"],
    "the threshold finds the rank well above the noise": [
        "| signal-to-noise 1 | signal-to-noise 2 | signal-to-noise 5 |",
        "4.0 [3.9, 4.0]; 96% | 4.0; 100% | 4.0; 100% |\n| Gavish-Donoho, known noise | 4 |",
    ],
    "the learning rate of LoRA is 2e-4 to 5e-4": [
        "best rates: 0.026 at r = 1, 0.013 at r = 4, 0.013 at r = 16, 0.0064 at r = 64",
        "the best rate is outside it at every rank",
        "at a scale of 1 and for 40 steps",
    ],
}


@pytest.mark.parametrize("row", TRIED[1:], ids=lambda row: row[1])
def test_the_numbers_of_a_claim_are_those_that_its_page_prints(row):
    _, says, ours, _, link = row
    page = (ROOT / "docs" / re.search(r"\]\((.*)\)", link)[1]).read_text(encoding="utf-8")
    assert all(text in page for text in PRINTED[says])
    assert set(NUMBER.findall(ours)) <= set(NUMBER.findall(" ".join(PRINTED[says])))


def test_the_paper_page_has_as_many_claims_that_hold_as_the_table_says():
    verdicts = re.findall(
        r"^(agrees|does not agree): ", (ROOT / "docs" / "paper.md").read_text("utf-8"), re.M
    )
    held = verdicts.count("agrees")
    assert len(verdicts) == 12
    assert TRIED[0][1:4] == ["twelve claims", f"{held} hold", f"{held} of 12"]


def test_every_arxiv_number_in_the_code_stands_in_the_bibliography():
    files = [*(ROOT / "lora_np").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    named = {
        found
        for path in files
        for found in re.findall(r"arXiv:(\d{4}\.\d{4,5})", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 15
    assert named <= set(re.findall(r"arXiv:(\d{4}\.\d{4,5})\]", PAGE))
