"""The diffusion transformer: its patches, its attention, its start, adapters."""

import numpy as np
import pytest

from lora_np import Grads, LoraConfig, SelfAttention, inject
from lora_np.backend import ShapeError
from lora_np.images import DitBody, VPrediction, dit_denoiser
from lora_np.images.dit import patches, unpatched
from lora_np.selfcheck import at_random
from lora_np.train import fit
from tests.compare import close
from tests.images import small

F64 = np.float64
D_C = 3


def body(rng, random=True):
    of = DitBody(small.codec(rng), 8, 2, 12, 2, D_C, rng, F64)
    if random:
        at_random(of, rng, 0.5)
    return of


def test_patches_are_squares_in_reading_order(rng):
    image = rng.standard_normal((2, 64))
    cut = patches(image, 2)
    for i in range(4):
        down, right = 4 * (i // 2), 4 * (i % 2)
        square = image.reshape(2, 8, 8)[:, down : down + 4, right : right + 4]
        np.testing.assert_array_equal(cut[:, i], square.reshape(2, 16))
    np.testing.assert_array_equal(unpatched(cut, 2), image)


def test_every_token_reads_every_other_and_no_order(rng):
    attention, x = SelfAttention(8, 2, rng, dtype=F64), rng.standard_normal((2, 5, 8))
    at_random(attention, rng)
    y, cache = attention.forward(x)
    order = rng.permutation(5)
    close(attention.forward(x[:, order])[0], y[:, order])
    dy = np.zeros_like(y)
    dy[:, 0] = 1.0
    dx = attention.backward(dy, cache, Grads())
    assert (np.abs(dx).max(axis=-1) > 1e-6).all()  # the first output depends on all inputs


def test_a_self_attention_has_no_newest_position(rng):
    with pytest.raises(TypeError, match="SelfAttention reads positions after its own"):
        SelfAttention(8, 2, rng).extend(np.ones((1, 2, 8), np.float32))


def test_it_is_the_formula_of_its_docstring(rng):
    of, z, c = body(rng), rng.standard_normal((3, small.K)), rng.standard_normal((3, D_C))
    image = z @ of.to_image.W.value.T
    h = of.in_proj.forward(patches(image, 2))[0] + of.place.value
    for block in of.block:
        h = block.forward(h, c)[0]
    tokens = of.out_proj.forward(of.norm.forward(h)[0])[0]
    close(of.forward(z, c)[0], unpatched(tokens, 2) @ of.to_latent.W.value.T)


def test_at_the_start_v_is_zero_and_the_codec_stays_fixed(rng):
    of, z, c = body(rng, random=False), *rng.standard_normal((2, 3, small.K))
    v, cache = of.forward(z, c[:, :D_C])
    assert not v.any()
    grads = Grads()
    dz, _ = of.backward(np.ones_like(v), cache, grads)
    assert not dz.any()  # W_out is zero
    assert grads.get(of.out_proj.W).any()
    assert grads.get(of.to_image.W) is None and grads.get(of.to_latent.W) is None


def test_images_must_divide_into_patches(rng):
    with pytest.raises(ShapeError, match="images of 9 pixels do not divide into patches of 4"):
        DitBody(small.codec(rng, size=9), 8, 2, 12, 1, D_C, rng)


def test_lora_on_q_and_v_learns_and_leaves_the_base_as_it_was(rng):
    denoiser = dit_denoiser(
        small.codec(rng), rng, d=8, n_head=2, d_hidden=16, n_block=1, d_c=8, dtype=F64
    )
    at_random(denoiser, rng, 0.3)
    before = {name: p.value.copy() for name, p in denoiser.parameters().items()}
    adapted = inject(denoiser, LoraConfig(r=2, target_modules=("q_proj", "v_proj")), rng)
    z, t, words = small.batch(rng, 8)
    data = z, rng.standard_normal(z.shape), t, words
    history = fit(VPrediction(adapted), lambda: data, steps=20, lr=0.05)
    assert history.loss[-1] < history.loss[0]
    for name, value in before.items():
        np.testing.assert_array_equal(denoiser.parameters()[name].value, value)
    assert not np.allclose(adapted.forward(z, t, words)[0], denoiser.forward(z, t, words)[0])


@pytest.mark.peers
def test_a_block_agrees_with_torch(rng):
    import torch
    import torch.nn.functional as F

    of = body(rng)
    x, c = rng.standard_normal((2, 4, 8)), rng.standard_normal((2, D_C))
    h, caches = x, []
    for layer in of.block[:2]:
        h, cache = layer.forward(h, c)
        caches.append(cache)
    dy, grads = rng.standard_normal(h.shape), Grads()
    dx, dc = dy, 0.0
    for layer, cache in zip(of.block[1::-1], caches[::-1]):
        dx, of_block = layer.backward(dx, cache, grads)
        dc = dc + of_block

    own = {f"{i}.{n}": p for i in range(2) for n, p in of.block[i].parameters().items()}
    w = {name: torch.tensor(p.value, requires_grad=True) for name, p in own.items()}
    tx, tc = (torch.tensor(a, requires_grad=True) for a in (x, c))

    def linear(name, a):
        return F.linear(a, w[f"{name}.W"], w[f"{name}.b"])

    def modulated(i, a, inner):
        shift, scale, gate = (part[:, None] for part in linear(f"{i}.mod", tc).chunk(3, -1))
        return a + gate * inner(F.layer_norm(a, (8,), eps=1e-6) * (1 + scale) + shift)

    def attention(a):
        q, k, v = (
            linear(f"0.layer.{name}_proj", a).unflatten(-1, (2, 4)).transpose(1, 2)
            for name in "qkv"
        )
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return linear("0.layer.o_proj", heads)

    def mlp(a):
        up = F.gelu(linear("1.layer.up_proj", a), approximate="tanh")
        return linear("1.layer.down_proj", up)

    y = modulated(1, modulated(0, tx, attention), mlp)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(h, y.detach().numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dc, tc.grad.numpy(), rtol=1e-9, atol=1e-9)
    for name, p in own.items():
        np.testing.assert_allclose(grads.get(p), w[name].grad.numpy(), rtol=1e-9, atol=1e-9)
