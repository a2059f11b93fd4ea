"""DyLoRA: the drawn rank, what a step trains, every cut; the same for every crew, and resumed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    check_gradients,
    evaluate,
    fit,
    inject,
    load_adapter,
    save_adapter,
)
from lora_np.files import load_json
from lora_np.layers import Linear, as_pair
from lora_np.methods import DyLoraConfig, LoRALinear, adapters, at_rank, merge
from lora_np.parameters import Grads, pack
from lora_np.selfcheck import at_random
from lora_np.train import Trainer, loss_and_gradient
from tests.compare import close, values

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=8)
TOKENS = np.arange(36).reshape(6, 6) % 13
TARGETS = (TOKENS + 1) % 13
every_rule = pytest.mark.parametrize("update", ["all", "frozen"])


def adapted_gpt(std=0.1, **options):
    rng = np.random.default_rng(0)
    base = GPT(CONFIG, rng, np.float64)
    at_random(base, rng, std)
    return inject(base, DyLoraConfig(r=4, **options), rng)


def layer_at(rank, **options):
    rng = np.random.default_rng(0)
    config = DyLoraConfig(r=4, lora_alpha=3, target_modules="all-linear", **options)
    layer = inject(Linear(5, 6, rng, dtype=np.float64), config, rng)
    at_random(layer, rng)
    config.use(layer, rank)
    return layer


# ------------------------------------------------------------------------------ a drawn rank


@pytest.mark.parametrize("scale, at_2", [("drawn", 1.5), ("constant", 0.75)])
def test_a_drawn_rank_computes_with_the_first_rows_and_columns(rng, scale, at_2):
    layer, x = layer_at(2, scale=scale), rng.standard_normal((3, 5))
    W = layer.W0.value + at_2 * layer.B.value[:, :2] @ layer.A.value[:2]
    close(layer.forward(x)[0], x @ W.T + layer.b.value)
    layer.method.use(layer, None)
    W = layer.W0.value + 0.75 * layer.B.value @ layer.A.value
    close(layer.forward(x)[0], x @ W.T + layer.b.value)


def frozen_before(layer):
    """As a pair in row and column k alone; the rest of the layer is constant."""
    forward, backward, inputs = as_pair(layer)
    rest, k = inputs(np.ones((2, 5))), layer.drawn

    def run(a, b):
        given = {name: value.astype(np.result_type(a, b)) for name, value in rest.items()}
        given["A"][k - 1], given["B"][:, k - 1] = a, b
        return forward(*given.values())

    def back(dy, cache, need=None):
        found = dict(zip(rest, backward(dy, cache)))
        return found["A"][k - 1], found["B"][:, k - 1]

    return run, back, (rest["A"][k - 1], rest["B"][:, k - 1])


@pytest.mark.parametrize("method, limit", [("central", 1e-7), ("complex", 1e-12)])
@pytest.mark.parametrize("rank", [1, 3, 4, None])
def test_gradients_at_a_drawn_rank_are_right(rank, method, limit):
    forward, backward, inputs = as_pair(layer_at(rank))
    report = check_gradients(forward, backward, inputs(np.ones((2, 5))), method=method)
    assert report.ok and report.max_error < limit
    if rank is not None:
        report = check_gradients(*frozen_before(layer_at(rank, update="frozen")), method=method)
        assert report.ok and report.max_error < limit


@pytest.mark.parametrize("update", ["all", "frozen"])
def test_a_wrong_derivation_is_caught(update, monkeypatch):
    """The planted mistake: the gradients land one rank too late."""
    from lora_np.methods.dylora import DyLoRALinear

    forward_of = DyLoRALinear.forward

    def late(self, x, rng=None):
        y, (cache, first, k) = forward_of(self, x, rng)
        return y, (cache, first + 1, k)

    monkeypatch.setattr(DyLoRALinear, "forward", late)
    layer = layer_at(3, update=update)
    if update == "all":
        forward, backward, inputs = as_pair(layer)
        assert not check_gradients(forward, backward, inputs(np.ones((2, 5)))).ok
    else:
        assert not check_gradients(*frozen_before(layer)).ok


def test_the_frozen_rule_keeps_the_gradients_of_the_drawn_rank_alone(rng):
    x, dy, found = rng.standard_normal((3, 5)), rng.standard_normal((3, 6)), {}
    for update in ("all", "frozen"):
        layer, grads = layer_at(3, update=update), Grads()
        layer.backward(dy, layer.forward(x)[1], grads)
        found[update] = grads[layer.A], grads[layer.B]
    (dA, dB), (dA_3, dB_3) = found["all"], found["frozen"]
    np.testing.assert_array_equal(dA_3[2], dA[2])
    np.testing.assert_array_equal(dB_3[:, 2], dB[:, 2])
    assert np.flatnonzero(dA_3.any(axis=1)).tolist() == [2]
    assert np.flatnonzero(dB_3.any(axis=0)).tolist() == [2]
    assert np.flatnonzero(dA.any(axis=1)).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------- a step of fit


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@every_rule
def test_a_step_moves_only_the_ranks_that_it_trains(update, optimizer):
    """Adam would move the others by their momentum, and AdamW's decay would shrink them."""
    adapted, moved, drawn = adapted_gpt(update=update), [], []
    draw = DyLoraConfig.draw
    before = values(adapted)

    def note(model, step, gradient):
        now = values(model)
        changed = set()
        for path, layer in adapters(model).items():
            dA, dB = (now[f"{path}.{n}"] - before[f"{path}.{n}"] for n in "AB")
            changed |= {*np.flatnonzero(dA.any(axis=1)), *np.flatnonzero(dB.any(axis=0))}
            assert layer.before is None
        moved.append(sorted(int(i) + 1 for i in changed))
        before.update(now)

    rng = np.random.default_rng(3)
    twin = np.random.default_rng(3)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=12, lr=0.02, rng=rng, optimizer=optimizer,
        after_step=note)  # fmt: skip
    drawn = [draw(adapted.method, twin) for _ in range(12)]
    assert len(set(drawn)) == 4
    expected = [list(range(1, k + 1)) if update == "all" else [k] for k in drawn]
    assert moved == expected


