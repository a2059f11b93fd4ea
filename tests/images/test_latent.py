"""The codec: the best linear autoencoder, what it keeps, and what it cannot hold."""

import numpy as np
import pytest

from lora_np.files import load_arrays, save_arrays
from lora_np.images.glyphs import letters
from lora_np.images.latent import SvdCodec, _signed


@pytest.fixture(scope="module")
def images():
    return letters(np.random.default_rng(0), 3000).images


@pytest.fixture(scope="module")
def codec(images):
    return SvdCodec.fit(images, 32)


def error(images, decoded):
    return float(((images.astype(np.float64) - decoded) ** 2).sum())


def test_the_basis_is_orthonormal_in_float32(codec):
    directions = np.concatenate([codec.basis, codec.rest])
    assert directions.shape == (256, 256) and directions.dtype == np.float32
    assert np.abs(directions @ directions.T - np.eye(256)).max() < 1e-5
    assert (codec.k, codec.size, type(codec.scale)) == (32, 16, float)


def test_latents_are_those_of_a_plain_svd(images, codec):
    X = images.reshape(len(images), -1).astype(np.float64)
    U, sigma, V = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    z = codec.encode(images)
    assert z.dtype == np.float32
    expected = (U * sigma)[:, :32] * np.sign((V[:32] * codec.basis).sum(axis=1)) / codec.scale
    assert np.abs(z - expected).max() < 1e-3
    lost = float((sigma[32:] ** 2).sum())  # Eckart and Young
    assert codec.energy(images) == pytest.approx(1.0 - lost / float((sigma**2).sum()), abs=1e-6)


def test_latents_have_a_root_mean_square_of_one(images, codec):
    z = codec.encode(images)
    assert (z * z).mean() == pytest.approx(1.0, abs=1e-4)
    assert np.abs(z.mean(axis=0)).max() < 1e-4


def test_all_directions_restore_every_image(images):
    codec = SvdCodec.fit(images, 256)
    decoded = codec.decode(codec.encode(images))
    assert decoded.dtype == np.float32
    assert np.abs(decoded - images).max() < 1e-4


def test_no_other_linear_autoencoder_loses_less(images, codec):
    X = (images - codec.mean).reshape(len(images), -1).astype(np.float64)
    best = error(X, X @ codec.basis.T @ codec.basis)
    rng = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 1.0):
        other, _ = np.linalg.qr((codec.basis + size * rng.standard_normal((32, 256))).T)
        assert error(X, X @ other @ other.T) > best


def test_decoded_images_are_images(codec):
    z = 5.0 * np.random.default_rng(2).standard_normal((50, 32)).astype(np.float32)
    decoded = codec.decode(z)
    assert decoded.min() == -1.0 and decoded.max() == 1.0 and decoded.dtype == np.float32


def test_enough_is_the_smallest_k_that_keeps_the_share(images):
    codec, fresh = SvdCodec.fit(images, 8), letters(np.random.default_rng(3), 500).images
    k = codec.enough(fresh, 0.9)
    assert SvdCodec.fit(images, k).energy(fresh) >= 0.9 > SvdCodec.fit(images, k - 1).energy(fresh)
    with pytest.raises(ValueError, match=r"no codec of these letters keeps 101.0% .* k = 256"):
        codec.enough(fresh, 1.01)


def test_a_style_that_the_codec_cannot_hold_is_refused_with_the_k_that_would_do(codec, images):
    rng = np.random.default_rng(4)
    outline = letters(rng, 500, "outline").images
    codec.expect_held(letters(rng, 500, "bold").images)
    k = codec.enough(outline, 0.9)
    with pytest.raises(ValueError, match=rf"k = 32 keeps 6.\..% .* fit a codec with k = {k}$"):
        codec.expect_held(outline)
    SvdCodec.fit(images, k).expect_held(outline)


def test_rounding_and_the_order_of_the_images_turn_no_sign(images, codec):
    again = SvdCodec.fit(images[::-1], 32)
    apart = np.abs(np.sum(codec.basis * again.basis, axis=1) - 1.0)
    assert apart.max() < 1e-3  # the product of unit vectors is 1, not -1


def test_the_sign_of_a_mirrored_direction_hangs_on_no_tie():
    v = np.zeros(16)
    v[3], v[12] = 0.5, -0.5  # odd under a mirror: its two largest entries differ in sign
    tiny = np.zeros(16)
    tiny[12] = -1e-12
    for vector in (v, v + tiny, v - tiny):
        assert np.array_equal(np.sign(_signed(vector[None])), np.sign(_signed(v[None])))
        assert np.array_equal(_signed(-vector[None]), _signed(vector[None]))


def test_a_digest_names_a_codec(images, codec):
    same = SvdCodec(codec.mean, codec.basis, codec.scale, codec.rest[:0])
    others = [
        SvdCodec.fit(images, 31),
        SvdCodec(codec.mean, codec.basis, 2.0 * codec.scale, codec.rest),
        SvdCodec(codec.mean + np.float32(1e-6), codec.basis, codec.scale, codec.rest),
    ]
    assert same.digest() == codec.digest() and len(codec.digest()) == 16
    assert len({of.digest() for of in [codec, *others]}) == 4


def test_a_codec_survives_a_file(tmp_path, images, codec):
    save_arrays(tmp_path / "codec.npz", codec.arrays())
    again = SvdCodec.of_arrays(load_arrays(tmp_path / "codec.npz"))
    assert again.digest() == codec.digest() and type(again.scale) is float
    assert np.array_equal(again.encode(images[:9]), codec.encode(images[:9]))
    assert again.enough(images, 0.95) == codec.enough(images, 0.95)


@pytest.mark.parametrize("k", [0, 257, 3000])
def test_a_k_that_does_not_fit_is_refused(images, k):
    with pytest.raises(ValueError, match=f"k = {k}, expected 1 to 256 for 3000 images of 16 x 16"):
        SvdCodec.fit(images, k)


def test_too_few_or_equal_images_are_refused(images):
    with pytest.raises(ValueError, match="k = 3, expected 1 to 2 for 3 images"):
        SvdCodec.fit(images[:3], 3)
    with pytest.raises(ValueError, match="the 9 images are all equal"):
        SvdCodec.fit(np.repeat(images[:1], 9, axis=0), 3)


def test_images_and_latents_of_another_shape_are_refused(codec):
    with pytest.raises(ValueError, match=r"images have shape \(2, 8, 8\), expected \(n, 16, 16\)"):
        codec.encode(np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match=r"latents have shape \(2, 31\), expected \(n, 32\)"):
        codec.decode(np.zeros((2, 31)))
    with pytest.raises(ValueError, match="the model that made them has diverged"):
        codec.decode(np.full((2, 32), np.nan))
    with pytest.raises(ValueError, match="images equal the codec's mean"):
        codec.energy(codec.mean[None])
