"""v-prediction and consistency distillation: values, gradients, and what gets no gradient."""

import math

import numpy as np
import pytest

from lora_np import LoraConfig, copy_model, inject
from lora_np.images import Consistency, VPrediction
from lora_np.images.schedule import alpha_sigma, x0_of, z_of
from lora_np.parameters import Grads
from lora_np.train import MovingAverage, fit
from tests.images import small
from tests.images.exact import Gaussian, GaussianFlow

C = 0.03  # of the pseudo-Huber loss


def trained_names(model):
    return [name for name, p in model.parameters().items() if p.trainable]


def at_random(model, rng, std=0.3):
    """Give every Parameter random values: at the start many gradients are zero."""
    for p in model.parameters().values():
        p.value = std * rng.standard_normal(p.shape)
    return model


def of_v(rng):
    """The objective, and a batch."""
    model = VPrediction(at_random(small.denoiser(rng), rng))
    x0, t, words = small.batch(rng)
    return model, (x0, rng.standard_normal(x0.shape), t, words)


def of_consistency(rng, student=None):
    teacher = at_random(small.denoiser(rng), rng)
    student = student(teacher) if student else at_random(copy_model(teacher), rng)
    average = MovingAverage(student, 0.9)
    at_random(average.model, rng)
    x0, t, words = small.batch(rng)
    batch = (x0, rng.standard_normal(x0.shape), t, words, 0.8 * t, rng.random((len(x0), 1)) + 0.5)
    return Consistency(student, teacher, average, C), batch


OBJECTIVES = pytest.mark.parametrize("make", [of_v, of_consistency], ids=["v", "consistency"])


@OBJECTIVES
def test_the_gradient_of_every_parameter_is_that_of_central_differences(make, rng):
    model, batch = make(rng)
    _, cache = model.loss(*batch)
    grads, step = Grads(), 1e-6
    model.backward(2.0, cache, grads)
    for name in trained_names(model):
        p = model.parameters()[name]
        direction = rng.standard_normal(p.shape)
        ends = []
        for sign in (1.0, -1.0):
            p.value += sign * step * direction
            ends.append(model.loss(*batch)[0])
            p.value -= sign * step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        assert (grads.get(p) * direction).sum() == pytest.approx(2.0 * slope, abs=2e-8), name


@OBJECTIVES
def test_the_losses_of_parts_add_up_to_the_loss_of_the_batch(make, rng):
    model, batch = make(rng)
    whole, _ = model.loss(*batch)
    count = model.number(batch)
    parts = [model.loss(*(x[i : i + 1] for x in batch), count=count)[0] for i in range(3)]
    assert sum(parts) == pytest.approx(whole, rel=1e-12)


def test_the_loss_of_v_is_the_mean_squared_error(rng):
    model, (x0, eps, t, words) = of_v(rng)
    alpha, sigma = alpha_sigma(t)
    v, _ = model.denoiser.forward(alpha * x0 + sigma * eps, t, words)
    error = v - (alpha * eps - sigma * x0)
    assert model.loss(x0, eps, t, words)[0] == pytest.approx((error**2).mean(), rel=1e-12)


def test_the_loss_of_consistency_is_written_out_step_by_step(rng):
    model, (x0, eps, t, words, later, w) = of_consistency(rng)
    none = np.broadcast_to([26, 3], words.shape)
    z = z_of(x0, eps, t)
    v1, v0 = (model.teacher.forward(z, t, of)[0] for of in (words, none))
    v = (1.0 - w) * v0 + w * v1
    (alpha, sigma), (alpha_later, sigma_later) = alpha_sigma(t), alpha_sigma(later)
    moved = alpha_later * (alpha * z - sigma * v) + sigma_later * (sigma * z + alpha * v)
    target = x0_of(moved, model.average.model.forward(moved, later, words)[0], later)
    f = x0_of(z, model.denoiser.forward(z, t, words)[0], t)
    expected = np.mean(np.sqrt((f - target) ** 2 + C * C) - C)
    assert model.loss(x0, eps, t, words, later, w)[0] == pytest.approx(expected, rel=1e-12)


def test_at_time_zero_the_target_is_the_teachers_own_image(rng):
    model, (x0, eps, t, words, _, w) = of_consistency(rng)
    z, ones = z_of(x0, eps, t), np.ones_like(w)
    target = model.target(z, t, words, np.zeros_like(t), ones)
    v, _ = model.teacher.forward(z, t, words)
    np.testing.assert_allclose(target, x0_of(z, v, t), rtol=1e-12)  # whatever the average says


def test_teacher_and_average_get_no_gradient(rng):
    model, batch = of_consistency(rng)
    grads = Grads()
    model.backward(1.0, model.loss(*batch)[1], grads)
    assert all(grads.get(p) is None for p in model.teacher.parameters().values())
    assert all(grads.get(p) is None for p in model.average.model.parameters().values())
    assert trained_names(model) == [f"denoiser.{name}" for name in trained_names(model.denoiser)]


def test_with_lora_only_its_factors_are_trained(rng):
    def student(teacher):
        return inject(teacher, LoraConfig(r=2, target_modules="all-linear"), rng)

    model, batch = of_consistency(rng, student)
    before = {name: p.value.copy() for name, p in model.teacher.parameters().items()}
    fit(model, lambda: batch, steps=3, lr=0.05, after_step=model.average.update)
    assert all(name.endswith((".A", ".B")) for name in trained_names(model))
    for name, p in model.teacher.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])


def test_worker_processes_see_the_average_move(rng):
    """Two processes share the averages, which the parent updates: the runs agree to rounding."""
    runs = []
    for processes in (1, 2):
        model, batch = of_consistency(np.random.default_rng(3))
        how = {"steps": 4, "lr": 0.01, "processes": processes, "clip": None}
        runs.append(fit(model, lambda batch=batch: batch, after_step=model.average.update, **how))
    assert runs[1].loss == pytest.approx(runs[0].loss, rel=1e-9)
    assert runs[0].loss[-1] != runs[0].loss[0]


def test_an_average_that_stood_still_would_be_noticed(rng):
    """The control of the test above: the losses do depend on the average."""
    losses = []
    for moves in (True, False):
        model, batch = of_consistency(np.random.default_rng(3))
        after = model.average.update if moves else None
        run = fit(model, lambda batch=batch: batch, steps=4, lr=0.01, clip=None, after_step=after)
        losses.append(run.loss[-1])
    assert not math.isclose(*losses, rel_tol=1e-6)


def test_the_exact_consistency_function_has_almost_no_loss(rng):
    """What is left is the error of the teacher's DDIM step, of second order in its length."""
    m, deviation, n = np.array([0.3, -0.5]), np.array([0.5, 1.5]), 200
    exact, flow = GaussianFlow(m, deviation), Gaussian(m, deviation)
    model = Consistency(exact, flow, MovingAverage(exact, 0.9), C)
    x0 = m + deviation * rng.standard_normal((n, 2))
    eps, t = rng.standard_normal((n, 2)), np.full(n, 0.6)
    words, w = np.tile([[26, 3]], (n, 1)), np.ones((n, 1))
    far, near = (model.loss(x0, eps, t, words, t - h, w)[0] for h in (0.04, 0.02))
    assert 0.0 < near < far < 1e-3
    assert far / near > 8.0  # the loss is a square where it is small: 16 in the limit
