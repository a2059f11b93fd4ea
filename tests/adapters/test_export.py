"""lora-np export and convert --to gguf: what other programs read computes what the model does."""

import json

import numpy as np
import pytest

from lora_np import LoraConfig, cli, inject, load_adapter, merge, save_adapter
from lora_np.adapters import export_model, write_adapter
from lora_np.adapters.gguf import adapter_to_gguf
from lora_np.files import GgufFile, TensorFile
from lora_np.methods import DoraConfig, PromptConfig
from lora_np.pretrained import load_llm
from lora_np.pretrained.tokenizer_files import PIECES
from tests.adapters.llama_files import (
    SCALING,
    TOKENS,
    V,
    llama,
    write_folder,
    write_lora,
    write_model_gguf,
)
from tests.pretrained.tiny_tokenizer import tiny_fields, tiny_tokenizer

CHAT = [{"role": "user", "content": "there are 12 shops, Größe 猫 <|im_end|>"}]


def logits(model):
    return model.forward(TOKENS)[0]


def exported(source, tmp_path, out, **options):
    export_model(source, tmp_path / out, **options)
    return load_llm(tmp_path / out)


@pytest.fixture(params=["folder", "gguf"])
def source(request, tmp_path):
    """The tiny model's file or folder."""
    write = {"folder": write_folder, "gguf": write_model_gguf}[request.param]
    return write(tmp_path / f"base.{request.param}", llama())


@pytest.mark.parametrize("out", ["x.gguf", "x"])
def test_the_merged_model_is_read_back_exactly(source, out, tmp_path):
    model = write_lora(tmp_path / "lora", llama())
    found = exported(source, tmp_path, out, adapter=tmp_path / "lora", kind="f32")
    np.testing.assert_array_equal(logits(found.model), logits(merge(model)))
    assert np.abs(logits(found.model) - logits(llama())).max() > 0.1
    assert found.tokenizer.chat(CHAT, True) == tiny_tokenizer().chat(CHAT, True)
    assert (found.tokenizer.bos, found.tokenizer.eos) == (1, 2)
    assert found.model.config.eps == pytest.approx(1e-5) and found.model.config.tied


@pytest.mark.parametrize(
    "out, kind, most",
    [("x.gguf", "f16", 2**-11), ("x", "f16", 2**-11), ("x", "bf16", 2**-8), ("x.gguf", "q8_0", 0)],
)
def test_matrices_are_rounded_and_vectors_are_not(source, out, kind, most, tmp_path):
    model = merge(write_lora(tmp_path / "lora", llama()))
    merged = export_model(source, tmp_path / out, adapter=tmp_path / "lora", kind=kind)
    found = load_llm(tmp_path / out).model.parameters()
    for name, p in model.parameters().items():
        error = np.abs(found[name].value - p.value)
        if name.endswith(".gamma") and out == "x.gguf":
            assert error.max() == 0
        elif kind == "q8_0":  # half a step of 1/127 of the block, and the scale's rounding
            blocks = np.abs(p.value).reshape(-1, 32).max(axis=1, keepdims=True)
            assert error.max() > 0 and (error.reshape(-1, 32) <= 0.0045 * blocks).all()
        else:
            assert (error <= most * np.abs(p.value) + 2**-25).all()
    assert len(merged) == 14  # only the layers that the adapter changes
    norms = {m.name.split(".")[-2]: (m.norm, m.rounding) for m in merged}
    W0 = llama().model.layers[1].self_attn.q_proj.W.value
    W = model.model.layers[1].self_attn.q_proj.W.value
    written = found["model.layers.1.self_attn.q_proj.W"].value
    expected = np.linalg.norm(W - W0), np.linalg.norm(written - W)
    assert norms["attn_q" if out == "x.gguf" else "q_proj"] == pytest.approx(expected, rel=1e-4)


