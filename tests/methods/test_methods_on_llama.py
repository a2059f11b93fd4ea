"""Every method on a Llama: the contract at random Parameters, packed rows, quantised bases."""

from dataclasses import replace

import numpy as np
import pytest

from lora_np import (
    Grads,
    Llama,
    LlamaConfig,
    PrefixConfig,
    PromptConfig,
    check_gradients,
    check_method,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lora_np.data import Sample, packed, padded
from lora_np.forms import Nf4
from lora_np.layers import Embedding, RotaryAttention, as_pair
from lora_np.layers.stored import store_model
from lora_np.methods import (
    BitFitConfig,
    DoraConfig,
    FullConfig,
    IA3Config,
    IntrinsicConfig,
    LNTuningConfig,
    LoraConfig,
    TokensConfig,
    adapters,
)
from lora_np.methods.virtual import VirtualTokens
from lora_np.models.top import TopLayers
from tests.methods.test_methods import METHODS_TRIED, Biases

V, T, N = 13, 6, 3
TOKENS = np.arange(2 * T).reshape(2, T) % V
GROUPED = {"n_head": 4, "n_kv_head": 2, "d_head": 6}  # keys (12) are narrower than d_model
QWEN2 = {"n_head": 2, "n_kv_head": 2, "tied": False, "qkv_bias": True}


def llama(sizes=GROUPED, dtype=np.float64, seed=0):
    """A model with weights large enough that attention attends."""
    config = LlamaConfig(V, N + T, n_layer=2, d_model=16, d_hidden=20, **sizes)
    model, rng = Llama(config, np.random.default_rng(seed), dtype), np.random.default_rng(seed)
    for p in model.parameters().values():
        p.value = (p.value + 0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def on_llama(config):
    """The method with targets that a Llama has."""
    if isinstance(config, TokensConfig):
        return replace(config, target_modules=("embed_tokens",))
    if isinstance(config, BitFitConfig):
        return replace(config, target_modules=("q_proj", "k_proj", "v_proj"))
    if isinstance(config, FullConfig) and config.layers_to_transform is not None:
        return replace(config, target_modules=("q_proj", "input_layernorm"))
    return config


def sizes_for(config):
    """Sizes with biases for methods that train them."""
    return QWEN2 if isinstance(config, BitFitConfig | Biases) else GROUPED


def adapted_at_random(config, base, seed=1):
    """The adapted model with its Parameters away from their start."""
    rng = np.random.default_rng(seed)
    adapted = inject(base, config, rng)
    for p in adapted.parameters().values():
        if p.trainable:
            p.value = p.value + (0.2 * rng.standard_normal(p.shape)).astype(p.dtype)
    return adapted


def loss_of(model, tokens):
    return model.loss(tokens, (tokens + 1) % V, rng=np.random.default_rng(4))


def step(model, *batch):
    """The loss and the gradients of the trained Parameters, by name."""
    grads = Grads()
    loss, cache = model.loss(*batch)
    model.backward(1.0, cache, grads)
    return float(loss), {n: grads[p] for n, p in model.parameters().items() if p.trainable}


TRIED = [on_llama(config) for config in METHODS_TRIED]
EMBEDDED = [
    LoraConfig(r=2, target_modules=("embed_tokens", "q_proj")),
    PrefixConfig(2, prefix_projection=True, encoder_hidden_size=5),
    TokensConfig((1, 4), target_modules=("embed_tokens",)),
]
every_method = pytest.mark.parametrize("config", [*TRIED, *EMBEDDED], ids=lambda c: c.name)


# ------------------------------------------------------------------------------- the contract


@every_method
def test_gradients_at_random_parameters_are_right(config):
    adapted = adapted_at_random(config, llama(sizes_for(config)))
    forward, backward, inputs = as_pair(adapted, loss_of)
    assert check_gradients(forward, backward, inputs(TOKENS), method="directional").ok


@every_method
def test_a_method_that_starts_at_the_base_computes_what_the_base_does(config):
    base = llama(sizes_for(config))
    found = inject(base, config, np.random.default_rng(1)).forward(TOKENS)[0]
    error = np.abs(found - base.forward(TOKENS)[0]).max()
    assert error < 1e-12 if config.starts_at_base else error != 0.0


@every_method
def test_a_method_merges_or_says_why_not(config):
    adapted = adapted_at_random(config, llama(sizes_for(config)))
    embedded = any(isinstance(part.base, Embedding) for part in adapters(adapted).values())
    if not config.merges or (embedded and isinstance(config, LoraConfig)):
        with pytest.raises(ValueError, match=r"(do|does) not merge: "):
            merge(adapted)
        return
    plain = merge(adapted)
    assert adapters(plain) == {}
    expected = adapted.forward(TOKENS)[0]
    np.testing.assert_allclose(plain.forward(TOKENS)[0], expected, rtol=0, atol=1e-10)


@every_method
def test_files_are_read_back_bit_for_bit(config, tmp_path):
    base = llama(sizes_for(config))
    adapted = adapted_at_random(config, base)
    save_adapter(adapted, tmp_path)
    again = load_adapter(base, tmp_path)
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])


