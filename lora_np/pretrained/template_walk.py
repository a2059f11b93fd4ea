"""Render a chat template by walking through its syntax tree.

Jinja2 compiles a template to Python, and its sandbox keeps a template from Python's internals; but
nothing in it bounds the time or the memory that a template takes. A list that holds another twice,
which holds another twice, takes one comparison of 2^60 steps inside the interpreter. Here a
template is data: every node is one call, and every call pays from a
:class:`~lora_np.pretrained.template_values.Budget`. A construct that is not written here does not
exist. No value has an attribute that this code does not name, so there is nothing to escape from.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from lora_np.pretrained.template_filters import FILTERS, TESTS, Method, attribute, entry
from lora_np.pretrained.template_values import (
    COMPARISONS,
    OPERATORS,
    Budget,
    Missing,
    Namespace,
    TemplateError,
    items_of,
    number,
    offered,
    text_of,
)
from lora_np.reading import brief, shown

TODAY = datetime(2024, 7, 26)  # the date in Llama 3's own template: tokens do not change every day
DATE_FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,100}")  # no widths: "%1000000d" is a long text
DEEPEST_CALL = 20  # macros that call macros

Scope = ChainMap[str, Any]


class Break(Exception):
    """``{% break %}``."""


class Continue(Exception):
    """``{% continue %}``."""


class Function:
    """A function that a template may call, and a macro of its own."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, budget: Budget, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.call(budget, *args, **kwargs)


def _range(budget: Budget, *args: Any) -> list[int]:
    numbers = range(*map(number, args))
    budget.pay(min(len(numbers), 2**62))
    return list(numbers)


def _raise(budget: Budget, message: Any = "") -> None:
    raise TemplateError(f"it refuses the conversation ({brief(text_of(budget, message))})")


def _today(budget: Budget, form: str) -> str:
    if not DATE_FORMAT.fullmatch(form):
        raise TemplateError(f"it asks for a date as {shown(form)}")
    return TODAY.strftime(form)


GLOBALS = {
    "range": Function(_range),
    "raise_exception": Function(_raise),
    "strftime_now": Function(_today),
    "namespace": Function(lambda budget, **fields: Namespace(fields)),
    "dict": Function(lambda budget, **kwargs: dict(kwargs)),
}


