"""The denoiser: what steers it, its start, its gradients."""

import numpy as np
import pytest

from lora_np import LoraConfig, check_gradients, copy_model, inject, merge
from lora_np.images import mlp_denoiser
from lora_np.images.denoiser import FASTEST, FREQUENCIES, waves
from lora_np.layers import as_pair
from lora_np.parameters import Grads
from tests.images import small
from tests.images.test_objective import at_random


def test_every_gradient_agrees_with_both_derivatives(rng):
    model = at_random(small.denoiser(rng), rng)
    z, t, words = small.batch(rng)
    forward, backward, inputs = as_pair(model, lambda of, z: of.forward(z, t, words))
    for method in ("central", "complex"):
        assert check_gradients(forward, backward, inputs(z), method=method).ok


def test_v_starts_at_zero_and_every_part_moves_it(rng):
    model = small.denoiser(rng)
    z, t, words = small.batch(rng)
    assert not model.forward(z, t, words)[0].any()
    at_random(model, rng)
    v, _ = model.forward(z, t, words)
    for other in (
        (z + 1.0, t, words),
        (z, t / 2, words),
        (z, t, (words + 1) % 4),
        (z, t, words % 2),
    ):
        assert not np.allclose(model.forward(*other)[0], v)


def test_the_words_of_one_image_do_not_reach_another(rng):
    model = at_random(small.denoiser(rng), rng)
    z, t, words = small.batch(rng)
    together, _ = model.forward(z, t, words)
    alone = [model.forward(z[i : i + 1], t[i : i + 1], words[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-12)


def test_waves_rise_from_one_radian_to_the_fastest(rng):
    t = np.array([0.25])
    seen = waves(t)[0]
    assert seen.shape == (2 * FREQUENCIES,)
    assert seen[0] == pytest.approx(np.sin(0.25))
    assert seen[FREQUENCIES - 1] == pytest.approx(np.sin(0.25 * FASTEST))
    assert seen[FREQUENCIES] == pytest.approx(np.cos(0.25))


def test_float32_stays_float32(rng):
    model = mlp_denoiser(rng, k=3, d=4, d_hidden=4, n_block=1, d_c=2)
    z, t, words = small.batch(rng, k=3)
    v, cache = model.forward(z.astype(np.float32), t.astype(np.float32), words)
    grads = Grads()
    dz = model.backward(np.ones_like(v), cache, grads)
    found = [grads.get(p).dtype for p in model.parameters().values()]
    assert {v.dtype, dz.dtype, *found} == {np.dtype(np.float32)}


def test_frozen_words_and_time_form_no_gradient_but_let_the_body_have_its_own(rng):
    model = at_random(small.denoiser(rng), rng)
    adapted = inject(model, LoraConfig(r=2, target_modules=["up_proj", "mod"]), rng)
    z, t, words = small.batch(rng)
    v, cache = adapted.forward(z, t, words)
    grads = Grads()
    adapted.backward(np.ones_like(v), cache, grads, need_dx=False)
    for name, p in adapted.parameters().items():
        assert (grads.get(p) is not None) == p.trainable, name


def test_a_merged_style_is_the_style(rng):
    model = at_random(small.denoiser(rng), rng)
    adapted = at_random(
        inject(model, LoraConfig(r=2, target_modules="all-linear"), rng), np.random.default_rng(5)
    )
    of = small.batch(rng)
    expected, _ = adapted.forward(*of)
    np.testing.assert_allclose(merge(adapted).forward(*of)[0], expected, rtol=1e-9, atol=1e-12)


def test_a_denoiser_has_no_newest_position(rng):
    with pytest.raises(TypeError, match="use forward"):
        copy_model(small.denoiser(rng)).extend(np.zeros((1, 3)))


def test_the_cost_of_a_latent_is_counted(rng):
    model = mlp_denoiser(rng, k=5, d=4, d_hidden=6, n_block=2, d_c=3)
    linear = {n: p.size for n, p in model.parameters().items() if n.endswith(".W")}
    products = sum(size for name, size in linear.items() if "letter" not in name)
    products -= linear["family.W"]
    assert model.flops().forward == 2 * products