@every_method
def test_generation_with_memory_equals_the_whole_forward(config):
    adapted = adapted_at_random(config, llama(sizes_for(config)))
    prompts = [TOKENS[0, :2], TOKENS[1, :4]]
    for text, prompt in zip(adapted.generate(prompts, 2, temperature=0), prompts):
        written = adapted.forward(text[None])[0][0].argmax(axis=1)[len(prompt) - 1 : -1]
        assert text[len(prompt) :].tolist() == written.tolist()


@pytest.mark.slow  # every entry of every Parameter is perturbed
@pytest.mark.parametrize("config", TRIED, ids=lambda c: c.name)
def test_a_method_keeps_the_whole_contract_on_a_llama(config):
    blocks = (config.layers_to_transform or 0) + 1
    sizes = {**sizes_for(config), "n_layer": blocks, "d_model": 8, "d_hidden": 8, "d_head": 4}
    model = Llama(LlamaConfig(5, N + T, **sizes), np.random.default_rng(0))
    assert len(check_method(config, model)) == 15


# ---------------------------------------------------------------------------------- packed rows


def samples(lengths):
    rng = np.random.default_rng(3)
    return [Sample(rng.integers(0, V, n), rng.random(n) < 0.8) for n in lengths]


@every_method
def test_packed_rows_equal_padded_ones_or_are_refused(config):
    adapted = adapted_at_random(config, llama(sizes_for(config)))
    batch = samples([4, 6, 2, 5, 3])
    if isinstance(config, VirtualTokens):
        with pytest.raises(ValueError, match=r"packed rows have no room .* pad them"):
            adapted.loss(*packed(batch, 2))
        return
    loss, grads = step(adapted, *padded(batch))
    packed_loss, packed_grads = step(adapted, *packed(batch, 2))
    assert abs(packed_loss - loss) < 1e-12
    for name, expected in grads.items():
        np.testing.assert_allclose(packed_grads[name], expected, rtol=0, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(
    "config",
    [each for each in [*TRIED, *EMBEDDED] if not isinstance(each, IntrinsicConfig)],
    ids=lambda c: c.name,
)
def test_recomputation_changes_no_gradient(config):
    adapted = adapted_at_random(config, llama(sizes_for(config)))
    loss, grads = step(adapted, TOKENS, (TOKENS + 1) % V)
    assert not adapted.recompute
    adapted.recompute = True
    again, recomputed = step(adapted, TOKENS, (TOKENS + 1) % V)
    assert again == loss
    for name, expected in grads.items():
        np.testing.assert_allclose(recomputed[name], expected, rtol=0, atol=1e-12, err_msg=name)


# -------------------------------------------------------------------------- one block; few bits


@pytest.mark.parametrize(
    "config",
    [each for each in TRIED if "layers_to_transform" in vars(each)],
    ids=lambda c: c.name,
)
def test_layers_to_transform_is_the_number_in_model_layers(config):
    adapted = inject(llama(), replace(config, layers_to_transform=[1]), np.random.default_rng(1))
    trained = [name for name, p in adapted.parameters().items() if p.trainable]
    assert all(name.startswith("model.layers.1.") for name in trained)
    top = TopLayers(adapted)
    assert top.first == 1
    expected = step(adapted, TOKENS, TOKENS)[0]
    assert abs(step(top, top.hidden(TOKENS), TOKENS)[0] - expected) < 1e-12


@every_method
def test_a_base_in_four_bits_is_adapted_as_its_decoded_weights_are(config):
    """Methods that train Parameters of the base train those that are not packed."""
    if isinstance(config, FullConfig):
        with pytest.raises(ValueError, match="stored as nf4"):
            inject(store_model(llama(), Nf4.encode), config, np.random.default_rng(1))
        return
    stored = store_model(llama(sizes_for(config), np.float32), Nf4.encode)
    decoded = store_model(llama(sizes_for(config), np.float32), Nf4.encode)
    for part in (x for x in decoded.modules().values() if hasattr(x, "W")):
        part.W = part.W.decoded()
    assert any(p.stored_as for p in stored.parameters().values())
    found, expected = (
        step(adapted_at_random(config, base), TOKENS, (TOKENS + 1) % V)
        for base in (stored, decoded)
    )
    assert abs(found[0] - expected[0]) < 1e-5
    for name in found[1]:
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=0, atol=1e-4)


