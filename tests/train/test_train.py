"""The training loop: it learns, repeats itself, splits batches, and stops in time."""

import dataclasses
import functools
import math
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from lora_np import data
from lora_np.crew import Processes, can_fork
from lora_np.data import RowsOfBatch
from lora_np.experiments.rank_sweep.linear import Regression
from lora_np.layers import Layer, Linear
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT, GPTConfig
from lora_np.optim import schedule
from lora_np.parameters import freeze, pack
from lora_np.selfcheck import at_random
from lora_np.train import (
    Diverged,
    MovingAverage,
    Trainer,
    evaluate,
    fit,
    load_state,
    loss_and_gradient,
    save_state,
)
from tests.compare import values

TIGHT = 1e-12  # float64: the same sum in another order
V, T = 11, 8


def make_gpt(dtype=np.float64, seed=0, dropout=0.0):
    config = GPTConfig(V, T, n_layer=2, n_head=2, d_model=16, dropout=dropout)
    return GPT(config, np.random.default_rng(seed), dtype)


def sampler(seed=1, B=4):
    rng = np.random.default_rng(seed)
    return lambda: tuple(rng.integers(0, V, (2, B, T)))


def assert_equal(found, expected, atol=0.0):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol, err_msg=name)


# -------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "lr": 1e-2},
        {"optimizer": "adam", "lr": 1e-2},
        {"optimizer": "sgd", "lr": 0.5, "options": {"momentum": 0.9}},
    ],
    ids=lambda options: options["optimizer"],
)
def test_a_tiny_gpt_learns_a_text_that_repeats_itself(rng, options):
    text = np.tile([3, 1, 4, 1, 5, 9, 2, 6], 20)

    def sample():
        starts = rng.integers(0, len(text) - T, 8)
        windows = text[starts[:, None] + np.arange(T + 1)]
        return windows[:, :-1], windows[:, 1:]

    model = make_gpt(np.float32)
    history = fit(model, sample, steps=80, **options)
    assert history.loss[0] == pytest.approx(math.log(V), abs=0.1)
    assert history.loss[-1] < 0.35  # the frequencies alone give 1.9 nats
    assert all(np.isfinite(history.loss)) and all(isinstance(x, float) for x in history.loss)


def test_an_adapter_learns_too_and_the_frozen_base_stays(rng):
    base = make_gpt(np.float32)
    at_random(base, rng, 0.3)
    model = inject(base, LoraConfig(r=4, target_modules="all-linear"), rng)
    before, batch = values(base), sampler()()
    history = fit(model, lambda: batch, steps=60, lr=2e-2)
    assert history.loss[-1] < 0.75 * history.loss[0]
    assert_equal(values(base), before)


def test_frozen_parameters_stay_and_the_others_move():
    model = make_gpt()
    parameters = model.parameters()
    freeze({name: p for name, p in parameters.items() if name.startswith(("wte", "h.0"))})
    before = values(model)
    fit(model, sampler(), steps=3, lr=1e-2)
    for name, p in parameters.items():
        stayed = np.array_equal(p.value, before[name])
        assert stayed == (not p.trainable), name


def test_equal_seeds_give_bit_equal_runs():
    def run(seed):
        model = make_gpt(np.float32, dropout=0.1)
        rng = np.random.default_rng(seed)
        return fit(model, sampler(seed), steps=5, lr=1e-2, rng=rng), values(model)

    (one, one_values), (same, same_values), (other, _) = run(1), run(1), run(2)
    assert one.loss == same.loss and one.gradient_norm == same.gradient_norm
    assert_equal(one_values, same_values)
    assert one.loss != other.loss


def test_dropout_is_on_only_with_a_generator():
    losses = [
        fit(make_gpt(dropout=p), sampler(), steps=3, lr=1e-2, rng=rng).loss
        for p, rng in ((0.0, None), (0.5, None), (0.5, np.random.default_rng(0)))
    ]
    assert losses[0] == losses[1] != losses[2]


