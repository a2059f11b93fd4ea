"""docs/derivations: every pair has a page, and the page's session fails where the pair is wrong."""

import re

import numpy as np
import pytest

from lora_np import ops, optim, rank
from lora_np.gradcheck import check
from lora_np.images import samplers, schedule
from tests.docs.pages import ROOT, bodies, failures

FOLDER = ROOT / "docs" / "derivations"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(FOLDER.glob("*.md"))}
PAIRS = {  # pair: its page, and the gradients in the order that backward returns them
    "linear": ("linear.md", "dx dW db"),
    "lora_linear": ("lora_linear.md", "dx dW0 dA dB db"),
    "lora_rows": ("lora_rows.md", "dx dW0 dA dB db"),
    "gelu": ("activations.md", "dx"),
    "relu": ("activations.md", "dx"),
    "silu": ("activations.md", "dx"),
    "swiglu": ("swiglu.md", "dgate dup"),
    "softmax": ("softmax.md", "dx"),
    "attention": ("attention.md", "dq dk dv"),
    "gqa": ("grouped_query_attention.md", "dq dk dv"),
    "rope": ("rope.md", "dx"),
    "rmsnorm": ("rmsnorm.md", "dx dgamma"),
    "layernorm": ("layernorm.md", "dx dgamma dbeta"),
    "modulated_norm": ("modulated_norm.md", "dx dshift dscale"),
    "embedding": ("embedding.md", "dW"),
    "dropout": ("dropout.md", "dx"),
    "cross_entropy": ("cross_entropy.md", "dlogits"),
    "head_loss": ("head_loss.md", "dx dW"),
    "mse": ("mse.md", "dy dtarget"),
    "im2col": ("convolution.md", "dx"),
    "rnn_cell": ("recurrent.md", "dgx dgh"),
    "gru_cell": ("recurrent.md", "dgx dgh dh"),
}
every_page = pytest.mark.parametrize("name", PAGES)


def failed(page):
    """Return how many examples of this page's session print something else than it shows."""
    return failures("\n\n".join(bodies(PAGES[page], "pycon")), page)


# --- the sessions notice what is wrong ----------------------------------------------------------


def slightly_longer(x):
    return 1.01 * x


def one_entry_off(x):
    x = np.array(x)
    x.flat[-1] += 1e-9
    return x


def zero(x):
    return 0.0 * x


def agrees_always(*args, right=check.check_gradients, **kwargs):
    report = right(*args, **kwargs)
    return check.GradientReport(report.rows, report.method, np.inf)


def spoil(monkeypatch, function, slot, mistake):
    """Make the slot-th result of lora_np.ops' `function` wrong; None and other slots stay."""
    right = getattr(ops, function)

    def wrong(*args, **kwargs):
        results = list(right(*args, **kwargs))
        if isinstance(results[slot], list):  # a gradient for each adapter
            results[slot] = [mistake(x) if x is not None else None for x in results[slot]]
        elif results[slot] is not None:
            results[slot] = mistake(results[slot])
        return tuple(results)

    monkeypatch.setattr(ops, function, wrong)


def test_every_pair_has_a_page():
    assert {f"{pair}_{way}" for pair in PAIRS for way in ("forward", "backward")} == {
        name for name in ops.__all__ if name.endswith(("_forward", "_backward"))
    }


@pytest.mark.parametrize("mistake", [slightly_longer, one_entry_off, zero])
@pytest.mark.parametrize(
    "pair, slot, gradient",
    [(p, i, g) for p, (_, gradients) in PAIRS.items() for i, g in enumerate(gradients.split())],
)
def test_a_wrong_gradient_fails_its_page(pair, slot, gradient, mistake, monkeypatch, capsys):
    spoil(monkeypatch, f"{pair}_backward", slot, mistake)
    monkeypatch.setattr("lora_np.check_gradients", agrees_always)  # the page's formula must see it
    assert failed(PAIRS[pair][0])
    capsys.readouterr()  # what doctest has to say about it


@pytest.mark.parametrize("mistake", [slightly_longer, one_entry_off])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_wrong_output_fails_its_page(pair, mistake, monkeypatch, capsys):
    spoil(monkeypatch, f"{pair}_forward", 0, mistake)
    monkeypatch.setattr("lora_np.check_gradients", agrees_always)
    assert failed(PAIRS[pair][0])
    capsys.readouterr()


