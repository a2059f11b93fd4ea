"""Convolutional networks around a denoiser: their start, what they see, adapters, the claim."""

import numpy as np
import pytest

from lora_np import Grads, LoraConfig, inject
from lora_np.images import (
    AROUND,
    BaseSettings,
    Refined,
    StyleSettings,
    VPrediction,
    ddim,
    letters,
    refine,
    train_base,
    train_judge,
    train_style,
)
from lora_np.images.glyphs import STYLES
from lora_np.images.schedule import alpha_sigma
from lora_np.selfcheck import at_random
from lora_np.train import fit
from tests.compare import close
from tests.images import small

F64 = np.float64


def refined(rng, random=True):
    denoiser = small.denoiser(rng)
    at_random(denoiser, rng, 0.5)
    of = Refined(denoiser, small.codec(rng), rng, channels=3, n_block=1, d_c=3, dtype=F64)
    if random:
        for net in (of.before, of.behind, of.time):
            at_random(net, rng, 0.5)
    return of


def test_at_the_start_v_is_the_denoisers_and_the_last_convolutions_move(rng):
    of, (z, t, words) = refined(rng, random=False), small.batch(rng)
    v, cache = of.forward(z, t, words)
    np.testing.assert_array_equal(v, of.denoiser.forward(z, t, words)[0])
    grads = Grads()
    of.backward(rng.standard_normal(v.shape), cache, grads)
    for net in (of.before, of.behind):
        assert grads.get(net.conv_out.group[0].W).any()
        assert not grads.get(net.conv_in.group[0].W).any()


def test_it_is_the_formula_of_its_docstring(rng):
    of, (z, t, words) = refined(rng), small.batch(rng)
    (alpha, sigma), c = alpha_sigma(t), of.time.forward(_waves(t))[0]
    D, E, mean = of.to_image.W.value.T, of.to_latent.W.value.T, of.mean.value
    x_z = (z @ D + alpha * mean).reshape(-1, 8, 8, 1)
    readable = z + of.before.forward(x_z, c)[0].reshape(-1, 64) @ E
    v = of.denoiser.forward(readable, t, words)[0]
    x_0 = ((alpha * readable - sigma * v) @ D + mean).reshape(-1, 8, 8, 1)
    seen = np.concatenate([x_z, x_0], axis=-1)
    close(of.forward(z, t, words)[0], v + of.behind.forward(seen, c)[0].reshape(-1, 64) @ E)


def test_the_networks_do_not_read_the_words(rng):
    of, (z, t, words) = refined(rng), small.batch(rng)
    blind = Refined(of.denoiser, small.codec(rng), rng, channels=3, n_block=1, d_c=3, dtype=F64)
    vars(blind).update(vars(of), denoiser=_Silent(of.k))
    close(blind.forward(z, t, words)[0], blind.forward(z, t, words[::-1])[0])


def test_the_denoiser_and_the_codec_are_frozen_and_shared(rng):
    denoiser = small.denoiser(rng)
    of = Refined(denoiser, small.codec(rng), rng, channels=3, dtype=F64)
    names = {name.split(".")[0] for name, p in of.parameters().items() if p.trainable}
    assert names == {"time", "before", "behind"}
    own, of_denoiser = denoiser.parameters(), of.denoiser.parameters()
    assert all(np.shares_memory(of_denoiser[name].value, p.value) for name, p in own.items())
    assert all(p.trainable for p in own.values())


def test_lora_on_the_convolutions_learns_and_leaves_the_base_as_it_was(rng):
    of, (z, t, words) = refined(rng), small.batch(rng, 8)
    before = {name: p.value.copy() for name, p in of.parameters().items()}
    adapted = inject(of, LoraConfig(r=2, **AROUND), rng)
    trained = [name for name, p in adapted.parameters().items() if p.trainable]
    assert len(trained) == 20  # A and B of four convolutions and mod, on both sides
    data = z, rng.standard_normal(z.shape), t, words
    history = fit(VPrediction(adapted), lambda: data, steps=20, lr=0.02)
    assert history.loss[-1] < history.loss[0]
    for name, p in of.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])


def test_an_adapted_denoiser_inside_gets_its_gradients(rng):
    of, (z, t, words) = refined(rng), small.batch(rng)
    config = LoraConfig(r=2, target_modules=r"denoiser\.body\.block\..*_proj")
    adapted = inject(of, config, rng)
    at_random(adapted.denoiser, rng, 0.3)
    v, cache = adapted.forward(z, t, words)
    dv, grads, step = rng.standard_normal(v.shape), Grads(), 1e-6
    adapted.backward(dv, cache, grads, need_dx=False)
    B = adapted.denoiser.parameters()["body.block.0.layer.up_proj.B"]
    numeric = []
    for sign in (1, -1):
        B.value[3, 1] += sign * step
        numeric.append((adapted.forward(z, t, words)[0] * dv).sum())
        B.value[3, 1] -= sign * step
    close(grads.get(B)[3, 1], (numeric[0] - numeric[1]) / (2 * step), 1e-6)


class _Silent:
    """A denoiser that says nothing."""

    def __init__(self, k):
        self.k = k

    def forward(self, z, t, words, rng=None):
        return np.zeros_like(z), None


def _waves(t):
    powers = 200.0 ** (np.arange(16) / 15)
    return np.concatenate([np.sin(t[:, None] * powers), np.cos(t[:, None] * powers)], axis=1)


# ------------------------------------------------------------------------------------ the claim


@pytest.mark.slow
def test_an_outline_learned_on_13_letters_is_an_outline_on_the_others():
    """An adapter on the MLP alone learns the 13 letters, not the outline."""
    rng = np.random.default_rng(0)
    judge, base = train_judge(rng), train_base(rng, BaseSettings(steps=2500))
    unseen = letters(rng, 390, of="BDFHJLNPRTVXZ").words

    def judged(base, method, **settings):
        style = StyleSettings(style="outline", **settings)
        outlined = train_style(base, method, rng, style)
        images = base.codec.decode(ddim(outlined, unseen, steps=20, rng=rng))
        right = (judge.letters(images).argmax(axis=1) == unseen[:, 0]).mean()
        return right, (judge.styles(images).argmax(axis=1) == STYLES.index("outline")).mean()

    alone, _ = judged(base, LoraConfig(r=4, target_modules="all-linear"))
    assert alone < 0.5
    letter, style = judged(
        refine(base, rng), LoraConfig(r=8, **AROUND), steps=500, batch=32, weight_decay=0.01
    )
    assert letter > 0.85 and style > 0.9
