"""What the commands that run an experiment share: options, and how it is run, shown and resumed."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from lora_np.cli.parsing import OUTPUT, WHAT, OneLineParser
from lora_np.cli.says import add_format, note, report
from lora_np.cli.workers import pool_of
from lora_np.progress import log
from lora_np.tables import Table

CAUTION = "a quick run: there is nothing to conclude from it"
Writers = Mapping[str, Callable[[Path], Any]]  # by a file's name, what writes it


def add_options(parser: OneLineParser, quick: str | None, out: str, base: bool = True) -> None:
    """Add the options that every experiment has; `quick` and `out` are their help.

    Without a help there is no ``--quick``: the command has other presets. Without `base` there is
    no ``--base``: the command pretrains none.
    """
    add = parser.group(WHAT).add_argument
    if quick is not None:
        add("--quick", action="store_true", help=quick)
    if base:
        copied = "folder of a text sweep or a study whose base is copied; default: pretrain a base"
        add("--base", type=Path, metavar="DIR", help=copied)
    add = parser.group(OUTPUT).add_argument
    add("--out", type=Path, metavar="DIR", help=f"default: {out}")
    add_format(parser)
    add("--jobs", type=int, metavar="N", help="processes; default: one per core")
    take_over = "take DIR from a process on another host, if that process has ended"
    add("--take-over", action="store_true", help=take_over)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of an option, ascending and each once."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, as in 1,2,4") from None


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of an option, ascending and each once."""
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, as in 2,4,8") from None


def folder_name(settings: Any, quick: bool) -> str:
    """Return a name that no other settings have: the task, and a hash of all settings."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return f"{settings.task}-{'quick-' if quick else ''}{digest}"


def carry_out(
    arguments: argparse.Namespace,
    jobs: int,
    terminal: Any,
    check: Callable[..., bool],
    run: Callable[..., dict[str, Any]],
    file: str,
    files: Callable[[dict[str, Any]], Writers],
    shown: Callable[[dict[str, Any]], Sequence[Table | str]],
    seconds: Callable[[Executor | None, int], float] | None = None,
) -> int:
    """Run or resume an experiment, write its pictures and print its results.

    Parameters
    ----------
    arguments : argparse.Namespace
        Of a parser with the options of :func:`add_options`.
    jobs : int
        Number of processes.
    terminal : lora_np.experiments.terminal.Terminal
    check, run : callable
        As ``check_sweep`` and ``rank_sweep``, with the settings and the folder filled in.
    file : str
        Name of the file that holds the results.
    files, shown : callable
        Return what writes the pictures of some results, and the parts of their report.
    seconds : callable, optional
        ``seconds(executor, jobs)`` estimates how long it takes.

    Returns
    -------
    int
        The exit status: 130 after Ctrl-C, once the terminal has reported what is kept.
    """
    from lora_np.experiments.terminal import base_line

    how = {name: x for name, x in vars(arguments).items() if name in ("base", "take_over")}
    complete = check(**how)
    try:
        with terminal, pool_of(1 if complete else jobs) as executor:
            if not complete and seconds is not None:
                terminal.start(seconds(executor, jobs), jobs)
            how |= {"executor": executor, "listen": terminal}
            if "base" in how:  # pretraining has a bar of its own
                how |= {"progress": terminal.is_screen}
            results = run(**how)
        said = write_files(terminal.out, file, files(results), complete)
    except KeyboardInterrupt:
        terminal.interrupted()
        return 130
    report(arguments, *shown(results))
    note(f"{base_line(results)}{said}")
    return 0


def cautioned(text: str, quick: bool) -> list[str]:
    """Return the parts of a report; that of a quick run says that it decides nothing."""
    return [text, "", *([CAUTION, ""] if quick else [])]


def write_files(out: Path, held: str, files: Writers, complete: bool) -> str:
    """Write the pictures and texts of a finished run; return the line that lists them.

    Parameters
    ----------
    out : Path
    held : str
        Name of the file of results, which has been written.
    files : mapping
    complete : bool
        Whether the run was complete before. Then only missing files are written, and an error is
        a warning, not raised, for the folder may lie on a read-only disk.
    """
    said = "held in"
    for name, write in files.items():
        if complete and (out / name).exists():
            continue
        try:
            write(out / name)
            said = "written to"
        except OSError as error:
            if not complete:
                raise
            log.warning(f"not written: {error}")
    names = [held, *(name for name in files if (out / name).exists())]
    return f"{said if complete else 'written to'} {out}/: {', '.join(names)}"
