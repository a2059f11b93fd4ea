"""The studies that are built on the sweep.

``paper`` and ``intrinsic`` have plans of their own. ``grid``, ``small-data``, ``regret`` and
``dylora`` compare contenders with one engine (lora_np/experiments/study/).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np.cli.experiment import (
    Writers,
    add_options,
    carry_out,
    cautioned,
    folder_name,
    numbers,
    whole_numbers,
)
from lora_np.cli.parsing import WHAT, OneLineParser
from lora_np.cli.workers import jobs_of

if TYPE_CHECKING:
    from lora_np.experiments.study import Study


def add_paper(commands: Any) -> None:
    """Add the parser of ``paper``."""
    paper = commands.add_parser(
        "paper",
        help="section 7 of the LoRA paper on the text task of the sweep, beside its own numbers",
        description="Tables 5, 6 and 7 and figures 3 and 4, and whether our numbers support "
        "the claims of the paper. docs/paper.md shows a run.",
    )
    add_options(paper, "a small run in half a minute", "runs/paper-<settings>/")
    paper.set_defaults(run=run_paper_command)


def run_paper_command(arguments: argparse.Namespace) -> int:
    """Run or resume section 7 of the paper; write its tables and pictures."""
    from lora_np.experiments.paper import run_paper
    from lora_np.experiments.paper.picture import plot_similarity
    from lora_np.experiments.paper.report import report
    from lora_np.experiments.paper.run import check_paper, folders
    from lora_np.experiments.paper.settings import DEFAULT, QUICK, all_trials
    from lora_np.experiments.rank_sweep.estimate import estimate
    from lora_np.experiments.terminal import Terminal
    from lora_np.files import save_text

    settings = QUICK if arguments.quick else DEFAULT
    out = arguments.out or Path("runs") / folder_name(settings, arguments.quick)

    def files(content: dict[str, Any]) -> Writers:
        text = partial(save_text, text=f"{report(content)}\n")
        figures = {f"{n}.png": partial(plot_similarity, content[n]) for n in ("figure3", "figure4")}
        return {"paper.txt": text, **figures}

    return carry_out(
        arguments,
        jobs_of(arguments, settings.text),
        Terminal(out, list(folders(settings, out).values())),
        partial(check_paper, settings, out),
        partial(run_paper, settings, out),
        "paper.json",
        files,
        lambda content: cautioned(report(content), arguments.quick),
        lambda executor, jobs: estimate(all_trials(settings), executor, jobs),
    )


def add_intrinsic(commands: Any) -> None:
    """Add the parser of ``intrinsic``."""
    intrinsic = commands.add_parser(
        "intrinsic",
        help="how many directions does training need? d90, pretrained and not",
        description="Settings are those of lora_np.experiments.intrinsic.IntrinsicSettings.",
    )
    add_options(intrinsic, "a small run in 20 seconds", "runs/intrinsic[-quick]")
    intrinsic.set_defaults(run=run_intrinsic)


def run_intrinsic(arguments: argparse.Namespace) -> int:
    """Run or resume the measurement of the intrinsic dimension, and draw it."""
    from lora_np.experiments.intrinsic import (
        QUICK,
        IntrinsicSettings,
        Listener,
        intrinsic_run,
        report,
    )
    from lora_np.experiments.intrinsic.picture import plot_intrinsic
    from lora_np.experiments.intrinsic.text import check_intrinsic

    settings = QUICK if arguments.quick else IntrinsicSettings()
    out = arguments.out or Path("runs") / ("intrinsic-quick" if arguments.quick else "intrinsic")
    return carry_out(
        arguments,
        jobs_of(arguments, settings.text),
        Listener(out),
        partial(check_intrinsic, settings, out),
        partial(intrinsic_run, settings, out),
        "results.json",
        lambda results: {"intrinsic_dimension.png": partial(plot_intrinsic, results)},
        lambda results: [report(results)],
    )


# --------------------------------------------------------------- studies of contenders


def add_grid(commands: Any) -> None:
    """Add the parser of ``grid``."""
    from lora_np.experiments.grid import GridSettings

    ranks, alphas = (
        ",".join(map(str, values)) for values in (GridSettings().text.ranks, GridSettings().alphas)
    )
    grid = commands.add_parser(
        "grid",
        help="loss over rank x lora_alpha, with one learning rate and with the best of each cell",
        description="Heat maps of the loss, the best rate against alpha / r, and the first step. "
        "docs/studies.md shows a run.",
    )
    add = grid.group(WHAT).add_argument
    add("--ranks", type=whole_numbers, metavar="R,R,...", help=f"default: {ranks}")
    add("--alphas", type=numbers, metavar="A,A,...", help=f"default: {alphas}")
    _add_study(grid, run_grid)


def run_grid(arguments: argparse.Namespace) -> int:
    """Run or resume the grid."""
    from lora_np.experiments.grid import QUICK, GridSettings, grid_study

    settings = QUICK if arguments.quick else GridSettings()
    if arguments.ranks is not None:
        settings = replace(settings, text=replace(settings.text, ranks=arguments.ranks))
    if arguments.alphas is not None:
        settings = replace(settings, alphas=arguments.alphas)
    return carry_out_study(arguments, settings, grid_study, arguments.quick)


def add_small_data(commands: Any) -> None:
    """Add the parser of ``small-data``."""
    small_data = commands.add_parser(
        "small-data",
        help="train and validation loss of LoRA and full fine-tuning as the text shrinks",
        description="Each length of the text has its own search for a learning rate. "
        "docs/studies.md shows a run.",
    )
    _add_study(small_data, run_small_data)


def run_small_data(arguments: argparse.Namespace) -> int:
    """Run or resume the study of shrinking text."""
    from lora_np.experiments.small_data import QUICK, SmallDataSettings, small_data_study

    settings = QUICK if arguments.quick else SmallDataSettings()
    return carry_out_study(arguments, settings, small_data_study, arguments.quick)


def add_regret(commands: Any) -> None:
    """Add the parser of ``regret``."""
    regret = commands.add_parser(
        "regret",
        help='the claims of "LoRA Without Regret" on the text task of the sweep',
        description="Learning rates, layers, capacity and batch sizes of LoRA against full "
        "fine-tuning. docs/studies.md shows a run.",
    )
    _add_study(regret, run_regret)


def run_regret(arguments: argparse.Namespace) -> int:
    """Run or resume the claims of "LoRA Without Regret"."""
    from lora_np.experiments.regret import QUICK, RegretSettings, regret_study

    settings = QUICK if arguments.quick else RegretSettings()
    return carry_out_study(arguments, settings, regret_study, arguments.quick)


def add_dylora(commands: Any) -> None:
    """Add the parser of ``dylora``."""
    from lora_np.experiments.dylora import DyLoraSettings

    dylora = commands.add_parser(
        "dylora",
        help="loss at every rank: of DyLoRA, of LoRA trained at the rank, and of one LoRA, cut",
        description="DyLoRA with both update rules and both scales; LoRA cut by SVD and naively; "
        "how long each training takes. docs/dylora.md shows a run.",
    )
    default = DyLoraSettings().r_max
    said = f"the largest rank; default: {default}"
    dylora.group(WHAT).add_argument("--r-max", type=int, metavar="R", help=said)
    _add_study(dylora, run_dylora)


def run_dylora(arguments: argparse.Namespace) -> int:
    """Run or resume the comparison of ways to have every rank."""
    from lora_np.experiments.dylora import QUICK, DyLoraSettings, dylora_study

    settings = QUICK if arguments.quick else DyLoraSettings()
    if arguments.r_max is not None:
        settings = replace(settings, r_max=arguments.r_max)
    return carry_out_study(arguments, settings, dylora_study, arguments.quick)


def _add_study(parser: OneLineParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Add the options that studies of contenders share."""
    add_options(parser, "a small run in seconds", "runs/<command>-<settings>/")
    said = "number of seeds; default: 5, quick: 2"
    parser.group(WHAT).add_argument("--seeds", type=int, metavar="N", help=said)
    parser.set_defaults(run=run)


def carry_out_study(
    arguments: argparse.Namespace, settings: Any, study_of: Callable[[Any], Study], quick: bool
) -> int:
    """Run or resume a study of contenders; write its report and pictures.

    Of a quick run the report says that it decides nothing.
    """
    from lora_np.experiments.rank_sweep.estimate import estimate
    from lora_np.experiments.study.run import as_sweep, check_study, run_study
    from lora_np.experiments.terminal import Terminal
    from lora_np.files import save_text

    if arguments.seeds is not None:
        settings = replace(settings, text=replace(settings.text, seeds=arguments.seeds))
    study = study_of(settings)
    named = folder_name(settings, quick)
    out = arguments.out or Path("runs") / named

    def files(results: dict[str, Any]) -> Writers:
        text = partial(save_text, text=f"{study.report(results)}\n")
        drawn = {name: partial(draw, results) for name, draw in study.pictures.items()}
        return {f"{study.name}.txt": text, **drawn}

    return carry_out(
        arguments,
        jobs_of(arguments, study),
        Terminal(out),
        partial(check_study, study, out),
        partial(run_study, study, out),
        "results.json",
        files,
        lambda results: cautioned(study.report(results), quick),
        lambda executor, jobs: estimate(as_sweep(study), executor, jobs),
    )
