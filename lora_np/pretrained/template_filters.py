"""The filters, tests and methods that a chat template may use; each pays for its work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from lora_np.pretrained.template_values import (
    COMPARISONS,
    DEEPEST,
    Budget,
    Missing,
    Namespace,
    TemplateError,
    contains,
    equal,
    items_of,
    multiply,
    number,
    offered,
    text_of,
    undefined,
)
from lora_np.reading import shown

METHODS = {  # methods of a str whose result is not longer than the text, or a few times as long
    *("strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition"),
    *("startswith", "endswith", "removeprefix", "removesuffix", "find", "rfind", "index", "count"),
    *("upper", "lower", "title", "capitalize", "isdigit", "isalpha", "isupper", "islower"),
    *("isspace", "isalnum", "isnumeric"),
}
OF_DICT = ("get", "items", "keys", "values")

# --- attributes and methods ----------------------------------------------------------------------


def attribute(value: Any, name: Any) -> Any:
    """Return ``value.name``: a method first, then an entry of a mapping."""
    if isinstance(value, Missing):
        raise TemplateError(f"it asks for {shown(name)} of {undefined(value)}")
    if isinstance(value, Namespace):
        return value.fields.get(name, Missing(name))
    if isinstance(name, str) and method_of(value, name):
        return Method(value, name)
    if isinstance(value, dict) and isinstance(name, str) and name in value:
        return value[name]
    return Missing(name)


def entry(value: Any, key: Any) -> Any:
    """Return ``value[key]``: an entry first, then a method."""
    if isinstance(value, dict) and isinstance(key, str) and key in value:
        return value[key]
    if isinstance(value, str | list | tuple) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else Missing(key)
    return attribute(value, key)


def method_of(value: Any, name: str) -> bool:
    """Whether a template may call this method."""
    if isinstance(value, str):
        return name in METHODS or name in ("replace", "join")
    if isinstance(value, dict):
        return name in OF_DICT
    return isinstance(value, list | tuple) and name in ("index", "count")


class Method:
    """A method of a value, to be called."""

    def __init__(self, value: Any, name: str):
        self.value, self.name = value, name

    def __call__(self, budget: Budget, *args: Any, **kwargs: Any) -> Any:
        """Pay, then call it."""
        value = self.value
        if self.name == "replace":
            return replace(budget, value, *args, **kwargs)
        if self.name == "join":
            return join(budget, *args, d=value)
        if isinstance(value, str):
            budget.search(value, "", *args, *kwargs.values())
        else:
            for part in (*args, value) if self.name in ("index", "count") else args:
                budget.whole(part)
            budget.pay(len(value))
        found = getattr(value, self.name)(*args, **kwargs)
        if isinstance(value, str):
            budget.pay(1, budget.whole(found))
        elif self.name in ("items", "keys", "values"):
            return list(found)
        return found


# --- filters -------------------------------------------------------------------------------------


def replace(budget: Budget, value: Any, old: str, new: str, count: Any = None) -> str:
    """Return a text with `old` replaced by `new`."""
    text, old, new = (text_of(budget, v) for v in (value, old, new))
    budget.search(text, old)
    budget.pay(1, len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> str:
    """Return the items of a list as one text, with `d` between them."""
    items = items_of(budget, value)
    if attribute is not None:
        items = [entry(item, attribute) for item in items]
    texts, between = [text_of(budget, item) for item in items], text_of(budget, d)
    budget.pay(1, sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def tojson(
    budget: Budget,
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON, as transformers writes it: nothing is escaped for HTML."""
    width = 0 if indent is None else number(indent)
    if width > 8 or len(text_of(budget, "".join(separators or ""))) > 8:
        raise TemplateError("tojson: indent and separators of at most 8 characters are allowed")
    budget.pay(1, budget.whole(value) * (6 + width * DEEPEST))
    return json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        separators=separators,
        sort_keys=bool(sort_keys),
    )


def indent(
    budget: Budget, value: Any, width: Any = 4, first: bool = False, blank: bool = False
) -> str:
    """Return a text with every line but the first indented."""
    text, space = text_of(budget, value), multiply(budget, " ", width)
    lines = f"{text}\n".splitlines()
    budget.pay(1, len(text) + len(lines) * (len(space) + 1))
    head, rest = lines[0], [space + x if x or blank else x for x in lines[1:]]
    return (space if first else "") + "\n".join([head, *rest])


