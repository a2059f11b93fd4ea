"""Files against transformers and PEFT: their models and adapters here, our adapters there."""

import json

import numpy as np
import pytest

from lora_np import load_adapter, load_gpt2, save_adapter
from lora_np.adapters.peft_config import PeftConfig
from lora_np.files import CheckpointError
from lora_np.methods import DoraConfig, LoraConfig, adapters, inject
from lora_np.parameters import Grads

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # PEFT's
]

D, LAYERS, VOCAB = 16, 3, 31


@pytest.fixture
def theirs(torch):
    """A tiny GPT-2 whose every parameter is random."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=12, n_embd=D, n_layer=LAYERS, n_head=4,
        layer_norm_epsilon=1e-3, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def logits(model, tokens):
    """Theirs (..., T, V) in float64."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.double().numpy()


def assert_same(ours, tokens, expected, tolerance):
    """Logits within `tolerance` of the largest."""
    found = ours.forward(tokens)[0]
    assert np.abs(found - expected).max() < tolerance * max(1, np.abs(expected).max())


@pytest.fixture
def tokens(rng):
    return rng.integers(0, VOCAB, (2, 9))


# ----------------------------------------------------------------------------- pretrained weights


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-10)])
def test_logits_of_a_loaded_gpt2_are_transformers(
    tmp_path, torch, theirs, tokens, dtype, tolerance
):
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path, dtype)
    assert ours.wte.W.dtype == dtype
    assert_same(ours, tokens, logits(theirs, tokens), tolerance)


def test_a_checkpoint_in_several_files_or_without_prefix_loads_alike(tmp_path, theirs, tokens):
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    theirs.transformer.save_pretrained(tmp_path / "body")  # a GPT2Model: names without prefix
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    for folder in ("shards", "body"):
        ours = load_gpt2(tmp_path / folder, np.float64)
        assert_same(ours, tokens, logits(theirs, tokens), 1e-10)


def test_a_bfloat16_checkpoint_loads_with_its_rounded_values(tmp_path, torch, theirs, tokens):
    rounded = theirs.to(torch.bfloat16)
    rounded.save_pretrained(tmp_path)
    assert_same(load_gpt2(tmp_path, np.float64), tokens, logits(rounded.double(), tokens), 1e-10)


def test_greedy_generation_is_transformers(tmp_path, torch, theirs, tokens):
    theirs.save_pretrained(tmp_path)
    start = tokens[:1, :4]
    found = load_gpt2(tmp_path, np.float64).generate(start, 8, temperature=0)
    expected = theirs.generate(
        torch.from_numpy(start), max_new_tokens=8, do_sample=False, eos_token_id=None,
        attention_mask=torch.ones(1, 4, dtype=torch.long),
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected.numpy())


# -------------------------------------------------------------------------------- PEFT's adapters

ADAPTERS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "patterns": {
        "r": 4, "lora_alpha": 8,
        # in the alphabet's order, in which PEFT saves them: the first that matches counts
        "rank_pattern": {"^transformer.h.2.attn.c_attn": 5, "c_fc": 2, r"h\.1\..*": 3},
        "alpha_pattern": {r".*\.h\.0\..*": 3, "mlp.c_proj": 5},
    },
    "rslora and patterns": {
        "r": 3, "lora_alpha": 7, "use_rslora": True, "rank_pattern": {"0.attn.c_attn": 6},
        "alpha_pattern": {"attn.c_proj": 2}, "lora_dropout": 0.1,
    },
    "one block": {"r": 4, "lora_alpha": 8, "layers_to_transform": [1], "layers_pattern": "h"},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "rank_pattern": {"c_fc": 2}},
}  # fmt: skip


def peft_adapter(torch, theirs, options):
    """Their model, adapted, with random A and B."""
    import peft

    targets = ["c_attn", "c_proj", "c_fc"]
    config = peft.LoraConfig(target_modules=targets, fan_in_fan_out=True, **options)
    adapted = peft.get_peft_model(theirs, config).double().eval()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.3)
    return adapted


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_an_adapter_of_pefts_loads_with_its_logits(tmp_path, torch, theirs, tokens, name, dtype):
    theirs.save_pretrained(tmp_path / "base")
    adapted = peft_adapter(torch, theirs, ADAPTERS[name])
    for parameter_name, p in adapted.named_parameters():
        if "lora_" in parameter_name:
            p.data = p.data.to(getattr(torch, dtype))
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(load_gpt2(tmp_path / "base", np.float64), tmp_path / "adapter")
    expected = logits(adapted.double(), tokens)
    assert_same(ours, tokens, expected, 1e-10)
    ours = load_adapter(load_gpt2(tmp_path / "base", np.float32), tmp_path / "adapter")
    assert_same(ours, tokens, expected, 1e-5)
    assert {layer.dropout for layer in adapters(ours).values()} == {
        ADAPTERS[name].get("lora_dropout", 0)
    }


