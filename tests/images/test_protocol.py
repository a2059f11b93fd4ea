"""What makes the report's comparisons fair: who chooses, what is shared, what must not change."""

import shutil

import numpy as np
import pytest

from lora_np.experiments.folder import SweepError
from lora_np.images import drawn, study
from lora_np.images.desk import Desk
from lora_np.images.plan import BASE, CHOOSING, CHOSEN, STYLE, Work
from lora_np.images.study import carry_out_work
from tests.images.tiny_run import TINY


@pytest.fixture
def run(stopped_run, tmp_path):
    """A copy of a tiny run; seed 1 has the models of seed 0."""
    out = shutil.copytree(stopped_run[0], tmp_path / "run")
    shutil.copytree(out / "models" / f"{BASE}-0", out / "models" / f"{BASE}-1")
    return out


def test_the_style_that_chooses_weights_has_other_letters_and_draws(run, monkeypatch):
    asked = []

    def train(base, method, rng, settings):
        asked.append((settings.of, rng.random()))
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "train_style", train)
    for what in (STYLE, CHOOSING):
        with pytest.raises(KeyboardInterrupt):
            carry_out_work(TINY, run, Work(what, 0))
    (of_style, first), (of_choosing, other) = asked
    assert of_style == TINY.style.of and of_choosing == TINY.unseen
    assert not set(of_style) & set(of_choosing) and first != other


def test_weights_are_chosen_on_that_style_with_seen_and_unseen_letters_swapped(run, monkeypatch):
    letters, models = {}, []

    class Rows:
        def __init__(self, desk, part, style, of):
            letters[part], self.part, self.found = of, part, []

        def add(self, name, model, sampler, steps, **more):
            score = {"set": self.part, "model": name, "steps": steps, "fd": 1.0}
            self.found.append(score | more)

    monkeypatch.setattr(drawn, "Rows", Rows)
    monkeypatch.setattr(Desk, "model", lambda self, **weights: models.append(weights))
    drawn.chosen(Desk(TINY, run, Work(CHOSEN, 0)))
    assert letters == {"seen": TINY.unseen, "unseen": TINY.style.of}
    assert {name for weights in models for name in weights} == {"style_choosing", "lcm"}


def test_a_training_that_changes_the_base_stops_the_run(run, monkeypatch):
    trained = study.train_style

    def spoil(base, *more):
        model = trained(base, *more)
        value = next(iter(base.denoiser.parameters().values())).value
        value[0] = np.nextafter(value[0], np.float32(9))
        return model

    monkeypatch.setattr(study, "train_style", spoil)
    with pytest.raises(SweepError, match="of the base, which all adapters share"):
        carry_out_work(TINY, run, Work(STYLE, 0))


def test_models_of_a_seed_start_from_the_same_noise_and_other_seeds_from_other_noise(run):
    words = np.array([[17, 1]] * 4)

    def draw(what, seed):
        desk = Desk(TINY, run, Work(what, seed))
        return desk.draw(desk.base.denoiser, words, "ddim", 1)

    first, again, other = draw("regular", 0), draw("styled", 0), draw("regular", 1)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_base_that_has_not_learned_draws_farther_from_its_images_than_fresh_ones(stopped_run):
    near = stopped_run[2]["done"]["regular, seed 0"]["nearness"]
    assert near["drawn"] > 1.5 * near["fresh"]
