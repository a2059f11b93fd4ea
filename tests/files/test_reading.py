"""Readers of files that others made: one kind of error, of one line, whatever the file is."""

import errno
import faulthandler
import io
import json
import mmap
import os
import random
import shutil
import socket
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lora_np import Linear, analyse_adapter, analyse_sweep, load_gpt2, rank_sweep
from lora_np.adapters import open_adapter, write_adapter
from lora_np.adapters.analyse import Analysis
from lora_np.data import DataError, read_text
from lora_np.experiments.rank_sweep import LinearSettings, SweepError
from lora_np.experiments.rank_sweep.models import load_model
from lora_np.experiments.rank_sweep.store import read_results
from lora_np.files import (
    CheckpointError,
    GgufFile,
    TensorFile,
    arrays,
    load_arrays,
    load_json,
    open_weights,
    save_json,
    save_tensors,
    write_gguf,
)
from lora_np.plots import plot_rank_map
from lora_np.reading import open_file, shown
from lora_np.train import load_parameters
from tests.sample_files import entry, modules_of, raw, tampered

ERRORS = (CheckpointError, SweepError, DataError)


def layer():
    return Linear(3, 2, np.random.default_rng(0))


def read_adapter(path):
    with open_adapter(path) as adapter:
        return {name: module.factors() for name, module in adapter.modules.items()}


def read_weights(path):
    with open_weights(path) as file:
        return {name: file.read(name, None) for name in file.names}


def refused(read, path, words=""):
    """The reader raises one of our errors, of one printable line that is not long."""
    with pytest.raises(ERRORS) as caught:
        read(path)
    message = str(caught.value)
    assert type(caught.value) in ERRORS and message.isprintable() and len(message) < 1200
    assert words in message, message


@pytest.fixture
def guarded():
    """End the run, and say where it is, if a reader waits for ever."""
    faulthandler.dump_traceback_later(100, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


# ------------------------------------------------------------------------------- what is no file

READERS = {
    "load_arrays": load_arrays,
    "load_json": load_json,
    "load_parameters": lambda path: load_parameters(path, layer()),
    "TensorFile": TensorFile,
    "open_adapter": open_adapter,
    "open_weights": open_weights,
    "read_results": lambda path: read_results(Path(path)),
    "read_text": read_text,
}
every_reader = pytest.mark.parametrize("reader", READERS)


def pipe(path):
    os.mkfifo(path)


def linked(target):
    return lambda path: path.symlink_to(target)


def bound(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


NO_FILES = {
    "a pipe": (pipe, "is a pipe, expected a file"),
    "a device": (linked("/dev/zero"), "is a device, expected a file"),
    "a socket": (bound, "is a socket, expected a file"),
    "a link to itself": (linked("f"), "cannot be read ("),
    "a link to nothing": (linked("nothing"), "f does not exist"),
    "nothing": (lambda path: None, "f does not exist"),
}


@every_reader
@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch, guarded, reader, kind):
    monkeypatch.chdir(tmp_path)
    make, words = NO_FILES[kind]
    make(Path("f"))
    expected = "" if reader == "read_results" else words  # which says whose file it should be
    refused(READERS[reader], Path("f"), expected)


@every_reader
@pytest.mark.parametrize(
    "path", ["x" * 300, "a\0b", "\ud800", "a\nb\x1b[2J", "d/" * 3000], ids=ascii
)
def test_a_path_that_no_file_can_have_is_an_error_of_one_line(reader, path):
    refused(READERS[reader], path[:60] if path[0] == "a" else path)


@pytest.mark.parametrize(
    "read, name",
    [
        (read_adapter, "adapter_config.json"),
        (read_adapter, "adapter_model.safetensors"),
        (read_weights, "model.safetensors"),
        (load_gpt2, "config.json"),
        (analyse_sweep, "results.json"),
    ],
)
def test_a_pipe_within_a_folder_is_not_opened(tmp_path, rng, guarded, read, name):
    folder = tampered(tmp_path / "a", rng)
    (folder / name).unlink(missing_ok=True)
    pipe(folder / name)
    refused(
        read, folder, "results file" if name == "results.json" else "is a pipe, expected a file"
    )


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch, guarded):
    """os.stat sees the file; what is opened a moment later is another thing."""
    (tmp_path / "file").write_bytes(b"{}")
    pipe(tmp_path / "pipe")
    seen = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: seen)
    with pytest.raises(CheckpointError, match="is a pipe"):
        open_file(tmp_path / "pipe", CheckpointError)