class Walk:
    """One rendering of a template.

    Parameters
    ----------
    names : dict
        The variables that the template sees.
    budget : Budget

    Attributes
    ----------
    line : int
        The line of the template that runs, for error messages.
    """

    def __init__(self, names: dict[str, Any], budget: Budget):
        self.scope: Scope = ChainMap({}, names, GLOBALS)
        self.budget, self.line, self.calls = budget, 1, 0

    def text(self, nodes: Sequence[Any], scope: Scope) -> str:
        """Return what some statements print."""
        out: list[str] = []
        self.run(nodes, scope, out)
        return "".join(out)

    def run(self, nodes: Sequence[Any], scope: Scope, out: list[str]) -> None:
        """Run statements; append what they print to `out`."""
        for node in nodes:
            self.budget.pay()
            self.line = node.lineno or self.line
            _handler(STATEMENTS, node)(self, node, scope, out)

    def value(self, node: Any, scope: Scope) -> Any:
        """Return the value of an expression."""
        self.budget.pay()
        kind = type(node).__name__
        if kind in OPERATORS:
            left, right = self.value(node.left, scope), self.value(node.right, scope)
            return OPERATORS[kind](self.budget, left, right)
        return _handler(EXPRESSIONS, node)(self, node, scope)

    # --- statements ------------------------------------------------------------------------------

    def output(self, node: Any, scope: Scope, out: list[str]) -> None:
        """Print texts and values."""
        for part in node.nodes:
            text = text_of(self.budget, self.value(part, scope))
            self.budget.pay(1, len(text))
            out.append(text)

    def condition(self, node: Any, scope: Scope, out: list[str]) -> None:
        """Run the first branch whose test is true."""
        for branch in (node, *node.elif_):
            if self.value(branch.test, scope):
                return self.run(branch.body, scope, out)
        return self.run(node.else_, scope, out)

    def loop(self, node: Any, scope: Scope, out: list[str]) -> None:
        """Run the body once for each item. What a round sets is gone in the next."""
        if node.recursive:
            raise TemplateError("it uses a recursive loop, which lora_np does not offer")
        items = items_of(self.budget, self.value(node.iter, scope))
        if node.test is not None:
            items = [i for i in items if self.value(node.test, self.bound(node.target, i, scope))]
        ended = False  # Jinja2's `else` runs unless a round comes to its end
        for i, item in enumerate(items):
            self.budget.pay()
            inner = self.bound(node.target, item, scope)
            inner["loop"] = _loop_fields(items, i)
            try:
                self.run(node.body, inner, out)
                ended = True
            except Continue:
                continue
            except Break:
                break
        if not ended:
            self.run(node.else_, scope.new_child(), out)

    def bound(self, target: Any, item: Any, scope: Scope) -> Scope:
        """Return a scope inside `scope` in which a loop's names stand for an item."""
        inner = scope.new_child()
        self.assign(target, item, inner)
        return inner

    def assign(self, target: Any, value: Any, scope: Scope) -> None:
        """Give a value to a name, to several, or to a field of a namespace."""
        kind = type(target).__name__
        if kind == "Name":
            scope[target.name] = value
        elif kind == "NSRef":
            space = scope.get(target.name)
            if not isinstance(space, Namespace):
                raise TemplateError(f"it sets a field of {target.name!r}, which is no namespace")
            space.fields[target.attr] = value
        else:
            for name, item in zip(target.items, items_of(self.budget, value), strict=True):
                self.assign(name, item, scope)

    def set_value(self, node: Any, scope: Scope, out: list[str]) -> None:
        """``{% set x = ... %}``."""
        self.assign(node.target, self.value(node.node, scope), scope)

    def set_block(self, node: Any, scope: Scope, out: list[str]) -> None:
        """``{% set x %}...{% endset %}``."""
        text = self.text(node.body, scope.new_child())
        self.assign(node.target, self.filtered(node.filter, text, scope), scope)

    def filter_block(self, node: Any, scope: Scope, out: list[str]) -> None:
        """``{% filter ... %}...{% endfilter %}``."""
        text = self.filtered(node.filter, self.text(node.body, scope.new_child()), scope)
        out.append(text_of(self.budget, text))

    def with_block(self, node: Any, scope: Scope, out: list[str]) -> None:
        """``{% with x = ... %}...{% endwith %}``."""
        inner = scope.new_child()
        for target, value in zip(node.targets, node.values):
            self.assign(target, self.value(value, scope), inner)
        self.run(node.body, inner, out)

    def macro(self, node: Any, scope: Scope, out: list[str]) -> None:
        """``{% macro f(x, y=1) %}...{% endmacro %}``."""
        names = [arg.name for arg in node.args]

        def call(budget: Budget, *args: Any, **kwargs: Any) -> str:
            if len(args) > len(names) or not kwargs.keys() <= set(names):
                raise TemplateError(f"its macro {node.name!r} has no such arguments")
            if self.calls >= DEEPEST_CALL:
                raise TemplateError(f"its macros call one another {DEEPEST_CALL} deep")
            inner = scope.new_child()
            inner.update({name: Missing(name) for name in names})
            for name, value in zip(names[len(names) - len(node.defaults) :], node.defaults):
                inner[name] = self.value(value, inner)
            inner.update(zip(names, args))
            inner.update(kwargs)
            self.calls += 1
            try:
                return self.text(node.body, inner)
            finally:
                self.calls -= 1

        scope[node.name] = Function(call)

    def inside(self, node: Any, scope: Scope, out: list[str]) -> None:
        """``{% generation %}...{% endgeneration %}``: the text as it is."""
        self.run(node.body, scope.new_child(), out)

    def leave(self, node: Any, scope: Scope, out: list[str]) -> None:
        """``{% break %}`` and ``{% continue %}``."""
        raise Break if type(node).__name__ == "Break" else Continue

    # --- expressions -----------------------------------------------------------------------------

    def name(self, node: Any, scope: Scope) -> Any:
        """Look a name up."""
        return scope.get(node.name, Missing(node.name))

    def sequence(self, node: Any, scope: Scope) -> Any:
        """``[a, b]`` and ``(a, b)``."""
        items = [self.value(item, scope) for item in node.items]
        return items if type(node).__name__ == "List" else tuple(items)

    def mapping(self, node: Any, scope: Scope) -> dict[str, Any]:
        """``{"a": b}``."""
        pairs = [(self.value(p.key, scope), self.value(p.value, scope)) for p in node.items]
        if not all(isinstance(key, str) for key, _ in pairs):
            raise TemplateError("it makes a mapping whose keys are not strings")
        return dict(pairs)

    def choice(self, node: Any, scope: Scope) -> Any:
        """``a if test else b``."""
        if self.value(node.test, scope):
            return self.value(node.expr1, scope)
        return Missing("else") if node.expr2 is None else self.value(node.expr2, scope)

    def both(self, node: Any, scope: Scope) -> Any:
        """``a and b``."""
        return self.value(node.left, scope) and self.value(node.right, scope)

    def either(self, node: Any, scope: Scope) -> Any:
        """``a or b``."""
        return self.value(node.left, scope) or self.value(node.right, scope)

    def joined(self, node: Any, scope: Scope) -> str:
        """``a ~ b``."""
        texts = [text_of(self.budget, self.value(part, scope)) for part in node.nodes]
        self.budget.pay(1, sum(map(len, texts)))
        return "".join(texts)

    def compared(self, node: Any, scope: Scope) -> bool:
        """``a < b``, and ``a < b < c``."""
        left = self.value(node.expr, scope)
        for operand in node.ops:
            right = self.value(operand.expr, scope)
            if not COMPARISONS[operand.op](self.budget, left, right):
                return False
            left = right
        return True

    def item(self, node: Any, scope: Scope) -> Any:
        """``a[b]`` and ``a[b:c]``."""
        value = self.value(node.node, scope)
        if type(node.arg).__name__ != "Slice":
            return entry(value, self.value(node.arg, scope))
        if not isinstance(value, str | list | tuple):
            raise TemplateError("it cuts a part out of what is no string and no list")
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        part = slice(*(None if end is None else self.value(end, scope) for end in ends))
        size = len(range(*part.indices(len(value))))
        self.budget.pay(size // 1000 if isinstance(value, str) else size, size)
        return value[part]

    def arguments(self, node: Any, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a call, a filter or a test."""
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise TemplateError("it calls with * or **, which lora_np does not offer")
        args = [self.value(arg, scope) for arg in node.args]
        return args, {pair.key: self.value(pair.value, scope) for pair in node.kwargs}

    def call(self, node: Any, scope: Scope) -> Any:
        """``f(x)``."""
        function = self.value(node.node, scope)
        if not isinstance(function, Function | Method):
            name = getattr(node.node, "name", getattr(node.node, "attr", None))
            raise TemplateError(f"it calls {shown(name)}, which lora_np does not offer")
        args, kwargs = self.arguments(node, scope)
        return function(self.budget, *args, **kwargs)

    def filter(self, node: Any, scope: Scope) -> Any:
        """``x | f``."""
        return self.filtered(node, None, scope)

    def filtered(self, node: Any, given: Any, scope: Scope) -> Any:
        """Apply filters to the value that they name, or to the `given` text of a block."""
        if node is None:
            return given
        inner = type(node.node).__name__ == "Filter" or node.node is None
        value = self.filtered(node.node, given, scope) if inner else self.value(node.node, scope)
        offered(FILTERS, "filter", node.name)
        args, kwargs = self.arguments(node, scope)
        return FILTERS[node.name](self.budget, value, *args, **kwargs)

    def test(self, node: Any, scope: Scope) -> bool:
        """``x is f``."""
        offered(TESTS, "test", node.name)
        args, _ = self.arguments(node, scope)
        return TESTS[node.name](self.budget, self.value(node.node, scope), *args)


def _loop_fields(items: list[Any], i: int) -> Namespace:
    """Return the variable ``loop`` of a round."""
    n = len(items)
    before = items[i - 1] if i else Missing("loop.previtem")
    after = items[i + 1] if i + 1 < n else Missing("loop.nextitem")
    fields = {"index0": i, "index": i + 1, "revindex0": n - i - 1, "revindex": n - i, "length": n}
    fields |= {"first": i == 0, "last": i == n - 1, "previtem": before, "nextitem": after}
    return Namespace({**fields, "cycle": Function(lambda budget, *args: args[i % len(args)])})


def _handler(table: dict[str, Callable[..., Any]], node: Any) -> Callable[..., Any]:
    kind = type(node).__name__
    offered(table, "construct", kind)
    return table[kind]


STATEMENTS: dict[str, Callable[..., None]] = {
    "Output": Walk.output,
    "If": Walk.condition,
    "For": Walk.loop,
    "Assign": Walk.set_value,
    "AssignBlock": Walk.set_block,
    "FilterBlock": Walk.filter_block,
    "With": Walk.with_block,
    "Macro": Walk.macro,
    "Scope": Walk.inside,
    "Break": Walk.leave,
    "Continue": Walk.leave,
}
EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "Const": lambda walk, node, scope: node.value,
    "TemplateData": lambda walk, node, scope: node.data,
    "Name": Walk.name,
    "List": Walk.sequence,
    "Tuple": Walk.sequence,
    "Dict": Walk.mapping,
    "CondExpr": Walk.choice,
    "And": Walk.both,
    "Or": Walk.either,
    "Not": lambda walk, node, scope: not walk.value(node.node, scope),
    "Neg": lambda walk, node, scope: -number(walk.value(node.node, scope)),
    "Pos": lambda walk, node, scope: number(walk.value(node.node, scope)),
    "Concat": Walk.joined,
    "Compare": Walk.compared,
    "Getattr": lambda walk, node, scope: attribute(walk.value(node.node, scope), node.attr),
    "Getitem": Walk.item,
    "Call": Walk.call,
    "Filter": Walk.filter,
    "Test": Walk.test,
}
