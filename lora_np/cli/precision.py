"""The command ``precision``: weights, merges and gradients in few bits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_np.cli.experiment import cautioned
from lora_np.cli.says import add_format, listen, note
from lora_np.cli.says import report as say


def add_precision(commands: Any) -> None:
    """Add the parser of ``precision``."""
    precision = commands.add_parser(
        "precision",
        help="what a base in float16, bfloat16 or NF4 costs, and what merges and float16 lose",
        description="Settings are those of lora_np.experiments.precision.PrecisionSettings. "
        "docs/precision.md shows a run.",
    )
    precision.add_argument("--quick", action="store_true", help="a small run in a few seconds")
    out = "default: runs/precision[-quick]"
    precision.add_argument("--out", type=Path, metavar="DIR", help=out)
    add_format(precision)
    precision.set_defaults(run=run_precision)


def run_precision(arguments: argparse.Namespace) -> int:
    """Run the study, print its tables, and write them with the picture."""
    from lora_np.experiments.precision import QUICK, PrecisionSettings, precision_study, report
    from lora_np.experiments.precision.picture import plot_precision
    from lora_np.files import save_json, save_text
    from lora_np.files.atomic import make_folder

    out = arguments.out or Path("runs") / f"precision{'-quick' if arguments.quick else ''}"
    make_folder(out)  # before the work: DIR may not be writable

    results = precision_study(QUICK if arguments.quick else PrecisionSettings(), listen)
    text = report(results)
    save_json(out / "precision.json", results)
    save_text(out / "precision.txt", f"{text}\n")
    plot_precision(results, out / "precision.png")
    say(arguments, *cautioned(text, arguments.quick))
    note(f"written to {out}/: precision.json, precision.txt, precision.png")
    return 0
