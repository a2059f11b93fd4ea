"""Letters as images: what is drawn, how evenly, from which numbers, and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_np.images import glyphs
from lora_np.images.glyphs import (
    FAMILIES,
    LETTERS,
    NO_FAMILY,
    NO_LETTER,
    STYLES,
    check_images,
    letters,
    prompt_of,
    words_of,
)

ROOT = Path(__file__).parents[2]


def drawn(style="regular", n=780, seed=0, **options):
    return letters(np.random.default_rng(seed), n, style, **options)


def means(images, words):
    """Return the mean image of every letter and family, (78, size, size)."""
    which = words[:, 0] * 3 + words[:, 1]
    return np.stack([images[which == i].mean(axis=0) for i in range(78)])


@pytest.mark.parametrize("style", STYLES)
def test_images_are_float32_between_paper_and_ink(style):
    images, words = drawn(style, 156)
    assert images.shape == (156, 16, 16) and images.dtype == np.float32
    assert words.shape == (156, 2) and words.dtype == np.int64
    assert check_images(images) is images
    ink = -images if style == "inverted" else images
    assert (ink < 0.0).mean() > 0.5  # most of an image is paper
    assert (ink.max(axis=(1, 2)) > 0.0).all()  # and each has a stroke


@pytest.mark.parametrize("style", STYLES)
def test_no_two_images_are_alike(style):
    images = drawn(style, 780).images.reshape(780, -1)
    assert len(np.unique(images, axis=0)) == 780


def test_equal_generators_draw_equal_images_and_others_do_not():
    one, again, other = drawn(seed=3), drawn(seed=3), drawn(seed=4)
    assert np.array_equal(one.images, again.images) and np.array_equal(one.words, again.words)
    assert not np.array_equal(one.images, other.images)


def test_images_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    whole = drawn(n=100).images
    monkeypatch.setattr(glyphs, "BLOCK", 7)
    assert np.array_equal(drawn(n=100).images, whole)


@pytest.mark.parametrize(
    "n, of, families",
    [
        (1, LETTERS, FAMILIES),
        (100, LETTERS, FAMILIES),
        (117, "ABDEGHKLNORST", FAMILIES),
        (50, "ABC", FAMILIES),  # 3 letters and 3 families: the pairs still come evenly
        (11, "LORA", ("mono", "sans")),
        (5, "Q", ("serif",)),
    ],
)
def test_letters_families_and_pairs_come_equally_often_up_to_one(n, of, families):
    words = drawn(n=n, of=of, families=families).words
    asked = [[LETTERS.index(x) for x in of], [FAMILIES.index(x) for x in families]]
    for column, indices in zip(words.T, asked):
        counts = np.bincount(column, minlength=26)
        assert set(np.flatnonzero(counts)) <= set(indices)
        assert np.ptp(counts[indices]) <= 1
    pairs = np.bincount(words[:, 0] * 3 + words[:, 1], minlength=78).reshape(26, 3)
    assert np.ptp(pairs[asked[0]][:, asked[1]]) <= 1


def test_the_order_and_the_letters_that_come_once_more_are_random():
    firsts = {tuple(drawn(n=3, seed=seed).words[:, 0]) for seed in range(5)}
    assert len(firsts) == 5


def test_bold_has_more_ink_italic_leans_and_inverted_is_minus_regular():
    by_style = {style: drawn(style) for style in STYLES}
    regular, words = by_style["regular"]
    assert all(np.array_equal(of.words, words) for of in by_style.values())  # one generator's
    assert np.array_equal(by_style["inverted"].images, -regular)
    assert (by_style["bold"].images.mean() - regular.mean()) > 0.1

    def lean(images):  # covariance of the ink's columns and rows: positive for / and for italics
        ink, x = (images + 1.0).mean(axis=0), np.arange(16) - 7.5
        return (ink * x[None, :] * -x[:, None]).sum() / ink.sum()

    stems = np.isin(words[:, 0], [LETTERS.index(x) for x in "HINTU"])
    assert lean(by_style["italic"].images[stems]) > lean(regular[stems]) + 1.0


def test_an_outline_is_ink_around_a_hollow_letter():
    stem = {"of": "I", "families": ["sans"], "n": 400}
    regular, outline = (drawn(style, **stem).images.mean(axis=0) for style in STYLES[::3])
    stroke, hollow = regular[6:10].mean(axis=0), outline[6:10].mean(axis=0)  # across the I
    inside, rim = [7, 8], [6, 9]
    assert stroke[inside].min() > stroke[rim].max()
    assert hollow[inside].max() < hollow[rim].min() and hollow[rim].min() > 0.0


@pytest.mark.parametrize("style", STYLES)
def test_an_image_is_nearest_to_the_mean_of_its_own_letter(style):
    centres = means(*drawn(style, 7800, seed=1))
    images, words = drawn(style, 780, seed=2)
    apart = ((images[:, None] - centres) ** 2).sum(axis=(2, 3))
    assert (apart.argmin(axis=1) // 3 == words[:, 0]).mean() > 0.95


def test_letters_are_the_same_in_other_sizes():
    small, large = drawn(n=300).images, drawn(n=300, size=32).images
    halved = large.reshape(300, 16, 2, 16, 2).mean(axis=(2, 4))
    assert large.shape == (300, 32, 32)
    assert np.abs(small - halved).mean() < 0.1


def test_wide_letters_and_tails_stay_inside_the_image():
    images = drawn("bold", 500, of="WMQJ").images
    border = np.concatenate([images[:, [0, -1]].reshape(-1), images[:, :, [0, -1]].reshape(-1)])
    assert (border > 0.0).mean() < 0.01


# ---------------------------------------------------------------- masters, maps, processors


def test_an_image_is_its_master_seen_through_its_map():
    rng = np.random.default_rng(5)
    stack = rng.uniform(-1.0, 1.0, (3, 41, 41)).astype(np.float32)
    glyph, maps = np.array([2, 0]), glyphs._maps(rng, 2)
    images = glyphs._mapped(stack, glyph, maps, 9)
    for image, i, A in zip(images, glyph, maps):
        for row in range(9):
            for column in range(9):
                place = [(column + 0.5) / 9 - 0.5, (row + 0.5) / 9 - 0.5, 1.0]  # (x, y, 1)
                u, v = (A @ place) * 4 * 9 + 20.0  # in pixels of the master, around its middle
                assert image[row, column] == pytest.approx(bilinear(stack[i], u, v), abs=1e-4)


def bilinear(master, u, v):
    """Return the master at (u, v), within its border."""
    u, v = (min(max(x, 0.0), len(master) - 1.001) for x in (u, v))
    (left, a), (top, b) = divmod(u, 1.0), divmod(v, 1.0)
    square = master[int(top) : int(top) + 2, int(left) : int(left) + 2]
    return np.array([1.0 - b, b]) @ square @ np.array([1.0 - a, a])


def test_maps_turn_slant_and_scale_around_the_identity():
    maps = glyphs._maps(np.random.default_rng(6), 4000)
    A, shift = maps[:, :, :2], maps[:, :, 2]
    assert np.abs(maps.mean(axis=0) - np.eye(2, 3)).max() < 0.01
    assert np.abs(shift).max() <= glyphs.SHIFT < 1.02 * np.abs(shift).max()
    turn = np.arctan2(A[:, 1, 0], A[:, 0, 0])
    largest = 2.0 * np.arctan(glyphs.TURN)
    assert np.abs(turn).max() <= largest < 1.02 * np.abs(turn).max()
    cos, sin = np.cos(turn), np.sin(turn)
    upright = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1) @ A  # [[1/w, slant], [0, 1]]/s
    assert np.abs(upright[:, 1, 0]).max() < 1e-12
    size, slant = 1.0 / upright[:, 1, 1], upright[:, 0, 1] / upright[:, 1, 1]
    assert np.abs(size - 1.0).max() <= glyphs.SIZE and np.abs(slant).max() <= glyphs.SLANT


def test_wide_strokes_are_within_the_radius_and_masters_keep_their_ink():
    ink = np.zeros((1, 21, 21), np.float32)
    ink[0, 10, 10] = 1.0
    rows, columns = np.nonzero(glyphs._widened(ink, 4.0)[0])
    every = [(i, j) for i in range(21) for j in range(21) if (i - 10) ** 2 + (j - 10) ** 2 <= 16]
    assert list(zip(rows.tolist(), columns.tolist())) == every
    averaged = glyphs._averaged(ink)
    assert averaged.shape == (1, 26, 26) and averaged.sum() == pytest.approx(1.0)
    assert np.array_equal(averaged, averaged[:, ::-1, ::-1])  # the middle stays in the middle


HASHED = """
import hashlib
import numpy as np
from lora_np.images.glyphs import STYLES, letters
drawn = [letters(np.random.default_rng(0), 300, style).images for style in STYLES]
print(hashlib.sha256(np.stack(drawn).tobytes()).hexdigest())
"""


def test_every_processor_draws_the_same_bits():
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    fast = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(fast), "OPENBLAS_CORETYPE": "Prescott"}
    hashes = [
        subprocess.run(
            [sys.executable, "-c", HASHED],
            env={**os.environ, **settings},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for settings in ({}, plain)
    ]
    assert len(hashes[0]) == 65 and hashes[0] == hashes[1]


# ------------------------------------------------------------------------------- prompts


def test_prompts_and_words_are_inverses():
    for letter in range(NO_LETTER + 1):
        for family in range(NO_FAMILY + 1):
            assert words_of(prompt_of(letter, family)) == (letter, family)
    assert words_of("R serif") == words_of("serif R") == (17, 1)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("serfi R", "word 'serfi' is unknown: did you mean serif?"),
        ("gothic", "word 'gothic' is unknown: expected one of sans, serif, mono"),
        ("r", "letter 'r' is unknown: did you mean R?"),
        ("sans Ä", "letter 'Ä' is unknown: did you mean A?"),
        ("7", "letter '7' is unknown: expected one of A to Z"),
        ("A B", "names two of a kind"),
        ("sans mono A", "names two of a kind"),
        ("bold A", "'bold' is a style: a style is an adapter, not a word of a prompt"),
    ],
)
def test_a_wrong_prompt_names_the_word_and_the_nearest_one(prompt, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        words_of(prompt)


def test_a_prompt_of_indices_that_do_not_exist_is_refused():
    with pytest.raises(ValueError, match="letter 27 and family 0, expected 0 to 26 and 0 to 3"):
        prompt_of(27, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"style": "blod"}, "style 'blod' is unknown: did you mean bold?"),
        ({"families": ["seriff"]}, "family 'seriff' is unknown: did you mean serif?"),
        ({"of": "AbC"}, "letter 'b' is unknown: did you mean B?"),
        ({"of": ""}, "of = '', expected one or more, each of them once"),
        ({"of": "AAB"}, "of = 'AAB', expected one or more, each of them once"),
        ({"n": 0}, "n = 0 and size = 16, expected at least 1 and 8 pixels"),
        ({"size": 7}, "n = 780 and size = 7, expected at least 1 and 8 pixels"),
    ],
)
def test_a_wrong_request_for_letters_is_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        drawn(**options)


# -------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((16, 16)), r"images have shape \(16, 16\), expected \(n, 16, 16\) with n > 0"),
        (np.zeros((2, 16, 8)), r"shape \(2, 16, 8\), expected \(n, 16, 16\)"),
        (np.zeros((2, 8, 8)), r"shape \(2, 8, 8\), expected \(n, 16, 16\)"),
        (np.zeros((0, 16, 16)), "with n > 0"),
        (np.full((2, 16, 16), np.nan), r"images hold nan, expected -1 \(paper\) to 1 \(ink\)"),
        (np.full((2, 16, 16), 1.01), "images reach from 1.01 to 1.01"),
        (np.full((2, 16, 16), -np.inf), "images reach from -inf to -inf"),
        (np.full((2, 16, 16), 1j), "images have dtype complex128, expected real numbers"),
    ],
)
def test_what_is_not_an_image_is_refused_with_the_reason(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(images, 16)


# --------------------------------------------------------------------------------- fonts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with copies of the fonts, of which a test may remove some."""
    for path in glyphs._folder().glob("DejaVu*.ttf"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(glyphs, "_folder", lambda: Path(tmp_path))
    return tmp_path


def test_a_missing_font_is_named_once_and_the_other_families_go_on(folder):
    (folder / "DejaVuSerif-Bold.ttf").unlink()
    with pytest.warns(RuntimeWarning, match=r"DejaVuSerif-Bold.ttf is missing: no bold serif"):
        words = drawn("bold").words
    assert set(words[:, 1]) == {FAMILIES.index("sans"), FAMILIES.index("mono")}
    assert set(drawn("bold").words[:, 1]) == {0, 2}  # without a second warning
    assert set(drawn("regular").words[:, 1]) == {0, 1, 2}


def test_without_any_font_the_error_names_the_folder(folder):
    for path in folder.glob("*.ttf"):
        path.unlink()
    with (
        pytest.warns(RuntimeWarning, match="is missing"),
        pytest.raises(FileNotFoundError, match="holds no font of sans: install matplotlib again"),
    ):
        drawn(families=["sans"])
