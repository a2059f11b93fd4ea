"""The command ``sql``: a language model learns to answer questions with queries."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_np.cli.experiment import Writers, add_options, carry_out, cautioned, folder_name
from lora_np.cli.parsing import WHAT
from lora_np.cli.workers import jobs_of


def add_sql(commands: Any) -> None:
    """Add the parser of ``sql``."""
    sql = commands.add_parser(
        "sql",
        help="text-to-SQL: the base, LoRA and full fine-tuning, judged by what queries return",
        description="Questions about small databases are answered with queries, which are run and "
        "judged by the rows that they return. docs/text_to_sql.md shows a run.",
        epilog="Example: lora-np sql --model smollm2. The other settings are those of "
        "lora_np.experiments.sql.plan.SqlSettings, for Python.",
    )
    model = "smollm2 (default), or a folder, a .gguf file or a wheel"
    add = sql.group(WHAT).add_argument
    add("--model", metavar="MODEL", help=model)
    seeds = "trainings of each contender; default: 3, quick: 1"
    add("--seeds", type=int, metavar="N", help=seeds)
    add_options(sql, "a small run in a minute", "runs/sql-<settings>/", base=False)
    sql.set_defaults(run=run_sql_command)


def run_sql_command(arguments: argparse.Namespace) -> int:
    """Run or resume the study; write its tables and the picture."""
    from lora_np.experiments.sql.picture import plot_sql
    from lora_np.experiments.sql.plan import QUICK, SqlSettings
    from lora_np.experiments.sql.report import Listener, study_report
    from lora_np.experiments.sql.study import check_sql, run_sql
    from lora_np.files import save_text

    given = {"model": arguments.model, "seeds": arguments.seeds}
    settings = QUICK if arguments.quick else SqlSettings()
    settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
    out = arguments.out or Path("runs") / folder_name(settings, arguments.quick)

    def files(results: dict[str, Any]) -> Writers:
        text = partial(save_text, text=f"{study_report(results)}\n")
        return {"sql.txt": text, "text_to_sql.png": partial(plot_sql, results)}

    return carry_out(
        arguments,
        jobs_of(arguments, settings),
        Listener(out),
        partial(check_sql, settings, out),
        partial(run_sql, settings, out),
        "results.json",
        files,
        lambda results: cautioned(study_report(results), arguments.quick),
    )
