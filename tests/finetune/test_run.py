"""Fine-tuning in memory: what is computed, the best weights, states, and every method."""

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from lora_np import GPT, GPTConfig, LoraConfig, evaluate, inject, store_model
from lora_np.crew import can_fork
from lora_np.data import DataError, Sample, padded
from lora_np.finetune import Settings, Training, run, train_adapter
from lora_np.finetune.layout import Layout, mean_loss, targets_in
from lora_np.forms import Bfloat16
from lora_np.methods import METHODS, method_of
from lora_np.models import top
from lora_np.ops.loss import IGNORE_INDEX
from tests.finetune.tiny import llama, samples
from tests.methods.test_methods import METHODS_TRIED

QUICK = Settings(
    r=2, target_modules="all-linear", epochs=2, batch_size=4, lr=0.01, jobs=1, hidden_mb=0
)
TRAIN, HELD = samples(11), samples(3, seed=2)


def weights(model):
    return {name: p.value.copy() for name, p in model.parameters().items()}


def assert_equal_runs(one, other, tolerance):
    np.testing.assert_allclose(one.history.loss, other.history.loss, rtol=tolerance)
    a, b = (np.array(result.history.validation) for result in (one, other))
    np.testing.assert_allclose(a, b, rtol=tolerance)
    assert one.best_step == other.best_step


def assert_bit_equal(one, other):
    assert one.history.loss == other.history.loss and one.best_step == other.best_step
    assert one.history.validation == other.history.validation
    ours, theirs = weights(one.model), weights(other.model)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------- what is computed


def test_the_first_loss_is_the_mean_over_the_answers_of_the_samples_each_alone():
    model, settings = llama(dtype=np.float64), replace(QUICK, batch_size=len(TRAIN))
    alone = [float(model.loss(*padded([s]))[0]) * targets_in([s]) for s in TRAIN]
    result = train_adapter(model, TRAIN, HELD, settings)
    assert abs(result.history.loss[0] - sum(alone) / targets_in(TRAIN)) < 1e-12
    assert abs(result.history.validation[0][1] - evaluate(model, *padded(HELD))) < 1e-12


@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 4},  # a row for each sample: unpacked
        {"accumulate": 3},
        {"recompute": True},
        {"hidden_mb": 1},
        {"hidden_mb": 1, "accumulate": 2},
    ],
)
def test_memory_and_packing_do_not_change_the_run(change):
    model, settings = llama(dtype=np.float64), replace(QUICK, top_layers=2, dropout=0.0)
    plain = train_adapter(model, TRAIN, HELD, settings)
    assert_equal_runs(train_adapter(model, TRAIN, HELD, replace(settings, **change)), plain, 1e-9)


@pytest.mark.skipif(not can_fork(), reason="needs fork")
@pytest.mark.parametrize("hidden_mb", [0, 1])
def test_two_processes_compute_what_one_does(hidden_mb):
    model, settings = llama(dtype=np.float64), replace(QUICK, top_layers=2, hidden_mb=hidden_mb)
    plain = train_adapter(model, TRAIN, HELD, settings)
    assert_equal_runs(train_adapter(model, TRAIN, HELD, replace(settings, jobs=2)), plain, 1e-9)


def test_the_frozen_bottom_computes_every_sample_once(monkeypatch):
    seen, hidden = [], top.TopLayers.hidden

    def counted(self, tokens, positions=None):
        seen.append(tokens.size)
        return hidden(self, tokens, positions)

    monkeypatch.setattr(top.TopLayers, "hidden", counted)
    train_adapter(llama(), TRAIN, HELD, replace(QUICK, top_layers=1, hidden_mb=1, epochs=3))
    assert sum(seen) == sum(map(len, [*TRAIN, *HELD]))
    seen.clear()
    train_adapter(llama(), TRAIN, HELD, replace(QUICK, top_layers=1))
    assert not seen


def test_hidden_states_beyond_the_limit_are_not_kept():
    adapted = inject(llama(), LoraConfig(r=2, layers_to_transform=2), np.random.default_rng(0))
    long = [Sample(np.zeros(160, int), np.ones(160, bool)) for _ in range(110)]  # 1.07 MB
    assert Layout.of(adapted, long, 1, hidden_mb=1).hidden is None
    assert Layout.of(adapted, long[:100], 1, hidden_mb=1).hidden is not None


def test_a_batch_has_every_label_once_and_no_other_target():
    adapted = inject(llama(), LoraConfig(r=2), np.random.default_rng(0))
    n = len(TRAIN)
    for rows, least, expected in ((1, 1, 1), (3, 1, 3), (n + 2, 1, n), (n + 2, n + 2, n + 2)):
        _, targets, _ = Layout.of(adapted, TRAIN, rows, least)(TRAIN)
        kept = np.sort(targets[targets != IGNORE_INDEX])
        learned = [s.tokens[1:][s.labelled[1:]] for s in TRAIN]
        assert len(targets) == expected and np.array_equal(kept, np.sort(np.concatenate(learned)))