@pytest.mark.parametrize("name", ["patterns", "rslora and patterns"])
def test_an_adapter_saved_again_is_pefts_to_the_same_ranks_and_scales(
    tmp_path, torch, theirs, tokens, name
):
    import peft

    theirs.save_pretrained(tmp_path / "base")
    adapted = peft_adapter(torch, theirs, ADAPTERS[name])
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted, tokens)
    ranks = {n: (m.r, m.scaling) for n, m in adapted.named_modules() if hasattr(m, "lora_A")}
    ours = load_adapter(load_gpt2(tmp_path / "base", np.float64), tmp_path / "adapter")
    save_adapter(ours, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(
        adapted.unload(), tmp_path / "again", autocast_adapter_dtype=False
    ).double()
    assert ranks == {n: (m.r, m.scaling) for n, m in again.named_modules() if hasattr(m, "lora_A")}
    assert np.abs(logits(again.eval(), tokens) - expected).max() < 1e-5  # read into float32


def test_the_tables_of_the_configs_fields_are_pefts():
    """READ, NO_EFFECT and AT_REST hold each field of theirs once, with its default."""
    import dataclasses

    import peft

    from lora_np.adapters.peft_config import AT_REST, NO_EFFECT, READ

    theirs = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert theirs == READ | NO_EFFECT | AT_REST.keys()
    assert len(theirs) == len(READ) + len(NO_EFFECT) + len(AT_REST)
    default = peft.LoraConfig()
    assert {name: getattr(default, name) for name in AT_REST} == AT_REST


def test_peft_passes_over_the_fields_that_we_pass_over(tmp_path, torch, theirs, tokens):
    import peft

    theirs.save_pretrained(tmp_path / "base")
    adapted = peft_adapter(torch, theirs, ADAPTERS["plain"])
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "learning_rate": 2e-4}))
    with pytest.warns(UserWarning, match="Unexpected keyword arguments .'learning_rate'."):
        assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").r == 4
    ours = load_adapter(load_gpt2(tmp_path / "base", np.float64), tmp_path / "adapter")
    assert_same(ours, tokens, logits(adapted, tokens), 1e-10)


# --------------------------------------------------------------------------------- our adapters

OURS = {
    "q, v and up": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]},
    "all, of several ranks and scales": {
        "r": 4, "lora_alpha": 7, "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, "1.attn.v_proj": 1, "down_proj": 5},
        "alpha_pattern": {"k_proj": 3, "0.mlp.up_proj": 0.3},
    },
    "rslora": {"r": 5, "lora_alpha": 3, "target_modules": ["k_proj"], "use_rslora": True},
    "dora": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "o_proj"]},
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_our_adapter_loads_in_peft_with_our_logits(
    tmp_path, rng, torch, theirs, tokens, name, dtype
):
    import peft

    theirs.save_pretrained(tmp_path / "base")
    config = (DoraConfig if name == "dora" else LoraConfig)(**OURS[name])
    ours = inject(load_gpt2(tmp_path / "base", np.float64), config, rng)
    for layer in adapters(ours).values():
        layer.B.value = rng.standard_normal(layer.B.shape) * 0.3
        if name == "dora":
            layer.m.value = layer.m.value + rng.standard_normal(layer.m.shape) * 0.3
    save_adapter(ours, tmp_path / "adapter", base_model="gpt2", dtype=dtype)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").double().eval()
    if dtype == "bfloat16":  # what the file rounds to
        ours = load_adapter(load_gpt2(tmp_path / "base", np.float64), tmp_path / "adapter")
    assert_same(ours, tokens, logits(adapted, tokens), 1e-5)
    held = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert held["fan_in_fan_out"] is True and held["base_model_name_or_path"] == "gpt2"


# ------------------------------------------------------------------ which modules a config names

