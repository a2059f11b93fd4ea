"""Files: what goes in comes out, what is no such file is refused, nothing is half-written."""

import numpy as np
import pytest

from lora_np.files import CheckpointError, arrays, load_arrays, load_json, save_arrays, save_json
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT, GPTConfig
from lora_np.selfcheck import at_random
from lora_np.train import load_parameters, save_parameters
from tests.compare import values


def make_gpt(seed, dtype=np.float32, d_model=8):
    return GPT(GPTConfig(11, 6, 2, 2, d_model), np.random.default_rng(seed), dtype)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# ---------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parameters_come_back_bit_equal(tmp_path, dtype):
    model, other = make_gpt(1, dtype), make_gpt(2, dtype)
    save_parameters(tmp_path / "model.npz", model)
    load_parameters(tmp_path / "model.npz", other)
    assert_equal(values(other), values(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def test_paths_may_be_strings_and_keep_their_ending(tmp_path):
    save_parameters(f"{tmp_path}/model", make_gpt(1))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_parameters(f"{tmp_path}/model", make_gpt(2))


def test_parameters_take_the_dtype_of_the_model(tmp_path):
    model, other = make_gpt(1, np.float64), make_gpt(2, np.float32)
    save_parameters(tmp_path / "model.npz", model)
    load_parameters(tmp_path / "model.npz", other)
    assert_equal(values(other), {k: v.astype(np.float32) for k, v in values(model).items()})


def test_an_adapters_file_holds_A_and_B_alone_and_fits_any_twin(tmp_path, rng):
    base = make_gpt(1)
    one, two = (inject(base, LoraConfig(r=2), np.random.default_rng(s)) for s in (1, 2))
    for p in one.parameters().values():
        if p.trainable:
            p.value = rng.standard_normal(p.shape).astype(p.dtype)
    save_parameters(tmp_path / "adapter.npz", one, trainable_only=True)
    assert sorted(load_arrays(tmp_path / "adapter.npz")) == sorted(
        f"h.{i}.attn.{p}_proj.{x}" for i in range(2) for p in "qv" for x in "AB"
    )
    before = values(base)
    load_parameters(tmp_path / "adapter.npz", two)
    assert_equal(values(two), values(one))
    assert_equal(values(base), before)
    assert all(np.shares_memory(base.wte.W.value, model.wte.W.value) for model in (one, two))


@pytest.mark.parametrize(
    "strangers, message",
    [
        (
            {"h.7.attn.q_proj.W": np.ones(3)},
            "holds 'h.7.attn.q_proj.W', which the model does not have",
        ),
        ({"ln_f.beta": np.ones(9)}, r"holds ln_f.beta with shape \(9,\), expected \(8,\)"),
        ({"ln_f.beta": np.array(["x"] * 8)}, "ln_f.beta"),
    ],
    ids=["unknown name", "wrong shape", "no numbers"],
)
def test_a_file_that_does_not_fit_leaves_the_model_unchanged(tmp_path, strangers, message):
    save_arrays(tmp_path / "file.npz", {**values(make_gpt(1)), **strangers})
    model = make_gpt(2)
    before = values(model)
    with pytest.raises(CheckpointError, match=message):
        load_parameters(tmp_path / "file.npz", model)
    assert_equal(values(model), before)


def test_a_larger_models_file_is_refused(tmp_path):
    save_parameters(tmp_path / "large.npz", make_gpt(1, d_model=16))
    with pytest.raises(CheckpointError, match=r"wte.W with shape \(11, 16\), expected \(11, 8\)"):
        load_parameters(tmp_path / "large.npz", make_gpt(2))


# --------------------------------------------------------------------------------- bad files


def truncated(path):
    save_arrays(path, {"a": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:-500])


def flipped(path):
    save_arrays(path, {"a": np.arange(1000.0)})
    content = bytearray(path.read_bytes())
    content[4000] ^= 255
    path.write_bytes(content)


def pickled(path):
    np.savez(path, a=np.array([{"x": 1}], dtype=object))


def single_array(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3.0))


BAD_FILES = {
    "truncated": truncated,
    "one bit-flipped byte": flipped,
    "pickled objects": pickled,
    "a single .npy array": single_array,
    "garbage": lambda path: path.write_bytes(b"no file of arrays at all"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_npz_is_named(tmp_path, kind):
    path = tmp_path / "file.npz"
    BAD_FILES[kind](path)
    with pytest.raises(CheckpointError, match=r"file\.npz is not a readable \.npz file"):
        load_arrays(path)


@pytest.mark.parametrize("load", [load_arrays, load_json])
def test_a_missing_file_is_named(tmp_path, load):
    with pytest.raises(CheckpointError, match="absent does not exist"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[1, 2,"])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.json is not a readable JSON file"):
        load_json(tmp_path / "file.json")


# -------------------------------------------------------------------------- never half-written


def test_json_comes_back_equal(tmp_path):
    content = {"rank": 8, "losses": [1.5, 2.25e-7], "text": "秩 \n é", "none": None, "yes": True}
    save_json(tmp_path / "file.json", content)
    assert load_json(tmp_path / "file.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def failing_savez(file, **arrays):
    file.write(b"the first half of a file")
    raise OSError("no space left on device")


def test_a_failed_write_leaves_the_old_arrays_and_no_other_file(tmp_path, monkeypatch):
    path, model = tmp_path / "model.npz", make_gpt(1)
    save_parameters(path, model)
    monkeypatch.setattr(arrays.np, "savez", failing_savez)
    with pytest.raises(OSError, match="no space left"):
        save_parameters(path, make_gpt(2))
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]
    assert_equal(load_arrays(path), values(model))


def test_content_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    save_json(path, {"a": 0})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_json(path, {"a": 1, "b": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
    assert load_json(path) == {"a": 0}


@pytest.mark.parametrize(
    "save, content", [(save_arrays, {"a": np.ones(3)}), (save_json, {"a": 1})], ids=["npz", "json"]
)
def test_a_file_that_cannot_take_its_place_leaves_nothing_behind(tmp_path, save, content):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "by a folder").touch()
    with pytest.raises(OSError, match="taken"):
        save(tmp_path / "taken", content)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_saving_again_replaces_the_file(tmp_path, rng):
    path, model = tmp_path / "model.npz", make_gpt(1)
    save_parameters(path, model)
    at_random(model, rng)
    save_parameters(path, model)
    assert_equal(load_arrays(path), values(model))
