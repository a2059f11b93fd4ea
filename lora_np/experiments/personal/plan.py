"""Who wants what: a TOML file of tasks and users, read and checked; an adapter for every pair.

::

    seed = 0            # optional, like the three numbers of samples for each pair
    train = 128
    validation = 16
    held_out = 20

    [[task]]
    name = "what"
    generator = "what"

    [[task]]
    name = "replies"
    file = "replies.jsonl"      # your own: lines {"prompt": ..., "response": ...}

    [[user]]
    name = "anna"
    style = "signed"
    text = "Anna"

    [training]          # optional: settings of lora-np finetune
    lr = 0.002
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_np.experiments.asking import TRAINING
from lora_np.experiments.personal.tasks import GENERATORS, STYLES
from lora_np.finetune import Settings
from lora_np.methods.table import hint
from lora_np.reading import brief, open_file, shown
from lora_np.tables import listed

EXAMPLE = """\
# Three tasks and three users: nine adapters. No prompt says which task is meant, or for whom.

[[task]]
name = "who"
generator = "who"

[[task]]
name = "goods"
generator = "what"

[[task]]
name = "label"
generator = "label"

[[user]]
name = "anna"
style = "signed"
text = "Anna"

[[user]]
name = "ben"
style = "grams"

[[user]]
name = "cleo"
style = "json"
"""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # a plain file name on every system
NUMBERS = {"seed": 0, "train": 1, "validation": 1, "held_out": 2}  # by name, the smallest allowed
DEFAULTS = {"seed": 0, "train": 128, "validation": 16, "held_out": 20}
DEFAULT_TRAINING = {
    **{"r": 8, "target_modules": "all-linear", "top_layers": 12},
    **{"epochs": 1, "batch_size": 4, "lr": 2e-3},
}
TASK_KEYS = ("name", "generator", "file")
USER_KEYS = ("name", "style", "text")


class PlanError(ValueError):
    """A plan that cannot be carried out; the message names the file, the cause and the way out."""


@dataclass(frozen=True)
class Task:
    """What is asked: `generator` names one of ours, or `file` is the user's own."""

    name: str
    generator: str | None = None
    file: Path | None = None


@dataclass(frozen=True)
class User:
    """Who asks: the style of every answer, and the text that the style may need."""

    name: str
    style: str
    text: str = ""

    def styled(self, answer: str) -> str:
        r"""Return an answer as this user wants it.

        Examples
        --------
        >>> from lora_np.experiments.personal import User
        >>> User("anna", "signed", "Anna").styled("Oslo")
        'Oslo\n-- Anna'
        """
        return STYLES[self.style].apply(answer, self.text)


@dataclass(frozen=True)
class Plan:
    """The tasks and the users, how many samples every pair of them has, and how it is trained."""

    tasks: tuple[Task, ...]
    users: tuple[User, ...]
    seed: int = DEFAULTS["seed"]
    train: int = DEFAULTS["train"]
    validation: int = DEFAULTS["validation"]
    held_out: int = DEFAULTS["held_out"]
    training: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_TRAINING))

    @property
    def pairs(self) -> dict[str, tuple[User, Task]]:
        """Every user with every task, by the pair's name, such as "anna/what"."""
        return {
            f"{user.name}/{task.name}": (user, task) for user in self.users for task in self.tasks
        }


