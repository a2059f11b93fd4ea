"""The commands that run no experiment: ``gradcheck``, ``account`` and ``grade``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_gradcheck(commands: Any) -> None:
    """Add the parser of ``gradcheck``."""
    check = commands.add_parser(
        "gradcheck", help="check every gradient against numerical derivatives"
    )
    check.add_argument("--seed", type=int, default=0, help="seed of the inputs; default: 0")
    check.set_defaults(run=run_gradcheck)


def run_gradcheck(arguments: argparse.Namespace) -> int:
    """Print the errors of every pair, layer and model; return 1 if a gradient is wrong."""
    import numpy as np

    from lora_np.selfcheck import table

    text, ok = table(np.random.default_rng(arguments.seed))
    print(text)
    print("all gradients agree" if ok else "SOME GRADIENTS ARE WRONG")
    return 0 if ok else 1


def add_account(commands: Any) -> None:
    """Add the parser of ``account``."""
    costs = commands.add_parser("account", help="count what LoRA costs, here and on known models")
    costs.set_defaults(run=run_account)


def run_account(arguments: argparse.Namespace) -> int:
    """Print the costs of the sweep's GPT, and LoRA's share of known models."""
    import numpy as np

    from lora_np.costs import account, known_models
    from lora_np.experiments.rank_sweep import TextSettings
    from lora_np.methods import LoraConfig, inject
    from lora_np.models import GPT

    rng = np.random.default_rng(0)
    base = GPT(TextSettings().gpt(), rng)
    adapted = inject(base, LoraConfig(r=8, target_modules="all-linear"), rng)
    print(f"full fine-tuning of the sweep's GPT\n{account(base)}\n")
    print(f"LoRA, r = 8 on all linear layers\n{account(adapted)}\n")
    print(known_models())
    return 0


def add_grade(commands: Any) -> None:
    """Add the parser of ``grade``."""
    grade = commands.add_parser("grade", help="grade FOLDER/TASK/STUDENT.py and report mistakes")
    grade.add_argument("folder", type=Path, help="holds a folder for each task")
    grade.add_argument("--seed", type=int, default=0, help="seed of the test inputs; default: 0")
    grade.set_defaults(run=run_grade)


def run_grade(arguments: argparse.Namespace) -> int:
    """Grade a folder of submissions; print a line for each, with its mistakes."""
    import time

    from lora_np.course.grade import grade_folder, table, verdict
    from lora_np.tables import counted

    start = time.perf_counter()
    graded = grade_folder(arguments.folder, seed=arguments.seed)
    encoding = sys.stdout.encoding or "utf-8"  # a console may lack the letters of a name
    print(table(graded).encode(encoding, "backslashreplace").decode(encoding))
    verdicts = [verdict(report) for report in graded.values()]
    seconds, left_out = time.perf_counter() - start, verdicts.count("left out")
    n, right = len(graded) - left_out, verdicts.count("right")
    more = f"; {left_out} left out" if left_out else ""
    print(f"{counted(n, 'submission')}, {right} right, in {seconds:.1f} s{more}")
    return 0
