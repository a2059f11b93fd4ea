"""Batches for training, and the three trainings: what they keep, and what they refuse."""

import numpy as np
import pytest

from lora_np import LoraConfig
from lora_np.images import (
    BaseSettings,
    Collapsed,
    DistilSettings,
    StyleSettings,
    distil,
    train_style,
)
from lora_np.images.schedule import T_MAX, grid
from lora_np.images.training import BEND, DROP, Mixed, Neighbours
from lora_np.methods import FullConfig
from tests.images.tiny import base

Z = np.arange(40.0, dtype=np.float32).reshape(10, 4)
WORDS = np.stack([np.arange(10), np.arange(10) % 3], axis=1)


def test_times_are_stratified_and_bent_towards_the_noise(rng):
    _, _, t, _ = Mixed(Z, WORDS, 500, rng)()
    inside = (t / T_MAX) ** (1 / BEND) * 500 - np.arange(500)  # each in a part of its own
    assert (inside > -1e-3).all() and (inside < 1 + 1e-3).all()
    assert t.dtype == np.float32 and (t > 0).all() and (t <= T_MAX).all()
    assert 0.45 * 500 < (t > 0.62 * T_MAX).sum() < 0.6 * 500


def test_each_word_is_left_out_of_a_share_of_the_prompts_alone(rng):
    x0, eps, _, words = Mixed(Z, WORDS, 20_000, rng)()
    letter, family = (words[:, 0] == 26), (words[:, 1] == 3)
    assert abs(letter.mean() - DROP) < 0.02 and abs(family.mean() - DROP) < 0.02
    assert abs((letter & family).mean() - DROP**2) < 0.01  # independent of each other
    rows = (x0[:, 0] / 4).astype(int)  # each latent keeps its own words
    assert (words[~letter, 0] == WORDS[rows[~letter], 0]).all()
    assert abs(float(eps.mean())) < 0.02 and abs(float(eps.std()) - 1) < 0.02
    assert x0.dtype == eps.dtype == np.float32


def test_neighbours_are_neighbours_on_the_grid_and_cover_it(rng):
    batches = Neighbours(Z, WORDS, 64, rng, 8, (1.0, 1.5))
    _, _, t, _, later, w = batches()
    times = grid(8)
    place = np.searchsorted(-times, -t)
    np.testing.assert_array_equal(times[place], t)
    np.testing.assert_array_equal(times[place + 1], later)
    assert np.bincount(place, minlength=8).tolist() == [8] * 8  # from the noisiest down to 0
    assert w.shape == (64, 1) and w.min() >= 1.0 and w.max() <= 1.5 and w.std() > 0.1
    assert {x.dtype.name for x in (t, later, w)} == {"float32"}


def test_training_leaves_the_base_bit_for_bit(rng):
    of = base()
    before = {name: p.value.copy() for name, p in of.denoiser.parameters().items()}
    few = {"steps": 3, "batch": 8}
    train_style(of, LoraConfig(r=2, target_modules="all-linear"), rng, StyleSettings(**few))
    train_style(of, FullConfig(), rng, StyleSettings(**few))
    student = DistilSettings(images=100, processes=1, **few)
    distil(of, FullConfig(), rng, student)
    for name, p in of.denoiser.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])


def test_weight_decay_holds_a_style_near_the_base():
    def size(weight_decay):
        rng, lora = np.random.default_rng(0), LoraConfig(r=2, target_modules="all-linear")
        settings = StyleSettings(steps=20, batch=8, weight_decay=weight_decay)
        trained = train_style(base(), lora, rng, settings).parameters()
        return sum(float((p.value**2).sum()) for name, p in trained.items() if name.endswith(".B"))

    assert size(20.0) < 0.8 * size(0.0)


def test_a_student_that_ignores_the_noise_is_stopped(rng, monkeypatch):
    monkeypatch.setattr("lora_np.images.training.WATCHED", 1)
    monkeypatch.setattr("lora_np.images.training.LEAST_SPREAD", 1e9)
    settings = DistilSettings(images=100, steps=5, batch=8, processes=1)
    with pytest.raises(Collapsed, match=r"lower learning rate.*moving average"):
        distil(base(), FullConfig(), rng, settings)


def test_weight_decay_holds_the_change_near_zero(rng):
    sizes = []
    for weight_decay in (0.0, 2.0):
        settings = StyleSettings(steps=40, batch=8, weight_decay=weight_decay)
        method = LoraConfig(r=2, target_modules="all-linear")
        trained = train_style(base(), method, np.random.default_rng(0), settings).parameters()
        B = [p.value for name, p in trained.items() if p.trainable and name.endswith(".B")]
        sizes.append(sum(float((x * x).sum()) for x in B))
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("make", [Mixed, lambda *of: Neighbours(*of, 8, (1.0, 1.0))])
def test_an_empty_batch_is_refused(make, rng):
    with pytest.raises(ValueError, match="batch = 0, expected at least 1"):
        make(Z, WORDS, 0, rng)


@pytest.mark.parametrize("guidance", [(1.5, 1.0), (np.nan, 1.0), (1.0, np.inf)])
def test_a_range_of_guidance_rises(guidance):
    with pytest.raises(ValueError, match=r"guidance = \(.*expected two numbers in rising order"):
        DistilSettings(guidance=guidance)


@pytest.mark.parametrize("name", ["d", "d_hidden", "n_block", "d_c"])
def test_sizes_of_a_base_are_above_zero(name):
    with pytest.raises(ValueError, match=f"{name} = 0, expected at least 1"):
        BaseSettings(**{name: 0})
