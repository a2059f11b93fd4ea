"""The studies that are built on the sweep: ``paper`` and ``intrinsic``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from lora_np.cli.experiment import Writers, add_options, carry_out, folder_name
from lora_np.cli.workers import jobs_of


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
    note = "\na quick run: there is nothing to conclude from it\n" if arguments.quick else ""

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
        lambda content: f"{report(content)}\n{note}",
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
        table,
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
        table,
    )
