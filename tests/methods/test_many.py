"""Many adapters trained at once: each equals training alone, to rounding."""

from pathlib import Path

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    Grads,
    Linear,
    Llama,
    LlamaConfig,
    LoraConfig,
    Parameter,
    as_pair,
    check_gradients,
    fit,
    inject,
    load_adapter,
    save_adapter,
)
from lora_np.backend import ShapeError
from lora_np.methods import LoRALinear, RowsLoRA, Together, adapters, make_method, with_rows
from lora_np.ops import Rows
from lora_np.selfcheck import at_random
from tests.compare import close, values

V, T = 11, 6
COUNTS = (2, 3, 1)  # rows of each adapter
IDS = np.array([1, 0, 2, 1, 0, 1])
CONFIGS = (  # unequal ranks, scales and places
    LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    LoraConfig(r=3, lora_alpha=9, target_modules="all-linear"),
    LoraConfig(r=1, target_modules=["down_proj"]),
)


def gpt(rng):
    return GPT(GPTConfig(V, T, 2, 2, 8), rng, np.float64)


def llama(rng):
    sizes = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_model": 8, "d_hidden": 6}
    return Llama(LlamaConfig(V, T, **sizes), rng, np.float64)


def models(make=gpt, configs=CONFIGS):
    """Models over one base, with every number random: B too."""
    rng = np.random.default_rng(0)
    base = make(rng)
    at_random(base, rng, 0.3)
    found = [inject(base, config, rng) for config in configs]
    for model in found:
        for layer in adapters(model).values():
            at_random_B(layer, rng)
    return found


def at_random_B(layer, rng):
    layer.B.value = rng.standard_normal(layer.B.shape) * 0.3


def batch(rng):
    """Tokens, targets and ids; some targets are ignored, so that the adapters' counts differ."""
    tokens, targets = rng.integers(0, V, (2, len(IDS), T))
    targets[1, 2:] = -100
    targets[4, :1] = -100
    return tokens, targets, IDS


def own(whole, a):
    """The rows of one adapter, as its own batch."""
    tokens, targets, ids = whole
    return tokens[ids == a], targets[ids == a]


def stream(seed=3):
    """A sequence of batches, the same at every call."""
    rng = np.random.default_rng(seed)
    return lambda: batch(rng)


# --- the loss and its gradient -----------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt, llama])
def test_loss_and_gradients_are_those_of_each_alone(make, rng):
    alone, whole = models(make), batch(rng)
    together = Together(models(make))
    loss, cache = together.loss(*whole)
    grads = Grads()
    together.backward(1.0, cache, grads)
    losses = []
    for a, model in enumerate(alone):
        theirs = Grads()
        own_loss, cache = model.loss(*own(whole, a))
        model.backward(1.0, cache, theirs)
        losses.append(float(own_loss))
        named = together.models[a].parameters()
        trained = {n: p for n, p in model.parameters().items() if p.trainable}
        assert len(trained) == 2 * len(adapters(model))
        for name, p in trained.items():
            close(grads[named[name]], theirs[p])
            assert np.abs(theirs[p]).max() > 1e-6
    assert float(loss) == pytest.approx(sum(losses), rel=1e-12)


def test_gradients_match_numeric_ones_at_a_random_B(rng):
    tokens, targets, ids = batch(rng)
    together = Together(models())
    forward, backward, inputs = as_pair(together, lambda m, x: m.loss(x, targets, ids))
    given = inputs(tokens)
    assert len(given) == 1 + 2 * sum(len(adapters(model)) for model in together.models)
    check_gradients(forward, backward, given, method="directional").raise_if_wrong()


def test_a_row_of_the_base_trains_nothing(rng):
    tokens, targets, ids = batch(rng)
    together = Together(models())
    loss, _ = together.loss(tokens, targets, ids)
    more = [np.concatenate([a, a[:2]]) for a in (tokens, targets)]
    with_base, _ = together.loss(*more, np.concatenate([ids, [-1, -1]]))
    assert float(with_base) == pytest.approx(float(loss), rel=1e-12)
    none, cache = together.loss(tokens, targets, np.full(len(ids), -1))
    grads = Grads()
    together.backward(1.0, cache, grads)
    assert float(none) == 0.0 and len(grads) == 0


