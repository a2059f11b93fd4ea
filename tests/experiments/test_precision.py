"""lora_np.experiments.precision: what is measured is what it says, and the page prints it."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from lora_np import cli, plots
from lora_np.costs import account
from lora_np.experiments.precision import PrecisionSettings, picture, precision_study, report
from lora_np.experiments.precision.merging import FORMS, merge_row, unchanged_by_size
from lora_np.experiments.precision.planted import HalfGradients, Planted
from lora_np.experiments.precision.study import adapted_at_start, stored_bases
from lora_np.files import load_json
from lora_np.layers import Linear
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT
from lora_np.parameters import Grads
from tests.compare import PNG
from tests.docs.pages import ROOT

TINY = PrecisionSettings(
    pretrain_steps=14, steps=4, scaling_steps=3, batch_size=2, block_size=16, d_model=16,
    n_layer=1, n_head=2, r=2, windows=4, sizes=(1e-4, 1e-2), plants=(14, -30),
)  # fmt: skip
PAGE = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results():
    return precision_study(TINY)


def gpt():
    return GPT(TINY.gpt(), np.random.default_rng(0))


# --- storage -------------------------------------------------------------------------------------


def test_the_study_is_plain_values_and_repeats_bit_for_bit(results):
    heard = []
    assert json.loads(json.dumps(precision_study(TINY, heard.append))) == json.loads(
        json.dumps(results)
    )
    assert heard[0] == "pretraining" and len(heard) == 1 + 4 + 6


def test_every_form_has_its_bytes_and_its_losses(results):
    rows = {row["form"]: row for row in results["storage"]}
    assert list(rows) == list(FORMS) == ["float32", "bfloat16", "float16", "nf4"]
    n = results["parameters"]
    assert rows["float32"]["bytes"] == 4 * n and rows["bfloat16"]["bytes"] == 2 * n
    assert rows["nf4"]["bytes"] < 2 * n
    errors = [rows[name]["error"] for name in ("float32", "float16", "bfloat16", "nf4")]
    assert errors[0] == 0.0 and errors == sorted(errors) and errors[3] < 0.2
    assert all(row["after"] < row["before"] for row in rows.values())


def test_over_nf4_every_parameter_is_stored_in_few_bits():
    model = stored_bases(gpt())["nf4"]
    linear = {f"{path}.W" for path, layer in model.modules().items() if isinstance(layer, Linear)}
    for name, p in model.parameters().items():
        assert p.stored_as == ("nf4" if name in linear else "bfloat16")
    assert account(model).trainable == 0


# --- merging -------------------------------------------------------------------------------------


def trained_linear(size):
    """A linear layer with W0 in bfloat16's numbers and an adapter whose change has this norm."""
    rng = np.random.default_rng(0)
    base = Linear(30, 20, rng, bias=False)
    base.W.value[...] = base.W.value.astype(ml_dtypes.bfloat16)
    adapted = inject(base, LoraConfig(r=2, target_modules="all-linear"), rng)
    adapted.B.value[...] = rng.standard_normal((20, 2))
    factor = size * np.linalg.norm(base.W.value) / np.linalg.norm(adapted.delta())
    adapted.B.value[...] *= factor
    return base.W.value.astype(np.float64), adapted


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 1.0])
def test_the_shares_of_a_merge_are_those_of_ml_dtypes(size):
    W0, adapted = trained_linear(size)
    change = adapted.delta().astype(np.float64)
    W = (W0 + change).astype(ml_dtypes.bfloat16).astype(np.float64)
    again = (W - change).astype(ml_dtypes.bfloat16).astype(np.float64)
    found = merge_row("bfloat16", adapted)
    assert found["size"] == pytest.approx(size, rel=1e-5)
    assert found["unchanged"] == (W == W0).mean()
    assert found["not_restored"] == pytest.approx((again != W0).mean(), abs=1e-12)
    error = np.linalg.norm(W - W0 - change) / np.linalg.norm(change)
    assert found["rounding"] == pytest.approx(error, rel=1e-9)


def test_small_changes_are_lost_in_order_of_the_digits():
    shares = {name: unchanged_by_size(name, gpt(), (1e-5, 1e-3, 1e-1)) for name in FORMS}
    for found in shares.values():
        assert found[0] >= found[1] >= found[2]
    middle = [shares[name][1] for name in ("float32", "float16", "bfloat16", "nf4")]
    assert middle == sorted(middle) and middle[0] < 0.01 < 0.5 < middle[2] and middle[3] == 1.0


def test_nothing_is_merged_where_nothing_was_trained():
    adapted = inject(gpt(), LoraConfig(r=2), np.random.default_rng(1))
    for layer in (adapted.h[0].attn.q_proj, adapted.h[0].attn.v_proj):
        layer.B.value[...] = 1e-12
    found = merge_row("float32", adapted)
    assert found["unchanged"] == 1.0 and found["rounding"] == pytest.approx(1.0)


# --- gradients -----------------------------------------------------------------------------------


def test_half_gradients_are_those_of_the_rounded_dy():
    layer, x = Linear(3, 4, np.random.default_rng(0)), np.ones((5, 3), np.float32)
    dy = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32) * np.float32(1e-7)
    half, found, expected = HalfGradients(layer), Grads(), Grads()
    _, cache = half.forward(x)
    dx = half.backward(dy, cache, found)
    rounded = dy.astype(np.float16).astype(np.float32)
    _, cache = layer.forward(x)
    np.testing.assert_array_equal(dx, layer.backward(rounded, cache, expected))
    np.testing.assert_array_equal(found[layer.W], expected[layer.W])
    assert (half.seen, half.lost) == (20, int((rounded == 0).sum())) and 0 < half.lost < 20


