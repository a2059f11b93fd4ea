"""lora_np.plots: what the figures show, read back from them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import matplotlib
import numpy as np
import pytest

from lora_np import plots
from lora_np.experiments.rank_sweep import picture
from lora_np.tables import rounded
from tests.compare import PNG
from tests.source import PACKAGE

TOL = 1e-12  # float64, relative
LOSSES = {1: [2.0, 2.2, 2.1], 4: [1.5, 1.7, 1.9], 16: [1.2, 1.2, 1.2], None: [1.0, 1.1, 1.2]}
PARAMETERS = {1: 1280, 4: 5120, 16: 20480, None: 123456}


def results(task="text", losses=LOSSES, base=3.0):
    """A sweep's results with these losses by rank (None: full), one a seed."""
    runs = [
        {
            "method": "full" if rank is None else "lora",
            "rank": rank,
            "seed": seed,
            "trainable_parameters": None if loss is None else PARAMETERS[rank],
            "test_loss": loss,
        }
        for rank, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    found = {
        "settings": {
            "task": task,
            "seeds": max(map(len, losses.values())),
            "ranks": [r for r in losses if r is not None],
        },
        "base_test_loss": base,
        "runs": runs,
        "spectrum": [
            change("h.0.attn.q_proj.W", [3.0, 4.0]),
            change("h.0.mlp.up_proj.W", [2.0, 1.0, 0.5, 0.1]),
            change("h.1.attn.q_proj.W", [1.0, 1.0, 1.0]),
        ],
    }
    if task == "linear":
        found |= {"floors": [4.0, 2.0, 1.0, 0.5, 0.0], "planted_singular_values": [2.0, 1.0, 0.5]}
        found["spectrum"] = [change("W", [2.0, 1.0, 0.5])]
    return found


def change(name, sigma):
    return {"name": name, "singular_values": sigma}


@pytest.fixture
def figure(monkeypatch):
    """Return what a plot would save."""

    def draw(plot, content):
        caught = []
        monkeypatch.setattr(plots, "save", lambda figure, path: caught.append(figure))
        plot(content, "unused.png")
        return caught[0]

    return draw


@pytest.fixture
def curve(figure):
    return lambda content: figure(picture.plot_rank_vs_loss, content).axes[0]


@pytest.fixture
def spectra(figure):
    return lambda content: figure(picture.plot_spectrum, content).axes


def line(axis, label):
    """The one line whose label starts so."""
    (found,) = [a for a in axis.get_lines() if str(a.get_label()).startswith(label)]
    return found


def points(axis):
    """The ranks and the means, shape (2, ranks)."""
    (container,) = axis.containers
    return np.array(container.lines[0].get_data(), dtype=float)


def bars(axis):
    """The error bars' lower and upper ends, shape (ranks, 2)."""
    (container,) = axis.containers
    segments = container.lines[2][0].get_segments()
    ends = [segment.reshape(-1, 2)[:, 1] for segment in segments]
    return np.array(ends) if all(map(len, ends)) else ends


def test_points_are_means_and_error_bars_the_standard_deviation_over_seeds(curve):
    axis = curve(results())
    ranks, means = points(axis)
    np.testing.assert_array_equal(ranks, [1, 4, 16])
    np.testing.assert_allclose(means, [2.1, 1.7, 1.2], rtol=TOL)
    np.testing.assert_allclose(np.diff(bars(axis))[:, 0] / 2, [0.1, 0.2, 0.0], atol=TOL)
    np.testing.assert_allclose(bars(axis).mean(axis=1), means, rtol=TOL)


def test_the_base_and_full_fine_tuning_are_lines_at_their_losses(curve):
    axis = curve(results())
    assert set(line(axis, "base, not adapted: 3.000").get_ydata()) == {3.0}
    np.testing.assert_allclose(line(axis, "full fine-tuning: 1.100").get_ydata(), 1.1, rtol=TOL)
    (band,) = axis.patches  # full's standard deviation
    np.testing.assert_allclose(band.get_extents().transformed(axis.transData.inverted()).y0, 1.0)
    np.testing.assert_allclose(band.get_extents().transformed(axis.transData.inverted()).y1, 1.2)


def test_the_rank_axis_has_a_tick_at_every_rank_and_names_its_units(curve):
    axis = curve(results())
    assert axis.get_xscale() == "log" and axis.get_yscale() == "linear"
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "4", "16"]
    assert axis.get_xlabel() == "rank r" and axis.get_ylabel() == "test loss [nats a byte]"
    assert axis.get_title() == "Rank versus loss, text task, 3 seeds"


