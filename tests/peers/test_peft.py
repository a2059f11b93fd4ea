"""lora_np against PEFT: the same modules, ranks, scales, start, logits, gradients and merge."""

import importlib
import math

import numpy as np
import pytest

from lora_np.methods import LoraConfig, adapters, inject, merge
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Grads
from lora_np.selfcheck import at_random

pytestmark = pytest.mark.peers

TOLERANCE = 1e-9  # float64, relative
CONFIG = GPTConfig(vocab_size=17, block_size=9, n_layer=3, n_head=4, d_model=16)
CONFIGS = {
    "defaults": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"r": 4, "lora_alpha": 3, "target_modules": "all-linear"},
    "rslora": {"r": 5, "lora_alpha": 7, "target_modules": ["o_proj"], "use_rslora": True},
    "ends of paths": {"r": 2, "lora_alpha": 4, "target_modules": ["mlp.up_proj", "1.attn.k_proj"]},
    "one block": {
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"],
        "layers_to_transform": 1,
    },
    "two blocks": {
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "layers_to_transform": [0, 2],
    },
    "rank and alpha patterns": {
        "r": 2, "lora_alpha": 4, "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 3, r"h\.1\.attn\..*": 5, r"h\.2\..*up_proj": 7},
        "alpha_pattern": {"mlp.up_proj": 21, "h.0.attn.q_proj": 1},
    },
    "patterns and rslora": {
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj"], "use_rslora": True,
        "rank_pattern": {"0.attn.k_proj": 9}, "alpha_pattern": {".*k_proj": 12},
    },
}  # fmt: skip


@pytest.fixture
def tg():
    """The torch side; without torch this is an error, not a skip."""
    return importlib.import_module("tests.peers.torch_gpt")


def pair_of_adapted_models(tg, options, rng, B_std=0.3):
    """The same base adapted by us and by PEFT, with the same A and B, both random."""
    import peft

    base = GPT(CONFIG, rng, np.float64)
    at_random(base, rng, 0.3)
    theirs = peft.get_peft_model(tg.twin_of(base), peft.LoraConfig(**options))
    ours = inject(base, LoraConfig(**options), rng)
    for path, layer in adapters(ours).items():
        layer.B.value = rng.standard_normal(layer.B.shape) * B_std
        module = theirs.get_submodule(f"base_model.model.transformer.{path}")
        with tg.torch.no_grad():
            module.lora_A["default"].weight.copy_(tg.tensor(layer.A.value))
            module.lora_B["default"].weight.copy_(tg.tensor(layer.B.value))
    return ours, theirs


def peft_layers(model):
    """PEFT's LoRA layers by our paths."""
    prefix = "base_model.model.transformer."
    return {
        name.removeprefix(prefix): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_ranks_and_scales_are_pefts(rng, tg, name):
    ours, theirs = pair_of_adapted_models(tg, CONFIGS[name], rng)
    found = {path: (layer.r, layer.scale) for path, layer in adapters(ours).items()}
    expected = {
        path: (module.r["default"], pytest.approx(module.scaling["default"], rel=1e-15))
        for path, module in peft_layers(theirs).items()
    }
    assert found == expected
    trainable = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert sum(p.size for p in ours.parameters().values() if p.trainable) == trainable


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_of_A_and_B_are_pefts(rng, tg, name):
    ours, theirs = pair_of_adapted_models(tg, CONFIGS[name], rng)
    tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, 3, 9))
    loss, cache = ours.loss(tokens, targets)
    grads = Grads()
    ours.backward(1.0, cache, grads)
    twin = theirs.base_model.model
    their_loss = twin.loss(tg.tensor(tokens), tg.tensor(targets))
    their_loss.backward()
    assert tg.relative_error(ours.forward(tokens)[0], twin(tg.tensor(tokens))) < TOLERANCE
    assert float(loss) == pytest.approx(their_loss.item(), rel=TOLERANCE)
    layers = peft_layers(theirs)
    for path, layer in adapters(ours).items():
        their_A, their_B = layers[path].lora_A["default"], layers[path].lora_B["default"]
        assert tg.relative_error(grads[layer.A], their_A.weight.grad) < TOLERANCE, path
        assert tg.relative_error(grads[layer.B], their_B.weight.grad) < TOLERANCE, path
    with_gradient = [p for p in theirs.parameters() if p.grad is not None]
    assert len(grads) == len(with_gradient) == 2 * len(layers)