@pytest.mark.parametrize("power, lost", [(0, 0.5), (-40, 1.0)])
def test_a_planted_gradient_is_smaller_by_its_factor_or_lost(power, lost):
    tokens = np.arange(32).reshape(2, 16)
    plain, model = adapted_at_start(gpt(), TINY), Planted(adapted_at_start(gpt(), TINY), 2.0**power)
    grads = []
    for one in (plain, model):
        grads.append(Grads())
        _, cache = one.loss(tokens, tokens)
        one.backward(1.0, cache, grads[-1])
    names = [name for name, p in plain.parameters().items() if name.endswith(".B")]
    theirs = {n.replace(".inner", ""): p for n, p in model.parameters().items()}
    assert len(names) == 6 and model.lost() <= lost
    for name in names:
        exact, found = grads[0][plain.parameters()[name]], grads[1][theirs[name]]
        if power == -40:
            assert not found.any() and model.lost() == 1.0
        else:
            np.testing.assert_allclose(found, exact, atol=0.01 * np.abs(exact).max())


def test_a_scale_brings_small_gradients_back_and_a_large_one_overflows(results):
    rows = {(row["power"], row["scale"]): row for row in results["scaling"]}
    start = results["storage"][0]["before"]
    assert rows[-30, None]["loss"] == start and rows[-30, None]["lost"] == 1.0  # nothing trained
    assert rows[-30, 65536.0]["lost"] < 1.0 and rows[-30, 65536.0]["loss"] != start
    assert rows[14, 65536.0]["loss"] is None  # inf in float16
    assert rows[14, "dynamic"]["loss"] == pytest.approx(rows[14, None]["loss"], abs=1e-3)


# --- the command and the page --------------------------------------------------------------------


def test_the_command_writes_its_tables_and_the_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lora_np.experiments.precision.QUICK", TINY)
    out = tmp_path / "new" / "folder"
    assert cli.main(["precision", "--quick", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    text = (out / "precision.txt").read_text(encoding="utf-8")
    assert said.startswith(text) and "a quick run: there is nothing to conclude" in said
    assert text == f"{report(load_json(out / 'precision.json'))}\n" and "diverged" in text
    assert (out / "precision.png").read_bytes().startswith(PNG)


def test_the_picture_names_the_loss_scale_with_which_training_diverges():
    rows = [
        {"power": power, "scale": scale, "loss": None if (power, scale) == (12, 65536.0) else 2.0}
        for scale in (None, 65536.0, "dynamic")
        for power in (12, 0)
    ]
    axis = plots.figure(4, 4).subplots()
    picture._draw_scaling(axis, {"scaling": rows})
    labels = [line.get_label() for line in axis.get_lines()]
    assert labels == [
        "no loss scale",
        "loss scale 2^16 (diverges at 2^12)",
        "loss scale dynamic",
    ]


def test_a_folder_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.main(["precision", "--quick", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "out" in said.err


def tables():
    """Return the rows of the page's run by table and first cell, as lists of words."""
    (run,) = re.findall(r"```\n\$ lora-np precision .*?\n(.*?)```", PAGE, re.S)
    return [
        {line.split()[0]: line.split() for line in table.splitlines()}
        for table in run.strip().split("\n\n")
    ]


def test_the_prose_of_the_page_is_what_its_run_printed():
    storage, merging, sizes, _ = tables()
    losses = {form: [float(x) for x in storage[form][-2:]] for form in FORMS}
    nf4, whole = losses["nf4"], losses["float32"]
    assert f"base by {nf4[0] - whole[0]:.3f} and the" in PAGE
    assert f"after training by {nf4[1] - whole[1]:.3f}," in " ".join(PAGE.split())
    for form in ("bfloat16", "float16"):
        assert abs(losses[form][1] - whole[1]) < 0.00015
    assert f"takes {storage['nf4'][2]} % of the bytes" in PAGE
    assert f"is large, {merging['float32'][1]} of the weight" in PAGE
    at = sizes["merged"].index("0.001") - 2  # the head has two words before its sizes
    shares = {form: [x for x in sizes[form][1:] if x != "%"] for form in FORMS}
    assert f"leaves {shares['bfloat16'][at]} % of the entries" in " ".join(PAGE.split())
    assert f"and {shares['float16'][at]} % in float16" in PAGE
    assert shares["nf4"][at + 1] == "100.0"


def test_what_the_page_says_of_gradients_is_what_its_run_printed():
    (run,) = re.findall(r"```\n\$ lora-np precision .*?\n(.*?)```", PAGE, re.S)
    rows = {
        (power, scale): (lost, loss)
        for power, scale, lost, loss in re.findall(
            r"^2\^(-?\d+) +(\w+) +([\d.]+) % +([\d.]+|diverged)$", run, re.M
        )
    }
    assert len(rows) == 15
    assert f"planted, {rows['0', 'none'][0]} % of these" in PAGE
    assert f"At 2^-8, {rows['-8', 'none'][0]} % are lost" in PAGE
    usual = rows["0", "none"][1]
    assert rows["12", "none"][1] == usual and float(rows["-8", "none"][1]) > float(usual)
    assert rows["-8", "65536"][1] == rows["-16", "65536"][1] == usual
    assert rows["12", "65536"][1] == "diverged" and rows["12", "dynamic"][1] == usual
    assert rows["-16", "none"] == ("100.0", tables()[0]["float32"][-2])  # nothing is trained
    assert float(rows["-24", "65536"][1]) > float(usual)