def lora_linear_with(**wrong):
    """Return a backward that computes these gradients from (right gradients, dy, cache)."""
    right = ops.lora_linear_backward

    def backward(dy, cache, need=None):
        found = dict(zip(("dx", "dW0", "dA", "dB", "db"), right(dy, cache)))
        found.update({name: formula(found, dy, cache) for name, formula in wrong.items()})
        return tuple(found.values())

    return backward


@pytest.mark.parametrize(
    "wrong",
    [
        {"dA": lambda found, dy, c: found["dA"] / c.scale},
        {"dB": lambda found, dy, c: found["dB"] * c.scale},
        {"dx": lambda found, dy, c: dy @ c.W0},
        {"dx": lambda found, dy, c: found["dx"] - dy @ c.W0},
        {"dA": lambda found, dy, c: c.scale * (dy @ c.B).T @ c.x},  # no mask
        {"dA": lambda found, dy, c: found["dA"] / len(dy)},
    ],
    ids=["dA unscaled", "dB scaled twice", "one path", "the other path", "no mask", "mean"],
)
def test_loras_usual_mistakes_fail_its_page(wrong, monkeypatch, capsys):
    monkeypatch.setattr(ops, "lora_linear_backward", lora_linear_with(**wrong))
    monkeypatch.setattr("lora_np.check_gradients", agrees_always)
    assert failed("lora_linear.md")
    capsys.readouterr()


right_rows_forward, right_rows_backward = ops.lora_rows_forward, ops.lora_rows_backward
SCALE = {}  # of the last forward


def noting_the_scale(*args, scale):
    SCALE["s"] = scale
    return right_rows_forward(*args, scale=scale)


def learned_from(rows_of, dy, cache, need):
    """Let every adapter learn from ``rows_of(its rows)``."""
    found = list(right_rows_backward(dy, cache, need))
    for a, (A, B) in enumerate(cache.adapters):
        here, s = rows_of(np.flatnonzero(cache.rows.ids == a)), np.resize(SCALE["s"], 9)[a]
        _, part = ops.lora_linear_forward(cache.x[here], cache.W0, A, B, scale=s)
        found[2][a], found[3][a] = ops.lora_linear_backward(dy[here], part)[2:4]
    return tuple(found)


def last_row_alone(dy, cache, need=None):
    return learned_from(lambda own: own[-1:], dy, cache, need)


def every_row(dy, cache, need=None):
    return learned_from(lambda own: slice(None), dy, cache, need)


def own_rows(dy, cache, need=None):
    return learned_from(lambda own: own, dy, cache, need)


def base_has_the_last(x, W0, adapters, ids, b=None, *, scale):
    """Take the id -1 as Python does."""
    wrong = [a % len(adapters) for a in ids]
    return right_rows_forward(x, W0, adapters, wrong, b, scale=scale)


@pytest.mark.parametrize(
    "half, wrong",
    [
        ("backward", last_row_alone),
        ("backward", every_row),
        ("forward", base_has_the_last),
        ("backward", own_rows),
    ],
)
def test_the_usual_mistakes_with_rows_fail_their_page(half, wrong, monkeypatch, capsys):
    monkeypatch.setattr(ops, "lora_rows_forward", noting_the_scale)
    monkeypatch.setattr(ops, f"lora_rows_{half}", wrong)
    assert bool(failed("lora_rows.md")) == (wrong is not own_rows)  # which is right
    capsys.readouterr()


def uncorrected(self, gradient, lr, right=optim.Adam.step):
    self.t = 10**6  # 1 - b^t is 1 from here on
    right(self, gradient, lr)


def coupled(self, gradient, lr):
    """Put the decay into the gradient."""
    gradient = gradient.copy()
    for place in self.matrices:
        gradient[place] += self.weight_decay * self.packed.vector[place]
    optim.Adam.step(self, gradient, lr)


def decays_all(self, gradient, lr):
    self.packed.vector *= 1.0 - lr * self.weight_decay
    optim.Adam.step(self, gradient, lr)


def scaled(function):
    """Return the function with a result that is a little too long."""
    return lambda *args, **kwargs: slightly_longer(function(*args, **kwargs))


