"""Names of tensors and modules: read without wrappers' parts, matched, and never made to meet."""

import json
import re

import numpy as np
import pytest

from lora_np import load_adapter, load_gpt2
from lora_np.adapters import (
    Keep,
    combine_adapters,
    extract_adapter,
    merge_adapter,
    open_adapter,
    resize_adapter,
    write_adapter,
)
from lora_np.adapters.analyse import analyse_adapter, analyse_checkpoints
from lora_np.files import CheckpointError, TensorFile, save_tensors
from lora_np.files.names import matched, plain_names
from lora_np.methods import adapters
from lora_np.models import GPT, GPTConfig
from lora_np.tables import listed
from tests.adapters.test_on_model import write_gpt2
from tests.sample_files import modules_of

PEFT = "base_model.model."
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
SHAPES = {Q: (6, 2, 5, 2.0), V: (6, 2, 5, 0.5)}
WRAPPED = {  # how a wrapper changes the name of a tensor
    "a compiled PeftModel": lambda name: f"_orig_mod.{name}",
    "a compiled base": lambda name: name.replace(PEFT, f"{PEFT}_orig_mod."),
    "FSDP's blocks": lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    "checkpointing": lambda name: name.replace("self_attn", "_checkpoint_wrapped_module.self_attn"),
    "DDP": lambda name: f"module.{name}",
    "compiled layers": lambda name: re.sub(r"(_proj)", r"\1._orig_mod", name),
    "DDP of a compiled one": lambda name: f"module._orig_mod.{name}",
    "PEFT twice": lambda name: f"{PEFT}{name}",
}
every_wrapper = pytest.mark.parametrize("kind", WRAPPED)


def wrapped(folder, rng, change):
    """An adapter whose tensors have the names of a wrapped model."""
    write_adapter(folder, modules_of(rng, SHAPES), base_model="mine")
    path = folder / "adapter_model.safetensors"
    with TensorFile(path) as file:
        held = {change(name): file.read(name) for name in file.names}
    save_tensors(path, held)
    return folder


def checkpoint(path, rng, change=lambda name: name, names=SHAPES, extra=()):
    """A base in which every module of SHAPES has a weight, its name changed."""
    held = {change(f"{name}.weight"): rng.standard_normal((6, 5)) for name in names}
    save_tensors(path, {**held, **dict(extra)})
    return path


def delta(path, name):
    with open_adapter(path) as adapter:
        module = adapter.modules[name]
        B, A = (x.astype(float) for x in module.factors())
        return module.scale * B @ A


# ------------------------------------------------------------------------------------- plain names


@pytest.mark.parametrize(
    "names, plain",
    [
        (["module.h.q", "module.head"], ["h.q", "head"]),
        (["module.h.q", "head"], ["module.h.q", "head"]),  # a part of the model's own
        (["h.module.q"], ["h.module.q"]),
        ([f"{PEFT}module.h.q"], ["module.h.q"]),
        ([f"{PEFT}model.layers.0.q"], ["model.layers.0.q"]),
        (["model.model.q"], ["model.model.q"]),
        (["h._orig_mod_2.q", "my_orig_mod.q"], ["h._orig_mod_2.q", "my_orig_mod.q"]),
        (["h.base_model.model.q"], ["h.base_model.model.q"]),
        (["lora_unet_down_module.lora_up.weight"], ["lora_unet_down_module.lora_up.weight"]),
        ([], []),
    ],
)
def test_wrappers_parts_are_left_off_and_the_models_own_stay(names, plain):
    assert list(plain_names(names, "x").values()) == plain


@pytest.mark.parametrize("one, other", [("q.weight", "_orig_mod.q.weight"), ("q", f"{PEFT}q")])
def test_two_names_that_become_one_are_an_error_that_names_both(tmp_path, one, other):
    with pytest.raises(CheckpointError, match=re.escape(f"holds {one!r} again as {other!r}")):
        plain_names([one, other], "x.safetensors")


def test_two_weights_of_a_base_that_become_one_are_refused(tmp_path, rng):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    extra = {f"_orig_mod.{Q}.weight": np.ones((6, 5))}
    base = checkpoint(tmp_path / "base.safetensors", rng, extra=extra)
    for work in (
        lambda: merge_adapter(base, tmp_path / "a", tmp_path / "m.safetensors"),
        lambda: extract_adapter(base, base, tmp_path / "x", Keep(rank=1)),
        lambda: analyse_checkpoints(base, base),
    ):
        with pytest.raises(CheckpointError, match=rf"'(_orig_mod\.)?{Q}\.weight' again as"):
            work()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "base.safetensors"}


