"""Small adapters over one language model: ``instructions`` and ``personal``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_np.cli.experiment import Writers, cautioned, write_files
from lora_np.cli.says import add_format, listen, note
from lora_np.cli.says import report as say


def add_instructions(commands: Any) -> None:
    """Add the parser of ``instructions``."""
    parser = commands.add_parser(
        "instructions",
        help="instruction tuning on a small synthetic set; exact answers before and after LoRA",
        description="A small synthetic set in Alpaca's form is made, the model answers its tests, "
        "LoRA is trained on it, and the model answers again. docs/many_adapters.md shows a run.",
        epilog="Example: lora-np instructions --model smollm2 --out runs/instructions",
    )
    add = parser.add_argument
    add("--seeds", type=int, metavar="N", help="number of seeds; default: 3, quick: 1")
    add("--quick", action="store_true", help="a small run, in a few minutes")
    _add_options(parser, "runs/instructions[-quick]")
    parser.set_defaults(run=run_instructions_command)


def add_personal(commands: Any) -> None:
    """Add the parser of ``personal``."""
    parser = commands.add_parser(
        "personal",
        help="an adapter for every user and task, and every adapter on every task",
        description="A plan names tasks and users. Each pair gets an adapter over one base, and "
        "each adapter is scored on every pair. docs/many_adapters.md shows a run.",
        epilog="Example: lora-np personal --example people.toml, then "
        "lora-np personal --plan people.toml --model smollm2 --out runs/personal",
    )
    plan = parser.add_mutually_exclusive_group(required=True)
    plan.add_argument("--plan", type=Path, metavar="FILE", help="TOML of tasks and users")
    plan.add_argument(
        "--example", type=Path, metavar="FILE", help="write an example of a plan to FILE, and end"
    )
    _add_options(parser, "runs/personal")
    parser.set_defaults(run=run_personal_command)


def _add_options(parser: argparse.ArgumentParser, out: str) -> None:
    add = parser.add_argument
    add(
        "--model",
        default="smollm2",
        metavar="MODEL",
        help="smollm2 (default), or a folder, a .gguf file or a wheel",
    )
    add("--out", type=Path, metavar="DIR", help=f"default: {out}")
    add_format(parser)
    take_over = "take DIR from a process on another host, if that process has ended"
    add("--take-over", action="store_true", help=take_over)


def run_instructions_command(arguments: argparse.Namespace) -> int:
    """Run or continue instruction tuning; print its tables and write them."""
    from lora_np.experiments.instructions import report, run_instructions
    from lora_np.experiments.instructions.run import QUICK, InstructionSettings
    from lora_np.files import save_text

    settings = QUICK if arguments.quick else InstructionSettings()
    if arguments.seeds is not None:
        settings = replace(settings, seeds=arguments.seeds)
    out = arguments.out or Path("runs") / f"instructions{'-quick' if arguments.quick else ''}"

    def run(base: Any, tokenizer: Any, **how: Any) -> tuple[list[str], Writers]:
        text = report(run_instructions(settings, base, tokenizer, out, **how))
        files = {"instructions.txt": partial(save_text, text=f"{text}\n")}
        return cautioned(text, arguments.quick), files

    return _carry_out(arguments, out, run)


def run_personal_command(arguments: argparse.Namespace) -> int:
    """Train and score an adapter for every pair of a plan; print and draw the matrix."""
    from lora_np.experiments.personal import (
        PlanError,
        matrix_of,
        read_plan,
        run_personal,
        run_text,
    )
    from lora_np.experiments.personal.picture import plot_matrix
    from lora_np.experiments.personal.plan import EXAMPLE
    from lora_np.experiments.personal.tools import tools_for
    from lora_np.files import save_text

    if arguments.example is not None:
        if arguments.example.exists():
            raise ValueError(f"{arguments.example} exists: name a new file")
        save_text(arguments.example, EXAMPLE)
        note(f"written to {arguments.example}; next: lora-np personal --plan {arguments.example}")
        return 0
    plan, out = read_plan(arguments.plan), arguments.out or Path("runs/personal")

    def run(base: Any, tokenizer: Any, **how: Any) -> tuple[list[str], Writers]:
        try:
            tools = tools_for(plan, base, tokenizer)
        except ValueError as error:
            raise PlanError(f"{arguments.plan}: {error}") from None
        results = run_personal(plan, base, out, tools, **how)
        text, matrix = run_text(results), matrix_of(results)
        files: Writers = {
            "personal.txt": partial(save_text, text=f"{text}\n"),
            "matrix.png": lambda path: plot_matrix(matrix, path),
        }
        return cautioned(text, quick=False), files

    return _carry_out(arguments, out, run)


def _carry_out(
    arguments: argparse.Namespace, out: Path, run: Callable[..., tuple[list[str], Writers]]
) -> int:
    """Load the model, run an experiment with it on one thread, print it and write its files."""
    from lora_np.crew import one_blas_thread
    from lora_np.pretrained import load_llm

    base, tokenizer, *_ = load_llm(arguments.model)
    try:
        with one_blas_thread():  # so that the same command gives the same bits anywhere
            parts, files = run(base, tokenizer, listen=listen, take_over=arguments.take_over)
    except KeyboardInterrupt:
        print(f"\nstopped: run the same command to continue in {out}", file=sys.stderr)
        return 130
    say(arguments, *parts)
    note(write_files(out, "results.json", files, complete=False))
    return 0
