"""The studies that are built on the sweep: ``paper`` and ``intrinsic``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lora_np.cli.sweep import BASE, TAKE_OVER, folder_name
from lora_np.cli.workers import jobs_of, pool_of
from lora_np.cli.written import write_files


def add_paper(commands: Any) -> None:
    """Add the parser of ``paper``."""
    paper = commands.add_parser(
        "paper",
        help="the LoRA paper's section 7 on the sweep's text task, beside its own numbers",
        description="Tables 5, 6 and 7 and figures 3 and 4, and whether ours agree with what the "
        "paper says of them. docs/paper.md is a run of it.",
    )
    paper.add_argument("--quick", action="store_true", help="shows in half a minute that it runs")
    paper.add_argument("--out", type=Path, metavar="DIR", help="default: runs/paper-<settings>/")
    paper.add_argument("--base", type=Path, metavar="DIR", help=BASE)
    paper.add_argument("--jobs", type=int, help="processes; default: one a core")
    paper.add_argument("--take-over", action="store_true", help=TAKE_OVER)
    paper.set_defaults(run=run_paper_command)


def run_paper_command(arguments: argparse.Namespace) -> int:
    """Run or resume section 7 of the paper; write its tables and pictures."""
    from lora_np.experiments.paper import run_paper
    from lora_np.experiments.paper.picture import plot_similarity
    from lora_np.experiments.paper.report import report
    from lora_np.experiments.paper.run import check_paper, folders
    from lora_np.experiments.paper.settings import DEFAULT, QUICK, all_trials
    from lora_np.experiments.rank_sweep.estimate import estimate
    from lora_np.experiments.rank_sweep.report import Terminal, base_line
    from lora_np.files import save_text

    settings, base = QUICK if arguments.quick else DEFAULT, arguments.base
    out = arguments.out or Path("runs") / folder_name(settings, arguments.quick)
    jobs = jobs_of(arguments, settings.text)
    terminal = Terminal(out, list(folders(settings, out).values()))
    complete = check_paper(settings, out, base, take_over=arguments.take_over)
    try:
        with pool_of(1 if complete else jobs) as executor:
            if not complete:
                terminal.start(estimate(all_trials(settings), executor, jobs), jobs)
            how = {"executor": executor, "listen": terminal, "progress": terminal.is_screen}
            content = run_paper(settings, out, base=base, take_over=arguments.take_over, **how)
        terminal.close()
    except KeyboardInterrupt:
        terminal.interrupted()
        return 130
    text = report(content)
    files: dict[str, Callable[[Path], None]] = {"paper.txt": partial(save_text, text=f"{text}\n")}
    for name in ("figure3", "figure4"):
        files[f"{name}.png"] = partial(plot_similarity, content[name])
    said = write_files(out, ["paper.json"], files, complete)
    print(text)
    if arguments.quick:
        print("\na quick run: there is nothing to conclude from it")
    print(f"\n{base_line(content)}{said}")
    return 0


def add_intrinsic(commands: Any) -> None:
    """Add the parser of ``intrinsic``."""
    intrinsic = commands.add_parser(
        "intrinsic",
        help="how many directions does training need? d90, pretrained and not",
        description="Settings are those of lora_np.experiments.intrinsic.IntrinsicSettings.",
    )
    intrinsic.add_argument("--quick", action="store_true", help="a small one in 20 seconds")
    intrinsic.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/intrinsic[-quick]"
    )
    intrinsic.add_argument("--base", type=Path, metavar="DIR", help=BASE)
    intrinsic.add_argument("--jobs", type=int, help="processes; default: one a core")
    intrinsic.add_argument("--take-over", action="store_true", help=TAKE_OVER)
    intrinsic.set_defaults(run=run_intrinsic)


def run_intrinsic(arguments: argparse.Namespace) -> int:
    """Measure the intrinsic dimension, and draw it."""
    from lora_np.experiments.intrinsic import (
        QUICK,
        IntrinsicSettings,
        Listener,
        intrinsic_run,
        table,
    )
    from lora_np.experiments.intrinsic.picture import plot_intrinsic
    from lora_np.experiments.intrinsic.text import check_intrinsic
    from lora_np.experiments.rank_sweep.report import base_line

    settings = QUICK if arguments.quick else IntrinsicSettings()
    out = arguments.out or Path("runs") / ("intrinsic-quick" if arguments.quick else "intrinsic")
    jobs, base, take_over = jobs_of(arguments, settings.text), arguments.base, arguments.take_over
    complete = check_intrinsic(settings, out, base, take_over=take_over)
    with pool_of(1 if complete else jobs) as executor, Listener() as listen:
        results = intrinsic_run(
            settings, out, base=base, executor=executor, listen=listen, take_over=take_over
        )
    picture = {"intrinsic_dimension.png": partial(plot_intrinsic, results)}
    said = write_files(out, ["results.json"], picture, complete)
    print(f"{table(results)}\n{base_line(results)}{said}")
    return 0