# ---------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("parts", [2, 3, 4, 5])
@pytest.mark.parametrize("ignored", [False, True], ids=["all kept", "unequal counts"])
def test_accumulated_gradient_equals_that_of_the_batch(rng, parts, ignored):
    model = make_gpt()
    at_random(model, rng, 0.3)
    packed, (inputs, targets) = pack(model.parameters()), sampler(B=5)()
    if ignored:
        targets[0, 1:] = targets[1, 3:] = targets[4, :2] = -100
    loss, gradient = loss_and_gradient(model, packed, (inputs, targets))
    part_loss, part_gradient = loss_and_gradient(model, packed, (inputs, targets), parts)
    assert part_loss == pytest.approx(loss, abs=TIGHT)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(part_gradient, gradient, rtol=0, atol=TIGHT)


def test_a_part_that_keeps_no_target_adds_nothing(rng):
    model = make_gpt()
    packed, (inputs, targets) = pack(model.parameters()), sampler(B=4)()
    targets[2:] = -100  # the second half of the batch is padding
    loss, gradient = loss_and_gradient(model, packed, (inputs, targets))
    part_loss, part_gradient = loss_and_gradient(model, packed, (inputs, targets), 2)
    assert part_loss == pytest.approx(loss, abs=TIGHT)
    np.testing.assert_allclose(part_gradient, gradient, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_in_parts_gives_the_model_of_whole_batches(dropout):
    found = []
    for parts in (1, 3):
        model = make_gpt(dropout=dropout)
        options = {"steps": 6, "lr": 0.1, "optimizer": "sgd", "options": {"momentum": 0.9}}
        rng = np.random.default_rng(5)  # masks are the whole batch's, however it is split
        history = fit(model, sampler(B=4), accumulate=parts, rng=rng, **options)
        found.append((values(model), history.loss, history.tokens))
    assert_equal(found[1][0], found[0][0], atol=TIGHT)
    assert found[1][1] == pytest.approx(found[0][1], abs=TIGHT)
    assert found[1][2] == found[0][2] == 6 * 4 * T


CREWS = [
    "threads",
    pytest.param("processes", marks=pytest.mark.skipif(not can_fork(), reason="fork is Linux's")),
]


@pytest.mark.parametrize("kind", CREWS)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_crew_that_shares_a_batch_gives_the_model_of_one(dropout, parts, kind):
    found = []
    for size in (1, 2, 3, 3):
        model = make_gpt(dropout=dropout)
        options = {"steps": 4, "lr": 0.1, "optimizer": "sgd", "accumulate": parts, kind: size}
        rng = np.random.default_rng(5)
        history = fit(model, sampler(B=4), rng=rng, **options)
        found.append((values(model), history.loss, rng.random()))
    for other, losses, drawn in found[1:]:
        assert_equal(other, found[0][0], atol=TIGHT)
        assert losses == pytest.approx(found[0][1], abs=TIGHT)
        assert drawn == found[0][2]  # the generator is where it would be
    assert found[2][1] == found[3][1]  # bit for bit, with a fixed number


@pytest.mark.skipif(not can_fork(), reason="fork is Linux's")
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_processes_give_bit_for_bit_what_as_many_threads_give(rng, adapted):
    found = []
    for kind in ("threads", "processes"):
        model = make_gpt(np.float32, dropout=0.1)
        if adapted:
            model = inject(model, LoraConfig(r=2, lora_dropout=0.2), np.random.default_rng(3))
        draws = np.random.default_rng(5)
        options = {"steps": 5, "lr": 0.01, "rng": draws, kind: 2}
        found.append((fit(model, sampler(B=5), **options), values(model)))
    assert found[0][0].loss == found[1][0].loss
    assert found[0][0].gradient_norm == found[1][0].gradient_norm
    assert_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", CREWS)
def test_more_workers_than_samples_are_not_used(kind):
    one, many = (fit(make_gpt(), sampler(B=2), steps=2, lr=0.1, **{kind: n}) for n in (1, 5))
    assert many.loss == pytest.approx(one.loss, abs=TIGHT)


@pytest.mark.parametrize("kind", CREWS)
def test_a_crew_leaves_blas_as_it_found_it(kind):
    def blas():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    seen, before = [], blas()
    fit(make_gpt(), sampler(), steps=1, lr=0.1, validate=lambda: seen.append(blas()), **{kind: 2})
    assert seen == [[1] * len(before)] and blas() == before


@pytest.mark.parametrize("kind", CREWS)
def test_a_loss_that_is_not_finite_stops_a_crew_without_a_warning(kind):
    model = make_gpt()
    model.ln_f.gamma.value[...] = 1e308
    before = values(model)
    with pytest.raises(Diverged, match="at step 0"):
        fit(model, sampler(B=4), steps=2, lr=0.1, **{kind: 2})
    assert_equal(values(model), before)


@pytest.mark.skipif(not can_fork(), reason="fork is Linux's")
def test_what_processes_trained_is_seen_meanwhile_and_private_afterwards():
    model, losses = make_gpt(), []
    inputs, targets = sampler(B=4)()

    def validate():
        losses.append(evaluate(model, inputs, targets))
        return losses[-1]

    options = {"steps": 4, "lr": 0.05, "validate": validate, "validate_every": 1}
    fit(model, lambda: (inputs, targets), processes=2, **options)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    after = values(model)

    def overwrite(member, item):
        for p in model.parameters().values():
            p.value[...] = item

    with Processes(overwrite, 1) as others:
        others.map([7.0])
    assert_equal(values(model), after)


@pytest.mark.parametrize("split", [{"threads": 2}, {"accumulate": 2}])
@pytest.mark.parametrize(
    "draw, error, message",
    [
        (
            lambda rng, x: rng.permutation(4),
            AttributeError,
            r"rng.permutation is not available in a split batch",
        ),
        (lambda rng, x: rng.random(), ValueError, r"random\(None\) for 2 samples"),
        (lambda rng, x: rng.integers(9, size=(3, 2)), ValueError, r"expected size = \(2, \.\.\.\)"),
    ],
)
def test_draws_that_cannot_be_split_are_refused(split, draw, error, message):
    class Noisy(Poisoned):
        def loss(self, inputs, targets, rng, **whole):
            draw(rng, inputs)
            return self.model.loss(inputs, targets, rng=None, **whole)

    options = {"steps": 1, "lr": 0.1, "rng": np.random.default_rng(0)}
    with pytest.raises(error, match=message):
        fit(Noisy(make_gpt(), 0), sampler(B=4), **options, **split)


def test_threads_and_processes_together_are_an_error():
    for wrong in ({"threads": 2, "processes": 2}, {"threads": 0}, {"processes": -1}):
        with pytest.raises(ValueError, match=r"threads = \S+ and processes = \S+, exp"):
            fit(make_gpt(), sampler(), steps=1, lr=0.1, **wrong)


def test_more_parts_than_samples_is_an_error():
    with pytest.raises(ValueError, match="accumulate = 5 parts of a batch of 4 samples"):
        fit(make_gpt(), sampler(B=4), steps=1, lr=0.1, accumulate=5)


# ------------------------------------------------------------------------------------ divergence


class Poisoned:
    """A model whose loss, or gradient alone, is spoiled from step k on."""

    def __init__(self, model, k, loss=0.0, dy=1.0):
        self.model, self.k, self.spoil, self.dy, self.calls = model, k, loss, dy, 0

    def parameters(self):
        return self.model.parameters()

    def loss(self, *args, **kwargs):
        self.calls += 1
        loss, cache = self.model.loss(*args, **kwargs)
        return (loss + self.spoil if self.calls > self.k else loss), cache

    def backward(self, dy, cache, grads):
        self.model.backward(self.dy if self.calls > self.k else dy, cache, grads)


def remembering(sample, model, snapshots):
    """The sampler; it also notes the parameters that the step starts from."""

    def wrapped():
        snapshots.append(values(model))
        return sample()

    return wrapped


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"loss": math.nan}, "the loss is nan at step {k}"),
        ({"loss": math.inf}, "the loss is inf at step {k}"),
        ({"dy": math.inf}, "the gradient's norm is (nan|inf) at step {k}"),
        ({"dy": math.nan}, "the gradient's norm is nan at step {k}"),
    ],
    ids=["nan loss", "infinite loss", "infinite gradient", "nan gradient"],
)
def test_training_stops_at_the_bad_step_with_the_last_good_state(k, spoil, message):
    model, snapshots = make_gpt(), []
    poisoned = Poisoned(model, k, **spoil)
    with pytest.raises(Diverged, match=message.format(k=k)) as caught:
        fit(poisoned, remembering(sampler(), model, snapshots), steps=9, lr=0.01)
    assert len(snapshots) == k + 1  # no step after the bad one
    history = caught.value.history
    assert len(history.loss) == len(history.lr) == len(history.gradient_norm) == k
    assert_equal(values(model), snapshots[max(0, k - 1)])  # the last with a finite gradient


