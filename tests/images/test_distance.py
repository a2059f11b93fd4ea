"""Distances between sets of images: their closed forms, their bias, and what they find."""

import numpy as np
import pytest

from lora_np.images import distance
from lora_np.images.distance import frechet, kernel_distance, nearest, spread
from lora_np.images.glyphs import letters


def gaussian(rng, n, mean, factor):
    """Return n rows whose mean and covariance factor^T factor are exact."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T).T
    return x @ factor + mean


# ------------------------------------------------------------------------------- frechet


def test_the_distance_of_a_set_to_itself_is_zero():
    x = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    assert abs(frechet(x, x)) < 1e-10
    assert abs(frechet(x, x[::-1])) < 1e-10


def test_two_gaussians_with_diagonal_covariances_have_the_closed_distance():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0.5, 2.0, (2, 6))  # standard deviations
    m = rng.standard_normal(6)
    found = frechet(gaussian(rng, 400, np.zeros(6), np.diag(a)), gaussian(rng, 90, m, np.diag(b)))
    assert found == pytest.approx(((a - b) ** 2).sum() + (m * m).sum(), rel=1e-9)


def test_two_gaussians_that_do_not_commute_have_the_trace_of_a_general_square_root():
    rng = np.random.default_rng(2)
    F, G = rng.standard_normal((2, 5, 5))
    C, D = F.T @ F, G.T @ G
    cross = np.sqrt(np.linalg.eigvals(C @ D).real).sum()  # tr (C D)^1/2
    found = frechet(gaussian(rng, 300, np.ones(5), F), gaussian(rng, 200, np.ones(5), G))
    assert found == pytest.approx(np.trace(C + D) - 2.0 * cross, rel=1e-7)
    assert found == pytest.approx(
        frechet(gaussian(rng, 200, np.ones(5), G), gaussian(rng, 300, np.ones(5), F)), rel=1e-7
    )


def test_fewer_rows_than_features_give_a_finite_distance_and_one_feature_works():
    x, y = np.random.default_rng(3).standard_normal((2, 5, 20))
    assert 0.0 < frechet(x, y) < 1e3 and abs(frechet(x, x)) < 1e-6
    assert frechet(x[:, :1], x[:, :1] + 2.0) == pytest.approx(4.0)


def test_the_floor_falls_with_the_number_of_images():
    rng = np.random.default_rng(4)
    floors = [
        np.mean([frechet(*rng.standard_normal((2, n, 8))) for _ in range(5)]) for n in (50, 800)
    ]
    assert floors[0] > 5.0 * floors[1] > 0.0


# ------------------------------------------------------------------------------- kernel


def naive_kernel_distance(a, b):
    def mean(x, y, same):
        values = [
            (u @ v / len(u) + 1.0) ** 3
            for i, u in enumerate(x)
            for j, v in enumerate(y)
            if not (same and i == j)
        ]
        return np.mean(values)

    return mean(a, a, True) + mean(b, b, True) - 2.0 * mean(a, b, False)


def test_the_kernel_distance_is_the_double_loop(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((13, 4)), rng.standard_normal((8, 4)) + 0.3
    monkeypatch.setattr(distance, "BLOCK", 5)  # the last block is shorter
    assert kernel_distance(a, b) == pytest.approx(naive_kernel_distance(a, b), rel=1e-12)
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a), rel=1e-12)


def test_the_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    rng = np.random.default_rng(6)
    pairs = rng.standard_normal((3000, 2, 10, 4))  # many small sets
    found = np.array([kernel_distance(a, b) for a, b in pairs])
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean()) < 3.0 * error
    assert found.min() < 0.0 < found.max()
    assert np.mean([frechet(a, b) for a, b in pairs[:300]]) > 0.5


def test_the_kernel_distance_sees_a_shift_and_a_width():
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((2, 2000, 4))
    assert abs(kernel_distance(a, b)) < 0.02
    assert kernel_distance(a, b + 0.5) > 0.1 and kernel_distance(a, 1.5 * b) > 0.1


@pytest.mark.parametrize("measure", [frechet, kernel_distance])
@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.ones((3, 2)), np.ones((3, 4)), r"shapes \(3, 2\) and \(3, 4\), expected \(n, d\)"),
        (np.ones((1, 2)), np.ones((3, 2)), "at least 2 rows"),
        (np.ones(3), np.ones(3), r"shapes \(3,\) and \(3,\)"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "features hold nan or inf"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(measure, a, b, message):
    with pytest.raises(ValueError, match=message):
        measure(a, b)


# -------------------------------------------------------------------------------- spread


def test_the_spread_of_one_image_per_prompt_is_zero():
    images, words = letters(np.random.default_rng(8), 78)
    images, words = (np.concatenate([x, x, x]) for x in (images, words))
    assert spread(images, words) == 0.0


def test_the_spread_is_the_mean_over_prompts_of_the_root_mean_variance():
    rng = np.random.default_rng(9)
    images = rng.uniform(-1.0, 1.0, (4000, 8, 8))
    words = rng.integers(0, 3, (4000, 2))
    images[words[:, 0] == 0] = 0.25
    prompts = {tuple(row) for row in words.tolist()}
    expected = np.mean([0.0 if letter == 0 else 3**-0.5 for letter, _ in prompts])
    assert spread(images, words) == pytest.approx(expected, rel=0.02)
    order = rng.permutation(4000)
    assert spread(images[order], words[order]) == pytest.approx(spread(images, words))


def test_a_spread_of_few_images_is_not_too_small():
    rng = np.random.default_rng(10)
    images, words = rng.uniform(-1.0, 1.0, (600, 8, 8)), np.repeat(np.arange(300) % 26, 2)
    words = np.column_stack([words, np.repeat(np.arange(300) // 26 % 4, 2)])
    assert spread(images, words) == pytest.approx(3**-0.5, rel=0.02)


def test_a_prompt_with_one_image_and_words_of_another_length_are_refused():
    images, words = letters(np.random.default_rng(11), 3, of="R", families=["serif"])
    words[0] = [0, 3]
    with pytest.raises(ValueError, match="prompt 'A' has one image: a spread needs two"):
        spread(images, words)
    with pytest.raises(ValueError, match=r"words have shape \(2, 2\), expected \(3, 2\)"):
        spread(images, words[:2])


# ------------------------------------------------------------------------------- nearest


def test_a_planted_copy_is_found_at_distance_zero(monkeypatch):
    monkeypatch.setattr(distance, "BLOCK", 16)
    rng = np.random.default_rng(12)
    training, drawn = letters(rng, 500).images, letters(rng, 50).images
    drawn[[3, 40]] = training[[77, 400]]
    distances, indices = nearest(drawn, training)
    assert list(np.flatnonzero(distances == 0.0)) == [3, 40]
    assert indices[[3, 40]].tolist() == [77, 400]


def test_nearest_is_the_smallest_of_all_distances():
    rng = np.random.default_rng(13)
    training, drawn = letters(rng, 300).images, letters(rng, 40).images
    every = np.sqrt(((drawn[:, None] - training).astype(np.float64) ** 2).sum(axis=(2, 3)))
    distances, indices = nearest(drawn, training)
    assert np.array_equal(indices, every.argmin(axis=1))
    assert distances == pytest.approx(every.min(axis=1), rel=1e-5)


def test_training_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8\), expected \(n, 16, 16\)"):
        nearest(np.zeros((2, 16, 16)), np.zeros((2, 8, 8)))
