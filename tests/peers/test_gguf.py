"""Our GGUF files, and the blocks in them, against gguf, the package of llama.cpp."""

import importlib

import numpy as np
import pytest

from lora_np.adapters import write_gguf_adapter
from lora_np.files import GgufFile, write_gguf
from lora_np.forms import BLOCKS, Q8_0, Bfloat16
from lora_np.pretrained.gguf_names import INSIDE, OUTSIDE, gguf_name
from tests.naive_gguf import random_blocks

pytestmark = pytest.mark.peers
RNG = np.random.default_rng(0)
THEY_ENCODE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.fixture
def gguf():
    """Without gguf this is an error, not a skip."""
    importlib.import_module("gguf.quants")
    return importlib.import_module("gguf")


def assert_equal_bits(found, theirs):
    assert found.dtype == theirs.dtype == np.float32 and np.isfinite(theirs).all()
    np.testing.assert_array_equal(found.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", BLOCKS)
def test_random_blocks_are_decoded_to_the_same_bits(gguf, name):
    shape = (64, 5 * 256)
    blocks = random_blocks(name, 64 * 5 * 256 // BLOCKS[name].block_size, RNG)
    form = BLOCKS[name].over(shape, blocks.reshape(-1))
    kind = gguf.GGMLQuantizationType[name]
    assert gguf.GGML_QUANT_SIZES[kind] == (form.block_size, form.block_bytes)
    theirs = gguf.quants.dequantize(form.parts["blocks"], kind)
    assert_equal_bits(form.decode(np.float32), theirs)
    rows = np.array([[63, 0], [7, 7]])
    assert_equal_bits(form.take(rows, np.float32), theirs[rows])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e3])
@pytest.mark.parametrize("name", THEY_ENCODE)
def test_what_they_encode_is_decoded_to_the_same_bits(gguf, name, scale):
    x = (scale * RNG.standard_normal((33, 96))).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    packed = gguf.quants.quantize(x, kind)
    assert_equal_bits(
        BLOCKS[name].over(x.shape, packed).decode(np.float32),
        gguf.quants.dequantize(packed, kind),
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e4])
def test_our_q8_0_has_their_bytes(gguf, scale):
    x = (scale * RNG.standard_normal((50, 4, 96))).astype(np.float32)
    x[0, 0, :32] = 0.0
    x[1, 1, :32] = scale * np.linspace(-127, 127, 32).round() / 2  # many numbers halfway
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(Q8_0.encode(x).parts["blocks"], theirs)


def test_their_reader_reads_what_we_write(gguf, tmp_path):
    W = RNG.standard_normal((3, 64)).astype(np.float32)
    fields = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.rope.freq_base": 0.5,
        "yes": True,
        "tokens": ["a", "猫", ""],
        "types": [1, 3],
        "scores": [0.5, -2.0],
        "wide": np.uint64(2**63),
    }
    tensors = {"whole": W, "half": W.astype(np.float16), "packed": Q8_0.encode(W)}
    write_gguf(tmp_path / "x.gguf", fields, tensors)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    found = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    assert found == {name: getattr(x, "tolist", lambda x=x: x)() for name, x in fields.items()}
    kinds = {name: field.types[-1].name for name, field in reader.fields.items()}
    assert (kinds["llama.block_count"], kinds["types"]) == ("UINT32", "INT32")
    assert (kinds["scores"], kinds["yes"], kinds["wide"]) == ("FLOAT32", "BOOL", "UINT64")
    for tensor in reader.tensors:
        ours = GgufFile.open(tmp_path / "x.gguf").tensors[tensor.name]
        assert tensor.tensor_type.name == ours.type
        assert tuple(reversed(tensor.shape.tolist())) == ours.shape == (3, 64)
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert_equal_bits(ours.array(), numbers.reshape(ours.shape))


def test_we_read_what_their_writer_writes(gguf, tmp_path):
    W = RNG.standard_normal((4, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_block_count(2)
    writer.add_rope_freq_base(1e5)
    writer.add_token_list(["a", "猫"])
    writer.add_token_types([1, 3])
    writer.add_bool("yes", True)
    writer.add_int64("below", -(2**40))
    writer.add_float64("double", 1 / 3)
    writer.add_tensor("whole", W)
    packed = {
        name: gguf.quants.quantize(W, gguf.GGMLQuantizationType[name]) for name in THEY_ENCODE
    }
    for name, blocks in packed.items():
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, blocks, raw_shape=blocks.shape, raw_dtype=kind)
    bits = Bfloat16.encode(W).parts["bits"].view(np.uint8)
    kind = gguf.GGMLQuantizationType.BF16
    writer.add_tensor("BF16", bits, raw_shape=bits.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(tmp_path / "x.gguf")
    assert file.fields == {
        "general.architecture": "llama",
        "general.alignment": 64,
        "llama.block_count": 2,
        "llama.rope.freq_base": 1e5,
        "tokenizer.ggml.tokens": ["a", "猫"],
        "tokenizer.ggml.token_type": [1, 3],
        "yes": True,
        "below": -(2**40),
        "double": 1 / 3,
    }
    assert_equal_bits(file.tensors["whole"].array(), W)
    assert_equal_bits(file.tensors["BF16"].array(), gguf.quants.dequantize(bits, kind))
    for name, blocks in packed.items():
        theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
        assert file.tensors[name].type == name
        assert_equal_bits(file.tensors[name].array(), theirs)


def test_a_file_of_theirs_is_written_again_byte_by_byte(gguf, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_add_bos_token(False)
    writer.add_token_list(["a", "猫"])
    writer.add_token_types([1, 3])
    writer.add_token_scores([0.25, -1e-3])
    W = RNG.standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("output_norm.weight", W[0, :5])
    for name in THEY_ENCODE:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(W, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(tmp_path / "x.gguf")
    tensors = {
        name: t.array() if t.form() is None else t.form() for name, t in file.tensors.items()
    }
    write_gguf(tmp_path / "y.gguf", file.fields, tensors)
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


def test_names_of_modules_are_theirs(gguf):
    paths = [*OUTSIDE, *(f"model.layers.{i}.{name}" for i in (0, 11) for name in INSIDE)]
    for kind in ("LLAMA", "QWEN2"):
        theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind], 12)
        assert [gguf_name(path) for path in paths] == [theirs.get_name(path) for path in paths]


def test_their_reader_reads_our_adapters(gguf, tmp_path):
    B, A = (RNG.standard_normal(shape).astype(np.float32) for shape in ((8, 2), (2, 6)))
    name = "model.layers.0.self_attn.v_proj"
    write_gguf_adapter(tmp_path / "x.gguf", [(name, B, A, 2.0)], n_head=1, n_kv_head=1)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    keys = gguf.Keys
    expected = {keys.General.ARCHITECTURE: "llama", keys.General.TYPE: gguf.GGUFType.ADAPTER}
    expected |= {keys.Adapter.TYPE: "lora", keys.Adapter.LORA_ALPHA: 4.0}
    assert {key: reader.get_field(key).contents() for key in expected} == expected
    assert reader.get_field(keys.Adapter.LORA_ALPHA).types[-1].name == "FLOAT32"
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert list(tensors) == ["blk.0.attn_v.weight.lora_a", "blk.0.attn_v.weight.lora_b"]
    for found, ours in zip(tensors.values(), (A, B)):
        np.testing.assert_array_equal(found, ours)