@pytest.mark.parametrize(
    "names, others, called",
    [
        (["model.q", "model.k"], ["q", "k"], ["q", "k"]),
        (["q", "k"], ["transformer.q", "v"], ["transformer.q", "k"]),
        (["model.q", "q"], ["q", "k"], ["model.q", "q"]),  # what meets as it is stays
        (["model.q"], ["x"], ["model.q"]),
        (["model.q", "lm_head"], ["q", "lm_head"], ["q", "lm_head"]),
    ],
)
def test_a_bodys_own_name_is_left_off_or_put_before_where_more_names_meet(names, others, called):
    assert list(matched(names, others, "x").values()) == called


def test_names_that_would_be_matched_to_one_are_an_error():
    with pytest.raises(CheckpointError, match=r"'model\.q' again as 'q'"):
        matched(["model.q", "q", "model.k"], ["q", "k"], "x")


def test_a_list_of_names_is_one_line_and_bounded():
    assert listed(["a\nb", "c"]) == r"'a\nb', c"
    assert (
        listed([f"h.{i}" for i in range(1000)])
        == "h.0, h.1, h.2, h.3, h.4, h.5, h.6, h.7 and 992 more"
    )


# ---------------------------------------------------------------------------- one for all commands


@every_wrapper
def test_a_wrapped_models_adapter_is_read_and_written_by_plain_names(tmp_path, rng, kind):
    folder = wrapped(tmp_path / "a", rng, WRAPPED[kind])
    with open_adapter(folder) as adapter:
        assert {name: m.scale for name, m in adapter.modules.items()} == {Q: 2.0, V: 0.5}
    resize_adapter(folder, tmp_path / "small", Keep(rank=2))
    with TensorFile(tmp_path / "small" / "adapter_model.safetensors") as file:
        expected = {f"{PEFT}{name}.lora_{half}.weight" for name in SHAPES for half in "AB"}
        assert set(file.names) == expected
    np.testing.assert_array_equal(delta(tmp_path / "small", Q), delta(folder, Q))
    assert {m.name for m in analyse_adapter(folder).modules} == {Q, V}


@every_wrapper
def test_a_wrapped_models_adapter_is_combined_and_merged_as_any(tmp_path, rng, kind):
    a = wrapped(tmp_path / "a", rng, WRAPPED[kind])
    b = wrapped(tmp_path / "b", rng, lambda name: name)
    fits = combine_adapters([a, b], [1.0, -2.0], tmp_path / "c")
    assert {fit.name for fit in fits} == {Q, V}
    expected = delta(a, Q) - 2 * delta(b, Q)
    np.testing.assert_allclose(delta(tmp_path / "c", Q), expected, rtol=1e-5, atol=1e-6)
    base = checkpoint(tmp_path / "base.safetensors", rng, lambda n: WRAPPED[kind](PEFT + n))
    merged = merge_adapter(base, a, tmp_path / "m.safetensors")
    assert {(m.left_off, m.put_before) for m in merged} == {("", "")}
    with TensorFile(base) as old, TensorFile(tmp_path / "m.safetensors") as new:
        assert set(old.names) == set(new.names)  # the file's own names are kept
        name = next(n for n in old.names if "q_proj" in n)
        change = new.read(name, np.float64) - old.read(name, np.float64)
    np.testing.assert_allclose(change, delta(a, Q), rtol=1e-12, atol=1e-12)


@every_wrapper
def test_a_compiled_base_is_compared_with_a_tuned_model_that_is_not(tmp_path, rng, kind):
    base = checkpoint(tmp_path / "b.safetensors", rng, lambda n: WRAPPED[kind](PEFT + n))
    tuned = checkpoint(tmp_path / "t.safetensors", rng)
    analysis = analyse_checkpoints(base, tuned)
    assert {m.name for m in analysis.modules} == {Q, V} and analysis.unmatched == []
    found = extract_adapter(base, tuned, tmp_path / "a", Keep(rank=5))
    assert {fit.name for fit in found.fits} == {Q, V} and not found.unmatched
    with TensorFile(base) as old, TensorFile(tuned) as new:
        name = next(n for n in old.names if "q_proj" in n)
        change = new.read(f"{Q}.weight", np.float64) - old.read(name, np.float64)
    np.testing.assert_allclose(delta(tmp_path / "a", Q), change, atol=1e-5)


