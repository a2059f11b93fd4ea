"""The command line ``lora-np``, with one file for each family of commands.

The families are sweep.py, finetune.py, chat.py, serve.py, serve_bench.py, sql.py, many_adapters.py,
studies.py, precision.py, images.py, checks.py and adapters.py; parsing.py and says.py are shared. A
mistake in the input ends with one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor

from lora_np import __version__
from lora_np.backend import DeviceError
from lora_np.cli.adapters import add_adapter_commands
from lora_np.cli.chat import add_chat
from lora_np.cli.checks import add_account, add_gradcheck, add_grade
from lora_np.cli.compare import add_compare
from lora_np.cli.finetune import add_finetune
from lora_np.cli.images import add_images
from lora_np.cli.many_adapters import add_instructions, add_personal
from lora_np.cli.parsing import SHELLS, OneLineParser, PrintCompletion, leaves
from lora_np.cli.precision import add_precision
from lora_np.cli.says import add_quiet, heard
from lora_np.cli.serve import add_serve
from lora_np.cli.serve_bench import add_serve_bench
from lora_np.cli.sql import add_sql
from lora_np.cli.studies import (
    add_dylora,
    add_grid,
    add_intrinsic,
    add_paper,
    add_regret,
    add_small_data,
)
from lora_np.cli.sweep import add_generate, add_sweep
from lora_np.crew import keep_memory
from lora_np.reading import printable
from lora_np.train import Diverged

ADD = (
    add_sweep,
    add_finetune,
    add_instructions,
    add_personal,
    add_paper,
    add_gradcheck,
    add_generate,
    add_chat,
    add_serve,
    add_intrinsic,
    add_precision,
    add_grid,
    add_small_data,
    add_regret,
    add_dylora,
    add_compare,
    add_sql,
    add_serve_bench,
    add_images,
    add_account,
    add_adapter_commands,
    add_grade,
)


OPTIONAL = ("scipy", "matplotlib", "ml_dtypes")  # much of the package works without them
ALIASES = {"analyze": "analyse"}  # argparse's own would have a section each on the docs' page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    given[:1] = [ALIASES.get(name, name) for name in given[:1]]
    arguments = parser().parse_args(given)
    keep_memory()
    _print_any_letter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM is handled like Ctrl-C
    try:
        with heard(arguments):
            return arguments.run(arguments)
    except BrokenPipeError:
        return 0  # the reader of the pipe has closed it
    except (ValueError, DeviceError, Diverged, OSError) as error:
        print(f"lora-np: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"lora-np: not enough memory: {error or 'ask for less'}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        print(f"lora-np: this needs {error.name}: pip install {error.name}", file=sys.stderr)
        return 2
    except BrokenExecutor:
        print("lora-np: a worker process died; run the same command to continue", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlora-np: interrupted", file=sys.stderr)
        return 130


def _print_any_letter() -> None:
    """Escape the letters that standard output cannot encode, as standard error does by default.

    Otherwise the name of a module, or a text that a model writes, could end a command whose output
    goes into a file on Windows, where it is not UTF-8.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = OneLineParser(prog="lora-np", description="LoRA from scratch in pure NumPy.")
    top.add_argument("--version", action="version", version=f"lora-np {__version__}")
    top.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        default=argparse.SUPPRESS,
        help="print what lets a shell complete commands and options, for bash, zsh or tcsh",
    )
    top.set_defaults(run=lambda arguments: run_help(top))
    commands = top.add_subparsers(metavar="command")
    for add in ADD:  # the order of the commands in the help
        add(commands)
    for command in leaves(top):
        add_quiet(command)
    return top


def run_help(top: argparse.ArgumentParser) -> int:
    """Print the help; this runs if no command was given."""
    top.print_help()
    return 0
