"""Every picture: it returns its Axes, writes only to a path, draws where it is told.

The pictures are found by walking the modules; each is drawn from the results that the gallery
keeps, or from planted ones. A picture without an entry here fails.
"""

import importlib
import inspect
import re
from functools import cache

import numpy as np
import pytest
from matplotlib import pyplot, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from lora_np import plots, spectrum
from lora_np.adapters import picture as ranks
from lora_np.adapters.ranks import Analysis, ModuleRanks
from lora_np.experiments.compare import picture as compare
from lora_np.experiments.dylora.picture import plot_dylora
from lora_np.experiments.grid import picture as grid
from lora_np.experiments.intrinsic.picture import plot_intrinsic
from lora_np.experiments.paper.picture import plot_similarity
from lora_np.experiments.personal import Matrix
from lora_np.experiments.personal.picture import plot_matrix
from lora_np.experiments.precision.picture import plot_precision
from lora_np.experiments.rank_sweep import picture as sweep
from lora_np.experiments.regret import picture as regret
from lora_np.experiments.serving.picture import plot_serving
from lora_np.experiments.small_data.picture import plot_small_data
from lora_np.experiments.sql.picture import plot_sql
from lora_np.images import picture as images
from lora_np.plots import AMBER, BLUE, GREEN, INK, ORANGE, PURPLE, SKY, contrast
from lora_np.rank import picture as rank
from lora_np.rank.planted import Recovery
from tests.docs import gallery_page as gallery
from tests.experiments.planted_serving import planted as served
from tests.experiments.test_contenders import MORE, STUDIES
from tests.experiments.test_contenders import planted as planted_study
from tests.experiments.test_intrinsic import made_up
from tests.images.planted_report import planted as letters
from tests.source import FILES, PACKAGE
from tests.test_plots import results as planted_sweep

WHITE, DARK = "#ffffff", "#14181e"  # the grounds of pages


def analysis(r=4, names=("h.0.q_proj", "h.0.up_proj", "h.1.q_proj")):
    rng = np.random.default_rng(0)
    pairs = (spectrum((rng.standard_normal((8, r)), rng.standard_normal((r, 6)))) for _ in names)
    return Analysis({}, [ModuleRanks.of_spectrum(n, s, r) for n, s in zip(names, pairs)])


def study(name):
    quick, make = STUDIES[name]
    losses = iter(np.linspace(2.0, 2.5, 10_000))
    return planted_study(make(quick), lambda *_: next(losses), seeds=2, more=MORE[name])


def matrix():
    losses = np.arange(24.0).reshape(3, 2, 4)
    return Matrix(("base", "a/x", "b/x"), ("a/x", "b/x"), losses, losses < 2)


KEPT = gallery.load_json(gallery.RUNS)
ROWS = [Recovery("bulk edge", k, ratio, k, k, k, 1.0) for k in (2, 3) for ratio in (1.0, 2.0)]
SIMILAR = {
    "ranks": (2, 2), "d": 8, "seeds": 2, "control": [[0.1, 0.2], [0.2, 0.3]],
    "panels": {f"h.0.{kind}": [[0.5, 0.6], [0.6, 0.7]] for kind in ("q_proj", "v_proj")},
}  # fmt: skip


def rivals():
    return gallery.load_json(gallery.DOCS / "rivals.json")["results"]


def sql():
    return gallery.load_json(gallery.DOCS / "text_to_sql.json")["results"]


PICTURES = {  # by function: its data, and its number of panels on given Axes
    ranks.plot_rank_map: (analysis, 1),
    ranks.plot_spectra: (analysis, 1),
    rank.plot_recovery: (lambda: ROWS, 4),
    rank.plot_singular_values: (lambda: spectrum(np.diag([3.0, 2.0, 1.0])), 1),
    sweep.plot_rank_vs_loss: (planted_sweep, 1),
    sweep.plot_spectrum: (planted_sweep, 4),
    plot_similarity: (lambda: SIMILAR, 4),
    plot_precision: (lambda: KEPT["precision"], 3),
    plot_intrinsic: (made_up, 2),
    compare.plot_losses: (rivals, 1),
    compare.plot_latency: (rivals, 1),
    plot_matrix: (matrix, 2),
    plot_serving: (served, 1),
    plot_dylora: (lambda: KEPT["dylora"], 1),
    plot_sql: (sql, 1),
    grid.plot_grid: (lambda: study("grid"), 2),
    grid.plot_rates: (lambda: study("grid"), 2),
    plot_small_data: (lambda: study("small-data"), 2),
    regret.plot_rates: (lambda: study("regret"), 1),
    regret.plot_layers: (lambda: study("regret"), 1),
    regret.plot_capacity: (lambda: study("regret"), 1),
    regret.plot_batch: (lambda: study("regret"), 1),
    images.plot_steps: (letters, 2),
    images.plot_weight: (letters, 2),
    images.plot_pairs: (letters, 2),
}
OF_A_RUN = {images.plot_letters}  # its models, too: drawn in tests/images
every_picture = pytest.mark.parametrize(
    "plot", PICTURES, ids=lambda f: f"{f.__module__.split('.')[-2]}.{f.__name__}"
)