def test_the_base_stays_as_it_is():
    model = llama()
    before = weights(model)
    for method in ("lora", "full", "bitfit" if model.config.qkv_bias else "ln_tuning"):
        result = train_adapter(model, TRAIN, [], Settings(method=method, epochs=1, jobs=1))
        assert all(np.array_equal(p.value, before[n]) for n, p in model.parameters().items())
        assert result.best_step == len(result.history.loss) == 2


def test_full_training_of_the_top_moves_its_blocks_alone():
    model = llama()
    settings = Settings(method="full", top_layers=1, epochs=1, jobs=1, lr=0.01)
    trained = weights(train_adapter(model, TRAIN, [], settings).model)
    moved = [n for n, x in weights(model).items() if not np.array_equal(x, trained[n])]
    assert moved == [n for n in trained if n.startswith("model.layers.2.")]


# --------------------------------------------------------------------------- the best weights


def saying(*answers):
    return Sample(np.array([3, 4, *answers]), np.array([False, False, *[True] * len(answers)]))


SURE = (
    [saying(7, 7), saying(7)] * 4,
    [saying(7, 7, 7), saying(8)],
)  # the model is soon too sure of 7
OVERFIT = Settings(method="full", epochs=9, batch_size=4, lr=0.02, jobs=1, validate_every=1)


def test_the_best_weights_are_kept_and_they_have_the_loss_that_is_recorded():
    held = SURE[1]
    result = train_adapter(llama(dtype=np.float64), *SURE, OVERFIT)
    losses = dict(result.history.validation)
    assert 0 < result.best_step < len(result.history.loss)
    assert losses[result.best_step] == min(losses.values())
    found = mean_loss(Layout.of(result.model, held, 1), held, 2)
    assert abs(found - losses[result.best_step]) < 1e-12


def test_rounding_does_not_make_a_later_step_better(monkeypatch):
    losses = iter([3.0, 2.0, 2.0 - 1e-7, 2.0 - 2e-7, 1.9])
    monkeypatch.setattr(run, "mean_loss", lambda *_: next(losses))
    settings = replace(QUICK, epochs=3)
    assert train_adapter(llama(), TRAIN, HELD, settings).best_step == 3
    losses = iter([3.0, 2.0, math.nan, 2.0 - 2e-7, 1.9])
    assert train_adapter(llama(), TRAIN, HELD, replace(settings, epochs=4)).best_step == 12


def test_a_run_that_diverges_leaves_its_best_weights_and_says_so():
    settings = replace(QUICK, lr=1e30, clip=0.0)
    result = train_adapter(llama(), TRAIN, HELD, settings)
    assert result.diverged is not None and "try a learning rate below 1e+30" in result.diverged
    assert result.best_step == 0 and len(result.history.loss) < 6
    assert all(np.isfinite(p.value).all() for p in result.model.parameters().values())
    assert mean_loss(Layout.of(result.model, HELD, 1), HELD, 4) == result.history.validation[0][1]
    result = train_adapter(llama(), TRAIN, [], settings)
    assert result.diverged is not None
    assert all(np.isfinite(p.value).all() for p in result.model.parameters().values())


# -------------------------------------------------------------------------------- the state


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.3, "top_layers": 2, "hidden_mb": 1},
        {"method": "adalora", "r": None, "options": {"target_r": 1, "init_r": 2, "total_step": 9}},
        {"method": "dylora", "r": 2, "accumulate": 2},
    ],
)
def test_a_run_continues_bit_for_bit_from_any_step(change):
    settings = replace(QUICK, epochs=3, validate_every=2, **change)
    whole = train_adapter(llama(), TRAIN, HELD, settings)
    states = []
    train_adapter(
        llama(), TRAIN, HELD, settings, after=lambda t: states.append(copy.deepcopy(t.state()))
    )
    assert len(states) == 9
    for state in states[:: 4 if change.get("method") else 1]:
        training = Training(llama(), TRAIN, HELD, settings)
        training.load(state)
        assert_bit_equal(training.run(), whole)


def test_the_best_weights_from_before_a_stop_are_kept():
    states = []
    whole = train_adapter(
        llama(), *SURE, OVERFIT, after=lambda t: states.append(copy.deepcopy(t.state()))
    )
    assert whole.best_step < 15
    for state in (states[15], states[-1]):
        training = Training(llama(), *SURE, OVERFIT)
        training.load(state)
        assert_bit_equal(training.run(), whole)


def test_a_state_without_the_best_weights_is_refused():
    training = Training(llama(), TRAIN, HELD, QUICK)
    with pytest.raises(ValueError, match="not that of a fine-tuning run"):
        training.load(training.trainer.state())


def test_an_error_in_after_ends_the_run_and_the_model_keeps_memory_of_its_own():
    training = Training(llama(), TRAIN, HELD, QUICK)

    def stop(training):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run(stop)
    assert training.trainer.position == 1
    assert len(training.run().history.loss) == 6


