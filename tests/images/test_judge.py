"""The judge: its layers, its training, its files, and (slow) how often it is right."""

import numpy as np
import pytest

import lora_np
from lora_np import check_layer, copy_model
from lora_np.files import CheckpointError, load_arrays, save_arrays
from lora_np.images.distance import frechet
from lora_np.images.glyphs import STYLES, letters
from lora_np.images.judge import Judge, examples, load_judge, save_judge, train_judge
from lora_np.parameters import Grads, pack
from lora_np.train import loss_and_gradient


def small(size=8, seed=0):
    return Judge(np.random.default_rng(seed), size, (2, 3), 4)


@pytest.fixture(scope="module")
def trained():
    """A judge after a few steps."""
    return train_judge(np.random.default_rng(0), n=780, steps=150, batch=64)


def test_the_judge_keeps_the_contract_of_layers():
    x = np.random.default_rng(1).standard_normal((3, 8, 8))
    assert "gradients agree with central differences" in check_layer(small(), x)


def test_the_gradient_of_the_loss_is_that_of_central_differences():
    rng = np.random.default_rng(2)
    judge = copy_model(small(9), dtype=np.float64)
    batch = rng.uniform(-1.0, 1.0, (5, 9, 9)), rng.integers(0, (26, 3, 5), (5, 3))
    packed = pack(judge.parameters())
    _, gradient = loss_and_gradient(judge, packed, batch)
    gradient = gradient.copy()
    for direction in rng.standard_normal((3, *packed.vector.shape)):
        losses = []
        for step in (1e-6, -1e-6):
            packed.vector += step * direction
            losses.append(float(judge.loss(*batch)[0]))
            packed.vector -= step * direction
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(gradient @ direction, rel=1e-6)


def test_parts_of_a_batch_add_up_to_the_whole():
    rng = np.random.default_rng(3)
    judge = copy_model(small(), dtype=np.float64)
    batch = rng.uniform(-1.0, 1.0, (7, 8, 8)), rng.integers(0, (26, 3, 5), (7, 3))
    packed = pack(judge.parameters())
    whole, gradient = loss_and_gradient(judge, packed, batch)
    gradient = gradient.copy()
    parts, again = loss_and_gradient(judge, packed, batch, accumulate=3)
    assert parts == pytest.approx(whole, rel=1e-12) and judge.number(batch) == 7
    assert np.abs(again - gradient).max() < 1e-12


def test_the_loss_before_training_is_that_of_a_guess():
    images, targets = examples(np.random.default_rng(4), 78)
    loss, cache = Judge(np.random.default_rng(0)).loss(images, targets)
    assert float(loss) == pytest.approx(np.log([26, 3, 5]).sum(), abs=1.5)
    assert Judge(np.random.default_rng(0)).backward(1.0, cache, Grads()) is None


def test_examples_hold_every_style_letter_and_family_equally_often():
    images, targets = examples(np.random.default_rng(5), 156)
    assert images.shape == (780, 16, 16) and images.dtype == np.float32
    for column, names in zip(targets.T, (26, 3, 5)):
        assert np.bincount(column).tolist() == [780 // names] * names


def test_probabilities_sum_to_one_and_blocks_change_nothing(trained, monkeypatch):
    images, _ = examples(np.random.default_rng(6), 40)
    features = trained.features(images)
    for say, number in ((trained.letters, 26), (trained.families, 3), (trained.styles, 5)):
        p = say(images)
        assert p.shape == (200, number) and p.dtype == np.float32
        assert np.abs(p.sum(axis=1) - 1.0).max() < 1e-5 and p.min() >= 0.0
    monkeypatch.setattr("lora_np.images.judge.BLOCK", 64)
    assert np.abs(trained.features(images) - features).max() < 1e-5


def test_a_few_steps_teach_most_letters_and_a_seed_decides_all(trained):
    images, targets = examples(np.random.default_rng(7), 390)
    assert (trained.letters(images).argmax(axis=1) == targets[:, 0]).mean() > 0.7
    assert (trained.styles(images).argmax(axis=1) == targets[:, 2]).mean() > 0.8
    one, again, other = (
        train_judge(np.random.default_rng(seed), n=78, steps=3, batch=16) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.features(images), again.features(images))
    assert not np.array_equal(one.features(images), other.features(images))


def test_a_judge_survives_a_file(trained, tmp_path):
    save_judge(tmp_path / "judge.npz", trained)
    again = load_judge(tmp_path / "judge.npz")
    images = letters(np.random.default_rng(8), 30).images
    assert np.array_equal(again.features(images), trained.features(images))
    assert np.array_equal(again.styles(images), trained.styles(images))


def test_a_file_that_is_no_judge_is_refused(trained, tmp_path):
    path = tmp_path / "judge.npz"
    lora_np.train.save_parameters(path, trained)
    with pytest.raises(CheckpointError, match="is not a judge: it lacks the size of its images"):
        load_judge(path)
    save_judge(path, trained)
    arrays = load_arrays(path)
    save_arrays(path, arrays | {"size": np.array(32)})
    with pytest.raises(CheckpointError, match=r"body\.layers\.4"):
        load_judge(path)
    del arrays["head.W"]
    save_arrays(path, arrays)
    with pytest.raises(CheckpointError, match=r"head\.W"):
        load_judge(path)


def test_what_is_not_an_image_is_not_judged(trained):
    for images in (np.zeros((2, 32, 32)), np.full((2, 16, 16), 2.0), np.full((2, 16, 16), np.nan)):
        with pytest.raises(ValueError, match="images"):
            trained.letters(images)


@pytest.mark.slow
def test_the_real_judge_reads_letters_and_styles_of_fresh_images():
    judge = train_judge(np.random.default_rng(0))
    images, targets = examples(np.random.default_rng(10**6), 3900)
    letter = judge.letters(images).argmax(axis=1) == targets[:, 0]
    style = judge.styles(images).argmax(axis=1) == targets[:, 2]
    for s, name in enumerate(STYLES):
        own = targets[:, 2] == s
        print(f"{name}: letter {letter[own].mean():.4f}, style {style[own].mean():.4f}")
        assert letter[own].mean() >= 0.998 and style[own].mean() >= 0.98
    features = judge.features(images)
    sets = [features[targets[:, 2] == s] for s in range(len(STYLES))]
    floor = frechet(sets[0][::2], sets[0][1::2])
    assert min(frechet(sets[0], other) for other in sets[1:]) > 50.0 * floor  # styles lie apart