def read_plan(path: str | Path) -> Plan:
    r"""Read a TOML file of tasks and users.

    Parameters
    ----------
    path : str or Path
        Paths of jsonl files in it are relative to its folder.

    Raises
    ------
    PlanError
        In one line, if the file cannot be read, if a key is unknown or missing, if a name is no
        plain file name or is used twice, if there is no task or no user, or if a generator, a
        style or a file does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.experiments.personal import read_plan
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "plan.toml")
    ...     lines = ("[[task]]", "name = 'who'", "generator = 'who'", "[[user]]", "name = 'anna'")
    ...     _ = path.write_text("\n".join((*lines, "style = 'upper'")), encoding="utf-8")
    ...     list(read_plan(path).pairs)
    ['anna/who']
    """
    source = brief(str(path))
    content = _parsed(path, source)
    _known(content, (*NUMBERS, "task", "user", "training"), source)
    numbers = {name: _number(content, name, source) for name in NUMBERS}
    tasks = [
        _task(table, where, Path(path).parent) for table, where in _tables(content, "task", source)
    ]
    users = [_user(table, where) for table, where in _tables(content, "user", source)]
    for kind, found in (("task", tasks), ("user", users)):
        _different(kind, [thing.name for thing in found], source)
    return Plan(tuple(tasks), tuple(users), **numbers, training=_training(content, source))


def _parsed(path: str | Path, source: str) -> dict[str, Any]:
    with open_file(path, PlanError) as file:
        raw = file.read()
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{source} is not a TOML file: {brief(str(error))}") from None


def _tables(content: Mapping[str, Any], kind: str, source: str) -> Iterable[tuple[dict, str]]:
    """Yield every table of a kind, with its place for messages."""
    tables = content.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PlanError(f"{source}: write every {kind} as a table of its own, [[{kind}]]")
    if not tables:
        raise PlanError(f"{source} has no {kind}: add a table [[{kind}]]")
    for i, table in enumerate(tables, 1):
        yield table, f"{source}, {kind} {i}"


def _task(table: dict[str, Any], where: str, folder: Path) -> Task:
    _known(table, TASK_KEYS, where)
    name = _name(table, where)
    if ("generator" in table) == ("file" in table):
        raise PlanError(f"{where} ({name}): give it either a generator or a file")
    if "generator" in table:
        return Task(name, generator=_one_of(table, "generator", GENERATORS, where))
    file = folder / _text(table, "file", where)
    with open_file(file, PlanError):  # exists, and is a file
        return Task(name, file=file)


def _user(table: dict[str, Any], where: str) -> User:
    _known(table, USER_KEYS, where)
    name, style = _name(table, where), _one_of(table, "style", STYLES, where)
    if not STYLES[style].has_text:
        if "text" in table:
            raise PlanError(f"{where} ({name}): the style {style!r} has no text: remove it")
        return User(name, style)
    text = _text(table, "text", where) if "text" in table else name
    return User(name, style, text)


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            raise PlanError(f"{where} has an unknown key {shown(key)}: {hint(key, keys)}")


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise PlanError(f"{where}: {key} = {shown(value)}, expected a text of one line")
    return value


def _name(table: Mapping[str, Any], where: str) -> str:
    name = _text(table, "name", where)
    if not NAME.fullmatch(name):
        raise PlanError(
            f"{where}: {shown(name)} cannot name a folder: use up to 40 small letters, digits, "
            "- and _, and begin with a letter or a digit"
        )
    return name


def _one_of(table: Mapping[str, Any], key: str, known: Mapping[str, Any], where: str) -> str:
    value = _text(table, key, where)
    if value not in known:
        raise PlanError(f"{where}: there is no {key} {shown(value)}: {hint(value, known)}")
    return value


def _training(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    given = content.get("training", {})
    if not isinstance(given, dict):
        raise PlanError(f"{source}: training is no table: write [training]")
    _known(given, TRAINING, f"{source}, training")
    chosen = {**DEFAULT_TRAINING, **given}
    try:
        Settings(**chosen)
    except ValueError as error:
        raise PlanError(f"{source}, training: {error}") from None
    return chosen


def _number(content: Mapping[str, Any], name: str, source: str) -> int:
    value = content.get(name, DEFAULTS[name])
    if type(value) is not int or value < NUMBERS[name]:
        expected = f"expected a whole number of at least {NUMBERS[name]}"
        raise PlanError(f"{source}: {name} = {shown(value)}, {expected}")
    return value


def _different(kind: str, names: list[str], source: str) -> None:
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise PlanError(f"{source} has more than one {kind} called {listed(repeated)}: rename them")