PLACES = [
    f"{root}layers.{i}.{part}"
    for root in ("model.", "model.visual.", "model.layers.3.experts.")
    for i in (0, 1, 11)
    for part in ("self_attn.q_proj", "mlp.up_proj")
]
CONFIGS = [
    {"target_modules": r".*\.layers\.(\d|1[1-9])\.self_attn\.(q|k)_proj"},
    {"target_modules": r"^(?!.*visual).*(?:q_proj|up_proj)$"},
    {"target_modules": r"(?:.*?(?:language|layers).*?(?:mlp|attn).*?(?:up_proj|o_proj).*?)"},
    {"target_modules": ["q_proj", "1.mlp.up_proj"], "exclude_modules": r".*visual.*"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1, 3],
        "layers_pattern": ["h", "layers"],
    },
    {"target_modules": ["q_proj"], "layers_to_transform": [11], "layers_pattern": r"(layers|h)"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": r"experts\.[^.]*"},
]


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_a_config_names_the_modules_that_it_names_in_peft(tmp_path, fields):
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists

    theirs = peft.LoraConfig(**fields)
    theirs.save_pretrained(tmp_path)
    ours, named = PeftConfig(tmp_path / "adapter_config.json"), []
    for name in PLACES:
        try:
            ours.check_module(name)
            named.append(name)
        except CheckpointError:
            pass
    expected = [n for n in PLACES if bool(check_target_module_exists(theirs, n)) is True]
    assert named == expected
    assert 0 < len(named) < len(PLACES)


# ------------------------------------------------------------------------------ LoRA on embeddings


@pytest.mark.parametrize("targets", [["wte"], ["wte", "wpe", "c_attn"]], ids=str)
def test_lora_on_embeddings_is_pefts_both_ways(tmp_path, rng, torch, theirs, tokens, targets):
    """The head is tied to wte and keeps it, there and here."""
    import peft

    theirs.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=True)
    adapted = peft.get_peft_model(theirs, config).double().eval()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    adapted.save_pretrained(tmp_path / "theirs")
    base = load_gpt2(tmp_path / "base", np.float64)
    ours = load_adapter(base, tmp_path / "theirs")
    assert_same(ours, tokens, logits(adapted, tokens), 1e-12)
    assert ours.wte.A.shape == (3, VOCAB) and ours.wte.B.shape == (D, 3)
    ours.wte.A.value = ours.wte.A.value + rng.standard_normal(ours.wte.A.shape)
    save_adapter(ours, tmp_path / "ours", peft_only=True)
    adapted.load_adapter(tmp_path / "ours", "ours", autocast_adapter_dtype=False)
    adapted.set_adapter("ours")
    assert_same(ours, tokens, logits(adapted, tokens), 1e-12)


# -------------------------------------------------------------------------------- trainable tokens


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments .'fan_in_fan_out':UserWarning")
def test_trainable_tokens_are_pefts_both_ways(tmp_path, rng, torch, theirs, tokens):
    """The rows appear in the tied head too; their gradient is the sum of both uses."""
    import peft

    theirs.save_pretrained(tmp_path / "base")
    indices = [7, int(tokens[0, 0]) if tokens[0, 0] != 7 else 8, 30]
    config = peft.TrainableTokensConfig(token_indices=indices, target_modules=["wte"])
    adapted = peft.get_peft_model(theirs, config).double().eval()
    (rows,) = (p for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():
        rows.add_(torch.randn_like(rows))
    adapted.save_pretrained(tmp_path / "theirs")
    base = load_gpt2(tmp_path / "base", np.float64)
    ours = load_adapter(base, tmp_path / "theirs")
    assert_same(ours, tokens, logits(adapted, tokens), 1e-12)
    torch.nn.functional.cross_entropy(
        adapted(torch.from_numpy(tokens)).logits.flatten(0, -2),
        torch.from_numpy(tokens[:, ::-1].copy()).flatten(),
    ).backward()
    grads = Grads()
    ours.backward(1.0, ours.loss(tokens, tokens[:, ::-1])[1], grads)
    error = np.abs(grads[ours.wte.rows] - rows.grad.numpy()).max()
    assert error < 1e-12 * max(1.0, float(rows.grad.abs().max()))
    ours.wte.rows.value = ours.wte.rows.value + rng.standard_normal(rows.shape)
    save_adapter(ours, tmp_path / "ours", peft_only=True)
    again = peft.PeftModel.from_pretrained(
        adapted.unload(), tmp_path / "ours", autocast_adapter_dtype=False
    ).eval()
    assert_same(ours, tokens, logits(again, tokens), 1e-12)