@pytest.fixture(autouse=True)
def closed():
    """Close what pyplot opened."""
    yield
    pyplot.close("all")


def in_the_library():
    """Return every public function of the library whose name begins with plot_."""
    found = set()
    for path in FILES:
        if re.search("^def plot_", path.read_text(encoding="utf-8"), re.M):
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            content = vars(importlib.import_module(name))
            found |= {f for name, f in content.items() if name.startswith("plot_")}
    return found


def test_every_picture_is_tried_here():
    assert in_the_library() == {*PICTURES, *OF_A_RUN}


@pytest.mark.parametrize("plot", [*PICTURES, *OF_A_RUN], ids=lambda f: f.__name__)
def test_a_path_and_axes_may_be_given_and_need_not(plot):
    parameters = inspect.signature(plot).parameters
    assert parameters["path"].default is None and parameters["ax"].default is None
    assert parameters["ax"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(parameters).index("path") == len(parameters) - 2  # after the data, as before


def axes_of(found):
    return [found] if isinstance(found, Axes) else found


@cache
def shown(plot):
    """Return the Axes of a picture without a path, and what pyplot has open."""
    with rc_context({"axes.facecolor": "white", "text.color": "black", "xtick.color": "black"}):
        found = plot(PICTURES[plot][0]())
    opened = pyplot.get_fignums()
    pyplot.close("all")
    return found, opened


@every_picture
def test_a_picture_returns_its_axes_and_writes_nothing_without_a_path(plot, monkeypatch):
    monkeypatch.setattr(plots, "save", None)  # calling it would be an error
    (found, opened), panels = shown(plot), PICTURES[plot][1]
    assert isinstance(found, Axes if panels == 1 else list)
    assert all(isinstance(axis, Axes) for axis in axes_of(found))
    assert len(axes_of(found)) == panels
    assert opened == [axes_of(found)[0].figure.number]  # so that a notebook shows it


@every_picture
def test_a_picture_draws_on_the_axes_that_it_is_given(plot):
    data, panels = PICTURES[plot]
    with rc_context({"text.color": "red"}):  # the caller's style stays
        figure = Figure()
        given = list(figure.subplots(1, panels, squeeze=False).flat)
        found = plot(data(), ax=given[0] if panels == 1 else given)
    assert axes_of(found) == given
    assert any(axis.lines or axis.images or axis.patches for axis in given)
    assert not figure.get_suptitle() and not figure.legends and pyplot.get_fignums() == []


@every_picture
def test_axes_of_another_number_are_one_line(plot):
    data, panels = PICTURES[plot]
    with pytest.raises(ValueError, match=r"^ax must be .+ matplotlib Axes, .+ not .+$"):
        plot(data(), ax=[Figure().add_axes((0, 0, 1, 1))] * (panels + 1))


@pytest.mark.parametrize("bad", ["ax", 3, Figure(), [Figure()], []])
def test_what_is_no_axes_is_one_line(bad):
    with pytest.raises(ValueError, match=r"^ax must be one matplotlib Axes, .+ not .+$"):
        spectrum(np.eye(3)).plot(ax=bad)


def test_a_path_writes_the_figure_of_given_axes_too(tmp_path):
    axis = Figure().subplots()
    assert rank.plot_singular_values(spectrum(np.eye(3)), tmp_path / "a.png", ax=axis) is axis
    assert (tmp_path / "a.png").stat().st_size > 1000


# --- white pages, dark pages, print --------------------------------------------------------------


def inks(figure):
    """Yield the colours of the texts and frames of a figure, but of texts in cells of maps."""
    figure.set_layout_engine("none")  # which takes longest
    figure.draw_without_rendering()
    cells = {id(text) for axis in figure.axes if axis.images for text in axis.texts}
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and id(text) not in cells:
            yield text.get_color()
    for axis in figure.axes:
        yield from (spine.get_edgecolor() for spine in axis.spines.values())


@every_picture
def test_a_picture_has_no_ground_and_one_ink(plot):
    figure = axes_of(shown(plot)[0])[0].figure
    assert figure.get_facecolor()[3] == 0 and all(a.get_facecolor()[3] == 0 for a in figure.axes)
    assert {to_rgba(colour) for colour in inks(figure)} == {to_rgba(INK)}


@every_picture
def test_curves_stand_out_from_white_and_from_dark_pages(plot):
    for axis in axes_of(shown(plot)[0]):
        for line in axis.lines:
            assert contrast(line.get_color(), WHITE) > 3 and contrast(line.get_color(), DARK) > 3


def test_the_ink_is_the_grey_in_the_middle_and_the_colours_are_told_apart():
    assert contrast(INK, WHITE) > 4.2 and contrast(INK, DARK) > 4.2
    assert abs(contrast(INK, WHITE) - contrast(INK, DARK)) < 0.1  # no grey does better on both
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
    assert min(contrast(c, ground) for c in colours for ground in (WHITE, DARK)) > 3
    assert len(set(plots.LOOKS)) == 12 and len({marker for _, marker, _ in plots.LOOKS}) == 12


@pytest.mark.parametrize("file", sorted({*gallery.files()} - gallery.OPAQUE))
def test_the_pictures_of_the_pages_have_no_ground(file):
    from PIL import Image

    with Image.open(gallery.DOCS / file) as image:
        assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0
        low, high = image.getextrema()[3]
    assert (low, high) == (0, 255)


@pytest.mark.parametrize("colour, expected", [("white", "#000000"), ("black", "#ffffff")])
def test_text_in_a_cell_stands_out_from_it(colour, expected):
    from matplotlib.colors import ListedColormap, to_hex

    axis = Figure().subplots()
    image = axis.imshow([[0.0, np.nan]], cmap=ListedColormap([colour]))
    plots.write_cells(axis, image, {(0, 0): "1", (0, 1): "2"})
    assert [to_hex(text.get_color()) for text in axis.texts] == [expected, INK.lower()]


# --- ranks.png -----------------------------------------------------------------------------------


def test_the_map_of_ranks_goes_to_the_adapters_own_r_in_the_order_of_the_model():
    names = [f"model.layers.{i}.{k}_proj" for i in (0, 1) for k in ("down", "k", "o", "q", "up")]
    axis = analysis(5, names).plot()
    (image,) = axis.images
    assert image.get_clim() == (0, 5) and "r = 5" in axis.figure.axes[-1].get_ylabel()
    kinds = [label.get_text() for label in axis.get_xticklabels()]
    assert kinds == [f"{kind}_proj" for kind in ("q", "k", "o", "up", "down")]
    assert len(axis.texts) == 10
    spectra = axis.figure.axes[1]
    assert [line.get_label() for line in spectra.lines] == kinds
    assert spectra.get_xticks()[0] == 1


def boxes(figure):
    """The ends of all titles and of the panel of the spectra, as shares of the figure."""
    figure.draw_without_rendering()
    drawn = [axis.title.get_window_extent() for axis in figure.axes]
    shares = [box.transformed(figure.transFigure.inverted()) for box in drawn]
    return shares, figure.axes[1].get_position()


def test_long_names_cut_no_title_and_many_layers_do_not_draw_the_spectra_out():
    names = [f"h.{i}.{100 * 'x'}_{k}" for i in (0, 1) for k in "qkv"]
    titles, _ = boxes(analysis(4, names).plot().figure)
    assert all(0 <= box.x0 <= box.x1 <= 1 for box in titles)
    figure = analysis(4, [f"h.{i}.q_proj" for i in range(100)]).plot().figure
    _, spectra = boxes(figure)
    width, height = figure.get_size_inches()
    assert spectra.height * height < 1.1 * spectra.width * width and spectra.y1 > 0.9


def test_the_map_says_where_the_modules_of_an_adapter_differ_in_r():
    one, two = (analysis(r, [f"h.{r}.q_proj"]).modules[0] for r in (2, 5))
    figure = Analysis({}, [one, two]).plot().figure
    assert figure.axes[-1].get_ylabel() == "rank (the adapter has r up to 5)"


@pytest.mark.parametrize(
    "names",
    [
        ("self_attn_q_proj", "self_attn_k_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2"),
        ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        ("to_q", "to_k", "to_v", "to_out"),
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    ],
)
def test_modules_of_other_models_stand_in_their_order_too(names):
    shuffled = [f"h.0.{name}" for name in sorted(names)]
    assert ranks.kinds_of(analysis(2, shuffled)) == list(names)


# --- bad input -----------------------------------------------------------------------------------

EMPTY = {
    "no module": (ranks.plot_rank_map, Analysis({}, [])),
    "no module to draw": (ranks.plot_spectra, Analysis({}, [])),
    "no row": (rank.plot_recovery, []),
    "no spectrum": (sweep.plot_spectrum, {"runs": []}),
    "no matrix": (plot_similarity, SIMILAR | {"panels": {}}),
    "matrix is empty": (plot_matrix, Matrix(("base",), (), np.ones((1, 0, 4)), np.ones((1, 0, 4)))),
    "nothing to draw": (plot_serving, {"measured": {}, "settings": {}}),
}


@pytest.mark.parametrize("message", EMPTY)
def test_a_plot_of_nothing_is_one_line_and_opens_no_figure(message):
    plot, nothing = EMPTY[message]
    with pytest.raises(ValueError, match=message) as caught:
        plot(nothing)
    assert str(caught.value).count("\n") == 0 and pyplot.get_fignums() == []


NAN = float("nan")
BARE = {
    "one rank": (sweep.plot_rank_vs_loss, lambda: planted_sweep(losses={4: [1.0], None: [0.5]})),
    "no rank": (sweep.plot_rank_vs_loss, lambda: planted_sweep(losses={None: [0.5]})),
    "no run": (sweep.plot_rank_vs_loss, lambda: planted_sweep() | {"runs": []}),
    "nan": (sweep.plot_rank_vs_loss, lambda: planted_sweep(losses={1: [NAN, 2.0], None: [NAN]})),
    "linear, no floor": (
        sweep.plot_rank_vs_loss,
        lambda: planted_sweep("linear") | {"floors": [1.0, 0.0]},
    ),
    "nan values": (
        sweep.plot_spectrum,
        lambda: {"spectrum": [{"name": "W", "singular_values": [NAN, 0.0]}]},
    ),
    "zeros": (rank.plot_singular_values, lambda: spectrum(np.zeros((3, 2)))),
    "one value": (rank.plot_singular_values, lambda: spectrum(np.ones((1, 1)))),
    "r = 1": (ranks.plot_rank_map, lambda: analysis(1)),
    "zero change": (
        ranks.plot_rank_map,
        lambda: Analysis({}, [ModuleRanks.of_spectrum("q", spectrum(np.zeros((2, 2))))]),
    ),
    "recovery of nan": (
        rank.plot_recovery,
        lambda: [Recovery("bulk edge", 2, 1.0, NAN, NAN, NAN, 0.0)],
    ),
}


@pytest.mark.parametrize("what", BARE)
def test_little_is_drawn_with_what_there_is(what):
    plot, data = BARE[what]
    (axis, *_) = axes_of(plot(data()))
    axis.figure.set_layout_engine("none")
    axis.figure.draw_without_rendering()  # a warning would be an error
    assert axis.get_xlabel() or axis.get_title()


def test_losses_that_are_nan_count_as_diverged():
    axis = sweep.plot_rank_vs_loss(planted_sweep(losses={1: [NAN, 2.0], 4: [1.0, 1.0]}))
    assert axis.get_title().endswith("1 run diverged, left out")
    assert axis.containers[0].lines[0].get_ydata().tolist() == [2.0, 1.0]


def test_one_rank_stands_in_the_middle_of_its_axis():
    axis = sweep.plot_rank_vs_loss(planted_sweep(losses={4: [1.0], None: [0.5]}))
    assert axis.get_xlim() == (2.0, 8.0) and axis.get_xticks().tolist() == [4]