def test_links_to_files_are_followed(tmp_path, rng):
    """A model's folder in Hugging Face's cache consists of them."""
    folder = tampered(tmp_path / "a", rng)
    (tmp_path / "b").mkdir()
    for file in folder.iterdir():
        (tmp_path / "b" / file.name).symlink_to(file)
    assert list(read_adapter(tmp_path / "b")) == ["h.0.q"]


# -------------------------------------------------------------------------------- names and sizes

LONG, MOVING = "x" * 100_000, "\x1b[2J"


@pytest.mark.parametrize(
    "value", [LONG, MOVING, "a\nb", "\ud800", [LONG] * 99, {LONG: [[LONG]]}, 10**4000]
)
def test_what_is_quoted_is_short_and_printable(value):
    assert shown(value).isprintable() and len(shown(value)) < 1000
    assert shown("h.0.q_proj") == "'h.0.q_proj'"


@pytest.mark.parametrize("name", [LONG, MOVING, "a\nb", "h." + "9" * 5000], ids=range(4))
def test_names_that_are_none_are_refused_in_every_kind_of_file(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(raw({name: entry(0, 16)}, bytes(16)))
    refused(TensorFile, tmp_path / "x.safetensors", "not a valid name of a tensor")
    save_json(tmp_path / "index.json", {"weight_map": {"a": name}})
    refused(TensorFile, tmp_path / "index.json", "expected a file beside it")
    save_json(tmp_path / "index.json", {"weight_map": {name: "x.safetensors"}})
    refused(TensorFile, tmp_path / "index.json", "not a valid name")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr(name[:60_000], b"")
    refused(load_arrays, tmp_path / "x.npz", "is not a valid name of an array")


@pytest.mark.parametrize("name", [LONG, MOVING], ids=["long", "moving"])
@pytest.mark.parametrize(
    "field", ["r", "rank_pattern", "lora_alpha", "bias", "target_modules", "peft_type"]
)
def test_a_configs_values_are_quoted_short(tmp_path, rng, field, name):
    for value in (name, {name: 0}, {name: name}, [name], [[name] * 9] * 9):
        refused(
            read_adapter,
            tampered(tmp_path / f"{len(list(tmp_path.iterdir()))}", rng, {field: value}),
        )


def test_json_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    save_json(tmp_path / "f.json", list(range(100)))
    monkeypatch.setattr(arrays, "LARGEST_JSON", 100)
    refused(load_json, tmp_path / "f.json", "has more than 100 bytes")


# ----------------------------------------------------------------------------------------- arrays


def npz(path, *members, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def npy(shape="(2, 3)", descr="'<f4'", order="False", data=bytes(24), header=None):
    header = header or f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + data


def patched(path, offset, value, central=b"PK\x01\x02"):
    """Change a field of the (last) member's entry in the zip file's directory."""
    content = bytearray(path.read_bytes())
    at = content.rfind(central) + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)


BROKEN = {
    "4 TiB in the header": ([("a.npy", npy("(1099511627776,)"))], "claims shape"),
    "a byte too few": ([("a.npy", npy(data=bytes(23)))], "claims shape"),
    "70 axes": ([("a.npy", npy(f"({'1, ' * 69}1)", data=bytes(4)))], "which no array has"),
    "an axis of 2^62": ([("a.npy", npy("(0, 9223372036854775807, 4)", data=b""))], "no array has"),
    "objects": ([("a.npy", npy(descr="'|O'"))], "is not an array of numbers"),
    "fields": ([("a.npy", npy(descr="[('a', '<f4')]"))], "is not an array of numbers"),
    "text": ([("a.npy", npy(descr="'<U1'"))], "is not an array of numbers"),
    "a type that is none": ([("a.npy", npy(descr="'<f3'"))], "unknown dtype '<f3'"),
    "an expression": ([("a.npy", npy(header="-" * 9000 + "1"))], "is not an array of numbers"),
    "a header without end": ([("a.npy", npy(header="(" * 60_000))], "is not an array of numbers"),
    "no array": ([("a.npy", b"hello")], "is not an array of numbers"),
    "nothing": ([("a.npy", b"")], "is not an array of numbers"),
    "a cut header": ([("a.npy", npy()[:9])], "it is not a valid zip file"),
    "a name twice": ([("a.npy", npy()), ("a", npy())], "have the same name"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_member_that_is_no_array_is_named(tmp_path, kind):
    members, words = BROKEN[kind]
    refused(load_arrays, npz(tmp_path / "f.npz", *members), words)


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_numpy_does_not_write_is_refused(tmp_path, how):
    refused(
        load_arrays, npz(tmp_path / "f.npz", ("a.npy", npy()), how=how), "compressed in a way NumPy"
    )


ENTRY = {  # field of the directory's entry: where it lies, what it becomes, what is said
    "encrypted": (8, b"\x01\0", "is encrypted"),
    "an unknown compression": (10, b"\x63\0", "compressed in a way NumPy never uses"),
    "another checksum": (16, bytes(4), "Bad CRC-32"),
    "a size of 4 GiB": (24, b"\xf0\xff\xff\xff", "more bytes than its place"),
    "4 GiB, compressed too": (20, b"\xf0\xff\xff\xff" * 2, "more bytes than the file has"),
    "a size of 0": (20, bytes(8), "Bad CRC-32"),
    "elsewhere": (42, b"\xf0\xff\xff\x7f", "it is not a valid zip file"),
}


@pytest.mark.parametrize("kind", ENTRY)
def test_a_directory_that_lies_is_found_out(tmp_path, kind):
    offset, value, words = ENTRY[kind]
    path = npz(tmp_path / "f.npz", ("a.npy", npy()))
    patched(path, offset, value)
    refused(load_arrays, path, words)


def test_a_broken_stream_is_found_out(tmp_path):
    path = npz(tmp_path / "f.npz", ("a.npy", npy()), how=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[35:60] = bytes(25)
    path.write_bytes(content)
    refused(load_arrays, path, "it is not a valid zip file")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_comes_back_as_numpy_reads_it(tmp_path, rng, monkeypatch, save):
    monkeypatch.setattr("lora_np.files.npz.CHUNK", 2**12)
    x = rng.standard_normal((3, 4))
    held = {f"x{t}": x.astype(t) for t in ("f2", ">f4", "f8", "c16", "i2", "u1", "?", ">i8")}
    held |= {"F": np.asfortranarray(x), "number": np.array(7), "none": x[:0], "T": x[:1].T}
    held |= {"axes": np.ones((1,) * 64), "n.npy": x, "long": rng.standard_normal(3000)}
    save(tmp_path / "f.npz", **held)
    found = load_arrays(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as theirs:
        for name in theirs.files:
            ours = found.pop(name)
            assert ours.dtype == theirs[name].dtype and ours.flags.fnc == theirs[name].flags.fnc
            np.testing.assert_array_equal(ours, theirs[name])
    assert not found


@pytest.mark.parametrize("W, words", [(1e300, "too large for float32"), (-1e39, "too large for")])
def test_numbers_that_the_models_type_cannot_hold_are_an_error(tmp_path, W, words):
    np.savez(tmp_path / "f.npz", W=np.full((2, 3), W), b=np.ones(2))
    model = layer()
    before = model.W.value.copy()
    refused(lambda path: load_parameters(path, model), tmp_path / "f.npz", words)
    assert np.array_equal(model.W.value, before) and not model.b.value.any()


# ---------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("shape", [[2, 2, *[1] * 68], [0, 2**63], [0] * 70], ids=range(3))
def test_a_shape_that_no_array_has_is_named(tmp_path, shape):
    size = 0 if 0 in shape else 16
    (tmp_path / "x.safetensors").write_bytes(raw({"a": entry(0, size, shape)}, bytes(size)))
    refused(read_weights, tmp_path / "x.safetensors", "")


def test_a_signalling_nan_is_an_error_and_no_warning(tmp_path):
    numbers = np.array([0x7FA00000], "<u4").tobytes()
    (tmp_path / "x.safetensors").write_bytes(raw({"a": entry(0, 4, [1])}, numbers))
    with TensorFile(tmp_path / "x.safetensors") as file:
        refused(lambda name: file.read(name, np.float64), "a", "not finite")


def test_a_gpt2s_sizes_are_held_to_its_file_before_a_model_is_made(tmp_path):
    """10^9 blocks of which only the last has a norm: the model would have 10^12 numbers."""
    sizes = {"vocab_size": 5, "n_positions": 4, "n_layer": 10**9, "n_head": 1, "n_embd": 8}
    save_json(tmp_path / "config.json", {"model_type": "gpt2", **sizes})
    shapes = {"wte.weight": (5, 8), "wpe.weight": (4, 8), "h.999999999.ln_1.weight": (8,)}
    save_tensors(tmp_path / "model.safetensors", {k: np.ones(v) for k, v in shapes.items()})
    refused(load_gpt2, tmp_path, "holds 80 numbers, too few for the config's n_layer = 1000000000")


# --------------------------------------------------------------------------------------- patterns

HOSTILE = ["(a+)+$", "(a|a)*$", "(.*)*x", "(x+x+)+y"]


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize(
    "field",
    ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern"],
)
@pytest.mark.parametrize("module", ["a" * 60 + "!", "z" * 60, "h.0." + "a." * 30 + "q!"])
def test_no_pattern_of_a_config_takes_for_ever(tmp_path, rng, guarded, field, key, module):
    value = {key: 2} if field.startswith(("rank", "alpha")) else key
    changes = {field: value, "layers_to_transform": [0] if field == "layers_pattern" else None}
    folder = tampered(tmp_path / "a", rng, changes, shapes={module: (6, 2, 5, 2.0)})
    if field in ("target_modules", "layers_pattern"):
        refused(read_adapter, folder, f"which excludes '{module}'")
    else:
        assert list(read_adapter(folder)) == [module]


def test_more_matching_than_a_real_adapter_asks_for_is_refused(tmp_path, rng):
    shapes = {f"h.{i}.q": (1, 1, 1, 1.0) for i in range(250)}
    for i, (key, count, modules) in enumerate([("(a+)+{}", 90, 250), ("{}", 11_000, 1)]):
        keys = {"rank_pattern": {key.format(k): 1 for k in range(count)}}
        folder = tampered(tmp_path / str(i), rng, keys, shapes=shapes)
        refused(read_adapter, folder, f"has {count} patterns and 250 names for {modules} modules")


@pytest.mark.parametrize(
    "name, pattern, number",
    [
        ("model.layers.1.experts.0.q", None, 1),
        ("model.layers.1.experts.0.q", "experts", 0),
        ("model.layers.1.experts.0.q", "(layers|experts)", 1),
        ("h.3.q", ["x", "h"], 3),
        ("a.b.4.q", r"a\.[^.]*", 4),
    ],
)
def test_the_block_of_a_module_is_the_number_that_peft_takes(tmp_path, rng, name, pattern, number):
    for blocks, read in (([number], True), ([number + 1], False)):
        changes = {"layers_to_transform": blocks, "layers_pattern": pattern}
        folder = tampered(tmp_path / str(read), rng, changes, shapes={name: (6, 2, 5, 2.0)})
        if read:
            assert list(read_adapter(folder)) == [name]
        else:
            refused(read_adapter, folder, "layers_to_transform")


def test_a_pattern_that_finds_several_blocks_is_refused(tmp_path, rng):
    changes = {"layers_to_transform": [1], "layers_pattern": "layers.*"}
    name = "model.layers.1.experts.0.q"
    folder = tampered(tmp_path / "a", rng, changes, shapes={name: (6, 2, 5, 2.0)})
    refused(read_adapter, folder, "layers_pattern = 'layers.*', which finds [1, 0] in")


# ----------------------------------------------------------------------------------------- sweeps


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "linear"
    settings = LinearSettings(ranks=(1,), seeds=1, d_in=4, d_out=3, decay=0.5, steps=50)
    rank_sweep(settings, folder)
    return json.loads((folder / "results.json").read_text())


SPECTRA = {
    "no list": ("x", "expected a list"),
    "no object": ([1], "the name None"),
    "no name": ({"name": 7}, "the name 7"),
    "a long name": ({"name": LONG}, "the name 'xxx"),
    "one size": ({"shape": [3]}, "expected two sizes"),
    "sizes of text": ({"shape": ["3", 4]}, "expected two sizes"),
    "no size": ({"shape": [0, 4]}, "expected two sizes"),
    "a size beyond all": ({"shape": [10**400, 3]}, "expected two sizes"),
    "truth": ({"singular_values": [True, True, False]}, "that are not 3 non-negative numbers"),
    "text": ({"singular_values": "321"}, "that are not 3 non-negative numbers"),
    "negative": ({"singular_values": [3, 2, -1]}, "that are not 3 non-negative numbers"),
    "too few": ({"singular_values": [3, 2]}, "that are not 3 non-negative numbers"),
    "too many": ({"singular_values": [3.0] * 10_000}, "that are not 3 non-negative numbers"),
    "too large": ({"singular_values": [1e308, 1e308, 1]}, "that are not 3 non-negative numbers"),
    "ascending": ({"singular_values": [1, 2, 3]}, "that do not descend"),
}


@pytest.mark.parametrize("kind", SPECTRA)
def test_a_spectrum_that_is_none_is_named(tmp_path, swept, kind):
    change, words = SPECTRA[kind]
    held = [{**swept["spectrum"][0], **change}] if isinstance(change, dict) else change
    save_json(tmp_path / "results.json", {**swept, "spectrum": held})
    refused(analyse_sweep, tmp_path, words)


@pytest.mark.parametrize(
    "sigma", [[0, 0, 0], [1e99, 1e99, 1e99], [5e-324, 0, 0], [1e99, 5e-324, 0]]
)
@pytest.mark.parametrize("shape", [[3, 3], [3, 2**31 - 1]])
def test_an_extreme_spectrum_is_analysed_without_a_warning(tmp_path, swept, sigma, shape):
    change = {"name": "W", "shape": shape, "singular_values": sigma}
    save_json(tmp_path / "results.json", {**swept, "spectrum": [change]})
    analysis = analyse_sweep(tmp_path)
    assert analysis.modules[0].singular_values.tolist() == sigma
    assert isinstance(analysis, Analysis) and analysis.table() and sum(analysis.shares) in (0, 1)


@pytest.mark.parametrize("loss", ["x", [1], True, {}])
def test_a_loss_that_is_no_number_is_no_result(tmp_path, swept, loss):
    for where in (swept, swept["runs"][0], swept["trials"][0]):
        before = where["validation_loss" if "rank" in where else "base_test_loss"]
        where["validation_loss" if "rank" in where else "base_test_loss"] = loss
        save_json(tmp_path / "results.json", swept)
        where["validation_loss" if "rank" in where else "base_test_loss"] = before
        refused(
            lambda folder: read_results(folder / "results.json"),
            tmp_path,
            "is not the results file",
        )


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 10**9},
        {"d_model": "16"},
        {"n_layer": 10**9},
        {"n_head": 0},
        {"block_size": 10**12},
        {"target_modules": [7]},
        {"target_modules": None},
    ],
    ids=str,
)
def test_the_sizes_of_a_sweeps_model_are_held_to_its_arrays(tmp_path, finished, change):
    folder, results = finished
    shutil.copytree(folder, tmp_path / "copy")
    settings = {**results["settings"], **change}
    save_json(tmp_path / "copy" / "results.json", {**results, "settings": settings})
    refused(lambda folder: load_model(folder, "1"), tmp_path / "copy", "are not those of base.npz")


# --------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", ["$x$", r"$\frac$", "秩", "y" * 400])
def test_any_name_can_stand_in_a_picture(tmp_path, rng, kind):
    write_adapter(
        tmp_path / "a", modules_of(rng, {f"h.{i}.{kind}": (6, 2, 5, 2.0) for i in range(2)})
    )
    plot_rank_map(analyse_adapter(tmp_path / "a"), tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


# ------------------------------------------------------------------------------------------- fuzz


def mutated(rng, content):
    """Bytes with some flipped, cut out, copied, or replaced by extreme numbers."""
    x = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 16])):
        i, j = rng.randrange(len(x) + 1), rng.randrange(len(x) + 1)
        kind = rng.randrange(6)
        if kind == 0 and i < len(x):
            x[i] ^= 1 << rng.randrange(8)
        elif kind == 1:
            x = x[:i] if rng.random() < 0.3 else x[:i] + x[i + rng.randrange(40) :]
        elif kind == 2:
            x[i:i] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 3:
            x[i : i + 50] = x[j : j + 50]
        elif kind == 4:
            n = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            size = rng.choice([2, 4, 8])
            x[i : i + size] = n[:size]
        else:
            x = x[j:] + x[:j]
    return bytes(x)