def test_number_counts_the_targets_of_each_adapter(rng):
    assert Together(models()).number(batch(rng)).tolist() == [7, 18, 6]


# --- fit ---------------------------------------------------------------------------------------


def trained_alone(**options):
    found = models()
    for a, model in enumerate(found):
        sample = stream()
        fit(model, lambda sample=sample, a=a: own(sample(), a), **options)
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_fit_on_mixed_rows_equals_training_each_alone(optimizer, clip):
    options = {"steps": 5, "lr": 0.02, "clip": clip, "optimizer": optimizer}
    if optimizer == "adamw":
        options["options"] = {"weight_decay": 0.1}
    start, alone, together = models(), trained_alone(**options), models()
    history = fit(Together(together), stream(), **options)
    assert history.tokens == 5 * IDS.size * T
    for before, one, of_all in zip(start, alone, together):
        expected = values(one)
        for name, value in values(of_all).items():
            close(value, expected[name], 1e-10)
        moved = [np.abs(v - expected[n]).max() for n, v in values(before).items()]
        assert sum(m > 1e-9 for m in moved) == 2 * len(adapters(one))


def test_clipping_all_by_one_norm_would_couple_them(monkeypatch):
    options = {"steps": 2, "lr": 0.02, "clip": 0.05, "optimizer": "sgd"}
    alone, together = trained_alone(**options), models()
    monkeypatch.setattr(Together, "groups", lambda self: [list(self.parameters())])
    fit(Together(together), stream(), **options)
    gaps = [
        np.abs(values(a)[name] - value).max()
        for a, b in zip(alone, together)
        for name, value in values(b).items()
    ]
    assert max(gaps) > 1e-5


@pytest.mark.parametrize("how", [{"accumulate": 4}, {"threads": 2}, {"processes": 2}])
def test_a_batch_in_pieces_gives_the_same(how):
    whole, pieces = models(), models()
    options = {"steps": 3, "lr": 0.02}
    one = fit(Together(whole), stream(), **options)
    other = fit(Together(pieces), stream(), **options, **how)
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    for a, b in zip(whole, pieces):
        for name, value in values(b).items():
            close(value, values(a)[name], 1e-10)


def test_after_training_each_model_is_saved_alone(tmp_path: Path):
    together = models()
    fit(Together(together), stream(), steps=2, lr=0.02)
    tokens = np.arange(T)[None]
    for a, model in enumerate(together):
        save_adapter(model, tmp_path / str(a))
        rng = np.random.default_rng(0)
        plain = gpt(rng)
        at_random(plain, rng, 0.3)
        loaded = load_adapter(plain, tmp_path / str(a))
        close(loaded.forward(tokens)[0], model.forward(tokens)[0], 1e-12)


# --- the tree whose layers know their rows -----------------------------------------------------


@pytest.mark.parametrize("make", [gpt, llama])
def test_every_row_has_the_logits_of_its_own_model(make, rng):
    found, ids = models(make), np.array([2, -1, 0, 1, 0])
    tokens = rng.integers(0, V, (5, T))
    logits, _ = with_rows(found[0], found, ids).forward(tokens)
    for n, a in enumerate(ids):
        plain = make(base_rng := np.random.default_rng(0))
        at_random(plain, base_rng, 0.3)
        expected, _ = (plain if a == -1 else found[a]).forward(tokens[n : n + 1])
        close(logits[n : n + 1], expected)


def test_rows_are_generated_as_by_their_own_model(rng):
    found, ids = models(), np.array([1, 0, 2])
    prompts = rng.integers(0, V, (3, 2))
    text = with_rows(found[0], found, ids).generate(prompts, 4, temperature=0)
    for n, a in enumerate(ids):
        alone = found[a].generate(prompts[n], 4, temperature=0)
        np.testing.assert_array_equal(text[n], alone)


