"""The command line ``lora-np``, with one file for each family of commands.

The families are sweep.py, finetune.py, chat.py, serve.py, serve_bench.py, sql.py, many_adapters.py,
studies.py, precision.py, images.py, checks.py and adapters.py. A mistake in the input ends with one
line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, NoReturn

from lora_np import __version__
from lora_np.backend import DeviceError
from lora_np.cli.adapters import add_adapter_commands
from lora_np.cli.chat import add_chat
from lora_np.cli.checks import add_account, add_gradcheck, add_grade
from lora_np.cli.compare import add_compare
from lora_np.cli.finetune import add_finetune
from lora_np.cli.images import add_images
from lora_np.cli.many_adapters import add_instructions, add_personal
from lora_np.cli.precision import add_precision
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
from lora_np.methods.table import hint
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM is handled like Ctrl-C
    try:
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


class OneLineParser(argparse.ArgumentParser):
    """A parser with errors of one line, which accepts every negative number as a value."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # argparse's own expression does not match -5e-1 and takes it for an option.
        self._negative_number_matcher = re.compile(
            r"-(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf|infinity|nan)$", re.IGNORECASE
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest choice for one that does not exist: argparse lists all of them."""
        if action.choices is not None and value not in action.choices:
            said = f"invalid choice: {value!r}: {hint(str(value), map(str, action.choices))}"
            raise argparse.ArgumentError(action, said)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to get help, and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = OneLineParser(prog="lora-np", description="LoRA from scratch in pure NumPy.")
    top.add_argument("--version", action="version", version=f"lora-np {__version__}")
    top.set_defaults(run=lambda arguments: run_help(top))
    commands = top.add_subparsers(metavar="command")
    for add in ADD:  # the order of the commands in the help
        add(commands)
    return top


def run_help(top: argparse.ArgumentParser) -> int:
    """Print the help; this runs if no command was given."""
    top.print_help()
    return 0