@pytest.mark.parametrize("crew", [{"accumulate": 3}, {"threads": 2}, {"processes": 2}])
@every_rule
def test_every_part_of_a_split_batch_has_the_same_rank(update, crew):
    found = []
    for options in ({}, crew):
        adapted, rng = adapted_gpt(update=update, lora_dropout=0.2), np.random.default_rng(3)
        history = fit(adapted, lambda: (TOKENS, TARGETS), steps=6, lr=0.02, rng=rng, **options)
        found.append((history.loss, values(adapted), rng.random()))
    (whole, weights, after), (parts, others, after_parts) = found
    close(np.array(parts), np.array(whole))
    assert after == after_parts
    for name, x in weights.items():
        close(others[name], x, 1e-9)


def test_ranks_are_drawn_uniformly_and_only_with_a_generator():
    config = DyLoraConfig(r=5)
    drawn = [config.draw(np.random.default_rng(i)) for i in range(2000)]
    assert np.bincount(drawn, minlength=6)[1:].min() > 330 and min(drawn) == 1
    with pytest.raises(ValueError, match="draws a rank at every step: pass rng to fit"):
        fit(adapted_gpt(), lambda: (TOKENS, TARGETS), steps=1, lr=0.1)


@every_rule
def test_a_resumed_run_is_bit_equal(update):
    def begin():
        options = {"steps": 7, "lr": 0.02, "rng": np.random.default_rng(5)}
        return Trainer(adapted_gpt(update=update), lambda: (TOKENS, TARGETS), **options)

    whole, first, second = begin(), begin(), begin()
    whole.run()
    first.run(3)
    second.load(first.state())
    second.run()
    assert second.history.loss == whole.history.loss
    for name, x in values(whole.model).items():
        np.testing.assert_array_equal(values(second.model)[name], x)


