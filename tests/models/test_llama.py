"""The Llama model: gradients, packed rows, recomputation, the trained top, generation."""

import numpy as np
import pytest

from lora_np import (
    Grads,
    Llama,
    LlamaConfig,
    LoraConfig,
    Parameter,
    account,
    as_pair,
    check_gradients,
    inject,
)
from lora_np.backend import ShapeError
from lora_np.data import Sample, packed, padded
from lora_np.models.top import TopLayers, has_frozen_bottom
from lora_np.ops.loss import IGNORE_INDEX

V = 31


def config(**changes):
    sizes = {"n_layer": 3, "n_head": 4, "n_kv_head": 2, "d_model": 8, "d_hidden": 12}
    return LlamaConfig(V, 16, **{**sizes, **changes})


def llama(seed=0, **changes):
    """A float64 model with weights large enough that every part matters."""
    rng = np.random.default_rng(seed)
    model = Llama(config(**changes), rng, np.float64)
    for p in model.parameters().values():
        p.value[...] = p.value + 0.3 * rng.standard_normal(p.shape)
    return model


def adapted(model, **options):
    """LoRA with a random B on all linear layers of the model."""
    rng = np.random.default_rng(1)
    found = inject(model, LoraConfig(r=2, target_modules="all-linear", **options), rng)
    for name, p in found.parameters().items():
        if name.endswith(".B"):
            p.value[...] = rng.standard_normal(p.shape)
    return found


def gradients(model, *batch, rng=None, **options):
    grads = Grads()
    loss, cache = model.loss(*batch, rng=rng, **options)
    model.backward(1.0, cache, grads)
    named = {n: grads.get(p) for n, p in model.parameters().items() if p.trainable}
    return float(loss), named


def assert_equal_gradients(one, other, tolerance=1e-12):
    assert one.keys() == other.keys()
    for name in one:
        scale = max(1.0, abs(other[name]).max())
        assert abs(one[name] - other[name]).max() < tolerance * scale, name


def samples(lengths, seed=2):
    rng = np.random.default_rng(seed)
    return [Sample(rng.integers(0, V, n), rng.random(n) < 0.7) for n in lengths]


@pytest.mark.parametrize("changes", [{}, {"tied": False, "qkv_bias": True}, {"n_kv_head": 4}])
def test_gradients_of_every_parameter_are_right(changes):
    model, rng = llama(**changes, n_layer=2), np.random.default_rng(3)
    tokens, targets = rng.integers(0, V, (2, 5)), rng.integers(0, V, (2, 5))
    targets[0, :2] = IGNORE_INDEX
    forward, backward, inputs = as_pair(model, lambda m, x: m.loss(x, targets))
    for method in ("central", "complex"):
        assert check_gradients(forward, backward, inputs(tokens), method=method).ok


def test_packed_rows_have_the_loss_and_gradient_of_samples_in_rows_of_their_own():
    model = adapted(llama())
    batch = samples([5, 9, 1, 3, 7, 2])
    loss, grads = gradients(model, *padded(batch))
    for rows in (1, 2, 3):
        packed_loss, packed_grads = gradients(model, *packed(batch, rows))
        assert abs(packed_loss - loss) < 1e-12
        assert_equal_gradients(packed_grads, grads)