def test_a_bare_base_is_compared_with_a_tuned_model_that_has_a_head(tmp_path, rng):
    base = checkpoint(tmp_path / "b.safetensors", rng, lambda name: name.removeprefix("model."))
    head = {"lm_head.weight": np.ones((2, 3))}
    tuned = checkpoint(tmp_path / "t.safetensors", rng, extra=head)
    found = extract_adapter(base, tuned, tmp_path / "a", Keep(rank=1))
    assert {fit.name for fit in found.fits} == {n.removeprefix("model.") for n in SHAPES}
    assert found.unmatched == [f"lm_head.weight: only in {tuned}"]


@pytest.mark.parametrize("body", ["model.", "transformer."])
@pytest.mark.parametrize("bare_first", [True, False])
def test_adapters_that_differ_in_the_bodys_name_meet_under_the_firsts(
    tmp_path, rng, body, bare_first
):
    names = ["layers.0.q", "layers.1.q"]
    for folder, first in (("a", "" if bare_first else body), ("b", body if bare_first else "")):
        shapes = {first + name: (6, 2, 5, 1.0) for name in names}
        write_adapter(tmp_path / folder, modules_of(rng, shapes))
    fits = combine_adapters([tmp_path / "a", tmp_path / "b"], [1, 1], tmp_path / "c")
    first = "" if bare_first else body
    assert [(fit.name, fit.r) for fit in fits] == [(first + name, 4) for name in names]
    other = body if bare_first else ""
    expected = delta(tmp_path / "a", first + names[0]) + delta(tmp_path / "b", other + names[0])
    np.testing.assert_allclose(delta(tmp_path / "c", first + names[0]), expected, atol=1e-5)