def test_a_learning_rate_that_is_far_too_large_is_caught():
    model, snapshots = make_gpt(np.float32), []
    sample = remembering(sampler(), model, snapshots)
    with pytest.raises(Diverged, match=r"at step \d+: .* try a learning rate below 1e\+25"):
        fit(model, sample, steps=9, lr=1e25, optimizer="sgd", clip=None, schedule="constant")
    assert all(np.isfinite(value).all() for value in values(model).values())
    assert_equal(values(model), snapshots[-2])


# --------------------------------------------------------------------------------------- history


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_history_holds_one_entry_a_step(name):
    history = fit(make_gpt(), sampler(), steps=7, lr=0.02, schedule=name, warmup=2)
    factor = schedule(name, 7, warmup=2)
    assert history.lr == [0.02 * factor(step) for step in range(7)]
    assert len(history.loss) == len(history.gradient_norm) == 7
    assert history.tokens == 7 * 4 * T and history.seconds > 0.0
    assert history.validation == []


@pytest.mark.parametrize(
    "every, expected", [(0, [8]), (3, [3, 6, 8]), (4, [4, 8]), (1, list(range(1, 9))), (20, [8])]
)
def test_validation_is_called_after_these_steps_and_at_the_end(every, expected):
    seen, model = [], make_gpt()

    def validate():
        seen.append(model.ln_f.beta.value.copy())
        return float(len(seen))

    history = fit(model, sampler(), steps=8, lr=0.01, validate=validate, validate_every=every)
    assert history.validation == [(step, i + 1.0) for i, step in enumerate(expected)]
    np.testing.assert_array_equal(seen[-1], model.ln_f.beta.value)  # of the trained model


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_clipping_shortens_the_step_and_not_the_norm_in_the_history(clip):
    model, batch = make_gpt(), sampler()()
    packed = pack(model.parameters())
    _, gradient = loss_and_gradient(model, packed, batch)
    norm, before = float(np.linalg.norm(gradient)), packed.vector.copy()
    history = fit(model, lambda: batch, steps=1, lr=0.5, optimizer="sgd", clip=clip)
    assert history.gradient_norm == pytest.approx([norm], rel=TIGHT)
    step = pack(model.parameters()).vector - before
    length = norm if clip is None else clip
    np.testing.assert_allclose(step, -0.5 * length / norm * gradient, rtol=0, atol=TIGHT)


