"""The table of methods: a configuration by its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from lora_np.methods.contract import METHODS, MethodConfig
from lora_np.tables import listed

MANY = 50  # names that an error does not list any more


def make_method(name: str, **options: Any) -> MethodConfig:
    """Return the configuration of a method by its name, with these options.

    Raises
    ------
    ValueError
        If there is no such method or option; the message suggests the nearest names.

    Examples
    --------
    >>> from lora_np.methods import make_method
    >>> make_method("lora", r=2).r
    2
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"there is no method {name!r}: {hint(str(name), METHODS)}")
    method: Any = METHODS[name]
    known = [field.name for field in fields(method)]
    for option in options:
        if option not in known:
            raise ValueError(f"method {name!r} has no option {option!r}: {hint(option, known)}")
    return method(**options)


def hint(name: str, known: Iterable[str]) -> str:
    """Return the nearest of the known names, or all of them, or the first of very many."""
    names = list(known)
    if near := get_close_matches(name, names, n=3):
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(names) if len(names) <= MANY else listed(names)}"
