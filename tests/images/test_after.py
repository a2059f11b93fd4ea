"""lora_np.images.training: what is called after a step, and what a distillation moves itself."""

import numpy as np
import pytest

from lora_np.images import DistilSettings, StyleSettings, distil, train_base, train_style
from lora_np.images.adapters import method_of
from lora_np.train import MovingAverage
from tests.images.tiny import SETTINGS, base

DISTIL = DistilSettings(images=60, steps=3, batch=8, processes=1)


def trained(kind, after=None):
    rng, lora = np.random.default_rng(0), method_of(2)
    if kind == "base":
        return train_base(rng, SETTINGS, after=after).denoiser
    if kind == "style":
        return train_style(base(), lora, rng, StyleSettings(steps=3, batch=8), after=after)
    return distil(base(), lora, rng, DISTIL, after=after)


@pytest.mark.parametrize("kind, steps", [("base", SETTINGS.steps), ("style", 3), ("distil", 3)])
def test_the_caller_hears_of_every_step_and_changes_nothing(kind, steps):
    heard = []
    told = trained(kind, lambda model, step, gradient: heard.append(step))
    assert heard == list(range(steps))
    alone = trained(kind)
    for name, p in told.parameters().items():
        np.testing.assert_array_equal(p.value, alone.parameters()[name].value)


def test_a_distillation_moves_its_average_after_every_step(monkeypatch):
    moved, update = [], MovingAverage.update
    monkeypatch.setattr(
        MovingAverage, "update", lambda self, *step: (moved.append(1), update(self, *step))
    )
    trained("distil", lambda *step: None)
    trained("distil")
    assert len(moved) == 2 * DISTIL.steps
