"""The command ``images report``: every claim about images beside its control."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_np.cli.experiment import Writers, add_options, carry_out, cautioned, folder_name
from lora_np.cli.parsing import WHAT
from lora_np.cli.workers import jobs_of


def add_report(parts: Any) -> None:
    """Add the parser of ``images report``."""
    report = parts.add_parser(
        "report",
        help="train everything, judge what it draws: tables and pictures",
        description="Measure every claim about styles and few steps, beside its control. "
        "docs/images.md shows a run. Further settings, from Python: "
        "lora_np.images.plan.ImagesSettings.",
    )
    seeds = "number of bases, each with a seed of its own; default: 3, with --quick: 1"
    report.group(WHAT).add_argument("--seeds", type=int, metavar="N", help=seeds)
    add_options(report, "a small run in about a minute", "runs/images-<settings>/", base=False)
    report.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    """Run or resume the report; write its tables and pictures."""
    from lora_np.files import save_text
    from lora_np.images.picture import pictures
    from lora_np.images.plan import QUICK, ImagesSettings
    from lora_np.images.report import Listener, images_report
    from lora_np.images.study import check_images_run, run_images

    settings = QUICK if arguments.quick else ImagesSettings()
    if arguments.seeds is not None:
        settings = replace(settings, seeds=arguments.seeds)
    out = arguments.out or Path("runs") / folder_name(settings, arguments.quick)

    def shown(results: dict[str, Any]) -> list[str]:
        return cautioned(images_report(results), arguments.quick)

    def files(results: dict[str, Any]) -> Writers:
        text = partial(save_text, text="\n".join(shown(results)))
        return {"images.txt": text, **pictures(results, out)}

    return carry_out(
        arguments,
        jobs_of(arguments, settings),
        Listener(out),
        partial(check_images_run, settings, out),
        partial(run_images, settings, out),
        "results.json",
        files,
        shown,
    )