def test_between_steps_the_model_computes_at_its_largest_rank():
    adapted, rng = adapted_gpt(), np.random.default_rng(3)
    at_random(adapted, rng, 0.3)
    expected = adapted.forward(TOKENS)[0]
    loss_and_gradient(adapted, pack(adapted.parameters()), (TOKENS, TARGETS), rng=rng)
    np.testing.assert_array_equal(adapted.forward(TOKENS)[0], expected)


# --------------------------------------------------------------------------- plain LoRA of a rank


@pytest.mark.parametrize("scale", ["drawn", "constant"])
def test_every_rank_is_plain_lora_over_the_same_arrays(scale, tmp_path):
    adapted = adapted_gpt(scale=scale)
    at_random(adapted, np.random.default_rng(1), 0.3)
    base = merge(inject(GPT(CONFIG, np.random.default_rng(0), np.float64), DyLoraConfig(r=4),
                        np.random.default_rng(0)))  # fmt: skip
    for name, p in base.parameters().items():
        twin = name if name in adapted.parameters() else name.replace(".W", ".W0")
        p.value[...] = adapted.parameters()[twin].value
    outputs = []
    for rank in range(1, 5):
        plain = at_rank(adapted, rank)
        layer, of = plain.h[0].attn.q_proj, adapted.h[0].attn.q_proj
        assert type(layer) is LoRALinear and layer.r == rank
        assert np.shares_memory(layer.A.value, of.A.value)
        assert not any(p.trainable for p in plain.parameters().values())
        adapted.method.use(adapted, rank)
        outputs.append(plain.forward(TOKENS)[0])
        np.testing.assert_array_equal(outputs[-1], adapted.forward(TOKENS)[0])
        save_adapter(plain, tmp_path / str(rank), peft_only=True)
        fields = load_json(tmp_path / str(rank) / "adapter_config.json")
        assert (fields["peft_type"], fields["r"]) == ("LORA", 2 * rank)  # q and v, stacked
        close(load_adapter(base, tmp_path / str(rank)).forward(TOKENS)[0], outputs[-1])
        adapted.method.use(adapted, None)
    np.testing.assert_array_equal(outputs[-1], adapted.forward(TOKENS)[0])
    close(merge(adapted).forward(TOKENS)[0], outputs[-1])
    assert min(np.abs(one - two).max() for one, two in itertools.pairwise(outputs)) > 1e-3


def test_every_rank_of_a_trained_model_is_better_than_the_base():
    adapted = adapted_gpt(0.5, target_modules="all-linear")
    start = evaluate(adapted, TOKENS, TARGETS)
    rng = np.random.default_rng(3)
    fit(adapted, lambda: (TOKENS, TARGETS), steps=60, lr=0.02, rng=rng)
    losses = [evaluate(at_rank(adapted, rank), TOKENS, TARGETS) for rank in range(1, 5)]
    assert max(losses) < start - 0.3


# ----------------------------------------------------------------------------------- bad input


def test_what_means_nothing_is_refused():
    for options, message in [
        ({"r": 0}, "rank r = 0, expected a whole number"),
        ({"update": "some"}, "update = 'some', expected 'all' or 'frozen'"),
        ({"scale": 2.0}, "scale = 2.0, expected 'drawn' or 'constant'"),
        ({"lora_alpha": -1}, "lora_alpha = -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            DyLoraConfig(**options)
    with pytest.raises(ValueError, match=r"rank 9 for h\.0\.attn\.q_proj is above the limit 8"):
        inject(GPT(CONFIG, np.random.default_rng(0)), replace(DyLoraConfig(), r=9),
               np.random.default_rng(0))  # fmt: skip
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank {rank} of .* expected DyLoRA and a rank from"):
            at_rank(adapted_gpt(), rank)


def test_a_batch_that_fails_leaves_the_model_at_its_full_rank():
    model, wrong = adapted_gpt(), np.full((2, 3), 10**6)  # no such token
    with pytest.raises(IndexError):
        fit(model, lambda: (wrong, wrong), steps=1, lr=0.1, rng=np.random.default_rng(1))
    assert all(layer.drawn is None for layer in adapters(model).values())