def test_optimizer_options_reach_the_optimizer():
    runs = []
    for weight_decay in (0.0, 0.5):
        model = make_gpt()
        fit(model, sampler(), steps=2, lr=0.01, options={"weight_decay": weight_decay})
        runs.append(np.abs(model.wte.W.value).sum())
    assert runs[1] < runs[0]
    with pytest.raises(TypeError, match="weight_decay"):
        fit(make_gpt(), sampler(), steps=1, lr=0.1, optimizer="sgd", options={"weight_decay": 0.1})


def test_the_progress_bar_shows_loss_and_speed_on_stderr(capsys):
    history = fit(make_gpt(), sampler(), steps=3, lr=0.01, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"loss {history.loss[-1]:.3f}" in err
    assert "tok/s" in err and "100%" in err and f"{3 * 4 * T}" in err


def test_nothing_is_written_unless_asked(capsys):
    fit(make_gpt(), sampler(), steps=3, lr=0.01)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("ignored", [False, True], ids=["all kept", "unequal counts"])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size, ignored):
    model = make_gpt(dropout=0.5)  # which evaluation leaves off
    inputs, targets = sampler(B=7)()
    if ignored:
        targets[0, 1:] = targets[5, 4:] = -100
    expected = float(model.loss(inputs, targets)[0])
    found = evaluate(model, inputs, targets, batch_size)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, abs=TIGHT)


def test_evaluation_leaves_the_model_as_it_was():
    model, (inputs, targets) = make_gpt(), sampler()()
    before = values(model)
    assert evaluate(model, inputs, targets) == evaluate(model, inputs, targets)
    assert_equal(values(model), before)


