"""Fine-tuning of a language model on a file: ``finetune``."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lora_np.cli.parsing import ADAPTER, MODEL, OUTPUT, TRAINING
from lora_np.cli.says import note
from lora_np.cli.sweep import targets
from lora_np.finetune.settings import Settings, read_toml
from lora_np.reading import printable

METAVARS = {int: "N", float: "X", str: "NAME"}
NAMED = {"model": "MODEL", "r": "R", "lr": "LR"}  # by the setting's name, before its type
BEGIN = {  # the first setting of each group: they are in the order of lora_np.finetune.Settings
    "model": MODEL,
    "method": ADAPTER,
    "epochs": TRAINING,
    "recompute": OUTPUT,
}


def add_finetune(commands: Any) -> None:
    """Add the parser of ``finetune``: one option for each setting."""
    parser = commands.add_parser(
        "finetune",
        help="fine-tune a language model on your own file; an adapter for PEFT comes out",
        description="Settings come from the command line, then from --config, then the defaults.",
        epilog="Example: lora-np finetune --model smollm2 --data my.jsonl --out my-adapter. "
        "docs/guides/own_data.md explains the files and the options that matter.",
    )
    hints, title = get_type_hints(Settings), MODEL
    for field in fields(Settings):
        title = BEGIN.get(field.name, title)
        _add_setting(parser.group(title), field, hints[field.name])
    add = parser.group(OUTPUT).add_argument
    add("--config", type=Path, metavar="FILE", help="settings in TOML, named as the options here")
    add("--out", type=Path, metavar="DIR", help="default: runs/finetune-<settings>")
    add("--dry-run", action="store_true", help="show memory, time and samples; write nothing")
    add(
        "--take-over",
        action="store_true",
        help="take DIR from a process on another host, if that process has ended",
    )
    parser.set_defaults(run=run_finetune)


def _add_setting(group: Any, field: Any, hint: Any) -> None:
    """Add the option of one setting; it is None unless the user gives it."""
    said, name = field.metadata["help"], f"--{field.name.replace('_', '-')}"
    if field.name == "options":
        group.add_argument(
            "--option", action="append", metavar="NAME=VALUE", dest="options", help=said
        )
        return
    if field.default is not None and field.default is not False and "default" not in said:
        said = f"{said}; default: {field.default}"
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType]
    how: dict[str, Any] = {"help": said, "default": None}
    if field.name == "target_modules":
        how |= {"type": targets, "metavar": "NAME,NAME|all-linear|REGEX"}
    elif hint is bool:
        how |= {"action": argparse.BooleanOptionalAction}
    elif get_origin(hint) is Literal:
        how |= {"choices": get_args(hint)}
    else:
        metavar = NAMED.get(field.name, METAVARS[kinds[0]])
        how |= {"type": kinds[0], "metavar": field.metadata.get("metavar", metavar)}
    group.add_argument(name, **how)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings: the options given, over those of the file, over the defaults."""
    chosen = {} if arguments.config is None else read_toml(arguments.config)
    with _naming_the_file(arguments):
        return _over(chosen, arguments)


def _over(chosen: dict[str, Any], arguments: argparse.Namespace) -> Settings:
    """Return the settings of a file, with the options given over them."""
    for field in fields(Settings):
        value = getattr(arguments, field.name)
        if value is not None and field.name == "options":  # each over that of the file's table
            table = chosen.get("options", {})
            value = {**table, **_method_options(value)} if isinstance(table, dict) else table
        if value is not None:
            chosen[field.name] = value
    return Settings(**chosen)


@contextmanager
def _naming_the_file(arguments: argparse.Namespace) -> Iterator[None]:
    """Add to an error where the settings are from, if a file has some: any of them may be wrong."""
    try:
        yield
    except ValueError as error:
        if arguments.config is None:
            raise
        given = any(getattr(arguments, field.name) is not None for field in fields(Settings))
        places = f"{arguments.config}{' and the command line' if given else ''}"
        raise ValueError(f"{error} (settings from {places})") from None


def _method_options(given: list[str]) -> dict[str, Any]:
    """Return the options of a method from texts such as ``d=200``; a value is read as TOML."""
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option {printable(text)}: expected NAME=VALUE")
        try:
            options[name.strip()] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            options[name.strip()] = value
    return options


def run_finetune(arguments: argparse.Namespace) -> int:
    """Run or continue a fine-tuning, or show what it would need."""
    from lora_np.finetune import finetune
    from lora_np.finetune.dry_run import dry_run
    from lora_np.finetune.folder import RECORD, summary

    settings = settings_of(arguments)
    if arguments.dry_run:
        with _naming_the_file(arguments):
            print(dry_run(settings))
        return 0
    out = arguments.out or Path("runs") / folder_name(settings)
    how = {"command": command_of(arguments), "take_over": arguments.take_over}
    try:
        with _naming_the_file(arguments):
            record = finetune(settings, out, progress=True, **how)
    except KeyboardInterrupt:
        print(f"\nstopped: run the same command to continue in {out}", file=sys.stderr)
        return 130
    print(summary(record))
    note(f"written to {out}: the adapter for PEFT, README.md, {RECORD}")
    return 1 if record["diverged"] else 0


def command_of(arguments: argparse.Namespace) -> str:
    """Return the command that gave these arguments, with every option in full."""
    words = ["lora-np", "finetune"]
    for name in ("config", *(field.name for field in fields(Settings))):
        option, value = f"--{name.replace('_', '-')}", getattr(arguments, name)
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif name == "options":
            words += [word for text in value or () for word in ("--option", text)]
        elif value is not None:
            words += [option, ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def folder_name(settings: Settings) -> str:
    """Return a name that no other settings have."""
    plain = {name: value for name, value in asdict(settings).items() if name != "jobs"}
    return f"finetune-{hashlib.sha256(repr(plain).encode()).hexdigest()[:8]}"