@pytest.mark.parametrize(
    "page, owner, name, wrong",
    [
        ("gradient_checking.md", "lora_np", "check_gradients", agrees_always),
        ("gradient_checking.md", check, "STEP", {**check.STEP, "central": 1e-12}),
        ("gradient_checking.md", check, "STEP", {**check.STEP, "complex": 1e-3}),
        ("low_rank.md", rank, "svd_of_factors", lambda B, A, s, f=rank.svd_of_factors: f(B, A)),
        ("low_rank.md", rank, "spectrum", lambda M, s, f=rank.spectrum: f(M)),
        ("low_rank.md", rank, "eckart_young_floor", lambda sigma, r: sum(sigma[r:] ** 2)),
        ("low_rank.md", rank, "best_rank_error", lambda sigma, r: sigma[r] / sigma[0]),
        ("adamw.md", optim.Adam, "step", uncorrected),
        ("adamw.md", optim.AdamW, "step", coupled),
        ("adamw.md", optim.AdamW, "step", decays_all),
        ("initialisation.md", optim.Adam, "step", uncorrected),
        ("initialisation.md", optim.SGD, "step", optim.Adam.step),
        *(
            ("v_prediction.md", schedule, name, scaled(getattr(schedule, name)))
            for name in ("z_of", "v_of", "x0_of", "eps_of")
        ),
        ("ddim.md", samplers, "ddim", samplers.dpm_solver),
        ("ddim.md", samplers, "ddpm", samplers.ddim),
        ("ddim.md", samplers, "dpm_solver", samplers.ddim),
        ("ddim.md", samplers, "half_log_snr", scaled(schedule.half_log_snr)),
        ("consistency.md", samplers, "consistency", samplers.ddim),
        ("consistency.md", samplers, "guided", scaled(samplers.guided)),
        ("consistency.md", schedule, "x0_of", scaled(schedule.x0_of)),
    ],
)
def test_a_wrong_library_fails_the_page(page, owner, name, wrong, monkeypatch, capsys):
    target = (f"{owner}.{name}",) if isinstance(owner, str) else (owner, name)
    monkeypatch.setattr(*target, wrong)
    assert failed(page)
    capsys.readouterr()


@pytest.mark.parametrize("gradient, slot", [("dA", 2), ("dB", 3)])
@pytest.mark.parametrize("page", ["low_rank.md", "initialisation.md", "gradient_checking.md"])
def test_pages_that_build_on_lora_fail_with_it(page, gradient, slot, monkeypatch, capsys):
    spoil(monkeypatch, "lora_linear_backward", slot, lambda x: 1.01 * x + 1e-9)
    assert failed(page)
    capsys.readouterr()


# --- what a page shows is there, and renders ----------------------------------------------------


@every_page
def test_every_line_of_code_stands_in_a_file_that_the_page_links(name):
    links = set(re.findall(r"\]\((\.\./\.\./lora_np/[\w/]+\.py)\)", PAGES[name]))
    files = [(FOLDER / link).read_text(encoding="utf-8") for link in links]
    source = {line.strip() for text in files for line in text.splitlines()}
    shown = "\n".join(bodies(PAGES[name], "python")).splitlines()
    assert [line for line in shown if line.strip() not in source] == []


@every_page
def test_mathematics_is_written_so_that_github_and_sphinx_render_it(name):
    text = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    for line in re.findall(r"^.*\$\$.*$", text, re.M):
        assert re.fullmatch(r"\$\$ [^$]+ \$\$", line)  # a display of its own line
        assert f"\n\n{line}\n\n" in text
    formulas = re.findall(r"\$\$?([^$]+)\$\$?", text)
    assert text.count("$") == sum(4 if f[0] == " " else 2 for f in formulas)
    for formula in formulas:
        # a newline, an HTML bracket, a backslash that Markdown takes as its own, a barred macro
        assert not re.search(r"\n|[<>|]|\\[^a-zA-Z]|\\operatorname|\\label|\\newcommand", formula)


def test_the_index_lists_every_page_once():
    index = PAGES["index.md"]
    entries = re.search(r"^```{toctree}\n(?::.*\n)*\n(.*?)^```", index, re.M | re.S)
    assert entries and {f"{e}.md" for e in entries[1].split()} == set(PAGES) - {"index.md"}
    assert len(entries[1].split()) == len(PAGES) - 1
    assert set(PAGES) - {"index.md"} <= set(re.findall(r"\]\((\w+\.md)\)", index))