@pytest.mark.parametrize("name", ["defaults", "rslora", "rank and alpha patterns"])
def test_merged_logits_and_weights_are_those_of_merge_and_unload(rng, tg, name):
    ours, theirs = pair_of_adapted_models(tg, CONFIGS[name], rng)
    tokens = rng.integers(0, CONFIG.vocab_size, (3, 9))
    merged, unloaded = merge(ours), theirs.merge_and_unload()
    logits = unloaded(tg.tensor(tokens))
    assert tg.relative_error(merged.forward(tokens)[0], logits) < TOLERANCE
    state = unloaded.state_dict()
    for path in adapters(ours):
        W = merged.parameters()[f"{path}.W"].value
        assert tg.relative_error(W, state[f"transformer.{path}.weight"]) < TOLERANCE


def test_A_starts_in_the_same_interval_and_B_at_zero(rng, tg):
    import peft

    config = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=2, d_model=64)
    options = {"r": 32, "lora_alpha": 32, "target_modules": "all-linear"}
    base = GPT(config, rng, np.float64)
    ours = adapters(inject(base, LoraConfig(**options), rng))
    tg.torch.manual_seed(0)
    theirs = peft_layers(peft.get_peft_model(tg.twin_of(base), peft.LoraConfig(**options)))
    assert set(ours) == set(theirs) and len(ours) == 6
    for path, layer in ours.items():
        their_A = theirs[path].lora_A["default"].weight.detach().numpy()
        bound = 1 / math.sqrt(layer.A.shape[1])
        for A in (layer.A.value, their_A):
            assert 0.99 * bound < np.abs(A).max() <= bound * (1 + 1e-6)
            assert float(A.var()) == pytest.approx(bound**2 / 3, rel=0.1)
        assert layer.A.shape == their_A.shape
        assert not layer.B.value.any() and not theirs[path].lora_B["default"].weight.any()


@pytest.mark.parametrize("targets", [["wte"], ["wpe", "q_proj"], "wte|wpe"], ids=str)
def test_lora_on_embeddings_has_pefts_logits_and_gradients(tg, rng, targets):
    """A head that is tied to the table keeps it."""
    import peft

    base = GPT(CONFIG, rng, np.float64)
    at_random(base, rng, 0.3)
    options = {"r": 3, "lora_alpha": 5, "target_modules": targets}
    pattern = rf"transformer\.({targets})" if isinstance(targets, str) else targets
    theirs = peft.get_peft_model(
        tg.twin_of(base), peft.LoraConfig(**{**options, "target_modules": pattern})
    ).double()
    ours = inject(base, LoraConfig(**options), rng)
    modules = {}
    for path, layer in adapters(ours).items():
        module = modules[path] = theirs.get_submodule(f"base_model.model.transformer.{path}")
        for name in "AB":
            p = getattr(layer, name)
            p.value = rng.standard_normal(p.shape)
            with tg.torch.no_grad():
                held(module, name).copy_(tg.tensor(p.value))
    tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, 4, 7))
    assert tg.relative_error(ours.forward(tokens)[0], theirs(tg.tensor(tokens))) < 1e-12
    theirs.base_model.model.loss(tg.tensor(tokens), tg.tensor(targets)).backward()
    grads = Grads()
    ours.backward(1.0, ours.loss(tokens, targets)[1], grads)
    for path, layer in adapters(ours).items():
        for name in "AB":
            error = tg.relative_error(grads[getattr(layer, name)], held(modules[path], name).grad)
            assert error < 1e-12, (path, name)


def held(module, name):
    """PEFT's factor `name` of a linear layer or of an embedding."""
    found = getattr(module, f"lora_embedding_{name}")
    return found["default"] if found else getattr(module, f"lora_{name}")["default"].weight