def test_the_fields_of_a_gguf_base_are_kept(tmp_path):
    base = write_model_gguf(tmp_path / "base.gguf", llama())
    before = GgufFile.open(base).fields
    for kind, number in {"f32": 0, "f16": 1, "q8_0": 7}.items():
        export_model(base, tmp_path / f"{kind}.gguf", kind=kind)
        after = GgufFile.open(tmp_path / f"{kind}.gguf").fields
        assert (after.pop("general.file_type"), after.pop("general.quantization_version")) == (
            number,
            2,
        )
        gone = {"general.file_type", "quantize.imatrix.file"}
        assert after == {name: x for name, x in before.items() if name not in gone}
        assert before.keys() >= gone


def test_a_folder_gets_the_fields_that_the_converter_writes(tmp_path):
    folder = write_folder(tmp_path / "tiny", llama(), pad_token="<|im_end|>")
    export_model(folder, tmp_path / "x.gguf", kind="q8_0")
    file = GgufFile.open(tmp_path / "x.gguf")
    expected = tiny_fields(padding_token_id=2)
    assert {n: x for n, x in file.fields.items() if n.startswith("tokenizer.")} == expected
    assert file.fields["general.name"] == "tiny"
    assert file.fields["llama.attention.head_count_kv"] == 2
    assert file.fields["llama.rope.dimension_count"] == 16
    types = {name: tensor.type for name, tensor in file.tensors.items()}
    assert types["output_norm.weight"] == "F32" and types["token_embd.weight"] == "Q8_0"
    assert "output.weight" not in types  # the head is tied


def test_rows_that_are_no_whole_blocks_are_float16(tmp_path):
    folder = write_folder(tmp_path / "tiny", llama(d_hidden=40))
    export_model(folder, tmp_path / "x.gguf", kind="q8_0")
    tensors = GgufFile.open(tmp_path / "x.gguf").tensors
    assert (tensors["blk.0.ffn_down.weight"].type, tensors["blk.0.ffn_up.weight"].type) == (
        "F16",
        "Q8_0",
    )


@pytest.mark.parametrize("out", ["x.gguf", "x"])
def test_qwen2_with_biases_and_an_untied_head(out, tmp_path):
    model = llama(qkv_bias=True, tied=False)
    folder = write_folder(tmp_path / "base", model)
    found = exported(folder, tmp_path, out, kind="f32").model
    np.testing.assert_array_equal(logits(found), logits(model))
    if out == "x.gguf":
        file = GgufFile.open(tmp_path / out)
        assert file.fields["general.architecture"] == "qwen2"
        stored = file.tensors["blk.0.attn_q.weight"].array()
        np.testing.assert_array_equal(stored, model.model.layers[0].self_attn.q_proj.W.value)


def test_scaled_frequencies_go_to_gguf_and_stay_there(tmp_path):
    folder = write_folder(tmp_path / "base", llama(rope_scaling=SCALING))
    expected = logits(llama(rope_scaling=SCALING))
    assert np.abs(expected - logits(llama())).max() > 0.05
    found = exported(folder, tmp_path, "x.gguf", kind="f32")
    np.testing.assert_allclose(logits(found.model), expected, atol=1e-4)
    again = exported(tmp_path / "x.gguf", tmp_path, "y.gguf", kind="f32")
    np.testing.assert_array_equal(logits(again.model), logits(found.model))
    np.testing.assert_array_equal(
        logits(exported(folder, tmp_path, "y", kind="f32").model), expected
    )
    with pytest.raises(ValueError, match=r"x\.gguf has 'rope_freqs\.weight', which config\.json"):
        export_model(tmp_path / "x.gguf", tmp_path / "z")
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("pre", sorted({*PIECES} - {"starcoder"}))  # it cuts as smollm does
def test_every_way_to_cut_a_text_keeps_its_name(pre, tmp_path):
    base = write_model_gguf(tmp_path / "base.gguf", llama(n_layer=1), pre=pre, add_bos_token=None)
    first = exported(base, tmp_path, "x").tokenizer
    second = exported(tmp_path / "x", tmp_path, "y.gguf").tokenizer
    fields = GgufFile.open(tmp_path / "y.gguf").fields
    assert fields["tokenizer.ggml.pre"] == pre
    text = "there ARE 1234 shops: I'll say\n\n  Gro\u0308ße"
    expected = load_llm(base).tokenizer.encode(text)
    assert first.encode(text) == second.encode(text) == expected
    assert second.add_bos == (pre == "llama-bpe")