def test_the_second_axis_has_the_trainable_parameters(curve):
    (top,) = curve(results()).child_axes
    assert list(top.get_xticks()) == [1, 4, 16]
    assert [t.get_text() for t in top.get_xticklabels()] == ["1.28k", "5.12k", "20.5k"]
    assert top.get_xlabel() == "trainable parameters (full: 123k)"


@pytest.mark.parametrize(
    "number, said",
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (21_240_576, "21.2M"),
        (999_499_999, "999M"),
        (6_738_415_616, "6.74G"),
    ],
)
def test_a_count_has_three_digits_and_its_unit(number, said):
    assert rounded(number) == said


@pytest.mark.parametrize("task", ["text", "llm"])
def test_ranks_that_a_base_far_above_presses_together_get_a_panel_of_their_own(figure, task):
    assert len(figure(picture.plot_rank_vs_loss, results(task, base=5.7)).axes) == 1
    left, right = figure(picture.plot_rank_vs_loss, results(task, base=5.9)).axes
    assert left.get_ylim()[1] > 5.9 and right.get_title() == "The same, without the base"
    low, high = right.get_ylim()
    assert low < 1.0 < bars(right).min() and bars(right).max() < high < 5.9  # 1.0: full's band
    np.testing.assert_array_equal(points(left), points(right))


def test_losses_that_are_all_equal_get_no_panel_of_their_own(figure):
    equal = results(losses={1: [1.0], 4: [1.0], None: [1.0]}, base=9.0)
    assert len(figure(picture.plot_rank_vs_loss, equal).axes) == 1


def test_runs_that_diverged_are_left_out(curve):
    losses = {1: [2.0, None, 2.2], 4: [None, None, None], 16: [1.2], None: [None]}
    axis = curve(results(losses=losses))
    ranks, means = points(axis)
    np.testing.assert_array_equal(ranks, [1, 16])
    np.testing.assert_allclose(means, [2.1, 1.2], rtol=TOL)
    (bar,) = [bar for bar in bars(axis) if len(bar)]  # rank 16 has one seed, and so no deviation
    np.testing.assert_allclose(np.diff(bar)[0] / 2, np.std([2.0, 2.2], ddof=1), atol=TOL)
    assert axis.get_title() == "Rank versus loss, text task, 3 seeds, 5 runs diverged, left out"
    assert [t.get_text() for t in axis.child_axes[0].get_xticklabels()] == ["1.28k", "20.5k"]
    assert not [a for a in axis.get_lines() if str(a.get_label()).startswith("full")]


def test_one_seed_has_no_bar_no_band_and_no_plural(curve):
    axis = curve(results(losses={1: [2.0], 4: [1.5], None: [1.0]}))
    assert axis.get_title() == "Rank versus loss, text task, 1 seed"
    (container,) = axis.containers
    assert not container.lines[2] and not axis.patches  # no bars, in the legend neither
    np.testing.assert_array_equal(points(axis), [[1, 4], [2.0, 1.5]])
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "LoRA" in labels and not any("s.d." in label for label in labels)
    axis = curve(results(losses={1: [2.0, None], None: [1.0, 1.0]}))
    assert axis.get_title().endswith("2 seeds, 1 run diverged, left out")


def test_the_linear_picture_shows_the_floor_on_a_log_scale(curve):
    axis = curve(results("linear"))
    floor = line(axis, "Eckart-Young floor")
    np.testing.assert_array_equal(floor.get_xdata(), [1, 2, 3])  # a floor of zero has no logarithm
    np.testing.assert_array_equal(floor.get_ydata(), [2.0, 1.0, 0.5])
    assert axis.get_yscale() == "log" and "population loss" in axis.get_ylabel()


