"""Adapters of any method that merges as plain LoRA: the nearest, and how far it is."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lora_np import inject, load_adapter, merge, save_adapter
from lora_np.adapters import (
    Keep,
    convert_adapter,
    fit_table,
    nearest_lora,
    open_adapter,
    total_errors,
)
from lora_np.files import CheckpointError, save_json, save_tensors
from lora_np.layers import MLP, Linear, copy_model
from lora_np.methods import Adapter, DoraConfig, LoraConfig, LoRALinear, MethodConfig, adapters
from lora_np.methods.file_form import tensors_of
from lora_np.methods.peft import PeftMethod
from lora_np.parameters import Parameter
from tests.adapters.test_on_model import TOKENS, write_gpt2
from tests.methods.own_gains import GainConfig
from tests.methods.test_methods import Biases
from tests.sample_files import save_any

D = 6
FULL = Keep(rank=D)  # the smaller side of both matrices
EVERY = {  # in PEFT's form
    "dora": DoraConfig(r=2, lora_alpha=3, target_modules="all-linear"),
    "dora, one layer": DoraConfig(r=2, target_modules=("down_proj",)),
    "pissa": LoraConfig(r=2, target_modules="all-linear", init_lora_weights="pissa"),
    "lora": LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
}
every_method = pytest.mark.parametrize("config", EVERY.values(), ids=list(EVERY))


class Scaled(Adapter):
    """y = g * (x W0^T + b): merging scales the bias too, which LoRA cannot hold."""

    def __init__(self, base, g):
        self.base, self.g = base, g

    def forward(self, x, rng=None):
        y, cache = self.base.forward(x, rng)
        return self.g.value * y, cache

    def merged(self):
        g, b = self.g.value, self.base.b
        return Linear.over(Parameter(g[:, None] * self.base.W.value), Parameter(g * b.value))


@dataclass(frozen=True)
class ScaledConfig(PeftMethod):
    """A gain for each output, in a form like PEFT's IA3."""

    target_modules: tuple[str, ...] | str = "all-linear"
    name = "test_scaled"
    peft_type = "TEST_SCALED"

    def wrap(self, path, layer, rng):
        return Scaled(layer, Parameter(np.ones(layer.d_out, layer.W.dtype)))


class Shared(Adapter):
    """W = W0 + s A[:out, :in]: A (widest out, widest in) is shared by all layers."""

    def __init__(self, base, A, s):
        self.base, self.A, self.s = base, A, s

    def merged(self):
        d_out, d_in = self.base.W.shape
        W = self.base.W.value + self.s.value * self.A.value[:d_out, :d_in]
        return Linear.over(Parameter(W), self.base.b)


@dataclass(frozen=True)
class SharedConfig(MethodConfig):
    """In a file, A belongs to no layer, as VeRA's A and B do not."""

    name = "test_shared"
    of_model = ("shared_A",)

    @classmethod
    def of_fields(cls, saved):
        return cls() if saved.get("peft_type") == "TEST_SHARED" else None

    @classmethod
    def of_peft(cls, saved, tensors, base, places):
        layers = base.modules()
        widest = [max(layer.W.shape[axis] for layer in layers.values()) for axis in (0, 1)]
        if tensors["shared_A"].shape != tuple(widest):
            raise ValueError(f"shared_A has shape {tensors['shared_A'].shape}, expected {widest}")
        A = Parameter(tensors["shared_A"])
        for path, layer in layers.items():
            setattr(base, path, Shared(layer, A, Parameter(tensors[f"{path}.s"])))
        return base


@dataclass(frozen=True)
class StaysConfig(PeftMethod):
    """A method whose path remains beside the base."""

    target_modules: tuple[str, ...] | str = "all-linear"
    name = "test_stays"
    peft_type = "TEST_STAYS"
    merges = False

    def wrap(self, path, layer, rng):
        return Stays(layer)


class Stays(Adapter):
    def __init__(self, base):
        self.base, self.v = base, Parameter(np.ones(3, np.float32))

    def merged(self):
        raise ValueError("it has a tanh between its products")


