"""``python -m tests.docs.gallery_page [--run NAME=FOLDER ...] [--draw]``: fill docs/gallery.md.

The page shows every picture of docs/ with the line that makes it. ``--run sweep=FOLDER`` keeps
what the pictures of a finished run need in docs/pictures.json: NAME is a command of lora-np, FOLDER
what its ``--out`` was; or NAME is adapter, and FOLDER that of an adapter. ``--draw`` draws pictures
anew, from docs/*.json and without a run. Tests hold that the page has every picture, that its lines
can be run, and that the pictures have no ground.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np import analyse_adapter, spectrum
from lora_np.adapters.picture import plot_rank_map
from lora_np.adapters.ranks import Analysis, ModuleRanks
from lora_np.experiments.compare.picture import plot_latency, plot_losses
from lora_np.experiments.dylora.picture import plot_dylora
from lora_np.experiments.grid import picture as grid
from lora_np.experiments.intrinsic.picture import plot_intrinsic
from lora_np.experiments.paper.picture import plot_similarity
from lora_np.experiments.personal import matrix_of
from lora_np.experiments.personal.picture import plot_matrix
from lora_np.experiments.precision.picture import plot_precision
from lora_np.experiments.rank_sweep.picture import plot_rank_vs_loss, plot_spectrum
from lora_np.experiments.regret import picture as regret
from lora_np.experiments.serving.picture import plot_serving
from lora_np.experiments.small_data.picture import plot_small_data
from lora_np.experiments.sql.picture import plot_sql
from lora_np.files import load_json
from lora_np.images import picture as images
from lora_np.rank import planted_matrix, recovery
from lora_np.rank.picture import plot_recovery, plot_singular_values
from lora_np.rank.spectrum import Spectrum
from tests.benchmarks import report
from tests.benchmarks.measure import Result
from tests.benchmarks.page import row_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RUNS = DOCS / "gallery.md", DOCS / "pictures.json"
PLACE = re.compile(r"(<!-- pictures -->\n).*?(<!-- end -->)", re.DOTALL)
HELD = {"paper": "paper.json", "precision": "precision.json"}  # otherwise results.json
SPECTRUM = ("name", "shape", "r", "singular_values")  # what is kept of an adapter's module
OPAQUE = {  # drawn by earlier runs, on white; the sheet of letters needs the models of its run
    "images_letters.png",
    "intrinsic_dimension.png",
    *(f"studies_{name}.png" for name in ("grid", "rates", "small_data")),
    *(f"studies_regret_{name}.png" for name in ("rates", "layers", "capacity", "batch")),
}


class Shown(NamedTuple):
    """A picture of the gallery: its file, the page that explains it, the line that makes it."""

    file: str
    page: str
    line: str


IMAGES = "lora-np images report --out runs/images"
GALLERY = {
    "One matrix, one adapter": (
        Shown("singular_values.png", "which_rank.md", "spectrum(W).plot()"),
        Shown("ranks.png", "adapters.md", "lora-np analyse mine"),
        Shown("recovery.png", "which_rank.md", 'plot_recovery(rows, "recovery.png")'),
    ),
    "Loss and rank": (
        Shown("rank_vs_loss.png", "rank_vs_loss.md", "lora-np sweep"),
        Shown("spectrum.png", "rank_vs_loss.md", "lora-np sweep"),
        Shown("rank_on_smollm2.png", "rank_on_smollm2.md", "lora-np sweep --model smollm2"),
        Shown("intrinsic_dimension.png", "intrinsic_dimension.md", "lora-np intrinsic"),
        Shown("dylora.png", "dylora.md", "lora-np dylora"),
        Shown("paper_figure3.png", "paper.md", "lora-np paper"),
        Shown("paper_figure4.png", "paper.md", "lora-np paper"),
    ),
    "Learning rates, layers, data, precision": (
        Shown("studies_grid.png", "studies.md", "lora-np grid"),
        Shown("studies_rates.png", "studies.md", "lora-np grid"),
        Shown("studies_small_data.png", "studies.md", "lora-np small-data"),
        Shown("studies_regret_rates.png", "studies.md", "lora-np regret"),
        Shown("studies_regret_layers.png", "studies.md", "lora-np regret"),
        Shown("studies_regret_capacity.png", "studies.md", "lora-np regret"),
        Shown("studies_regret_batch.png", "studies.md", "lora-np regret"),
        Shown("precision.png", "precision.md", "lora-np precision"),
    ),
    "Methods side by side": (
        Shown("compare_losses.png", "rivals.md", "lora-np compare --preset hour"),
        Shown("compare_latency.png", "rivals.md", "lora-np compare --preset hour"),
    ),
    "Applications": (
        Shown("text_to_sql.png", "text_to_sql.md", "lora-np sql --model smollm2"),
        Shown("personal_matrix.png", "many_adapters.md", "lora-np personal --plan people.toml"),
        Shown("images_letters.png", "images.md", IMAGES),
        Shown("images_steps.png", "images.md", IMAGES),
        Shown("images_weight.png", "images.md", IMAGES),
        Shown("images_pairs.png", "images.md", IMAGES),
    ),
    "Speed": (
        Shown("serving.png", "serving.md", "lora-np serve-bench --peft"),
        Shown("benchmarks.png", "performance.md", "python -m tests.benchmarks"),
    ),
}
OF_RUNS = {  # function and run
    "intrinsic_dimension.png": (plot_intrinsic, "intrinsic"),
    "dylora.png": (plot_dylora, "dylora"),
    "precision.png": (plot_precision, "precision"),
    "studies_grid.png": (grid.plot_grid, "grid"),
    "studies_rates.png": (grid.plot_rates, "grid"),
    "studies_small_data.png": (plot_small_data, "small-data"),
    "studies_regret_rates.png": (regret.plot_rates, "regret"),
    "studies_regret_layers.png": (regret.plot_layers, "regret"),
    "studies_regret_capacity.png": (regret.plot_capacity, "regret"),
    "studies_regret_batch.png": (regret.plot_batch, "regret"),
}


# --- the page ------------------------------------------------------------------------------------


def filled(text: str) -> str:
    """Return the page's text with all pictures at its mark."""
    sections = (f"## {title}\n\n{_pictures(shown)}" for title, shown in GALLERY.items())
    body = "\n\n".join(sections)
    return PLACE.sub(lambda m: f"{m[1]}\n{body}\n\n{m[2]}", text)


