"""Adapters as files: exact both ways, one module at a time, and nothing broken is believed."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.adapters import open_adapter, write_adapter
from lora_np.files import CheckpointError, TensorFile, save_tensors
from lora_np.methods.peft_lora import as_fields
from tests.sample_files import PREFIX, entry, factors, modules_of, raw, tampered

BF16 = np.dtype(ml_dtypes.bfloat16)


# --------------------------------------------------------------------------------- tensor files


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16], ids=str)
def test_tensors_come_back_bit_equal_with_shape_and_dtype(tmp_path, rng, dtype):
    arrays = {
        "matrix": rng.standard_normal((3, 5)).astype(dtype),
        "a view, transposed": rng.standard_normal((4, 6)).astype(dtype)[::2, ::3].T,
        "scalar": np.array(1.5, dtype),
    }
    save_tensors(tmp_path / "x.safetensors", arrays, {"note": "é"})
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert set(file.names) == set(arrays) and file.metadata == {"note": "é"}
        for name, expected in arrays.items():
            found = file.read(name, None)
            assert (file.shape(name), file.dtype(name)) == (expected.shape, expected.dtype.name)
            assert found.dtype == dtype and found.tobytes() == expected.tobytes()
            assert file.read(name).dtype == np.float32
            np.testing.assert_array_equal(file.read(name, np.float64), expected.astype(np.float64))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_others_may_read_a_file_of_tensors_as_any_new_file(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": np.ones(2)})
    (tmp_path / "new").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_names_come_in_the_order_of_the_file(tmp_path):
    header = {"b": entry(0, 16), "c": entry(16, 32), "a": entry(32, 48)}
    (tmp_path / "x.safetensors").write_bytes(raw(header, bytes(48)))
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert file.names == ("b", "c", "a")


def test_what_float32_cannot_hold_is_refused_and_float64_reads_it(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"big": np.array([1e300])})
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert file.read("big", np.float64).tolist() == [1e300]
        with pytest.raises(CheckpointError, match="'big' with entries not finite in float32"):
            file.read("big")


def test_a_closed_file_says_so(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": np.ones(2)})
    with (
        TensorFile(tmp_path / "x.safetensors") as file,
        pytest.raises(CheckpointError, match="lacks 'b'"),
    ):
        file.read("b")
    with pytest.raises(CheckpointError, match="is closed: read within its with block"):
        file.read("a")


def test_a_failed_write_leaves_the_old_tensors_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": np.ones(2)})
    with pytest.raises(ValueError, match="'b' is complex128, expected one of float64"):
        save_tensors(path, {"a": np.zeros(2), "b": np.ones(3, complex)})

    def failing(x):
        raise OSError("no space left on device")

    monkeypatch.setattr("lora_np.files.tensors._little_endian", failing)
    with pytest.raises(OSError, match="no space left"):
        save_tensors(path, {"a": np.zeros(2)})
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    with TensorFile(path) as file:
        assert file.read("a").tolist() == [1, 1]


def write_shards(folder, weight_map=None):
    save_tensors(folder / "one.safetensors", {"a": np.ones(2), "b": np.zeros(3)})
    save_tensors(folder / "two.safetensors", {"c": np.full(2, 7.0)})
    places = {"c": "two.safetensors", "a": "one.safetensors", "b": "one.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**places, **(weight_map or {})}}))
    return index


def test_a_checkpoint_in_several_files_reads_as_one(tmp_path):
    with TensorFile(write_shards(tmp_path)) as file:
        assert set(file.names) == {"a", "b", "c"} and file.read("c").tolist() == [7, 7]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"d": "one.safetensors"}, r"json lists 'd', which the other does not have"),
        ({"b": "two.safetensors"}, r"holds 'b', which the other does not have|lists 'b'"),
        ({"a": "three.safetensors"}, r"three\.safetensors does not exist|'a'"),
        ({"a": "../one.safetensors"}, "puts 'a' in '../one.safetensors', expected a file beside"),
        ({"a": 3}, "puts 'a' in 3"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        TensorFile(write_shards(tmp_path, change))


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {}}', "[" * 100_000])
def test_an_index_without_places_is_refused(tmp_path, text):
    (tmp_path / "x.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"has no weight_map|is not a readable JSON file"):
        TensorFile(tmp_path / "x.index.json")


# ------------------------------------------------------------------------------- adapters, whole

SHAPES = {  # out, r, in, scale
    "h.0.q": (6, 2, 5, 2.0),
    "h.0.v": (6, 3, 5, 2.0),
    "h.10.q": (6, 2, 5, 0.1),
    "q": (7, 4, 5, 5.0),  # the end of others' names
    "odd+name[0].q": (6, 1, 4, 1 / 3),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16], ids=str)
def test_an_adapter_comes_back_bit_equal_with_ranks_and_scales(tmp_path, rng, dtype):
    modules = modules_of(rng, SHAPES, dtype)
    write_adapter(tmp_path / "new" / "adapter", modules, base_model="gpt2", dtype=dtype)
    with open_adapter(tmp_path / "new" / "adapter") as adapter:
        assert (adapter.base_model, adapter.fan_in_fan_out) == ("gpt2", False)
        assert set(adapter.modules) == set(SHAPES)
        for name, B, A, scale in modules:
            module = adapter.modules[name]
            assert (module.name, module.dtype) == (name, np.dtype(dtype).name)
            assert (module.r, module.shape) == (A.shape[0], (B.shape[0], A.shape[1]))
            assert module.scale == scale
            wide = np.float64 if dtype == np.float64 else np.float32  # holds each exactly
            for found, expected in zip(module.factors(), (B, A)):
                assert found.dtype == wide
                np.testing.assert_array_equal(found, expected.astype(wide))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert sorted(p.name for p in (tmp_path / "new" / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_float32_is_written_unless_asked_otherwise(tmp_path, rng):
    modules = modules_of(rng, SHAPES, np.float64)
    write_adapter(tmp_path / "a", modules)
    write_adapter(tmp_path / "b", modules, dtype=None)
    write_adapter(tmp_path / "c", modules, dtype="bfloat16")
    for folder, dtype in (("a", "float32"), ("b", "float64"), ("c", "bfloat16")):
        with open_adapter(tmp_path / folder) as adapter:
            assert {module.dtype for module in adapter.modules.values()} == {dtype}


def test_the_file_of_tensors_finds_the_config_beside_it(tmp_path, rng):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    with open_adapter(tmp_path / "a" / "adapter_model.safetensors") as adapter:
        assert {n: m.scale for n, m in adapter.modules.items()} == {
            name: scale for name, (*_, scale) in SHAPES.items()
        }


@given(r=st.integers(1, 300), alpha=st.floats(1e-3, 1e3), root=st.sampled_from([float, math.sqrt]))
def test_a_scale_that_came_from_an_alpha_is_kept_to_the_last_bit(r, alpha, root):
    scale = alpha / root(r)
    fields = as_fields({"q": r}, {"q": scale})
    divisor = math.sqrt(r) if fields["use_rslora"] else r
    assert fields["lora_alpha"] / divisor == scale


@given(r=st.integers(1, 300), scale=st.floats(1e-3, 1e3))
def test_any_other_scale_is_kept_to_a_last_bit(r, scale):
    fields = as_fields({"q": r}, {"q": scale})
    divisor = math.sqrt(r) if fields["use_rslora"] else r
    assert abs(fields["lora_alpha"] / divisor - scale) <= math.ulp(scale)


# The cases were worked out by hand from PEFT's rule: re.match(rf"(.*\.)?({key})$", path).
PATTERNS = [
    ("q", True), ("h.0.q", True), ("0.q", True), (r".*\.q", True), ("^h.0.q", True), ("q|v", True),
    (r"h\.[0-5]\..*", True), ("^0.q", False), ("^q", False), ("h.0", False), ("0.", False),
    ("xq", False), ("Q", False), ("h|x", False),
]  # fmt: skip


@pytest.mark.parametrize("key, matches", PATTERNS)
def test_patterns_match_as_in_peft(tmp_path, rng, key, matches):
    r = 8 if matches else 2  # the default is then wrong, or right
    changes = {"r": r, "lora_alpha": 3, "rank_pattern": {key: 10 - r}, "alpha_pattern": {key: 5}}
    with open_adapter(tampered(tmp_path / "a", rng, changes)) as adapter:
        assert adapter.modules["h.0.q"].scale == (5 if matches else 3) / 2


def test_the_first_pattern_that_matches_counts_and_rslora_takes_the_root(tmp_path, rng):
    changes = {"use_rslora": True, "alpha_pattern": {"v": 1, "0.q": 7, "q": 9}}
    with open_adapter(tampered(tmp_path / "a", rng, changes)) as adapter:
        assert adapter.modules["h.0.q"].scale == 7 / math.sqrt(2)


def test_an_adapters_own_name_in_the_keys_is_read_past(tmp_path, rng):
    B, A = factors(rng, 6, 2, 5)
    names = {"layer.q.lora_A.default.weight": A, "layer.q.lora_B.default.weight": B}
    save_tensors(tmp_path / "x.safetensors", names)
    with open_adapter(tmp_path / "x.safetensors") as adapter:
        assert list(adapter.modules) == ["layer.q"] and adapter.modules["layer.q"].scale == 1
        np.testing.assert_array_equal(adapter.modules["layer.q"].factors()[0], B)


def test_kohyas_files_have_an_alpha_a_module_and_kernels_are_flattened(tmp_path, rng):
    up, down = factors(rng, 6, 2, 5)
    kernel_up, kernel_down = rng.standard_normal((8, 4, 1, 1)), rng.standard_normal((4, 3, 3, 2))
    tensors = {
        "lora_unet_q.lora_up.weight": up,
        "lora_unet_q.lora_down.weight": down,
        "lora_unet_conv.lora_up.weight": kernel_up,
        "lora_unet_conv.lora_down.weight": kernel_down,
        "lora_unet_conv.alpha": np.array(6.0, np.float16),
    }
    save_tensors(tmp_path / "x.safetensors", tensors)
    with open_adapter(tmp_path / "x.safetensors") as adapter:
        plain, conv = adapter.modules["lora_unet_q"], adapter.modules["lora_unet_conv"]
        assert (plain.scale, plain.r, plain.shape) == (1.0, 2, (6, 5))
        assert (conv.scale, conv.r, conv.shape) == (1.5, 4, (8, 18))
        B, A = conv.factors()
    change = np.einsum("or,rihw->oihw", kernel_up[:, :, 0, 0], kernel_down)  # (out, in, kh, kw)
    np.testing.assert_allclose((B @ A).reshape(change.shape), change, rtol=1e-12, atol=1e-12)


def test_opening_reads_no_factor_and_a_module_reads_its_own_two(tmp_path, rng, monkeypatch):
    write_adapter(tmp_path / "a", modules_of(rng, SHAPES))
    reads = []
    read = TensorFile.read

    def counting(self, name, dtype=np.float32):
        reads.append(name.removeprefix(PREFIX))
        return read(self, name, dtype)

    monkeypatch.setattr(TensorFile, "read", counting)
    with open_adapter(tmp_path / "a") as adapter:
        assert reads == []
        adapter.modules["h.0.v"].factors()
    assert sorted(reads) == ["h.0.v.lora_A.weight", "h.0.v.lora_B.weight"]


def test_walking_through_an_adapter_holds_one_module_at_a_time(tmp_path, rng):
    import tracemalloc

    d, r, n = 2000, 8, 20  # 128 kB a module
    write_adapter(tmp_path / "a", modules_of(rng, {f"h.{i}.q": (d, r, d, 2.0) for i in range(n)}))
    tracemalloc.start()
    try:
        with open_adapter(tmp_path / "a") as adapter:
            norms = [
                float(np.vdot(*module.factors()[:1] * 2)) for module in adapter.modules.values()
            ]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(norms) == n and peak < 4 * 2 * d * r * 4  # of the 20 modules, four


# ------------------------------------------------------------------------------- writing refused


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"B": np.ones((6, 3))}, r"module 'q' has B \(6, 3\) and A \(2, 5\), expected"),
        ({"B": np.ones(6)}, r"B \(6,\)"),
        ({"A": np.ones((0, 5)), "B": np.ones((6, 0))}, r"B \(6, 0\)"),
        (
            {"B": np.full((6, 2), np.nan)},
            "'q.lora_B.weight' has entries that are not finite in float32",
        ),
        ({"A": np.full((2, 5), 1e300)}, "'q.lora_A.weight' has entries that are not finite"),
        ({"scale": -1.0}, "scale -1.0, expected a number above 0"),
        ({"scale": math.nan}, "scale nan"),
        ({"name": ""}, "a module has no name"),
        ({"name": "p"}, "module 'p' occurs twice"),
    ],
)
def test_what_would_be_no_adapter_is_not_written(tmp_path, bad, message):
    good = {"name": "q", "B": np.ones((6, 2)), "A": np.ones((2, 5)), "scale": 1.0}
    first = ("p", np.ones((6, 2)), np.ones((2, 5)), 1.0)
    with pytest.raises(ValueError, match=message):
        write_adapter(tmp_path / "a", [first, tuple({**good, **bad}.values())])
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_modules_or_of_integers_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="there is no module to write"):
        write_adapter(tmp_path / "a", [])
    with pytest.raises(ValueError, match="dtype int64: expected one of float64"):
        write_adapter(tmp_path / "a", [("q", np.eye(2), np.eye(2), 1.0)], dtype=np.int64)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_adapter_is_not_overwritten(tmp_path, rng):
    first, second = modules_of(rng, SHAPES), modules_of(rng, SHAPES)
    write_adapter(tmp_path / "a", first)
    with pytest.raises(CheckpointError, match="already exists: give the adapter a new folder"):
        write_adapter(tmp_path / "a", second)
    with open_adapter(tmp_path / "a") as adapter:
        np.testing.assert_array_equal(adapter.modules["q"].factors()[0], first[3][1])
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file already exists"):
        write_adapter(tmp_path / "file", second)


def test_a_write_that_fails_midway_leaves_nothing(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("lora_np.adapters.write.save_json", lambda *_: 1 / 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZeroDivisionError):
        write_adapter(tmp_path / "empty", modules_of(rng, SHAPES))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []
