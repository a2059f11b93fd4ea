"""The training loop: it learns, repeats itself, splits batches, and stops in time."""

import math
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from lora_np.crew import Processes, can_fork
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT, GPTConfig
from lora_np.optim import schedule
from lora_np.parameters import freeze, pack
from lora_np.selfcheck import at_random
from lora_np.train import Diverged, evaluate, fit, loss_and_gradient

TIGHT = 1e-12  # float64: the same sum in another order
V, T = 11, 8


def make_gpt(dtype=np.float64, seed=0, dropout=0.0):
    config = GPTConfig(V, T, n_layer=2, n_head=2, d_model=16, dropout=dropout)
    return GPT(config, np.random.default_rng(seed), dtype)


def sampler(seed=1, B=4):
    rng = np.random.default_rng(seed)
    return lambda: tuple(rng.integers(0, V, (2, B, T)))


def values(model):
    return {name: p.value.copy() for name, p in model.parameters().items()}


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
        (lambda rng, x: rng.standard_normal(x.shape), AttributeError, "only rng.random can draw"),
        (lambda rng, x: rng.random(), ValueError, r"random\(None\) for 2 samples"),
        (lambda rng, x: rng.random((3, 2)), ValueError, r"expected random\(\(2, \.\.\.\)\)"),
    ],
)
def test_draws_that_cannot_be_split_are_refused(split, draw, error, message):
    class Noisy(Poisoned):
        def loss(self, inputs, targets, rng, **whole):
            draw(rng, inputs)
            return self.model.loss(inputs, targets, None, **whole)

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
    with pytest.raises(ValueError, match=r"targets of shape \(0, 4\) hold none that counts"):
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
        with pytest.warns(RuntimeWarning, match='thread "somebody\'s" is at work.*2 threads take'):
            fit(beside, sampler(B=4), steps=3, lr=0.01, processes=2)
    finally:
        done.set()
        other.join()
    assert_equal(values(beside), values(alone))
