"""What lora-np exports, in transformers, PEFT and gguf: the same logits, tokens and fields."""

import importlib

import numpy as np
import pytest

from lora_np import load_adapter, load_llama, merge, save_adapter
from lora_np.adapters import export_model
from lora_np.pretrained import load_llm
from tests.adapters.llama_files import (
    SCALING,
    TOKENS,
    adapted,
    llama,
    write_folder,
    write_lora,
    write_model_gguf,
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # PEFT's
]
MODELS = {
    "plain": {},
    "untied": {"tied": False},
    "qwen2": {"qkv_bias": True},
    "llama3": {"rope_scaling": SCALING},
}
CHAT = [{"role": "user", "content": "there are 12 shops, Größe 猫"}]


def their_logits(model, torch):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.float().numpy()


def assert_close(found, expected):
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_transformers_loads_the_folder(changes, torch, tmp_path):
    from transformers import AutoModelForCausalLM

    base = write_folder(tmp_path / "base", llama(**changes))
    expected = merge(write_lora(tmp_path / "lora", llama(**changes))).forward(TOKENS)[0]
    export_model(base, tmp_path / "x", adapter=tmp_path / "lora", kind="f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert theirs.dtype == torch.float32
    assert_close(their_logits(theirs, torch), expected)
    export_model(base, tmp_path / "narrow", adapter=tmp_path / "lora", kind="bf16")
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow")
    assert narrow.dtype == torch.bfloat16
    ours = load_llama(tmp_path / "narrow")
    assert_close(their_logits(narrow.float(), torch), ours.forward(TOKENS)[0])


def test_transformers_has_the_tokens_of_a_folder_from_gguf(torch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = write_model_gguf(tmp_path / "base.gguf", llama())
    export_model(base, tmp_path / "x", kind="f32")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "x"), load_llm(base).tokenizer
    for text in ("there are 12 shops", "Größe 猫 \n  in 2024", "<|im_start|>"):
        assert theirs.encode(text) == ours.encode(text, special=True)
    assert theirs.eos_token_id == ours.eos
    found = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert found == ours.chat(CHAT, True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert_close(their_logits(model, torch), llama().forward(TOKENS)[0])
    assert model.config.eos_token_id == 2


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm"])
def test_transformers_puts_bos_in_front_where_the_gguf_file_says_so(pre, tmp_path):
    from transformers import AutoTokenizer

    base = write_model_gguf(tmp_path / "base.gguf", llama(), pre=pre, add_bos_token=None)
    export_model(base, tmp_path / "x")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "x"), load_llm(base).tokenizer
    text = "I'LL say 1234 Gro\u0308ße\n\n  猫"
    assert theirs.encode(text) == [1] * (pre == "llama-bpe") + ours.encode(text)


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"qkv_bias": True}])
def test_transformers_reads_the_gguf_file(changes, torch, tmp_path):
    from transformers import AutoModelForCausalLM

    base = write_folder(tmp_path / "base", llama(**changes))
    expected = merge(write_lora(tmp_path / "lora", llama(**changes))).forward(TOKENS)[0]
    export_model(base, tmp_path / "x.gguf", adapter=tmp_path / "lora", kind="f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    assert_close(their_logits(theirs, torch), expected)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_gguf_reads_the_same_numbers_and_typed_fields(kind, tmp_path):
    gguf = importlib.import_module("gguf")
    quants = importlib.import_module("gguf.quants")
    base = write_folder(tmp_path / "base", llama())
    export_model(base, tmp_path / "x.gguf", kind=kind)
    reader, ours = gguf.GGUFReader(tmp_path / "x.gguf"), load_llama(tmp_path / "x.gguf")
    by_name = {t.name: quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    parameters = ours.parameters()
    np.testing.assert_array_equal(
        by_name["token_embd.weight"], parameters["model.embed_tokens.W"].value
    )
    np.testing.assert_array_equal(
        by_name["blk.1.ffn_up.weight"], parameters["model.layers.1.mlp.up_proj.W"].value
    )
    names = {t.name for t in reader.tensors}
    assert len(names) == len(parameters) == len(llama().parameters())
    fields, K = {n: f.types for n, f in reader.fields.items()}, gguf.Keys
    types = gguf.GGUFValueType
    assert fields[K.General.FILE_TYPE] == fields[K.LLM.BLOCK_COUNT.format(arch="llama")]
    assert fields[K.LLM.BLOCK_COUNT.format(arch="llama")] == [types.UINT32]
    assert fields[K.Rope.FREQ_BASE.format(arch="llama")] == [types.FLOAT32]
    assert fields[K.Attention.LAYERNORM_RMS_EPS.format(arch="llama")] == [types.FLOAT32]
    assert fields[K.Tokenizer.LIST] == fields[K.Tokenizer.MERGES] == [types.ARRAY, types.STRING]
    assert fields[K.Tokenizer.TOKEN_TYPE] == [types.ARRAY, types.INT32]
    assert fields[K.Tokenizer.EOS_ID] == [types.UINT32]
    assert fields[K.Tokenizer.ADD_BOS] == [types.BOOL]
    number = reader.get_field(K.General.FILE_TYPE).contents()
    assert gguf.LlamaFileType(number).name.endswith(kind.upper())


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_peft_loads_our_adapter_of_a_llama(changes, torch, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel, PeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    base = write_folder(tmp_path / "base", llama(**changes))
    model = adapted(llama(**changes))
    save_adapter(model, tmp_path / "lora", base_model=str(base))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora"
    )
    assert isinstance(theirs, PeftModelForCausalLM)
    expected = model.forward(TOKENS)[0]
    assert_close(their_logits(theirs, torch), expected)
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")
    assert_close(their_logits(found, torch), expected)
    ours = load_adapter(load_llama(base), tmp_path / "lora")
    np.testing.assert_array_equal(ours.forward(TOKENS)[0], expected)
