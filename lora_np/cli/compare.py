"""``lora-np compare``: LoRA and its rivals on one table."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from lora_np.cli.experiment import add_options
from lora_np.cli.parsing import WHAT
from lora_np.cli.says import note, report
from lora_np.cli.studies import carry_out_study
from lora_np.cli.workers import jobs_of, pool_of


def add_compare(commands: Any) -> None:
    """Add the parser of ``compare``."""
    compare = commands.add_parser(
        "compare",
        help="LoRA and its rivals: losses, costs, and what articles claim about them",
        description="Every method gets a search for a learning rate of its own, then all seeds; "
        "what it costs is measured afterwards. docs/rivals.md shows a run.",
    )
    add = compare.group(WHAT).add_argument
    names = "labels of the table, or names of methods; default: all"
    add("--methods", type=_names, metavar="NAME,NAME,...", help=names)
    preset = "minutes: a smoke run, too few seeds to decide; hour (default): 5 seeds"
    add("--preset", choices=("minutes", "hour"), default="hour", help=preset)
    tasks = (
        "text (default); linear: print which planted changes of a matrix each method reaches "
        "(--out keeps that in DIR/reach.json)"
    )
    add("--task", choices=("text", "linear"), default="text", help=tasks)
    add(
        "--seeds",
        type=int,
        metavar="N",
        help="number of seeds; default: 5, with --preset minutes 2",
    )
    add_options(compare, None, "runs/compare-<settings>/")
    compare.set_defaults(run=run_compare)


def run_compare(arguments: argparse.Namespace) -> int:
    """Run or resume the comparison; write its tables and pictures."""
    from lora_np.experiments.compare import PRESETS, compare_study

    if arguments.task == "linear":
        return run_reach(arguments)
    settings = PRESETS[arguments.preset]
    if arguments.methods is not None:
        settings = replace(settings, methods=arguments.methods)
    return carry_out_study(arguments, settings, compare_study, arguments.preset == "minutes")


def run_reach(arguments: argparse.Namespace) -> int:
    """Print which planted changes each method reaches, and keep the numbers if asked to."""
    from lora_np.experiments.compare import PRESETS
    from lora_np.experiments.compare.reach import reach, reach_table
    from lora_np.experiments.compare.rows import rows_called
    from lora_np.files import save_json
    from lora_np.files.atomic import make_folder

    given = {"--seeds": arguments.seeds, "--base": arguments.base}
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"--task linear draws its own W0 and takes no {option}")
    rows, out = rows_called(arguments.methods), arguments.out
    if out is not None:
        make_folder(out)  # before the work: DIR may not be writable
    with pool_of(jobs_of(arguments, PRESETS[arguments.preset].text)) as executor:
        found = reach(rows, executor)
    title = "What remains of a planted change after fitting, relative"
    report(arguments, title, "", reach_table(found))
    if out is not None:
        save_json(out / "reach.json", found)
        note(f"\nwritten to {out}/: reach.json")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
