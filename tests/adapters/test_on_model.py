"""Adapters to files and back onto models; GPT-2's weights from Hugging Face's files."""

import json
import pickle
import re

import numpy as np
import pytest

from lora_np import load_adapter, load_gpt2, save_adapter
from lora_np.adapters import open_adapter, write_adapter
from lora_np.files import CheckpointError, TensorFile, save_tensors
from lora_np.layers import MLP, Linear, copy_model, rebuild
from lora_np.methods import LoraConfig, LoRALinear, adapters, inject, merge
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Parameter, freeze
from lora_np.selfcheck import at_random

D = 8
CONFIG = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, d_model=D)
TOKENS = np.array([[1, 2, 3, 4], [5, 6, 7, 10]])
EVERY = {
    "q and v": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "k alone": {"r": 3, "lora_alpha": 5, "target_modules": ["k_proj"]},
    "all, of several ranks": {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.25,
        "rank_pattern": {"q_proj": 2, "1.attn.v_proj": 1}, "alpha_pattern": {"q_proj": 4,
        "1.attn.v_proj": 2}, "use_rslora": False,
    },
    "one block, rslora": {
        "r": 3, "target_modules": ["mlp.up_proj", "o_proj"], "layers_to_transform": 1,
        "use_rslora": True,
    },
}  # fmt: skip


def make_gpt(rng, dtype=np.float32):
    model = GPT(CONFIG, rng, dtype)
    at_random(model, rng, 0.3)
    return copy_model(model, dtype=dtype)  # the random numbers are float64


def adapted_at_random(base, rng, **options):
    adapted = inject(base, LoraConfig(**options), rng)
    for layer in adapters(adapted).values():
        layer.B.value = rng.standard_normal(layer.B.shape).astype(layer.B.dtype)
    return adapted


class Gained(LoRALinear):
    """A reader's variant: a gain for each direction, which no file of A and B holds."""

    def __init__(self, lora):
        super().__init__(Linear.over(lora.W0, lora.b), lora.A, lora.B, lora.scale)
        self.g = Parameter(np.full(lora.r, 2.0, np.float32))


def with_gains(model):
    return rebuild(
        model, lambda p: p, lambda _, m: Gained(m) if isinstance(m, LoRALinear) else None
    )


# ------------------------------------------------------------------- a file is the model, or is not


def test_an_adapter_that_the_file_cannot_hold_is_refused_before_anything_is_written(tmp_path, rng):
    adapted = with_gains(adapted_at_random(make_gpt(rng), rng, r=2))
    with pytest.raises(
        ValueError, match=r"h\.0\.attn\.q_proj: Gained has Parameters besides A and B"
    ):
        save_adapter(adapted, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ln_f.gamma", "h.0.attn.q_proj.b", "wpe.W"])
def test_what_is_trained_beside_the_adapter_is_not_left_out_of_the_file(tmp_path, rng, name):
    adapted = adapted_at_random(make_gpt(rng), rng, r=2)
    adapted.parameters()[name].trainable = True
    with pytest.raises(ValueError, match=f"also trains {re.escape(name)}, .*save_parameters"):
        save_adapter(adapted, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_frozen_factors_are_written_all_the_same(tmp_path, rng):
    base = make_gpt(rng)
    adapted = adapted_at_random(base, rng, r=2)
    for layer in adapters(adapted).values():
        layer.A.trainable = False  # LoRA-FA
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(base, tmp_path / "adapter")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])


def test_a_variant_does_not_inherit_the_change_of_plain_lora(rng):
    adapted = with_gains(adapted_at_random(make_gpt(rng), rng, r=2))
    with pytest.raises(ValueError, match=r"Gained has Parameters.*define delta"):
        merge(adapted)


