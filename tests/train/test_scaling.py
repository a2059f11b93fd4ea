"""lora_np.train.scaling: small gradients survive float16, and nothing else changes."""

import json
import math

import numpy as np
import pytest

from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Parameter
from lora_np.train import Diverged, Recipe, Trainer, fit, load_state, save_state
from lora_np.train.scaling import LossScale

TOKENS = np.arange(12).reshape(2, 6) % 13
TARGETS = (TOKENS + 1) % 13


class Planted:
    """loss = size (w - 1)^2 / 2 with the gradient of w in float16, as a small float16 network."""

    def __init__(self, size):
        self.w, self.size = Parameter(np.array([3.0, 2.0], np.float32)), size

    def parameters(self):
        return {"w": self.w}

    def number(self, batch):
        return 1

    def loss(self, x, rng=None, count=None):
        d = self.w.value - 1.0
        return self.size * float(d @ d) / 2, d

    def backward(self, dy, d, grads):
        with np.errstate(over="ignore"):
            half = (np.float32(dy * self.size) * d).astype(np.float16)
        grads.add(self.w, half.astype(np.float32))


def trained(size, **recipe):
    """Return w after training, the history and the trainer."""
    model = Planted(size)
    options = {"optimizer": "sgd", "schedule": "constant", "clip": None, **recipe}
    trainer = Trainer(model, lambda: (np.zeros(1),), steps=30, lr=0.2 / size, **options)
    trainer.run()
    return model.w.value, trainer.history, trainer


def test_a_small_gradient_is_lost_in_float16_without_a_scale():
    w, history, _ = trained(2.0**-30)
    assert w.tolist() == [3.0, 2.0] and set(history.gradient_norm) == {0.0}


@pytest.mark.parametrize("scale", [2.0**16, 2.0**24, 1e8, "dynamic"])
def test_a_small_gradient_is_kept_with_a_scale(scale):
    w, history, _ = trained(2.0**-30, loss_scale=scale)
    np.testing.assert_allclose(w, 1.0, atol=0.02)
    assert history.gradient_norm[0] == pytest.approx(2.0**-30 * math.sqrt(5), rel=0.01)


def test_a_scale_that_overflows_is_halved_and_the_step_repeated():
    w, history, trainer = trained(2.0**10, loss_scale="dynamic")
    np.testing.assert_allclose(w, 1.0, atol=0.02)
    assert len(history.loss) == 30 and trainer.position == 30
    assert np.isfinite(history.gradient_norm).all()
    assert trainer.scale.value == 2.0**4  # 2^15 is infinite: 2^10 2^4 2 is the largest that fits


def test_a_fixed_scale_that_overflows_diverges():
    with pytest.raises(Diverged, match="gradient's norm is inf at step 0"):
        trained(2.0**10, loss_scale=2.0**16)


def test_a_gradient_that_is_infinite_at_any_scale_diverges():
    with pytest.raises(Diverged, match="gradient's norm is inf at step 0"):
        trained(2.0**20, loss_scale="dynamic")


def gpt_history(**recipe):
    base = GPT(GPTConfig(13, 8, 2, 2, 16, dropout=0.1), np.random.default_rng(0))
    model = inject(base, LoraConfig(r=2, lora_dropout=0.2), np.random.default_rng(1))
    history = fit(
        model,
        lambda: (TOKENS, TARGETS),
        steps=6,
        lr=0.05,
        rng=np.random.default_rng(2),
        **recipe,
    )
    return history.loss, history.gradient_norm


@pytest.mark.parametrize("workers", [{}, {"threads": 2}, {"processes": 2}, {"accumulate": 2}])
@pytest.mark.parametrize("scale", [2.0**16, "dynamic"])
def test_where_nothing_underflows_a_power_of_two_changes_no_bit(workers, scale):
    assert gpt_history(loss_scale=scale, **workers) == gpt_history(**workers)


class Overflowing:
    """A model whose first gradient above a scale is infinite."""

    def __init__(self, model, limit):
        self.model, self.limit, self.calls = model, limit, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def backward(self, dy, cache, grads):
        self.calls += 1
        self.model.backward(dy if dy <= self.limit else math.inf, cache, grads)


def test_a_repeated_step_draws_the_same_dropout():
    losses = []
    for scale in (None, "dynamic"):
        base = GPT(GPTConfig(13, 8, 1, 2, 16, dropout=0.3), np.random.default_rng(0))
        model = Overflowing(base, 2.0**12)
        rng = np.random.default_rng(2)
        history = fit(model, lambda: (TOKENS, TARGETS), steps=5, lr=0.02, rng=rng, loss_scale=scale)
        losses.append(history.loss)
        assert model.calls == (5 if scale is None else 9)  # 2^16, 2^15, 2^14, 2^13, then 2^12
    assert losses[0] == losses[1]


def test_a_dynamic_scale_grows_after_many_steps_without_an_overflow():
    scale, good, bad = LossScale("dynamic", grow_after=3), np.ones(2), np.array([1.0, np.nan])
    assert [scale.accepts(good) for _ in range(3)] == [True] * 3 and scale.value == 2.0**17
    assert not scale.accepts(bad) and scale.value == 2.0**16
    assert [scale.accepts(good) for _ in range(2)] == [True] * 2 and scale.value == 2.0**16
    assert scale.accepts(good) and scale.value == 2.0**17
    while scale.value > 1.0:
        assert not scale.accepts(bad)
    assert scale.accepts(bad)  # the caller then finds that it is not finite


def test_a_dynamic_scale_is_saved_and_resumed(tmp_path):
    whole = trained(2.0**10, loss_scale="dynamic")

    def begin():
        return Trainer(
            Planted(2.0**10), lambda: (np.zeros(1),), steps=30, lr=0.2 / 2**10, optimizer="sgd",
            schedule="constant", clip=None, loss_scale="dynamic",
        )  # fmt: skip

    first, second = begin(), begin()
    first.run(10)
    save_state(tmp_path / "run.npz", first.state())
    second.load(load_state(tmp_path / "run.npz"))
    assert second.scale.value == first.scale.value == 2.0**4
    second.run()
    np.testing.assert_array_equal(second.model.w.value, whole[0])
    assert json.dumps(second.history.loss) == json.dumps(whole[1].loss)
    other = Trainer(
        Planted(1.0), lambda: (np.zeros(1),), steps=30, lr=0.1, optimizer="sgd", clip=None
    )
    with pytest.raises(ValueError, match="the state is from another run: array 'loss scale'"):
        other.load(first.state())


@pytest.mark.parametrize("setting", [0, -1.0, math.inf, math.nan, "static", [2]])
def test_a_scale_that_is_none_is_refused(setting):
    with pytest.raises(ValueError, match=r"loss_scale = .*, expected a number above 0, 'dynamic'"):
        Recipe(loss_scale=setting)