def test_the_mean_over_no_sample_is_an_error_and_not_zero(rng):
    none = np.zeros((0, 4), int)
    with pytest.raises(
        ValueError, match=r"targets of shape \(0, 4\) hold no target to average over"
    ):
        evaluate(GPT(GPTConfig(7, 4, 1, 1, 4), rng), none, none)


def test_a_model_whose_logits_overflowed_is_evaluated_as_nan(rng):
    model = GPT(GPTConfig(7, 4, 1, 1, 4), rng)
    model.wte.W.value[...] = np.inf
    tokens = np.zeros((2, 4), int)
    with np.errstate(invalid="ignore"):
        assert math.isnan(evaluate(model, tokens, tokens))


@pytest.mark.skipif(not can_fork(), reason="fork is Linux's")
def test_beside_threads_that_compute_threads_take_the_place_of_processes():
    """A fork waits for whoever is inside BLAS, and may never end."""
    done, started = threading.Event(), threading.Event()

    def busy():
        started.set()
        while not done.is_set():
            np.ones((256, 256)) @ np.ones((256, 256))

    other = threading.Thread(target=busy, name="somebody's")
    alone, beside = make_gpt(np.float32), make_gpt(np.float32)
    fit(alone, sampler(B=4), steps=3, lr=0.01, processes=2)
    other.start()
    started.wait()
    try:
        with pytest.warns(
            RuntimeWarning, match='thread "somebody\'s" is at work.*2 threads replace'
        ):
            fit(beside, sampler(B=4), steps=3, lr=0.01, processes=2)
    finally:
        done.set()
        other.join()
    assert_equal(values(beside), values(alone))


# ------------------------------------------------------------------------------ saved and resumed

RUNS = {
    "adamw, full": (None, {"optimizer": "adamw", "warmup": 3}),
    "momentum, LoRA with dropout": (
        LoraConfig(r=2, lora_dropout=0.3),
        {"optimizer": "sgd", "options": {"momentum": 0.9}, "accumulate": 2},
    ),
    "adam, threads": (LoraConfig(r=2, lora_dropout=0.3), {"optimizer": "adam", "threads": 2}),
}


