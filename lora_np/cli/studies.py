"""The studies that are built on the sweep: ``paper`` and ``intrinsic``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_np.cli.sweep import BASE, folder_name
from lora_np.cli.workers import jobs_of, pool_of


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

    settings, base = QUICK if arguments.quick else DEFAULT, arguments.base
    out = arguments.out or Path("runs") / folder_name(settings, arguments.quick)
    jobs = jobs_of(arguments, settings.text)
    terminal = Terminal(out, list(folders(settings, out).values()))
    complete = check_paper(settings, out, base)
    try:
        with pool_of(1 if complete else jobs) as executor:
            if not complete:
                terminal.start(estimate(all_trials(settings), executor, jobs), jobs)
            how = {"executor": executor, "listen": terminal, "progress": terminal.is_screen}
            content = run_paper(settings, out, base=base, **how)
        terminal.close()
    except KeyboardInterrupt:
        terminal.interrupted()
        return 130
    for name in ("figure3", "figure4"):
        plot_similarity(content[name], out / f"{name}.png")
    text = report(content)
    (out / "paper.txt").write_text(f"{text}\n", encoding="utf-8")
    print(text)
    if arguments.quick:
        print("\na quick run: there is nothing to conclude from it")
    print(
        f"\n{base_line(content)}written to {out}/: paper.json, paper.txt, figure3.png, figure4.png"
    )
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
    from lora_np.experiments.rank_sweep.report import base_line

    settings = QUICK if arguments.quick else IntrinsicSettings()
    out = arguments.out or Path("runs") / ("intrinsic-quick" if arguments.quick else "intrinsic")
    with pool_of(jobs_of(arguments, settings.text)) as executor, Listener() as listen:
        results = intrinsic_run(
            settings, out, base=arguments.base, executor=executor, listen=listen
        )
    plot_intrinsic(results, out / "intrinsic_dimension.png")
    print(table(results))
    print(f"{base_line(results)}written to {out}/: results.json, intrinsic_dimension.png")
    return 0