def test_a_tree_leaves_the_models_as_they_were(rng):
    found, tokens = models(), rng.integers(0, V, (2, T))
    before = found[0].forward(tokens)[0]
    with_rows(found[0], found, [1, 2])
    np.testing.assert_array_equal(found[0].forward(tokens)[0], before)
    assert not any(isinstance(layer, RowsLoRA) for layer in found[0].modules().values())


def lora_layers(rng, linear):
    def factor(*shape):
        return Parameter(rng.standard_normal(shape))

    return [LoRALinear(linear, factor(r, 4), factor(3, r), 0.5 + r) for r in (1, 3)]


@pytest.mark.parametrize("method", ["central", "complex"])
def test_the_gradients_of_the_layer_match_numeric_ones(method, rng):
    linear = Linear(4, 3, rng, dtype=np.float64)
    layer = RowsLoRA(linear, lora_layers(rng, linear), Rows([1, -1, 0, 1], 2))
    forward, backward, inputs = as_pair(layer)
    given = inputs(rng.standard_normal((4, 2, 4)))
    assert len(given) == 1 + 2 + 2 * 2
    check_gradients(forward, backward, given, method=method).raise_if_wrong()


def test_the_newest_positions_are_computed_as_all(rng):
    linear = Linear(4, 3, rng, dtype=np.float64)
    layer = RowsLoRA(linear, lora_layers(rng, linear), Rows([1, -1, 0, 1], 2))
    x = rng.standard_normal((4, 2, 4))
    y, memory = layer.extend(x[:, 1:])
    assert memory is None
    close(y, layer.forward(x)[0][:, 1:])


def test_flops_are_the_means_over_the_rows(rng):
    linear = Linear(4, 3, rng)
    one, three = lora_layers(rng, linear)
    layer = RowsLoRA(linear, [one, three], Rows([1, -1, 0, 1], 2))
    costs = [three.flops(1), linear.flops(1), one.flops(1), three.flops(1)]
    expected = [sum(cost[i] for cost in costs) // 4 for i in (0, 1)]
    assert [layer.flops(1).forward, layer.flops(1).backward] == expected


# --- bad input ---------------------------------------------------------------------------------


def refused(found, message):
    with pytest.raises(ValueError, match=message):
        Together(found)


def test_what_cannot_be_right_is_refused():
    refused([], "there are no models to train together")
    refused([models()[0], models()[1]], r"models\[1\] has another base than models\[0\]")
    dora = make_method("dora", r=2)
    refused(models(configs=(CONFIGS[0], dora)), r"models\[1\] has .*Dora.*, expected LoRALinear")
    dropped = LoraConfig(r=2, lora_dropout=0.1)
    refused(models(configs=(CONFIGS[0], dropped)), r"models\[1\] has lora_dropout")
    faster = LoraConfig(r=2, loraplus_lr_ratio=4.0)
    refused(models(configs=(CONFIGS[0], faster)), r"models\[1\] has another loraplus_lr_ratio")
    pissa = LoraConfig(r=2, init_lora_weights="pissa")
    refused(models(configs=(CONFIGS[0], pissa)), "StartedLoRA")
    open_base = models()
    next(p for p in open_base[1].parameters().values() if not p.trainable).trainable = True
    refused(open_base, r"models\[1\] trains Parameters of the base")
    refused([gpt(np.random.default_rng(0))], r"models\[0\] has no adapter")


def test_ids_that_do_not_fit_are_refused(rng):
    tokens, targets, ids = batch(rng)
    together = Together(models())
    with pytest.raises(IndexError, match=r"ids has the number 3, expected -1 \.\. 2"):
        together.loss(tokens, targets, ids + 1)
    for n in range(len(ids)):  # whether or not the targets can be cut into n equal parts
        with pytest.raises(ShapeError, match=rf"ids has shape \({n},\), expected"):
            together.loss(tokens, targets, ids[:n])
        with pytest.raises(ShapeError, match=rf"ids has shape \({n},\), expected"):
            together.number((tokens, targets, ids[:n]))