# ----------------------------------------------------------------------------- ours, there and back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EVERY)
def test_a_saved_adapter_loads_bit_equal_onto_its_base(tmp_path, rng, name, dtype):
    base = make_gpt(rng, dtype)
    adapted = adapted_at_random(base, rng, **EVERY[name])
    save_adapter(adapted, tmp_path / "a")
    loaded = load_adapter(base, tmp_path / "a")
    found, expected = adapters(loaded), adapters(adapted)
    assert list(found) == list(expected)
    for path, layer in expected.items():
        assert (found[path].scale, found[path].dropout) == (layer.scale, layer.dropout)
        for x, y in ((found[path].A, layer.A), (found[path].B, layer.B)):
            assert x.dtype == dtype and x.trainable
            np.testing.assert_array_equal(x.value, y.value)
        assert np.shares_memory(found[path].W0.value, expected[path].W0.value)
    trainable = {name for name, p in loaded.parameters().items() if p.trainable}
    assert trainable == {f"{path}.{x}" for path in expected for x in "AB"}


def test_q_and_v_are_one_adapter_in_blocks_with_zeros_for_k(tmp_path, rng):
    base = make_gpt(rng)
    adapted = adapted_at_random(base, rng, r=2, target_modules=["q_proj", "v_proj"])
    save_adapter(adapted, tmp_path / "a")
    with open_adapter(tmp_path / "a") as adapter:
        assert list(adapter.modules) == [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
        assert adapter.fan_in_fan_out and adapter.modules["transformer.h.0.attn.c_attn"].r == 4
        B, A = adapter.modules["transformer.h.1.attn.c_attn"].factors()
    q, v = (adapters(adapted)[f"h.1.attn.{x}_proj"] for x in "qv")
    change = 8.0 * (B @ A)  # (3 d, d); scale = 16 / 2
    np.testing.assert_allclose(change[:D], q.delta(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(change[2 * D :], v.delta(), rtol=1e-5, atol=1e-5)
    assert not change[D : 2 * D].any()


def test_different_scales_are_folded_into_B(tmp_path, rng):
    base = make_gpt(rng, np.float64)
    adapted = adapted_at_random(base, rng, r=2, lora_alpha=3, target_modules=["q_proj", "k_proj"])
    for layer in adapters(adapted).values():
        layer.scale = 0.7 if layer is adapters(adapted)["h.0.attn.q_proj"] else layer.scale
    save_adapter(adapted, tmp_path / "a")
    loaded = adapters(load_adapter(base, tmp_path / "a"))
    assert loaded["h.0.attn.q_proj"].scale == 1.5
    for path, layer in adapters(adapted).items():
        np.testing.assert_allclose(loaded[path].delta(), layer.delta(), rtol=1e-14)


def test_an_adapter_on_c_attn_becomes_three_with_As_of_their_own(tmp_path, rng):
    base = make_gpt(rng)
    B, A = (rng.standard_normal(s).astype(np.float32) for s in ((3 * D, 2), (2, D)))
    write_adapter(tmp_path / "a", [("transformer.h.1.attn.c_attn", B, A, 0.5)])
    layers = adapters(load_adapter(base, tmp_path / "a"))
    assert list(layers) == [f"h.1.attn.{x}_proj" for x in "qkv"]
    for part, layer in enumerate(layers.values()):
        np.testing.assert_array_equal(layer.A.value, A)
        np.testing.assert_array_equal(layer.B.value, B[part * D : (part + 1) * D])
        layer.A.value += 1  # nobody else's A

    again = load_adapter(base, tmp_path / "a")
    save_adapter(again, tmp_path / "b")  # three equal As are one again
    with open_adapter(tmp_path / "b") as adapter:
        for found, expected in zip(
            adapter.modules["transformer.h.1.attn.c_attn"].factors(), (B, A)
        ):
            np.testing.assert_array_equal(found, expected)


def test_an_adapter_at_its_start_loads_as_no_change(tmp_path, rng):
    base = make_gpt(rng)
    save_adapter(inject(base, LoraConfig(r=2), rng), tmp_path / "a")
    loaded = load_adapter(base, tmp_path / "a")
    np.testing.assert_array_equal(loaded.forward(TOKENS)[0], base.forward(TOKENS)[0])
    # no column of B says whose it is, so q, k and v have all: rank 2 + 2
    assert {path: layer.r for path, layer in adapters(loaded).items()} == {
        f"h.{i}.attn.{x}_proj": 4 for i in range(2) for x in "qkv"
    }


def test_a_column_of_zeros_brings_no_layer_an_adapter_that_it_did_not_have(tmp_path, rng):
    base = make_gpt(rng)
    adapted = adapted_at_random(base, rng, r=2, target_modules=["q_proj", "v_proj"])
    for layer, column in zip(adapters(adapted).values(), (0, 1, 1, 1)):
        layer.B.value[:, column] = 0.0
    save_adapter(adapted, tmp_path / "a")
    loaded = adapters(load_adapter(base, tmp_path / "a"))
    assert {path: layer.r for path, layer in loaded.items()} == dict.fromkeys(adapters(adapted), 2)
    for path, layer in adapters(adapted).items():
        np.testing.assert_array_equal(loaded[path].B.value, layer.B.value)
        np.testing.assert_array_equal(loaded[path].A.value, layer.A.value)


@pytest.mark.parametrize("name", EVERY)
def test_a_loaded_models_configuration_adapts_the_base_alike(tmp_path, rng, name):
    base = make_gpt(rng)
    adapted = adapted_at_random(base, rng, **EVERY[name])
    save_adapter(adapted, tmp_path / "a")
    method = load_adapter(base, tmp_path / "a").method
    again = adapters(inject(base, method, rng))
    expected = adapters(adapted)
    assert {path: (x.r, x.scale) for path, x in again.items()} == {
        path: (x.r, x.scale) for path, x in expected.items()
    }


def test_rslora_is_still_rslora_in_the_file(tmp_path, rng):
    config = LoraConfig(r=8, use_rslora=True, target_modules=["up_proj"])
    adapted = inject(make_gpt(rng), config, rng)
    save_adapter(adapted, tmp_path / "a")
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (fields["use_rslora"], fields["lora_alpha"]) == (True, 16)  # 16 / sqrt(8) is 45.25 / 8


def test_a_model_that_names_no_places_uses_its_own_paths(tmp_path, rng):
    mlp = MLP(5, 7, rng)
    save_adapter(adapted_at_random(mlp, rng, r=2, target_modules=["up_proj"]), tmp_path / "a")
    with open_adapter(tmp_path / "a") as adapter:
        assert list(adapter.modules) == ["up_proj"] and not adapter.fan_in_fan_out
    assert list(adapters(load_adapter(mlp, tmp_path / "a"))) == ["up_proj"]


@pytest.mark.parametrize("dtype, step", [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_a_narrow_file_rounds_to_the_nearest(tmp_path, rng, dtype, step):
    base = make_gpt(rng)
    adapted = adapted_at_random(base, rng, r=2)
    save_adapter(adapted, tmp_path / "a", dtype=dtype)
    loaded = adapters(load_adapter(base, tmp_path / "a"))
    for path, layer in adapters(adapted).items():
        error = np.abs(loaded[path].B.value - layer.B.value)
        assert error.max() > 0 and (error <= step * np.abs(layer.B.value)).all()


def test_what_does_not_fit_the_model_is_refused(tmp_path, rng):
    base, good = make_gpt(rng), rng.standard_normal((D, 2))
    for name, B, message in [
        ("transformer.h.2.attn.c_proj", good, "which the model does not have: nearest is"),
        ("body.h.0.attn.c_proj", good, "which the model does not have"),
        ("transformer.h.0.attn.c_attn", good, r"c_attn' with shape (8, 8), expected (24, 8)"),
    ]:
        folder = tmp_path / name
        write_adapter(folder, [(name, B, B.T, 1.0)])
        with pytest.raises(CheckpointError, match=re.escape(message)):
            load_adapter(base, folder)
    adapted = adapted_at_random(base, rng, r=2)
    with pytest.raises(ValueError, match="adapted already"):
        load_adapter(adapted, folder)
    with pytest.raises(ValueError, match="has no adapters"):
        save_adapter(base, tmp_path / "none")
    next(iter(adapters(adapted).values())).dropout = 0.5
    with pytest.raises(ValueError, match=r"dropouts \[0.0, 0.5\]"):
        save_adapter(adapted, tmp_path / "none")


def test_a_lone_layer_has_no_name_that_peft_could_adapt(tmp_path, rng):
    linear = MLP(5, 7, rng).up_proj
    freeze(linear.parameters())
    A, B = Parameter(np.ones((1, 5))), Parameter(np.ones((7, 1)))
    with pytest.raises(ValueError, match="a module has no name"):
        save_adapter(LoRALinear(linear, A, B, 1.0), tmp_path / "a", peft_only=True)


# --------------------------------------------------------------------------------- GPT-2's weights

FIELDS = {
    "model_type": "gpt2", "vocab_size": 11, "n_positions": 6, "n_layer": 2, "n_head": 2,
    "n_embd": D, "layer_norm_epsilon": 1e-3,
}  # fmt: skip


def their_tensors(model):
    """Hugging Face's names and layouts, spelled out, of one of our models."""
    p = {name: parameter.value for name, parameter in model.parameters().items()}
    found = {"wte.weight": p["wte.W"], "wpe.weight": p["wpe.W"]}
    found["ln_f.weight"], found["ln_f.bias"] = p["ln_f.gamma"], p["ln_f.beta"]
    for h in (f"h.{i}." for i in range(CONFIG.n_layer)):
        for ln in ("ln_1", "ln_2"):
            found[f"{h}{ln}.weight"] = p[f"{h}{ln}.gamma"]
            found[f"{h}{ln}.bias"] = p[f"{h}{ln}.beta"]
        qkv = [f"{h}attn.{x}_proj" for x in "qkv"]
        found[f"{h}attn.c_attn.weight"] = np.hstack([p[f"{x}.W"].T for x in qkv])  # (in, 3 d)
        found[f"{h}attn.c_attn.bias"] = np.hstack([p[f"{x}.b"] for x in qkv])
        for theirs, ours in (
            ("attn.c_proj", "attn.o_proj"), ("mlp.c_fc", "mlp.up_proj"),
            ("mlp.c_proj", "mlp.down_proj"),
        ):  # fmt: skip
            found[f"{h}{theirs}.weight"] = p[f"{h}{ours}.W"].T
            found[f"{h}{theirs}.bias"] = p[f"{h}{ours}.b"]
    return found


def write_gpt2(folder, rng, changes=None, tensors=None, prefix="transformer."):
    """A folder of Hugging Face's with fields and tensors replaced (None: removed)."""
    model = make_gpt(rng)
    held = {prefix + name: x for name, x in their_tensors(model).items()}
    held.update(tensors or {})
    folder.mkdir()
    save_tensors(folder / "model.safetensors", {n: x for n, x in held.items() if x is not None})
    (folder / "config.json").write_text(json.dumps({**FIELDS, **(changes or {})}))
    return model


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gpt2_loads_bit_equal_with_its_epsilon(tmp_path, rng, prefix, dtype):
    model = write_gpt2(tmp_path / "gpt2", rng, prefix=prefix)
    loaded = load_gpt2(tmp_path / "gpt2", dtype)
    found = loaded.parameters()
    assert found.keys() == model.parameters().keys()
    for name, p in model.parameters().items():
        assert found[name].dtype == dtype and found[name].trainable
        np.testing.assert_array_equal(found[name].value, p.value.astype(dtype), err_msg=name)
    assert loaded.config == CONFIG
    assert {loaded.ln_f.eps, loaded.h[1].ln_2.eps} == {1e-3}


def test_a_checkpoint_in_two_files_loads_alike(tmp_path, rng):
    model = write_gpt2(tmp_path / "gpt2", rng)
    path = tmp_path / "gpt2" / "model.safetensors"
    with TensorFile(path) as file:
        held = {name: file.read(name) for name in file.names}
    names = sorted(held)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_tensors(path.with_name(shard), {name: held[name] for name in own})
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    path.with_name("model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    path.unlink()
    loaded = load_gpt2(tmp_path / "gpt2")
    np.testing.assert_array_equal(loaded.h[1].mlp.up_proj.W.value, model.h[1].mlp.up_proj.W.value)


def test_masks_and_a_head_that_is_the_embedding_again_are_passed_over(tmp_path, rng):
    head = their_tensors(make_gpt(np.random.default_rng(0)))["wte.weight"]
    extra = {
        "lm_head.weight": head,
        "transformer.h.0.attn.bias": np.ones((1, 1, 6, 6), np.float32),
        "transformer.h.1.attn.masked_bias": np.array(-1e4, np.float32),
    }
    write_gpt2(tmp_path / "gpt2", rng, tensors=extra, changes={"reorder_and_upcast_attn": True})
    assert load_gpt2(tmp_path / "gpt2").wte.W.value.tolist() == head.tolist()


T = "transformer."
REFUSED = {
    "another model": ({"model_type": "llama"}, {}, "model_type is not 'gpt2'"),
    "relu": ({"activation_function": "relu"}, {}, "activation_function = 'relu'"),
    "exact gelu": ({"activation_function": "gelu"}, {}, "activation_function = 'gelu'"),
    "unscaled": ({"scale_attn_weights": False}, {}, "scale_attn_weights = False"),
    "by layer": ({"scale_attn_by_inverse_layer_idx": True}, {}, "inverse_layer_idx = True"),
    "a wider MLP": ({"n_inner": 7}, {}, "n_inner = 7, expected 32"),
    "cross-attention": ({"add_cross_attention": True}, {}, "add_cross_attention = True"),
    "an untied head": ({"tie_word_embeddings": False}, {}, "tie_word_embeddings = False"),
    "a head tied by a number": ({"tie_word_embeddings": 1}, {}, "tie_word_embeddings = 1"),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, {}, "pruned_heads"),
    "quantised": ({"quantization_config": {"bits": 4}}, {}, "quantization_config"),
    "no size": ({"n_layer": None}, {}, "n_layer = None"),
    "a size in words": ({"n_embd": "8"}, {}, "n_embd = '8'"),
    "no layer": ({"n_layer": 0}, {}, "n_layer = 0"),
    "too many layers": ({"n_layer": 10**9}, {}, "lacks 'h.999999999.ln_1.weight'"),
    "too few layers": ({"n_layer": 1}, {}, "h.1."),
    "heads that do not divide": ({"n_head": 3}, {}, "n_embd is not a multiple of n_head = 3"),
    "a vocabulary too large": ({"vocab_size": 12}, {}, "'wte.weight' with shape (11, 8)"),
    "epsilon": ({"layer_norm_epsilon": 0}, {}, "layer_norm_epsilon = 0"),
    "another head": ({}, {"lm_head.weight": np.ones((11, D))}, "'lm_head.weight' is not"),
    "a stranger": ({}, {"score.weight": np.ones(3)}, "'score.weight', which GPT-2 does not have"),
    "both names": ({}, {"wte.weight": np.ones((11, D))}, "with and without 'transformer.'"),
    "no bias": ({}, {T + "h.0.mlp.c_fc.bias": None}, "lacks 'h.0.mlp.c_fc.bias'"),
    "not transposed": (
        {}, {T + "h.0.mlp.c_fc.weight": np.ones((32, D))},
        "'h.0.mlp.c_fc.weight' with shape (32, 8), the config says (8, 32)",
    ),
    "NaN": ({}, {T + "ln_f.bias": np.full(D, np.nan)}, "ln_f.bias' with entries not finite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_gpt2_that_is_not_ours_is_refused_by_name(tmp_path, rng, kind):
    changes, tensors, message = REFUSED[kind]
    write_gpt2(tmp_path / "gpt2", rng, changes, tensors)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load_gpt2(tmp_path / "gpt2")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_gpt2_and_a_pickle_are_refused(tmp_path, rng):
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_gpt2(tmp_path)
    write_gpt2(tmp_path / "gpt2", rng)
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        load_gpt2(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin may be a pickle"):
        load_gpt2(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="dtype float16: expected float32 or float64"):
        load_gpt2(tmp_path / "gpt2", np.float16)