@pytest.fixture
def base(rng):
    model = MLP(D, 4 * D, rng)
    for p in model.parameters().values():
        p.value = rng.standard_normal(p.shape).astype(p.dtype)
    return model


def at_random(adapted, rng, by=0.3):
    for p in tensors_of(adapted).values():
        p.value = p.value + (by * rng.standard_normal(p.shape)).astype(p.dtype)
    return adapted


def checkpoint(base, path, prefix=""):
    """The model's weights by PyTorch's names; returns the file."""
    leaf = {"W": "weight", "b": "bias"}
    parts = {name: name.rpartition(".") for name in base.parameters()}
    save_tensors(
        path,
        {
            f"{prefix}{parts[name][0]}.{leaf[parts[name][2]]}": p.value
            for name, p in base.parameters().items()
        },
    )
    return path


def change(adapted, base, path):
    """W - W0 in float64, from the merged float64 model."""
    wide = merge(copy_model(adapted, dtype=np.float64)).modules()[path].W.value
    return wide - base.modules()[path].W.value.astype(np.float64)


def norm(x):
    return float(np.linalg.norm(x))


def relative(found, expected):
    return norm(found - expected) / norm(expected)


def files_in(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(tmp_path, words, adapter, base, keep=FULL, kind=ValueError):
    """One line that says so, and nothing is written."""
    before = files_in(tmp_path)
    with pytest.raises(kind, match=re.escape(words)) as caught:
        convert_adapter(adapter, base, tmp_path / "out", keep)
    assert "\n" not in str(caught.value) and files_in(tmp_path) == before


# --------------------------------------------------------------------------- it is the nearest LoRA


@every_method
def test_at_full_rank_a_converted_adapter_computes_what_the_merged_model_does(
    tmp_path, rng, base, config
):
    adapted = at_random(inject(base, config, rng), rng)
    save_adapter(adapted, tmp_path / "a")
    file = checkpoint(base, tmp_path / "base.safetensors")
    found = convert_adapter(tmp_path / "a", file, tmp_path / "out", FULL)
    again = load_adapter(base, tmp_path / "out")
    assert {type(layer) for layer in adapters(again).values()} == {LoRALinear}
    assert set(adapters(again)) == {fit.name for fit in found.fits} == set(adapters(adapted))
    x = rng.standard_normal((5, D)).astype(np.float32)
    expected = merge(adapted).forward(x)[0]
    assert relative(base.forward(x)[0], expected) > 1e-2
    assert relative(again.forward(x)[0], expected) < 2e-6
    assert not found.beyond and not found.rounding


@every_method
@pytest.mark.parametrize("route", ["checkpoint", "model"])
def test_a_low_rank_is_off_by_the_singular_values_that_it_leaves_out(
    tmp_path, rng, base, config, route
):
    adapted = at_random(inject(base, config, rng), rng)
    save_adapter(adapted, tmp_path / "a")
    target = checkpoint(base, tmp_path / "base.safetensors") if route == "checkpoint" else base
    found = convert_adapter(tmp_path / "a", target, tmp_path / "out", Keep(rank=1))
    again, missed, whole = adapters(load_adapter(base, tmp_path / "out")), 0.0, 0.0
    for fit in found.fits:
        delta = change(adapted, base, fit.name)
        tail = norm(np.linalg.svd(delta, compute_uv=False)[1:])
        assert fit.r == again[fit.name].r == 1
        assert fit.norm == pytest.approx(norm(delta), rel=1e-6)
        assert fit.missed == pytest.approx(tail, rel=1e-5) and tail > 1e-2
        error = norm(again[fit.name].delta().astype(np.float64) - delta)
        assert fit.written == pytest.approx(error, rel=1e-5)
        missed, whole = missed + tail**2, whole + norm(delta) ** 2
    assert total_errors(found.fits)[0] == pytest.approx((missed / whole) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("route", ["checkpoint", "model"])
def test_a_change_far_below_the_weights_keeps_its_digits(tmp_path, rng, base, route):
    """In float32, W - W0 would be off by a thousandth here."""
    adapted = at_random(inject(base, EVERY["dora"], rng), rng, by=1e-4)
    save_adapter(adapted, tmp_path / "a")
    target = checkpoint(base, tmp_path / "base.safetensors") if route == "checkpoint" else base
    convert_adapter(tmp_path / "a", target, tmp_path / "out", FULL)
    for path, layer in adapters(load_adapter(base, tmp_path / "out")).items():
        delta = change(adapted, base, path)
        assert norm(delta) < 1e-3 * norm(base.modules()[path].W.value)
        assert relative(layer.delta().astype(np.float64), delta) < 1e-6


def test_the_nearest_lora_of_a_model_in_memory_is_that_of_its_file(tmp_path, rng, base):
    adapted = at_random(inject(base, EVERY["dora"], rng), rng)
    save_adapter(adapted, tmp_path / "a")
    written = convert_adapter(tmp_path / "a", base, tmp_path / "out", Keep(rank=2))
    lora, found = nearest_lora(adapted, base, Keep(rank=2))
    for ours, theirs in zip(found.fits, written.fits):
        assert (ours.name, ours.r) == (theirs.name, theirs.r)
        assert ours.missed == pytest.approx(theirs.missed, rel=1e-5)
    x = rng.standard_normal((3, D)).astype(np.float32)
    expected = load_adapter(base, tmp_path / "out").forward(x)[0]
    assert relative(lora.forward(x)[0], expected) < 1e-5
    assert np.shares_memory(lora.up_proj.W0.value, base.up_proj.W.value)
    trained = {name for name, p in lora.parameters().items() if p.trainable}
    assert trained == {f"{path}.{half}" for path in adapters(lora) for half in "AB"}


@pytest.mark.parametrize("keep", [Keep(energy=1.0), Keep(energy=0.999999), Keep(error=1e-4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rounding_of_a_merge_adds_no_rank(rng, base, keep, dtype):
    wide = copy_model(base, dtype=dtype)
    adapted = at_random(inject(wide, LoraConfig(r=2, target_modules="all-linear"), rng), rng)
    _, found = nearest_lora(adapted, wide, keep)
    assert [fit.r for fit in found.fits] == [2, 2]


@pytest.mark.parametrize("seed", range(4))
def test_nine_of_ten_equal_directions_are_nine_tenths_whatever_rounding_says(seed):
    """W - W0 = Q Q^T with ten equal singular values, whose computed sum may be below 10."""
    rng = np.random.default_rng(seed)
    Q, P = (np.linalg.qr(rng.standard_normal((n, 10)))[0] for n in (12, 14))
    base = MLP(14, 12, rng, dtype=np.float64)
    adapted = inject(base, LoraConfig(r=10, lora_alpha=10, target_modules=("up_proj",)), rng)
    adapted.up_proj.A.value, adapted.up_proj.B.value = P.T.copy(), Q
    ranks = [nearest_lora(adapted, base, Keep(energy=e))[1].fits[0].r for e in (0.9, 0.5, 1.0)]
    assert ranks == [9, 5, 10]


def test_half_the_energy_takes_fewer_directions_and_says_so(tmp_path, rng, base):
    save_adapter(at_random(inject(base, EVERY["dora"], rng), rng), tmp_path / "a")
    ranks = {}
    for energy in (0.5, 0.99):
        found = convert_adapter(tmp_path / "a", base, tmp_path / str(energy), Keep(energy=energy))
        ranks[energy] = [fit.r for fit in found.fits]
        assert all(fit.missed**2 <= (1 - energy) * fit.norm**2 for fit in found.fits)
    assert all(low < high for low, high in zip(ranks[0.5], ranks[0.99]))


# --------------------------------------------------------------------------- GPT-2, and other names


def test_gpt2s_c_attn_gets_one_lora_of_the_rank_that_was_asked_for(tmp_path, rng):
    base = write_gpt2(tmp_path / "base", rng)
    adapted = at_random(inject(base, DoraConfig(r=2), rng), rng)  # q and v
    save_adapter(adapted, tmp_path / "a", base_model="gpt2", peft_only=True)
    for target, name in ((tmp_path / "base", "file"), (base, "model")):
        found = convert_adapter(tmp_path / "a", target, tmp_path / name, Keep(rank=3))
        names = [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
        assert [(fit.name, fit.r, fit.shape) for fit in found.fits] == [
            (name, 3, (24, 8)) for name in names
        ]
        with open_adapter(tmp_path / name) as file:
            assert file.fan_in_fan_out and file.base_model == "gpt2"
            assert {n: m.r for n, m in file.modules.items()} == dict.fromkeys(names, 3)
    found = convert_adapter(tmp_path / "a", tmp_path / "base", tmp_path / "full", Keep(rank=8))
    expected = merge(adapted).forward(TOKENS)[0]
    assert relative(base.forward(TOKENS)[0], expected) > 1e-2
    again = load_adapter(base, tmp_path / "full")
    assert relative(again.forward(TOKENS)[0], expected) < 2e-6


def test_our_own_form_is_converted_on_a_folder_of_a_model_that_we_have(tmp_path, rng):
    base = write_gpt2(tmp_path / "base", rng)
    adapted = at_random(inject(base, GainConfig(r=2), rng), rng)
    save_adapter(adapted, tmp_path / "a")
    assert "lora_np_method" in json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    found = convert_adapter(tmp_path / "a", tmp_path / "base", tmp_path / "out", Keep(energy=1.0))
    ranks = {fit.name.partition("h.0.")[2]: fit.r for fit in found.fits}
    assert (ranks["attn.c_attn"], ranks["mlp.c_fc"]) == (6, 2)  # q, k and v have rank 2 each
    again = load_adapter(base, tmp_path / "out")
    expected = merge(adapted).forward(TOKENS)[0]
    assert relative(again.forward(TOKENS)[0], expected) < 2e-6


def test_our_own_form_needs_a_model_that_we_have(tmp_path, rng, base):
    save_adapter(inject(base, GainConfig(r=2), rng), tmp_path / "a")
    file = checkpoint(base, tmp_path / "model.safetensors")
    refused(tmp_path, "has no config.json", tmp_path / "a", file, kind=CheckpointError)
    save_json(tmp_path / "config.json", {"model_type": "mamba"})
    refused(tmp_path, "model_type = 'mamba', lora_np has only gpt2", tmp_path / "a", tmp_path)


@pytest.mark.parametrize("prefixes", [("", "model."), ("model.", ""), ("vision_model.", "")])
def test_a_first_part_of_the_names_may_be_missing_in_one_of_the_files(tmp_path, rng, prefixes):
    ours, theirs = prefixes

    def layers(start):
        names = (f"{start}layers.0.q_proj.weight", f"{start}layers.1.q_proj.weight")
        return {name: np.random.default_rng(1).standard_normal((4, 5)) for name in names}

    save_tensors(tmp_path / "base.safetensors", layers(theirs))
    tensors = {}
    for name in layers(ours):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        B, A = rng.standard_normal((4, 1)), rng.standard_normal((1, 5))
        tensors |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
        tensors[f"{module}.lora_magnitude_vector"] = np.arange(1.0, 5.0)
    save_tensors(folder(tmp_path / "a", peft_type="LORA", use_dora=True, r=1), tensors)
    found = convert_adapter(
        tmp_path / "a", tmp_path / "base.safetensors", tmp_path / "out", Keep(rank=4)
    )
    with open_adapter(tmp_path / "out") as file:
        assert list(file.modules) == [n.removesuffix(".weight") for n in layers(ours)]
        W0 = layers(theirs)[f"{theirs}layers.0.q_proj.weight"]
        B, A = (x.astype(float) for x in file.modules[f"{ours}layers.0.q_proj"].factors())
    np.testing.assert_allclose(np.linalg.norm(W0 + B @ A, axis=1), [1, 2, 3, 4], rtol=1e-5)
    assert len(found.fits) == 2


def folder(path, **fields):
    """A new folder with these fields; returns the path of its tensors."""
    path.mkdir()
    save_json(path / "adapter_config.json", fields)
    return path / "adapter_model.safetensors"


def test_tensors_of_the_whole_model_meet_all_layers_at_once(tmp_path, rng, base):
    A = rng.standard_normal((4 * D, 4 * D))
    tensors = {f"base_model.model.{path}.s": np.array(0.5) for path in ("up_proj", "down_proj")}
    save_tensors(folder(tmp_path / "a", peft_type="TEST_SHARED"), {**tensors, "shared_A": A})
    file = checkpoint(base, tmp_path / "base.safetensors")
    convert_adapter(tmp_path / "a", file, tmp_path / "out", FULL)
    deltas = {p: x.delta() for p, x in adapters(load_adapter(base, tmp_path / "out")).items()}
    np.testing.assert_allclose(deltas["up_proj"], 0.5 * A[:, :D], atol=1e-5)
    np.testing.assert_allclose(deltas["down_proj"], 0.5 * A[:D], atol=1e-5)


# ---------------------------------------------------------------------------- what LoRA cannot hold


@pytest.mark.parametrize("route", ["checkpoint", "model"])
def test_biases_that_change_are_left_out_and_measured(tmp_path, rng, base, route):
    adapted = at_random(inject(base, ScaledConfig(), rng), rng)
    save_adapter(adapted, tmp_path / "a", peft_only=True)
    target = checkpoint(base, tmp_path / "base.safetensors") if route == "checkpoint" else base
    found = convert_adapter(tmp_path / "a", target, tmp_path / "out", FULL)
    plain, last = merge(adapted), "bias" if route == "checkpoint" else "b"
    expected = {
        f"{path}.{last}": norm(plain.modules()[path].b.value - base.modules()[path].b.value)
        for path in ("up_proj", "down_proj")
    }
    assert found.beyond == pytest.approx(expected, rel=1e-5) and min(expected.values()) > 0.1
    again = merge(load_adapter(base, tmp_path / "out"))
    x = rng.standard_normal((3, D)).astype(np.float32)
    assert relative(again.forward(x)[0], plain.forward(x)[0]) > 1e-2
    for path in ("up_proj", "down_proj"):
        again.modules()[path].b.value = plain.modules()[path].b.value
    assert relative(again.forward(x)[0], plain.forward(x)[0]) < 2e-6


def test_what_changes_biases_and_norms_alone_is_refused(tmp_path, rng):
    base = write_gpt2(tmp_path / "base", rng)
    adapted = at_random(inject(base, Biases(), rng), rng)
    save_adapter(adapted, tmp_path / "a")
    words = "changes only h.0.ln_1.beta, h.0.attn.q_proj.b"
    refused(tmp_path, words, tmp_path / "a", tmp_path / "base")
    with pytest.raises(ValueError, match=r"which plain LoRA cannot hold: .* merge it there"):
        nearest_lora(adapted, base, FULL)


@every_method
def test_an_adapter_at_its_start_is_refused(tmp_path, rng, base, config):
    save_adapter(inject(base, config, rng), tmp_path / "a")
    file = checkpoint(base, tmp_path / "base.safetensors")
    for target in (file, base):
        refused(tmp_path, "changes no matrix by more than rounding", tmp_path / "a", target)


def test_a_method_that_does_not_merge_is_refused_with_its_reason(tmp_path, rng, base):
    adapted = inject(base, StaysConfig(), rng)
    save_adapter(adapted, tmp_path / "a")
    file = checkpoint(base, tmp_path / "base.safetensors")
    refused(tmp_path, "method 'test_stays' does not merge", tmp_path / "a", file)
    refused(tmp_path, "it has a tanh between its products", tmp_path / "a", base)
    with pytest.raises(ValueError, match="it has a tanh between its products"):
        nearest_lora(adapted, base, FULL)


MODULES = {  # what the checkpoint holds under the adapted name
    "a norm": ({"m.weight": np.ones(5)}, "of shape (5,), and the adapter changes it"),
    "a convolution": ({"m.weight": np.ones((4, 5, 3, 3))}, "matrices only"),
    "an embedding": ({"embed_tokens.weight": np.ones((4, 5))}, "'embed_tokens.weight' of shape"),
    "integers": ({"m.weight": np.ones((4, 5), np.int8)}, "holds 'm.weight' as"),
    "quantised": (
        {"m.weight": np.ones((4, 5), np.uint8), "m.weight.absmax": np.ones(2)}, "is quantised",
    ),
    "another shape": ({"m.weight": np.ones((4, 6))}, "with shape (4, 5), expected (4, 6)"),
    "another module": ({"n.weight": np.ones((4, 5))}, "does not have modules that"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODULES)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, rng, kind):
    held, words = MODULES[kind]
    save_any(tmp_path / "base.safetensors", held)
    module = f"base_model.model.{'embed_tokens' if kind == 'an embedding' else 'm'}"
    tensors = {
        f"{module}.lora_A.weight": rng.standard_normal((1, 5)),
        f"{module}.lora_B.weight": rng.standard_normal((4, 1)),
        f"{module}.lora_magnitude_vector": np.ones(4),
    }
    save_tensors(folder(tmp_path / "a", peft_type="LORA", use_dora=True, r=1), tensors)
    refused(tmp_path, words, tmp_path / "a", tmp_path / "base.safetensors", kind=CheckpointError)


def test_a_folder_with_files_stays_as_it_is(tmp_path, rng, base):
    save_adapter(at_random(inject(base, EVERY["dora"], rng), rng), tmp_path / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused(tmp_path, "already exists", tmp_path / "a", base, kind=CheckpointError)


@pytest.mark.parametrize("use_dora", [True, False])
def test_options_of_ours_that_are_no_object_are_refused(tmp_path, rng, base, use_dora):
    config = DoraConfig(r=2, target_modules="all-linear") if use_dora else EVERY["lora"]
    save_adapter(inject(base, config, rng), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_np_options": "x"}))
    file = checkpoint(base, tmp_path / "base.safetensors")
    for target in (file, base):
        words = "lora_np_options = 'x', expected an object"
        refused(tmp_path, words, tmp_path / "a", target, kind=CheckpointError)


# ----------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("config", [DoraConfig(r=2), ScaledConfig(), GainConfig(r=2)])
def test_a_file_that_is_not_plain_lora_says_how_to_use_it(tmp_path, rng, base, config):
    save_adapter(inject(base, replace(config, target_modules="all-linear"), rng), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"\(load_adapter\) or use lora-np convert") as caught:
        open_adapter(tmp_path / "a")
    field = {"dora": "use_dora", "test_scaled": "peft_type", "own_gains": "lora_np_method"}
    assert field[config.name] in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "LORA", "lora_bias": True},
        {"peft_type": "LORA", "modules_to_save": ["head"]},
        {"peft_type": "NEWER_THAN_ALL"},
        {"peft_type": "LORA", "use_dora": True, "lora_np_options": "x"},
        {"lora_np_method": "test_nowhere_defined"},
    ],
)
def test_no_way_out_is_named_that_does_not_exist(tmp_path, fields):
    save_tensors(folder(tmp_path / "a", **fields), {"m.lora_A.weight": np.ones((1, 2))})
    with pytest.raises(CheckpointError) as caught:
        open_adapter(tmp_path / "a")
    assert "lora-np convert" not in str(caught.value)


# -------------------------------------------------------------------------------------- the command


def test_the_command_prints_the_errors_and_what_is_left_out(tmp_path, rng, base, command):
    save_adapter(at_random(inject(base, ScaledConfig(), rng), rng), tmp_path / "a")
    checkpoint(base, tmp_path / "b.safetensors")
    folders = f"{tmp_path}/a --base {tmp_path}/b.safetensors --out {tmp_path}/out"
    status, out, err = command(*f"convert {folders} --energy 0.9".split())
    found = convert_adapter(
        tmp_path / "a", tmp_path / "b.safetensors", tmp_path / "again", Keep(energy=0.9)
    )
    assert (status, err) == (0, "") and str(fit_table(found.fits)) in out
    assert "changed, but not in the adapter" in out and "up_proj.bias" in out
    assert files_in(tmp_path / "out").keys() and out.endswith(f"written to {tmp_path}/out/\n")
    status, out, err = command(*f"convert {folders} --rank 2".split())
    assert (status, out, err.count("\n")) == (2, "", 1) and "already exists" in err