# -------------------------------------------------------------------------------- the methods

OURS = [config for config in METHODS_TRIED if type(config).__module__.startswith("lora_np")]
UNFIT = {  # methods that do not fit this model, and what is said
    "bitfit": "no layer with a bias",
}


def settings_for(config):
    options = {k: v for k, v in asdict(config).items() if v is not None}
    if config.name == "tokens":
        options["target_modules"] = ("embed_tokens",)
    if config.name == "full" and config.layers_to_transform is not None:
        options["target_modules"] = ("q_proj", "input_layernorm")
    return Settings(method=config.name, options=options, epochs=1, batch_size=4, lr=0.01, jobs=1)


@pytest.mark.parametrize("config", OURS, ids=lambda config: config.name)
def test_a_method_trains_or_is_refused_on_one_line(config):
    model, settings = llama(), settings_for(config)
    if config.name in UNFIT:
        with pytest.raises(ValueError, match=UNFIT[config.name]):
            train_adapter(model, TRAIN, HELD, settings)
        return
    result = train_adapter(model, TRAIN, HELD, settings)
    assert method_of(result.model).name == config.name
    assert len(result.history.loss) == 3 and np.isfinite(result.history.loss).all()
    assert result.history.loss[0] > 0


def test_every_method_was_tried():
    ours = {name for name, c in METHODS.items() if c.__module__.startswith("lora_np.")}
    assert ours - {config.name for config in OURS} == {"nf4"}  # which is about the base


def test_an_adapted_model_is_trained_on():
    first = train_adapter(llama(), TRAIN, HELD, replace(QUICK, epochs=4))
    plain = Settings(epochs=2, batch_size=4, lr=0.01, jobs=1)
    second = train_adapter(first.model, TRAIN, HELD, plain)
    assert second.model is first.model
    assert second.history.validation[0][1] == pytest.approx(
        min(dict(first.history.validation).values())
    )
    with pytest.raises(ValueError, match="r is that of the adapter that is trained on"):
        train_adapter(first.model, TRAIN, HELD, replace(plain, r=4))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "lorra"}, "no method 'lorra': did you mean lora"),
        ({"options": {"rank": 2}}, "method 'lora' has no option 'rank'"),
        ({"top_layers": 4}, "top_layers = 4, but the model has 3 layers"),
        ({"method": "ln_tuning"}, "method 'ln_tuning' has no r: leave it out"),
        ({"target_modules": ("q_prj",)}, "did you mean q_proj"),
        ({"warmup": 99}, "warmup = 99"),
        (
            {"method": "intrinsic", "r": None, "target_modules": None, "recompute": True},
            "method 'intrinsic' moves the whole model: no recompute",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train_adapter(llama(), TRAIN, HELD, replace(QUICK, **change))


def test_samples_from_which_nothing_is_learned_are_refused():
    silent = Sample(np.array([1, 2]), np.array([True, False]))
    with pytest.raises(DataError, match="there is no sample to train on"):
        train_adapter(llama(), [], HELD, QUICK)
    with pytest.raises(DataError, match="train sample 1 has no labelled token after its first"):
        train_adapter(llama(), [TRAIN[0], silent], HELD, QUICK)
    with pytest.raises(DataError, match="validation sample 0 has no labelled token"):
        train_adapter(llama(), TRAIN, [silent], QUICK)


def test_a_sample_longer_than_the_context_is_refused_before_the_first_step():
    long = [Sample(np.zeros(n, int), np.ones(n, bool)) for n in (150, 161)]
    with pytest.raises(DataError, match=r"161 tokens, but .* has 160: set longest to 160"):
        train_adapter(llama(), long, [], QUICK)
    prompt = Settings(method="prompt", options={"num_virtual_tokens": 11}, jobs=1, epochs=1)
    with pytest.raises(DataError, match=r"160, less 11 rows before the text: set longest to 149"):
        train_adapter(llama(), long[:1], [], prompt)


def test_a_bottom_with_dropout_is_computed_at_every_step():
    config = GPTConfig(13, 16, n_layer=2, n_head=2, d_model=8, dropout=0.5)
    kept, drawn = (GPT(replace(config, dropout=p), np.random.default_rng(0)) for p in (0.0, 0.5))
    train, held = samples(6, vocab=13), samples(2, vocab=13)
    settings = Settings(r=2, top_layers=1, epochs=2, jobs=1)
    assert Training(kept, train, held, settings).layout.hidden is not None
    assert Training(drawn, train, held, settings).layout.hidden is None
    assert len(train_adapter(drawn, train, held, settings).history.loss) == 2


def test_stored_weights_are_trained_under_adapters_and_not_in_full():
    stored = store_model(llama(), Bfloat16.encode)
    result = train_adapter(stored, TRAIN, HELD, QUICK)
    assert result.best_step > 0
    with pytest.raises(ValueError, match=r"stored as bfloat16: .*no --keep-quantised"):
        train_adapter(stored, TRAIN, HELD, Settings(method="full", jobs=1))