def test_tokens_that_the_table_lacks_are_never_used(tmp_path):
    folder = write_folder(tmp_path / "base", llama(vocab_size=V + 3))
    found = exported(folder, tmp_path, "x.gguf", kind="f32")
    fields = GgufFile.open(tmp_path / "x.gguf").fields
    assert fields["tokenizer.ggml.tokens"][V:] == [f"[PAD{V + i}]" for i in range(3)]
    assert fields["tokenizer.ggml.token_type"][V:] == [5, 5, 5]
    assert found.model.vocab_size == V + 3
    assert found.tokenizer.chat(CHAT, True) == tiny_tokenizer().chat(CHAT, True)


def test_methods_that_merge_are_merged(tmp_path):
    model = write_lora(tmp_path / "dora", llama(), DoraConfig(r=2, target_modules="all-linear"))
    folder = write_folder(tmp_path / "base", llama())
    found = exported(folder, tmp_path, "x.gguf", adapter=tmp_path / "dora", kind="f32")
    np.testing.assert_array_equal(logits(found.model), logits(merge(model)))


# --------------------------------------------------------------------------- adapters as GGUF


def test_a_gguf_adapter_is_loaded_onto_a_llama_as_the_folder_is(source, tmp_path, capsys):
    write_lora(tmp_path / "lora", llama())
    command = ["convert", str(tmp_path / "lora"), "--to", "gguf", "--base", str(source)]
    assert cli.main([*command, "--out", str(tmp_path / "lora.gguf")]) == 0
    assert capsys.readouterr().out == f"14 modules written to {tmp_path / 'lora.gguf'}\n"
    expected = logits(load_adapter(llama(), tmp_path / "lora"))
    np.testing.assert_array_equal(logits(load_adapter(llama(), tmp_path / "lora.gguf")), expected)
    found = exported(source, tmp_path, "x", adapter=tmp_path / "lora.gguf", kind="f32")
    np.testing.assert_allclose(logits(found.model), expected, atol=2e-4)


def test_the_config_says_what_the_model_is_for(tmp_path):
    write_lora(tmp_path / "lora", llama())
    fields = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert fields["task_type"] == "CAUSAL_LM"
    assert "model.layers.0.self_attn.q_proj" in fields["target_modules"]


def run(tmp_path, monkeypatch, *lines):
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert cli.main(line.split()) == 0, line


def test_the_commands_for_adapters_work_on_a_llama(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "base", llama())
    model = write_lora(tmp_path / "lora", llama())
    run(
        tmp_path, monkeypatch,
        "export --model base --adapter lora --type f32 --out tuned",
        "merge --base base --adapter lora --out merged.safetensors",
        "extract --base base --tuned tuned --rank 2 --out found",
        "resize lora --rank 1 --out small",
        "combine lora small --weights 0.5 0.5 --out both",
        "analyse lora", "analyse tuned --base base",
        "convert both --to gguf --base base --out both.gguf",
    )  # fmt: skip
    assert "q_proj 2" in capsys.readouterr().out  # the rank that keeps 99 % of the energy
    with TensorFile("merged.safetensors") as one, TensorFile("tuned/model.safetensors") as other:
        assert sorted(one.names) == sorted(other.names)
        for name in one.names:
            np.testing.assert_allclose(one.read(name), other.read(name), atol=1e-6)
    expected = logits(model)
    np.testing.assert_allclose(logits(load_adapter(llama(), "found")), expected, atol=2e-3)
    gguf, folder = (logits(load_adapter(llama(), name)) for name in ("both.gguf", "both"))
    np.testing.assert_array_equal(gguf, folder)
    assert np.abs(folder - expected).max() > 0.05  # half of the change has rank 1


# ------------------------------------------------------------------------------------ refusals


def written_dora(tmp_path):
    write_lora(tmp_path / "x", llama(), DoraConfig(r=2, target_modules="all-linear"))


