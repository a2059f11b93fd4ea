"""safetensors files, bit for bit as the package writes them; bfloat16 by its bits."""

import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_np.files import CheckpointError, TensorFile, float_dtype, save_tensors
from lora_np.files.tensor_header import BITS
from lora_np.forms import Bfloat16, bfloat16_bits, bfloat16_numbers, in_bfloat16
from tests.sample_files import entry, raw

ARRAYS = {
    "W": np.arange(6.0).reshape(2, 3).T,  # not in C order
    "b": np.float32([1.5, -2]),
    "a.half": np.float16([[0.1]]),
    "a.bits": np.array([0.1, -3e38]).astype(ml_dtypes.bfloat16),
    "number": np.array(7.0),
    "none": np.zeros((0, 4), np.float32),
    **{f"n{np.dtype(t).name}": np.array([1, 2, 3]).astype(t) for t in "bhiqB"},
    "größe": np.ones(3, np.float32),
}


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"größe": 'two\n"lines"'}])
def test_a_file_is_written_as_safetensors_writes_it(tmp_path, metadata):
    save_tensors(tmp_path / "ours", ARRAYS, metadata)
    save_file({n: np.ascontiguousarray(x).reshape(x.shape) for n, x in ARRAYS.items()},
              tmp_path / "theirs", metadata or None)  # fmt: skip
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_file_of_safetensors_is_read_bit_for_bit(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({n: np.ascontiguousarray(x).reshape(x.shape) for n, x in ARRAYS.items()}, path)
    theirs = load_file(path)
    with TensorFile(path) as file:
        assert set(file.names) == set(theirs) and not file.metadata
        for name, x in theirs.items():
            found = file.read_any(name)
            assert (found.dtype, found.shape) == (x.dtype, x.shape)
            assert file.shape(name) == x.shape
            assert found.tobytes() == x.tobytes() and found.flags.writeable
        assert np.array_equal(file.read("a.bits"), theirs["a.bits"].astype(np.float32))
        assert np.array_equal(file.read_bits("a.bits"), theirs["a.bits"].view(np.uint16))
        with pytest.raises(CheckpointError, match="'b' as float32, expected bfloat16"):
            file.read_bits("b")


@pytest.mark.parametrize("code", BITS)
def test_every_dtype_of_safetensors_may_lie_in_a_file(tmp_path, code):
    size = 8 * BITS[code] // 8
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a": entry(0, size, (8,), code)}, bytes(size)))
    with TensorFile(path) as file:
        assert file.shape("a") == (8,)
    from safetensors import safe_open

    with safe_open(path, "numpy") as theirs:
        assert theirs.get_slice("a").get_dtype() == code


# --- bfloat16 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numbers_are_rounded_as_ml_dtypes_rounds_them(dtype, rng):
    spread = np.ldexp(rng.standard_normal(20_000), rng.integers(-150, 128, 20_000))
    ties = 1 + np.arange(-600, 600) / 512
    edges = [0.0, -0.0, np.inf, -np.inf, 3.39e38, 3.4e38, 1e-45, 65504.0]
    with np.errstate(over="ignore"):
        x = np.concatenate([spread, ties, -ties, edges]).astype(dtype)
        theirs = x.astype(ml_dtypes.bfloat16)
        assert np.array_equal(bfloat16_bits(x), theirs.view(np.uint16))
        assert np.array_equal(in_bfloat16(x), theirs.astype(np.float32))


def test_every_number_of_bfloat16_comes_back_and_nan_stays_nan():
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = bfloat16_numbers(bits)
    finite = np.isfinite(numbers)
    assert finite.sum() == 2 * 255 * 128
    assert np.array_equal(bfloat16_bits(numbers[finite]), bits[finite])
    assert np.isnan(bfloat16_numbers(bfloat16_bits(numbers[np.isnan(numbers)]))).all()
    assert in_bfloat16(np.float32(0.1)) == Bfloat16.encode(np.float32([0.1])).decode(float)[0]


def test_arrays_of_bfloat16_without_ml_dtypes_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert float_dtype("float16") == np.float16
    with pytest.raises(ValueError, match="need ml_dtypes: pip install ml_dtypes"):
        float_dtype("bfloat16")
