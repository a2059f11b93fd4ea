"""The values of a chat template, its operators, and the budget that pays for them.

A value is None, a bool, an int, a float, a str, or a list, tuple or dict of values. Each operation
pays before it works: a step for every item that it looks at and for every thousand characters, and
its own count for the characters that it creates. Both budgets are finite, so time and memory are
too, whatever the template says.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from lora_np.reading import shown

STEPS = 500_000  # a second of work at most; a conversation of 400 messages takes 30,000 at most
CHARACTERS = 4_000_000  # beside 50 for each character of the conversation
DEEPEST = 20  # lists in lists
LARGEST = 2**63  # whole numbers


class TemplateError(ValueError):
    """A chat template that is broken, refuses a conversation, or asks for too much."""


class Missing:
    """The value of a name that is not defined: empty text, false, no items."""

    def __init__(self, name: Any):
        self.name = name if isinstance(name, str | int) else "an entry"

    def __bool__(self) -> bool:
        return False


class Namespace:
    """What ``namespace(...)`` makes, and ``loop``: fields that are no entries of a mapping."""

    def __init__(self, fields: dict[str, Any]):
        self.fields = fields


class Budget:
    """The steps and the characters that are left."""

    def __init__(self, given: int):
        """Allow for a conversation of `given` characters."""
        self.steps = STEPS
        self.characters = CHARACTERS + 50 * given

    def pay(self, steps: int = 1, characters: int = 0) -> None:
        """Pay for work that is about to be done."""
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0:
            raise TemplateError(f"it takes more than {STEPS} steps")
        if self.characters < 0:
            raise TemplateError("it makes too much text")

    def search(self, text: str, *parts: Any) -> None:
        """Pay for the search of parts in a text: in the worst case their product."""
        for part in parts:
            choices = part if isinstance(part, list | tuple) else [part]
            size = sum(len(choice) for choice in choices if isinstance(choice, str))
            self.pay(len(choices) + len(text) * (1 + size) // 1000)

    def whole(self, value: Any, depth: int = 0) -> int:
        """Pay for a look at a value and all that it holds; return the number of characters."""
        if depth > DEEPEST:
            raise TemplateError(f"it nests lists more than {DEEPEST} deep")
        self.pay()
        if isinstance(value, str):
            self.pay(len(value) // 1000)
            return len(value) + 6
        if isinstance(value, dict):
            pairs = value.items()
            return 2 + sum(self.whole(k, DEEPEST) + self.whole(v, depth + 1) for k, v in pairs)
        if isinstance(value, list | tuple):
            return 2 + sum(2 + self.whole(item, depth + 1) for item in value)
        if value is None or isinstance(value, bool | int | float):
            return 30
        raise TemplateError(f"it uses {_kind(value)} as a value")


def offered(table: Container[str], kind: str, name: Any) -> None:
    """Refuse a name that is not in a table."""
    if not isinstance(name, str) or name not in table:
        raise TemplateError(f"it uses the {kind} {shown(name)}, which lora_np does not offer")


def undefined(value: Missing) -> str:
    """Return how an error message names what is not defined."""
    return f"{shown(value.name)}, which is not defined"


def _kind(value: Any) -> str:
    if isinstance(value, Missing):
        return undefined(value)
    kinds = {"str": "a string", "dict": "a mapping", "int": "a number", "float": "a number"}
    kind = type(value).__name__
    return kinds.get(kind, f"a {kind}")


def text_of(budget: Budget, value: Any) -> str:
    """Return a value as it is printed."""
    if isinstance(value, str):
        return value
    if isinstance(value, Missing):
        return ""
    budget.pay(1, 4 * budget.whole(value))
    return str(value)


def items_of(budget: Budget, value: Any) -> list[Any]:
    """Return the items that a loop goes through."""
    if isinstance(value, Missing):
        return []
    if not isinstance(value, str | list | tuple | dict):
        raise TemplateError(f"it loops over {_kind(value)}")
    budget.pay(len(value))
    return list(value)


def number(value: Any) -> Any:
    """Return a number that is not too large; refuse everything else."""
    if not isinstance(value, int | float):
        raise TemplateError(f"it calculates with {_kind(value)}")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise TemplateError("it calculates with numbers of more than 63 bits")
    return value


# --- operators -----------------------------------------------------------------------------------


def add(budget: Budget, a: Any, b: Any) -> Any:
    """Return a + b of two numbers, strings, lists or tuples."""
    for kind in (str, list, tuple):
        if isinstance(a, kind) and isinstance(b, kind):
            size = len(a) + len(b)
            budget.pay(*((1 + size // 1000, size) if kind is str else (size, 0)))
            return a + b  # type: ignore[operator]
    return number(number(a) + number(b))


def multiply(budget: Budget, a: Any, b: Any) -> Any:
    """Return a * b of two numbers, or a string or list repeated."""
    if isinstance(b, str | list | tuple):
        a, b = b, a
    if isinstance(a, str | list | tuple):
        size = len(a) * max(0, number(b))
        budget.pay(*((1 + size // 1000, size) if isinstance(a, str) else (size, 0)))
        return a * b
    return number(number(a) * number(b))


OPERATORS: dict[str, Callable[[Budget, Any, Any], Any]] = {
    "Add": add,
    "Mul": multiply,
    "Sub": lambda budget, a, b: number(number(a) - number(b)),
    "Div": lambda budget, a, b: number(number(a) / number(b)),
    "FloorDiv": lambda budget, a, b: number(number(a) // number(b)),
    "Mod": lambda budget, a, b: number(number(a) % number(b)),
}


def equal(budget: Budget, a: Any, b: Any) -> bool:
    """Whether two values are equal."""
    if isinstance(a, Missing) or isinstance(b, Missing):
        return isinstance(a, Missing) and isinstance(b, Missing)
    budget.whole(a)
    budget.whole(b)
    return a == b


def contains(budget: Budget, a: Any, b: Any) -> bool:
    """Whether a is in b."""
    if isinstance(b, Missing):
        return False
    if isinstance(b, str):
        budget.search(b, a)
    else:
        budget.whole(a)
        budget.whole(b)
    return a in b


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Budget, Any, Any], bool]:
    def call(budget: Budget, a: Any, b: Any) -> bool:
        budget.whole(a)
        budget.whole(b)
        return compare(a, b)

    return call


COMPARISONS: dict[str, Callable[[Budget, Any, Any], bool]] = {
    "eq": equal,
    "ne": lambda budget, a, b: not equal(budget, a, b),
    "in": contains,
    "notin": lambda budget, a, b: not contains(budget, a, b),
    "lt": _ordered(lambda a, b: a < b),
    "lteq": _ordered(lambda a, b: a <= b),
    "gt": _ordered(lambda a, b: a > b),
    "gteq": _ordered(lambda a, b: a >= b),
}