def alike(lengths, seed=6):
    """Samples with one long start, and answers of these lengths."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, V, 6).tolist()
    prompts = [[*start, *rng.integers(0, V, rng.integers(1, 4))] for _ in lengths]
    return [
        Sample([*prompt, *rng.integers(0, V, n)], [False] * len(prompt) + [True] * n)
        for prompt, n in zip(prompts, lengths)
    ]


@pytest.mark.parametrize("trained", ["adapters", "everything"])
def test_samples_that_share_their_start_have_the_gradient_of_whole_ones(trained):
    model = adapted(llama()) if trained == "adapters" else llama()
    batch = [*alike([1, 2, 3, 2]), *samples([5, 3]), *alike([2, 2], seed=7)]
    loss, grads = gradients(model, *padded(batch))
    for rows in (1, 2, 3):
        tokens, targets, positions = packed(batch, rows)
        assert (targets != IGNORE_INDEX).sum() == (padded(batch)[1] != IGNORE_INDEX).sum()
        assert tokens.size < sum(map(len, batch)) or rows > 1
        shared_loss, shared_grads = gradients(model, tokens, targets, positions)
        assert abs(shared_loss - loss) < 1e-12
        assert_equal_gradients(shared_grads, grads)


def test_a_packed_sample_does_not_see_the_others():
    model = llama()
    tokens, _, positions = packed(samples([6, 5, 4]), 1)
    first = positions[0].tolist().index(0, 1)
    y = model.outputs(tokens, positions)[0]
    changed = tokens.copy()
    changed[0, :first] = (changed[0, :first] + 1) % V
    z = model.outputs(changed, positions)[0]
    assert np.array_equal(y[0, first:], z[0, first:])
    assert not np.allclose(y[0, :first], z[0, :first])


def test_positions_that_are_not_those_of_packed_rows_are_refused():
    model, tokens = llama(), np.zeros((1, 4), int)
    with pytest.raises(ShapeError, match="row 0"):
        model.loss(tokens, tokens, np.array([[0, 1, 3, 0]]))
    with pytest.raises(ShapeError, match="row 0"):
        model.loss(tokens, tokens, np.array([[1, 2, 3, 4]]))
    with pytest.raises(ShapeError, match="positions has shape"):
        model.loss(tokens, tokens, np.array([[0, 1, 2]]))


def test_packed_rows_may_be_longer_than_the_context_but_no_sample():
    model = llama()
    tokens, targets, positions = packed(samples([10, 12, 11]), 1)
    assert tokens.shape[1] > model.block_size
    assert np.isfinite(model.loss(tokens, targets, positions)[0])
    with pytest.raises(ShapeError, match="block_size"):
        model.loss(*packed(samples([17]), 1))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_changes_no_gradient(dropout):
    model = adapted(llama(), lora_dropout=dropout)
    batch = padded(samples([5, 6]))
    plain = gradients(model, *batch, rng=np.random.default_rng(4))
    model.recompute = True
    again = gradients(model, *batch, rng=np.random.default_rng(4))
    assert again[0] == plain[0]
    assert_equal_gradients(again[1], plain[1])


def test_backward_of_recomputation_may_run_twice():
    model = adapted(llama(), lora_dropout=0.5)
    model.recompute = True
    rng = np.random.default_rng(5)
    _, cache = model.loss(*padded(samples([6])), rng=rng)
    first, second = Grads(), Grads()
    model.backward(1.0, cache, first)
    model.backward(1.0, cache, second)
    for p in model.parameters().values():
        if p.trainable:
            assert np.array_equal(first[p], second[p])


def test_recomputation_costs_one_more_forward():
    model = adapted(llama())
    plain = account(model, 8).flops
    model.recompute = True
    again = account(model, 8).flops
    assert again.forward == plain.forward
    assert again.backward > plain.backward


def test_the_trained_top_has_the_models_loss_and_gradients():
    model = adapted(llama(), layers_to_transform=[1, 2])
    top = TopLayers(model)
    assert top.first == 1
    for batch in (padded(samples([5, 3])), packed(samples([5, 3, 7]), 2)):
        tokens, *rest = batch
        whole = gradients(model, *batch)
        positions = rest[1] if len(rest) > 1 else None
        above = gradients(top, top.hidden(tokens, positions), *rest)
        assert above[0] == whole[0]
        assert_equal_gradients(above[1], whole[1])


def test_a_model_with_trained_embeddings_has_no_frozen_bottom():
    model = llama()
    assert not has_frozen_bottom(model)
    with pytest.raises(ValueError, match="embeddings"):
        TopLayers(model)
    assert not has_frozen_bottom(adapted(llama()))
    assert has_frozen_bottom(adapted(llama(), layers_to_transform=[2]))


def test_generation_with_memory_equals_the_whole_forward():
    model = llama()
    prompts = [np.arange(5), np.arange(3) + 7]
    for text, prompt in zip(model.generate(prompts, 6, temperature=0), prompts):
        logits, _ = model.forward(text[None])
        written = logits[0].argmax(axis=1)[len(prompt) - 1 : -1]
        assert text[len(prompt) :].tolist() == written.tolist()


def test_generation_slides_beyond_the_context():
    model = llama()
    assert model.generate(np.arange(4), 20, temperature=0).shape == (24,)


def test_advance_returns_the_logits_of_the_newest_token():
    model, tokens = llama(), np.arange(6)[None]
    logits, memory = model.advance(tokens[:, :4])
    assert np.allclose(logits, model.forward(tokens[:, :4])[0][:, -1])
    logits, memory = model.advance(tokens[:, 4:], memory)
    assert np.allclose(logits, model.forward(tokens)[0][:, -1])
    assert memory.lengths == (6,)


def test_making_a_model_of_given_parameters_draws_nothing():
    asked = []

    def make(name, shape):
        asked.append(name)
        return Parameter(np.ones(shape, np.float32))

    model = Llama.of(config(tied=False, qkv_bias=True), make)
    assert sorted(asked) == sorted(model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_head": 3}, "n_head = 4 is not a multiple of n_kv_head = 3"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"d_model": 10}, "d_model = 10 does not divide into n_head = 4"),
        ({"d_head": 3}, "d_head is 3, expected an even number"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_an_untied_head_is_none_of_the_linear_layers():
    model = adapted(llama(tied=False))
    assert not any("lm_head" in name for name, p in model.parameters().items() if p.trainable)