def written_of_embedding(tmp_path):
    write_lora(tmp_path / "x", llama(), LoraConfig(r=2, target_modules=["embed_tokens"]))


def written_of_another(tmp_path):
    write_lora(tmp_path / "x", llama(n_layer=3))


def written_of_wider(tmp_path):
    write_lora(tmp_path / "x", llama(d_hidden=128))


def written_of_no_llama(tmp_path):
    write_adapter(tmp_path / "x", [("h.0.attn", np.ones((2, 1)), np.ones((1, 2)), 1.0)])


@pytest.mark.parametrize(
    "write, message",
    [
        (written_dora, "use_dora"),
        (written_of_embedding, "embed"),
        (
            written_of_another,
            r"adapts .*model\.layers\.2\..*no linear layer of that name and shape",
        ),
        (written_of_wider, r"adapts .*mlp\.gate_proj.*no linear layer of that name and shape"),
        (written_of_no_llama, r"adapts h\.0\.attn"),
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_named(write, message, tmp_path, capsys):
    base = write_folder(tmp_path / "base", llama())
    write(tmp_path)
    command = ["convert", str(tmp_path / "x"), "--to", "gguf", "--base", str(base)]
    assert cli.main([*command, "--out", str(tmp_path / "x.gguf")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        adapter_to_gguf(tmp_path / "x", base, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_gguf_adapter_has_a_name_by_which_it_is_known(tmp_path):
    base = write_folder(tmp_path / "base", llama())
    write_lora(tmp_path / "lora", llama())
    with pytest.raises(ValueError, match=r"x\.bin: expected a name that ends in \.gguf"):
        adapter_to_gguf(tmp_path / "lora", base, tmp_path / "x.bin")


def with_tokenizer(change):
    """A function that writes a folder whose tokenizer.json is changed."""

    def write(tmp_path):
        path = write_folder(tmp_path / "base", llama()) / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
        return {"out": "x.gguf"}

    return write


def cut_by(*cuts):
    def change(content):
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(cuts)}

    return with_tokenizer(change)


def with_adapter(model, config=None):
    def write(tmp_path):
        write_folder(tmp_path / "base", llama())
        write_lora(tmp_path / "lora", model, config)
        return {"out": "x.gguf", "adapter": tmp_path / "lora"}

    return write


def made_on_another(tmp_path):
    options = with_adapter(llama())(tmp_path)
    record = {"base": {"name": "a model", "fingerprint": "0123456789abcdef"}}
    (tmp_path / "lora" / "training.json").write_text(json.dumps(record))
    return options


def plain(**options):
    def write(tmp_path):
        write_folder(tmp_path / "base", llama(**options.pop("sizes", {})))
        return options

    return write


def too_small(tmp_path):
    write_folder(tmp_path / "base", llama(vocab_size=V - 1))
    return {"out": "x.gguf"}


def too_large(tmp_path):
    model = llama()
    model.model.embed_tokens.W.value[0, 0] = 1e30
    write_folder(tmp_path / "base", model)
    return {"out": "x.gguf", "kind": "q8_0"}


def in_use(out):
    def write(tmp_path):
        write_folder(tmp_path / "base", llama())
        (tmp_path / "x.gguf").write_text("mine")
        return {"out": out}

    return write


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": "mine"}}


@pytest.mark.parametrize(
    "write, message",
    [
        (plain(out="x.gguf", kind="bf16"), "a GGUF file is written in f32, f16, q8_0, not in bf16"),
        (plain(out="x", kind="q8_0"), "folder of Hugging Face is written in f32, f16, bf16, not"),
        (plain(out="x.safetensors"), "lora-np merge writes a .safetensors file"),
        (in_use("x.gguf"), r"x\.gguf already exists"),
        (in_use(""), "already exists: give the result another name"),
        (with_adapter(llama(n_layer=3)), "layers.2"),
        (made_on_another, r"lora was trained on another base \('a model', fingerprint"),
        (with_adapter(llama(), PromptConfig()), "virtual tokens do not merge"),
        (cut_by(SPLIT, BYTES), r"cuts texts by \('mine',\): llama.cpp's name is not known"),
        (cut_by({**BYTES, "add_prefix_space": True}), "has the pre-tokenizer .*'ByteLevel'"),
        (cut_by(SPLIT), "is not byte-level BPE"),
        (cut_by({**SPLIT, "behavior": "Removed"}, BYTES), "has the pre-tokenizer .*'Removed'"),
        (with_tokenizer(lambda c: c.update(pre_tokenizer=None)), "is not byte-level BPE"),
        (too_small, "has the id 339, the model 339 rows"),
        (too_large, r"'?token_embd\.weight'?.*too large for Q8_0"),
        (with_tokenizer(lambda c: c["model"].update(ignore_merges=True)), "has ignore_merges = T"),
        (with_tokenizer(lambda c: c.update(normalizer={"type": "NFC"})), "has normalizer = 'NFC'"),
    ],
)
def test_a_model_that_cannot_be_written_is_refused_in_one_line(write, message, tmp_path):
    options = write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        export_model(tmp_path / "base", tmp_path / options.pop("out"), **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_method_that_adds_a_tensor_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path / "base", llama())
    write_lora(tmp_path / "lora", llama())
    monkeypatch.setattr("lora_np.adapters.export.merge", lambda adapted: llama(qkv_bias=True))
    with pytest.raises(ValueError, match=r"lora adds or reshapes model\.layers\.0\..*q_proj\.b"):
        export_model(tmp_path / "base", tmp_path / "x.gguf", adapter=tmp_path / "lora")


def test_a_gguf_file_in_place_of_safetensors_is_named(tmp_path):
    path = write_model_gguf(tmp_path / "base.gguf", llama())
    with pytest.raises(ValueError, match=r"base\.gguf is a GGUF file: .* with lora-np export"):
        TensorFile(path)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--to", "gguf", "--rank", "2"], "--to gguf keeps every rank"),
        ([], "--to lora needs one of --rank, --energy and --error"),
    ],
)
def test_ranks_are_for_lora_alone(options, message, capsys):
    assert cli.main(["convert", "x", "--base", "y", "--out", "z", *options]) == 2
    assert message in capsys.readouterr().err


def test_export_prints_the_rounding_of_what_was_merged(source, tmp_path, capsys):
    write_lora(tmp_path / "lora", llama())
    command = ["export", "--model", str(source), "--out", str(tmp_path / "x.gguf")]
    assert cli.main([*command, "--adapter", str(tmp_path / "lora"), "--type", "q8_0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tensor", "dtype", "norm", "rounding", "/", "norm"]
    assert lines[1].split()[:2] == ["blk.0.attn_k.weight", "Q8_0"] and len(lines) == 17
    assert lines[-1] == f"written to {tmp_path / 'x.gguf'}"


@pytest.mark.llm
def test_smollm2_with_an_adapter_answers_alike_in_every_form(tmp_path):
    llm = load_llm("smollm2")
    tokens = np.array([llm.tokenizer.chat([{"role": "user", "content": "Count to 5."}], True)])
    model = inject(llm.model, LoraConfig(r=4), rng := np.random.default_rng(0))
    for name, p in model.parameters().items():
        if name.endswith(".B"):
            p.value[...] = 0.02 * rng.standard_normal(p.shape)
    save_adapter(model, tmp_path / "lora")
    expected = model.forward(tokens)[0][0, -1]
    assert np.abs(expected - llm.model.forward(tokens)[0][0, -1]).max() > 0.5
    for out, kind, most in (("x.gguf", "f32", 1e-3), ("y.gguf", "f16", 0.3), ("z", "f32", 1e-3)):
        found = exported("smollm2", tmp_path, out, adapter=tmp_path / "lora", kind=kind)
        assert found.tokenizer.chat(CHAT, True) == llm.tokenizer.chat(CHAT, True)
        logits = found.model.forward(tokens)[0][0, -1]
        assert np.abs(logits - expected).max() < most
        assert logits.argmax() == expected.argmax()
