"""The command line: ``lora-np sweep``, ``paper``, ``intrinsic``, ``gradcheck``, and the others.

The commands that work on adapters' files are in adapters.py.

A mistake in the input ends in one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from lora_np import __version__
from lora_np.backend import DeviceError, get_device
from lora_np.cli.adapters import add_adapter_commands
from lora_np.crew import cores, keep_memory
from lora_np.train import Diverged

QUICK = {
    "text": {"ranks": (1, 4, 16), "seeds": 1, "pretrain_steps": 80, "steps": 25, "windows": 32},
    "linear": {"ranks": (1, 4, 16), "seeds": 1, "d_in": 24, "d_out": 16, "steps": 1000},
}


WHOLE = {
    "seeds": "number of seeds",
    "steps": "of each run",
    "pretrain-steps": "of the base",
    "batch-size": "windows a batch",
    "block-size": "bytes a window",
    "d-model": "width of the transformer",
    "n-layer": "its blocks",
    "n-head": "heads a block",
    "windows": "held-out windows to evaluate",
    "d-in": "linear task: columns of W0",
    "d-out": "linear task: rows of W0",
}
BASE = "folder of a text sweep: copy its base; default: pretrain one"
REAL = {
    "pretrain-lr": "learning rate of the base",
    "lora-lr": "where LoRA's searches for a learning rate start",
    "full-lr": "where full fine-tuning's search starts",
    "decay": "linear task: ratio of neighbouring planted singular values",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = parser().parse_args(argv)
    keep_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end is Ctrl-C too
    try:
        return arguments.run(arguments)
    except BrokenPipeError:
        return 0  # the reader of a pipe has seen enough
    except (ValueError, DeviceError, Diverged, OSError) as error:
        print(f"lora-np: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenExecutor:
        print("lora-np: a worker process died; the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlora-np: interrupted", file=sys.stderr)
        return 130


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, and that takes every negative number for a value."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # argparse's own expression leaves out -5e-1, which it takes for an option.
        self._negative_number_matcher = re.compile(
            r"-(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf|infinity|nan)$", re.IGNORECASE
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where the help is."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help has the options\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = OneLineParser(prog="lora-np", description="LoRA from scratch in pure NumPy.")
    top.add_argument("--version", action="version", version=f"lora-np {__version__}")
    top.set_defaults(run=lambda arguments: run_help(top))
    commands = top.add_subparsers(metavar="command")
    _add_sweep(commands)
    _add_paper(commands)
    check = commands.add_parser("gradcheck", help="check every gradient against numeric ones")
    check.add_argument("--seed", type=int, default=0)
    check.set_defaults(run=run_gradcheck)
    generate = commands.add_parser("generate", help="let a model of a sweep write")
    generate.add_argument("--run", dest="folder", type=Path, required=True, metavar="DIR")
    generate.add_argument("--prompt", default="def ", help='default: "def "')
    generate.add_argument(
        "--model", default="best", help="base, full, or a rank; default: the best on validation"
    )
    generate.add_argument("--tokens", type=int, default=300, help="bytes to write")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest")
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--device", default="cpu", help="cpu or cuda")
    generate.set_defaults(run=run_generate)
    _add_intrinsic(commands)
    costs = commands.add_parser("account", help="what LoRA costs, here and on known models")
    costs.set_defaults(run=run_account)
    add_adapter_commands(commands)
    grade = commands.add_parser("grade", help="grade FOLDER/TASK/STUDENT.py and say what is wrong")
    grade.add_argument("folder", type=Path)
    grade.add_argument("--seed", type=int, default=0, help="draws the inputs; default: 0")
    grade.set_defaults(run=run_grade)
    return top


def _add_intrinsic(commands: Any) -> None:
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


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="loss against rank: pretrain, adapt at every rank, compare",
        description="An option that the task does not have is refused.",
    )
    add = sweep.add_argument
    add("--task", choices=("text", "linear"), default="text")
    add("--quick", action="store_true", help="a small sweep in 20 seconds")
    add("--out", type=Path, metavar="DIR", help="default: runs/<task>-<settings>/")
    add("--base", type=Path, metavar="DIR", help=BASE)
    add("--jobs", type=int, help="processes; default: one a core")
    add("--ranks", type=_ranks, metavar="R,R,...", help=_default("ranks"))
    modules = "NAME,NAME|all-linear|REGEX"
    add("--target-modules", type=_targets, metavar=modules, help=_default("target-modules"))
    add("--pretrain-text", metavar="FILE", help="your own text for the base")
    add("--adapt-text", metavar="FILE", help="your own text to adapt it to")
    for name, meaning in WHOLE.items():
        add(f"--{name}", type=int, help=f"{meaning}; {_default(name)}")
    for name, meaning in REAL.items():
        add(f"--{name}", type=float, help=f"{meaning}; {_default(name)}")
    add("--device", help="cpu or cuda")
    sweep.set_defaults(run=run_sweep)


def _default(name: str) -> str:
    """Say what a setting of the sweep is where the command line does not give it."""
    from lora_np.experiments.rank_sweep import LinearSettings, TextSettings

    field, shown = name.replace("-", "_"), {}
    for task, settings in (("", TextSettings), ("linear task: ", LinearSettings)):
        if (value := getattr(settings, field, None)) is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            shown.setdefault(text, task)
    return "default: " + "; ".join(
        f"{task * (len(shown) > 1)}{text}" for text, task in shown.items()
    )


def _add_paper(commands: Any) -> None:
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


def _ranks(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, as in 1,2,4") from None


def _targets(text: str) -> tuple[str, ...] | str:
    names = [name.strip() for name in text.split(",")]
    plain = all(re.fullmatch(r"[\w.]+", name) for name in names) and text != "all-linear"
    return tuple(names) if plain else text


# ------------------------------------------------------------------------------------- commands


def run_help(top: argparse.ArgumentParser) -> int:
    """Print the help: no command was given."""
    top.print_help()
    return 0


def run_gradcheck(arguments: argparse.Namespace) -> int:
    """Print the table of every pair and layer; 1 if a gradient is wrong."""
    import numpy as np

    from lora_np.selfcheck import table

    text, ok = table(np.random.default_rng(arguments.seed))
    print(text)
    print("all gradients agree" if ok else "SOME GRADIENTS ARE WRONG")
    return 0 if ok else 1


def run_grade(arguments: argparse.Namespace) -> int:
    """Grade a folder of submissions; print one line each, and what is wrong."""
    import time

    from lora_np.course.grade import grade_folder, table

    start = time.perf_counter()
    graded = grade_folder(arguments.folder, seed=arguments.seed)
    print(table(graded))
    right = sum(report.passed for report in graded.values())
    seconds = time.perf_counter() - start
    print(f"{len(graded)} submissions, {right} right, in {seconds:.1f} s")
    return 0


def run_account(arguments: argparse.Namespace) -> int:
    """Print the accounts of the sweep's GPT, and LoRA's share of known models."""
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


def run_generate(arguments: argparse.Namespace) -> int:
    """Continue the prompt with a model of a finished sweep."""
    import numpy as np

    from lora_np.data import decode, encode
    from lora_np.experiments.rank_sweep.models import load_model

    model = load_model(arguments.folder, arguments.model, arguments.device)
    if arguments.tokens < 0 or arguments.seed < 0:
        raise ValueError(
            f"--tokens {arguments.tokens} and --seed {arguments.seed}: expected at least 0"
        )
    if not arguments.prompt:
        raise ValueError("the prompt is empty: give at least one character")
    tokens = model.generate(
        encode(arguments.prompt),
        arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        rng=np.random.default_rng(arguments.seed),
    )
    print(decode(tokens))
    return 0


def run_sweep(arguments: argparse.Namespace) -> int:
    """Run or resume a sweep, and write its pictures."""
    from lora_np.experiments.rank_sweep import rank_sweep
    from lora_np.experiments.rank_sweep.estimate import estimate
    from lora_np.experiments.rank_sweep.picture import plot_rank_vs_loss, plot_spectrum
    from lora_np.experiments.rank_sweep.report import Terminal, base_line, table
    from lora_np.experiments.rank_sweep.run import check_sweep

    settings, base = sweep_settings(arguments), arguments.base
    get_device(settings.device)
    out = arguments.out or Path("runs") / folder_name(settings, arguments.quick)
    jobs = _jobs(arguments, settings)
    terminal = Terminal(out)
    complete = check_sweep(settings, out, base)
    written = ["results.json", "rank_vs_loss.png"]
    try:
        with _executor(1 if complete else jobs) as executor:
            if not complete:
                terminal.start(estimate(settings, executor, jobs), jobs)
            how = {"executor": executor, "listen": terminal, "progress": terminal.is_screen}
            results = rank_sweep(settings, out, base=base, **how)
        terminal.close()
        plot_rank_vs_loss(results, out / "rank_vs_loss.png")
        if "spectrum" in results:  # not where full fine-tuning diverged
            plot_spectrum(results, out / "spectrum.png")
            written.append("spectrum.png")
    except KeyboardInterrupt:
        terminal.interrupted()
        return 130
    print(table(results))
    print(f"{base_line(results)}written to {out}/: {', '.join(written)}")
    return 0


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
    with _executor(_jobs(arguments, settings.text)) as executor, Listener() as listen:
        results = intrinsic_run(
            settings, out, base=arguments.base, executor=executor, listen=listen
        )
    plot_intrinsic(results, out / "intrinsic_dimension.png")
    print(table(results))
    print(f"{base_line(results)}written to {out}/: results.json, intrinsic_dimension.png")
    return 0


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
    jobs = _jobs(arguments, settings.text)
    terminal = Terminal(out, list(folders(settings, out).values()))
    complete = check_paper(settings, out, base)
    try:
        with _executor(1 if complete else jobs) as executor:
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


# ---------------------------------------------------------------------------------- the sweep's


def sweep_settings(arguments: argparse.Namespace) -> Any:
    """Return the task's settings: its defaults, or the quick ones, with the options given."""
    from lora_np.experiments.rank_sweep import LinearSettings, TextSettings

    settings: Any = TextSettings() if arguments.task == "text" else LinearSettings()
    names = {field.name for field in fields(settings)}
    options = {**vars(arguments)}
    for name in ("run", "task", "quick", "out", "base", "jobs"):
        del options[name]
    given = {name: value for name, value in options.items() if value is not None}
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in names]
    if foreign:
        raise ValueError(f"--task {arguments.task} has no option {', '.join(foreign)}")
    return replace(settings, **{**(QUICK[arguments.task] if arguments.quick else {}), **given})


def folder_name(settings: Any, quick: bool) -> str:
    """Return a name that no other settings have: the task, and a hash of all settings."""
    import hashlib

    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return f"{settings.task}-{'quick-' if quick else ''}{digest}"


def _jobs(arguments: argparse.Namespace, settings: Any) -> int:
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: expected at least 1")
    if settings.device == "cuda":
        return 1  # one device, one process
    return arguments.jobs or cores()


@contextmanager
def _executor(jobs: int) -> Iterator[Executor | None]:
    """Give a pool of fresh processes, or nothing for one job; leaving it drops what still waits."""
    if jobs == 1:
        yield None
        return
    import multiprocessing

    # Not forked: BLAS's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=start_worker)
    try:
        # Workers inherit this until start_worker runs: a Ctrl-C now is the parent's alone.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        pool.submit(int)  # starts the processes
        signal.signal(signal.SIGINT, before)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """Prepare a worker: it ends with its parent, and on Ctrl-C without a word of its own."""
    import multiprocessing
    import threading

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(130)

    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.Thread(target=follow_parent, daemon=True).start()
    keep_memory()


if __name__ == "__main__":
    sys.exit(main())