def test_modules_that_never_meet_are_not_written_and_both_sides_are_listed(tmp_path, rng):
    layers = range(9)
    for folder, first in (("a", "encoder"), ("b", "vision_model.encoder")):
        shapes = {f"{first}.{i}.q": (6, 2, 5, 1.0) for i in layers}
        write_adapter(tmp_path / folder, modules_of(rng, shapes))
    paths = [tmp_path / "a", tmp_path / "b"]
    for method, rank in (("cat", None), ("svd", 1), ("linear", None)):
        with pytest.raises(ValueError, match="no module in common") as error:
            combine_adapters(paths, [1, 1], tmp_path / "c", method, rank)
        said = str(error.value)
        assert "it adapts encoder.0.q, " in said and "they adapt vision_model.encoder.0.q" in said
        assert said.count(" and 1 more") == 2 and "\n" not in said
    base = checkpoint(tmp_path / "base.safetensors", rng, names=[f"h.{i}.k" for i in layers])
    with pytest.raises(CheckpointError, match=r"adapts: encoder\.0\.q, .*; it holds h\.0\.k\.weig"):
        merge_adapter(base, tmp_path / "a", tmp_path / "m.safetensors")
    tuned = checkpoint(tmp_path / "tuned.safetensors", rng, names=["x.q"])
    for work in (
        lambda: extract_adapter(base, tuned, tmp_path / "x", Keep(rank=1)),
        lambda: analyse_checkpoints(base, tuned),
    ):
        with pytest.raises(ValueError, match=r"base\S+: h\.0\.k\.weight, .*tuned\S+: x\.q\.weight"):
            work()
    expected = {"a", "b", "base.safetensors", "tuned.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_three_adapters_may_meet_in_pairs(tmp_path, rng):
    for folder, kinds in (("a", "qk"), ("b", "kv"), ("c", "vo")):
        write_adapter(
            tmp_path / folder, modules_of(rng, {f"h.0.{k}": (6, 2, 5, 1.0) for k in kinds})
        )
    fits = combine_adapters([tmp_path / name for name in "abc"], [1, 1, 1], tmp_path / "d")
    assert {fit.name: fit.before for fit in fits} == {
        "h.0.q": 2,
        "h.0.k": 4,
        "h.0.v": 4,
        "h.0.o": 2,
    }


@pytest.mark.parametrize(
    "module, stem, left_off, put_before, words",
    [
        ("vision_model.h.0.q", "h.0.q", "vision_model.", "", "'vision_model.' was removed"),
        ("h.0.q", "model.h.0.q", "", "model.", "'model.' was added before"),
        ("language_model.h.0.q", "model.h.0.q", "language_model.", "model.", "'language_model.'"),
        ("model.h.0.q", "model.h.0.q", "", "", ""),
    ],
)
def test_merge_reports_the_prefixes_it_changed(
    tmp_path, rng, command, module, stem, left_off, put_before, words
):
    write_adapter(tmp_path / "a", modules_of(rng, {module: (6, 2, 5, 1.0)}))
    base = checkpoint(tmp_path / "base.safetensors", rng, names=[stem])
    (merged,) = merge_adapter(base, tmp_path / "a", tmp_path / "m.safetensors")
    assert (merged.name, merged.left_off, merged.put_before) == (
        f"{stem}.weight", left_off, put_before,
    )  # fmt: skip
    _, said, _ = command(
        "merge", "--base", base, "--adapter", tmp_path / "a", "--out", tmp_path / "n.safetensors"
    )
    assert words in said and ("the adapter's names" in said) is bool(words)


@every_wrapper
def test_a_wrapped_models_adapter_loads_onto_ours(tmp_path, rng, kind):
    base = GPT(GPTConfig(vocab_size=9, block_size=4, n_layer=1, n_head=2, d_model=8), rng)
    name = "transformer.h.0.mlp.c_fc"
    write_adapter(tmp_path / "a", modules_of(rng, {name: (32, 2, 8, 1.0)}))
    path = tmp_path / "a" / "adapter_model.safetensors"

    def change(tensor):
        return WRAPPED[kind](tensor.replace("mlp.c_fc", "self_attn.q_proj")).replace(
            "self_attn", "mlp").replace("q_proj", "c_fc")  # fmt: skip

    with TensorFile(path) as file:
        held = {change(n): file.read(n) for n in file.names}
    save_tensors(path, held)
    assert list(adapters(load_adapter(base, tmp_path / "a"))) == ["h.0.mlp.up_proj"]


def test_an_adapter_of_the_bare_gpt2_loads_onto_ours(tmp_path, rng):
    base = GPT(GPTConfig(vocab_size=9, block_size=4, n_layer=1, n_head=2, d_model=8), rng)
    write_adapter(tmp_path / "a", modules_of(rng, {"h.0.mlp.c_fc": (32, 2, 8, 1.0)}))
    assert list(adapters(load_adapter(base, tmp_path / "a"))) == ["h.0.mlp.up_proj"]


@pytest.mark.parametrize("prefix", ["_orig_mod.transformer.", "module.transformer.", "_orig_mod."])
def test_a_compiled_gpt2s_weights_load(tmp_path, rng, prefix):
    model = write_gpt2(tmp_path / "gpt2", rng, prefix=prefix)
    found = load_gpt2(tmp_path / "gpt2").h[1].mlp.up_proj.W.value
    np.testing.assert_array_equal(found, model.h[1].mlp.up_proj.W.value)


# ------------------------------------------------------------------------------ the config's names


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": [f"_orig_mod.{Q}", f"_orig_mod.{V}"]},
        {"target_modules": r"_orig_mod\.model\.layers\.\d\.self_attn\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    ids=str,
)
def test_a_config_of_a_compiled_base_means_the_same_modules(tmp_path, rng, fields):
    folder = wrapped(tmp_path / "a", rng, WRAPPED["a compiled base"])
    path = folder / "adapter_config.json"
    fields |= {"lora_alpha": 4, "alpha_pattern": {rf"^_orig_mod\.{re.escape(V)}": 1}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with open_adapter(folder) as adapter:
        assert {name: m.scale for name, m in adapter.modules.items()} == {Q: 2.0, V: 0.5}


@pytest.mark.usefixtures("unpainted")
def test_what_was_left_off_is_noted(tmp_path, rng, command):
    folder = wrapped(tmp_path / "a", rng, WRAPPED["DDP of a compiled one"])
    _, said, _ = command("analyse", folder, "--out", tmp_path / "out")
    assert "names are read without '_orig_mod', 'module'" in said
    assert analyse_adapter(wrapped(tmp_path / "b", rng, lambda name: name)).notes() == []