ODD = [
    *(
        None,
        True,
        0,
        -1,
        3.5,
        1e300,
        10**400,
        "",
        "x",
        "\ud800",
        MOVING,
        LONG,
        [],
        {},
        [[]],
        [None],
    ),
    *("../x", "(a+)+$", {"(.*)*x": 2}, {"": ""}, [1.0, 2.0], ["q"] * 1000, float("nan")),
]


def swapped(rng, content):
    """JSON with some values, at any depth, replaced by odd ones or taken away."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 2])):
        at = content
        while True:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(at[key], dict | list) and rng.random() < 0.7:
                at = at[key]
                continue
            if rng.random() < 0.2:
                del at[key]
            else:
                at[key] = json.loads(json.dumps(rng.choice(ODD)))
            break
    return json.dumps(content).encode()


def reads_or_refuses(read, path):
    """The reader's answer, or None where it raises one of our errors; others are faults."""
    try:
        return read(path)
    except ERRORS as error:
        assert str(error).isprintable() and len(str(error)) < 1200
        return None


def rewritten_header(rng, content):
    (length,) = struct.unpack("<Q", content[:8])
    return raw(swapped(rng, json.loads(content[8 : 8 + length])), content[8 + length :])


def test_mutated_arrays_are_refused_or_read_as_numpy_reads_them(tmp_path, guarded):
    rng, read = random.Random(0), 0
    for save in (np.savez, np.savez_compressed):
        save(file := io.BytesIO(), W=np.arange(6, dtype="f4").reshape(2, 3), b=np.ones(2, "f4"))
        for _ in range(250):
            (tmp_path / "f.npz").write_bytes(mutated(rng, file.getvalue()))
            reads_or_refuses(lambda path: load_parameters(path, layer()), tmp_path / "f.npz")
            ours = reads_or_refuses(load_arrays, tmp_path / "f.npz")
            if ours:
                read += 1
                with np.load(tmp_path / "f.npz") as theirs:
                    for name in theirs.files:
                        np.testing.assert_array_equal(ours[name], theirs[name])
    assert 10 < read < 450