def begin(name):
    config, recipe = RUNS[name]
    model = make_gpt(np.float32, dropout=0.1)
    if config is not None:
        model = inject(model, config, np.random.default_rng(3))
    batches = data.Batches(np.arange(60) % 11, 4, 5, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    return Trainer(model, batches, steps=20, lr=0.02, rng=rng, **recipe)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("through_a_file", [False, True], ids=["in memory", "through a file"])
def test_ten_and_ten_steps_are_twenty_bit_for_bit(name, through_a_file, tmp_path):
    whole, first, second = (begin(name) for _ in range(3))
    whole.run()
    first.run(10)
    state = first.state()
    if through_a_file:
        save_state(tmp_path / "run.npz", state)
        state = load_state(tmp_path / "run.npz")
    second.load(state)
    second.run()
    assert second.position == 20
    assert second.history.loss == whole.history.loss
    assert second.history.lr == whole.history.lr
    assert_equal(values(second.model), values(whole.model))


def test_a_state_is_a_snapshot_that_later_steps_leave_alone():
    trainer = begin("adamw, full")
    trainer.run(2)
    state = trainer.state()
    kept = {name: array.copy() for name, array in state["arrays"].items()}
    trainer.run(2)
    for name, array in state["arrays"].items():
        np.testing.assert_array_equal(array, kept[name])
    assert len(state["history"]["loss"]) == 2


def test_a_state_of_another_run_is_refused():
    state = begin("adamw, full").state()
    for other in ("momentum, LoRA with dropout", "adam, threads"):
        with pytest.raises(ValueError, match="the state is from another run"):
            begin(other).load(state)


def small_run(dtype=np.float64, steps=4, bits=np.random.PCG64, **recipe):
    layer = Linear(3, 2, np.random.default_rng(0), dtype=dtype)
    x = np.ones((4, 3), dtype)
    model = Regression(layer)
    rng = np.random.Generator(bits(1))
    return Trainer(model, lambda: (x, x[:, :2]), steps=steps, lr=0.1, rng=rng, **recipe)


@pytest.mark.parametrize(
    "other, message",
    [
        (
            {"dtype": np.float32},
            r"another run: array 'vector' float64 \(8,\), expected float32 \(8,\)",
        ),
        ({"steps": 2}, "3 steps are done, expected at most steps = 2"),
        ({"bits": np.random.MT19937}, r"run: generators \['PCG64'\], expected \['MT19937'\]"),
        ({"optimizer": "sgd"}, "run: optimizer AdamW, expected SGD"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(other, message):
    run, another = small_run(), small_run(**other)
    run.run(3)
    before = another.packed.vector.copy()
    with pytest.raises(ValueError, match=message):
        another.load(run.state())
    np.testing.assert_array_equal(another.packed.vector, before)
    assert another.position == 0


@pytest.mark.parametrize("name", small_run().state())
def test_a_state_that_lacks_something_is_refused_by_its_name(name):
    run = small_run()
    state = {key: value for key, value in run.state().items() if key != name}
    with pytest.raises(ValueError, match=f"the state lacks '{name}'"):
        run.load(state)


def test_what_a_run_would_no_longer_train_is_refused_before_its_first_step():
    run = small_run()
    W = run.packed.parameters["linear.W"]
    run.run(1)
    W.trainable = False
    with pytest.raises(ValueError, match=r"linear\.W was frozen after pack"):
        run.run(1)
    W.trainable, old = True, W.value
    W.value = W.value.copy()
    with pytest.raises(ValueError, match=r"linear\.W has a new array since pack"):
        run.run(1)
    W.value = old
    run.run()
    assert run.position == 4


def test_a_state_of_other_parameters_of_equal_shapes_is_refused():
    def trainer(target, optimizer="adamw"):
        rng = np.random.default_rng(0)
        base = GPT(GPTConfig(4, 3, 1, 1, 8), rng)
        adapted = inject(base, LoraConfig(r=1, target_modules=[target]), rng)
        return Trainer(adapted, lambda: None, steps=2, lr=0.1, optimizer=optimizer)

    with pytest.raises(
        ValueError, match=r"run: Parameter 'h.0.attn.k_proj.A' absent, expected \[1, 8\]"
    ):
        trainer("k_proj").load(trainer("q_proj").state())
    with pytest.raises(ValueError, match="another run: optimizer Adam, expected AdamW"):
        trainer("q_proj").load(trainer("q_proj", "adam").state())


# --------------------------------------------------- draws of a batch that is split, and hooks


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.random((n, 3)),
        lambda rng, n: rng.random((n, 3), dtype=np.float32),
        lambda rng, n: rng.standard_normal((n, 2)),
        lambda rng, n: rng.integers(7, size=(n, 5)),
        lambda rng, n: rng.integers(2, 9, size=(n,)),
    ],
)
def test_the_rows_of_a_batch_draw_what_the_whole_batch_draws(draw):
    whole = np.random.default_rng(4)
    expected = [draw(whole, 5), draw(whole, 5)]
    parts = [RowsOfBatch(np.random.default_rng(4), slice(a, b), 5) for a, b in ((0, 2), (2, 5))]
    for i in range(2):
        found = np.concatenate([draw(part, n) for part, n in zip(parts, (2, 3))])
        np.testing.assert_array_equal(found, expected[i])
        assert found.dtype == expected[i].dtype
    assert parts[0].bit_generator.state == whole.bit_generator.state


class Denoise(Layer):
    """A loss with noise of its own, against a target that follows the model: as in distillation."""

    def __init__(self, decay):
        self.net = Linear(3, 3, np.random.default_rng(0), std=0.5, dtype=np.float64)
        self.average = None if decay is None else MovingAverage(self.net, decay)

    def moving(self):
        return [] if self.average is None else self.average.parameters()

    def number(self, batch):
        return len(batch[0])

    def loss(self, x, weight, rng=None, count=None):
        noise = rng.standard_normal(x.shape)
        level = rng.integers(1, 4, size=(len(x), 1))
        y, cache = self.net.forward(x + noise / level)
        target = x if self.average is None else self.average.model.forward(x)[0]
        error, count = (y - target) * weight[:, None], count or len(x)
        return 0.5 * (error * error).sum() / count, (cache, error * weight[:, None], count)

    def backward(self, dy, cache, grads):
        inner, error, count = cache
        self.net.backward(dy * error / count, inner, grads, need_dx=False)


@pytest.mark.parametrize("decay", [None, 0.0, 0.9], ids=["no target", "follows at once", "slowly"])
def test_a_moving_target_and_an_objectives_draws_are_right_for_every_crew(decay):
    found = []
    crews = [{}, {"accumulate": 3}, {"threads": 2}, {"processes": 2} if can_fork() else {}]
    for crew in crews:
        model, draws = Denoise(decay), np.random.default_rng(8)
        x, weight = draws.standard_normal((6, 3)), draws.random(6)
        hook = None if decay is None else model.average.update
        history = fit(
            model,
            functools.partial(tuple, (x, weight)),
            steps=8,
            lr=0.05,
            rng=draws,
            after_step=hook,
            **crew,
        )
        found.append((history.loss, values(model.net), draws.random()))
        if decay == 0.0:
            assert_equal(values(model.average.model), values(model.net))
    for losses, weights, drawn in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=TIGHT)
        assert_equal(weights, found[0][1], atol=TIGHT)
        assert drawn == found[0][2]
    assert len(set(found[0][0])) == 8


def test_a_piece_in_which_nothing_counts_adds_nothing(rng):
    model, packed = make_gpt(), None
    packed = pack(model.parameters())
    inputs = rng.integers(0, 11, (4, 5))
    targets = inputs.copy()
    targets[2:] = -100  # the second half of the batch
    loss, gradient = loss_and_gradient(model, packed, (inputs, targets))
    half_loss, half = loss_and_gradient(model, packed, (inputs, targets), 2)
    assert half_loss == pytest.approx(loss, abs=TIGHT)
    np.testing.assert_allclose(half, gradient, atol=TIGHT)


def test_a_hook_sees_the_model_the_step_and_the_clipped_gradient():
    seen = []
    model = make_gpt()
    before = pack(model.parameters()).vector.copy()

    def hook(found, step, gradient):
        seen.append((found is model, step, float(np.linalg.norm(gradient))))
        assert not np.array_equal(pack(model.parameters()).vector, before)

    fit(model, sampler(), steps=3, lr=0.1, clip=1e-3, after_step=hook)
    assert [entry[:2] for entry in seen] == [(True, 0), (True, 1), (True, 2)]
    assert [entry[2] for entry in seen] == pytest.approx([1e-3] * 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_methods_factor_on_the_learning_rate_scales_its_steps(optimizer):
    @dataclasses.dataclass(frozen=True)
    class Plus(LoraConfig):  # LoRA+: B learns faster; Hayou et al. (2024), arXiv:2402.12354
        def lr_factor(self, name):
            return 16.0 if name.endswith(".B") else 1.0

    moved = {}
    for config in (LoraConfig(r=2), Plus(r=2)):
        adapted = inject(make_gpt(), config, np.random.default_rng(3))
        before = values(adapted)
        fit(adapted, sampler(), steps=1, lr=1e-3, optimizer=optimizer, clip=None)
        moved[type(config)] = {n: v - before[n] for n, v in values(adapted).items()}
    for name, change in moved[LoraConfig].items():
        factor = 16.0 if name.endswith(".B") else 1.0
        np.testing.assert_allclose(moved[Plus][name], factor * change, rtol=1e-9, atol=1e-15)
    assert any(change.any() for name, change in moved[Plus].items() if name.endswith(".B"))


def test_a_method_may_act_after_every_step():
    steps = []

    @dataclasses.dataclass(frozen=True)
    class Watching(LoraConfig):
        def after_step(self, model, step, gradient):
            steps.append((step, len(gradient)))

    adapted = inject(make_gpt(), Watching(r=2), np.random.default_rng(3))
    size = sum(p.size for p in adapted.parameters().values() if p.trainable)
    fit(adapted, sampler(), steps=2, lr=0.01)
    assert steps == [(0, size), (1, size)]


def test_a_regression_accumulates_too():
    draws = np.random.default_rng(0)
    x, y = draws.standard_normal((6, 4)), draws.standard_normal((6, 3))
    losses = []
    for parts in (1, 3):
        model = Regression(Linear(4, 3, np.random.default_rng(1), dtype=np.float64))
        history = fit(model, lambda: (x, y), steps=4, lr=0.01, accumulate=parts)
        losses.append(history.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
