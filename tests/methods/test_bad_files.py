"""Damaged adapter files of every method: one line that names the folder and what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lora_np import GPT, Linear, LoraConfig, inject, load_adapter, save_adapter
from lora_np.files import CheckpointError
from lora_np.files.tensors import TensorFile, save_tensors
from lora_np.methods import (
    BottleneckConfig,
    DoraConfig,
    IA3Config,
    IntrinsicConfig,
    Nf4Config,
    TokensConfig,
    VeraConfig,
)
from tests.methods.test_methods import CONFIG, METHODS_TRIED, TOKENS, make_gpt

EMBEDDING = LoraConfig(r=2, target_modules=("wte", "q_proj"))
OF_OURS = [*METHODS_TRIED[:-2], EMBEDDING]
every_method = pytest.mark.parametrize("config", OF_OURS, ids=lambda config: config.name)


def saved(config, folder):
    """The folder of a saved adapter, its fields and its tensors."""
    save_adapter(inject(make_gpt(), config, np.random.default_rng(0)), folder)
    with TensorFile(folder / "adapter_model.safetensors") as file:
        tensors = {name: file.read_any(name) for name in file.names}
    return json.loads((folder / "adapter_config.json").read_text("utf-8")), tensors


def refusal(folder, fields=None, tensors=None):
    """The message with which a changed adapter is refused."""
    if fields is not None:
        (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    if tensors is not None:
        save_tensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(make_gpt(), folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


@pytest.mark.slow
@every_method
def test_a_number_too_large_for_the_base_is_refused(config, tmp_path):
    _, tensors = saved(config, tmp_path)
    for name, x in tensors.items():
        if x.dtype.kind == "f":
            huge = np.full(x.shape, 1e300)
            assert "too large for float32" in refusal(tmp_path, None, {**tensors, name: huge})


@every_method
def test_a_file_without_tensors_is_refused(config, tmp_path):
    saved(config, tmp_path)
    assert "the file" in refusal(tmp_path, None, {}) or "holds no tensor" in refusal(tmp_path)


@pytest.mark.slow
@every_method
def test_a_tensor_of_another_type_is_refused(config, tmp_path):
    _, tensors = saved(config, tmp_path)
    for name, x in tensors.items():
        if x.dtype.kind == "f":  # SHiRA's places are read as floats too
            message = refusal(tmp_path, None, {**tensors, name: x.astype(np.int32)})
            assert "expected" in message or "rows of a head that is not tied" in message


@pytest.mark.parametrize("config", [EMBEDDING, DoraConfig(r=2)], ids=["embedding", "dora"])
def test_factors_of_two_ranks_are_refused(config, tmp_path):
    _, tensors = saved(config, tmp_path)
    for name in (name for name in tensors if "_B" in name):
        changed = {**tensors, name: tensors[name][:, :-1]}
        assert "expected (r, in)" in refusal(tmp_path, None, changed)


@pytest.mark.parametrize(
    "config", [IA3Config(), TokensConfig((1, 4)), LoraConfig(r=2)], ids=lambda config: config.name
)
def test_a_module_that_the_fields_name_has_tensors(config, tmp_path):
    fields, tensors = saved(config, tmp_path)
    name = fields["target_modules"][0]
    left = {n: x for n, x in tensors.items() if f".{name}." not in n}
    assert 0 < len(left) < len(tensors)
    assert f"lacks the tensors of {name!r}" in refusal(tmp_path, None, left)


@pytest.mark.parametrize(
    "config, option",
    [(BottleneckConfig(r=2), "nonlinearity"), (IntrinsicConfig(20), "seed")],
    ids=["bottleneck", "intrinsic"],
)
def test_our_own_fields_are_complete(config, option, tmp_path):
    fields, _ = saved(config, tmp_path)
    value = fields.pop(option)
    assert f"the fields of {config.name!r} lack {option!r}" in refusal(tmp_path, fields)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**fields, option: value}))
    load_adapter(make_gpt(), tmp_path)


def test_a_subspace_is_not_drawn_anew(tmp_path):
    fields, _ = saved(IntrinsicConfig(20), tmp_path)
    assert "options to be drawn" in refusal(tmp_path, {**fields, "seed": None})


@pytest.mark.parametrize("inner", [IntrinsicConfig(20), IntrinsicConfig(40, structured=True)])
def test_a_quantised_base_keeps_what_is_drawn_over_it(inner, tmp_path):
    base = make_gpt()
    adapted = inject(base, Nf4Config(of=inner, block_size=32), np.random.default_rng(0))
    assert adapted.method.name == "nf4" and adapted.method.of.seed is not None
    adapted.z.value = adapted.z.value + np.float32(0.1)
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(base, tmp_path / "adapter")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])


@pytest.mark.parametrize(
    "config",
    [config for config in METHODS_TRIED[:-2] if config.name in ("lora", "dora", "adalora")],
    ids=lambda config: config.name,
)
def test_a_layer_alone_has_our_own_form(config, tmp_path):
    base = Linear(8, 12, np.random.default_rng(0))
    adapted = inject(base, replace(config, target_modules="all-linear"), np.random.default_rng(1))
    for p in adapted.parameters().values():
        if p.trainable:
            p.value = p.value + np.float32(0.1)
    with pytest.raises(ValueError, match="parts of a model, not the whole"):
        save_adapter(adapted, tmp_path / "adapter", peft_only=True)
    assert not (tmp_path / "adapter").exists()
    save_adapter(adapted, tmp_path / "adapter")
    x = np.ones((3, 8), np.float32)
    again = load_adapter(base, tmp_path / "adapter")
    np.testing.assert_array_equal(again.forward(x)[0], adapted.forward(x)[0])


def test_a_method_of_embeddings_does_not_stand_on_linear_layers():
    with pytest.raises(ValueError, match="'all-linear', but the method adapts embeddings"):
        inject(make_gpt(), TokensConfig((1,), "all-linear"), np.random.default_rng(0))


@pytest.mark.parametrize("structured", [False, True])
def test_a_subspace_belongs_to_one_size_of_model(structured, tmp_path):
    config = IntrinsicConfig(40, structured=structured)
    save_adapter(inject(make_gpt(), config, np.random.default_rng(0)), tmp_path / "adapter")
    other = GPT(replace(CONFIG, d_model=32), np.random.default_rng(0))
    with pytest.raises(CheckpointError, match="numbers: it is another model"):
        load_adapter(other, tmp_path / "adapter")


@pytest.mark.slow
@every_method
def test_a_tensor_left_over_is_refused(config, tmp_path):
    _, tensors = saved(config, tmp_path)
    for name, x in tensors.items():
        message = refusal(tmp_path, None, {**tensors, f"{name}.other": x})
        assert "holds" in message and ".other" in message


def test_a_field_that_asks_for_more_than_any_memory_is_refused(tmp_path):
    fields, _ = saved(VeraConfig(r=2), tmp_path)
    assert "llocate" in refusal(tmp_path, {**fields, "r": 10**13})