def default(budget: Budget, value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    """Return a value, or another one if it is not defined, or false where `boolean` is true."""
    return default_value if isinstance(value, Missing) or (boolean and not value) else value


def _method(name: str) -> Callable[..., Any]:
    """Return the filter that calls a method of the value's text."""
    return lambda budget, value, *args: Method(text_of(budget, value), name)(budget, *args)


def _end(place: int) -> Callable[..., Any]:
    def call(budget: Budget, value: Any) -> Any:
        items = items_of(budget, value)
        return items[place] if items else Missing("an item of an empty list")

    return call


def _sorted(budget: Budget, value: Any) -> list[Any]:
    """Return items in order; upper and lower case are equal."""
    items = items_of(budget, value)
    budget.pay(20 * (len(items) + budget.whole(items) // 1000))
    return sorted(items, key=lambda x: x.lower() if isinstance(x, str) else x)


def _dictsort(budget: Budget, value: Any) -> list[Any]:
    """Return the pairs of a mapping in the order of its keys."""
    return [(key, value[key]) for key in _sorted(budget, [*value.keys()])]


def _title(budget: Budget, value: Any) -> str:
    """Return a text whose words begin with a capital; a word begins after a space or a bracket."""
    text = text_of(budget, value)
    budget.pay(1 + len(text), len(text))
    return "".join(map(str.capitalize, re.split(r"([-\s({\[<]+)", text)))


def _number_or(kind: type, zero: Any) -> Callable[..., Any]:
    def call(budget: Budget, value: Any, default: Any = zero) -> Any:
        budget.whole(value)
        try:
            return number(kind(value))
        except (TypeError, ValueError, OverflowError):
            return default

    return call


def _map(budget: Budget, value: Any, *args: Any, attribute: Any = None) -> list[Any]:
    """Return a field of each item, or a filter of each item."""
    items = items_of(budget, value)
    budget.pay(len(items))
    if attribute is not None:
        return [entry(item, attribute) for item in items]
    name, *rest = args
    offered(FILTERS, "filter", name)
    return [FILTERS[name](budget, item, *rest) for item in items]


def _chosen(wanted: bool, of_field: bool) -> Callable[..., list[Any]]:
    """Return the filter select, reject, selectattr or rejectattr."""

    def call(budget: Budget, value: Any, *args: Any) -> list[Any]:
        name, rest = (args[0], args[1:]) if of_field else (None, args)
        test = rest[0] if rest else None
        if test is not None:
            offered(TESTS, "test", test)
        found = []
        for item in items_of(budget, value):
            budget.pay()
            looked_at = entry(item, name) if of_field else item
            true = looked_at if test is None else TESTS[test](budget, looked_at, *rest[1:])
            if bool(true) == wanted:
                found.append(item)
        return found

    return call


FILTERS: dict[str, Callable[..., Any]] = {
    "replace": replace,
    "join": join,
    "tojson": tojson,
    "indent": indent,
    "default": default,
    "d": default,
    "trim": _method("strip"),
    **{name: _method(name) for name in ("upper", "lower", "capitalize")},
    "length": lambda budget, value: 0 if isinstance(value, Missing) else len(value),
    "count": lambda budget, value: 0 if isinstance(value, Missing) else len(value),
    "first": _end(0),
    "last": _end(-1),
    "list": items_of,
    "string": text_of,
    "safe": text_of,
    "int": _number_or(int, 0),
    "float": _number_or(float, 0.0),
    "map": _map,
    "select": _chosen(True, False),
    "reject": _chosen(False, False),
    "selectattr": _chosen(True, True),
    "rejectattr": _chosen(False, True),
    "abs": lambda budget, value: abs(number(value)),
    "items": lambda budget, value: items_of(budget, [] if not value else [*value.items()]),
    "reverse": lambda budget, v: v[::-1] if isinstance(v, str) else items_of(budget, v)[::-1],
    "sort": _sorted,
    "dictsort": _dictsort,
    "title": _title,
}

# --- tests ---------------------------------------------------------------------------------------

_SEQUENCES = (str, list, tuple, dict)

TESTS: dict[str, Callable[..., bool]] = {
    "defined": lambda budget, v: not isinstance(v, Missing),
    "undefined": lambda budget, v: isinstance(v, Missing),
    "none": lambda budget, v: v is None,
    "string": lambda budget, v: isinstance(v, str),
    "mapping": lambda budget, v: isinstance(v, dict),
    "sequence": lambda budget, v: isinstance(v, (*_SEQUENCES, Missing)),
    "iterable": lambda budget, v: isinstance(v, (*_SEQUENCES, Missing)),
    "number": lambda budget, v: isinstance(v, int | float),
    "integer": lambda budget, v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda budget, v: isinstance(v, float),
    "boolean": lambda budget, v: isinstance(v, bool),
    "true": lambda budget, v: v is True,
    "false": lambda budget, v: v is False,
    "odd": lambda budget, v: number(v) % 2 == 1,
    "even": lambda budget, v: number(v) % 2 == 0,
    "divisibleby": lambda budget, v, n: number(v) % number(n) == 0,
    **dict.fromkeys(("equalto", "eq", "=="), equal),
    **dict.fromkeys(("ne", "!="), COMPARISONS["ne"]),
    "in": contains,
}
