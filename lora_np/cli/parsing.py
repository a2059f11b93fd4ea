"""The parser that all commands have: groups of options, errors of one line, completion."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lora_np.methods.table import hint

WHAT = "what is run"
MODEL = "model and data"
ADAPTER = "adapter"
TRAINING = "training"
OUTPUT = "output and machine"
SHELLS = ("bash", "zsh", "tcsh")
FEW = 5  # choices that an error lists beside the nearest
FILES, FOLDERS = ("FILE", "PATH", "ADAPTER"), ("DIR",)  # metavars that a shell completes


class OneLineParser(argparse.ArgumentParser):
    """A parser with errors of one line, which accepts every negative number as a value."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.groups: dict[str, Any] = {}
        # argparse's own expression does not match -5e-1 and takes it for an option.
        self._negative_number_matcher = re.compile(
            r"-(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf|infinity|nan)$", re.IGNORECASE
        )

    def group(self, title: str) -> Any:
        """Return the group of options with this title; the first call makes it."""
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title)
        return self.groups[title]

    @property
    def output(self) -> Any:
        """Where options of the output go: to their group, or beside the others of a short help."""
        return self.groups.get(OUTPUT, self)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Read a command line; an option that does not exist is an error that names the nearest."""
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown(words if self.commands is None else words[:1])  # else its command does
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unexpected: {' '.join(rest)}")
        return found, rest

    @property
    def commands(self) -> Any:
        """The parsers of the commands by name; None for a parser that is itself of a command."""
        choices = [a.choices for a in self._actions if isinstance(a.choices, dict)]
        return choices[0] if choices else None

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Name the nearest option first: else argparse says which required one is missing."""
        for word in words[: words.index("--")] if "--" in words else words:
            name, known = word.partition("=")[0], self._option_string_actions
            if not name.startswith("--") or " " in name:
                continue
            if not any(option.startswith(name) for option in known):
                near = get_close_matches(name[2:], [option.lstrip("-") for option in known])
                meant = f": did you mean {' or '.join(f'--{one}' for one in near)}?" if near else ""
                self.error(f"no option {name}{meant}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest choice for one that does not exist, and all of them if they are few."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            said = f"invalid choice: {value!r}: {hint(str(value), names)}"
            if said.endswith("?") and len(names) <= FEW:
                said += f" Expected one of {', '.join(names)}"
            raise argparse.ArgumentError(action, said)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to get help, and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def leaves(parser: Any) -> Iterator[Any]:
    """Yield the parsers of all commands that run, such as ``sweep`` and ``images base``."""
    if parser.commands is None:
        yield parser
        return
    for command in parser.commands.values():
        yield from leaves(command)


class PrintCompletion(argparse.Action):
    """Prints the script that lets a shell complete commands and options, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Any,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Let shtab write the script; it completes paths where a path is expected."""
        try:
            import shtab  # pyright: ignore[reportMissingImports]
        except ImportError:
            said = f"{option_string} needs the package shtab: pip install 'lora_np[complete]'"
            parser.exit(2, f"{parser.prog}: {said}\n")
        for command in leaves(parser):
            for action in command._actions:
                if action.metavar in FILES + FOLDERS:
                    action.complete = shtab.FILE if action.metavar in FILES else shtab.DIRECTORY
        print(shtab.complete(parser, values))
        parser.exit()