def test_mutated_tensors_are_refused_or_read_as_safetensors_reads_them(tmp_path, rng, guarded):
    from safetensors.numpy import load

    draw, read = random.Random(1), 0
    folder = tampered(tmp_path / "a", rng)
    tensors = (folder / "adapter_model.safetensors").read_bytes()
    for i in range(400):
        change = mutated if i % 2 else rewritten_header
        (folder / "adapter_model.safetensors").write_bytes(change(draw, tensors))
        reads_or_refuses(read_adapter, folder)
        ours = reads_or_refuses(read_weights, folder / "adapter_model.safetensors")
        if ours:
            read += 1
            theirs = load((folder / "adapter_model.safetensors").read_bytes())
            assert ours.keys() == theirs.keys()
            assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert 20 < read < 350


def test_mutated_json_is_refused_or_understood(tmp_path, rng, swept, guarded):
    draw, read = random.Random(2), {read_adapter: 0, analyse_sweep: 0}
    changes = {
        "rank_pattern": {r"(.*\.)?x": 4},
        "layers_to_transform": [0],
        "layers_pattern": ["h"],
    }
    folder = tampered(tmp_path / "a", rng, changes)
    config = json.loads((folder / "adapter_config.json").read_text())
    for i in range(400):
        reader, name, content = [
            (read_adapter, "adapter_config.json", config),
            (analyse_sweep, "results.json", swept),
        ][i % 2]
        change = (
            swapped if i % 5 else lambda draw, content: mutated(draw, json.dumps(content).encode())
        )
        (folder / name).write_bytes(change(draw, content))
        read[reader] += reads_or_refuses(reader, folder) is not None
    assert all(20 < count < 180 for count in read.values()), read


def test_a_file_system_that_cannot_map_files_is_read(tmp_path, monkeypatch):
    def no_device(number, length, **options):
        if number != -1:
            raise OSError(errno.ENODEV, "No such device")
        return map_memory(number, length, **options)

    map_memory = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", no_device)
    numbers = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    save_tensors(tmp_path / "x.safetensors", {"W": numbers})
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert np.array_equal(file.read("W"), numbers)
    write_gguf(tmp_path / "x.gguf", {}, {"W": numbers})
    assert np.array_equal(GgufFile.open(tmp_path / "x.gguf").tensors["W"].array(), numbers)
