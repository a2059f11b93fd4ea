"""lora_np.adapters.gguf: the change of every weight is the same in a GGUF file, rows permuted."""

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, load_adapter
from lora_np.adapters import open_adapter, read_gguf_adapter, write_adapter, write_gguf_adapter
from lora_np.files import CheckpointError, GgufFile, write_gguf

HEADS = {"n_head": 4, "n_kv_head": 2}  # of width 6
Q, K, V = (f"model.layers.1.self_attn.{name}_proj" for name in "qkv")
DOWN = "model.layers.0.mlp.down_proj"
OUT = {Q: 24, K: 12, V: 12, DOWN: 10}


def modules(r=3, scale=2.0):
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    return [
        (name, normal((out, r), np.float32), normal((r, 10), np.float32), scale)
        for name, out in OUT.items()
    ]


def changes(written):
    return {name: scale * B.astype(np.float64) @ A for name, B, A, scale in written}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("scale", [2.0, 1 / 3])
def test_factors_are_read_back(architecture, scale, tmp_path):
    written = modules(scale=scale)
    write_gguf_adapter(tmp_path / "x.gguf", written, **HEADS, architecture=architecture)
    found = read_gguf_adapter(tmp_path / "x.gguf", **HEADS)
    assert [name for name, *_ in found] == list(OUT)
    for (_, B, A, s), (_, B2, A2, s2) in zip(written, found):
        np.testing.assert_array_equal(A2, A)
        np.testing.assert_allclose(s2 * B2, s * B, rtol=2e-7, atol=0)
        if scale == 2.0:  # alpha is 6
            assert s2 == s
            np.testing.assert_array_equal(B2, B)


def test_the_file_is_as_llama_cpp_expects(tmp_path):
    written = modules()
    write_gguf_adapter(tmp_path / "x.gguf", written, **HEADS, dtype=np.float16)
    file = GgufFile.open(tmp_path / "x.gguf")
    assert file.fields == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }
    shapes = {name: (tensor.shape, tensor.type) for name, tensor in file.tensors.items()}
    assert len(shapes) == 8 and shapes["blk.1.attn_q.weight.lora_a"] == ((3, 10), "F16")
    assert shapes["blk.0.ffn_down.weight.lora_b"] == ((10, 3), "F16")
    for name, module, heads in ((Q, "attn_q", 4), (K, "attn_k", 2)):
        B = next(B for found, B, *_ in written if found == name)
        stored = file.tensors[f"blk.1.{module}.weight.lora_b"].array()
        for head in range(heads):
            for i in range(3):  # numbers i and i + d/2 of a head become neighbours
                for j in range(2):
                    row = B[6 * head + i + 3 * j].astype(np.float16)
                    np.testing.assert_array_equal(stored[6 * head + 2 * i + j], row)
    V_rows = next(B for found, B, *_ in written if found == V).astype(np.float16)
    np.testing.assert_array_equal(file.tensors["blk.1.attn_v.weight.lora_b"].array(), V_rows)


def test_ranks_and_scales_may_differ_under_one_alpha(tmp_path):
    written = [*modules(r=2, scale=4.0)[:2], *modules(r=3, scale=0.5)[2:]]
    write_gguf_adapter(tmp_path / "x.gguf", written, **HEADS)
    found = read_gguf_adapter(tmp_path / "x.gguf", **HEADS)
    assert [len(A) for _, _, A, _ in found] == [2, 2, 3, 3]
    expected = changes(written)
    for name, change in changes(found).items():
        np.testing.assert_allclose(change, expected[name], rtol=1e-6, atol=1e-6)


def test_an_adapter_of_peft_becomes_one_of_llama_cpp(tmp_path):
    write_adapter(tmp_path / "peft", modules())
    with open_adapter(tmp_path / "peft") as adapter:
        written = [(name, *m.factors(), m.scale) for name, m in adapter.modules.items()]
    write_gguf_adapter(tmp_path / "x.gguf", written, **HEADS)
    expected = changes(modules())
    for name, change in changes(read_gguf_adapter(tmp_path / "x.gguf", **HEADS)).items():
        np.testing.assert_array_equal(change, expected[name])


