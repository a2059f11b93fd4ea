"""Check a configuration's options against the types that its fields declare.

Options come from a caller, a command line or a file, so that any of them may have any type. The
fields of a configuration say what is expected; one function reads them for every method, and what a
method checks itself is only what a type cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from lora_np.reading import shown

LARGEST = float(np.finfo(np.float32).max)  # a model may be float32
WORDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}


def check_types(config: Any) -> None:
    """Raise ValueError unless each field of a dataclass has its declared type.

    NumPy's numbers and arrays, sets and ranges first become Python's numbers and tuples, which a
    file can hold. True is no number, and a number is finite in float32 too.

    Examples
    --------
    >>> from lora_np import LoraConfig
    >>> LoraConfig(layers_to_transform="0")
    Traceback (most recent call last):
        ...
    ValueError: layers_to_transform = '0', expected a whole number, a list of these or None
    """
    hints = _hints(type(config))
    for field in fields(config):
        value = _plain(getattr(config, field.name))
        hint = hints.get(field.name, Any)
        if not _fits(value, hint):
            small = not isinstance(value, int) or abs(value) <= LARGEST
            expected = _words(hint) if small else "a smaller number"
            raise ValueError(f"{field.name} = {shown(value)}, expected {expected}")
        object.__setattr__(config, field.name, value)  # the dataclass is frozen


def check_whole(name: str, value: int | None, least: int = 1, most: float = math.inf) -> None:
    """Raise ValueError if a whole number is out of range; None is in it."""
    if value is not None and not least <= value <= most:
        end = "on" if most == math.inf else f"to {most}"
        raise ValueError(f"{name} = {shown(value)}, expected a whole number from {least} {end}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless a number is above 0."""
    if value <= 0.0:
        raise ValueError(f"{name} = {shown(value)}, expected a number above 0")


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's fields; none if a name in them is known to a function alone."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {}


def _plain(value: Any) -> Any:
    """Return NumPy's numbers and arrays, sets and ranges as Python's numbers and tuples."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=str))
    if type(value) in (list, tuple, range):
        kind = list if isinstance(value, list) else tuple
        return kind(map(_plain, value))
    return {name: _plain(x) for name, x in value.items()} if type(value) is dict else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type; a type of another kind than options have admits everything."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in inner)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(name, inner[0]) and _fits(x, inner[1]) for name, x in value.items()
        )
    if origin in (Sequence, tuple, list):
        return isinstance(value, list | tuple) and all(_fits(x, inner[0]) for x in value)
    if hint in (int, float):
        kinds = int if hint is int else int | float
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return number and abs(value) <= LARGEST
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _words(hint: Any) -> str:
    """Return a type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _either([part for part in inner if part is not NoneType], NoneType in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Mapping:
        return f"a table of names and values{_each(inner[1])}"
    if origin in (Sequence, tuple, list):
        return f"a list{_each(inner[0])}"
    return WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _each(hint: Any) -> str:
    """Return what every value in a list or table is; nothing if it may be anything."""
    return "" if hint is Any else f", each {_words(hint)}"


def _either(parts: Sequence[Any], or_none: bool) -> str:
    """Return the types of a union in words; a list of what is named before is "a list of these"."""
    words = []
    for part in sorted(parts, key=lambda part: get_origin(part) is not None):
        same = get_origin(part) in (Sequence, tuple) and get_args(part)[0] in parts
        words.append("a list of these" if same else _words(part))
    words += ["None"] if or_none else []
    return words[0] if len(words) == 1 else " or ".join([", ".join(words[:-1]), words[-1]])