def test_spectra_show_singular_values_and_the_share_of_energy(spectra):
    above, second, below, _ = spectra(results())
    assert (above.get_title(), second.get_title()) == ("block 0", "block 1")
    assert above.get_yscale() == "log" and above.get_xlabel() == "index i"
    assert "singular value" in above.get_ylabel() and "energy" in below.get_ylabel()
    np.testing.assert_array_equal(above.get_lines()[0].get_data(), [[1, 2], [3.0, 4.0]])
    np.testing.assert_array_equal(second.get_lines()[0].get_data(), [[1, 2, 3], [1.0, 1.0, 1.0]])
    curves = [np.array(a.get_ydata()) for a in below.get_lines()[:2]]
    np.testing.assert_allclose(curves[0], [9 / 25, 1.0], rtol=TOL)
    assert all(abs(c[-1] - 1.0) < TOL for c in curves)
    assert set(below.get_lines()[2].get_ydata()) == {0.9}


def test_the_index_counts_from_one(spectra):
    for axis in spectra(results()):
        assert axis.get_xticks()[0] == 1 and 0 < axis.get_xlim()[0] <= 1


def test_matrices_of_a_kind_look_the_same_in_every_block_and_have_one_entry_of_the_legend(spectra):
    above, second, *_ = spectra(results())

    def look(line):
        return line.get_color(), line.get_marker(), line.get_linestyle()

    (q0, up), (q1,) = (map(look, axis.get_lines()) for axis in (above, second))
    assert q0 == q1 and all(of_q != of_up for of_q, of_up in zip(q0, up))  # also in grey
    (legend,) = above.figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["q_proj", "up_proj"]


def test_the_linear_spectrum_shows_the_planted_one(spectra):
    above, below = spectra(results("linear"))
    np.testing.assert_array_equal(line(above, "planted").get_ydata(), [2.0, 1.0, 0.5])
    assert line(above, "planted").get_marker() == "x" and len(below.get_lines()) == 2


def test_a_change_of_zero_has_no_energy_and_no_error(spectra):
    still, moved = change("h.0.attn.q_proj.W", [0.0, 0.0]), change("h.0.mlp.up_proj.W", [1.0])
    _, below = spectra(results() | {"spectrum": [still, moved]})
    np.testing.assert_array_equal(below.get_lines()[0].get_ydata(), [0.0, 0.0])


@pytest.mark.parametrize("task", ["text", "linear"])
@pytest.mark.parametrize("plot", [picture.plot_rank_vs_loss, picture.plot_spectrum])
def test_the_png_is_written_and_not_blank(tmp_path, task, plot):
    from matplotlib.image import imread

    path = tmp_path / "picture.png"
    plot(results(task), path)
    assert path.read_bytes().startswith(PNG)
    image = imread(path)  # (height, width, 4)
    assert min(image.shape[:2]) > 500 and 0.01 < (image[..., 3] > 0.1).mean() < 0.9


def test_pictures_need_no_screen_and_leave_pyplot_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would be an error
    picture.plot_rank_vs_loss(results(), tmp_path / "a.png")
    picture.plot_spectrum(results(), tmp_path / "b.png")
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_a_backend_that_draws_at_once_still_does_after_the_first_picture(tmp_path):
    backend = "from matplotlib.backends.backend_agg import *\nimport matplotlib\n"
    backend += "matplotlib.interactive(True)\n"  # as a notebook's does when it is loaded
    (tmp_path / "eager.py").write_text(backend)
    program = "import matplotlib, numpy, lora_np\nlora_np.spectrum(numpy.eye(3)).plot()\n"
    program += "assert matplotlib.is_interactive(), 'the next picture would not be shown'\n"
    places = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    environment = {**os.environ, "MPLBACKEND": "module://eager", "PYTHONPATH": places}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_pictures_of_several_threads_leave_matplotlibs_settings_alone(monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: None)
    before, begun = matplotlib.rcParams["text.color"], (Event(), Event())
    ended = Event()

    def draw(mine, wait):
        with plots.drawing("unused.png", None, (2, 2)):
            begun[mine].set()
            wait(0.5)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(draw, 0, begun[1].wait)  # until the second draws too, if it may
        begun[0].wait()
        second = threads.submit(draw, 1, ended.wait)
        first.result()
        ended.set()
        second.result()
    assert matplotlib.rcParams["text.color"] == before