# ------------------------------------------------------------- what differs from a GPT-2's layers


def test_a_prefix_of_the_bases_own_keys_is_these_tokens_before_the_text():
    """The memory's keys are turned by their positions, and go into attention as they are."""
    base, before = llama(), np.array([5, 0, 2])
    adapted = inject(base, PrefixConfig(N), np.random.default_rng(1))
    _, memory = base.extend(before[None])
    for layer, block in zip(adapters(adapted).values(), memory.body):
        keys = block[0][1]  # of the residual branch's norm and attention
        k, v = (x[0, :, :N].swapaxes(0, 1).reshape(N, -1) for x in (keys._room.k, keys._room.v))
        layer.P.value = np.concatenate((k, v), axis=1)  # (n, 2 n_kv_head d_head)
    whole = np.concatenate((np.tile(before, (2, 1)), TOKENS), axis=1)
    expected = base.forward(whole)[0][:, N:]
    np.testing.assert_allclose(adapted.forward(TOKENS)[0], expected, rtol=0, atol=1e-12)
    assert np.abs(base.forward(TOKENS)[0] - expected).max() > 0.1


def test_a_prompt_of_tokens_rows_is_these_tokens_before_the_text():
    base, before = llama(), np.array([5, 0, 2])
    adapted = inject(base, PromptConfig(N, init_tokens=before), np.random.default_rng(1))
    whole = np.concatenate((np.tile(before, (2, 1)), TOKENS), axis=1)
    expected = base.forward(whole)[0][:, N:]
    np.testing.assert_allclose(adapted.forward(TOKENS)[0], expected, rtol=0, atol=1e-12)


def test_the_attention_below_a_prefix_is_the_bases_own():
    adapted = inject(llama(), PrefixConfig(N), np.random.default_rng(1))
    for layer in adapters(adapted).values():
        assert type(layer.base) is RotaryAttention and isinstance(layer, RotaryAttention)
        assert layer.P.shape == (N, 2 * 12)  # two heads of keys, of width 6


def test_an_attention_without_a_form_with_a_prefix_is_refused():
    class Windowed(RotaryAttention):
        pass

    base = llama()
    base.model.layers[1].self_attn.__class__ = Windowed
    with pytest.raises(ValueError, match="Windowed has no form with a prefix"):
        inject(base, PrefixConfig(N), np.random.default_rng(1))


def test_norms_train_their_gains_alone():
    adapted = inject(llama(), LNTuningConfig(), np.random.default_rng(1))
    assert [name for name, p in adapted.parameters().items() if p.trainable] == [
        *(
            f"model.layers.{i}.{norm}.gamma"
            for i in (0, 1)
            for norm in ("input_layernorm", "post_attention_layernorm")
        ),
        "model.norm.gamma",
    ]


def test_the_gains_of_ia3_stand_where_pefts_do():
    """PEFT's table for llama: k_proj, v_proj, down_proj, the last in front."""
    adapted = inject(llama(), IA3Config(), np.random.default_rng(1))
    found = {path.rpartition(".")[2]: layer.g.shape for path, layer in adapters(adapted).items()}
    assert found == {"k_proj": (12, 1), "v_proj": (12, 1), "down_proj": (1, 20)}


@pytest.mark.parametrize("base", [llama(), llama({**QWEN2, "qkv_bias": False})])
def test_bitfit_is_refused_where_there_is_no_bias(base):
    with pytest.raises(ValueError, match="the model has no layer with a bias"):
        inject(base, BitFitConfig(), np.random.default_rng(1))


def test_lora_on_a_tied_table_leaves_the_head_as_it_was():
    base = llama()
    config = LoraConfig(r=2, target_modules=("embed_tokens",))
    adapted = adapted_at_random(config, base)
    assert adapted.head() is adapted.model.embed_tokens.base.W
    np.testing.assert_array_equal(adapted.head().value, base.head().value)
    assert np.abs(adapted.forward(TOKENS)[0] - base.forward(TOKENS)[0]).max() > 1e-3


@pytest.mark.parametrize("config", [LoraConfig(r=2), DoraConfig(r=2)], ids=["lora", "dora"])
def test_all_linear_layers_are_those_of_the_blocks(config):
    base = llama(QWEN2)
    config = replace(config, target_modules="all-linear")
    paths = adapters(inject(base, config, np.random.default_rng(1)))
    assert len(paths) == 2 * 7 and all(path.startswith("model.layers.") for path in paths)
