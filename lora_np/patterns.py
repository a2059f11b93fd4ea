r"""Regular expressions from files, matched in bounded time.

An adapter's config names modules by regular expressions, as in PEFT. Python's ``re`` tries all ways
to match one after the other: ``(a+)+$`` has 2^40 ways on a name of 40 letters, so a config with
that pattern would never finish loading. This file follows all ways at once (Thompson 1968). A part
of a pattern is a function from the places in a name where the part may begin to the places where
it may end::

    name    h . 0 . q           part     begins at   ends at
    places 0 1 2 3 4 5          "h"      {0}         {1}
                                ".*"     {1}         {1, 2, 3, 4, 5}

A name has few places, so the number of ways to reach a place does not matter. A set of places is an
integer, with bit i for place i: matching a letter is then an "and" and a shift.

The answers are those of ``re``. Backreferences and inline flags are not supported: they raise.

Source: Thompson, Regular expression search algorithm, CACM 11 (1968) 419.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from warnings import catch_warnings, simplefilter

from lora_np.reading import shown

LONGEST = 4000  # characters of a pattern
DEEPEST = 20  # groups within groups
CACHED = 10_000  # compiled patterns kept: an adapter may have one for each module
STEPS = 20_000  # sets of places formed in one match; a real pattern takes a few hundred

TOKEN = re.compile(
    r"""
      (?P<open>   \( (?: \?: | \?P<\w+> | \?<?[=!] | (?!\?) ) )
    | (?P<close>  \) )
    | (?P<or>     \| )
    | (?P<repeat> (?: [*+?] | \{ (?: [0-9]+ (?:,[0-9]*)? | ,[0-9]* ) \} ) \?? )
    | (?P<edge>   \^ | \$ | \\[bBAZ] )
    | (?P<letter> \[ \^? \]? (?: \\. | [^\]\\] )* \]
                | \\x[0-9a-fA-F]{2} | \\u[0-9a-fA-F]{4} | \\U[0-9a-fA-F]{8}
                | \\[dDsSwWafnrtv] | \\[^0-9a-zA-Z] | [^\\(\[] )
    """,
    re.VERBOSE | re.DOTALL,
)
PLAIN = re.compile(r"\^?(?:[^\\^$|?*+(){}\[\]]|\\\W)*")  # no repeats: safe for re


class PatternError(ValueError):
    """A pattern that is not a regular expression, or cannot be matched in bounded time."""


class _Name:
    """A name that is being matched, the places of its letters and edges, and the steps left."""

    def __init__(self, text: str) -> None:
        self.text, self.steps = text, STEPS
        self.all = (1 << (len(text) + 1)) - 1
        self.found: dict[str, int] = {}

    def places(self, part: str) -> int:
        """Return the set of places at which `re` matches one letter or edge."""
        if part not in self.found:
            match = re.compile(part).match
            self.found[part] = sum(1 << i for i in range(len(self.text) + 1) if match(self.text, i))
        self.step()
        return self.found[part]

    def step(self) -> None:
        """Count a step."""
        self.steps -= 1
        if self.steps < 0:
            raise PatternError(f"takes more than {STEPS} steps")


Part = Callable[[_Name, int], int]  # from the places of its begin to the places of its end


class Pattern:
    r"""A regular expression.

    Parameters
    ----------
    text : str
        The pattern, in the syntax of Python's ``re``.
    called : str, optional
        The pattern as errors quote it; by default `text`.

    Raises
    ------
    PatternError
        If `text` is not a regular expression, is too long, or uses syntax that is not supported.

    Examples
    --------
    >>> from lora_np.patterns import Pattern
    >>> bool(Pattern(r"h\.[0-3]\.(q|v)").fullmatch("h.2.v"))
    True
    >>> Pattern("(a+)+$").ends("a" * 60 + "!")  # for which re would need 2^60 steps
    []
    """

    def __init__(self, text: str, called: str | None = None) -> None:
        self.called = text if called is None else called
        self._ends = _compiled(text, self.called)

    def ends(self, name: str, start: int = 0) -> list[int]:
        """Return the places in `name` where a match from `start` can end, ascending.

        Raises
        ------
        PatternError
            If the match takes too many steps, which no ordinary pattern does.
        """
        try:
            found = self._ends(_Name(name), 1 << start)
        except PatternError as error:
            raise PatternError(f"pattern {shown(self.called)} {error} on {shown(name)}") from None
        return [i for i in range(len(name) + 1) if found >> i & 1]

    def match(self, name: str) -> bool:
        """Whether the pattern matches at the start of `name`."""
        return bool(self.ends(name))

    def fullmatch(self, name: str) -> bool:
        """Whether the pattern matches the whole of `name`."""
        return len(name) in self.ends(name)


@lru_cache(CACHED)
def at_the_end(key: str) -> Pattern | re.Pattern[str]:
    """Return a pattern for names that are `key` or end with ".key", as PEFT matches them.

    Parameters
    ----------
    key : str
        A name or a regular expression; one that begins with ^ must match the whole name.

    Raises
    ------
    PatternError
        As from :class:`Pattern`.

    Examples
    --------
    >>> from lora_np.patterns import at_the_end
    >>> [bool(at_the_end("q").match(name)) for name in ("h.0.q", "q", "h.0.xq")]
    [True, True, False]
    """
    _require_length(key)
    text = rf"(.*\.)?({key})$"
    return re.compile(text) if PLAIN.fullmatch(key) else Pattern(text, key)


@lru_cache(CACHED)
def _compiled(text: str, called: str) -> Part:
    """Return the part for a whole text, which errors quote as `called`."""
    _require_length(called)
    try:
        part = _Parser(text).whole()
        with catch_warnings():
            simplefilter("error")  # re warns about syntax that later versions will read differently
            re.compile(text)
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        reason = error.msg if isinstance(error, re.error) else error
        raise PatternError(f"pattern {shown(called)} cannot be used: {reason}") from None
    return part


def _require_length(text: str) -> None:
    if len(text) > LONGEST:
        raise PatternError(
            f"pattern {shown(text)} cannot be used: it has more than {LONGEST} characters"
        )


class _Parser:
    """Reads a regular expression from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def whole(self) -> Part:
        """Return the part for the whole text."""
        part = self._either()
        if self.at < len(self.text):
            raise re.error("unbalanced parenthesis", self.text, self.at)
        return part

    def _next(self, *kinds: str) -> str | None:
        """Take the next token if it is of one of these kinds."""
        token = TOKEN.match(self.text, self.at)
        if token is None and self.at < len(self.text):
            what = "a backreference, a flag or an escape that cannot be matched in bounded time"
            raise re.error(what, self.text, self.at)
        if token is None or token.lastgroup not in kinds:
            return None
        self.at = token.end()
        return token[0]

    def _either(self) -> Part:
        choices = [self._sequence()]
        while self._next("or"):
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else _either(choices)

    def _sequence(self) -> Part:
        parts = []
        while part := self._part():
            times = self._next("repeat")
            if times and self._next("repeat"):
                raise re.error("multiple repeat", self.text, self.at)
            parts.append(_repeated(part, *_bounds(times)) if times else part)
        return parts[0] if len(parts) == 1 else _sequence(parts)

    def _part(self) -> Part | None:
        """Return a letter, an edge or a group; None before ")", "|" and the end."""
        if letter := self._next("letter"):
            return lambda name, begins: (begins & name.places(letter)) << 1
        if edge := self._next("edge"):
            return lambda name, begins: begins & name.places(edge)
        if opening := self._next("open"):
            return self._group(opening)
        if self._next("repeat"):
            raise re.error("nothing to repeat", self.text, self.at)
        return None

    def _group(self, opening: str) -> Part:
        self.depth += 1
        if self.depth > DEEPEST:
            raise re.error(f"more than {DEEPEST} groups inside one another", self.text, self.at)
        body = self._either()
        if not self._next("close"):
            raise re.error("missing ), unterminated subpattern", self.text, self.at)
        self.depth -= 1
        look = {"(?=": (_ahead, True), "(?!": (_ahead, False)}
        look |= {"(?<=": (_behind, True), "(?<!": (_behind, False)}
        if opening not in look:
            return body
        looking, wanted = look[opening]
        return lambda name, begins: looking(body, wanted, name, begins)


def _bounds(times: str) -> tuple[int, int | None]:
    """Return the least and the largest number of repeats; lazy and greedy ones give one set."""
    simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if times[0] in simple:
        return simple[times[0]]
    least, comma, most = times.strip("{}?").partition(",")
    return int(least or 0), int(most) if most else None if comma else int(least)


def _sequence(parts: list[Part]) -> Part:
    def ends(name: _Name, begins: int) -> int:
        for part in parts:
            begins = part(name, begins) if begins else 0
        return begins

    return ends


def _either(choices: list[Part]) -> Part:
    def ends(name: _Name, begins: int) -> int:
        found = 0
        for choice in choices:
            found |= choice(name, begins)
        return found

    return ends


def _repeated(body: Part, least: int, most: int | None) -> Part:
    """Return `body` repeated; once a repeat adds no new place, further repeats add none."""

    def ends(name: _Name, begins: int) -> int:
        for _ in range(least):
            name.step()
            before, begins = begins, body(name, begins)
            if begins in (0, before):
                break
        found = new = begins
        count = least
        while new and (most is None or count < most):
            name.step()
            new = body(name, new) & ~found
            found, count = found | new, count + 1
        return found

    return ends


def _ahead(body: Part, wanted: bool, name: _Name, begins: int) -> int:
    """Keep the places at which `body` matches, or those at which it does not."""
    places = [1 << i for i in range(len(name.text) + 1) if begins >> i & 1]
    return sum(place for place in places if bool(body(name, place)) is wanted)


def _behind(body: Part, wanted: bool, name: _Name, begins: int) -> int:
    """Keep the places at which a match of `body` ends, or those at which none ends."""
    found = body(name, name.all)
    return begins & (found if wanted else ~found)
