"""The pictures of the report on images: what they draw of planted scores, and of a tiny run."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from lora_np import plots
from lora_np.images import words_of
from lora_np.images.picture import (
    pictures,
    plot_letters,
    plot_pairs,
    plot_steps,
    plot_weight,
    real,
    sheet_rows,
)
from lora_np.plots import BLUE, ORANGE
from tests.images.planted_report import FLOOR, planted


@pytest.fixture
def drawn(monkeypatch):
    """Return what calls a function of a picture and returns the figure, unpainted."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))

    def draw(plot, *arguments):
        plot(*arguments, "picture.png")
        return figures[-1]

    return draw


def curves(axis):
    """Return the curves of an axis by label and dash: their points, and the ends of the bars."""
    found = {}
    for bars in axis.containers:
        line, _, (ends,) = bars.lines
        (x, y), dash = line.get_data(), line.get_linestyle()
        spans = [segment[:, 1].tolist() for segment in ends.get_segments()]
        found[to_hex(line.get_color()).upper(), dash] = dict(zip(x, zip(y, spans)))
    return found


def test_quality_against_steps_shows_means_and_ranges(drawn):
    left, right = drawn(plot_steps, planted()).axes
    assert left.get_yscale() == right.get_yscale() == "log"
    ddim = curves(left)[BLUE, "-"]
    assert list(ddim) == [1, 2, 4, 8, 20, 50]
    mean, span = ddim[20]
    assert mean == pytest.approx(4.4 * 1.01) and span == pytest.approx([4.4, 4.4 * 1.02])
    assert len(curves(left)) == 5
    seen, unseen = (curves(right)[ORANGE, dash] for dash in ("-", "--"))
    assert list(seen) == list(unseen) == [1, 2, 4, 8]
    assert seen[2][0] == pytest.approx(7.07)  # of the chosen pair, and not of (1, 1)
    floors = [line for line in left.lines if len(set(line.get_ydata())) == 1]
    assert [line.get_ydata()[0] for line in floors] == [FLOOR]


def test_every_curve_has_its_label_and_its_marker(drawn):
    for axis in drawn(plot_steps, planted()).axes:
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert len(set(labels)) == len(labels) == 6
        assert sum("control" in label for label in labels) == 1
        looks = {(bars.lines[0].get_marker(), bars.lines[0].get_linestyle()) for bars in
                 axis.containers}  # fmt: skip
        assert len(looks) == len(axis.containers)  # also in grey


def test_one_seed_has_no_bars_and_says_so(drawn):
    figure = drawn(plot_steps, planted(seeds=1))
    assert figure.get_suptitle().endswith("one seed")
    assert all(low == high for _, (low, high) in curves(figure.axes[0])[BLUE, "-"].values())


def test_the_weight_moves_fd_and_the_share_of_the_style(drawn):
    left, right = drawn(plot_weight, planted()).axes
    fd = {part: curves(left)[look] for part, look in (("seen", (BLUE, "-")),)}["seen"]
    assert min(fd, key=lambda weight: fd[weight][0]) == 1.0
    shares = curves(right)[ORANGE, "--"]
    assert [shares[weight][0] for weight in (0.0, 0.5, 1.5)] == [0.0, 0.5, 1.0]
    assert len(right.get_legend().get_texts()) == 2


def test_the_heat_map_writes_every_ratio_and_frames_the_choice(drawn):
    seen, unseen = drawn(plot_pairs, planted()).axes
    digits = {text.get_position(): text.get_text() for text in seen.texts}
    assert len(digits) == 6 and digits[1, 1] == "0.14"  # at x = 0.6, of LCM-LoRA, and y = 1
    assert {text.get_position(): text.get_text() for text in unseen.texts}[1, 1] == "0.70"
    for axis in (seen, unseen):
        (frame,) = axis.patches
        x, y = frame.get_xy()
        assert (round(x), round(y)) == (1, 1)
        colours = {to_hex(text.get_color()) for text in axis.texts}
        assert colours == {"#000000", "#ffffff"}  # each on a ground that it can be read on


def test_pictures_cope_with_what_was_not_measured(drawn):
    bare = {**planted(), "done": {}}
    for plot in (plot_steps, plot_weight, plot_pairs):
        assert len(drawn(plot, bare).axes) == 2


def test_real_letters_are_those_that_were_asked_for():
    words = np.array([words_of("serif R"), words_of("sans A"), words_of("serif R")])
    images = real(words, "bold", 16)
    assert images.shape == (3, 16, 16)
    assert np.array_equal(images[0], images[2]) and not np.array_equal(images[0], images[1])


def test_the_sheet_has_a_row_for_every_way_to_draw(stopped_run):
    out, _, results, _ = stopped_run
    rows = dict(sheet_rows(results, out))
    assert len(rows) == 15 and all(images.shape == (13, 16, 16) for images in rows.values())
    labels = ["LCM-LoRA, 1 step", "LCM-LoRA, 2 steps", "the same, all weights"]
    labels += ["bold, letters seen", "bold, letters never shown"]
    labels += [f"outline, {model}, letters never shown" for model in ("MLP", "refiner")]
    assert len({rows[label].tobytes() for label in labels}) == len(labels)
    again = dict(sheet_rows(results, out))
    assert all(np.array_equal(images, again[label]) for label, images in rows.items())


def test_the_files_of_a_run_are_pictures(tmp_path):
    writers = pictures(planted(), tmp_path)
    assert len(writers) == 4 and all(name.endswith(".png") for name in writers)
    writers["images_pairs.png"](tmp_path / "pairs.png")
    assert imread(tmp_path / "pairs.png").ndim == 3


def test_the_letters_are_drawn_dark_on_light(stopped_run, drawn):
    out, _, results, _ = stopped_run
    axes = drawn(plot_letters, results, out).axes
    strip = axes[0].images[0].get_array()
    assert strip.shape == (16, 13 * 18)
    assert axes[0].images[0].cmap(axes[0].images[0].norm(-1.0))[:3] == (1.0, 1.0, 1.0)
    assert (strip[:, [0, -1]] == -1.0).all()
    assert axes[0].get_ylabel() == "real" and len(axes) == 15