def test_without_an_alpha_the_scale_is_one_as_in_llama_cpp(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf_adapter(path, modules(), **HEADS)
    file = GgufFile.open(path)
    tensors = {name: tensor.array() for name, tensor in file.tensors.items()}
    write_gguf(path, {**file.fields, "adapter.lora.alpha": 0.0}, tensors)
    assert {scale for *_, scale in read_gguf_adapter(path, **HEADS)} == {1.0}


ONE = np.ones((12, 1), np.float32)


@pytest.mark.parametrize(
    "written, options, message",
    [
        ([], {}, "there is no module to write"),
        ([("h.0.attn", ONE, ONE.T, 1.0)], {}, "'h.0.attn' has no name in the GGUF file of a Llama"),
        ([("model.norm", ONE, ONE.T, 1.0)], {}, "'model.norm' is not a linear layer: GGUF has no"),
        ([("model.embed_tokens", ONE, ONE.T, 1.0)], {}, "is not a linear layer"),
        ([(V, ONE, np.ones((2, 3)), 1.0)], {}, r"has B \(12, 1\) and A \(2, 3\), expected"),
        ([(V, ONE * np.nan, ONE.T, 1.0)], {}, "has entries that are not finite in float32"),
        ([(V, ONE * 1e5, ONE.T, 1.0)], {"dtype": np.float16}, "not finite in float16"),
        ([(V, ONE, ONE.T, 1e99)], {}, r"v_proj' has alpha 1e\+99, beyond the range of float32"),
        ([(Q, ONE, ONE.T, 1.0)], {}, "has 12 rows, not 4 heads of an even width"),
        ([(V, ONE, ONE.T, 1.0)], {"architecture": "gemma"}, "'gemma': expected one of llama"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_written(
    written, options, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        write_gguf_adapter(tmp_path / "x.gguf", written, **HEADS, **options)
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(CheckpointError, match=r"x\.gguf already exists"):
        write_gguf_adapter(tmp_path / "x.gguf", modules(), **HEADS)


def changed(fields=(), tensors=(), without=()):
    """Return a function that writes an adapter with other fields and tensors."""

    def write(path):
        write_gguf_adapter(path, modules(), **HEADS)
        file = GgufFile.open(path)
        arrays = {name: tensor.array() for name, tensor in file.tensors.items()}
        kept = {n: x for n, x in {**file.fields, **dict(fields)}.items() if n not in without}
        held = {n: x for n, x in {**arrays, **dict(tensors)}.items() if n not in without}
        write_gguf(path, kept, held)

    return write


X = np.ones((3, 10), np.float32)
A_Q = "blk.1.attn_q.weight.lora_a"
B_Q = "blk.1.attn_q.weight.lora_b"


@pytest.mark.parametrize(
    "write, message",
    [
        (changed({"general.type": "model"}), "has general.type = 'model', expected adapter"),
        (changed(without=["adapter.type"]), "has adapter.type = None, expected lora"),
        (changed({"general.architecture": "bert"}), "= 'bert', expected llama or qwen2"),
        (changed({"general.architecture": ["llama"]}), "expected llama or qwen2"),
        (changed(without=["adapter.lora.alpha"]), "has adapter.lora.alpha = None, expected a num"),
        (changed({"adapter.lora.alpha": float("nan")}), "has adapter.lora.alpha = nan"),
        (changed({"adapter.lora.alpha": True}), "has adapter.lora.alpha = True"),
        (changed(without=[A_Q]), "holds 'blk.1.attn_q' with one of its two factors"),
        (changed(tensors={"token_embd.weight": X}), "'token_embd.weight', which is no factor"),
        (changed(tensors={A_Q: X[:2]}), r"'blk.1.attn_q' with A \(2, 10\) and B \(24, 3\)"),
        (changed(tensors={A_Q: X[0]}), r"'blk.1.attn_q' with A \(10,\) and B"),
        (changed(tensors={B_Q: X.T}), "has 10 rows, not 4 heads of an even width"),
        (
            changed(tensors={"x.weight.lora_a": X, "x.weight.lora_b": X.T}),
            "'x' is not a module of a Llama model",
        ),
        (lambda path: write_gguf(path, {}, {}), "has general.type = None"),
        (changed(without=[f"blk.{i}.{m}.weight.lora_{h}" for i in (0, 1) for h in "ab"
                          for m in ("attn_q", "attn_k", "attn_v", "ffn_down")]), "holds no tensor"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_adapter_is_refused(write, message, tmp_path):
    write(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=rf"x\.gguf.*{message}"):
        read_gguf_adapter(tmp_path / "x.gguf", **HEADS)


def test_a_gguf_adapter_fits_no_other_model(tmp_path):
    write_gguf_adapter(tmp_path / "x.gguf", modules(), **HEADS)
    base = GPT(GPTConfig(9, 4, 1, 2, 8), np.random.default_rng(0))
    with pytest.raises(CheckpointError, match=r"x\.gguf: a GGUF adapter fits a Llama, not a GPT"):
        load_adapter(base, tmp_path / "x.gguf")