def _pictures(shown: tuple[Shown, ...]) -> str:
    parts = []
    for picture in shown:
        page = (DOCS / picture.page).read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", page, re.M)
        alt = re.search(rf"!\[([^]]+)\]\({re.escape(picture.file)}\)", page)
        assert title and alt, f"{picture.page} does not show {picture.file}"
        language = "sh" if picture.line.startswith(("lora-np", "python")) else "python"
        line = f"```{language}\n{picture.line}\n```"
        parts.append(f"![{alt[1]}]({picture.file})\n\n[{title[1]}]({picture.page})\n\n{line}")
    return "\n\n".join(parts)


# --- the pictures --------------------------------------------------------------------------------


def take(name: str, folder: Path) -> None:
    """Keep what the pictures of a run need."""
    if name == "adapter":
        modules = (module.as_dict() for module in analyse_adapter(folder).modules)
        content = [{key: module[key] for key in SPECTRUM} for module in modules]
    else:
        content = load_json(folder / HELD.get(name, "results.json"))
    if name == "paper":
        content = {figure: content[figure] for figure in ("figure3", "figure4")}
    runs = load_json(RUNS) if RUNS.exists() else {}
    runs[name] = _short(content)
    RUNS.write_text(json.dumps(runs, separators=(",", ":")) + "\n", encoding="utf-8")


def _short(x: Any) -> Any:
    """Return results with floats to six digits, which no picture resolves."""
    if isinstance(x, dict):
        return {key: _short(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_short(value) for value in x]
    return float(f"{x:.6g}") if isinstance(x, float) else x


def drawings() -> dict[str, Callable[[Path], Any]]:
    """Return by a picture's file the function that draws it, where its results are kept."""
    runs = load_json(RUNS)
    results = {path.stem: load_json(path) for path in DOCS.glob("*.json")}
    rivals, letters = (results[name]["results"] for name in ("rivals", "images"))
    return {
        "singular_values.png": _planted,
        "ranks.png": partial(plot_rank_map, _analysis(runs["adapter"])),
        "recovery.png": _recovery,
        "rank_vs_loss.png": partial(plot_rank_vs_loss, runs["sweep"]),
        "spectrum.png": partial(plot_spectrum, runs["sweep"]),
        "rank_on_smollm2.png": partial(plot_rank_vs_loss, results["rank_on_smollm2"]["results"]),
        "paper_figure3.png": partial(plot_similarity, runs["paper"]["figure3"]),
        "paper_figure4.png": partial(plot_similarity, runs["paper"]["figure4"]),
        "compare_losses.png": partial(plot_losses, rivals),
        "compare_latency.png": partial(plot_latency, rivals),
        "text_to_sql.png": partial(plot_sql, results["text_to_sql"]["results"]),
        "personal_matrix.png": partial(
            plot_matrix, matrix_of(results["many_adapters"]["personal"]["results"])
        ),
        "images_steps.png": partial(images.plot_steps, letters),
        "images_weight.png": partial(images.plot_weight, letters),
        "images_pairs.png": partial(images.plot_pairs, letters),
        "serving.png": partial(plot_serving, results["serving"]["small"]["results"]),
        "benchmarks.png": partial(_benchmarks, results["benchmarks"]),
        **{file: partial(plot, runs[run]) for file, (plot, run) in OF_RUNS.items() if run in runs},
    }


def _planted(path: Path) -> None:
    """Draw the spectrum of a planted matrix."""
    W, _ = planted_matrix((200, 100), 8, 2.0, np.random.default_rng(0))
    plot_singular_values(spectrum(W), path)


def _recovery(path: Path) -> None:
    """Draw the picture of which_rank.md, by the program that the page shows."""
    rows = recovery((200, 100), (4, 16), (0.5, 0.7, 1, 2, 5), 100, np.random.default_rng(0))
    plot_recovery(rows, path)


def _analysis(modules: list[dict[str, Any]]) -> Analysis:
    """Return the analysis of an adapter from its spectra."""
    found = []
    for m in modules:
        sigma = Spectrum(np.array(m["singular_values"]), tuple(m["shape"]), 1.2e-7, True)
        found.append(ModuleRanks.of_spectrum(m["name"], sigma, m["r"]))
    return Analysis({}, found)


def _benchmarks(content: dict[str, Any], path: Path) -> None:
    """Draw the steps of a run of the benchmarks."""
    rows = [row_of(row) for row in content["rows"] if row["benchmark"] == "steps"]
    report.draw(path, Result(rows), report.caption(content["machine"], content["settings"]))


def files() -> list[str]:
    """Return the pictures of the gallery."""
    return [shown.file for shown in chain.from_iterable(GALLERY.values())]


def main() -> None:
    """Take runs, draw pictures, fill the page: what the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--draw", nargs="*", metavar="FILE", help="all, without a FILE")
    arguments = parser.parse_args()
    for run in arguments.run:
        name, _, folder = run.partition("=")
        take(name, Path(folder))
    if arguments.draw is not None:
        draw = drawings()
        for file in arguments.draw or draw:
            draw[file](DOCS / file)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
